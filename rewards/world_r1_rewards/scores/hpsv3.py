"""People's preference, by HPSv3."""

from __future__ import annotations

from world_r1_rewards.quality.score import FrameReward


class HPSv3(FrameReward):
    """HPSv3 / 10: about -0.2 to 1.5, not bounded.

    Options `pool`, `scale` and parts as in `quality.score.FrameReward`.
    """

    name, needs = "hpsv3", ("hpsv3",)
    unit = 0.1
    parts = (*FrameReward.parts, "spread")
