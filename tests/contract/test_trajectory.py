"""S_traj is monotone: exact > noisy > static > opposite, for every command, at any speed and in any unit of length."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from world_r1_rewards.scores.trajectory import agreement

from world_r1 import camera

PRESET = camera.PRESETS["blockworld"]
OPPOSITE = {"in": "out", "out": "in", "left": "right", "right": "left", "up": "down", "down": "up", "push": "pull", "pull": "push"}
MOVING = [move for move in camera.MOTIONS if move != "fixed"]
SPEEDS, SCALES = (0.4, 0.7, 1.0, 1.5, 2.2), (1e-3, 0.2, 1.0, 30.0, 1e4)


def _path(*moves: str, speed: float = 1.0) -> tuple[np.ndarray, float]:
    """c2w [17, 4, 4] float64 of moves one after another with their amplitudes times `speed`, and the depth."""
    command = camera.Command(tuple(camera.Segment((move,), 1.0) for move in moves))
    controls = torch.from_numpy(camera.segment_controls(command, 17, PRESET)).double() * speed
    return camera.path(controls, PRESET.depth, PRESET.pitch).numpy(), PRESET.depth


def _opposite(move: str) -> str:
    return " ".join(OPPOSITE.get(word, word) for word in move.split())


def _similar(path: np.ndarray, scale: float, seed: int = 0) -> np.ndarray:
    """The same path in another world frame and unit."""
    draw = np.random.default_rng(seed)
    turn = np.linalg.qr(draw.standard_normal((3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    out = path.copy()
    out[:, :3, :3] = turn @ path[:, :3, :3]
    out[:, :3, 3] = scale * (path[:, :3, 3] @ turn.T + draw.standard_normal(3))
    return out


def _noisy(path: np.ndarray, depth: float, seed: int = 0) -> np.ndarray:
    """Every pose jittered by 0.4 degrees and 0.4 % of the depth."""
    draw = np.random.default_rng(seed)
    out = path.copy()
    for pose in out:
        pose[:3, :3] = pose[:3, :3] @ cv2.Rodrigues(draw.standard_normal(3) * np.radians(0.4) / np.sqrt(3))[0]
        pose[:3, 3] += draw.standard_normal(3) * 0.004 * depth / np.sqrt(3)
    return out


@pytest.mark.parametrize("speed", SPEEDS)
@pytest.mark.parametrize("move", MOVING)
def test_exact_beats_noisy_beats_static_beats_opposite(move: str, speed: float) -> None:
    asked, depth = _path(move, speed=speed)
    opposite, _ = _path(_opposite(move), speed=speed)
    still = np.tile(np.eye(4), (17, 1, 1))
    for seed, scale in enumerate(SCALES):
        value = lambda path: agreement(_similar(path, scale, seed), asked, scale * depth, depth).value  # noqa: B023, E731
        exact, noisy, static, wrong = value(asked), value(_noisy(asked, depth, seed)), value(still), value(opposite)
        assert exact == pytest.approx(1.0, abs=2e-3)
        assert exact > noisy > static > wrong
        assert noisy > 0.6
        assert static < (0.35 if speed >= 1 else 0.6)


@pytest.mark.parametrize(
    "moves", [("push in", "pan left"), ("orbit left", "push in"), ("move up", "move left"), ("tilt down", "pull out")]
)
def test_sequences_are_monotone_too(moves: tuple[str, str]) -> None:
    asked, depth = _path(*moves)
    values = [
        agreement(p, asked, depth, depth).value
        for p in (asked, _noisy(asked, depth), np.tile(np.eye(4), (17, 1, 1)), _path(*map(_opposite, moves))[0])
    ]
    assert values == sorted(values, reverse=True)
    assert values[0] == pytest.approx(1.0, abs=2e-3)


def test_jitter_costs_in_proportion() -> None:
    asked, depth = _path("orbit left")
    values = []
    for share in (0.0, 0.25, 0.5, 1.0):
        blend = _noisy(asked, depth)
        blend[:, :3, 3] = asked[:, :3, 3] + 8 * share * (blend[:, :3, 3] - asked[:, :3, 3])
        values.append(agreement(blend, asked, depth, depth).translation)
    assert values == sorted(values, reverse=True)
    assert len(set(values)) == 4


def test_fixed_wants_stillness() -> None:
    asked, depth = _path("fixed")
    drifting = [agreement(_path("move left", speed=s)[0], asked, depth, depth).value for s in (0.05, 0.2, 1.0)]
    turning = [agreement(_path("pan left", speed=s)[0], asked, depth, depth).value for s in (0.05, 0.2, 1.0)]
    still = agreement(asked, asked, depth, depth).value
    assert still == pytest.approx(1.0, abs=1e-6)
    assert [still, *drifting] == sorted([still, *drifting], reverse=True)
    assert [still, *turning] == sorted([still, *turning], reverse=True)
    assert drifting[-1] < 0.6


def test_right_direction_at_half_speed_is_between_static_and_exact() -> None:
    for move in MOVING:
        asked, depth = _path(move)
        half = agreement(_path(move, speed=0.25)[0], asked, depth, depth).value
        assert agreement(np.tile(np.eye(4), (17, 1, 1)), asked, depth, depth).value < half < 1.0
