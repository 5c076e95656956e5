"""The loop one step ahead: while the rewards of step s are waited for and the learner updates on it, step s + 1 is sampled and judged.

A step's rollout starts as soon as the update before the last one is done, so that judging has all of an update and of the next sampling
to hide behind. The ratio is taken against the log-probs of the policy that sampled, one version older, which `cluster.max_staleness`
allows. Before a scheduled checkpoint nothing is started ahead: the step after it samples with the saved weights, so a run resumed from
there repeats it exactly.
"""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path

from world_r1.actors.cluster import Cluster, Interrupted, Pending
from world_r1.config import Config
from world_r1.loop import Hooks, Outcome, finish, refuse_failures, step_once
from world_r1.prompts import PromptStream


def run(config: Config, cluster: Cluster, stream: PromptStream, checkpoints: Path, start: int, hooks: Hooks) -> Outcome:
    """Take the steps start..config.steps-1; see `world_r1.loop.run`, of which this is the same with rollouts started ahead."""
    step = saved = start
    reason = hooks.stop()
    started: deque[Pending] = deque()
    while step < config.steps and not reason:
        begin = time.perf_counter()
        for other in range(step + len(started), horizon(config, step)):
            started.append(cluster.async_rollout(other, stream.at(other)))
        try:
            scored = cluster.wait(started[0])
        except Interrupted:
            break
        started.popleft()
        refuse_failures(config, cluster, checkpoints, scored)
        step_once(config, cluster, scored, begin, hooks)
        cluster.publish()
        step += 1
        if step % config.save_every == 0:
            cluster.save(checkpoints, step)
            saved = step
        hooks.evaluate(step)
        reason = hooks.stop()
    for pending in started:
        pending.abandon()
    return finish(config, cluster, checkpoints, step, saved, hooks)


def horizon(config: Config, step: int) -> int:
    """The first step whose rollout may not start yet once `step` steps are taken: two ahead, the next checkpoint, or the end."""
    return min(step + 2, (step // config.save_every + 1) * config.save_every, config.steps)
