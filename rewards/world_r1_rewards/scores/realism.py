"""Do things keep their shape and texture as they move, as in a render, or do they wobble and melt?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from world_r1.reward import Reward
from world_r1.types import Clip, Score


class Realism(Reward):
    """The realism judge's score in [0, 1]: 0.35 for the mean sample of the base model, 0.65 for the mean render seen through the VAE."""

    name, needs = "realism", ("realism",)
    parts = ("logit",)

    def score(self, clip: Clip, evidence: Mapping[str, Any]) -> Score:
        seen = evidence["realism"]
        return self.ok(seen["score"], logit=seen["logit"])
