"""Reward workers on Ray: a pool of them behind a queue, as part of a run or as a service that many runs share.

`pool.Pool` does the work (queue, batches, time-outs, replacement, retries, scaling, figures). A training run has one inside; `server` puts
one into a detached, named actor; `client` reaches it from anywhere on the cluster; `gateway` from outside Ray, over HTTP.
"""
