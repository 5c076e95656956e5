"""How well a general CLIP finds the prompt in the clip."""

from __future__ import annotations

from world_r1_rewards.quality.score import FrameReward


class CLIP(FrameReward):
    """Cosine of frames and prompt by a general CLIP, in [-1, 1], usually 0.15 to 0.35.

    Options `pool`, `scale` and parts as in `quality.score.FrameReward`.
    """

    name, needs = "clip", ("clip",)
