"""S_traj and the motion gate on the moves that only plans have: roll, arc, crane, amounts, curves, a shaking hand, zoom."""

from __future__ import annotations

from typing import Any, cast

import cv2
import numpy as np
import pytest
from world_r1_rewards.scores._command import STILL, commanded_motion
from world_r1_rewards.scores.trajectory import TrajectoryReward, agreement

from world_r1 import camera
from world_r1.types import Clip, Prompt, Trajectory

PRESET = camera.PRESETS["blockworld"]
#: A command and its opposite.
PAIRS = [
    ("roll left", "roll right"),
    ("roll right 40 degrees", "roll left 40 degrees"),
    ("arc up", "arc down"),
    ("arc down slowly", "arc up slowly"),
    ("crane up", "crane down"),
    ("crane down quickly", "crane up quickly"),
    ("push in 2 metres", "pull out 2 metres"),
    ("orbit left 90 degrees accelerating", "orbit right 90 degrees accelerating"),
    ("pan left easing in and out for 1 second", "pan right easing in and out for 1 second"),
    ("crane up and orbit left, then roll right", "crane down and orbit right, then roll left"),
    ("push in, then roll left, handheld", "pull out, then roll right, handheld"),
]


def trajectory(text: str) -> Trajectory:
    plan = camera.parse_plan(text)
    assert plan is not None
    return camera.trajectory(plan, 17, (96, 160), PRESET)


def noisy(c2w: np.ndarray, depth: float, seed: int) -> np.ndarray:
    """Every pose jittered by 0.4 degrees and 0.4 % of the depth."""
    draw = np.random.default_rng(seed)
    out = c2w.astype(np.float64)
    for pose in out:
        pose[:3, :3] = pose[:3, :3] @ cv2.Rodrigues(draw.standard_normal(3) * np.radians(0.4) / np.sqrt(3))[0]
        pose[:3, 3] += draw.standard_normal(3) * 0.004 * depth / np.sqrt(3)
    return out


@pytest.mark.parametrize(("text", "opposite"), PAIRS)
def test_exact_beats_noisy_beats_static_beats_opposite(text: str, opposite: str) -> None:
    asked, wrong = trajectory(text), trajectory(opposite)
    still = np.tile(np.eye(4), (17, 1, 1))
    for seed in range(5):
        paths = (asked.c2w, noisy(asked.c2w, asked.depth, seed), still, wrong.c2w)
        exact, jittered, static, against = (
            agreement(path, asked.c2w, 7.0, asked.depth).value for path in _in_unit(paths, asked.depth)
        )
        assert exact == pytest.approx(1.0, abs=2e-3)
        assert exact > jittered > static > against
        assert jittered > 0.6


def _in_unit(paths: tuple[np.ndarray, ...], depth: float) -> list[np.ndarray]:
    """The paths in a unit in which the depth is 7."""
    found = [path.astype(np.float64) for path in paths]
    for path in found:
        path[:, :3, 3] *= 7.0 / depth
    return found


def test_a_shaking_hand_is_told_from_a_tripod() -> None:
    asked = trajectory("very shaky handheld")
    value = lambda path: agreement(path, asked.c2w, asked.depth, asked.depth).value  # noqa: E731
    exact, jittered, static = value(asked.c2w), value(noisy(asked.c2w, asked.depth, 0)), value(np.tile(np.eye(4), (17, 1, 1)))
    assert exact == pytest.approx(1.0, abs=2e-3)
    assert exact > jittered > static


class _Seen:
    """The part of a geometry that the motion gate reads."""

    keys, frames = np.array([4, 8, 12]), np.arange(0, 17, 2)
    pairs = np.ones((3, 9), bool)


@pytest.mark.parametrize("text", ["zoom in", "zoom out slightly", "roll left", "arc up", "crane down", "very shaky handheld"])
def test_new_moves_command_motion(text: str) -> None:
    """So a frozen clip does not pass the gate of the other rewards."""
    assert commanded_motion(trajectory(text), cast(Any, _Seen())) > STILL
    assert commanded_motion(trajectory("fixed"), cast(Any, _Seen())) < 1e-6


def test_a_zoom_displaces_in_proportion_to_its_factor() -> None:
    small, large = (commanded_motion(trajectory(f"zoom in {times} times"), cast(Any, _Seen())) for times in (1.2, 1.5))
    assert 1.5 < large / small < 3.0


def test_the_trajectory_reward_leaves_zooms_out() -> None:
    """A reconstruction with a constant focal length takes a zoom for a dolly, so its path says nothing about the command."""
    clip = lambda text: Clip("c", np.zeros((17, 96, 160, 3), np.uint8), Prompt("p", text), trajectory(text))  # noqa: E731
    assert TrajectoryReward().applies(clip("roll left"))
    assert not TrajectoryReward().applies(clip("push in and zoom out"))
