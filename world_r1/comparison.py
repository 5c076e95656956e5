"""Before against after, clip by clip: paired bootstrap intervals and the share of the gap to real renders that training closed.

Pure numbers: rows in, a summary out. A row is one clip, `{"id": str, "values": {metric: float | None}}`; rows pair by id because
both evaluations draw the same noise for the same prompt. A missing value drops its pair from that metric and is counted, never
filled in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from world_r1.heldout import METRICS, Metric

#: Metrics of the evaluation-only model; `Metric.role` says what each may be used for.
MODEL_METRICS: Mapping[str, Metric] = {
    "fidelity": Metric("higher", "guard", "share of the prompt's facts that an evaluation-only model finds in the clip"),
    # the model is right on 43 % of real renders of an exam (poses of a reconstruction on 98 % of their round trips, LOG.md): no guard
    "direction": Metric("higher", "reference", "share of clips whose camera moves as told in every axis, by the same model"),
    "quality": Metric("higher", "guard", "probability of being undamaged, by an evaluation-only model"),
}


def metric(name: str) -> Metric:
    """What is known about a metric by name. Training rewards and single facts are for reference: they decide nothing."""
    if name in METRICS:
        return METRICS[name]
    if name in MODEL_METRICS:
        return MODEL_METRICS[name]
    if name.startswith("fidelity/"):
        return Metric("higher", "reference", f"share of clips that show the {name.removeprefix('fidelity/')} of the prompt")
    return Metric("higher", "reference", "training reward: shown for reference, it cannot sit its own exam")


def bootstrap(differences: Sequence[float] | np.ndarray, draws: int = 2000, seed: int = 0) -> tuple[float, float] | None:
    """95 % percentile bootstrap interval of the mean of paired differences (Efron and Tibshirani, 1993, chapter 13).

    None for fewer than two differences. The same seed gives the same interval.
    """
    values = np.asarray(differences, np.float64)
    if len(values) < 2:
        return None
    low, high = np.percentile(_resampled(values[:, None], draws, seed)[:, 0], (2.5, 97.5))
    return float(low), float(high)


def compare(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    *,
    reference: Mapping[str, Any] | None = None,
    draws: int = 2000,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Summary of two evaluations of the same prompts with the same noise, one entry per metric.

    Each entry is `{before, after, delta, ci95, n, better, role, missing_before, missing_after, verdict}`: means over the `n` clips
    that have the metric in both evaluations, the mean paired difference and its 95 % interval (None below two pairs). `verdict`
    is "better", "worse" or "unclear" by whether the interval excludes zero, and "unclear" below `LEAST_PAIRS` pairs. With
    `reference` (see `evaluation.reference`) there are also `render`, `roundtrip`, and `gap_closed` = (after - before) /
    (roundtrip - before) with its interval `gap_ci95`, None where the base samples are already at the level of the round trips.

    Raises ValueError when the evaluations are not of the same clips.
    """
    first, second = _by_id(before["rows"]), _by_id(after["rows"])
    if set(first) != set(second):
        odd = sorted(set(first) ^ set(second))
        raise ValueError(
            f"before and after are evaluations of different clips: {len(odd)} of them differ, such as {odd[0]!r}; "
            "evaluate both again with one configuration"
        )
    names = list(dict.fromkeys(name for row in (*first.values(), *second.values()) for name in row))
    anchors = {kind: _by_id(reference.get(kind) or ()) for kind in ("render", "roundtrip")} if reference else {}
    return {name: _entry(name, first, second, anchors, draws, seed) for name in names}


#: Fewest pairs for a verdict: percentile bootstrap intervals of fewer are far too narrow.
LEAST_PAIRS = 10

Rows = Mapping[str, Mapping[str, float | None]]


def _entry(name: str, first: Rows, second: Rows, anchors: Mapping[str, Rows], draws: int, seed: int) -> dict[str, Any]:
    known = metric(name)
    pairs = [(key, first[key].get(name), second[key].get(name)) for key in first]
    kept = [(key, a, b) for key, a, b in pairs if a is not None and b is not None]
    a, b = (np.array([pair[i] for pair in kept], np.float64) for i in (1, 2))
    entry: dict[str, Any] = {"before": None, "after": None, "delta": None, "ci95": None}
    if len(kept):
        entry |= {"before": float(a.mean()), "after": float(b.mean()), "delta": float((b - a).mean())}
        interval = bootstrap(b - a, draws, seed)
        entry["ci95"] = list(interval) if interval else None
    entry |= {"n": len(kept), "better": known.better, "role": known.role}
    entry |= {"missing_before": sum(p[1] is None for p in pairs), "missing_after": sum(p[2] is None for p in pairs)}
    entry["verdict"] = _verdict(entry["ci95"], known.better, len(kept))
    for kind, rows in anchors.items():
        values = [value for row in rows.values() if (value := row.get(name)) is not None]
        entry[kind] = float(np.mean(values)) if values else None
    if anchors:
        triples = [(x, y, z) for key, x, y in kept if (z := anchors["roundtrip"].get(key, {}).get(name)) is not None]
        entry |= _gap(triples, known, draws, seed)
    return entry


def _gap(triples: list[tuple[Any, Any, Any]], known: Metric, draws: int, seed: int) -> dict[str, Any]:
    """Share of the distance between base samples and round trips that training closed, over the clips that have all three."""
    nothing: dict[str, Any] = {"gap_closed": None, "gap_ci95": None}
    if len(triples) < 2 or known.role == "reference":
        return nothing
    table = np.array(triples, np.float64)
    columns = np.stack([table[:, 1] - table[:, 0], table[:, 2] - table[:, 0]], -1)
    gained, gap = columns.mean(0)
    sign = 1 if known.better == "higher" else -1
    means = _resampled(columns, draws, seed)
    if sign * gap <= 0 or np.percentile(sign * means[:, 1], 2.5) <= 0:
        return nothing  # no gap to speak of: a ratio over it would be noise
    means = means[sign * means[:, 1] > 0]  # of a metric of yes and no, a draw can show no gap at all
    low, high = np.percentile(means[:, 0] / means[:, 1], (2.5, 97.5))
    return {"gap_closed": float(gained / gap), "gap_ci95": [float(low), float(high)]}


def _resampled(columns: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """[draws, k] means of `columns` [n, k] over rows drawn with replacement."""
    rows = np.random.default_rng(seed).integers(0, len(columns), (draws, len(columns)))
    return columns[rows].mean(1)


def _verdict(interval: Sequence[float] | None, better: str, pairs: int) -> str:
    if interval is None or pairs < LEAST_PAIRS or interval[0] <= 0 <= interval[1]:
        return "unclear"
    return "better" if (interval[0] > 0) == (better == "higher") else "worse"


def _by_id(rows: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, float | None]]:
    table = {str(row["id"]): row["values"] for row in rows}
    return table


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Per metric `{mean, std, n, missing}` of one evaluation; mean and std are None where no clip has the metric."""
    names = list(dict.fromkeys(name for row in rows for name in row["values"]))
    summary = {}
    for name in names:
        values = np.array([v for row in rows if (v := row["values"].get(name)) is not None], np.float64)
        mean, std = (float(values.mean()), float(values.std())) if len(values) else (None, None)
        summary[name] = {"mean": mean, "std": std, "n": len(values), "missing": len(rows) - len(values)}
    return summary
