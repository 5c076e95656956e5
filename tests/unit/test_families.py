"""Published architectures, random weights, two experts and CogVideoX: each against diffusers' own pipeline or counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from world_r1 import config as configuration
from world_r1 import flow
from world_r1.config import Config, NoiseConfig, VideoConfig
from world_r1.noise import initial_noise
from world_r1.policies import vp
from world_r1.policies.architectures import ARCHITECTURES, architecture
from world_r1.policies.tiny import tiny_cogvideox_pipeline, tiny_wan_pipeline
from world_r1.policy import load_policy

PROMPTS = ["Camera orbit left. A red box on grass.", "Camera fixed. A blue sphere."]


def made(path: str, family: str, video: tuple[int, int, int] = (9, 32, 48), **model: Any) -> Any:
    section = {"path": path, "policy": family, "device": "cpu", "lora": {"rank": 2, "alpha": 4.0}, **model}
    size = dict(zip(("frames", "height", "width"), video, strict=True))
    return load_policy(configuration.parse({"model": section, "video": size}))


def disturb(policy: Any) -> None:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in policy.named_parameters().values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("path", ARCHITECTURES)
def test_the_counted_weights_are_the_published_ones(path: str) -> None:
    """1.42, 14.29, 5.00 and 5.57 billion weights: a wrong width or depth would show."""
    from diffusers import CogVideoXTransformer3DModel, WanTransformer3DModel

    found = architecture(path)
    kind = WanTransformer3DModel if found.family == "wan" else CogVideoXTransformer3DModel
    with torch.device("meta"):
        module = kind(**found.transformer)
    assert round(sum(p.numel() for p in module.parameters()) / 1e6, -1) == pytest.approx(found.parameters, abs=6)


@pytest.mark.parametrize("path", ARCHITECTURES)
def test_random_weights_keep_the_contract(path: str) -> None:
    family = architecture(path).family
    video = (9, 64, 96)
    policy, again = (made(path, family, video, random_weights="tiny", guidance_scale=3.0) for _ in range(2))
    shape = policy.latent_shape(policy.config.video)
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    condition, sigma = policy.encode(PROMPTS), torch.tensor([0.95, 0.3])
    assert not torch.equal(condition[0], condition[1])
    velocity = policy.velocity(x, sigma, condition)
    assert velocity.isfinite().all()
    assert 0.01 < float(velocity.detach().std()) < 10
    assert torch.equal(velocity, again.velocity(x, sigma, again.encode(PROMPTS)))
    velocity.square().mean().backward()
    grads = [p.grad for name, p in policy.named_parameters().items() if ".lora_B." in name]
    assert grads
    assert all(grad is not None and grad.abs().max() > 0 for grad in grads)
    assert policy.decode(x).shape == (2, *video, 3)


def test_an_unknown_architecture_and_a_wrong_family_are_one_line() -> None:
    with pytest.raises(ValueError, match=r"no architecture is known .*Wan2\.1-T2V-1\.3B"):
        made("nobody/nothing", "wan", random_weights="full")
    with pytest.raises(ValueError, match=r"set model\.policy=cogvideox"):
        made("THUDM/CogVideoX-5B", "wan", random_weights="tiny")
    assert configuration.parse({"model": {"random_weights": True}}).model.random_weights == "full"


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny Wan2.2 A14B: two transformers with other weights and a boundary."""
    folder = tmp_path_factory.mktemp("experts")
    tiny_wan_pipeline(folder / "a", seed=0)
    tiny_wan_pipeline(folder / "b", seed=1)
    (folder / "b" / "transformer").rename(folder / "a" / "transformer_2")
    index = json.loads((folder / "a" / "model_index.json").read_text())
    index |= {"boundary_ratio": 0.875, "transformer_2": ["diffusers", "WanTransformer3DModel"]}
    (folder / "a" / "model_index.json").write_text(json.dumps(index))
    return str(folder / "a")


def test_each_expert_predicts_on_its_side_of_the_boundary(experts: str) -> None:
    policy = made(experts, "wan", lora=None, guidance_scale=4.0, guidance_scale_2=3.0)
    x = torch.randn(3, *policy.latent_shape(policy.config.video), generator=torch.Generator().manual_seed(0))
    sigma, condition = torch.tensor([0.9, 0.875, 0.87]), policy.encode([*PROMPTS, "A cone."])
    negative = policy.encode([""]).expand(3, -1, -1)
    with torch.no_grad():
        actual = policy.velocity(x, sigma, condition)
        for row, (expert, scale) in enumerate([("transformer", 4.0), ("transformer", 4.0), ("transformer_2", 3.0)]):
            one = slice(row, row + 1)
            both = [policy.experts[expert](x[one], 1000 * sigma[one], text[one]).sample for text in (negative, condition)]
            torch.testing.assert_close(actual[one], both[0] + scale * (both[1] - both[0]), atol=1e-5, rtol=1e-4)
        assert not torch.allclose(actual[2:], policy.velocity(x[2:], 0.88, condition[2:]), atol=1e-3)


def test_two_experts_on_a_device_that_batches(experts: str) -> None:
    """Rows of one batch on both sides: the same as one by one."""
    policy = made(experts, "wan")
    disturb(policy)
    x = torch.randn(4, *policy.latent_shape(policy.config.video), generator=torch.Generator().manual_seed(0))
    sigma, condition = torch.tensor([0.9, 0.2, 0.95, 0.5]), policy.encode(PROMPTS * 2)
    with torch.no_grad():
        together = policy._guided(x, sigma, condition, range(4))
        torch.testing.assert_close(together, policy.velocity(x, sigma, condition), atol=1e-5, rtol=1e-4)


def test_two_adapters_train_travel_and_are_saved(experts: str, tmp_path: Path) -> None:
    policy, other = made(experts, "wan"), made(experts, "wan")
    names = set(policy.named_parameters())
    assert {name for name in names if name.startswith("transformer_2.")} == {
        f"transformer_2.{name}" for name in names if not name.startswith("transformer_2.")
    }
    first = policy.state()
    name = next(name for name in first if ".lora_A." in name and not name.startswith("transformer_2."))
    assert not np.array_equal(first[name], first[f"transformer_2.{name}"])
    x = torch.randn(2, *policy.latent_shape(policy.config.video), generator=torch.Generator().manual_seed(0))
    sigma, condition = torch.tensor([0.95, 0.3]), policy.encode(PROMPTS)
    with torch.no_grad():
        base = policy.velocity(x, sigma, condition)
    disturb(policy)
    policy.velocity(x, sigma, condition).square().mean().backward()
    assert all(p.grad is not None for p in policy.named_parameters().values())
    other.load_state(policy.state())
    policy.save(str(tmp_path))
    loaded = made(experts, "wan", init_lora=str(tmp_path))
    with torch.no_grad():
        moved = policy.velocity(x, sigma, condition)
        assert torch.equal(other.velocity(x, sigma, condition), moved)
        assert torch.equal(loaded.velocity(x, sigma, condition), moved)
        with policy.reference():
            assert torch.equal(policy.velocity(x, sigma, condition), base)
    assert (moved - base).abs().flatten(1).max(1).values.min() > 1e-4


@pytest.mark.parametrize("fold", [None, 2])
def test_cogvideox_samples_what_its_pipeline_samples(tmp_path: Path, fold: int | None) -> None:
    """The DDIM sampler of the stock pipeline, with guidance, from the same noise: latents, then pictures."""
    from diffusers import CogVideoXPipeline

    tiny_cogvideox_pipeline(tmp_path, patch_size_t=fold)
    policy = made(str(tmp_path), "cogvideox", lora=None, guidance_scale=4.0)
    shape = policy.latent_shape(policy.config.video)
    assert shape == (4, 3 if fold is None else 4, 4, 6)
    x = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    condition, steps = policy.encode(PROMPTS[:1]), 5
    trace = flow.sample(
        lambda x, s: policy.velocity(x, s, condition),
        x,
        vp.trailing(policy.levels, steps),
        policy.config.flow,
        torch.zeros(0, dtype=torch.int64),
        [],
    )
    pipeline = CogVideoXPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    common = {
        "height": 32,
        "width": 48,
        "num_frames": 9,
        "num_inference_steps": steps,
        "guidance_scale": 4.0,
        "max_sequence_length": 24,
    }
    expected = pipeline(PROMPTS[0], latents=x.transpose(1, 2), output_type="latent", **common).frames
    torch.testing.assert_close(trace.x0, expected.transpose(1, 2), atol=3e-4, rtol=3e-3)
    video = pipeline(PROMPTS[0], latents=x.transpose(1, 2), output_type="np", **common).frames
    assert policy.decode(trace.x0).shape == (1, 9, 32, 48, 3)
    assert np.abs(policy.decode(trace.x0) - 255.0 * video).max() <= 1.5


def test_cogvideox_adapters_and_sizes(tmp_path: Path) -> None:
    tiny_cogvideox_pipeline(tmp_path / "model")
    policy = made(str(tmp_path / "model"), "cogvideox")
    disturb(policy)
    policy.save(str(tmp_path / "lora"))
    loaded = made(str(tmp_path / "model"), "cogvideox", init_lora=str(tmp_path / "lora"))
    x, condition = torch.randn(2, *policy.latent_shape(policy.config.video)), policy.encode(PROMPTS)
    with torch.no_grad():
        assert torch.equal(policy.velocity(x, 0.6, condition), loaded.velocity(x, 0.6, condition))
    with pytest.raises(ValueError, match="the nearest size is 9x32x48"):
        policy.latent_shape(VideoConfig(frames=13, height=32, width=48))
    with pytest.raises(ValueError, match="not a text-to-video WanPipeline"):
        made(str(tmp_path / "model"), "wan")


def test_noise_ahead_of_the_video_is_white_and_the_rest_is_warped() -> None:
    from world_r1.camera import trajectory_for

    config = Config(video=VideoConfig(frames=81, height=96, width=160))
    trajectory = trajectory_for("Camera pan left.", config.video, config.camera)
    settings = NoiseConfig(degradation=0.0)
    plain = initial_noise(trajectory, (4, 21, 12, 20), settings, 1, 2)
    ahead = initial_noise(trajectory, (4, 22, 12, 20), settings, 1, 2, ahead=1)
    assert torch.equal(ahead[:, 1:], plain)
    assert abs(float((ahead[:, 0] * ahead[:, 1]).mean())) < 0.15
    assert 0.9 < float(ahead[:, 0].std()) < 1.1
