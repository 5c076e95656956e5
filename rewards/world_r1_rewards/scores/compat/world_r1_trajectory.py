"""S_traj as the public World-R1 release computes it (not as its paper defines it): for comparison only.

Its defects are part of it: straight paths lose their scale and cap at 0.52, pose jitter adds up along the path, a correct orbit about the
subject scores less than one that moves outward. Train with `trajectory`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from world_r1.reward import Reward
from world_r1.types import Clip, Score
from world_r1_rewards.probes._geometry import Geometry

#: The release's commands put the subject at this distance; its constants below are in that unit and in degrees.
DEPTH = 1000.0
NO_TRANSLATION, NO_ROTATION = 1e-4, 1e-3


class WorldR1Trajectory(Reward):
    """In [0, 1]. Scale by a similarity fit of the camera centres where that is well posed, none otherwise; both paths from frame 0.

    Translation: 0.4 (1 + cosine) / 2 + 0.3 exp(-|log of the path lengths' ratio|) + 0.3 exp(-mean distance / 2 mean steps). Rotation:
    0.5 exp(-mean / 6 deg) + 0.3 exp(-last / 6 deg) + 0.2 exp(-|log ratio|). Their mean; 0.8 to 0.2 where one is not commanded; their
    product where neither is. The release fits by RANSAC with ten unseeded draws; here all frames are fitted, so that it repeats.
    """

    name, needs = "compat.world_r1_trajectory", ("geometry",)
    parts = ("translation", "rotation", "scale")

    def applies(self, clip: Clip) -> bool:
        return clip.trajectory is not None

    def score(self, clip: Clip, evidence: Mapping[str, Any]) -> Score:
        geometry: Geometry = evidence["geometry"]
        assert clip.trajectory is not None
        target = clip.trajectory.c2w.astype(np.float64)
        target[:, :3, 3] *= DEPTH / clip.trajectory.depth
        found = agreement(geometry.c2w.astype(np.float64), target)
        return self.ok(found.pop("value"), **found)


def agreement(estimated: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """value, translation, rotation and scale for two paths c2w [T, 4, 4]; the target in the release's unit."""
    scale = 1.0
    if _steps(target[:, :3, 3]).sum() >= NO_TRANSLATION:
        scale = _scale(estimated[:, :3, 3], target[:, :3, 3])
    estimated = estimated.copy()
    estimated[:, :3, 3] *= scale
    a, b = (np.linalg.inv(x[:1]) @ x for x in (estimated, target))
    translation, moves = _translation(a[:, :3, 3], b[:, :3, 3])
    rotation, turns = _rotation(a[:, :3, :3], b[:, :3, :3])
    if moves and turns:
        value = (translation + rotation) / 2
    elif moves:
        value = 0.8 * translation + 0.2 * rotation
    elif turns:
        value = 0.2 * translation + 0.8 * rotation
    else:
        value = translation * rotation
    return {"value": float(np.clip(value, 0, 1)), "translation": translation, "rotation": rotation, "scale": scale}


def _scale(a: np.ndarray, b: np.ndarray) -> float:
    """Scale of the similarity that brings a onto b (Umeyama, 1991, eq. 42); 1 where the points lie on a line, which it refuses."""
    x, y = a - a.mean(0), b - b.mean(0)
    variance = (x * x).sum() / len(x)
    u, d, vt = np.linalg.svd(y.T @ x / len(x))
    if variance < 1e-12 or (d > np.finfo(float).eps * max(d[0], 1.0) * 10).sum() < 2:
        return 1.0
    sign = np.array([1.0, 1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    return float((d * sign).sum() / variance)


def _translation(a: np.ndarray, b: np.ndarray) -> tuple[float, bool]:
    length, asked = _steps(a).sum(), _steps(b).sum()
    if asked < NO_TRANSLATION:
        return math.exp(-length / 3), False
    size = np.linalg.norm(a) * np.linalg.norm(b)
    cosine = float((a * b).sum() / size) if size > 0 else 0.0
    ratio = abs(math.log(max(length, 1e-12) / asked))
    off = np.linalg.norm(a - b, axis=1).mean() / (2 * max(asked / (len(b) - 1), 1.0))
    return 0.4 * (cosine + 1) / 2 + 0.3 * math.exp(-ratio) + 0.3 * math.exp(-off), True


def _rotation(A: np.ndarray, B: np.ndarray) -> tuple[float, bool]:
    turned, asked = (_degrees(R[:-1].transpose(0, 2, 1) @ R[1:]).sum() for R in (A, B))
    if asked < NO_ROTATION:
        return math.exp(-turned / 5), False
    error = _degrees(A.transpose(0, 2, 1) @ B)
    ratio = abs(math.log(max(turned, 1e-12) / asked))
    return 0.5 * math.exp(-error.mean() / 6) + 0.3 * math.exp(-error[-1] / 6) + 0.2 * math.exp(-ratio), True


def _steps(x: np.ndarray) -> np.ndarray:
    return np.linalg.norm(np.diff(x, axis=0), axis=1)


def _degrees(R: np.ndarray) -> np.ndarray:
    axis = np.stack([R[:, 2, 1] - R[:, 1, 2], R[:, 0, 2] - R[:, 2, 0], R[:, 1, 0] - R[:, 0, 1]], -1)
    return np.degrees(np.arctan2(np.linalg.norm(axis, axis=-1), np.trace(R, axis1=1, axis2=2) - 1))
