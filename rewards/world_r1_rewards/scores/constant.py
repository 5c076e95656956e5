"""A reward that learns nothing: for tests of the plumbing and of reward-free baselines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from world_r1.reward import Reward
from world_r1.types import Clip, Score


class Constant(Reward):
    """The same `value` for every clip. Groups without spread have no advantage, so nothing is trained."""

    name, needs = "constant", ()

    def __init__(self, value: float = 0.0) -> None:
        self.value = float(value)

    def score(self, clip: Clip, evidence: Mapping[str, Any]) -> Score:
        return self.ok(self.value)
