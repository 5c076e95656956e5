"""What a commanded camera path asks for, in numbers that a clip can be held against."""

from __future__ import annotations

import math

import numpy as np

from world_r1.types import Clip, Trajectory
from world_r1_rewards.probes._geometry import Geometry

#: Commands that displace the picture by less than this share of the width ask for stillness.
STILL = 0.004
#: Full credit for motion from this share of what was commanded: depth is ambiguous, so the amount is soft.
ENOUGH = 0.35
#: Without a command: displacement (share of the width) that counts as a moving camera.
ABSOLUTE = 0.012


def commanded_motion(trajectory: Trajectory, geometry: Geometry) -> float:
    """Mean displacement over the width that the command causes, over the pairs of frames that `geometry` measured.

    The scene stands in as points at the subject's distance, half of it and twice it.
    """
    height, width = trajectory.size
    x, y = np.meshgrid((np.arange(8) + 0.5) * width / 8, (np.arange(5) + 0.5) * height / 5)
    pixel = np.stack([x, y, np.ones_like(x)], -1).reshape(-1, 3)
    start = np.tile(pixel[:, :2], (3, 1))
    moves = []
    poses, K = trajectory.c2w.astype(np.float64), trajectory.Ks.astype(np.float64)
    for a, key in enumerate(geometry.keys):
        rays = pixel @ np.linalg.inv(K[key]).T
        points = np.concatenate([rays * trajectory.depth * share for share in (0.5, 1.0, 2.0)])
        for b, frame in enumerate(geometry.frames):
            if not geometry.pairs[a, b]:
                continue
            relative = np.linalg.inv(poses[frame]) @ poses[key]
            seen = points @ relative[:3, :3].T + relative[:3, 3]
            image = seen @ K[frame].T
            at = image[:, :2] / np.maximum(image[:, 2:], 1e-6)
            inside = (seen[:, 2] > 0.05 * trajectory.depth) & (at >= 0).all(1) & (at <= (width, height)).all(1)
            if inside.any():
                moves.append(np.linalg.norm(at - start, axis=1)[inside].mean())
    return float(np.mean(moves)) / width if moves else 0.0


def motion_gate(clip: Clip, geometry: Geometry) -> float:
    """0..1: 1 when the clip moves as much as was commanded (softly), 0 for a frozen clip that should move, 1 if stillness was asked."""
    if clip.trajectory is None:
        return 1.0 - math.exp(-((geometry.motion / ABSOLUTE) ** 1.5))
    commanded = commanded_motion(clip.trajectory, geometry)
    if commanded < STILL:
        return 1.0
    share = geometry.motion / (ENOUGH * commanded)
    return float(min(1.0, share) ** 1.5)


def ramp(value: float, low: float, high: float) -> float:
    """0 at `low`, 1 at `high`, straight between."""
    return float(np.clip((value - low) / (high - low), 0.0, 1.0))
