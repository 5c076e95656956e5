"""People's preference about a whole clip, by VideoAlign."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from world_r1.reward import Reward
from world_r1.types import Clip, Score
from world_r1_rewards.probes.videoalign import DIMENSIONS


class VideoAlign(Reward):
    """Weighted mean of the standard scores VQ, MQ and TA, times `scale` (a third): mostly in [-1, 1], not bounded.

    Option `weights` of the three, default 1 each.
    """

    name, needs = "videoalign", ("videoalign",)
    parts = (*DIMENSIONS, "frames")

    def __init__(self, weights: Mapping[str, float] | None = None, scale: float = 1 / 3) -> None:
        self.shares = dict.fromkeys(DIMENSIONS, 1.0) | dict(weights or {})
        if set(self.shares) != set(DIMENSIONS) or min(self.shares.values()) < 0 or sum(self.shares.values()) <= 0:
            raise ValueError(f"videoalign: weights are of {', '.join(DIMENSIONS)}, not negative and not all 0; got {self.shares}")
        self.scale = scale

    def score(self, clip: Clip, evidence: Mapping[str, Any]) -> Score:
        found = evidence["videoalign"]
        parts = {name: found[name] for name in DIMENSIONS}
        mean = sum(self.shares[name] * part for name, part in parts.items()) / sum(self.shares.values())
        return replace(self.ok(self.scale * mean, **parts, frames=found["frames"]), versions=found["versions"])
