"""Speed switches on a GPU, where the compiler's programs and the Triton kernels run: tiny and small models with random weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from world_r1.config import Config, parse
from world_r1.policy import load_policy
from world_r1.rollout import sample_group
from world_r1.types import Prompt
from world_r1.update import Trainer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

WAN = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"


def configured(size: str = "tiny", video: tuple[int, int, int] = (9, 64, 96), dtype: str = "fp32", **switches: Any) -> Config:
    section = {"path": WAN, "random_weights": size, "device": "cuda", "dtype": dtype, "guidance_scale": 3.0, "lora": {"rank": 4}}
    return parse(
        {
            "model": section,
            "video": dict(zip(("frames", "height", "width"), video, strict=True)),
            "flow": {"steps": 3, "window": {"size": 2}},
            "optimizer": {"micro_batch": 2},
            "prompts": {"groups": 1, "group_size": 2},
            "speed": switches,
        }
    )


def velocity(config: Config) -> torch.Tensor:
    policy: Any = load_policy(config)
    x = torch.randn(2, *policy.latent_shape(config.video), generator=torch.Generator().manual_seed(0)).cuda()
    with torch.no_grad():
        return policy.velocity(x, 0.6, policy.encode(["A red box.", "A cone."])).cpu()


@pytest.mark.slow
@pytest.mark.parametrize("switches", [{"compile": True}, {"guidance_batch": False}, {"compile": True, "checkpoint": "auto"}])
def test_the_velocity_is_the_plain_one(switches: dict[str, Any]) -> None:
    # cuBLAS adds in another order for another batch, and guidance multiplies the difference by three
    torch.testing.assert_close(velocity(configured(**switches)), velocity(configured()), atol=5e-4, rtol=1e-3)


@pytest.mark.slow
def test_sparse_bf16_training_step_at_full_width() -> None:
    """1.3B with random weights, 9x480x832: the kernels' plans replayed, |log ratio| at most 1e-3 a dimension, all blocks trained."""
    config = configured(
        "full", (9, 480, 832), "bf16", attention={"kind": "pyramid"}, latents="bf16", checkpoint="auto", vae_dtype="bf16"
    )
    policy: Any = load_policy(config)
    trainer = Trainer(config, policy)
    rollouts = sample_group(policy, config, Prompt("a", "Camera orbit left. A red box."), 0, 0, 0).rollouts
    assert rollouts[0].plans[0] is not None
    metrics = trainer.update(rollouts, {rollout.id: value for rollout, value in zip(rollouts, (1.0, -1.0), strict=True)})
    assert abs(metrics["ratio_mean"] - 1.0) <= 1e-3
    assert metrics["grad_norm"] > 0
    assert metrics["updates_refused"] == 0
