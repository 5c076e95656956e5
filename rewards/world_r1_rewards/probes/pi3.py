"""Pi3 and Pi3X (Wang et al., 2025) through their package `pi3`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from world_r1_rewards.probes._model import ModelProbe, arrays
from world_r1_rewards.probes._views import Views


class Pi3(ModelProbe):
    """Poses, local points and confidence; intrinsics are recovered from the points' rays.

    Weights: `yyfz233/Pi3X` (default) or `yyfz233/Pi3`, both CC BY-NC 4.0; a name with "Pi3X" builds that class. Options: those of
    `ModelProbe`.
    """

    packages = ("pi3",)
    weights = "yyfz233/Pi3X"
    licence = "code BSD-3-Clause; weights CC BY-NC 4.0"
    install = "pip install git+https://github.com/yyfz/Pi3"

    def load(self) -> Any:
        if "pi3x" in self.weights_from.lower():
            cls = self.package("pi3.models.pi3x").Pi3X
        else:
            cls = self.package("pi3.models.pi3").Pi3
        return cls.from_pretrained(self.weights_from).to(self.device).eval()

    def predict(self, model: Any, images: np.ndarray, frames: np.ndarray) -> Views:
        pictures = self.fitted(images)
        with self.half():
            found = model(pictures[None])
        c2w, local, logits = arrays(found["camera_poses"][0], found["local_points"][0], found["conf"][0, ..., 0])
        size: tuple[int, int] = tuple(pictures.shape[-2:])  # type: ignore[assignment]
        depth = local[..., 2]
        known = np.isfinite(local).all(-1) & (depth > 0)
        confidence = torch.sigmoid(torch.from_numpy(logits)).numpy()
        return Views(
            frames, c2w, intrinsics_of(local, known * confidence), size, np.where(known, depth, 0),
            np.where(known, confidence, 0), f"pi3 {self.weights_from}",
        )  # fmt: skip


def intrinsics_of(local: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """[F, 3, 3] float32 pinhole matrices of point maps in camera axes [F, h, w, 3], with the principal point in the middle.

    Least squares of u - cx = f x / z over the points, weighted by `weight` [F, h, w]; ArithmeticError when there is none.
    """
    count, height, width = weight.shape
    v, u = np.meshgrid(np.arange(height) + 0.5 - height / 2, np.arange(width) + 0.5 - width / 2, indexing="ij")
    weight = np.where(np.isfinite(weight), weight, 0)
    z = np.where(weight > 0, local[..., 2], 1.0)
    K = np.tile(np.diag([0.0, 0.0, 1.0]), (count, 1, 1))
    K[:, 0, 2], K[:, 1, 2] = width / 2, height / 2
    for axis, pixel in ((0, u), (1, v)):
        slope = np.where(weight > 0, local[..., axis] / z, 0.0)
        square = (weight * slope * slope).sum((1, 2))
        if (square <= 0).any():
            raise ArithmeticError("no frame's points tell its focal length")
        K[:, axis, axis] = (weight * slope * pixel).sum((1, 2)) / square
    return K.astype(np.float32)
