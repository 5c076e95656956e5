"""Does it look good, and is it what the prompt says? The critic's opinion of the whole clip."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from world_r1.reward import Reward
from world_r1.types import Clip, Score


class Quality(Reward):
    """Weighted mean of the critic's `quality`, `fidelity`, `objects` and, for prompts with a camera command, `camera`; in [0, 1].

    Option `weights`: of the four parts, default 0.5, 0.4, 0 and 0.1 (the trajectory reward measures the camera better). `objects`, that
    those of the prompt are there, is known where the prompt has attributes that the critic reads; elsewhere the others share its weight.
    Within a group it says far more than `fidelity` of what another model finds (LOG.md): a run that is to keep small objects needs it.
    """

    name, needs = "quality", ("quality_critic",)
    parts = ("quality", "fidelity", "objects", "camera")

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        self.shares = {"quality": 0.5, "fidelity": 0.4, "objects": 0.0, "camera": 0.1} | dict(weights or {})
        unknown = set(self.shares) - set(self.parts)
        if unknown or min(self.shares.values()) < 0 or sum(self.shares.values()) <= 0:
            raise ValueError(f"quality: weights are of {', '.join(self.parts)}, not negative, and not all 0; got {self.shares}")

    def score(self, clip: Clip, evidence: Mapping[str, Any]) -> Score:
        parts = dict(evidence["quality_critic"])
        if clip.trajectory is None:
            parts.pop("camera", None)
        total = sum(self.shares[name] for name in parts)
        if total <= 0:
            return self.missing("no part of the critic has weight for a prompt without a camera command", "failed")
        return self.ok(sum(self.shares[name] * part for name, part in parts.items()) / total, **parts)
