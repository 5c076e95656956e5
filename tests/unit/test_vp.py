"""The variance-preserving process in the flow's coordinates, against its own definitions and diffusers' scheduler."""

from __future__ import annotations

import math

import pytest
import torch

from world_r1 import flow
from world_r1.config import FlowConfig, WindowConfig
from world_r1.policies import vp
from world_r1.policies.architectures import architecture

SCHEDULER = dict(architecture("zai-org/CogVideoX-5b").scheduler)
SHIFTED = {**SCHEDULER, "snr_shift_scale": 3.0, "rescale_betas_zero_snr": False}


@pytest.mark.parametrize("settings", [SCHEDULER, SHIFTED])
def test_levels_are_the_schedulers(settings: dict[str, object]) -> None:
    from diffusers import CogVideoXDDIMScheduler

    stock = CogVideoXDDIMScheduler.from_config(settings).alphas_cumprod.double()
    alpha, beta = stock.sqrt(), (1 - stock).sqrt()
    levels = vp.noise_levels(settings)
    torch.testing.assert_close(levels, beta / (alpha + beta), atol=1e-6, rtol=1e-6)
    assert (levels.diff() > 0).all()
    if settings is SCHEDULER:
        assert levels[-1] == 1.0


def test_timesteps_invert_the_levels() -> None:
    levels = vp.noise_levels(SCHEDULER)
    chosen = torch.tensor([0, 1, 137, 998, 999])
    torch.testing.assert_close(vp.timestep(levels, levels[chosen].float()), chosen.float(), atol=2e-3, rtol=0)
    assert vp.timestep(levels, torch.tensor([0.0])).item() == 0.0
    between = vp.timestep(levels, (levels[500:501] + levels[501:502]).float() / 2)
    assert 500.3 < between.item() < 500.7


def test_velocity_is_noise_minus_data() -> None:
    generator = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(4, 2, 3, 5, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    sigma = torch.tensor([1.0, 0.83, 0.4, 0.05], dtype=torch.float64)
    s = sigma.reshape(-1, 1, 1, 1, 1)
    x = (1 - s) * x0 + s * eps
    y = vp.to_process(x, sigma)
    norm = ((1 - s) ** 2 + s**2).sqrt()
    alpha, beta = (1 - s) / norm, s / norm
    torch.testing.assert_close(y, alpha * x0 + beta * eps)
    torch.testing.assert_close(vp.to_velocity(y, alpha * eps - beta * x0, sigma), eps - x0)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_the_stochastic_step_is_ddims(eta: float) -> None:
    """Mean and standard deviation of DDIM (equations 12 and 16), computed in the process and brought back."""
    generator = torch.Generator().manual_seed(1)
    x, v = (torch.randn(1, 2, 3, 4, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    for sigma, following in ((1.0, 0.9), (0.7, 0.4), (0.1, 0.02)):
        a, b = (math.sqrt((1 - s) ** 2 + s**2) for s in (sigma, following))
        abar, abar_next = ((1 - sigma) / a) ** 2, ((1 - following) / b) ** 2
        x0, eps = x - sigma * v, x + (1 - sigma) * v
        std = eta * math.sqrt((1 - abar_next) / (1 - abar)) * math.sqrt(1 - abar / abar_next)
        mean = math.sqrt(abar_next) * x0 + math.sqrt(1 - abar_next - std**2) * eps
        step = flow.step("vp_ddim", x, v, sigma, following, eta)
        torch.testing.assert_close(step.mean, b * mean)
        torch.testing.assert_close(step.std, torch.tensor(b * std, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"eta in 0\.\.1"):
        flow.step("vp_ddim", x, v, 0.7, 0.4, 1.2)


def test_the_ancestral_step_keeps_the_law() -> None:
    """Gaussian data N(1.5, 0.4^2) with its exact velocity: the samples have its mean and standard deviation."""
    steps, mean, std, count = 200, 1.5, 0.4, 40_000
    config = FlowConfig(family="vp_ddim", steps=steps, shift=1.0, noise_level=1.0, window=WindowConfig(size=steps - 1))

    def velocity(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        s = sigma.reshape(-1, 1)
        variance = (1 - s) ** 2 * std**2 + s**2
        surprise = (x - (1 - s) * mean) / variance
        return s * surprise - (mean + (1 - s) * std**2 * surprise)

    x = torch.randn(40, count // 40, generator=torch.Generator().manual_seed(3))
    trace = flow.sample(
        velocity, x, flow.schedule(steps, 1.0), config, flow.window(config), flow.generators([(3, i) for i in range(40)])
    )
    assert abs(float(trace.x0.mean()) - mean) < 5 * std / math.sqrt(count) + 1 / steps
    assert abs(float(trace.x0.std()) - std) < 5 * std / math.sqrt(2 * count) + 1 / steps


def test_another_schedule_is_refused() -> None:
    for change in ({"prediction_type": "epsilon"}, {"beta_schedule": "linear"}):
        with pytest.raises(ValueError, match="v_prediction"):
            vp.noise_levels({**SCHEDULER, **change})


def test_rounded_latents_are_what_was_sampled() -> None:
    """With `rounding` the stored bfloat16 latents give the stored log-probs back to the last bit."""
    net = torch.nn.Linear(7, 7)
    velocity = lambda x, sigma: net(x) + sigma.reshape(-1, 1, 1, 1, 1) * x  # noqa: E731
    config = FlowConfig(steps=6, window=WindowConfig(size=3, position="random"))
    steps, sigmas = flow.window(config, 1), flow.schedule(6, 3.0)
    x = torch.randn(3, 2, 2, 3, 7, generator=torch.Generator().manual_seed(0))
    generators = flow.generators([(0, i) for i in range(3)])
    trace = flow.sample(velocity, x, sigmas, config, steps, generators, torch.bfloat16)
    assert torch.equal(trace.latents, trace.latents.bfloat16().float())
    assert torch.equal(trace.next_latents, trace.next_latents.bfloat16().float())
    with torch.no_grad():
        for j in range(3):
            _, log_prob = flow.evaluate(velocity, trace.latents[:, j], trace.next_latents[:, j], steps[j].expand(3), sigmas, config)
            assert torch.equal(log_prob, trace.log_probs[:, j])
