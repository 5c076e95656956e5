"""A clip at working size with its flow, and the `Geometry` that cameras and depths make of it, whoever estimated them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np

from world_r1.reward import Degenerate
from world_r1.types import Clip
from world_r1_rewards.probes import _flow
from world_r1_rewards.probes._geometry import Geometry

#: Below this share of textured points a clip cannot be measured.
MIN_TEXTURE = 0.04
#: An observation is an inlier within this many working pixels plus a share of its displacement: flow errs in proportion to what it
#: bridges, and a fixed limit would make small camera moves look more rigid than large ones.
INLIER, INLIER_SHARE = 0.35, 0.03
#: Side of the neighbourhood, in grid points, over which residuals are averaged, and how many limits a single one may weigh.
NEIGHBOURS, OUTLIER = 5, 6.0


@dataclass(frozen=True)
class Settings:
    """How much work goes into a clip."""

    #: Most frames used (evenly spread, both ends included), and keyframes among them.
    frames: int
    keys: int
    #: Grid spacing in working pixels; frames are worked on at most `width` pixels wide, upsampled `upsample` times for the flow.
    stride: int
    upsample: int
    width: int
    #: LM iterations: from two starts, again with the mirrored start, on the full grid.
    iterations: tuple[int, int, int]
    #: Pairs farther apart than keyframes are skipped beyond this median displacement over the width.
    max_flow: float
    #: Effort of the flow: a name of `_flow.PRESETS`.
    preset: str = "medium"


@dataclass(frozen=True)
class View:
    """A clip at working size with its tracks."""

    colour: np.ndarray  #: [F, H, W, 3] uint8
    grey: np.ndarray  #: [F, H, W] uint8, stretched
    frames: np.ndarray  #: [F] indices into the clip
    keys: list[int]  #: [A] indices into `frames`
    points: np.ndarray  #: [h, w, 2] pixel indices
    tracks: _flow.Tracks
    focal: float
    focal_weight: float


def look(clip: Clip, settings: Settings, focal: float) -> View:
    """Frames, flow and focal prior of a clip. Raises `Degenerate` for a blank or too short one, ValueError for what is no video."""
    video = clip.video
    if video.ndim != 4 or video.shape[3] != 3 or video.dtype != np.uint8:
        raise ValueError(f"a clip's video must be [T, H, W, 3] uint8, got {video.shape} {video.dtype}")
    if len(video) < 5 or min(video.shape[1:3]) < 32:
        raise Degenerate(
            f"clip of shape {video.shape} is too short or too small for a reconstruction (needs 5 frames of 32 pixels)"
        )
    frames = used_frames(len(video), settings.frames)
    colour = np.stack([shrink(video[t], settings.width) for t in frames])
    gaps = frames[:-1] + np.diff(frames) // 2 if len(frames) < len(video) else frames[:0]
    both = _flow.stretch(np.concatenate([colour, *(shrink(video[t], settings.width)[None] for t in gaps)]))
    grey, between = both[: len(frames)], both[len(frames) :]
    keys = sorted({round(q) for q in np.linspace(0, len(frames) - 1, settings.keys + 2)[1:-1]})
    tracks = _flow.track(grey, between, keys, settings.stride, settings.upsample, settings.max_flow, settings.preset)
    if (share := float((tracks.texture > 0.5).mean())) < MIN_TEXTURE:
        raise Degenerate(f"only {share:.1%} of the picture has texture; a reconstruction needs {MIN_TEXTURE:.0%}")
    prior, weight = math.log(focal), 0.02
    if clip.trajectory is not None:
        prior, weight = math.log(clip.trajectory.K[0, 0] / clip.trajectory.size[1]), 0.5
    return View(colour, grey, frames, keys, _flow.grid(grey.shape[1], grey.shape[2], settings.stride), tracks, prior, weight)


def used_frames(count: int, most: int) -> np.ndarray:
    """[F] indices of at most `most` of `count` frames, evenly spread, both ends included."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


def shrink(frame: np.ndarray, width: int) -> np.ndarray:
    """[H, W, 3] at most `width` pixels wide."""
    height, full = frame.shape[:2]
    if full <= width:
        return frame
    return cv2.resize(frame, (width, round(height * width / full)), interpolation=cv2.INTER_AREA)


@dataclass(frozen=True)
class Estimate:
    """Cameras and depths of a clip, and how they fit its flow and its pictures."""

    poses: np.ndarray  #: [F, 4, 4] camera-to-world, frame 0 at the identity
    K: np.ndarray  #: [3, 3] pixels of the working size
    depth: np.ndarray  #: [A, h, w] z-depth of the keyframes at the grid points, > 0
    residual: np.ndarray  #: [A, F, h, w, 2] induced minus measured displacement, working pixels
    scores: Mapping[str, float]  #: correlation, still, photometric, exposure: see `_render.Agreement`
    pair_correlation: np.ndarray  #: [A, F] correlation by pair
    translation_share: float
    relief: float
    focal_shift: float
    confidence: np.ndarray | None = None  #: [A, h, w] in 0..1 of the estimator itself; multiplies what the flow says


def assemble(clip: Clip, view: View, found: Estimate) -> Geometry:
    """The evidence: the estimate with its fit to flow and pictures."""
    tracks, (height, width) = view.tracks, view.grey.shape[1:]
    seen, used = tracks.mask, np.maximum(1, tracks.used.sum(1))[:, None, None]
    count = max(1.0, float(seen.sum()))
    residual, depth = np.linalg.norm(found.residual, axis=-1), found.depth
    moved = np.linalg.norm(tracks.target, axis=-1)
    limit = INLIER + INLIER_SHARE * moved
    good, fit = seen * (residual < limit), seen / (1 + (residual / limit) ** 2)
    sure = tracks.texture[:, None]
    pair_firmness = (fit * sure).sum((2, 3)) / np.maximum((seen * sure).sum((2, 3)), 1e-3)
    blind = ~tracks.used
    confidence = (good.sum(1) / used).astype(np.float32)
    if found.confidence is not None:
        confidence = confidence * found.confidence
    points, colours = _cloud(view, depth, confidence, found.K, found.poses)
    return Geometry(
        c2w=interpolate(found.poses, view.frames, len(clip.video)),
        K=found.K, size=(height, width), frames=view.frames, keys=view.frames[view.keys],
        depth=depth, grid=view.points + 0.5, confidence=confidence,
        rigidity=float(fit.sum() / count), firmness=float((fit * sure).sum() / max((seen * sure).sum(), 1e-3)),
        unison=unison(found.residual, limit, seen * sure),
        inliers=float(good.sum() / count), residual=float((np.minimum(residual, 3.0) * seen).sum() / count),
        coverage=float(tracks.coverage[tracks.used].mean()), link=tracks.link,
        motion=float((moved * seen).sum() / count) / width,
        straightness=tracks.straightness, detour=tracks.detour, translation_share=found.translation_share,
        relief=found.relief,
        texture=float((tracks.texture > 0.5).mean()),
        correlation=found.scores["correlation"], still=found.scores["still"],
        photometric=found.scores["photometric"], exposure=found.scores["exposure"],
        pair_firmness=np.where(blind, np.nan, pair_firmness).astype(np.float32),
        pair_correlation=np.where(blind, np.nan, found.pair_correlation).astype(np.float32),
        points=points, colours=colours, focal_shift=found.focal_shift,
        pairs=tracks.used, scene_depth=float(np.median(depth[len(depth) // 2])),
    )  # fmt: skip


def unison(residual: np.ndarray, limit: np.ndarray, weight: np.ndarray) -> float:
    """Mean over the observations of 1 / (1 + (r / limit)^2) for r the weighted mean residual of a neighbourhood.

    The flow's errors differ from point to point and cancel; what moves by itself, or changes its shape, errs in unison. Single
    residuals count up to `OUTLIER` limits, so that one wrong point does not speak for its neighbours.
    """
    size = np.linalg.norm(residual, axis=-1)
    bounded = residual * np.minimum(1.0, OUTLIER * limit / np.maximum(size, 1e-6))[..., None]
    stacked = np.concatenate([bounded * weight[..., None], weight[..., None]], -1).astype(np.float32)
    side = (NEIGHBOURS, NEIGHBOURS)
    sums = np.stack([cv2.boxFilter(x, -1, side, borderType=cv2.BORDER_CONSTANT) for x in stacked.reshape(-1, *stacked.shape[2:])])
    common = np.linalg.norm(sums[..., :2], axis=-1) / np.maximum(sums[..., 2], 1e-6)
    fit = weight / (1 + (common.reshape(weight.shape) / limit) ** 2)
    return float(fit.sum() / max(weight.sum(), 1e-3))


def interpolate(poses: np.ndarray, frames: np.ndarray, count: int) -> np.ndarray:
    """[count, 4, 4] float32: constant twist rotation and straight translation between the estimated frames."""
    out = np.tile(np.eye(4), (count, 1, 1))
    for a, (start, stop) in enumerate(pairwise(frames)):
        turn, _ = cv2.Rodrigues(poses[a, :3, :3].T @ poses[a + 1, :3, :3])
        for t in range(start, stop + 1):
            s = (t - start) / (stop - start)
            out[t, :3, :3] = poses[a, :3, :3] @ cv2.Rodrigues(turn * s)[0]
            out[t, :3, 3] = (1 - s) * poses[a, :3, 3] + s * poses[a + 1, :3, 3]
    return out.astype(np.float32)


def _cloud(
    view: View, depth: np.ndarray, confidence: np.ndarray, K: np.ndarray, poses: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Confident grid points of all keyframes in the frame of camera 0, with their colours."""
    points, colours = [], []
    index = view.points.astype(int)
    rays = np.concatenate([view.points + 0.5, np.ones((*view.points.shape[:2], 1), np.float32)], -1) @ np.linalg.inv(K).T
    for a, key in enumerate(view.keys):
        good = confidence[a] > 0.3
        local = (rays * depth[a][..., None])[good]
        points.append(local @ poses[key, :3, :3].T + poses[key, :3, 3])
        colours.append(view.colour[key][index[..., 1], index[..., 0]][good])
    return np.concatenate(points).astype(np.float32), np.concatenate(colours)
