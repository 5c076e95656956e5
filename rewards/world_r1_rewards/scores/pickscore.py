"""People's preference, by PickScore."""

from __future__ import annotations

from world_r1_rewards.quality.score import FrameReward


class PickScore(FrameReward):
    """PickScore as a cosine, in [-1, 1], usually 0.17 to 0.24; part `scale` times it is the published score.

    Options `pool`, `scale` and parts as in `quality.score.FrameReward`.
    """

    name, needs = "pickscore", ("pickscore",)
