"""Loss terms against hand-worked numbers, closed forms and TRL."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from world_r1 import flow, loss
from world_r1.config import FlowConfig


def test_surrogate_by_hand() -> None:
    log_ratio = torch.tensor([0.0, 1.5, 0.5, 1.5, 0.5]).clamp(min=1e-9).log()
    log_ratio[0] = 0.0
    advantages = torch.tensor([2.0, 1.0, 1.0, -1.0, -1.0])
    # clip range [0.8, 1.3]: a gain is capped at 1.3, a loss is never made smaller by clipping
    expected = torch.tensor([-2.0, -1.3, -0.5, 1.5, 0.8])
    torch.testing.assert_close(loss.clipped_surrogate(log_ratio, advantages, 0.2, 0.3), expected)
    torch.testing.assert_close(
        loss.clipped_surrogate(log_ratio, advantages, 0.2), loss.clipped_surrogate(log_ratio, advantages, 0.2, 0.2)
    )


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_gradient_at_ratio_one_is_minus_advantage_times_the_score(reduction: str) -> None:
    torch.manual_seed(0)
    mean = torch.randn(5, 3, 4, requires_grad=True)
    transition = flow.Transition(mean, torch.tensor(0.4))
    x = transition.sample(torch.Generator().manual_seed(1)).detach()
    advantages = torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0])
    log_prob = transition.log_prob(x, reduction)
    value = loss.clipped_surrogate(log_prob - log_prob.detach(), advantages, 1e-3)
    (ours,) = torch.autograd.grad(value.sum(), mean, retain_graph=True)
    (score,) = torch.autograd.grad(log_prob.sum(), mean)
    torch.testing.assert_close(ours, -advantages.reshape(5, 1, 1) * score)
    by_hand = (x - mean.detach()) / 0.4**2 / (12 if reduction == "mean" else 1)
    torch.testing.assert_close(score, by_hand)


def test_no_gradient_beyond_the_clip_range() -> None:
    log_ratio = torch.tensor([0.2, 0.2, -0.2, -0.2], requires_grad=True)
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0])
    (gradient,) = torch.autograd.grad(loss.clipped_surrogate(log_ratio, advantages, 0.1, 0.15).sum(), log_ratio)
    assert (gradient != 0).tolist() == [False, True, True, False]


def test_centred_log_ratio_is_the_linear_term_with_the_score_as_gradient() -> None:
    """log r + |delta|^2/2 = z . delta exactly, so over draws its mean is 0 and its standard deviation |delta|."""
    draws, dimensions, std = 20_000, 30, 0.3
    old = torch.zeros(draws, dimensions)
    shift = torch.full((dimensions,), 0.05)
    new = (old + shift).requires_grad_()
    x = flow.Transition(old, torch.tensor(std)).sample(torch.Generator().manual_seed(0))
    for reduction, scale in (("sum", 1.0), ("mean", 1.0 / dimensions)):
        transition = flow.Transition(new, torch.tensor(std))
        log_ratio = transition.log_prob(x, reduction) - flow.Transition(old, torch.tensor(std)).log_prob(x, reduction)
        centred = loss.centred_log_ratio(log_ratio, transition, old, reduction)
        (with_correction,) = torch.autograd.grad(centred.sum(), new, retain_graph=True)
        (without,) = torch.autograd.grad(log_ratio.sum(), new)
        assert torch.equal(with_correction, without)
        centred, log_ratio = centred.detach(), log_ratio.detach()
        delta = float(shift.norm()) / std
        torch.testing.assert_close(centred, x @ shift / std**2 * scale, atol=1e-4, rtol=1e-4)
        assert abs(float(centred.mean()) / scale) < 5 * delta / math.sqrt(draws)
        assert abs(float(log_ratio.mean()) / scale + delta**2 / 2) < 5 * delta / math.sqrt(draws)
        assert float(centred.std()) / scale == pytest.approx(delta, rel=0.03)


@pytest.mark.parametrize("family", ["flow_sde", "wan_sde", "cps"])
def test_step_scale_makes_steps_alike(family: str) -> None:
    """The same change of the velocity gives log-ratios of the same spread at every step, once scaled."""
    config, draws, dimensions = FlowConfig(family=family, steps=8, shift=3.0), 4000, 24
    sigmas = flow.schedule(8, 3.0)
    x, v = torch.randn(2, draws, dimensions, generator=torch.Generator().manual_seed(0))
    spreads, scaled = [], []
    trained = flow.coefficients(family, sigmas[:5], sigmas[1:6], config.noise_level)
    for i in range(5):
        old = flow.step(family, x, v, sigmas[i], sigmas[i + 1], config.noise_level)
        new = flow.step(family, x, v + 0.01, sigmas[i], sigmas[i + 1], config.noise_level)
        drawn = old.sample(torch.Generator().manual_seed(i))
        log_ratio = new.log_prob(drawn, "sum") - old.log_prob(drawn, "sum")
        centred = loss.centred_log_ratio(log_ratio, new, old.mean, "sum")
        scale = loss.step_scale(flow.coefficients(family, sigmas[i], sigmas[i + 1], config.noise_level), trained)
        spreads.append(float(centred.std()))
        scaled.append(float((centred * scale).std()))
    assert max(spreads) / min(spreads) > 1.3, spreads
    assert max(scaled) / min(scaled) < 1.1, scaled
    assert float(loss.step_scale(trained, trained).mean()) == pytest.approx(1.0)


def test_beta_holds_the_nats_that_the_derivation_says() -> None:
    """Per dimension -rho delta + beta delta^2/2 with rho = 1/sqrt(D): at its minimum D delta^2/2 nats = 1/(2 beta^2)."""
    for dimensions in (100, 19_200):
        for nats in (0.5, 5.0):
            beta = loss.beta_for_nats(nats)
            delta = 1 / math.sqrt(dimensions) / beta
            assert dimensions * delta**2 / 2 == pytest.approx(nats)
    assert loss.beta_for_nats(1 / (2 * 0.3**2)) == pytest.approx(0.3)


def test_diagnostics_by_hand() -> None:
    ratios = torch.tensor([0.5, 1.0, 1.0, 2.0])
    found = {name: float(value) for name, value in loss.ratio_metrics(ratios.log(), 0.1, 1.5).items()}
    assert found["ratio_mean"] == pytest.approx(1.125)
    assert found["ratio_std"] == pytest.approx(float(ratios.std(correction=0)))
    assert found["clip_fraction"] == 0.25  # 0.5 is below 0.9; 2.0 is not above 2.5
    assert found["approx_kl"] == pytest.approx(((0.5 - 1 - math.log(0.5)) + (2 - 1 - math.log(2))) / 4)


def trl_loss(log_prob: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """`GRPOTrainer._compute_loss` on our log-probs: denoising steps are its tokens; everything it needs of a trainer is in the stub."""
    from collections import defaultdict

    from trl import GRPOTrainer

    def same(value: torch.Tensor, **kwargs: str) -> torch.Tensor:
        return value  # what gather and reduce are with one process

    batch, k = log_prob.shape
    stub = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *args, **kwargs: (log_prob, torch.zeros_like(log_prob), None),
        accelerator=SimpleNamespace(gather=same, reduce=same, num_processes=1, sync_gradients=True),
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        model=SimpleNamespace(training=True),
        _metrics={"train": defaultdict(list)},
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        beta=0.0,
        loss_type="grpo",
        epsilon_low=low,
        epsilon_high=high,
        use_vllm=False,
        vllm_importance_sampling_correction=False,
        current_gradient_accumulation_steps=1,
        _entropy_bonus_enabled=False,
        max_completion_length=k,
    )
    inputs = {
        "prompt_ids": torch.zeros(batch, 1, dtype=torch.long),
        "prompt_mask": torch.ones(batch, 1, dtype=torch.long),
        "completion_ids": torch.zeros(batch, k, dtype=torch.long),
        "completion_mask": torch.ones(batch, k, dtype=torch.long),
        "advantages": advantages,
        "old_per_token_logps": old,
        "num_items_in_batch": torch.tensor(float(batch * k)),
    }
    return GRPOTrainer._compute_loss(stub, None, inputs)


@pytest.mark.slow
def test_trl_computes_the_same_surrogate() -> None:
    torch.manual_seed(0)
    log_prob = (0.3 * torch.randn(6, 4)).requires_grad_()
    old, advantages = 0.3 * torch.randn(6, 4), 2 * torch.randn(6)
    theirs = trl_loss(log_prob, old, advantages, 0.2, 0.28)
    ours = loss.clipped_surrogate(log_prob - old, advantages[:, None], 0.2, 0.28).mean()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(*(torch.autograd.grad(value, log_prob)[0] for value in (ours, theirs)), rtol=1e-6, atol=1e-7)
