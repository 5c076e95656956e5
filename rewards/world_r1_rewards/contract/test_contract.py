"""The rules that every reward and every probe keeps. Parametrised by `--reward` and `--probe`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from world_r1.blockworld.specimens import specimens
from world_r1.config import RewardConfig, RewardsConfig
from world_r1.reward import PROBES, SCORES, Probe, Reward, Rubric, load
from world_r1.types import Clip, Score, Verdict
from world_r1_rewards.contract.names import option, probes_for

#: What every plug-in is shown; see `world_r1.blockworld.specimens`.
SHOWN = ("rigid", "blank", "short", "odd", "free", "hostile")


@pytest.fixture(scope="module")
def clips() -> dict[str, Clip]:
    """Read-only clips by name: what looks at a video must not write to it."""
    found = specimens()
    for clip in found.values():
        clip.video.setflags(write=False)
    return found


@pytest.fixture
def extra_probes(request: pytest.FixtureRequest) -> list[str]:
    return option(request.config, "--probe")


def rubric(name: str, extra: Sequence[str]) -> Rubric:
    """The reward alone, with probes that give what it needs."""
    needs = load(name, SCORES, Reward).needs  # type: ignore[attr-defined]
    return Rubric(RewardsConfig(rewards=(RewardConfig(name=name),), probes=probes_for(needs, extra)))


def only(verdict: Verdict) -> Score | None:
    """The one score of a verdict; None where the reward does not apply."""
    return verdict.scores[0] if verdict.scores else None


def test_a_reward_says_what_it_is(reward_name: str) -> None:
    cls: Any = load(reward_name, SCORES, Reward)
    assert isinstance(cls.name, str)
    assert cls.name
    assert isinstance(cls.needs, tuple), 'needs is a tuple: ("frames",), with the comma'
    assert cls.__doc__, "the docstring documents the range"


def test_a_reward_gives_a_finite_number_or_a_reason_and_never_fails(
    reward_name: str, clips: dict[str, Clip], extra_probes: list[str]
) -> None:
    shown = [clips[name] for name in SHOWN]
    for verdict in rubric(reward_name, extra_probes).judge(shown):
        score = only(verdict)
        if score is not None and score.value is None:
            assert score.reason
            assert score.status == "degenerate", f"{verdict.clip}: {score.reason} (Degenerate is for what cannot be measured)"
        elif score is not None and score.value is not None:
            assert np.isfinite([score.value, *score.parts.values()]).all()


def test_a_reward_measures_a_real_video_that_it_applies_to(
    reward_name: str, clips: dict[str, Clip], extra_probes: list[str]
) -> None:
    scores = [only(verdict) for verdict in rubric(reward_name, extra_probes).judge([clips["rigid"], clips["free"]])]
    assert any(score is not None for score in scores), "it applies neither with a camera command nor without"
    assert all(score is None or score.status == "ok" for score in scores), scores


def test_a_reward_is_deterministic_and_blind_to_its_neighbours(
    reward_name: str, clips: dict[str, Clip], extra_probes: list[str]
) -> None:
    shown = [clips[name] for name in SHOWN]
    judge = rubric(reward_name, extra_probes)
    together = judge.judge(shown)
    for clip, verdict in zip(shown, together, strict=True):
        alone, among = only(judge.judge([clip])[0]), only(verdict)
        assert (alone and alone.status) == (among and among.status)
        if alone is not None and among is not None and among.value is not None:
            assert alone.value == pytest.approx(among.value, abs=2e-3)


def test_whether_a_reward_applies_follows_from_what_was_asked(reward_name: str, clips: dict[str, Clip]) -> None:
    reward = load(reward_name, SCORES, Reward)()
    asked = clips["rigid"]
    for name in ("swim", "frozen", "blank"):
        assert reward.applies(asked) == reward.applies(replace(asked, id="other", video=clips[name].video)), name


def test_a_probe_that_fails_is_a_missing_value_of_the_rewards_that_need_it(
    reward_name: str, clips: dict[str, Clip], extra_probes: list[str]
) -> None:
    judge = rubric(reward_name, extra_probes)
    for probe in judge.probes.values():
        probe.observe = _explode  # type: ignore[method-assign, assignment]
    ((verdict, errors),) = judge.examine([clips["rigid"]])
    needs = set(load(reward_name, SCORES, Reward).needs) - {"frames"}  # type: ignore[attr-defined]
    if needs and verdict.scores:
        assert (verdict.total, verdict.scores[0].value, verdict.scores[0].status) == (None, None, "failed")
        assert any("out of memory" in str(error) for error in errors)


def test_a_rigid_room_wins_over_swimming_textures_by_the_margin_that_a_reward_claims(
    reward_name: str, clips: dict[str, Clip], extra_probes: list[str]
) -> None:
    margin = load(reward_name, SCORES, Reward).rigid_wins  # type: ignore[attr-defined]
    if margin <= 0:
        pytest.skip("it claims nothing of the kind (rigid_wins is 0)")
    rigid, swim = (only(verdict) for verdict in rubric(reward_name, extra_probes).judge([clips["rigid"], clips["swim"]]))
    assert rigid is not None
    assert swim is not None
    assert (rigid.value or 0.0) - (swim.value or 0.0) >= margin


def test_a_probe_answers_for_every_clip(probe_name: str, clips: dict[str, Clip], extra_probes: list[str]) -> None:
    cls: Any = load(probe_name, PROBES, Probe)
    assert cls.gives, "gives names the evidence"
    assert cls.__doc__
    shown = [clips[name] for name in SHOWN]
    before = [name for name in probes_for(cls.needs, extra_probes) if name != probe_name]
    evidence: list[dict[str, Any]] = [{"frames": clip.video} for clip in shown]
    alive = list(range(len(shown)))
    while before or probe_name:
        have = set.intersection(*(set(evidence[i]) for i in alive))
        name = next((n for n in before if set(_needs(n)) <= have), probe_name)
        results = load(name, PROBES, Probe)().observe([shown[i] for i in alive], [evidence[i] for i in alive])
        assert len(results) == len(alive)
        for i, result in zip(list(alive), results, strict=True):
            if isinstance(result, Exception):
                alive.remove(i)
                assert str(result), "an exception says why"
            else:
                assert set(load(name, PROBES, Probe).gives) <= set(result)  # type: ignore[attr-defined]
                evidence[i].update(result)
        if name == probe_name:
            break
        before.remove(name)
    assert 0 in alive, "the rigid room could not be measured"


def _needs(probe: str) -> tuple[str, ...]:
    return load(probe, PROBES, Probe).needs  # type: ignore[attr-defined]


def _explode(clips: Sequence[Clip], evidence: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any] | Exception]:
    raise RuntimeError("out of memory")
