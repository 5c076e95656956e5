"""Structure from motion with COLMAP (Schoenberger and Frahm, CVPR 2016) through `pycolmap`: for evaluation of large clips."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from world_r1.reward import Degenerate
from world_r1_rewards.probes._model import ModelProbe
from world_r1_rewards.probes._views import Views

#: Sparse points spread over this many cells along the longer side, so that most cells of a textured picture hold one.
CELLS = 48


class PyColmap(ModelProbe):
    """Poses and sparse points from SIFT, exhaustive matching and incremental mapping, on the CPU, in seconds to minutes.

    In small pictures it registers bent clips in full and rigid ones in part, so a clip must have `shortest` (480) pixels on its shorter
    side, and all frames used must find their place; `Degenerate` otherwise. Pure rotations cannot be solved.
    """

    packages = ("pycolmap",)
    extra = "colmap"
    weights = ""
    licence = "BSD-3-Clause"
    install = "pip install 'world-r1[colmap]'"
    longest = 1024
    known_share = 0.05  # its points are sparse; the clip is held against flow about them only

    def __init__(self, *, frames: int = 17, size: int | None = None, shortest: int = 480) -> None:
        super().__init__(None, frames=frames, size=size, device="cpu")
        self.shortest = shortest

    def load(self) -> Any:
        return self.package("pycolmap")

    def predict(self, model: Any, images: np.ndarray, frames: np.ndarray) -> Views:
        height, width = images.shape[1:3]
        if min(height, width) < self.shortest:
            raise Degenerate(f"structure from motion needs {self.shortest} pixels on the shorter side, got {height}x{width}")
        with tempfile.TemporaryDirectory() as folder:
            best = self._map(model, images, Path(folder))
        found = {} if best is None else {image.name: image for image in best.images.values() if image.has_pose}
        lost = [i for i in range(len(frames)) if _name(i) not in found]
        if lost:
            raise Degenerate(f"{len(lost)} of {len(frames)} frames did not find their place: {lost}")
        assert best is not None
        columns = [self._view(best, found[_name(i)], (height, width)) for i in range(len(frames))]
        c2w, K, depth, confidence = (np.stack(x).astype(np.float32) for x in zip(*columns, strict=True))
        return Views(frames, c2w, K, (height, width), depth, confidence, f"pycolmap {model.__version__}")

    def _map(self, colmap: Any, images: np.ndarray, folder: Path) -> Any:
        """The largest reconstruction, or None."""
        pictures, database = folder / "images", folder / "database.db"
        pictures.mkdir()
        for i, image in enumerate(images):
            cv2.imwrite(str(pictures / _name(i)), image[..., ::-1])
        reader = colmap.ImageReaderOptions(camera_model="SIMPLE_PINHOLE")
        colmap.extract_features(database, pictures, camera_mode=colmap.CameraMode.SINGLE, reader_options=reader)
        colmap.match_exhaustive(database)
        maps = colmap.incremental_mapping(database, pictures, folder / "sparse")
        return max(maps.values(), key=lambda one: one.num_reg_images(), default=None)

    def _view(self, scene: Any, image: Any, size: tuple[int, int]) -> tuple[np.ndarray, ...]:
        pose = image.cam_from_world()
        w2c = np.eye(4)
        w2c[:3] = pose.matrix()
        seen = [p for p in image.points2D if p.has_point3D()]
        world = np.array([scene.points3D[p.point3D_id].xyz for p in seen]).reshape(-1, 3)
        local = world @ w2c[:3, :3].T + w2c[:3, 3]
        at = np.array([p.xy for p in seen]).reshape(-1, 2)
        K = scene.cameras[image.camera_id].calibration_matrix()
        return np.linalg.inv(w2c), K, *_spread(at, local[:, 2], size)


def _name(index: int) -> str:
    return f"{index:04d}.png"


def _spread(at: np.ndarray, depth: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Dense [h, w] depth and confidence of sparse points: the nearest point's depth, trusted within a cell of it."""
    height, width = size
    holes = np.ones(size, np.uint8)
    sparse = np.zeros(size, np.float32)
    inside = (depth > 0) & (at >= 0).all(1) & (at < (width, height)).all(1)
    x, y = at[inside].astype(int).T
    holes[y, x], sparse[y, x] = 0, depth[inside]
    if not inside.any():
        return sparse, np.zeros(size, np.float32)
    distance, labels = cv2.distanceTransformWithLabels(holes, cv2.DIST_L2, 3, labelType=cv2.DIST_LABEL_PIXEL)
    lookup = np.zeros(labels.max() + 1, np.float32)
    lookup[labels[holes == 0]] = sparse[holes == 0]
    cell = max(size) / CELLS
    return np.where(distance < 2 * cell, lookup[labels], 0), np.exp(-((distance / cell) ** 2)).astype(np.float32)
