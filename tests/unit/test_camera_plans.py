"""Paths of camera plans: new moves, amounts, durations, curves, the shake of a hand, zoom; and the noise that follows them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from world_r1 import camera, noise
from world_r1.camera import PRESETS, CameraPlan, Preset, parse_plan
from world_r1.config import CameraConfig, NoiseConfig, VideoConfig
from world_r1.types import Trajectory

SIZE = (40, 56)
BLOCK, RELEASE = PRESETS["blockworld"], PRESETS["world_r1"]
TEXTS = [
    *(f"{move} {way}" for move, ways in (("roll", "left right"), ("arc", "up down"), ("crane", "up down")) for way in ways.split()),
    "zoom in",
    "handheld",
    "push in 2 metres and roll left 30 degrees, then arc up 40 degrees and orbit right, then zoom out 3 times for 1 second, handheld",
    "arc up 80 degrees, then arc up 80 degrees, then crane down",
]


def trajectory(text: str, preset: Preset = BLOCK, frames: int = 17, fps: float = 8.0) -> Trajectory:
    plan = parse_plan(text)
    assert plan is not None
    return camera.trajectory(plan, frames, SIZE, preset, fps)


def level(preset: Preset) -> np.ndarray:
    """Rotation from the first camera's axes to axes with a vertical y."""
    c, s = math.cos(preset.pitch), math.sin(preset.pitch)
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def subject_pixels(path: Trajectory, preset: Preset) -> tuple[np.ndarray, np.ndarray]:
    """Pixel [T, 2] and distance [T] (share of the first) of the point that the first camera looks at, `depth` away horizontally."""
    subject = level(preset).T @ np.array([0.0, -math.tan(preset.pitch), 1.0]) * preset.depth
    poses = path.c2w.astype(np.float64)
    seen = np.einsum("tji,tj->ti", poses[:, :3, :3], subject - poses[:, :3, 3])
    pixel = np.einsum("tij,tj->ti", path.Ks, seen)
    distance = np.linalg.norm(seen, axis=1)
    return pixel[:, :2] / pixel[:, 2:], distance / distance[0]


def turned(path: Trajectory) -> np.ndarray:
    """Rotation angle [T] in degrees relative to the first frame."""
    return np.degrees(np.arccos(np.clip((np.trace(path.c2w[:, :3, :3].astype(np.float64), axis1=1, axis2=2) - 1) / 2, -1, 1)))


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
@pytest.mark.parametrize("frames", [1, 2, 18])
@pytest.mark.parametrize("text", TEXTS)
def test_poses_are_rigid_and_start_at_the_identity(text: str, frames: int, preset: Preset) -> None:
    path = trajectory(text, preset, frames)
    assert path.c2w.shape == (frames, 4, 4)
    assert path.c2w.dtype == np.float32
    assert (path.c2w[0] == np.eye(4)).all()
    rotation = path.c2w[:, :3, :3].astype(np.float64)
    np.testing.assert_allclose(rotation @ rotation.transpose(0, 2, 1), np.broadcast_to(np.eye(3), rotation.shape), atol=2e-6)
    assert (np.linalg.det(rotation) > 0).all()
    assert path.zoom is None or (path.zoom.shape == (frames,) and path.zoom[0] == 1 and path.zoom.dtype == np.float32)


@pytest.mark.parametrize(
    ("text", "position", "forward", "right"),
    [
        ("roll right", (0, 0, 0), (0, 0), 1),
        ("roll left", (0, 0, 0), (0, 0), -1),
        ("arc up", (0, -1, 1), (0, 1), 0),
        ("crane up", (0, -1, 0), (0, 1), 0),
        ("crane down", (0, 1, 0), (0, -1), 0),
        ("zoom in", (0, 0, 0), (0, 0), 0),
    ],
)
def test_directions(text: str, position: tuple[int, ...], forward: tuple[int, ...], right: int) -> None:
    """Signs of the movement and of the turn in level axes (x right, y down, z forward), and of the vertical of the right axis."""
    up, last = level(BLOCK), trajectory(text).c2w[-1].astype(np.float64)
    assert tuple(np.sign(np.round(up @ last[:3, 3], 5)).astype(int)) == position
    assert tuple(np.sign(np.round(up @ last[:3, 2] - up[:, 2], 5)).astype(int)[:2]) == forward
    assert int(np.sign(np.round((up @ last[:3, 0])[1], 5))) == right


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_an_arc_keeps_the_subject_in_place_and_at_its_distance(preset: Preset) -> None:
    for text in ("arc up", "arc down", "arc up 50 degrees", "orbit left, then arc up", "arc up and orbit right slowly"):
        pixel, distance = subject_pixels(trajectory(text, preset), preset)
        np.testing.assert_allclose(pixel, np.broadcast_to([SIZE[1] / 2, SIZE[0] / 2], pixel.shape), atol=2e-3)
        np.testing.assert_allclose(distance, 1.0, atol=2e-6)


def test_an_arc_stops_before_it_turns_over() -> None:
    last = level(BLOCK) @ trajectory("arc up 90 degrees, then arc up 90 degrees").c2w[-1, :3, 2].astype(np.float64)
    assert math.degrees(math.asin(last[1])) == pytest.approx(80, abs=0.01)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_a_crane_rises_straight_and_keeps_its_aim(preset: Preset) -> None:
    path = trajectory("crane up", preset)
    pixel, _ = subject_pixels(path, preset)
    np.testing.assert_allclose(pixel[:, 1], SIZE[0] / 2, atol=2e-3)
    moved = path.c2w[:, :3, 3] @ level(preset).T / preset.depth
    np.testing.assert_allclose(moved[-1], [0, -preset.crane, 0], atol=1e-5)


def test_amounts_are_exact_whatever_else_happens() -> None:
    for text in ("pan left 30 degrees", "tilt up 30 degrees slowly", "roll right 30 degrees", "orbit left 30 degrees and zoom in"):
        assert turned(trajectory(text))[-1] == pytest.approx(30, abs=1e-3)
    for metres in (0.5, 2.0):
        moved = np.linalg.norm(trajectory(f"push in {metres:g} metres and pan left, then zoom in").c2w[-1, :3, 3])
        assert moved / BLOCK.depth == pytest.approx(metres / BLOCK.metres, abs=1e-5)
    assert trajectory("zoom in 2 times").Ks[-1, 0, 0] == pytest.approx(2 * trajectory("zoom in").K[0, 0], rel=1e-5)
    assert trajectory("zoom out 2 times").Ks[-1, 0, 0] == pytest.approx(0.5 * trajectory("zoom in").K[0, 0], rel=1e-5)


def test_amounts_never_run_into_the_subject() -> None:
    far = lambda text: np.linalg.norm(trajectory(text).c2w[-1, :3, 3]) / BLOCK.depth  # noqa: E731
    assert far("push in 500 metres") == pytest.approx(0.8, abs=1e-5)
    assert far("pull out 500 metres") == pytest.approx(1.5, abs=1e-5)
    zoom = trajectory("zoom in 10 times, then zoom in 10 times").zoom
    assert zoom is not None
    assert zoom[-1] == pytest.approx(10, rel=1e-5)


def test_speed_and_extent_scale_the_amplitude() -> None:
    dolly = lambda text: float(np.linalg.norm(trajectory(text).c2w[-1, :3, 3])) / BLOCK.depth  # noqa: E731
    assert dolly("push in very slowly") == pytest.approx(0.42 * 0.35, abs=1e-5)
    assert dolly("push in slightly") == pytest.approx(0.42 * 0.4, abs=1e-5)
    assert dolly("push in far quickly") == pytest.approx(0.42 * 1.35 * 1.6, abs=1e-5)
    assert dolly("push in slowly and pan left quickly") == pytest.approx(0.42 * 0.6 * 0.75, abs=1e-5)
    zoom = trajectory("zoom in slightly").zoom
    assert zoom is not None
    assert zoom[-1] == pytest.approx(BLOCK.zoom**0.4, rel=1e-5)


def test_an_amount_at_high_speed_is_over_sooner() -> None:
    angle = turned(trajectory("pan left 30 degrees very quickly", frames=19))
    assert angle[10] == pytest.approx(30, abs=1e-3)  # 18 / 1.8 steps
    assert angle[5] == pytest.approx(15, abs=1e-3)


@pytest.mark.parametrize(
    ("curve", "shares"),
    [("", (0.25, 0.5, 0.75)), ("accelerating", (1 / 16, 1 / 4, 9 / 16)), ("decelerating", (7 / 16, 3 / 4, 15 / 16)),
     ("easing in and out", (5 / 32, 1 / 2, 27 / 32))],
)  # fmt: skip
def test_speed_curves(curve: str, shares: tuple[float, ...]) -> None:
    moved = np.linalg.norm(trajectory(f"push in {curve}".strip()).c2w[:, :3, 3], axis=1)
    np.testing.assert_allclose(moved[[4, 8, 12]] / moved[-1], shares, atol=1e-5)


def test_durations() -> None:
    """17 frames at 8 a second are 2 seconds."""
    steps = lambda text, fps=8.0: np.linalg.norm(np.diff(trajectory(text, fps=fps).c2w[:, :3, 3], axis=0), axis=1) > 1e-6  # noqa: E731
    assert steps("push in for 0.5 seconds").tolist() == [True] * 4 + [False] * 12
    assert steps("fixed for 1.5 seconds, then push in").tolist() == [False] * 12 + [True] * 4
    assert steps("push in for 9 seconds").all()
    assert steps("fixed for 6 seconds, then push in for 2 seconds").tolist() == [False] * 12 + [True] * 4
    assert steps("push in for 0.5 seconds", fps=4.0).tolist() == [True] * 2 + [False] * 14
    # a step without a duration is never crushed by others that fill the clip: a quarter of their mean
    squeezed = steps("fixed for 8 seconds, then push in")
    assert squeezed.sum() == 4


def test_the_shake_of_a_hand_is_small_smooth_and_repeatable() -> None:
    still, shaky = trajectory("handheld", frames=49), trajectory("very shaky handheld", frames=49)
    assert 0.3 < turned(still).max() < 2.5
    assert turned(shaky).max() == pytest.approx(2 * turned(still).max(), rel=0.02)
    assert np.abs(still.c2w[:, :3, 3]).max() < 0.01 * BLOCK.depth
    assert np.array_equal(still.c2w, trajectory("handheld", frames=49).c2w)
    moving, plain = trajectory("pan left, handheld", frames=49), trajectory("pan left", frames=49)
    difference = np.linalg.inv(plain.c2w.astype(np.float64)) @ moving.c2w
    assert 0.2 < turned(replace(still, c2w=difference)).max() < 2.5


def test_a_plan_without_news_is_the_command_to_the_bit() -> None:
    for text in ("push in and tilt up slowly, then orbit left, then pull out quickly", "fixed", "move down, then pan right"):
        command, plan = camera.parse(text), parse_plan(text)
        assert command is not None
        assert plan == CameraPlan.of(command)
        for preset in PRESETS.values():
            one, other = camera.trajectory(command, 17, SIZE, preset), camera.trajectory(plan, 17, SIZE, preset)
            assert one.c2w.tobytes() == other.c2w.tobytes()
            assert (one.command, one.zoom) == (other.command, other.zoom)
        controls = torch.as_tensor(camera.segment_controls(plan, 17, BLOCK)).double()
        assert controls.shape[-1] == len(camera.PLAN_CONTROLS) == 9
        assert torch.equal(camera.path(controls, 3.6, -0.2), camera.path(controls[..., :6], 3.6, -0.2))


def test_trajectory_for_a_prompt_with_news() -> None:
    video = VideoConfig(frames=17, height=97, width=161, fps=4.0)
    found = camera.trajectory_for(
        "The camera rolls left, zooming in, for one second. A red box moves to the left.", video, CameraConfig()
    )
    assert found is not None
    assert found.command == "roll left, then zoom in for 1 second"
    assert found.zoom is not None
    assert found.Ks.shape == (17, 3, 3)
    assert (found.Ks[:, 2] == [0, 0, 1]).all()
    assert (found.Ks[:, 0, 2] == found.K[0, 2]).all()


# ---- noise

GRID, CHANNELS = (3, 5, 7), 3000


def test_noise_maps_of_all_new_moves_are_valid() -> None:
    for preset in PRESETS.values():
        for text in TEXTS:
            where = noise.noise_map(trajectory(text, preset), GRID, 4)
            assert where.ids.shape == (3, 5 * 7 * 16)
            assert torch.isfinite(where.weight).all()


@pytest.mark.parametrize("text", ["roll left", "zoom in", "zoom out 2 times and pan left", "crane up, handheld"])
def test_noise_of_new_moves_is_white_in_every_frame_and_follows_the_camera(text: str) -> None:
    x = noise.initial_noise(trajectory(text), (CHANNELS, *GRID), NoiseConfig(degradation=0, fine=8), 7)
    flat = x.flatten(2).double().numpy()
    bound = 5.0 / math.sqrt(CHANNELS)
    for frame in range(3):
        covariance = flat[:, frame].T @ flat[:, frame] / CHANNELS
        assert np.abs(covariance - np.eye(35)).max() < bound * 1.5
    assert np.abs(flat[:, 0].T @ flat[:, 2] / CHANNELS).max() > 0.15


@pytest.mark.parametrize(("text", "anchor"), [("zoom in", 0), ("zoom out", 2)])
def test_the_widest_view_of_a_zoom_is_the_anchor(text: str, anchor: int) -> None:
    assert noise.noise_map(trajectory(text), GRID, 8).anchor == anchor


def test_a_zoom_by_two_enlarges_the_cells_by_two() -> None:
    """Pixels of the last frame have the cell of the first frame's pixel half as far from the centre."""
    where = noise.noise_map(trajectory("zoom in 2 times", frames=2), (2, 5, 7), 8)
    first, last = (_image(where, frame) for frame in (0, 1))
    rows, columns = np.mgrid[0:40, 0:56]
    source = first[((rows + 0.5 - 20) / 2 + 20).astype(int), ((columns + 0.5 - 28) / 2 + 28).astype(int)]
    assert (source == last).mean() > 0.999


def _image(where: noise.NoiseMap, frame: int) -> np.ndarray:
    """Cells of a frame [h fine, w fine] in image order."""
    _, h, w = where.grid
    return where.ids[frame].view(h, w, where.fine, where.fine).permute(0, 2, 1, 3).reshape(h * where.fine, -1).numpy()


def test_a_malformed_zoom_is_refused() -> None:
    path = trajectory("zoom in")
    for zoom in (np.ones(3, np.float32), np.zeros(17, np.float32), np.full(17, np.nan, np.float32)):
        with pytest.raises(ValueError, match="zoom"):
            noise.noise_map(replace(path, zoom=zoom), GRID, 4)
