"""The contract of foundation models for geometry, and how its fulfilment is measured.

An adapter gives `Views`: cameras, depths and confidences of the frames it used. `measured` holds them against the clip's own optical
flow and pictures, as the embedded bundle adjustment is held, and gives the same `Geometry`: every score runs on every backend, and a
model's own confidence is never the judge of the clip.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch

from world_r1.reward import Degenerate
from world_r1.types import Clip
from world_r1_rewards.probes import _render
from world_r1_rewards.probes._assemble import Estimate, Settings, View, assemble, look
from world_r1_rewards.probes._geometry import Geometry
from world_r1_rewards.render import Gaussians

#: How the fit to flow and pictures is measured, 0.6 CPU seconds a clip. Upsampled, unlike flow_ba in training: exact cameras and depths
#: leave 0.4 pixels of residual so, 0.6 without, which is the flow's own error; a bundle adjustment fits part of that.
MEASURE = Settings(frames=9, keys=3, stride=5, upsample=2, width=160, iterations=(0, 0, 0), max_flow=0.08)
#: A model that knows the depth of less than this share of the keyframes has not understood the clip.
MIN_KNOWN = 0.5
#: Tolerances of a camera matrix, and a focal length's range in widths.
ORTHONORMAL, FOCAL = 1e-2, (0.1, 20.0)


@dataclass(frozen=True)
class Views:
    """What a model says about F frames of one clip. OpenCV axes; the unit of length is the model's own.

    Example: `Views(frames=<17>, c2w=<17x4x4>, K=<17x3x3>, size=(294, 504), depth=<17x294x504>, confidence=<17x294x504>, source="...")`
    """

    #: [F] int64 ascending indices into the clip.
    frames: np.ndarray
    #: [F, 4, 4] float32 camera-to-world.
    c2w: np.ndarray
    #: [F, 3, 3] float32 intrinsics in pixels of `size`; pixel centres at +0.5.
    K: np.ndarray
    #: (height, width) that `K`, `depth` and `confidence` belong to.
    size: tuple[int, int]
    #: [F, h, w] float32 z-depth; 0 where unknown.
    depth: np.ndarray
    #: [F, h, w] float32 in 0..1.
    confidence: np.ndarray
    #: Weights, revision and licence, for the record.
    source: str
    #: Whether the unit of length is the metre.
    metric: bool = False
    gaussians: Gaussians | None = None

    def checked(self) -> Views:
        """Itself. Raises ValueError, naming the field, for anything that is not as documented: a model's output is data, not truth."""
        count, (height, width) = len(self.frames), self.size
        shapes = {"c2w": (count, 4, 4), "K": (count, 3, 3), "depth": (count, height, width), "confidence": (count, height, width)}
        for name, shape in shapes.items():
            value = getattr(self, name)
            if value.shape != shape:
                raise ValueError(f"views: {name} must be {shape}, got {value.shape}")
            if not np.isfinite(value).all():
                raise ValueError(f"views: {name} is not finite in {int((~np.isfinite(value)).sum())} places")
        if (self.depth < 0).any() or (self.confidence < 0).any() or (self.confidence > 1).any():
            raise ValueError("views: depth must be >= 0 and confidence in 0..1")
        R = self.c2w[:, :3, :3].astype(np.float64)
        if np.abs(R @ R.transpose(0, 2, 1) - np.eye(3)).max() > ORTHONORMAL or (np.linalg.det(R) < 0).any():
            raise ValueError("views: c2w must hold rotations")
        focal = self.K[:, [0, 1], [0, 1]] / width
        if (focal < FOCAL[0]).any() or (focal > FOCAL[1]).any():
            raise ValueError(f"views: focal lengths must lie within {FOCAL} widths, got {focal.min():.3g} to {focal.max():.3g}")
        if (np.diff(self.frames) <= 0).any():
            raise ValueError("views: frames must ascend")
        return self


def measured(clip: Clip, views: Views, settings: Settings = MEASURE, known_share: float = MIN_KNOWN) -> Geometry:
    """`Geometry` of a clip with a model's cameras and depths, fitted to nothing: residuals are the model's.

    Raises `Degenerate` for a clip that cannot be measured, or if the model knows less than `known_share` of its keyframes.
    """
    view = look(clip, replace(settings, frames=len(views.frames)), 0.9)
    if not np.array_equal(view.frames, views.frames):
        raise ValueError(f"views: frames {views.frames.tolist()} are not the evenly spread ones {view.frames.tolist()}")
    height, width = view.grey.shape[1:]
    K = _rescaled(views.K, views.size, (height, width))
    at = view.points + 0.5
    depth, confidence = (_sampled(x[view.keys], views.size, (height, width), at) for x in (views.depth, views.confidence))
    known = depth > 0
    if known.mean() < known_share:
        raise Degenerate(f"the model knows the depth of {known.mean():.0%} of the keyframes; {known_share:.0%} are needed")
    # flow says nothing where there is no texture (a bundle adjustment follows it there, a model rightly does not), depth nothing where
    # it is unknown
    weight = view.tracks.mask * (0.1 + 0.9 * view.tracks.texture[:, None]) * known[:, None]
    view = replace(view, tracks=replace(view.tracks, mask=weight.astype(np.float32)))
    far = np.array([np.quantile(d[k], 0.99) if k.any() else 1.0 for d, k in zip(depth, known, strict=True)], np.float32)
    depth = np.where(known, depth, far[:, None, None])
    poses = np.linalg.inv(views.c2w[:1].astype(np.float64)) @ views.c2w.astype(np.float64)
    induced, ahead, turned = _induced(view, depth, K, poses)
    return assemble(clip, view, _estimate(view, induced, ahead, turned, depth, confidence * known, K, poses))


def _estimate(
    view: View,
    induced: np.ndarray,
    ahead: np.ndarray,
    turned: np.ndarray,
    depth: np.ndarray,
    confidence: np.ndarray,
    K: np.ndarray,
    poses: np.ndarray,
) -> Estimate:
    height, width = view.grey.shape[1:]
    tracks, centre = view.tracks, np.array([width / 2, height / 2], np.float32)
    base = view.points + 0.5
    residual = np.where(ahead[..., None], induced - base - tracks.target, 1e3).astype(np.float32)
    tensor = lambda x: torch.from_numpy(np.ascontiguousarray(x))[None]  # noqa: E731
    found = _render.compare(
        frames=tensor(view.grey).float() / 255,
        at=tensor((induced - centre).transpose(0, 1, 4, 2, 3)).float(),
        ahead=tensor(ahead.reshape(*ahead.shape[:2], -1)),
        base=torch.from_numpy(base - centre),
        keys=torch.tensor(view.keys),
        weight=tensor(tracks.mask),
        used=tensor(tracks.used),
    )
    one = _render.Agreement(*(x[0] for x in found))
    moved, parallax = np.linalg.norm(induced - base, axis=-1), np.linalg.norm(induced - turned, axis=-1)
    seen = tracks.mask * ahead
    share = float(np.clip((parallax * seen).sum() / max((moved * seen).sum(), 1e-3), 0, 1))
    log = np.log(depth)
    return Estimate(
        poses=poses, K=np.median(K, axis=0).astype(np.float32), depth=depth.astype(np.float32), residual=residual,
        scores=one.numbers(), pair_correlation=one.pairs.numpy(), translation_share=share,
        relief=float(np.mean([np.median(np.abs(z - np.median(z))) for z in log])),
        focal_shift=float(np.log(np.median(K[:, 0, 0]) / width)) - view.focal, confidence=confidence,
    )  # fmt: skip


def _rescaled(K: np.ndarray, size: tuple[int, int], to: tuple[int, int]) -> np.ndarray:
    """[F, 3, 3] float64 intrinsics of the same cameras in pixels of another size."""
    return np.diag([to[1] / size[1], to[0] / size[0], 1.0]) @ K.astype(np.float64)


def _sampled(maps: np.ndarray, size: tuple[int, int], working: tuple[int, int], at: np.ndarray) -> np.ndarray:
    """[A, h, w] nearest values of maps [A, *size] at points [h, w, 2] in pixels of the working size (no mixing across edges)."""
    x = np.clip((at[..., 0] * size[1] / working[1]).astype(int), 0, size[1] - 1)
    y = np.clip((at[..., 1] * size[0] / working[0]).astype(int), 0, size[0] - 1)
    return maps[:, y, x].astype(np.float32)


def _induced(view: View, depth: np.ndarray, K: np.ndarray, poses: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the keyframes' points appear in all frames [A, F, h, w, 2], whether ahead [A, F, h, w], and where if cameras only turned."""
    pixel = np.concatenate([view.points + 0.5, np.ones((*view.points.shape[:2], 1), np.float32)], -1).astype(np.float64)
    induced, ahead, turned = [], [], []
    for a, key in enumerate(view.keys):
        local = pixel @ np.linalg.inv(K[key]).T
        rows = []
        for t in range(len(poses)):
            relative = np.linalg.inv(poses[t]) @ poses[key]
            rotated = local @ relative[:3, :3].T
            rows.append([_image(x, K[t]) for x in (rotated * depth[a][..., None] + relative[:3, 3], rotated)])
        induced.append([moved[0] for moved, _ in rows])
        ahead.append([moved[1] for moved, _ in rows])
        turned.append([still[0] for _, still in rows])
    return np.array(induced), np.array(ahead), np.array(turned)


def _image(points: np.ndarray, K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    z = points[..., 2]
    at = (points / np.maximum(z, 1e-6)[..., None]) @ K.T
    return at[..., :2], z > 1e-6


def resized(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[F, H, W, 3] uint8 at (height, width): area averaging down, cubic up."""
    height, width = size
    how = cv2.INTER_AREA if width < frames.shape[2] else cv2.INTER_CUBIC
    return np.stack([cv2.resize(frame, (width, height), interpolation=how) for frame in frames])
