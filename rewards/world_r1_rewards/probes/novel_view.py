"""A view of the reconstructed scene from where the camera never was."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch

from world_r1.reward import Degenerate, Probe
from world_r1.types import Clip
from world_r1_rewards.probes._geometry import Geometry
from world_r1_rewards.render import splat

#: Neighbouring pixels whose log depth differs by more than this lie on different surfaces; what spans them is not drawn.
TEAR = 0.06


class NovelView(Probe):
    """Gives "novel_view": {image [H, W, 3] uint8, c2w [4, 4], coverage, parallax}.

    Views on a ring about the middle keyframe's camera, turned towards the scene, in an order drawn from the clip's id; the first that is
    at least `parallax` scene depths from every camera of the path and shows at least `coverage` of its picture wins. Raises (returns)
    `Degenerate` when none does. Options: `radius` of the ring in scene depths, `parallax`, `coverage`, `tries`.
    """

    gives = ("novel_view",)
    needs = ("geometry",)

    def __init__(self, radius: float = 0.22, parallax: float = 0.1, coverage: float = 0.75, tries: int = 8) -> None:
        if not 0 < parallax <= radius:
            raise ValueError(f"novel_view: parallax must lie in (0, radius={radius}], got {parallax}")
        self.radius, self.parallax, self.coverage, self.tries = radius, parallax, coverage, tries

    def observe(self, clips: Sequence[Clip], evidence: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any] | Exception]:
        results: list[Mapping[str, Any] | Exception] = []
        for clip, found in zip(clips, evidence, strict=True):
            try:
                results.append({"novel_view": self._view(clip, found["geometry"])})
            except Degenerate as error:
                results.append(error)
        return results

    @torch.inference_mode()
    def _view(self, clip: Clip, geometry: Geometry) -> dict[str, Any]:
        points, colours = dense_cloud(clip.video, geometry)
        K = torch.from_numpy(geometry.K)
        best = 0.0
        for c2w in self._candidates(clip.id, geometry):
            distance = np.linalg.norm(geometry.c2w[:, :3, 3] - c2w[:3, 3], axis=1).min() / geometry.scene_depth
            if distance < self.parallax:
                continue
            drawn = splat(points, colours, torch.from_numpy(c2w)[None], K, geometry.size)
            share = float(drawn.covered.float().mean())
            best = max(best, share)
            if share >= self.coverage:
                picture = (_fill(drawn.image[0], drawn.covered[0]).numpy() * 255).round().clip(0, 255).astype(np.uint8)
                return {"image": picture, "c2w": c2w, "coverage": share, "parallax": float(distance)}
        raise Degenerate(f"no new view off the path shows {self.coverage:.0%} of the scene (best {best:.0%} of {self.tries} tries)")

    def _candidates(self, name: str, geometry: Geometry) -> list[np.ndarray]:
        """[4, 4] float32 poses on the ring, farther ones last, in an order that the clip's id decides."""
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
        angles = np.random.default_rng(seed).uniform(0, 2 * np.pi, self.tries)
        base = geometry.c2w[geometry.keys[len(geometry.keys) // 2]].astype(np.float64)
        target = np.array([0.0, 0.0, geometry.scene_depth])
        poses = []
        for i, angle in enumerate(angles):
            radius = self.radius * geometry.scene_depth * (1 + 0.3 * (i % 3))
            offset = radius * np.array([np.cos(angle), 0.5 * np.sin(angle), 0.0])
            forward = (target - offset) / np.linalg.norm(target - offset)
            right = np.cross([0.0, 1.0, 0.0], forward)
            right /= np.linalg.norm(right)
            local = np.eye(4)
            local[:3, :3] = np.stack([right, np.cross(forward, right), forward], 1)
            local[:3, 3] = offset
            poses.append((base @ local).astype(np.float32))
        return poses


def dense_cloud(video: np.ndarray, geometry: Geometry) -> tuple[torch.Tensor, torch.Tensor]:
    """Every pixel of the keyframes as a coloured point in the frame of camera 0: [N, 3] float32 and [N, 3] float32 in 0..1."""
    points, colours = zip(*clouds(video, geometry), strict=True)
    return torch.cat(points), torch.cat(colours)


def clouds(video: np.ndarray, geometry: Geometry) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """`dense_cloud` by keyframe."""
    height, width = geometry.size
    inverse_K = np.linalg.inv(geometry.K)
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    rays = np.stack([x + 0.5, y + 0.5, np.ones_like(x)], -1) @ inverse_K.T
    first, spacing = geometry.grid[0, 0] - 0.5, geometry.grid[1, 1] - geometry.grid[0, 0]
    column, row = (x - first[0]) / spacing[0], (y - first[1]) / spacing[1]
    found = []
    for depth, key in zip(geometry.depth, geometry.keys, strict=True):
        log = cv2.remap(np.log(depth), column, row, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        whole = np.hypot(cv2.Sobel(log, cv2.CV_32F, 1, 0, scale=0.125), cv2.Sobel(log, cv2.CV_32F, 0, 1, scale=0.125)) < TEAR
        frame = video[key]
        if frame.shape[:2] != (height, width):
            frame = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
        pose = geometry.c2w[key]
        points = (rays * np.exp(log)[..., None])[whole] @ pose[:3, :3].T + pose[:3, 3]
        found.append((torch.from_numpy(points.astype(np.float32)), torch.from_numpy(frame[whole]).float() / 255))
    return found


def _fill(image: torch.Tensor, covered: torch.Tensor) -> torch.Tensor:
    """Uncovered pixels take the colour of the nearest covered ones, so that a critic sees no black holes it was not trained on."""
    holes = (~covered).numpy().astype(np.uint8)
    if not holes.any():
        return image
    _, labels = cv2.distanceTransformWithLabels(holes, cv2.DIST_L2, 3, labelType=cv2.DIST_LABEL_PIXEL)
    lookup = np.zeros((labels.max() + 1, 3), np.float32)
    known = covered.numpy()
    lookup[labels[known]] = image.numpy()[known]
    return torch.from_numpy(lookup[labels])
