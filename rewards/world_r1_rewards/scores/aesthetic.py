"""How much people like the frames, whatever they show."""

from __future__ import annotations

from world_r1_rewards.quality.score import FrameReward


class Aesthetic(FrameReward):
    """LAION's aesthetic mark / 10: about 0.1 to 1, not bounded.

    Options `pool`, `scale` and parts as in `quality.score.FrameReward`.
    """

    name, needs = "aesthetic", ("aesthetic",)
    unit = 0.1
