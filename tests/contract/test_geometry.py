"""flow_ba and S_recon against exact cameras and damages of known strength."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from contract_worlds import World, bend, cut, frozen, gain, noisy, shuffled, swim, world
from world_r1_rewards.probes._geometry import Geometry
from world_r1_rewards.probes.flow_ba import FlowBA
from world_r1_rewards.probes.novel_view import NovelView
from world_r1_rewards.scores.motion import Motion
from world_r1_rewards.scores.reconstruction import Reconstruction
from world_r1_rewards.scores.trajectory import TrajectoryReward

from world_r1.reward import Degenerate
from world_r1.types import Clip

NAMED = {
    "truck": (2, "move right"),
    "pan": (3, "pan left"),
    "orbit": (25, "orbit right"),
    "dolly": (21, "push in"),
    "still": (2, "fixed"),
}


@pytest.fixture(scope="session")
def scenes() -> dict[str, World]:
    return {name: world(seed, path, supersample=1 if name in ("still", "pan") else 2) for name, (seed, path) in NAMED.items()}


@pytest.fixture(scope="session")
def clean(scenes: dict[str, World]) -> dict[str, Geometry]:
    return dict(zip(scenes, measure([w.clip() for w in scenes.values()]), strict=True))


def measure(clips: list[Clip], **options: object) -> list[Geometry]:
    geometries = []
    for result in FlowBA(**options).observe(clips, [{}] * len(clips)):  # type: ignore[arg-type]
        if isinstance(result, Exception):
            raise result
        geometries.append(result["geometry"])
    return geometries


def score(clip: Clip, geometry: Geometry) -> float:
    value = Reconstruction().score(clip, {"geometry": geometry}).value
    assert value is not None
    return value


def rotation_error(estimated: np.ndarray, truth: np.ndarray) -> float:
    """Largest angle over the frames, degrees."""
    relative = estimated[:, :3, :3].transpose(0, 2, 1) @ truth[:, :3, :3]
    return float(np.degrees(np.arccos(np.clip((np.trace(relative, axis1=1, axis2=2) - 1) / 2, -1, 1))).max())


def position_error(estimated: np.ndarray, truth: np.ndarray) -> float:
    """Mean error over path length, after the best scale."""
    a, b = estimated[:, :3, 3], truth[:, :3, 3]
    length = np.linalg.norm(np.diff(b, axis=0), axis=1).sum()
    return float(np.linalg.norm((a * b).sum() / (a * a).sum() * a - b, axis=1).mean() / length)


@pytest.mark.parametrize("name", ["truck", "orbit", "dolly"])
def test_positions_and_rotations(name: str, scenes: dict[str, World], clean: dict[str, Geometry]) -> None:
    assert position_error(clean[name].c2w, scenes[name].c2w) < 0.04
    assert rotation_error(clean[name].c2w, scenes[name].c2w) < 3.0


def test_a_pan_is_a_rotation(scenes: dict[str, World], clean: dict[str, Geometry]) -> None:
    assert rotation_error(clean["pan"].c2w, scenes["pan"].c2w) < 1.5
    assert clean["pan"].translation_share < 0.3 < clean["truck"].translation_share


def test_depth_and_focal_length(scenes: dict[str, World]) -> None:
    truck = scenes["truck"]
    (found,) = measure([truck.clip(commanded=False)])
    key = int(found.keys[1])
    at = found.grid.astype(int)
    truth = truck.depth[key][at[..., 1], at[..., 0]]
    sure = (found.confidence[1] > 0.6) & (truth > 0)
    assert np.corrcoef(np.log(found.depth[1][sure]), np.log(truth[sure]))[0, 1] > 0.8
    assert abs(np.log(found.K[0, 0] / truck.K[0, 0])) < 0.35  # without a command the focal length has a weak prior only
    (known,) = measure([truck.clip()])
    assert abs(np.log(known.K[0, 0] / truck.K[0, 0])) < 0.05


@pytest.mark.parametrize("name", ["truck", "pan", "orbit"])
@pytest.mark.parametrize(("damage", "levels"), [(bend, (0.4, 0.8, 1.6)), (swim, (1.0, 2.5, 5.0)), (noisy, (0.02, 0.06, 0.15))])
def test_the_score_falls_with_damage(
    name: str, damage: object, levels: tuple[float, ...], scenes: dict[str, World], clean: dict[str, Geometry]
) -> None:
    clips = [scenes[name].clip(damage(scenes[name].video, level, 3)) for level in levels]  # type: ignore[operator]
    values = [score(scenes[name].clip(), clean[name])] + [score(c, g) for c, g in zip(clips, measure(clips), strict=True)]
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.85 * values[0]


def test_cuts_and_shuffles(scenes: dict[str, World], clean: dict[str, Geometry]) -> None:
    truck = scenes["truck"]
    clips = [
        truck.clip(cut(truck.video, scenes["dolly"].video)),
        truck.clip(shuffled(truck.video, 1)),
        truck.clip(_one_bad_frame(truck.video)),
    ]
    for clip, geometry in zip(clips, measure(clips), strict=True):
        assert score(clip, geometry) < 0.5 * score(truck.clip(), clean["truck"])


def _one_bad_frame(video: np.ndarray) -> np.ndarray:
    """Noise in a frame that the training settings do not use as a target."""
    spoilt = video.copy()
    spoilt[9] = np.random.default_rng(0).integers(0, 256, video.shape[1:], dtype=np.uint8)
    return spoilt


def test_gain_and_unit_do_not_matter(scenes: dict[str, World], clean: dict[str, Geometry]) -> None:
    truck = scenes["truck"]
    (dim,) = measure([truck.clip(gain(truck.video, 0.6))])
    assert score(truck.clip(), dim) == pytest.approx(score(truck.clip(), clean["truck"]), abs=0.03)


def test_stillness_pays_only_when_asked_for(scenes: dict[str, World], clean: dict[str, Geometry]) -> None:
    still, truck = scenes["still"], scenes["truck"]
    asked = still.clip()
    assert score(asked, clean["still"]) > 0.95
    assert Motion().score(asked, {"geometry": clean["still"]}).value == pytest.approx(1.0, abs=0.01)
    refused, grainy = truck.clip(frozen(truck.video)), truck.clip(noisy(frozen(truck.video), 0.01))
    for clip, geometry in zip((refused, grainy), measure([refused, grainy]), strict=True):
        assert score(clip, geometry) < 0.02
        assert Motion().score(clip, {"geometry": geometry}).value == pytest.approx(0.0, abs=0.05)
        assert geometry.motion < 0.003
    (geometry,) = measure([refused])
    assert np.allclose(geometry.c2w, np.eye(4), atol=1e-4)
    free = truck.clip(frozen(truck.video), commanded=False)
    assert score(free, measure([free])[0]) < 0.02


def test_the_estimated_path_is_scored_like_the_true_one(scenes: dict[str, World], clean: dict[str, Geometry]) -> None:
    for name in ("truck", "pan", "orbit", "dolly"):
        right = TrajectoryReward().score(scenes[name].clip(), {"geometry": clean[name]}).value
        backwards = scenes[name].clip(scenes[name].video[::-1].copy())
        wrong = TrajectoryReward().score(backwards, {"geometry": measure([backwards])[0]}).value
        assert right is not None
        assert wrong is not None
        assert right > 0.75 > 0.3 > wrong


def test_blank_and_short_clips_are_degenerate_and_do_not_spoil_the_batch(scenes: dict[str, World]) -> None:
    truck = scenes["truck"]
    blank, short = np.full_like(truck.video, 128), truck.video[:3]
    results = FlowBA().observe([truck.clip(blank), truck.clip(), truck.clip(short), truck.clip(truck.video[..., :2])], [{}] * 4)
    assert isinstance(results[0], Degenerate)
    assert "texture" in str(results[0])
    assert not isinstance(results[1], Exception)
    assert isinstance(results[2], Degenerate)
    assert isinstance(results[3], ValueError)


def test_other_sizes_and_lengths(scenes: dict[str, World]) -> None:
    truck = scenes["truck"]
    large = np.stack([cv2.resize(frame, (416, 240), interpolation=cv2.INTER_CUBIC) for frame in truck.video])
    odd = truck.video[:13, :93, :157]
    big, small = measure([truck.clip(large), truck.clip(odd, commanded=False)])
    assert big.size == (92, 160)
    assert big.c2w.shape == (17, 4, 4)
    assert small.c2w.shape == (13, 4, 4)
    assert small.size == (93, 157)
    assert big.inliers > 0.8


def test_batches_and_threads_change_nothing(scenes: dict[str, World], clean: dict[str, Geometry]) -> None:
    clips = [w.clip() for w in scenes.values()]
    for geometry, reference in zip(measure(clips, batch=1, workers=2), clean.values(), strict=True):
        assert geometry.inliers == pytest.approx(reference.inliers, abs=2e-3)
        assert np.allclose(geometry.c2w, reference.c2w, atol=5e-3)


def test_a_novel_view_is_off_the_path_seeded_and_like_the_scene(scenes: dict[str, World], clean: dict[str, Geometry]) -> None:
    clip, geometry = scenes["truck"].clip(), clean["truck"]
    probe = NovelView()
    first, again = (probe.observe([clip], [{"geometry": geometry}])[0] for _ in range(2))
    assert not isinstance(first, Exception)
    assert not isinstance(again, Exception)
    view = first["novel_view"]
    assert (view["image"] == again["novel_view"]["image"]).all()
    assert view["image"].shape == scenes["truck"].video.shape[1:]
    assert view["coverage"] >= 0.75
    distances = np.linalg.norm(geometry.c2w[:, :3, 3] - view["c2w"][:3, 3], axis=1)
    assert distances.min() >= 0.1 * geometry.scene_depth
    middle = clip.video[8].astype(float)
    assert abs(view["image"].mean() - middle.mean()) < 20
    assert np.linalg.det(view["c2w"][:3, :3]) == pytest.approx(1.0, abs=1e-4)


def test_evaluation_settings_are_more_accurate(scenes: dict[str, World], clean: dict[str, Geometry]) -> None:
    (fine,) = measure([scenes["orbit"].clip()], quality="eval")
    assert len(fine.frames) == 17
    assert position_error(fine.c2w, scenes["orbit"].c2w) < 0.03
