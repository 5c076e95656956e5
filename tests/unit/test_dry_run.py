"""The dry run of the large configurations: everything is built, sampled, judged and updated once; what is absent is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from world_r1 import cli, dry_run
from world_r1.config import RewardsConfig, load, parse

ROOT = Path(__file__).parents[2]
LARGE = ("wan2.1_1.3b", "wan2.1_14b", "wan2.2_a14b", "cogvideox1.5_5b")


def of(name: str) -> Any:
    return load(ROOT / "configs" / f"{name}.yaml")


@pytest.mark.parametrize("name", LARGE)
def test_a_large_configuration_runs_once_in_small(name: str) -> None:
    config = of(name)
    if name != LARGE[0]:  # the judge's endpoint is asked several times before it counts as absent: once is enough here
        config = config.model_copy(update={"rewards": RewardsConfig(probes={"da3": {}}, rewards=config.rewards.rewards[:2])})
    rows = {row["part"]: row for row in dry_run.dry_run(config)}
    assert [rows[part]["status"] for part in ("model", "sample", "update")] == ["ok"] * 3
    assert "tiny, random weights" in rows["model"]["about"]
    assert "2 videos of 9x32x48" in rows["sample"]["about"]
    assert "ratio_mean 1," in rows["update"]["about"]
    rewards = [row for part, row in rows.items() if part.startswith("reward ")]
    assert len(rewards) == len(config.rewards.rewards)
    assert all(row["about"] for row in rewards)


def test_the_14b_configuration_for_two_gpus_is_valid_and_shrinks_to_one_process() -> None:
    changes = ("cluster.learners=2", "cluster.max_staleness=0", "speed.fsdp=true", "speed.checkpoint=1.0")
    text = (ROOT / "configs/wan2.1_14b.yaml").read_text(encoding="utf-8")
    assert " ".join(changes) in text
    config = load(ROOT / "configs/wan2.1_14b.yaml", changes)
    assert config.speed.fsdp
    small = dry_run.shrunk(config)
    assert (small.cluster.learners, small.speed.fsdp) == (1, False)


def test_what_is_shrunk_keeps_its_kind() -> None:
    whole, small = of("wan2.2_a14b"), dry_run.shrunk(of("wan2.2_a14b"))
    assert small.model.guidance_scale_2 == whole.model.guidance_scale_2
    assert small.algorithm == whole.algorithm
    assert small.flow.family == whole.flow.family
    assert small.speed.latents == "bf16"
    assert small.speed.attention.kind == "pyramid"
    assert small.rewards == whole.rewards


def test_working_rewards_give_the_advantages_and_broken_ones_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded model as it is, one reward that works and one whose package does not exist."""
    small = {"frames": 5, "height": 32, "width": 48}
    brightness = "tests.cluster.rewards:Brightness"
    rewards = [{"name": brightness}, {"name": "reconstruction"}]
    tree = {"video": small, "flow": {"steps": 2, "window": {"size": 1}}, "model": {"device": "cpu", "lora": {"rank": 2}}}
    monkeypatch.syspath_prepend(str(ROOT))
    config = parse({**tree, "rewards": {"probes": {"da3": {"weights": "/nowhere/da3"}}, "rewards": rewards}})
    rows = {row["part"]: row for row in dry_run.dry_run(config)}
    assert rows[f"reward {brightness}"]["status"] == "ok"
    assert rows["reward reconstruction"]["status"] == "left out"
    assert rows["update"]["about"].startswith("advantages from the rewards above")


def test_the_command_prints_what_was_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["train", "--config", str(ROOT / "configs/cogvideox1.5_5b.yaml"), "--dry-run", "rewards={}"]) == 0
    text = capsys.readouterr().out
    assert "reward constant" in text
    assert "nothing was left out" in text
