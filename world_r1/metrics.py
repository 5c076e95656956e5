"""One row of `metrics.jsonl`: what a loop step measured, as plain numbers. A mean over nothing is left out, never written as 0."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean, pstdev

from world_r1.types import Group, Score

Row = dict[str, float | int | str]


def step_row(
    phase: str,
    groups: Sequence[Group],
    advantages: Mapping[str, float],
    update: Mapping[str, float],
    seconds: Mapping[str, float],
) -> Row:
    """The row of a step: rewards, failures, advantages' and update's metrics, and the seconds as `time/<part>`."""
    missing = sum(verdict.total is None for group in groups for verdict in group.verdicts)
    row: Row = {"phase": phase, **rewards(groups), "failure_rate": failure_rate(groups), "failures": missing, **versions(groups)}
    row |= {"dropped_groups": int(advantages.get("groups_flat", 0) + advantages.get("groups_few_valid", 0))}
    row |= {key: value for key, value in advantages.items() if key.startswith(("videos", "advantage"))}
    return {**row, **update, **{f"time/{part}": value for part, value in seconds.items()}}


def rewards(groups: Sequence[Group]) -> dict[str, float]:
    """`reward` (mean total), `reward_std` (mean spread within a group), `reward/<name>` and `reward/<name>/<part>`, over what is there."""
    totals = [[verdict.total for verdict in group.verdicts if verdict.total is not None] for group in groups]
    columns: dict[str, list[float]] = {"reward": [total for group in totals for total in group]}
    columns["reward_std"] = [pstdev(group) for group in totals if len(group) > 1]
    for score in _scores(groups):
        if score.value is not None:
            columns.setdefault(f"reward/{score.reward}", []).append(score.value)
        for part, value in score.parts.items():
            columns.setdefault(f"reward/{score.reward}/{part}", []).append(value)
    return {name: fmean(values) for name, values in columns.items() if values}


def versions(groups: Sequence[Group]) -> dict[str, str]:
    """`versions/<name>` of rewards whose scores depend on a model, a rubric or a checkpoint: all that occurred, so a change shows."""
    found: dict[str, set[str]] = {}
    for score in _scores(groups):
        if score.versions:
            found.setdefault(f"versions/{score.reward}", set()).add(
                ", ".join(f"{k} {v}" for k, v in sorted(score.versions.items()))
            )
    return {name: " | ".join(sorted(texts)) for name, texts in found.items()}


def failure_rate(groups: Sequence[Group]) -> float:
    """Share of videos without a total, for whatever reason."""
    missing = [verdict.total is None for group in groups for verdict in group.verdicts]
    return fmean(missing) if missing else 0.0


def reasons(groups: Sequence[Group], most: int = 3) -> str:
    """The most frequent reasons of missing scores, in one line."""
    count = Counter(f"{score.reward} {score.status}: {score.reason}" for score in _scores(groups) if score.value is None)
    return "; ".join(f"{number}x {reason}" for reason, number in count.most_common(most)) or "no reward applies to these prompts"


def _scores(groups: Sequence[Group]) -> list[Score]:
    return [score for group in groups for verdict in group.verdicts for score in verdict.scores]
