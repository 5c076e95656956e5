"""VGGT-Omega (2026) through its package `vggt_omega`: code, weights and results under a non-commercial research licence."""

from __future__ import annotations

from typing import Any

import numpy as np

from world_r1_rewards.probes._model import ModelProbe, load_state
from world_r1_rewards.probes._views import Views
from world_r1_rewards.probes.vggt import decoded


class VGGTOmega(ModelProbe):
    """Poses, intrinsics, depth and confidence; made for dynamic scenes too.

    `weights` is the file that access was granted to (there is no default). The FAIR Noncommercial Research Licence covers code, weights
    *and results*, so a policy trained with it is covered too: without `accept_noncommercial: true` this probe refuses. Other options:
    those of `ModelProbe`.
    """

    packages = ("vggt_omega",)
    weights = ""
    licence = "FAIR Noncommercial Research Licence v1: code, weights and results"
    install = "pip install git+https://github.com/facebookresearch/vggt-omega"
    patch, longest = 16, 512

    def __init__(self, weights: str | None = None, *, accept_noncommercial: bool = False, **options: Any) -> None:
        if accept_noncommercial is not True:
            raise ValueError(
                "vggt_omega: its licence allows non-commercial research only and covers what is made with it, a trained policy "
                "included; set accept_noncommercial: true if that suits you"
            )
        if not weights:
            raise ValueError("vggt_omega: give `weights`, the checkpoint file (model.pt) that access was granted to")
        super().__init__(weights, **options)

    def load(self) -> Any:
        model = self.package("vggt_omega.models").VGGTOmega()
        load_state(model, self.weights_from)
        return model.to(self.device).eval()

    def predict(self, model: Any, images: np.ndarray, frames: np.ndarray) -> Views:
        pictures = self.fitted(images)
        found = model(pictures)  # mixed precision is its own affair
        return decoded(self.package("vggt_omega.utils.pose_enc"), found, pictures, frames, f"vggt_omega {self.weights_from}")
