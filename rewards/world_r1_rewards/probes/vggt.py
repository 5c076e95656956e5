"""VGGT (Wang et al., CVPR 2025) through its package `vggt`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from world_r1_rewards.probes._model import ModelProbe, arrays, from_ratio, inverted
from world_r1_rewards.probes._views import Views


class VGGT(ModelProbe):
    """Poses, intrinsics, depth and confidence.

    Weights: `facebook/VGGT-1B` (non-commercial; the default) or `facebook/VGGT-1B-Commercial` (access on request). Options: those of
    `ModelProbe`.
    """

    packages = ("vggt",)
    weights = "facebook/VGGT-1B"
    licence = "VGGT licence (code); weights VGGT-1B non-commercial, VGGT-1B-Commercial on request"
    install = "pip install git+https://github.com/facebookresearch/vggt"

    def load(self) -> Any:
        return self.package("vggt.models.vggt").VGGT.from_pretrained(self.weights_from).to(self.device).eval()

    def predict(self, model: Any, images: np.ndarray, frames: np.ndarray) -> Views:
        pictures = self.fitted(images)
        with self.half():
            found = model(pictures[None])
        return decoded(self.package("vggt.utils.pose_enc"), found, pictures, frames, f"vggt {self.weights_from}")


def decoded(pose_enc: Any, found: Any, pictures: torch.Tensor, frames: np.ndarray, source: str) -> Views:
    """`Views` of what VGGT and its descendants return: pose encodings [1, F, 9], depth [1, F, h, w, 1], confidence [1, F, h, w]."""
    size: tuple[int, int] = tuple(pictures.shape[-2:])  # type: ignore[assignment]
    w2c, K = pose_enc.pose_encoding_to_extri_intri(found["pose_enc"].float(), size)
    w2c, K, depth, confidence = arrays(w2c[0], K[0], found["depth"][0, ..., 0], found["depth_conf"][0])
    known = np.isfinite(depth) & (depth > 0)
    return Views(frames, inverted(w2c), K, size, np.where(known, depth, 0), np.where(known, from_ratio(confidence), 0), source)
