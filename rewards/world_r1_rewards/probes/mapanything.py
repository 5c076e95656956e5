"""MapAnything (Keetha et al., 2025) through its package `mapanything`, which can also host other models."""

from __future__ import annotations

from typing import Any

import numpy as np

from world_r1_rewards.probes._model import ModelProbe, arrays, from_ratio
from world_r1_rewards.probes._views import Views
from world_r1_rewards.probes.pi3 import intrinsics_of

#: Models of its factory that give cameras and depth for a set of frames.
HOSTED = ("vggt", "pi3", "pi3x", "da3", "dust3r", "mast3r", "must3r", "moge", "anycalib", "pow3r")


class MapAnything(ModelProbe):
    """Metric poses, intrinsics, depth and confidence.

    Weights: `facebook/map-anything-apache` (Apache-2.0, the default) or `facebook/map-anything` (CC BY-NC 4.0). Option `hosts`: the name of
    another model in the package's factory (vggt, pi3x, mast3r, ...; then `weights` is not used and that model's licence holds). Other
    options: those of `ModelProbe`; the picture size is the package's own choice by aspect (518 on the longer side).
    """

    packages = ("mapanything",)
    weights = "facebook/map-anything-apache"
    licence = "Apache-2.0 (weights facebook/map-anything: CC BY-NC 4.0)"
    install = (
        "in an environment of its own (it pins opencv and others): pip install git+https://github.com/facebookresearch/map-anything"
    )

    def __init__(self, weights: str | None = None, *, hosts: str | None = None, **options: Any) -> None:
        super().__init__(weights, **options)
        if hosts is not None and hosts not in HOSTED:
            raise ValueError(f"mapanything: hosts must be one of {', '.join(HOSTED)}, got {hosts!r}")
        self.hosts = hosts

    def load(self) -> Any:
        models = self.package("mapanything.models")
        if self.hosts is None:
            return models.MapAnything.from_pretrained(self.weights_from).to(self.device).eval()
        return models.init_model_from_config(self.hosts, device=str(self.device)).eval()

    def predict(self, model: Any, images: np.ndarray, frames: np.ndarray) -> Views:
        views = self.package("mapanything.utils.image").preprocess_inputs([{"img": image} for image in images])
        if self.hosts is None:
            found = model.infer(views, memory_efficient_inference=False, use_amp=self.device.type == "cuda", mask_edges=False)
        else:
            found = model(views)
        columns = [self._view(one) for one in found]
        c2w, K, depth, confidence = (np.stack(x) for x in zip(*columns, strict=True))
        return Views(
            frames, c2w, K, depth.shape[1:], depth, confidence, f"mapanything {self.hosts or self.weights_from}", self.hosts is None
        )

    def _view(self, one: Any) -> tuple[np.ndarray, ...]:
        """c2w, K, depth and confidence of one frame; hosted models give points in camera axes and a quaternion instead."""
        (local,) = arrays(one["pts3d_cam"][0])
        depth = local[..., 2]
        known = np.isfinite(local).all(-1) & (depth > 0)
        if "camera_poses" in one:
            c2w, K = arrays(one["camera_poses"][0], one["intrinsics"][0])
        else:
            c2w, K = _pose(*arrays(one["cam_quats"][0], one["cam_trans"][0])), intrinsics_of(local[None], known[None])[0]
        confidence = from_ratio(arrays(one["conf"][0])[0]) if "conf" in one else np.ones_like(depth)
        if "mask" in one:
            known &= one["mask"][0, ..., 0].cpu().numpy().astype(bool)
        return c2w, K, np.where(known, depth, 0), np.where(known, confidence, 0)


def _pose(quaternion: np.ndarray, position: np.ndarray) -> np.ndarray:
    """[4, 4] float32 of a quaternion x, y, z, w and a position."""
    x, y, z, w = quaternion / np.linalg.norm(quaternion)
    pose = np.eye(4, dtype=np.float32)
    pose[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    pose[:3, 3] = position
    return pose
