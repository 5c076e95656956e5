"""Camera paths: directions, exact orbits, gravity, composition, scaling, batching."""

import math

import numpy as np
import pytest
import torch

from world_r1 import camera
from world_r1.camera import PRESETS, Command, Preset, Segment
from world_r1.config import CameraConfig, VideoConfig

SIZE = (96, 160)
BLOCK, RELEASE = PRESETS["blockworld"], PRESETS["world_r1"]
TEXTS = [
    *camera.MOTIONS,
    "push in, then pan left",
    "push in and tilt up slowly, then orbit left, then pull out quickly",
    "orbit right and pan left",
]


def poses(text: str, preset: Preset = BLOCK, frames: int = 17) -> np.ndarray:
    command = camera.parse(text)
    assert command is not None
    return camera.trajectory(command, frames, SIZE, preset).c2w.astype(np.float64)


def level(preset: Preset) -> np.ndarray:
    """Rotation from the first camera's axes to axes with a vertical y."""
    c, s = math.cos(preset.pitch), math.sin(preset.pitch)
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
@pytest.mark.parametrize("frames", [1, 2, 18])
@pytest.mark.parametrize("text", TEXTS)
def test_poses_are_rigid_and_start_at_the_identity(text: str, frames: int, preset: Preset) -> None:
    c2w = poses(text, preset, frames)
    assert c2w.shape == (frames, 4, 4)
    assert (c2w[0] == np.eye(4)).all()
    rotation = c2w[:, :3, :3]
    np.testing.assert_allclose(rotation @ rotation.transpose(0, 2, 1), np.broadcast_to(np.eye(3), rotation.shape), atol=2e-6)
    assert (np.linalg.det(rotation) > 0).all()
    assert (c2w[:, 3] == [0, 0, 0, 1]).all()


@pytest.mark.parametrize(
    ("text", "position", "forward"),
    [
        ("fixed", (0, 0, 0), (0, 0)),
        ("push in", (0, 0, 1), (0, 0)),
        ("pull out", (0, 0, -1), (0, 0)),
        ("move left", (-1, 0, 0), (0, 0)),
        ("move right", (1, 0, 0), (0, 0)),
        ("move up", (0, -1, 0), (0, 0)),
        ("move down", (0, 1, 0), (0, 0)),
        ("pan left", (0, 0, 0), (-1, 0)),
        ("pan right", (0, 0, 0), (1, 0)),
        ("tilt up", (0, 0, 0), (0, -1)),
        ("tilt down", (0, 0, 0), (0, 1)),
        ("orbit left", (-1, 0, 1), (1, 0)),
        ("orbit right", (1, 0, 1), (-1, 0)),
    ],
)
def test_directions(text: str, position: tuple[int, ...], forward: tuple[int, ...]) -> None:
    """Signs of the movement and of the turn in level axes (x right, y down, z forward)."""
    up = level(BLOCK)
    last = poses(text)[-1]
    moved = up @ last[:3, 3]
    turned = up @ last[:3, 2] - up[:, 2]
    assert tuple(np.sign(np.round(moved, 5)).astype(int)) == position
    assert tuple(np.sign(np.round(turned[:2], 5)).astype(int)) == forward


@pytest.mark.parametrize("text", TEXTS)
def test_the_horizon_stays_level(text: str) -> None:
    right = poses(text)[:, :3, 0] @ level(BLOCK).T
    np.testing.assert_allclose(right[:, 1], 0.0, atol=1e-6)


def column_and_distance(c2w: np.ndarray, subject: np.ndarray, preset: Preset) -> tuple[np.ndarray, np.ndarray]:
    """Image column of a point of the first camera's frame, and its horizontal distance, over time."""
    seen = np.einsum("tji,tj->ti", c2w[:, :3, :3], subject - c2w[:, :3, 3])
    K = camera.intrinsics(SIZE, preset.fov_x)
    flat = (subject - c2w[:, :3, 3]) @ level(preset).T
    return K[0, 0] * seen[:, 0] / seen[:, 2] + K[0, 2], np.hypot(flat[:, 0], flat[:, 2])


@pytest.mark.parametrize("height", [-0.5, 0.0, 0.8])
@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
@pytest.mark.parametrize("text", ["orbit left", "orbit right quickly", "orbit left and tilt up", "orbit right and move up"])
def test_orbits_keep_the_subject_exactly_in_its_column(text: str, preset: Preset, height: float) -> None:
    subject = preset.depth * level(preset).T @ np.array([0.0, height, 1.0])
    column, distance = column_and_distance(poses(text, preset), subject, preset)
    np.testing.assert_allclose(column, SIZE[1] / 2, atol=2e-3)
    np.testing.assert_allclose(distance / preset.depth, 1.0, atol=2e-6)


@pytest.mark.parametrize(("before", "share"), [("push in", 1 - 0.8 * 0.42), ("pull out", 1 + 0.8 * 0.42), ("move up", 1.0)])
def test_an_orbit_after_a_dolly_goes_around_the_same_subject(before: str, share: float) -> None:
    subject = BLOCK.depth * level(BLOCK).T @ np.array([0.0, 0.0, 1.0])
    column, distance = column_and_distance(poses(f"{before}, then orbit left"), subject, BLOCK)
    np.testing.assert_allclose(column, SIZE[1] / 2, atol=2e-3)
    np.testing.assert_allclose(distance[8:] / BLOCK.depth, share, atol=2e-6)


def test_amplitudes_of_the_release() -> None:
    assert poses("push in", RELEASE)[-1][2, 3] == pytest.approx(600)
    assert poses("pull out", RELEASE)[-1][2, 3] == pytest.approx(-600)
    assert poses("move left", RELEASE)[-1][0, 3] == pytest.approx(-220)
    assert math.degrees(math.asin(poses("pan left", RELEASE)[-1][0, 2])) == pytest.approx(-14, abs=1e-4)
    orbit = poses("orbit right", RELEASE)[-1]
    assert math.degrees(math.asin(orbit[0, 2])) == pytest.approx(-24, abs=1e-4)
    np.testing.assert_allclose(
        orbit[:3, 3], [1000 * math.sin(math.radians(24)), 0, 1000 * (1 - math.cos(math.radians(24)))], atol=1e-3
    )
    np.testing.assert_allclose(camera.intrinsics((480, 832), RELEASE.fov_x)[0], [1.2 * 832, 0, 416], rtol=1e-6)
    # no scaling: every segment of a sequence has its full amplitude
    assert poses("push in, then pan left", RELEASE)[-1][2, 3] == pytest.approx(600)


def test_scaling_of_blockworld() -> None:
    dolly = lambda text: float(np.linalg.norm(poses(text)[-1][:3, 3])) / BLOCK.depth  # noqa: E731
    assert dolly("push in") == pytest.approx(0.42, abs=1e-5)
    assert dolly("push in slowly") == pytest.approx(0.42 * 0.6, abs=1e-5)
    assert dolly("push in quickly") == pytest.approx(0.42 * 1.35, abs=1e-5)
    assert dolly("push in and pan left") == pytest.approx(0.42 * 0.75, abs=1e-5)
    assert dolly("push in, then pan left") == pytest.approx(0.42 * 0.8, abs=1e-5)
    assert dolly("push in, then pan left, then tilt up") == pytest.approx(0.42 * 1.6 / 3, abs=1e-5)


def test_segments_share_the_time_at_constant_speed() -> None:
    c2w = poses("push in, then move right", frames=17)
    step = np.linalg.norm(np.diff(c2w[:, :3, 3], axis=0), axis=1)
    np.testing.assert_allclose(step[:8], step[0], rtol=1e-4)
    np.testing.assert_allclose(step[8:], step[8], rtol=1e-4)
    np.testing.assert_allclose(c2w[8, :3, 3], 0.8 * poses("push in")[-1][:3, 3], atol=1e-5)


def test_segments_compose_pose_on_pose() -> None:
    """A pan before a dolly turns the direction of the dolly, and a sequence equals its parts one after the other."""
    first, second, both = (poses(text, RELEASE) for text in ("pan right", "push in", "pan right, then push in"))
    np.testing.assert_allclose(both[-1], first[-1] @ second[-1], atol=1e-3)


def test_left_and_right_mirror_each_other() -> None:
    mirror = np.diag([-1.0, 1, 1, 1])
    for motion in ("move", "pan", "orbit"):
        np.testing.assert_allclose(mirror @ poses(f"{motion} left") @ mirror, poses(f"{motion} right"), atol=1e-6)


def test_path_is_batched_over_leading_dimensions() -> None:
    commands = [camera.parse(text) for text in ("push in, then pan left", "orbit left, then tilt up", "move up, then pull out")]
    controls = torch.stack([torch.as_tensor(camera.segment_controls(command, 9, BLOCK)) for command in commands if command])
    depth, pitch = torch.tensor([3.0, 3.6, 4.2]), torch.tensor([-0.1, -0.2, -0.3])
    batched = camera.path(controls, depth, pitch)
    assert batched.shape == (3, 9, 4, 4)
    assert batched.dtype == torch.float32
    for row, one, d, p in zip(batched, controls, depth, pitch, strict=True):
        assert torch.allclose(row, camera.path(one, float(d), float(p)), atol=1e-6)
    nested = camera.path(controls.expand(2, 3, 2, 9, 6), depth, pitch)
    assert torch.equal(nested[1], batched)


def test_an_idle_segment_changes_nothing() -> None:
    controls = torch.as_tensor(camera.segment_controls(Command((Segment(("orbit left",)),)), 9, BLOCK))
    idle = torch.cat([controls, torch.zeros_like(controls)])
    assert torch.equal(camera.path(idle, 3.6, -0.2), camera.path(controls, 3.6, -0.2))


def test_trajectory_for_a_prompt() -> None:
    video = VideoConfig(frames=17, height=97, width=161)
    found = camera.trajectory_for("Camera push in. A red box moves to the left.", video, CameraConfig())
    assert found is not None
    assert (found.command, found.size, found.depth, found.c2w.shape) == ("push in", (97, 161), 3.6, (17, 4, 4))
    assert found.c2w.dtype == found.K.dtype == np.float32
    assert 2 * math.degrees(math.atan(found.K[0, 2] / found.K[0, 0])) == pytest.approx(68, abs=1e-3)
    assert camera.trajectory_for("A red box moves to the left.", video, CameraConfig()) is None


def test_bad_sizes_are_refused() -> None:
    command = Command((Segment(("push in",)),))
    with pytest.raises(ValueError, match="at least one frame"):
        camera.trajectory(command, 0, SIZE, BLOCK)
    with pytest.raises(ValueError, match="positive size"):
        camera.trajectory(command, 5, (0, 160), BLOCK)
