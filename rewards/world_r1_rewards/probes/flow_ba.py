"""Geometry from dense-flow bundle adjustment: no weights, a fraction of a CPU second a clip.

Keyframes are matched to the other frames by DIS flow (`_flow`), poses, depths and focal length are fitted to it (`_lm`), and keyframes
are re-rendered through the result (`_render`). The commanded poses are never used; the commanded intrinsics are, as a prior.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import torch

from world_r1.reward import Degenerate, Probe
from world_r1.types import Clip
from world_r1_rewards.probes import _flow, _lm, _render
from world_r1_rewards.probes._assemble import Estimate, Settings, View, assemble, look
from world_r1_rewards.probes._geometry import Geometry

QUALITIES = {
    "train": Settings(frames=9, keys=3, stride=5, upsample=1, width=160, iterations=(8, 6, 4), max_flow=0.08),
    "quick": Settings(frames=9, keys=3, stride=5, upsample=1, width=160, iterations=(8, 6, 4), max_flow=0.08, preset="fast"),
    "fine": Settings(frames=9, keys=3, stride=5, upsample=2, width=160, iterations=(8, 6, 4), max_flow=0.08),
    "eval": Settings(frames=17, keys=5, stride=4, upsample=2, width=160, iterations=(14, 10, 8), max_flow=0.18),
}


class FlowBA(Probe):
    """Poses, focal length, depth and re-rendering scores from dense flow; see `Geometry`.

    Options: `quality` "train" (default), "quick" (flow at a quarter of the time: as good for `appearance`, not for rigidity), "fine"
    (flow at twice the resolution: three times the time, half the error) or "eval"; any
    field of `Settings` by name; `focal` the prior of focal / width for clips without a trajectory; `workers` threads for the flows of a
    batch; `batch` clips solved together; `device` "auto", "cpu" or "cuda".
    A blank, textureless or too short clip is `Degenerate`; a frozen clip is not: it has motion 0 and identity poses.
    """

    gives = ("geometry",)

    def __init__(
        self, quality: str = "train", *, focal: float = 0.9, workers: int = 1, batch: int = 8, device: str = "auto", **settings: Any
    ) -> None:
        if quality not in QUALITIES:
            raise ValueError(f"flow_ba: quality must be one of {', '.join(QUALITIES)}, got {quality!r}")
        self.settings = replace(QUALITIES[quality], **settings)
        if self.settings.preset not in _flow.PRESETS:
            raise ValueError(f"flow_ba: preset must be one of {', '.join(_flow.PRESETS)}, got {self.settings.preset!r}")
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

    def _view(self, clip: Clip) -> View | Exception:
        try:
            return look(clip, self.settings, self.focal)
        except (Degenerate, cv2.error, ValueError) as error:
            return error

    @torch.inference_mode()
    def _solve(self, clips: list[Clip], views: list[View]) -> list[Geometry | Exception]:
        problem, frames, used = _batch(views, self.device)
        state, _ = _lm.adjust(problem, self.settings.iterations)
        p = _lm.project(problem, state)
        error = torch.stack(_lm.residuals(problem, p), -1)
        agreement = _render.agreement(frames, problem, p, used)
        shares = _translation_share(problem, state, p)
        outputs: list[Geometry | Exception] = []
        for i, (clip, view) in enumerate(zip(clips, views, strict=True)):
            one = _lm.State(*(x[i].cpu() for x in state))
            if not all(bool(x.isfinite().all()) for x in one):
                outputs.append(ArithmeticError("bundle adjustment diverged"))
                continue
            found = _render.Agreement(*(x[i].cpu() for x in agreement))
            outputs.append(assemble(clip, view, _estimate(view, one, error[i].cpu(), found, float(shares[i]))))
        return outputs


def _batch(views: list[View], device: torch.device) -> tuple[_lm.Problem, torch.Tensor, torch.Tensor]:
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


def _estimate(view: View, state: _lm.State, error: torch.Tensor, found: _render.Agreement, share: float) -> Estimate:
    height, width = view.grey.shape[1:]
    f = width * math.exp(float(state.focal))
    return Estimate(
        poses=_poses(state),
        K=np.array([[f, 0, width / 2], [0, f, height / 2], [0, 0, 1]], np.float32),
        depth=np.exp(-state.z.numpy()).astype(np.float32),
        residual=error.numpy().reshape(view.tracks.target.shape),
        scores=found.numbers(),
        pair_correlation=found.pairs.numpy(),
        translation_share=share,
        relief=float(np.mean([np.median(np.abs(z - np.median(z))) for z in state.z.numpy()])),
        focal_shift=float(state.focal) - view.focal,
    )


def _poses(state: _lm.State) -> np.ndarray:
    """[F, 4, 4] float64 camera-to-world with frame 0 at the identity."""
    w2c = np.tile(np.eye(4), (len(state.R), 1, 1))
    w2c[:, :3, :3], w2c[:, :3, 3] = state.R.double().numpy(), state.t.double().numpy()
    u, _, vt = np.linalg.svd(w2c[:, :3, :3])  # accumulated rounding
    w2c[:, :3, :3] = u @ vt
    return w2c[:1] @ np.linalg.inv(w2c)
