"""From values per frame to a score: what the rewards of all quality models share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from world_r1.reward import Reward
from world_r1.types import Clip, Score


class FrameReward(Reward):
    """Mean (or least) value of the scored frames, times `scale`.

    Options: `pool` "mean" or "min"; `scale`, to bring models with other units onto comparable ranges. Parts: the unscaled mean and
    least value, the number of frames, and what the probe adds.
    """

    #: Default of `scale`.
    unit: ClassVar[float] = 1.0
    parts: ClassVar[tuple[str, ...]] = ("mean", "min", "frames", "cut_tokens", "scale")

    def __init__(self, pool: str = "mean", scale: float | None = None) -> None:
        if pool not in ("mean", "min"):
            raise ValueError(f"{self.name}: pool is mean or min, got {pool!r}")
        self.pool, self.factor = pool, self.unit if scale is None else scale

    def score(self, clip: Clip, evidence: Mapping[str, Any]) -> Score:
        found = evidence[self.needs[0]]
        values = found["values"]
        parts = {"mean": float(values.mean()), "min": float(values.min()), "frames": float(len(values)), **found["parts"]}
        return replace(self.ok(self.factor * parts[self.pool], **parts), versions=found["versions"])
