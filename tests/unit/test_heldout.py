"""Held-out geometry against clips whose truth is known: a textured floor and wall seen by an exact camera, and spoilt copies of them."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from world_r1 import camera, heldout, plane_sweep
from world_r1.types import Trajectory

SIZE, FRAMES = (66, 110), 9
PRESET = camera.PRESETS["blockworld"]
COMMANDS = ("move right", "push in", "orbit left", "pan right", "tilt up")


def path(command: str) -> Trajectory:
    parsed = camera.parse(f"Camera {command}.")
    assert parsed is not None
    return camera.trajectory(parsed, FRAMES, SIZE, PRESET)


def texture(u: np.ndarray, v: np.ndarray, seed: int) -> np.ndarray:
    """Smooth noise with a checker, in surface coordinates."""
    grid = np.random.default_rng(seed).uniform(0, 1, (64, 64)).astype(np.float32)
    noise = cv2.remap(grid, (u * 3 % 63).astype(np.float32)[None], (v * 3 % 63).astype(np.float32)[None], cv2.INTER_LINEAR)[0]
    return 0.35 + 0.35 * noise + 0.3 * ((np.floor(u * 1.2) + np.floor(v * 1.2)) % 2)


def render(trajectory: Trajectory, seed: int = 0) -> np.ndarray:
    """[T, H, W, 3] uint8 of a floor 1.4 below the first camera and a wall 6 in front of it; twice supersampled."""
    height, width = (2 * side for side in SIZE)
    c, s = np.cos(PRESET.pitch), np.sin(PRESET.pitch)
    base = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    ys, xs = np.mgrid[:height, :width]
    pixels = np.stack([(xs.ravel() + 0.5) / 2, (ys.ravel() + 0.5) / 2, np.ones(xs.size)])
    frames = []
    for pose in trajectory.c2w.astype(np.float64):
        direction = base @ pose[:3, :3] @ np.linalg.inv(trajectory.K) @ pixels
        origin = (base @ pose[:3, 3])[:, None]
        with np.errstate(divide="ignore"):
            floor = np.where(direction[1] > 1e-6, (1.4 - origin[1]) / direction[1], np.inf)
            wall = np.where(direction[2] > 1e-6, (6.0 - origin[2]) / direction[2], np.inf)
        t = np.minimum(np.minimum(floor, wall), 1e3)
        point = origin + t * direction
        ground = floor < wall
        u, v = point[0] + 40, np.where(ground, point[2], point[1]) + 40
        value = np.where(ground, texture(u, v, seed), texture(u, v, seed + 1) * 0.8).reshape(height, width)
        frames.append(cv2.resize(value.astype(np.float32), SIZE[::-1], interpolation=cv2.INTER_AREA))
    gray = (np.clip(np.stack(frames), 0, 1) * 255).round().astype(np.uint8)
    return np.stack([gray, gray, gray], -1)


def wobble(video: np.ndarray, amount: float, seed: int = 3) -> np.ndarray:
    """Every frame bent by its own smooth random field of `amount` px."""
    rng = np.random.default_rng(seed)
    ys, xs = np.mgrid[: SIZE[0], : SIZE[1]].astype(np.float32)
    bent = []
    for frame in video:
        field = cv2.resize(rng.normal(size=(4, 6, 2)).astype(np.float32), SIZE[::-1], interpolation=cv2.INTER_CUBIC) * amount
        bent.append(cv2.remap(frame, xs + field[..., 0], ys + field[..., 1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT))
    return np.stack(bent)


def stretched(video: np.ndarray, factor: float) -> np.ndarray:
    return np.clip((video.astype(np.float64) - 128) * factor + 128, 0, 255).round().astype(np.uint8)


def values(video: np.ndarray, trajectory: Trajectory | None) -> dict[str, float]:
    return {name: np.nan if value is None else value for name, value in heldout.measure(video, trajectory).values.items()}


@pytest.fixture(scope="module")
def clips() -> dict[str, tuple[Trajectory, np.ndarray]]:
    return {command: (path(command), render(path(command), seed)) for seed, command in enumerate(COMMANDS)}


@pytest.mark.parametrize("command", COMMANDS)
def test_consistent_beats_wobble_in_every_3d_metric(clips: dict[str, tuple[Trajectory, np.ndarray]], command: str) -> None:
    trajectory, video = clips[command]
    true, mild, strong = (values(clip, trajectory) for clip in (video, wobble(video, 0.7), wobble(video, 1.6)))
    assert true["plane_sweep"] > mild["plane_sweep"] + 0.05 > strong["plane_sweep"] + 0.1
    assert true["sampson"] < 0.7 * mild["sampson"] < 0.7 * strong["sampson"]
    assert true["inliers"] > mild["inliers"] + 0.05 > strong["inliers"] + 0.1
    assert true["forward_backward"] < strong["forward_backward"]
    assert true["plane_sweep"] > 0.6
    assert true["inliers"] > 0.6


@pytest.mark.parametrize("command", COMMANDS)
def test_wrong_camera_is_found_and_the_world_stays_consistent(
    clips: dict[str, tuple[Trajectory, np.ndarray]], command: str
) -> None:
    trajectory, video = clips[command]
    opposite = {
        "move right": "move left",
        "push in": "pull out",
        "orbit left": "orbit right",
        "pan right": "pan left",
        "tilt up": "tilt down",
    }
    right, wrong = values(video, trajectory), values(video, path(opposite[command]))
    assert right["plane_sweep"] > wrong["plane_sweep"] + 0.3
    assert right["camera"] > 0.7
    assert wrong["camera"] < -0.5
    assert wrong["sampson"] == right["sampson"]  # no command enters the epipolar residual


def test_a_frozen_clip_scores_nothing_and_has_no_geometry(clips: dict[str, tuple[Trajectory, np.ndarray]]) -> None:
    trajectory, video = clips["orbit left"]
    frozen = heldout.measure(np.repeat(video[:1], FRAMES, 0), trajectory)
    assert frozen.values["plane_sweep"] == pytest.approx(0.0, abs=0.02)
    assert frozen.values["motion"] == pytest.approx(0.0, abs=0.01)
    assert frozen.values["camera"] == pytest.approx(0.0, abs=0.05)
    for name in ("sampson", "inliers", "forward_backward"):
        assert frozen.values[name] is None
        assert "frozen" in frozen.missing[name]


@pytest.mark.parametrize("factor", [0.5, 1.4])
def test_contrast_buys_nothing(clips: dict[str, tuple[Trajectory, np.ndarray]], factor: float) -> None:
    trajectory, video = clips["move right"]
    spoilt = wobble(video, 0.8)
    low, high = values(stretched(spoilt, 0.6), trajectory), values(stretched(stretched(spoilt, 0.6), factor), trajectory)
    assert high["plane_sweep"] == pytest.approx(low["plane_sweep"], abs=0.02)
    assert high["sampson"] == pytest.approx(low["sampson"], rel=0.08)
    assert high["inliers"] == pytest.approx(low["inliers"], abs=0.03)
    assert high["contrast"] == pytest.approx(factor * low["contrast"], rel=0.05)


def test_amplitude_is_forgiven_direction_is_not(clips: dict[str, tuple[Trajectory, np.ndarray]]) -> None:
    trajectory, _ = clips["orbit left"]
    smaller = Trajectory(plane_sweep.scaled_path(trajectory.c2w, 0.7).astype(np.float32), trajectory.K, SIZE, trajectory.depth)
    gray = render(smaller, 2)[..., 0]
    found = plane_sweep.plane_sweep(gray, trajectory)
    assert found.amplitude == pytest.approx(0.7)
    assert found.score > 0.5


def test_sweep_finds_the_depth_of_the_wall(clips: dict[str, tuple[Trajectory, np.ndarray]]) -> None:
    trajectory, video = clips["move right"]
    found = plane_sweep.plane_sweep(video[..., 0], trajectory)
    top = found.depth[: len(found.depth) // 4]
    wall = 6.0 / np.cos(PRESET.pitch)  # roughly: the first camera looks down
    assert np.median(top[np.isfinite(top)]) == pytest.approx(wall, rel=0.25)


def test_scaled_path_is_a_group_action() -> None:
    c2w = path("orbit left").c2w
    assert np.allclose(plane_sweep.scaled_path(c2w, 1.0), c2w, atol=1e-5)
    half = plane_sweep.scaled_path(c2w, 0.5)
    angle = lambda pose: np.arccos(np.clip((np.trace(pose[:3, :3]) - 1) / 2, -1, 1))  # noqa: E731
    assert angle(half[-1]) == pytest.approx(0.5 * angle(c2w[-1]), rel=1e-3)
    every = np.linalg.norm(half[:, :3, 3] - half[:1, :3, 3], axis=1)
    full = np.linalg.norm(c2w[:, :3, 3], axis=1)
    assert every[-1] == pytest.approx(full[-1] / 2 / np.cos(np.radians(42) / 4), rel=1e-3)  # chord of half the arc


def test_prompts_without_camera_motion_have_no_sweep_and_still_have_geometry(
    clips: dict[str, tuple[Trajectory, np.ndarray]],
) -> None:
    _, video = clips["push in"]
    for trajectory in (None, path("fixed")):
        measured = heldout.measure(video, trajectory)
        assert measured.values["plane_sweep"] is None
        assert measured.values["camera"] is None
        assert measured.values["sampson"] is not None
        assert set(measured.missing) == {"plane_sweep", "camera"}


def test_degenerate_input_is_missing_with_a_reason() -> None:
    trajectory = path("push in")
    blank = heldout.measure(np.full((FRAMES, *SIZE, 3), 90, np.uint8), trajectory)
    assert {name for name, value in blank.values.items() if value is None} == set(blank.missing)
    assert blank.values["plane_sweep"] is None
    assert blank.values["sharpness"] == 0.0
    noise = heldout.measure(np.random.default_rng(0).integers(0, 256, (FRAMES, *SIZE, 3), dtype=np.uint8), trajectory)
    assert noise.values["sampson"] is None or noise.values["sampson"] > 0.5
    assert noise.values["inliers"] is None or noise.values["inliers"] < 0.2
    short = heldout.measure(np.zeros((3, *SIZE, 3), np.uint8), trajectory)
    assert "poses" in short.missing["plane_sweep"]
    with pytest.raises(ValueError, match="uint8"):
        heldout.measure(np.zeros((FRAMES, *SIZE, 3), np.float32), trajectory)


def test_measurement_repeats_to_the_last_bit(clips: dict[str, tuple[Trajectory, np.ndarray]]) -> None:
    trajectory, video = clips["push in"]
    assert heldout.measure(video, trajectory) == heldout.measure(video, trajectory)


def test_a_pan_is_not_punished_for_having_no_epipolar_geometry(clips: dict[str, tuple[Trajectory, np.ndarray]]) -> None:
    turning, moving = (values(clips[c][1], clips[c][0]) for c in ("pan right", "move right"))
    assert turning["sampson"] < 1.5 * moving["sampson"] + 0.1
