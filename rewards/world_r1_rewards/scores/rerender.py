"""S_recon by pictures: do the clip's frames look like its own reconstruction, drawn at their time, intrinsics and aspect?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from world_r1.reward import Reward
from world_r1.types import Clip, Score
from world_r1_rewards.scores._command import motion_gate, ramp

#: PSNR that counts as no likeness and as full likeness, dB.
PSNR = (14.0, 34.0)


class RerenderReward(Reward):
    """Likeness of frames and their renderings over what the renderings cover, in [0, 1].

    Mean of `psnr` (from 14 to 34 dB), `ssim` and `gradient`; with LPIPS in the evidence, half of it is 1 - LPIPS, as in World-R1 (but of
    the right frame, camera and aspect). Times `motion` (0 for a frozen clip when the prompt commands motion). Softer than `consistency`:
    points are drawn, so fine texture costs a little even in a perfect clip. Works with every geometry probe and compares them.
    """

    name, needs = "rerender", ("geometry", "rerender")
    parts = ("psnr", "ssim", "gradient", "lpips", "coverage", "motion")
    rigid_wins = 0.15

    def score(self, clip: Clip, evidence: Mapping[str, Any]) -> Score:
        found, motion = evidence["rerender"], motion_gate(clip, evidence["geometry"])
        raw = {name: float(np.nanmean(found[name])) for name in ("psnr", "ssim", "gradient", "lpips") if name in found}
        value = (ramp(raw["psnr"], *PSNR) + max(0.0, raw["ssim"]) + max(0.0, raw["gradient"])) / 3
        if "lpips" in raw:
            value = 0.5 * (value + 1 - min(1.0, raw["lpips"]))
        return self.ok(value * motion, **raw, coverage=float(found["coverage"].mean()), motion=motion)
