"""Sampling follows its seed rule and its settings, and writes what it says."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from world_r1 import config as configuration
from world_r1 import flow, noise, sample
from world_r1.camera import trajectory_for
from world_r1.policies import adapter
from world_r1.policies.tiny import tiny_wan_pipeline
from world_r1.policies.wan import WanPolicy
from world_r1.types import Prompt
from world_r1.video import read_mp4

SETTINGS: dict[str, Any] = {
    "steps": 3,
    "shift": 2.0,
    "guidance_scale": 2.0,
    "negative_prompt": "night",
    "noise": {"degradation": 0.2},
    "video": {"frames": 5, "height": 32, "width": 48, "fps": 4.0},
}
TEXT = "Camera orbit left. A red box on grass."


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_wan_pipeline(tmp_path_factory.mktemp("tiny"), settings=SETTINGS))


@pytest.fixture(scope="module")
def policy(model: str) -> WanPolicy:
    return WanPolicy(sample.for_sampling(sample.settings_of(model)), trainable=False)


def test_settings_come_from_the_weights(model: str, tmp_path: Path) -> None:
    config = sample.settings_of(model)
    assert (config.flow.steps, config.flow.shift, config.model.guidance_scale, config.model.negative_prompt) == (
        3,
        2.0,
        2.0,
        "night",
    )
    assert (config.video.frames, config.video.fps, config.noise.degradation, config.model.max_text_length) == (5, 4.0, 0.2, 24)
    assert config.camera.preset == "world_r1"
    assert config.model.lora is None
    plain = sample.settings_of(str(tiny_wan_pipeline(tmp_path)))
    assert (plain.flow.steps, plain.video.height, plain.model.guidance_scale) == (50, 480, 5.0)
    (tmp_path / "world_r1.json").write_text(json.dumps({"noise": {"degradation": 2}}))
    with pytest.raises(ValueError, match=r"world_r1\.json of model .*noise\.degradation"):
        sample.settings_of(str(tmp_path))


def test_generate_is_noise_then_ode_then_decode(policy: WanPolicy) -> None:
    config = policy.config
    path = trajectory_for(TEXT, config.video, config.camera)
    assert path is not None
    x = noise.initial_noise(path, policy.latent_shape(config.video), config.noise, 7, 0, 0, 0)[None]
    condition = policy.encode([TEXT])
    sigmas = flow.schedule(3, 2.0).tolist()
    with torch.no_grad():
        for sigma, following in pairwise(sigmas):
            x = x + (following - sigma) * policy.velocity(x, sigma, condition)
    expected = policy.decode(x)
    actual = sample.generate(policy, config, [TEXT], [7])
    assert actual.shape == (1, 5, 32, 48, 3)
    assert np.abs(actual.astype(int) - expected).max() <= 1


def test_a_sample_depends_on_its_own_prompt_and_seed_alone(policy: WanPolicy) -> None:
    prompts = [Prompt("a", TEXT), Prompt("b", "Camera fixed. A blue sphere."), Prompt("c", TEXT)]
    together = sample.generate(policy, policy.config, prompts, [1, 2, (3, 4)])
    assert np.array_equal(together[2], sample.generate(policy, policy.config, [TEXT], [(3, 4)])[0])
    assert np.array_equal(together[0], sample.generate(policy, policy.config, [TEXT], [(1, 0, 0, 0)])[0])
    assert not np.array_equal(together[0], together[2])
    assert not np.array_equal(together[0], sample.generate(policy, policy.config, [TEXT.replace("left", "right")], [1])[0])


def test_number_of_steps_can_be_given(policy: WanPolicy) -> None:
    few, default = (sample.generate(policy, policy.config, [TEXT], [1], steps=steps) for steps in (1, None))
    assert not np.array_equal(few, default)


def test_non_finite_latents_are_an_error_not_a_picture(policy: WanPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "velocity", lambda x, sigma, condition: torch.full_like(x, float("nan")))
    with pytest.raises(ArithmeticError, match="not finite for 1 of 1 prompts"):
        sample.generate(policy, policy.config, [TEXT], [1])


def test_file_and_sheet(model: str, tmp_path: Path) -> None:
    out = sample.sample_to_file(model, TEXT, 3, tmp_path / "new" / "clip.mp4", sheet=True)
    video, fps = read_mp4(out)
    assert video.shape == (5, 32, 48, 3)
    assert fps == 4.0
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    policy = WanPolicy(sample.for_sampling(sample.settings_of(model)), trainable=False)
    assert np.abs(video.astype(float) - sample.generate(policy, policy.config, [TEXT], [3])[0]).mean() < 16


def test_adapter_steps_and_guidance_reach_the_sample(model: str, tmp_path: Path) -> None:
    trained = WanPolicy(configuration.parse({"model": {"path": model, "device": "cpu", "lora": {"rank": 2}}}))
    with torch.no_grad():
        for parameter in trained.named_parameters().values():
            parameter.add_(0.3)
    trained.save(str(tmp_path / "lora"))
    assert (tmp_path / "lora" / adapter.FILE).is_file()
    files = {
        name: sample.sample_to_file(model, TEXT, 3, tmp_path / f"{name}.mp4", **options).read_bytes()  # type: ignore[arg-type]
        for name, options in {
            "base": {},
            "again": {},
            "lora": {"lora": str(tmp_path / "lora")},
            "steps": {"steps": 2},
            "guidance": {"guidance": 6.0},
        }.items()
    }
    assert files["base"] == files["again"]
    assert len(set(files.values())) == 4


def test_a_run_configuration_samples_without_its_fresh_adapter(model: str) -> None:
    config = configuration.parse({"model": {"path": model, "lora": {"rank": 2}}, "flow": {"steps": 6, "window": {"size": 5}}})
    changed = sample.for_sampling(config, steps=2, guidance=3.0)
    assert changed.model.lora is None
    assert (changed.flow.steps, changed.model.guidance_scale) == (2, 3.0)
    assert changed.video == config.video


@pytest.mark.parametrize(("prompt", "out", "message"), [(" ", "a.mp4", "prompt is empty"), (TEXT, "a.gif", "must be an .mp4")])
def test_bad_requests_are_refused_before_loading(prompt: str, out: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        sample.sample_to_file(str(tmp_path / "no-model"), prompt, 0, tmp_path / out)


def test_one_seed_a_prompt(policy: WanPolicy) -> None:
    with pytest.raises(ValueError, match="2 seeds for 1 prompts"):
        sample.generate(policy, policy.config, [TEXT], [1, 2])
