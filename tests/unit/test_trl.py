"""TRL in both directions: its reward functions here, our rewards there, and its trainer against ours."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from world_r1 import config as configuration
from world_r1.advantage import group_relative
from world_r1.config import Config
from world_r1.reward import Degenerate, Reward, Rubric
from world_r1.trl_rewards import TrlReward, as_trl
from world_r1.types import Clip, Group, Prompt, Score

HERE = __name__


def video(level: int = 128, frames: int = 5) -> np.ndarray:
    noise = np.random.default_rng(level).integers(-20, 20, (frames, 32, 48, 3))
    return (level + noise).clip(0, 255).astype(np.uint8)


def clip(level: int = 128) -> Clip:
    return Clip(f"c{level}", video(level), Prompt(f"p{level}", "Camera fixed. A red box.", "dynamic"), None, 8.0)


# Reward functions as TRL's users write them.


def brightness(completions: list[Any], **kwargs: Any) -> list[float | None]:
    return [float(np.mean(c)) / 255 for c in completions]


def picky(prompts: list[str], completions: list[Any], kind: list[str], log_metric: Any, **kwargs: Any) -> list[float | None]:
    log_metric("length", len(prompts[0]))
    return [None if k == "rigid" else 1.0 for k in kind]


async def patient(prompts: list[str], completions: list[Any], completion_ids: list[Any], **kwargs: Any) -> list[float | None]:
    return [float("nan") if np.mean(c) > 200 else 2.0 for c in completions]


def fails(**kwargs: Any) -> list[float | None]:
    raise RuntimeError("no luck")


class Red(Reward):
    """Mean red; refuses dark clips."""

    name = "red"

    def score(self, clip: Clip, evidence: Mapping[str, Any]) -> Score:
        if evidence["frames"].mean() < 20:
            raise Degenerate("dark")
        return self.ok(float(evidence["frames"][..., 0].mean()) / 255)


class NeedsGeometry(Reward):
    """Cannot do without a probe."""

    name, needs = "geometric", ("geometry",)

    def score(self, clip: Clip, evidence: Mapping[str, Any]) -> Score:
        return self.ok(1.0)


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> str:
    """This module under a name that a configuration can import."""
    monkeypatch.setitem(sys.modules, "trl_functions", sys.modules[HERE])
    return "trl_functions"


def test_trl_functions_are_rewards(named: str) -> None:
    entries = [
        {"name": "world_r1.trl_rewards:TrlReward", "label": name, "weight": weight, "options": {"function": f"{named}:{name}"}}
        for name, weight in (("brightness", 2.0), ("picky", 1.0), ("patient", 0.5))
    ]
    rubric = Rubric(configuration.parse({"rewards": {"rewards": entries}}).rewards)
    (verdict,) = rubric.judge([clip(128)])
    scores = {score.reward: score for score in verdict.scores}
    assert scores["brightness"].value == pytest.approx(float(video(128).mean()) / 255)
    assert (scores["picky"].value, dict(scores["picky"].parts)) == (1.0, {"length": 24.0})
    assert scores["patient"].value == 2.0
    assert verdict.total == pytest.approx(2 * float(video(128).mean()) / 255 + 1.0 + 1.0)
    (bright,) = rubric.judge([clip(230)])
    assert bright.total is None
    assert next(s for s in bright.scores if s.reward == "patient").status == "degenerate"


def test_a_failing_trl_function_is_a_missing_value(named: str) -> None:
    entry = {"name": "world_r1.trl_rewards:TrlReward", "options": {"function": f"{named}:fails"}}
    (verdict,) = Rubric(configuration.parse({"rewards": {"rewards": [entry]}}).rewards).judge([clip()])
    assert (verdict.total, verdict.scores[0].status) == (None, "failed")
    assert "no luck" in verdict.scores[0].reason


def test_trl_functions_that_cannot_be_found(named: str) -> None:
    for function, message in (
        ("brightness", "module:function"),
        ("no_such_module_anywhere:f", "no module 'no_such_module_anywhere'"),
        (f"{named}:nothing", "has no function 'nothing'"),
    ):
        with pytest.raises(ValueError, match=message):
            TrlReward(function)


def test_rewards_are_trl_functions(named: str) -> None:
    videos = [video(60), video(180)]
    single = as_trl(Red())
    assert single.__name__ == "red"
    assert single(prompts=["a", "b"], completions=videos) == pytest.approx([v[..., 0].mean() / 255 for v in videos])
    conversation = [{"role": "user", "content": "Camera fixed. A box."}]
    rubric = as_trl(
        Rubric(configuration.parse({"rewards": {"rewards": [{"name": f"{named}:Red", "label": "r", "weight": 2}]}}).rewards)
    )
    values = rubric(
        [conversation, "b"], [video(60), video(5)], kind=["rigid", "dynamic"], completion_ids=[[], []], trainer_state=None
    )
    assert values == [pytest.approx(2 * videos[0][..., 0].mean() / 255), None]
    assert [v.scores[0].status for v in rubric.verdicts] == ["ok", "degenerate"]
    assert rubric.verdicts[0].scores[0].reward == "r"
    assert rubric(["x"], [clip(60)]) == [values[0]]
    with pytest.raises(ValueError, match="needs the evidence"):
        as_trl(NeedsGeometry())
    with pytest.raises(ValueError, match="uint8 video"):
        single(prompts=["a"], completions=[np.zeros((5, 4, 4, 3))])
    with pytest.raises(ValueError, match="a prompt is a text or a conversation"):
        single(prompts=[3], completions=[video()])


def test_the_adapters_do_not_import_trl() -> None:
    code = "import sys, world_r1.trl_rewards, world_r1.trl_backend; sys.exit('trl' in sys.modules or 'ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# The trainer.


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    from world_r1.policies.tiny import tiny_wan_pipeline

    return str(tiny_wan_pipeline(tmp_path_factory.mktemp("tiny")))


def configure(model: str, folder: Path, reward: str, **sections: Any) -> Config:
    prompts = folder / "prompts.txt"
    prompts.write_text("Camera orbit left. A red box on grass.\nCamera fixed. A blue sphere.\nCamera push in. A cone.\n")
    tree = {
        "name": "trl",
        "runs": str(folder / "runs"),
        "backend": "trl",
        "steps": 2,
        "model": {"path": model, "device": "cpu", "lora": {"rank": 4, "alpha": 8.0}, "ema_decay": 0.5},
        "video": {"frames": 5, "height": 32, "width": 48},
        "noise": {"fine": 2},
        "flow": {"steps": 4, "window": {"size": 2}},
        "algorithm": {"clip_low": 2e-5, "clip_high": 4e-5, "updates": 2, "kl": {"beta": 0.5, "target_nats": 1e-4}},
        "optimizer": {"learning_rate": 0.02, "micro_batch": 4, "warmup": 3, "grad_clip": 0.01},
        "rewards": {"rewards": [{"name": reward}], "max_failure_rate": 0.6},
        "prompts": {"train": str(prompts), "dynamic": None, "test": str(prompts), "groups": 2, "group_size": 4},
        "evaluation": {"prompts": 2, "steps": 2, "rubric": False, "keep": 1, "bootstrap": 100, "reference": False},
        "record": {"tensorboard": False, "progress": "never", "video_every": 2},
    }
    return configuration.parse({**tree, **sections})


class Uneven(Reward):
    """Mean red, missing for one video of each group."""

    name = "uneven"

    def score(self, clip: Clip, evidence: Mapping[str, Any]) -> Score:
        if clip.id.endswith("k2"):
            return self.missing("third of its group")
        return self.ok(float(evidence["frames"][..., 0].mean()))


def by_our_trainer(config: Config) -> tuple[dict[str, np.ndarray], list[dict[str, float]]]:
    """The same steps with the project's sampler, rubric and trainer."""
    from world_r1.policy import load_policy
    from world_r1.prompts import PromptStream
    from world_r1.rollout import sample_group
    from world_r1.update import Trainer

    policy = load_policy(config)
    trainer, rubric, rows = Trainer(config, policy), Rubric(config.rewards), []
    for step in range(config.steps):
        prompts = PromptStream.of(config).at(step)
        sampled = [sample_group(policy, config, prompt, step, g, step) for g, prompt in enumerate(prompts)]
        groups = [
            Group(prompt, tuple(r.id for r in group.rollouts), tuple(rubric.judge(group.clips)))
            for prompt, group in zip(prompts, sampled, strict=True)
        ]
        advantages = group_relative(groups, {config.rewards.rewards[0].key: 1.0}, config.algorithm.advantage).values
        rows.append(trainer.update([r for group in sampled for r in group.rollouts], advantages))
    return policy.state(), rows


@pytest.mark.slow
@pytest.mark.parametrize("ratio_norm", [False, True])
def test_trl_and_our_trainer_arrive_at_the_same_weights(model: str, tmp_path: Path, named: str, ratio_norm: bool) -> None:
    """Missing scores, asymmetric clipping that acts, KL with adaptive weight, gradient clipping, warm-up, two updates a batch."""
    from world_r1.prompts import PromptStream
    from world_r1.record import Record
    from world_r1.trl_backend import Job

    config = configure(model, tmp_path, f"{named}:Uneven")
    config = config.model_copy(update={"algorithm": config.algorithm.model_copy(update={"ratio_norm": ratio_norm})})
    ours, rows = by_our_trainer(config)
    with Record(config) as record:
        job = Job(config, PromptStream.of(config), record)
        start = job.policy.state()
        job.train()
    theirs = job.policy.state()
    moved = max(float(np.abs(ours[name] - start[name]).max()) for name in ours)
    apart = max(float(np.abs(ours[name] - theirs[name]).max()) for name in ours)
    assert moved > 0.02
    assert apart < 2e-3 * moved, (apart, moved)
    written = [json.loads(line) for line in (config.directory / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in written] == [1, 2]
    assert any(row["clip_fraction"] > 0 for row in rows)
    for row, expected in zip(written, rows, strict=True):
        assert row["failures"] == 2
        for name in ("beta", "lr", "grad_norm", "policy_loss", "ratio_mean", "clip_fraction", "kl_nats"):
            assert row[name] == pytest.approx(expected[name], rel=0.02, abs=1e-6), name


@pytest.mark.slow
def test_a_whole_run_through_trl(model: str, tmp_path: Path, named: str) -> None:
    from world_r1.trl_backend import train_with_trl

    config = configure(model, tmp_path, f"{named}:Red")
    directory = train_with_trl(config)
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == config.steps
    for row in rows:
        for name in ("reward", "reward/trl_functions:Red", "ratio_mean", "kl_nats", "policy_loss", "time/rollout", "time/update"):
            assert math.isfinite(row[name]), name
    for name in ("config.json", "summary.json", "report.html", "eval_before/eval.json", "eval_after/eval.json"):
        assert (directory / name).is_file(), name
    assert list((directory / "adapter").glob("*.safetensors"))
    assert list((directory / "samples").glob("step-*/*.mp4"))


@pytest.mark.slow
def test_what_this_backend_refuses(model: str, tmp_path: Path, named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from world_r1.trl_backend import train_with_trl

    config = configure(model, tmp_path, f"{named}:Red")
    other = config.model_copy(update={"algorithm": configuration.AlgorithmConfig(name="diffusion_nft")})
    with pytest.raises(ValueError, match="flow_grpo only"):
        train_with_trl(other)
    pooled = config.model_copy(update={"rewards": config.rewards.model_copy(update={"pools": ("a",)})})
    with pytest.raises(ValueError, match=r"unset rewards\.pools"):
        train_with_trl(pooled)
    odd = config.model_copy(update={"optimizer": configuration.OptimizerConfig(micro_batch=3)})
    from world_r1.trl_trainer import arguments

    with pytest.raises(ValueError, match=r"multiple of optimizer\.micro_batch=3"):
        arguments(odd, str(tmp_path))
    several = config.model_copy(update={"cluster": config.cluster.model_copy(update={"learners": 2})})
    with pytest.raises(ValueError, match=r"single process, got cluster\.learners=2"):
        train_with_trl(several)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="single process"):
        train_with_trl(config)
