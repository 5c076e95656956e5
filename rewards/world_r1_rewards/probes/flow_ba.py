"""Geometry from dense-flow bundle adjustment: no weights, a fraction of a CPU second a clip.

Keyframes are matched to the other frames by DIS flow (`_flow`), poses, depths and focal length are fitted to it (`_lm`), and keyframes
are re-rendered through the result (`_render`). The commanded poses are never used; the commanded intrinsics are, as a prior.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
import torch

from world_r1.reward import Degenerate, Probe
from world_r1.types import Clip
from world_r1_rewards.probes import _flow, _lm, _render
from world_r1_rewards.probes._geometry import Geometry

#: Below this share of textured points a clip cannot be measured.
MIN_TEXTURE = 0.04
#: An observation is an inlier within this many working pixels plus a share of its displacement: flow errs in proportion to what it
#: bridges, and a fixed limit would make small camera moves look more rigid than large ones.
INLIER, INLIER_SHARE = 0.35, 0.03


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


QUALITIES = {
    "train": Settings(frames=9, keys=3, stride=5, upsample=1, width=160, iterations=(8, 6, 4), max_flow=0.08),
    "eval": Settings(frames=17, keys=5, stride=4, upsample=2, width=160, iterations=(14, 10, 8), max_flow=0.18),
}


class FlowBA(Probe):
    """Poses, focal length, depth and re-rendering scores from dense flow; see `Geometry`.

    Options: `quality` "train" (default) or "eval"; any field of `Settings` by name; `focal` the prior of focal / width for clips
    without a trajectory; `workers` threads for the flows of a batch; `batch` clips solved together; `device` "auto", "cpu" or "cuda".
    A blank, textureless or too short clip is `Degenerate`; a frozen clip is not: it has motion 0 and identity poses.
    """

    gives = ("geometry",)

    def __init__(
        self, quality: str = "train", *, focal: float = 0.9, workers: int = 1, batch: int = 8, device: str = "auto", **settings: Any
    ) -> None:
        if quality not in QUALITIES:
            raise ValueError(f"flow_ba: quality must be one of {', '.join(QUALITIES)}, got {quality!r}")
        self.settings = replace(QUALITIES[quality], **settings)
        self.focal, self.workers, self.batch = focal, workers, batch
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else torch.device(device)

    def observe(self, clips: Sequence[Clip], evidence: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any] | Exception]:
        """{"geometry": Geometry} for every clip, or the exception that it caused."""
        results: list[Mapping[str, Any] | Exception] = [RuntimeError("not measured")] * len(clips)
        with ThreadPoolExecutor(self.workers) as pool:
            views = list(pool.map(self._view, clips))
        sizes: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for i, view in enumerate(views):
            if isinstance(view, Exception):
                results[i] = view
            else:
                sizes[(len(clips[i].video), *view.grey.shape)].append(i)
        for members in sizes.values():
            for start in range(0, len(members), self.batch):
                chunk = members[start : start + self.batch]
                geometries = self._solve([clips[i] for i in chunk], [views[i] for i in chunk])  # type: ignore[misc]
                for i, geometry in zip(chunk, geometries, strict=True):
                    results[i] = geometry if isinstance(geometry, Exception) else {"geometry": geometry}
        return results

    def _view(self, clip: Clip) -> _View | Exception:
        try:
            return _view(clip, self.settings, self.focal)
        except (Degenerate, cv2.error, ValueError) as error:
            return error

    @torch.inference_mode()
    def _solve(self, clips: list[Clip], views: list[_View]) -> list[Geometry | Exception]:
        problem, frames, used = _batch(views, self.device)
        state, _ = _lm.adjust(problem, self.settings.iterations)
        p = _lm.project(problem, state)
        rx, ry = _lm.residuals(problem, p)
        error = (rx * rx + ry * ry).sqrt()
        agreement = _render.agreement(frames, problem, p, used)
        shares = _translation_share(problem, state, p)
        outputs: list[Geometry | Exception] = []
        for i, (clip, view) in enumerate(zip(clips, views, strict=True)):
            one = _lm.State(*(x[i].cpu() for x in state))
            if not all(bool(x.isfinite().all()) for x in one):
                outputs.append(ArithmeticError("bundle adjustment diverged"))
                continue
            scores = {name: float(value[i]) for name, value in agreement._asdict().items()}
            outputs.append(_geometry(clip, view, one, error[i].cpu(), scores, float(shares[i])))
        return outputs


@dataclass(frozen=True)
class _View:
    """A clip at working size with its tracks."""

    colour: np.ndarray  #: [F, H, W, 3] uint8
    grey: np.ndarray  #: [F, H, W] uint8, stretched
    frames: np.ndarray  #: [F] indices into the clip
    keys: list[int]  #: [A] indices into `frames`
    points: np.ndarray  #: [h, w, 2] pixel indices
    tracks: _flow.Tracks
    focal: float
    focal_weight: float


def _view(clip: Clip, settings: Settings, focal: float) -> _View:
    video = clip.video
    if video.ndim != 4 or video.shape[3] != 3 or video.dtype != np.uint8:
        raise ValueError(f"a clip's video must be [T, H, W, 3] uint8, got {video.shape} {video.dtype}")
    if len(video) < 5 or min(video.shape[1:3]) < 32:
        raise Degenerate(
            f"clip of shape {video.shape} is too short or too small for a reconstruction (needs 5 frames of 32 pixels)"
        )
    frames = np.unique(np.linspace(0, len(video) - 1, min(len(video), settings.frames)).round().astype(int))
    colour = np.stack([_shrink(video[t], settings.width) for t in frames])
    gaps = frames[:-1] + np.diff(frames) // 2 if len(frames) < len(video) else frames[:0]
    both = _flow.stretch(np.concatenate([colour, *(_shrink(video[t], settings.width)[None] for t in gaps)]))
    grey, between = both[: len(frames)], both[len(frames) :]
    keys = sorted({round(q) for q in np.linspace(0, len(frames) - 1, settings.keys + 2)[1:-1]})
    tracks = _flow.track(grey, between, keys, settings.stride, settings.upsample, settings.max_flow)
    if (share := float((tracks.texture > 0.5).mean())) < MIN_TEXTURE:
        raise Degenerate(f"only {share:.1%} of the picture has texture; a reconstruction needs {MIN_TEXTURE:.0%}")
    prior, weight = math.log(focal), 0.02
    if clip.trajectory is not None:
        prior, weight = math.log(clip.trajectory.K[0, 0] / clip.trajectory.size[1]), 0.5
    return _View(colour, grey, frames, keys, _flow.grid(grey.shape[1], grey.shape[2], settings.stride), tracks, prior, weight)


def _shrink(frame: np.ndarray, width: int) -> np.ndarray:
    height, full = frame.shape[:2]
    if full <= width:
        return frame
    return cv2.resize(frame, (width, round(height * width / full)), interpolation=cv2.INTER_AREA)


def _batch(views: list[_View], device: torch.device) -> tuple[_lm.Problem, torch.Tensor, torch.Tensor]:
    """Problem, grey frames [B, F, H, W] in 0..1 and used pairs [B, A, F] of views of one size."""
    stack = lambda arrays: torch.from_numpy(np.stack(arrays)).to(device)  # noqa: E731
    height, width = views[0].grey.shape[1:]
    centre = np.array([width / 2, height / 2], np.float32)
    problem = _lm.Problem(
        target=stack([v.tracks.target for v in views]),
        weight=stack([v.tracks.mask * (0.1 + 0.9 * v.tracks.texture[:, None]) for v in views]),
        base=torch.from_numpy(views[0].points + 0.5 - centre).to(device),
        keys=torch.tensor(views[0].keys, device=device),
        width=float(width),
        focal=torch.tensor([v.focal for v in views], dtype=torch.float32, device=device),
        focal_weight=views[0].focal_weight,
    )
    return problem, stack([v.grey for v in views]).float() / 255, stack([v.tracks.used for v in views])


def _translation_share(problem: _lm.Problem, state: _lm.State, p: _lm.Projection) -> torch.Tensor:
    """[B] share of the induced displacement that vanishes when the cameras only rotate."""
    x, y = problem.base.flatten(0, 1).unbind(-1)
    turned = p.R @ torch.stack([x / p.f[:, 0, 0], y / p.f[:, 0, 0], torch.ones_like(x).expand(len(p.f), -1)], 1)[:, None, None]
    Z = turned[..., 2, :].clamp_min(_lm.NEAR)
    full = torch.stack([p.u * p.f - x, p.v * p.f - y], -1).norm(dim=-1)
    parallax = torch.stack([(p.u - turned[..., 0, :] / Z) * p.f, (p.v - turned[..., 1, :] / Z) * p.f], -1).norm(dim=-1)
    seen = problem.weight.flatten(3) > 0
    return ((parallax * seen).sum((1, 2, 3)) / (full * seen).sum((1, 2, 3)).clamp_min(1e-3)).clamp(0, 1)


def _geometry(clip: Clip, view: _View, state: _lm.State, error: torch.Tensor, scores: dict[str, float], share: float) -> Geometry:
    tracks, (height, width) = view.tracks, view.grey.shape[1:]
    seen, used = tracks.mask, np.maximum(1, tracks.used.sum(1))[:, None, None]
    count = max(1.0, float(seen.sum()))
    residual = error.numpy().reshape(seen.shape)
    moved = np.linalg.norm(tracks.target, axis=-1)
    limit = INLIER + INLIER_SHARE * moved
    good = seen * (residual < limit)
    poses = _poses(state)
    depth = np.exp(-state.z.numpy()).astype(np.float32)
    f = width * math.exp(float(state.focal))
    K = np.array([[f, 0, width / 2], [0, f, height / 2], [0, 0, 1]], np.float32)
    confidence = (good.sum(1) / used).astype(np.float32)
    points, colours = _cloud(view, depth, confidence, K, poses)
    return Geometry(
        c2w=_interpolate(poses, view.frames, len(clip.video)),
        K=K, size=(height, width), frames=view.frames, keys=view.frames[view.keys],
        depth=depth, grid=view.points + 0.5, confidence=confidence,
        rigidity=float((seen / (1 + (residual / limit) ** 2)).sum() / count),
        inliers=float(good.sum() / count), residual=float((np.minimum(residual, 3.0) * seen).sum() / count),
        coverage=float(tracks.coverage[tracks.used].mean()), link=tracks.link,
        motion=float((moved * seen).sum() / count) / width,
        straightness=tracks.straightness, translation_share=share,
        relief=float(np.mean([np.median(np.abs(z - np.median(z))) for z in state.z.numpy()])),
        texture=float((tracks.texture > 0.5).mean()),
        correlation=scores["correlation"], photometric=scores["photometric"],
        exposure=scores["exposure"],
        points=points, colours=colours, focal_shift=float(state.focal) - view.focal,
        pairs=tracks.used, scene_depth=float(np.median(depth[len(depth) // 2])),
    )  # fmt: skip


def _poses(state: _lm.State) -> np.ndarray:
    """[F, 4, 4] float64 camera-to-world with frame 0 at the identity."""
    w2c = np.tile(np.eye(4), (len(state.R), 1, 1))
    w2c[:, :3, :3], w2c[:, :3, 3] = state.R.double().numpy(), state.t.double().numpy()
    u, _, vt = np.linalg.svd(w2c[:, :3, :3])  # accumulated rounding
    w2c[:, :3, :3] = u @ vt
    return w2c[:1] @ np.linalg.inv(w2c)


def _interpolate(poses: np.ndarray, frames: np.ndarray, count: int) -> np.ndarray:
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
    view: _View, depth: np.ndarray, confidence: np.ndarray, K: np.ndarray, poses: np.ndarray
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
