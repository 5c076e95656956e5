"""People's preference, by HPSv2.1."""

from __future__ import annotations

from world_r1_rewards.quality.score import FrameReward


class HPSv2(FrameReward):
    """HPSv2.1, a cosine in [-1, 1], usually 0.2 to 0.35.

    Options `pool`, `scale` and parts as in `quality.score.FrameReward`.
    """

    name, needs = "hpsv2", ("hpsv2",)
