"""S_recon as the public World-R1 release computes it (not as its paper defines it): for comparison only.

Its defects are part of it: frame j is compared with the rendering at time j / 2, over the first half of the clip's time, the frame
squashed to a square, the rendering drawn with another field of view and empty where that shows nothing. Slow cameras score best.
Train with `consistency` or `rerender`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from world_r1.reward import Reward
from world_r1.types import Clip, Score
from world_r1_rewards.likeness import Lpips

#: Pictures that are compared together.
CHUNK = 16


class WorldR1Reconstruction(Reward):
    """1 - mean LPIPS (AlexNet), clipped to [0, 1], of the frames against the renderings of `compat.world_r1_render`.

    Options: `lpips`, the trunk's weights (see `likeness.Lpips`; "auto" is torch's own cache of models; nothing is downloaded); `device`.
    """

    name, needs = "compat.world_r1_reconstruction", ("compat_render",)
    parts = ("lpips", "frames")
    packages, extra = ("lpips",), "lpips"
    weights = "torchvision's AlexNet, a file alexnet-owt-*.pth"
    licence = "Apache-2.0; LPIPS BSD-2-Clause"

    def __init__(self, lpips: str, device: str = "cpu") -> None:
        self.device = torch.device(device)
        self.lpips = Lpips(str(Path(torch.hub.get_dir()) / "checkpoints") if lpips == "auto" else lpips, self.device)

    @torch.inference_mode()
    def score(self, clip: Clip, evidence: Mapping[str, Any]) -> Score:
        drawn = evidence["compat_render"]["images"]
        squares = np.stack([cv2.resize(frame, drawn.shape[2:0:-1], interpolation=cv2.INTER_LINEAR) for frame in clip.video])
        distances = [self._distances(squares[i : i + CHUNK], drawn[i : i + CHUNK]) for i in range(0, len(drawn), CHUNK)]
        distance = float(torch.cat(distances).mean())
        return self.ok(float(np.clip(1 - distance, 0, 1)), lpips=distance, frames=float(len(drawn)))

    def _distances(self, *pictures: np.ndarray) -> torch.Tensor:
        return self.lpips(*(torch.from_numpy(x).to(self.device).float() / 255 for x in pictures))
