"""S_traj: did the camera go where it was told to?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from world_r1.reward import Reward
from world_r1.types import Clip, Score
from world_r1_rewards.probes._geometry import Geometry

#: Rotation errors are measured against this share of the commanded rotation plus a floor for estimation noise (radians).
ROTATION_SHARE, ROTATION_FLOOR = 0.35, math.radians(1.5)
#: Commands that move less than this (share of the depth; radians) do not translate, or do not rotate.
NO_TRANSLATION, NO_ROTATION = 0.005, math.radians(0.3)
#: Drift (share of the depth) at which a camera that should not translate scores 1/e.
DRIFT = 0.08
#: Amplitudes within these factors of the command get full credit: monocular depth is soft.
SHORT, LONG = 0.4, 2.5


class Agreement(NamedTuple):
    """Parts of the trajectory score, each in 0..1, and the weight of rotation."""

    rotation: float
    translation: float
    share: float

    @property
    def value(self) -> float:
        """Weighted geometric mean."""
        return self.rotation**self.share * self.translation ** (1 - self.share)


def agreement(estimated: np.ndarray, commanded: np.ndarray, estimated_depth: float, commanded_depth: float) -> Agreement:
    """Compare two paths c2w [T, 4, 4]; depths are distances of the scene in the unit of each path, so units cancel.

    Orientation is aligned by the rotation that fits all frames best and positions by their means, so that no single frame's error
    (the first, as is usual) shifts all others. The scale of the estimate never enters: its amplitude is only compared, generously,
    in units of its own depth. Rotation: exp(-rms error / (35 % of the commanded rms + 1.5 degrees)). Translation: the angle between the two
    centred paths as vectors of all positions: direction and shape at once, 1 for the same, 1/8 for none, 0 for opposite.
    """
    R, R_star = (x[:, :3, :3].astype(np.float64) for x in (estimated, commanded))
    align = _nearest_rotation(np.einsum("tij,tkj->ik", R_star, R))
    error = _rms(_angles(np.einsum("tji,jk,tkl->til", R_star, align, R)))
    middle = _nearest_rotation(R_star.sum(0))
    turned = _rms(_angles(np.einsum("ji,tjk->tik", middle, R_star)))
    rotation = math.exp(-error / (ROTATION_SHARE * turned + ROTATION_FLOOR))
    moved = estimated[:, :3, 3].astype(np.float64) @ align.T / estimated_depth
    asked = commanded[:, :3, 3].astype(np.float64) / commanded_depth
    moved, asked = moved - moved.mean(0), asked - asked.mean(0)
    amount = _rms(np.linalg.norm(asked, axis=1))
    translation = _translation(moved, asked, amount)
    share = 0.5
    if max(amount, turned) > 0 and (amount > NO_TRANSLATION or turned > NO_ROTATION):
        share = float(np.clip(turned / (turned + amount), 0.2, 0.8))
    return Agreement(rotation, translation, share)


def _translation(moved: np.ndarray, asked: np.ndarray, amount: float) -> float:
    size = _rms(np.linalg.norm(moved, axis=1))
    if amount < NO_TRANSLATION:
        return math.exp(-size / DRIFT)
    if size < 1e-9:
        return 0.125
    cosine = float((moved * asked).sum() / np.linalg.norm(moved) / np.linalg.norm(asked))
    alike = 1 - 2 * math.acos(min(1.0, max(-1.0, cosine))) / math.pi
    ratio = size / amount
    signed = alike * min(1.0, ratio / SHORT) * min(1.0, LONG / ratio)
    return ((1 + signed) / 2) ** 3


def _nearest_rotation(M: np.ndarray) -> np.ndarray:
    u, _, vt = np.linalg.svd(M)
    return u @ np.diag([1.0, 1.0, np.sign(np.linalg.det(u @ vt))]) @ vt


def _angles(R: np.ndarray) -> np.ndarray:
    """[T] rotation angles in radians, accurate near zero."""
    axis = np.stack([R[:, 2, 1] - R[:, 1, 2], R[:, 0, 2] - R[:, 2, 0], R[:, 1, 0] - R[:, 0, 1]], -1)
    return np.arctan2(np.linalg.norm(axis, axis=-1), np.trace(R, axis1=1, axis2=2) - 1)


def _rms(x: np.ndarray) -> float:
    return float(np.sqrt((x * x).mean()))


class TrajectoryReward(Reward):
    """Agreement of the estimated with the commanded camera path, in [0, 1]; applies to clips with a command only.

    A commanded zoom is not judged: the reconstruction holds the focal length constant, so it would take the zoom for a dolly.

    Weighted geometric mean of rotation and translation (see `agreement`): exact 1, a still camera about a quarter, the opposite path
    below that.
    """

    name, needs = "trajectory", ("geometry",)
    parts = ("rotation", "translation", "rotation_share")

    def applies(self, clip: Clip) -> bool:
        return clip.trajectory is not None and clip.trajectory.zoom is None

    def score(self, clip: Clip, evidence: Mapping[str, Any]) -> Score:
        geometry: Geometry = evidence["geometry"]
        assert clip.trajectory is not None
        if len(geometry.c2w) != len(clip.trajectory.c2w):
            return self.missing(f"{len(geometry.c2w)} estimated poses for {len(clip.trajectory.c2w)} commanded ones", "failed")
        at = geometry.frames
        found = agreement(geometry.c2w[at], clip.trajectory.c2w[at], geometry.scene_depth, clip.trajectory.depth)
        return self.ok(found.value, rotation=found.rotation, translation=found.translation, rotation_share=found.share)
