"""A fence around the base model's look: contrast, sharpness, saturation and luminance may not run away."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from world_r1.reward import Reward
from world_r1.types import Clip, Score
from world_r1_rewards.probes.statistics import statistics

#: Statistics that live on a ratio scale: distances from the range are measured in octaves.
RATIO = ("contrast", "sharpness", "saturation")


class Guard(Reward):
    """Penalty in [-1, 0]: 0 while every statistic stays in the range of the base model's samples, falling smoothly outside.

    Options: `ranges` {statistic: [low, high]} for contrast, sharpness, saturation, luminance; or `path`, a JSON file with such a
    mapping ("blockworld" is the shipped one). `tolerance` is how far outside (octaves; a quarter of full scale for luminance) costs
    1 - 1/e. The penalty is that of the worst statistic; parts are the distances.
    """

    name, needs = "guard", ("statistics",)
    parts = ("contrast", "sharpness", "saturation", "luminance")

    def __init__(self, ranges: Mapping[str, Any] | None = None, path: str | None = "blockworld", tolerance: float = 0.5) -> None:
        found = dict(ranges) if ranges is not None else _read(path)
        self.ranges = {name: (float(low), float(high)) for name, (low, high) in found.items()}
        for name, (low, high) in self.ranges.items():
            if name not in (*RATIO, "luminance") or not low < high or (name in RATIO and low <= 0):
                raise ValueError(
                    f"guard: ranges are [low, high] of {', '.join(RATIO)} (positive) or luminance, got {name}: [{low}, {high}]"
                )
        if tolerance <= 0:
            raise ValueError(f"guard: tolerance must be positive, got {tolerance}")
        self.tolerance = tolerance

    def score(self, clip: Clip, evidence: Mapping[str, Any]) -> Score:
        statistics = evidence["statistics"]
        outside = {name: self._outside(name, statistics[name]) for name in self.ranges}
        worst = max(outside.values(), default=0.0)
        return self.ok(math.exp(-worst / self.tolerance) - 1, **outside)

    def _outside(self, name: str, value: float) -> float:
        low, high = self.ranges[name]
        if name in RATIO:
            value, low, high = (math.log2(max(v, 1e-6)) for v in (value, low, high))
        else:
            value, low, high = 4 * value, 4 * low, 4 * high
        return max(0.0, low - value, value - high)


def ranges_of(videos: Iterable[np.ndarray], margin: float = 0.3) -> dict[str, list[float]]:
    """Ranges for `Guard` from samples of the base model, each [T, H, W, 3] uint8: the extremes over the videos, widened by
    `margin` (octaves; a quarter of full scale for luminance). `{"ranges": ranges_of(...)}` is what a statistics file holds.

    A fence that cuts through the base model's own samples pushes at every step: with the 2nd to 98th percentile, the penalty of scenes
    that are bright or checkered by their prompt was the most consistent gradient of all rewards, towards dull pictures.

    Raises ValueError for fewer than 8 videos.
    """
    rows = [statistics(video) for video in videos]
    if len(rows) < 8:
        raise ValueError(f"guard: ranges need at least 8 videos of the base model, got {len(rows)}")
    found = {}
    for name in (*RATIO, "luminance"):
        low, high = (pick(row[name] for row in rows) for pick in (min, max))
        if name in RATIO:
            found[name] = [float(max(low, 1e-4) * 2**-margin), float(max(high, 1e-4) * 2**margin)]
        else:
            found[name] = [float(low - margin / 4), float(high + margin / 4)]
    return found


def _read(path: str | None) -> dict[str, Any]:
    if path is None:
        raise ValueError("guard: give `ranges`, or `path` of a JSON file with them")
    if path == "blockworld":
        from world_r1.blockworld import weights_path

        file = weights_path() / "base_statistics.json"
    else:
        file = Path(path)
    if not file.is_file():
        raise ValueError(f"guard: no statistics of the base model at {file}; give `ranges` in the options, or measure them")
    return dict(json.loads(file.read_text())["ranges"])
