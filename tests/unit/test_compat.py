"""The public release's trajectory score, held against the figures that were measured on it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from world_r1_rewards.scores.compat.world_r1_trajectory import agreement

from world_r1 import camera
from world_r1.reward import SCORES, Reward, available, load

PRESET = camera.PRESETS["world_r1"]


def path(move: str, frames: int = 81) -> np.ndarray:
    command = camera.Command((camera.Segment((move,), 1.0),))
    controls = torch.from_numpy(camera.segment_controls(command, frames, PRESET)).double()
    return camera.path(controls, PRESET.depth, PRESET.pitch).numpy()


def unit(poses: np.ndarray) -> np.ndarray:
    """In the unit of a reconstruction: the path about as long as one."""
    out = poses.copy()
    out[:, :3, 3] /= max(np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1).sum(), 1.0)
    return out


STILL = np.tile(np.eye(4), (81, 1, 1))


@pytest.mark.parametrize("move", ["push in", "pull out", "move left"])
def test_a_perfect_straight_path_caps_at_half(move: str) -> None:
    assert agreement(unit(path(move)), path(move))["value"] == pytest.approx(0.52, abs=0.01)


def test_orbit_fixed_and_still() -> None:
    assert agreement(unit(path("orbit left")), path("orbit left"))["value"] > 0.97
    assert agreement(STILL, path("fixed"))["value"] == pytest.approx(1.0)
    assert agreement(STILL, path("push in"))["value"] < 0.45
    assert agreement(unit(path("orbit right")), path("orbit left"))["value"] < 0.45


def test_it_is_there_under_a_name_that_says_what_it_is() -> None:
    assert {"compat.world_r1_trajectory", "compat.world_r1_reconstruction"} <= set(available(SCORES))
    reward = load("compat.world_r1_trajectory", SCORES, Reward)
    assert reward.name.startswith("compat.")  # type: ignore[attr-defined]
    assert "comparison only" in (__import__(reward.__module__, fromlist=["x"]).__doc__ or "")
