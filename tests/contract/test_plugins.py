"""The contract held against the shipped rewards and probes (and those of --reward and --probe), and rules of some of them."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path

import contract_worlds as worlds
import numpy as np
import pytest
from world_r1_rewards.contract.names import runs_here
from world_r1_rewards.contract.test_contract import *  # noqa: F403
from world_r1_rewards.scores.guard import ranges_of

from world_r1.config import RewardConfig, RewardsConfig
from world_r1.reward import PROBES, SCORES, Probe, Reward, Rubric, available, load
from world_r1.types import Clip

README = (Path(__file__).parents[2] / "rewards/README.md").read_text(encoding="utf-8")
#: Breaks two rules: it counts its calls, and divides by zero on a blank video.
CARELESS = '''
import itertools
from world_r1.reward import Reward

class Careless(Reward):
    """Any number."""
    name, needs = "careless", ("frames",)
    calls = itertools.count()
    def score(self, clip, evidence):
        1 / int(evidence["frames"].std())
        return self.ok(next(self.calls))
'''


@pytest.fixture(scope="module")
def worlds_clips() -> list[Clip]:
    moving = worlds.world(2, "move right", supersample=1)
    return [moving.clip(), replace(moving.clip(commanded=False), id="free")]


def test_the_contract_covers_what_runs_from_a_checkout() -> None:
    rewards = {name for name in available(SCORES) if runs_here(name, SCORES, Reward)}
    assert rewards >= {"reconstruction", "trajectory", "motion", "guard", "quality", "meta_view", "constant", "consistency"}
    assert {name for name in available(PROBES) if runs_here(name, PROBES, Probe)} >= {
        "flow_ba", "statistics", "critic", "novel_view", "frame_critic",
    }  # fmt: skip


def test_anyone_can_run_the_contract_on_a_reward_of_their_own(tmp_path: Path) -> None:
    """In a process and a folder of its own, as a user would: the example of rewards/README.md, and one that breaks two rules."""
    (example,) = re.findall(r"```python\n(.*?)```", README.partition("## Your own")[2], re.S)
    assert len(example.splitlines()) <= 20
    (tmp_path / "acme.py").write_text(example + CARELESS, encoding="utf-8")

    command = [sys.executable, "-m", "pytest", "--pyargs", "world_r1_rewards.contract", "-q", "-rA", "-p", "no:cacheprovider"]
    command += ["--reward", "acme:Sharpness", "--reward", "acme:Careless"]
    if "world_r1_rewards.contract.plugin" not in {point.value for point in entry_points(group="pytest11")}:
        command += ["-p", "world_r1_rewards.contract.plugin"]  # a checkout that was installed before there was an entry point
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False).stdout
    failed = re.findall(r"^FAILED \S+::test_(\S+?)\[(\S+)\]", said, re.M)
    passed = re.findall(r"^PASSED \S+::test_(\S+?)\[acme:Sharpness\]", said, re.M)
    assert sorted(failed) == [
        ("a_reward_gives_a_finite_number_or_a_reason_and_never_fails", "acme:Careless"),
        ("a_reward_is_deterministic_and_blind_to_its_neighbours", "acme:Careless"),
    ], said
    assert len(passed) == 6, said


def test_an_unknown_option_is_an_error() -> None:
    with pytest.raises(TypeError):
        load("flow_ba", PROBES, Probe)(colour="blue")
    with pytest.raises(ValueError, match="quality must be one of"):
        load("flow_ba", PROBES, Probe)(quality="best")
    with pytest.raises(ValueError, match="ranges are"):
        load("guard", SCORES, Reward)(ranges={"contrast": [0.5, 0.1]})


def test_a_reward_that_does_not_apply_is_left_out_of_the_sum(worlds_clips: list[Clip]) -> None:
    rewards = (RewardConfig(name="constant", weight=2.0, options={"value": 0.3}), RewardConfig(name="trajectory"))
    rubric = Rubric(RewardsConfig(rewards=rewards, probes={"flow_ba": {}}))
    free = rubric.judge(worlds_clips[1:])[0]
    assert free.total == pytest.approx(0.6)
    assert [score.reward for score in free.scores] == ["constant"]
    assert [score.reward for score in rubric.judge(worlds_clips[:1])[0].scores] == ["constant", "trajectory"]


def test_guard_charges_only_outside_the_range(worlds_clips: list[Clip]) -> None:
    video = worlds_clips[0].video
    statistics = load("statistics", PROBES, Probe)()
    usual = statistics.observe(worlds_clips[:1], [{}])[0]["statistics"]
    ranges = {name: [0.7 * usual[name], 1.3 * usual[name]] for name in ("contrast", "sharpness")}
    guard = load("guard", SCORES, Reward)(ranges=ranges)
    values = []
    for factor in (1.0, 1.6, 2.4):  # stretched contrast: the zebra hack
        stretched = np.clip((video.astype(np.float32) - video.mean()) * factor + video.mean(), 0, 255).astype(np.uint8)
        clip = replace(worlds_clips[0], video=stretched)
        values.append(guard.score(clip, statistics.observe([clip], [{}])[0]).value)
    assert values[0] == 0.0
    assert values[0] >= values[1] > values[2] > -1.0


def test_ranges_come_from_the_base_models_samples(worlds_clips: list[Clip]) -> None:
    videos = [worlds_clips[0].video[:, ::step] for step in range(1, 5)] * 2
    guard = load("guard", SCORES, Reward)(ranges=ranges_of(videos))
    evidence = load("statistics", PROBES, Probe)().observe(worlds_clips[:1], [{}])[0]
    assert guard.score(worlds_clips[0], evidence).value == pytest.approx(0.0, abs=0.02)
    with pytest.raises(ValueError, match="at least 8"):
        ranges_of(videos[:3])
