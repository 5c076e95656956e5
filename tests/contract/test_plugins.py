"""The contract of probes and rewards, held against the shipped ones and, with --reward and --probe, against anyone's.

pytest tests/contract --reward acme.rewards:Sharpness --probe acme.probes:Depth
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import contract_worlds as worlds
import numpy as np
import pytest
from world_r1_rewards.scores.guard import ranges_of

from world_r1.blockworld import weights_path
from world_r1.config import RewardConfig, RewardsConfig
from world_r1.reward import PROBES, SCORES, Probe, Reward, Rubric, available, load
from world_r1.types import Clip, Verdict

RANGES = {"contrast": [0.05, 0.5], "sharpness": [0.002, 0.3], "saturation": [0.02, 0.9], "luminance": [0.05, 0.95]}
OPTIONS: dict[str, dict[str, Any]] = {"guard": {"ranges": RANGES}}
#: Plug-ins that cannot run without a model or an endpoint: tests/unit/test_judge_*.py and test_quality_*.py hold them to the contract,
#: test_geometry_models.py those of geometry.
NEED_A_MODEL = ("judge.", "aesthetic", "clip", "hpsv2", "hpsv3", "pickscore", "videoalign") + (
    "da3", "vggt", "pi3", "mapanything", "pycolmap",
)  # fmt: skip
LEARNED = ("quality", "meta_view", "critic", "frame_critic")


def _need_weights(name: str) -> None:
    if name in LEARNED and not (weights_path() / "critic" / "critic.safetensors").is_file():
        pytest.skip("the shipped critic is not in this checkout")


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    moving, still = worlds.world(2, "move right", supersample=1), worlds.world(2, "fixed", supersample=1)
    blank = np.full_like(moving.video, 90)
    return [
        moving.clip(),
        replace(moving.clip(blank), id="blank"),
        replace(still.clip(), id="still"),
        replace(moving.clip(commanded=False), id="free"),
    ]


def _givers(extra: Sequence[str]) -> dict[str, str]:
    """Evidence -> the probe that gives it: one named on the command line, else one that runs without a model of the user's."""
    names = [*(probe for probe in available(PROBES) if not probe.startswith(NEED_A_MODEL)), *extra]
    return {given: probe for probe in names for given in load(probe, PROBES, Probe).gives}


def _probes_for(name: str, extra: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The probes, shipped or named on the command line, that give what a reward needs, and what those need in turn."""
    givers = _givers(extra)
    wanted, chosen = list(load(name, SCORES, Reward).needs), {}
    while wanted:
        need = wanted.pop()
        if need != "frames":
            chosen[givers[need]] = {}
            wanted += load(givers[need], PROBES, Probe).needs
    return chosen


def _judge(name: str, clips: Sequence[Clip], extra: Sequence[str]) -> list[Verdict]:
    config = RewardsConfig(rewards=(RewardConfig(name=name, options=OPTIONS.get(name, {})),), probes=_probes_for(name, extra))
    return Rubric(config).judge(clips)


@pytest.fixture
def extra_probes(request: pytest.FixtureRequest) -> list[str]:
    return request.config.getoption("--probe")


def test_every_shipped_plugin_is_held_to_the_contract(request: pytest.FixtureRequest) -> None:
    covered = {"reconstruction", "trajectory", "motion", "guard", "quality", "meta_view", "constant"}
    assert {name for name in available(SCORES) if not name.startswith(NEED_A_MODEL)} == covered
    assert {name for name in available(PROBES) if not name.startswith(NEED_A_MODEL)} == {
        "flow_ba",
        "statistics",
        "critic",
        "novel_view",
        "frame_critic",
    }


def test_a_reward_says_what_it_is(reward_name: str) -> None:
    cls = load(reward_name, SCORES, Reward)
    assert isinstance(cls.name, str)
    assert cls.name
    assert isinstance(cls.needs, tuple)
    assert cls.__doc__, "the docstring documents the range"


def test_a_reward_gives_a_number_or_a_reason(reward_name: str, clips: list[Clip], extra_probes: list[str]) -> None:
    _need_weights(reward_name)
    for verdict in _judge(reward_name, clips, extra_probes):
        for score in verdict.scores:
            if score.value is None:
                assert score.reason
            else:
                assert -1.0 <= score.value <= 1.0
                assert all(np.isfinite(part) for part in score.parts.values())


def test_a_reward_is_deterministic_and_blind_to_its_neighbours(
    reward_name: str, clips: list[Clip], extra_probes: list[str]
) -> None:
    _need_weights(reward_name)
    together = _judge(reward_name, clips, extra_probes)
    for clip, verdict in zip(clips, together, strict=True):
        (alone,) = _judge(reward_name, [clip], extra_probes)
        assert [score.status for score in alone.scores] == [score.status for score in verdict.scores]
        for a, b in zip(alone.scores, verdict.scores, strict=True):
            if a.value is not None:
                assert a.value == pytest.approx(b.value, abs=2e-3)


def test_whether_a_reward_applies_follows_from_what_was_asked(reward_name: str, clips: list[Clip]) -> None:
    _need_weights(reward_name)
    reward = load(reward_name, SCORES, Reward)(**OPTIONS.get(reward_name, {}))
    assert reward.applies(clips[0]) == reward.applies(replace(clips[0], id="other", video=clips[1].video))


def test_a_failing_probe_is_a_missing_value(reward_name: str, clips: list[Clip], extra_probes: list[str]) -> None:
    _need_weights(reward_name)
    config = RewardsConfig(
        rewards=(RewardConfig(name=reward_name, options=OPTIONS.get(reward_name, {})),),
        probes=_probes_for(reward_name, extra_probes),
    )
    rubric = Rubric(config)
    for probe in rubric.probes.values():
        probe.observe = _explode  # type: ignore[method-assign]
    (verdict,) = rubric.judge(clips[:1])
    for score in verdict.scores:
        assert (score.value is None) == bool(set(load(reward_name, SCORES, Reward).needs) - {"frames"})
        assert score.status in ("ok", "failed")


def _explode(clips: Sequence[Clip], evidence: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any] | Exception]:
    raise RuntimeError("out of memory")


def test_a_probe_answers_for_every_clip(probe_name: str, clips: list[Clip], extra_probes: list[str]) -> None:
    _need_weights(probe_name)
    cls = load(probe_name, PROBES, Probe)
    assert cls.gives
    assert cls.__doc__
    evidence: list[dict[str, Any]] = [{"frames": clip.video} for clip in clips]
    order = [probe_name]
    givers = _givers(extra_probes)
    while missing := [n for n in load(order[0], PROBES, Probe).needs if n != "frames"]:
        order = [givers[missing[0]], *order]
    alive = list(range(len(clips)))
    for name in order:
        results = load(name, PROBES, Probe)().observe([clips[i] for i in alive], [evidence[i] for i in alive])
        assert len(results) == len(alive)
        for i, result in zip(list(alive), results, strict=True):
            if isinstance(result, Exception):
                alive.remove(i)
                assert str(result)
            else:
                assert set(load(name, PROBES, Probe).gives) <= set(result)
                evidence[i].update(result)
    assert alive, "not one of four clips could be measured"


def test_an_unknown_option_is_an_error() -> None:
    with pytest.raises(TypeError):
        load("flow_ba", PROBES, Probe)(colour="blue")
    with pytest.raises(ValueError, match="quality must be one of"):
        load("flow_ba", PROBES, Probe)(quality="best")
    with pytest.raises(ValueError, match="ranges are"):
        load("guard", SCORES, Reward)(ranges={"contrast": [0.5, 0.1]})


def test_a_reward_that_does_not_apply_is_left_out_of_the_sum(clips: list[Clip]) -> None:
    rewards = (RewardConfig(name="constant", weight=2.0, options={"value": 0.3}), RewardConfig(name="trajectory"))
    rubric = Rubric(RewardsConfig(rewards=rewards, probes={"flow_ba": {}}))
    free = rubric.judge(clips[3:])[0]
    assert free.total == pytest.approx(0.6)
    assert [score.reward for score in free.scores] == ["constant"]
    assert [score.reward for score in rubric.judge(clips[:1])[0].scores] == ["constant", "trajectory"]


def test_guard_charges_only_outside_the_range(clips: list[Clip]) -> None:
    video = clips[0].video
    statistics = load("statistics", PROBES, Probe)()
    usual = statistics.observe(clips[:1], [{}])[0]["statistics"]
    ranges = {name: [0.7 * usual[name], 1.3 * usual[name]] for name in ("contrast", "sharpness")}
    guard = load("guard", SCORES, Reward)(ranges=ranges)
    values = []
    for factor in (1.0, 1.6, 2.4):  # stretched contrast: the zebra hack
        stretched = np.clip((video.astype(np.float32) - video.mean()) * factor + video.mean(), 0, 255).astype(np.uint8)
        clip = replace(clips[0], video=stretched)
        values.append(guard.score(clip, statistics.observe([clip], [{}])[0]).value)
    assert values[0] == 0.0
    assert values[0] >= values[1] > values[2] > -1.0


def test_ranges_come_from_the_base_models_samples(clips: list[Clip]) -> None:
    videos = [clips[0].video[:, ::step] for step in range(1, 5)] * 2
    guard = load("guard", SCORES, Reward)(ranges=ranges_of(videos))
    evidence = load("statistics", PROBES, Probe)().observe(clips[:1], [{}])[0]
    assert guard.score(clips[0], evidence).value == pytest.approx(0.0, abs=0.02)
    with pytest.raises(ValueError, match="at least 8"):
        ranges_of(videos[:3])
