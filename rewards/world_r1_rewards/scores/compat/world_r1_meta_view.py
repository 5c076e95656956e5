"""S_meta as the public World-R1 release computes it (not as its paper defines it): for comparison only.

Its defects are part of it: the view is that of a camera of the clip itself, not a new one, drawn with the wrong field of view; the rubric
prefers orbits whatever was asked for. Train with `meta_view`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from world_r1.reward import Reward
from world_r1.types import Clip, Score
from world_r1_rewards.judges.asking import Opinion


class WorldR1MetaView(Reward):
    """Expected digit / 9 of a judge on the release's view; in [0, 1].

    The release's softmax over the ten digits' logits is the same number. It takes 0 for a failure; here that is a missing value.
    """

    name, needs = "compat.world_r1_meta_view", ("compat_judgement",)
    parts = ("level", "mass", "entropy", "frames", "height", "width", "input_tokens", "cost", "cached", "votes", "slices")

    def score(self, clip: Clip, evidence: Mapping[str, Any]) -> Score:
        opinion: Opinion = evidence["compat_judgement"]
        return replace(self.ok(opinion.answer.level, **opinion.answer.parts()), versions=opinion.versions)
