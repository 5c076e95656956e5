"""The discrimination benchmark: which damage does a score see, does it prefer small camera moves, how exact is the geometry?

`measure` runs one world through the probes and rewards; `summarise` turns many worlds into the figures of docs/results/discrimination.json.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from world_r1.reward import Rubric
from world_r1.types import Clip
from world_r1_rewards.discrimination import AMPLITUDES, DAMAGES, HARMLESS, MOVES, World, auc, damaged
from world_r1_rewards.probes._geometry import Geometry

#: What each damage must reach, by the project's own bar.
BARS = dict.fromkeys(
    ("static", "shuffle", "swap", "jitter", "swim", "flicker", "cut", "noise", "blank", "wobble"), 0.97
) | dict.fromkeys(("morph", "dissolve", "lighting", "slow_motion", "flat_zoom"), 0.9)
#: How far the mean score of clean clips may lie from its mean over the amplitudes.
BAND = 0.05


#: Clips that are looked at together.
TOGETHER = 8


def measure(world: World, rubric: Rubric) -> dict[str, Any]:
    """Scores, parts, accuracy and CPU seconds of one world's clean and damaged clips; plain values, fit for JSON.

    CPU seconds are process time a clip, rendering left out. "accuracy" is empty where no probe gives "geometry".
    """
    clips = {f"amplitude {a:g}": world.clip(world.render(a), a, f"amplitude {a:g}") for a in AMPLITUDES}
    reference = clips["amplitude 1"].video
    clips |= {name: world.clip(damaged(world, reference, name), 1.0, name) for name in DAMAGES}
    evidence, failures, seconds = _observe(rubric, list(clips.values()))
    rows = {
        name: _row(rubric, clip, seen, unseen) for (name, clip), seen, unseen in zip(clips.items(), evidence, failures, strict=True)
    }
    errors = _errors(world, AMPLITUDES, evidence[: len(AMPLITUDES)])
    return {"world": world.name, "command": world.command.text, "seconds": seconds, "clips": rows, "accuracy": errors}


def measure_accuracy(world: World, rubric: Rubric, amplitudes: Sequence[float] = (0.4, 1.0, 2.0)) -> dict[str, Any]:
    """The geometry's errors and CPU seconds only, on clean clips of some amplitudes; what `accuracy` summarises."""
    clips = [world.clip(world.render(a), a, f"amplitude {a:g}") for a in amplitudes]
    evidence, _, seconds = _observe(rubric, clips)
    return {
        "world": world.name,
        "command": world.command.text,
        "seconds": seconds,
        "accuracy": _errors(world, amplitudes, evidence),
    }


def _observe(rubric: Rubric, clips: list[Clip]) -> tuple[list[dict[str, Any]], list[dict[str, Exception]], float]:
    """What the probes saw and could not see, by clip; and CPU seconds a clip."""
    evidence: list[dict[str, Any]] = []
    failures: list[dict[str, Exception]] = []
    start = time.process_time()
    for i in range(0, len(clips), TOGETHER):
        seen, unseen, _ = rubric.observe(clips[i : i + TOGETHER])
        evidence += seen
        failures += unseen
    return evidence, failures, (time.process_time() - start) / len(clips)


def _errors(world: World, amplitudes: Sequence[float], evidence: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    return {
        f"amplitude {a:g}": pose_errors(found["geometry"], world.poses(a).numpy())
        for a, found in zip(amplitudes, evidence, strict=True)
        if "geometry" in found
    }


def _row(rubric: Rubric, clip: Clip, evidence: Mapping[str, Any], failures: Mapping[str, Exception]) -> dict[str, Any]:
    verdict, _ = rubric.verdict(clip, evidence, failures, {})
    parts = {f"{s.reward}.{name}": round(value, 4) for s in verdict.scores for name, value in s.parts.items()}
    reasons = {s.reward: s.reason for s in verdict.scores if s.value is None}
    scores = {s.reward: None if s.value is None else round(s.value, 4) for s in verdict.scores}
    return {"scores": scores, "parts": parts, **({"missing": reasons} if reasons else {})}


def pose_errors(geometry: Geometry, truth: np.ndarray) -> dict[str, float]:
    """Errors of the estimated path against the true one [T, 4, 4].

    ate: rms position error over the path's length, after the best scale and with frame 0 in common (0 for commands that only turn);
    rotation: median angle in degrees after the one rotation that fits all frames best; rotation_from_first: with frame 0 in common, so
    that its error is everyone's.
    """
    estimated = geometry.c2w.astype(np.float64)
    a, b = estimated[:, :3, 3], truth[:, :3, 3].astype(np.float64)
    length = float(np.linalg.norm(np.diff(b, axis=0), axis=1).sum())
    scale = (a * b).sum() / max((a * a).sum(), 1e-12)
    ate = float(np.sqrt(((scale * a - b) ** 2).sum(1).mean()) / length) if length > 1e-3 else 0.0
    A, B = estimated[:, :3, :3], truth[:, :3, :3].astype(np.float64)
    u, _, vt = np.linalg.svd(np.einsum("tij,tkj->ik", B, A))
    fitted = np.einsum("tji,jk,tkl->til", B, u @ vt, A)
    return {
        "ate": ate,
        "rotation": float(np.median(_degrees(fitted))),
        "rotation_from_first": float(np.median(_degrees(A.transpose(0, 2, 1) @ B)[1:])),
        "length": length,
    }


def _degrees(R: np.ndarray) -> np.ndarray:
    """[T] rotation angles, accurate near zero."""
    axis = np.stack([R[:, 2, 1] - R[:, 1, 2], R[:, 0, 2] - R[:, 2, 0], R[:, 1, 0] - R[:, 0, 1]], -1)
    return np.degrees(np.arctan2(np.linalg.norm(axis, axis=-1), np.trace(R, axis1=1, axis2=2) - 1))


def summarise(rows: Sequence[Mapping[str, Any]], reward: str) -> dict[str, Any]:
    """AUC, paired wins and mean by damage, mean by amplitude, and whether the bars hold, for one reward.

    A clip that could not be measured ranks below every number in the AUC and counts as lost in the pairs: in training it is left out
    of its group and earns nothing. It is no part of the means; `missing` counts it. Scenes to whose command the reward does not apply
    are left out; `scenes` counts the others. ValueError if there are none.
    """
    rows = [row for row in rows if reward in row["clips"]["amplitude 1"]["scores"]]
    if not rows:
        raise ValueError(
            f"{reward} applies to none of these scenes; measure more of them (every command comes once in {len(MOVES)})"
        )
    get = lambda name: [row["clips"][name]["scores"].get(reward) for row in rows]  # noqa: E731
    rank = lambda values: np.array([-np.inf if v is None else v for v in values])  # noqa: E731
    mean = lambda values: _mean([v for v in values if v is not None])  # noqa: E731
    base = get("amplitude 1")
    damages = {}
    for name in DAMAGES:
        worse = get(name)
        wins = (rank(base) > rank(worse)) + 0.5 * (rank(base) == rank(worse))
        damages[name] = {
            "auc": round(auc(rank(base), rank(worse)), 4), "paired_wins": round(float(wins.mean()), 4),
            "mean": mean(worse), "missing": sum(v is None for v in worse),
        }  # fmt: skip
        if name in BARS:
            damages[name] |= {"bar": BARS[name], "holds": bool(auc(rank(base), rank(worse)) >= BARS[name])}
        if name in HARMLESS:
            damages[name]["harmless"] = True
    curve = {f"{a:g}": mean(get(f"amplitude {a:g}")) for a in AMPLITUDES}
    values = [v for v in curve.values() if v is not None]
    band = (max(values) - min(values)) / 2 if values else None
    return {
        "scenes": len(rows),
        "clean": mean(base),
        "damages": damages,
        "amplitudes": curve,
        "band": band and round(band, 4),
        "band_holds": band is not None and band <= BAND,
    }


def accuracy(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Medians and 90th percentiles of the geometry's errors over all clean clips, and CPU seconds a clip."""
    found = [errors for row in rows for errors in row["accuracy"].values()]
    ate = np.array([e["ate"] for e in found if e["length"] > 1e-3])
    turn, first = (np.array([e[name] for e in found]) for name in ("rotation", "rotation_from_first"))
    return {
        "clips": len(found), "ate_median": round(float(np.median(ate)), 5), "ate_90": round(float(np.quantile(ate, 0.9)), 5),
        "rotation_median_deg": round(float(np.median(turn)), 4), "rotation_90_deg": round(float(np.quantile(turn, 0.9)), 4),
        "rotation_from_first_median_deg": round(float(np.median(first)), 4),
        "cpu_seconds": round(float(np.median([row["seconds"] for row in rows])), 3),
    }  # fmt: skip


def _mean(values: Sequence[float]) -> float | None:
    return round(float(np.mean(values)), 4) if values else None
