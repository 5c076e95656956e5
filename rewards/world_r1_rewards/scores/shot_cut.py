"""A guard against cuts: a prompt for one camera move is not answered by two shots."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from world_r1.reward import Reward
from world_r1.types import Clip, Score
from world_r1_rewards.scores._command import ramp

#: Change from frame to frame that is no cut, and that surely is one.
NO_CUT, CUT = 0.3, 0.5


class ShotCut(Reward):
    """-1 for a cut, 0 without one, graded in between; in [-1, 0].

    The largest change from one frame to the next, less the clip's usual one, between `NO_CUT` and `CUT`. Parts: `largest`, `usual`, and
    `at`, the frame before which it happens.
    """

    name, needs = "shot_cut", ("shots",)
    parts = ("largest", "usual", "at")

    def score(self, clip: Clip, evidence: Mapping[str, Any]) -> Score:
        change, usual = evidence["shots"]["change"], evidence["shots"]["usual"]
        largest = float(change.max())
        return self.ok(0.0 - ramp(largest - usual, NO_CUT, CUT), largest=largest, usual=usual, at=float(np.argmax(change) + 1))
