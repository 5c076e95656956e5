"""S_recon as the public World-R1 release computes it (not as its paper defines it): for comparison only.

Its defects are part of it: frame j is compared with the rendering at time j / 2, both squashed to a square, over the first half of the
clip's time. Slow cameras score best. Train with `consistency` or `rerender`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
import torch

from world_r1.reward import Reward
from world_r1.types import Clip, Score
from world_r1_rewards.likeness import Lpips


class WorldR1Reconstruction(Reward):
    """1 - mean LPIPS (AlexNet), clipped to [0, 1], of frame j against the rendering at the middle of its time.

    The renderings are those of `rerender`; the release draws gaussians of DA3-GIANT along a smoothed path with an excursion in the middle
    and the wrong field of view, of which only the timing is repeated here. Options: `lpips`, the trunk's weights (see `likeness.Lpips`;
    required), `side` of the square pictures.
    """

    name, needs = "compat.world_r1_reconstruction", ("rerender",)
    parts = ("lpips", "frames")

    def __init__(self, lpips: str, side: int = 512) -> None:
        self.lpips, self.side = Lpips(lpips, torch.device("cpu")), side

    @torch.inference_mode()
    def score(self, clip: Clip, evidence: Mapping[str, Any]) -> Score:
        images, frames = evidence["rerender"]["images"], evidence["rerender"]["frames"]
        drawn = [images[int(np.abs(frames - t / 2).argmin())] for t in frames]
        squares = [np.stack([cv2.resize(x, (self.side, self.side)) for x in many]) for many in (clip.video[frames], drawn)]
        real, rendered = (torch.from_numpy(x).float() / 255 for x in squares)
        distance = float(self.lpips(real, rendered).mean())
        return self.ok(float(np.clip(1 - distance, 0, 1)), lpips=distance, frames=float(len(frames)))
