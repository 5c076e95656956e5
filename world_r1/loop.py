"""The synchronous loop: sample, judge, compare within groups, update, publish. It knows neither GPUs nor models."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from world_r1 import metrics
from world_r1.actors.cluster import Cluster, Interrupted, Scored
from world_r1.advantage import group_relative
from world_r1.config import Config
from world_r1.prompts import PromptStream, phase_at


class TooManyFailures(RuntimeError):
    """More videos without a score than `rewards.max_failure_rate` allows; the state was saved before this was raised."""


@dataclass(frozen=True)
class Hooks:
    """What happens around a step: `row` gets the number of finished steps and the metrics of the last, `videos` its clips;
    `evaluate` gets the number of finished steps.

    `stop` gives the reason to end before the next step ("" for none).
    """

    row: Callable[[int, metrics.Row], None]
    videos: Callable[[Scored], None]
    evaluate: Callable[[int], None]
    stop: Callable[[], str]


@dataclass(frozen=True)
class Outcome:
    """Where a loop ended, and why: `reason` is "" if all steps were taken."""

    step: int
    reason: str


def run(config: Config, cluster: Cluster, stream: PromptStream, checkpoints: Path, start: int, hooks: Hooks) -> Outcome:
    """Take the steps start..config.steps-1. The last state is saved on every way out but an error inside an update."""
    step = saved = start
    reason = hooks.stop()
    while step < config.steps and not reason:
        begin = time.perf_counter()
        try:
            scored = cluster.rollout(step, stream.at(step))
        except Interrupted:
            break
        refuse_failures(config, cluster, checkpoints, scored)
        step_once(config, cluster, scored, begin, hooks)
        cluster.publish()
        step += 1
        if step % config.save_every == 0:
            cluster.save(checkpoints, step)
            saved = step
        hooks.evaluate(step)
        reason = hooks.stop()
    return finish(config, cluster, checkpoints, step, saved, hooks)


def step_once(config: Config, cluster: Cluster, scored: Scored, begin: float, hooks: Hooks) -> None:
    """Advantages, update and the row of one step's scored groups; `begin` is when the loop began to wait for them.

    The seconds are what the loop waited for, so that they add up: work that went on meanwhile costs nothing.
    """
    waited = time.perf_counter() - begin
    reward = min(scored.seconds["reward"], waited)
    weights = {entry.key: entry.weight for entry in config.rewards.rewards}
    advantages = group_relative(scored.groups, weights, config.algorithm.advantage)
    report = cluster.update(scored, dict(advantages.values))
    total = time.perf_counter() - begin
    seconds = {"rollout": waited - reward, "reward": reward, "update": total - waited, "total": total}
    phase = phase_at(scored.step, config.phases)
    report = {**report, "staleness": float(scored.step - scored.version)}
    hooks.row(scored.step + 1, metrics.step_row(phase, scored.groups, advantages.metrics, report, seconds))
    hooks.videos(scored)


def refuse_failures(config: Config, cluster: Cluster, checkpoints: Path, scored: Scored) -> None:
    """Save, then raise `TooManyFailures`, if too many of a step's videos have no score."""
    rate = metrics.failure_rate(scored.groups)
    if rate > config.rewards.max_failure_rate:
        path = cluster.save(checkpoints, scored.step)
        raise TooManyFailures(
            f"step {scored.step}: {rate:.0%} of the videos have no score, rewards.max_failure_rate={config.rewards.max_failure_rate:g} "
            f"({metrics.reasons(scored.groups)}); saved {path}; mend the rewards and continue with --resume"
        )


def finish(config: Config, cluster: Cluster, checkpoints: Path, step: int, saved: int, hooks: Hooks) -> Outcome:
    """Save what is not saved yet."""
    if step != saved:
        cluster.save(checkpoints, step)
    return Outcome(step, "" if step >= config.steps else hooks.stop())
