"""Measures many clips in several processes: held-out metrics, the training rubric for reference, and a reconstruction for the
report.

Work on one clip is a pure function of the clip, so the number of processes changes nothing but the time. A clip whose process dies
or exceeds its time becomes a row of missing values with the reason; nothing waits for ever.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.pool import AsyncResult, Pool
from typing import Any

import cv2
import numpy as np

from world_r1 import heldout, plane_sweep
from world_r1.config import RewardsConfig
from world_r1.types import Clip, Trajectory

log = logging.getLogger(__name__)

#: Seconds after which one clip's measurement is given up.
PATIENCE = 300.0


@dataclass(frozen=True)
class Task:
    """One clip to examine. Example: `Task(clip, rubric=True, geometry=False)`"""

    clip: Clip
    #: Also judge with the training rubric (a reference column).
    rubric: bool = False
    #: Also reconstruct camera path and point cloud, for the report.
    geometry: bool = False


class Examiner:
    """Examines clips in this process (`workers=1`) or in a pool of spawned ones; use `examiner(...)` to get one.

    Example: `with examiner(config.rewards, workers=4) as exam: exam.submit(task); rows = exam.results()`
    """

    def __init__(self, rewards: RewardsConfig | None, pool: Pool | None) -> None:
        self.pool = pool
        self.rewards = rewards
        self.pending: list[AsyncResult[dict[str, Any]] | dict[str, Any]] = []

    def submit(self, task: Task) -> None:
        """Start work on a clip (or do it now, without a pool)."""
        if self.pool is None:
            _begin(self.rewards)
            self.pending.append(_examine(task))
        else:
            self.pending.append(self.pool.apply_async(_examine, (task,)))

    def results(self) -> list[dict[str, Any]]:
        """One row per submitted clip, in order: `{values, missing, seconds}` and, if asked for, `rewards` and `geometry`."""
        rows = []
        for job in self.pending:
            if isinstance(job, dict):
                rows.append(job)
                continue
            try:
                rows.append(job.get(PATIENCE))
            except multiprocessing.TimeoutError:
                reason = f"no answer within {PATIENCE:.0f} s (the measuring process died or hangs)"
                log.warning("a clip was not measured: %s", reason)
                rows.append(
                    {
                        "values": dict.fromkeys(heldout.METRICS),
                        "missing": dict.fromkeys(heldout.METRICS, reason),
                        "seconds": PATIENCE,
                    }
                )
        self.pending = []
        return rows


@contextmanager
def examiner(rewards: RewardsConfig | None, workers: int = 1) -> Iterator[Examiner]:
    """An `Examiner`; its processes end with the block, whatever happens inside."""
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    if workers == 1:
        yield Examiner(rewards, None)
        return
    with multiprocessing.get_context("spawn").Pool(workers, initializer=_begin, initargs=(rewards,)) as pool:
        yield Examiner(rewards, pool)


_RUBRIC: tuple[RewardsConfig, Any] | None = None


def _begin(rewards: RewardsConfig | None) -> None:
    """Once per process: one thread (many processes with many threads each stand in one another's way) and the rubric."""
    global _RUBRIC
    if _RUBRIC is not None and _RUBRIC[0] == rewards:
        return
    if multiprocessing.parent_process() is not None:
        cv2.setNumThreads(1)
        os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"  # for torch, which only some tasks import
    if rewards is not None:
        from world_r1.reward import Rubric

        _RUBRIC = rewards, Rubric(rewards)


def _examine(task: Task) -> dict[str, Any]:
    start = time.perf_counter()
    measurement = heldout.measure(task.clip.video, task.clip.trajectory)
    row: dict[str, Any] = {"values": dict(measurement.values), "missing": dict(measurement.missing)}
    if task.rubric and _RUBRIC is not None:
        _judge(task.clip, row)
    if task.geometry:
        row["geometry"] = reconstruct(task.clip)
    row["seconds"] = time.perf_counter() - start
    return row


def _judge(clip: Clip, row: dict[str, Any]) -> None:
    """Adds the training reward ("reward") and its scores ("reward/NAME"); they are reference columns."""
    assert _RUBRIC is not None
    verdict = _RUBRIC[1].judge([clip])[0]
    row["values"]["reward"] = verdict.total
    if verdict.total is None:
        row["missing"]["reward"] = (
            "; ".join(f"{s.reward}: {s.reason}" for s in verdict.scores if s.value is None) or "no reward applies"
        )
    for score in verdict.scores:
        row["values"][f"reward/{score.reward}"] = score.value
        if score.value is None:
            row["missing"][f"reward/{score.reward}"] = f"{score.status}: {score.reason}"


#: Points kept of a reconstruction's cloud: what a browser turns smoothly and what a report can carry.
CLOUD = 2500


def reconstruct(clip: Clip) -> dict[str, Any]:
    """Commanded and estimated camera path and a point cloud, for the eye only: `{"why": ""}` plus arrays as lists, or why there is
    none.

    The paths are [T, 6] (position, viewing direction), the estimate scaled in closed form onto the command. The estimator is the
    bundle adjustment that the training rewards use too; no number of the exam comes from it.
    """
    from world_r1.reward import PROBES, Probe, load

    path = clip.trajectory
    result: dict[str, Any] = {"commanded": _path(path.c2w) if path else None, "depth": float(path.depth) if path else 1.0}
    result["turns_only"] = path is not None and plane_sweep.turns_only(path)
    evidence = load("flow_ba", PROBES, Probe)(quality="eval").observe([clip], [{"frames": clip.video}])[0]
    if isinstance(evidence, Exception):
        return result | {"why": f"{type(evidence).__name__}: {evidence}"}
    geometry = evidence["geometry"]
    scale = _scale(clip.trajectory, geometry.c2w)
    estimated = geometry.c2w.astype(np.float64).copy()
    estimated[:, :3, 3] *= scale
    points = np.asarray(geometry.points, np.float64) * scale
    chosen = np.unique(np.linspace(0, len(points) - 1, min(CLOUD, len(points))).astype(int)) if len(points) else np.zeros(0, int)
    return result | {
        "why": "",
        "estimated": _path(estimated),
        "points": np.round(points[chosen], 3).tolist(),
        "colours": np.asarray(geometry.colours)[chosen].astype(int).tolist(),
    }


def _path(c2w: np.ndarray) -> list[list[float]]:
    return np.round(np.concatenate([c2w[:, :3, 3], c2w[:, :3, 2]], 1).astype(np.float64), 4).tolist()


def _scale(trajectory: Trajectory | None, estimated: np.ndarray) -> float:
    """Factor that brings an estimate (median depth 1) to the commanded unit: least squares over positions, else the commanded
    depth."""
    if trajectory is None:
        return 1.0
    want, have = trajectory.c2w[:, :3, 3].astype(np.float64), estimated[:, :3, 3].astype(np.float64)
    power = float((have**2).sum())
    if float((want**2).sum()) < 1e-6 or power < 1e-9:
        return float(trajectory.depth)
    fitted = float((want * have).sum()) / power
    # a path that goes the other way has no positive fit: show it at its own length, so that the disagreement is seen
    return fitted if fitted > 0.05 * trajectory.depth else float(trajectory.depth)
