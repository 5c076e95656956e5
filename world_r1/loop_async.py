"""The loop one step ahead: while the learner updates on step s, the groups of step s + 1 are sampled and judged with the weights of before.

The ratio is taken against the log-probs of the policy that sampled, one version older, which `cluster.max_staleness` allows. Before a
scheduled checkpoint nothing is started ahead: the step after it samples with the saved weights, so a run resumed from there repeats it
exactly.
"""

from __future__ import annotations

import time
from pathlib import Path

from world_r1.actors.cluster import Cluster, Interrupted
from world_r1.config import Config
from world_r1.loop import Hooks, Outcome, finish, refuse_failures, step_once
from world_r1.prompts import PromptStream


def run(config: Config, cluster: Cluster, stream: PromptStream, checkpoints: Path, start: int, hooks: Hooks) -> Outcome:
    """Take the steps start..config.steps-1; see `world_r1.loop.run`, of which this is the same with `ahead`."""
    step = saved = start
    reason = hooks.stop()
    ahead = None
    while step < config.steps and not reason:
        begin = time.perf_counter()
        try:
            scored = cluster.wait(ahead or cluster.async_rollout(step, stream.at(step)))
        except Interrupted:
            break
        refuse_failures(config, cluster, checkpoints, scored)
        due = (step + 1) % config.save_every == 0
        ahead = None if due or step + 1 == config.steps else cluster.async_rollout(step + 1, stream.at(step + 1))
        step_once(config, cluster, scored, begin, hooks)
        cluster.publish()
        step += 1
        if due:
            cluster.save(checkpoints, step)
            saved = step
        hooks.evaluate(step)
        reason = hooks.stop()
    if ahead:
        ahead.abandon()
    return finish(config, cluster, checkpoints, step, saved, hooks)
