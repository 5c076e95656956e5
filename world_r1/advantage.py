"""Group-relative advantages: a video is compared with the others of its prompt, and a missing score is a missing value.

A^i = (R^i - mean_group R) / std_group R  over the videos of the group that have a score (GRPO, arXiv 2402.03300, section
4.1.2, with the population standard deviation). `standardise: parts` is GDPO (arXiv 2601.05242): every reward is standardised
within its group before the weighted sum, so that a reward with a large spread cannot drown the others; the sums are then
divided by their root mean square over the batch, which keeps the scale of the advantages independent of how many rewards there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from world_r1.config import AdvantageConfig
from world_r1.types import Group


@dataclass(frozen=True)
class Advantages:
    """Advantages of one rollout batch.

    Example: `Advantages(values={"s3-p1-k0": 1.2, "s3-p1-k1": None}, metrics={"groups_flat": 1.0})`
    """

    #: By rollout id; None for a video without a valid score or in a dropped group.
    values: Mapping[str, float | None]
    #: Plain floats to log: see `group_relative`.
    metrics: Mapping[str, float] = field(default_factory=dict)


def group_relative(groups: Sequence[Group], weights: Mapping[str, float], config: AdvantageConfig) -> Advantages:
    """Advantages, clipped to +-`config.clip`, of every rollout in `groups`; None where there is none.

    `weights` maps reward names to their weights; only `standardise: parts` reads it. A video whose total is missing (None or not
    finite) takes no part in its group's statistics. A group is dropped, and counted, if fewer than `min_valid` videos are left
    or if nothing in it differs by more than `min_std`.

    Metrics: `groups`, `groups_flat` and `groups_few_valid` (dropped), `videos`, `videos_missing` (no score), `videos_trained`,
    `group_std` (mean spread of the total in the groups that are kept), `advantage_clipped` (share of trained videos).
    Raises ValueError for a rollout id that occurs twice, or a score whose reward has no weight.
    """
    ids = [rollout for group in groups for rollout in group.rollouts]
    if len(set(ids)) != len(ids):
        raise ValueError("a rollout id occurs twice in the groups; advantages would be ambiguous")
    totals = [np.array([_number(verdict.total) for verdict in group.verdicts]) for group in groups]
    few = [int(np.isfinite(total).sum()) < config.min_valid for total in totals]
    raw = [
        np.full(len(total), np.nan)
        if skip
        else standardise(total, config.min_std)
        if config.standardise == "total"
        else _by_parts(group, np.isfinite(total), weights, config.min_std)
        for group, total, skip in zip(groups, totals, few, strict=True)
    ]
    if config.standardise == "parts" and raw:
        raw = _unit_scale(raw)
    kept = [bool(np.isfinite(values).any()) for values in raw]
    flat = np.concatenate([np.zeros(0), *raw])
    trained = flat[np.isfinite(flat)]
    clipped = np.clip(flat, -config.clip, config.clip)
    values = {name: float(value) if np.isfinite(value) else None for name, value in zip(ids, clipped, strict=True)}
    spreads = [float(np.nanstd(total)) for total, keep in zip(totals, kept, strict=True) if keep]
    metrics = {
        "groups": float(len(groups)),
        "groups_flat": float(sum(not keep and not skip for keep, skip in zip(kept, few, strict=True))),
        "groups_few_valid": float(sum(few)),
        "videos": float(len(ids)),
        "videos_missing": float(sum(int((~np.isfinite(total)).sum()) for total in totals)),
        "videos_trained": float(len(trained)),
        "group_std": float(np.mean(spreads)) if spreads else 0.0,
        "advantage_clipped": float(np.mean(np.abs(trained) > config.clip)) if len(trained) else 0.0,
    }
    return Advantages(values, metrics)


def standardise(values: np.ndarray, min_std: float) -> np.ndarray:
    """(values - mean) / population std over the finite entries of [G]; all NaN if that std is at or below `min_std`."""
    valid = values[np.isfinite(values)]
    if not len(valid) or valid.std() <= min_std:
        return np.full(len(values), np.nan)
    return np.where(np.isfinite(values), (values - valid.mean()) / valid.std(), np.nan)


def _by_parts(group: Group, valid: np.ndarray, weights: Mapping[str, float], min_std: float) -> np.ndarray:
    """Weighted sum of the rewards' own standardised values; a reward without spread in this group says nothing about it."""
    names = {score.reward: None for verdict in group.verdicts for score in verdict.scores}
    if unknown := sorted(set(names) - set(weights)):
        raise ValueError(f"no weight for the rewards {unknown}; weights are given for {sorted(weights)}")
    columns = {name: np.full(len(valid), np.nan) for name in names if weights[name] > 0}
    for row, verdict in enumerate(group.verdicts):
        for score in verdict.scores:
            if valid[row] and score.reward in columns:
                columns[score.reward][row] = _number(score.value)
    parts = [weights[name] * standardise(column, min_std) for name, column in columns.items()]
    informative = [part for part in parts if np.isfinite(part).any()]
    return np.sum(informative, axis=0) if informative else np.full(len(valid), np.nan)


def _unit_scale(raw: list[np.ndarray]) -> list[np.ndarray]:
    """All advantages of the batch divided by their common root mean square (their mean is 0 within every group)."""
    flat = np.concatenate(raw)
    squares = flat[np.isfinite(flat)] ** 2
    scale = float(np.sqrt(squares.mean())) if len(squares) else 0.0
    return [values / scale for values in raw] if scale > 0 else raw


def _number(value: float | None) -> float:
    return float(value) if value is not None and np.isfinite(value) else np.nan
