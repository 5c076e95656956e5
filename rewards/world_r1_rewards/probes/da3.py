"""Depth Anything 3 (Lin et al., 2025) through its package `depth-anything-3`."""

from __future__ import annotations

from typing import Any

import numpy as np

from world_r1_rewards.probes._model import ModelProbe, from_ratio, inverted
from world_r1_rewards.probes._views import Views
from world_r1_rewards.render import Gaussians

#: Families whose weights come with gaussians.
WITH_GAUSSIANS = ("giant", "nested")


class DA3(ModelProbe):
    """Poses, intrinsics, depth and confidence; gaussians from the giant and nested models.

    Weights: `depth-anything/DA3-BASE` (default) and `DA3-SMALL` are Apache-2.0; LARGE, GIANT and NESTED (use their -1.1) are CC BY-NC 4.0.
    Options: `gaussians` (needs such weights), `ray_pose` (poses from the ray head instead of the camera decoder: slower, often better),
    and those of `ModelProbe`. The package wants numpy < 2: give it its own environment.
    """

    packages = ("depth_anything_3",)
    weights = "depth-anything/DA3-BASE"
    licence = "code Apache-2.0; weights BASE, SMALL Apache-2.0, LARGE, GIANT, NESTED CC BY-NC 4.0"
    install = "in an environment of its own (it wants numpy < 2): pip install depth-anything-3"
    longest = 504

    def __init__(self, weights: str | None = None, *, gaussians: bool = False, ray_pose: bool = False, **options: Any) -> None:
        super().__init__(weights, **options)
        if gaussians and not any(family in self.weights_from.lower() for family in WITH_GAUSSIANS):
            raise ValueError(f"da3: gaussians come with the giant and nested weights only, not with {self.weights_from}")
        self.gaussians, self.ray_pose = gaussians, ray_pose

    def load(self) -> Any:
        return self.package("depth_anything_3.api").DepthAnything3.from_pretrained(self.weights_from).to(self.device).eval()

    def predict(self, model: Any, images: np.ndarray, frames: np.ndarray) -> Views:
        found = model.inference(list(images), process_res=self.size, use_ray_pose=self.ray_pose, infer_gs=self.gaussians)
        depth = np.asarray(found.depth, np.float32)
        known = np.isfinite(depth) & (depth > 0)
        confidence = from_ratio(np.asarray(found.conf)) if found.conf is not None else np.ones_like(depth)
        return Views(
            frames=frames,
            c2w=inverted(np.asarray(found.extrinsics, np.float64)),
            K=np.asarray(found.intrinsics, np.float32),
            size=depth.shape[1:],
            depth=np.where(known, depth, 0),
            confidence=np.where(known, confidence, 0),
            source=f"da3 {self.weights_from}",
            metric=bool(found.is_metric),
            gaussians=_gaussians(found.gaussians) if self.gaussians else None,
        )


def _gaussians(found: Any) -> Gaussians:
    one = [x[0].float() for x in (found.means, found.scales, found.rotations, found.opacities, found.harmonics)]
    return Gaussians(one[0], one[1], one[2], one[3].reshape(-1), one[4])
