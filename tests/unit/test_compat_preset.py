"""`rewards.compat: world_r1`: one key for the public release's rewards, held against what was measured on the release."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from world_r1_rewards.judges.answers import Answer
from world_r1_rewards.judges.asking import Opinion
from world_r1_rewards.judges.rubrics import RubricFile
from world_r1_rewards.probes.compat.world_r1_render import WorldR1Render, intrinsics, times
from world_r1_rewards.scores.compat.world_r1_general import WorldR1General
from world_r1_rewards.scores.compat.world_r1_meta_view import WorldR1MetaView

from world_r1.blockworld.specimens import rigid
from world_r1.config import Config, ConfigError, RewardsConfig, load, parse
from world_r1.reward import PROBES, SCORES, Probe, Reward, Rubric
from world_r1.reward import load as load_plugin

NAMES = ["compat.world_r1_meta_view", "compat.world_r1_reconstruction", "compat.world_r1_trajectory", "compat.world_r1_general"]


def rewards(**tree: Any) -> RewardsConfig:
    return parse({"rewards": {"compat": "world_r1", **tree}}).rewards


def test_one_key_brings_rewards_and_probes_that_fit_together() -> None:
    config = rewards()
    assert [entry.name for entry in config.rewards] == NAMES
    assert [entry.phase for entry in config.rewards] == ["rigid", "rigid", "rigid", "all"]
    assert all(entry.weight == 1 for entry in config.rewards)
    given = {gift for name in config.probes for gift in load_plugin(name, PROBES, Probe).gives}  # type: ignore[attr-defined]
    for name in NAMES:
        cls: Any = load_plugin(name, SCORES, Reward)
        assert set(cls.needs) <= given
        module = __import__(cls.__module__, fromlist=["x"])
        assert "comparison only" in (module.__doc__ or "")


def test_options_of_the_preset_can_be_changed_and_nothing_else() -> None:
    config = rewards(
        rewards=[{"name": NAMES[1], "weight": 0.5, "options": {"device": "cuda"}}],
        probes={"flow_ba": None, "da3": {"gaussians": True}, "hpsv2": {"frames": 3}},
    )
    assert [entry.name for entry in config.rewards] == NAMES
    assert (config.rewards[1].weight, config.rewards[1].options) == (0.5, {"lpips": "auto", "device": "cuda"})
    assert config.probes["hpsv2"] == {"frames": 3}
    assert "flow_ba" not in config.probes
    assert config.probes["da3"] == {"gaussians": True}
    with pytest.raises(ConfigError, match="quality is none of them"):
        rewards(rewards=[{"name": "quality"}])
    with pytest.raises(ConfigError, match="compat"):
        parse({"rewards": {"compat": "world_r2"}})


def test_a_resolved_configuration_reads_back_as_itself(tmp_path: Path) -> None:
    config = Config(rewards=rewards(rewards=[{"name": NAMES[0], "label": "meta"}]))
    file = tmp_path / "a.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
    assert load(file) == config
    changed = load(Path("configs/blockworld.yaml"), ["rewards.compat=world_r1", "rewards.rewards=null", "rewards.probes=null"])
    assert [entry.name for entry in changed.rewards.rewards] == NAMES


def test_the_trajectory_part_scores_a_real_clip_and_says_what_it_is(caplog: pytest.LogCaptureFixture) -> None:
    config = rewards()
    only = config.model_copy(update={"rewards": config.rewards[2:3], "probes": {"flow_ba": {}}})
    (verdict,) = Rubric(only).judge([rigid()])
    (score,) = verdict.scores
    assert score.reward == "compat.world_r1_trajectory"
    assert score.value is not None
    assert 0 < score.value <= 1
    assert "for comparison only" in caplog.text


def test_renderings_follow_the_measured_times_and_intrinsics() -> None:
    assert times(81)[[0, 10, 20, 40, 80]] == pytest.approx([3.2, 5.4, 10, 20, 40])
    K = np.array([[0.992 * 504, 0, 252], [0, 0.992 * 504, 147], [0, 0, 1]])
    for size in ((294, 504), (147, 252)):  # the picture's own size does not matter
        mine = np.diag([size[1] / 504, size[0] / 294, 1]) @ K
        normalised = intrinsics(mine, size) / 512
        assert normalised[[0, 1, 0, 1], [0, 1, 2, 2]] == pytest.approx([0.977, 0.977, 0.492, 0.287], abs=1e-3)


@pytest.fixture(scope="module")
def rendered() -> tuple[Any, Any, dict[str, Any]]:
    clip = rigid()
    (seen,) = load_plugin("flow_ba", PROBES, Probe)().observe([clip], [{}])
    (found,) = WorldR1Render().observe([clip], [seen])
    return clip, seen["geometry"], found["compat_render"]  # type: ignore[index]


def test_the_square_is_empty_below_the_picture_and_the_view_is_a_camera_of_the_clip(
    rendered: tuple[Any, Any, dict[str, Any]],
) -> None:
    clip, geometry, found = rendered
    assert found["images"].shape == (len(clip.video), 512, 512, 3)
    away = np.linalg.norm(geometry.c2w[:, :3, 3], axis=1)
    assert away[found["frame"]] == away.max()
    content = round(504 * clip.video.shape[1] / clip.video.shape[2])
    # its own camera sees the clip's frame, at the scale of 504 pixels, and nothing below it
    frame = torch.from_numpy(clip.video[found["frame"]].copy()).permute(2, 0, 1)[None].float()
    frame = torch.nn.functional.interpolate(frame, (content, 504), mode="bilinear")[0].permute(1, 2, 0).numpy()
    view = found["view"].astype(float)
    assert np.abs(view[20 : content - 20, 20:484] - frame[20:-20, 20:-20]).mean() < 12
    assert (view[content + 40 :] == 0).mean() > 0.95
    mirrored = frame[:, ::-1]
    assert np.abs(view[20 : content - 20, 20:484] - mirrored[20:-20, 20:-20]).mean() > 15


def test_meta_view_is_the_expected_digit_and_its_rubric_prefers_orbits() -> None:
    rubric = RubricFile.load("compat_world_r1_view")
    assert "{motion}" not in rubric.question
    answer = Answer({str(i): float(i == 6) for i in range(10)}, 6 / 9, 0.97, 0.0, {}, "some-vlm")
    score = WorldR1MetaView().score(rigid(), {"compat_judgement": Opinion(answer, rubric.id)})
    assert score.value == pytest.approx(6 / 9)
    assert score.versions == {"rubric": rubric.id, "model": "some-vlm"}


def test_general_is_one_frame_and_the_same_for_a_group() -> None:
    values = np.array([0.21, 0.25, 0.29, 0.33])
    scores = [WorldR1General().score(rigid(), {"hpsv2": {"values": values + step}}) for step in (0, 0.01)]
    at = int(scores[0].parts["frame"])
    assert [score.value for score in scores] == pytest.approx([values[at], values[at] + 0.01])
    missing = WorldR1General().score(rigid(), {"hpsv2": {"values": []}})
    assert (missing.status, missing.value) == ("failed", None)


def test_reconstruction_with_a_trunk_of_random_weights(tmp_path: Path, rendered: tuple[Any, Any, dict[str, Any]]) -> None:
    try:
        import torchvision
    except (ImportError, RuntimeError):
        pytest.skip("torchvision is not installed, or not for this torch")
    pytest.importorskip("lpips", reason="lpips is not installed: pip install 'world-r1[lpips]'")
    torch.manual_seed(0)
    torch.save(torchvision.models.alexnet(weights=None).state_dict(), tmp_path / "alexnet-owt-random.pth")
    clip, _, found = rendered
    reward = load_plugin(NAMES[1], SCORES, Reward)(lpips=str(tmp_path))
    score = reward.score(clip, {"compat_render": found})
    assert score.value == pytest.approx(np.clip(1 - score.parts["lpips"], 0, 1))
    assert score.parts["frames"] == len(clip.video)
