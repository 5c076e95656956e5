"""The terms of the policy loss, as functions of tensors.

How strong an anchor is a KL weight? Let log-prob and KL both be averaged over the D latent dimensions, and write delta = (m -
m_ref) / std
for the drift of a step's mean in standard deviations. The policy gradient pulls along the noise z that was rewarded; among D
independent directions an advantage of unit size correlates with each by rho ~ 1 / sqrt(D). Per dimension the loss is -rho
delta + beta delta^2 / 2, smallest at delta = rho / beta, where the total KL of the step is D (rho / beta)^2 / 2 = 1 / (2
beta^2) nats, whatever D is. So beta = 0.004 allows 31,000 nats per step, which anchors nothing, and beta = 0.3 about 6. That
total, in nats per trained step, is what `algorithm.kl.target_nats` schedules and what every run logs as `kl_nats`;
`beta_for_nats` is the inverse of the formula.
"""

from __future__ import annotations

import math

import torch

from world_r1.flow import Coefficients, Reduction, Transition


def clipped_surrogate(
    log_ratio: torch.Tensor, advantages: torch.Tensor, clip_low: float, clip_high: float | None = None
) -> torch.Tensor:
    """PPO's pessimistic surrogate, elementwise: max(-A r, -A clamp(r, 1 - clip_low, 1 + clip_high)) with r = exp(log_ratio).

    `clip_high` None means `clip_low`. At r = 1 its gradient is -A times that of the log-prob.
    """
    ratio = log_ratio.exp()
    bounded = ratio.clamp(1.0 - clip_low, 1.0 + (clip_low if clip_high is None else clip_high))
    return torch.maximum(-advantages * ratio, -advantages * bounded)


def centred_log_ratio(
    log_ratio: torch.Tensor, transition: Transition, old_mean: torch.Tensor, reduction: Reduction
) -> torch.Tensor:
    """[B] log-ratio plus its known bias, the KL between the sampling and the present policy (GRPO-Guard, arXiv 2510.22319).

    With x' = m_old + std z and delta = (m - m_old) / std, the total log-ratio is z . delta - |delta|^2 / 2: under the sampling
    policy it has mean -|delta|^2 / 2 and standard deviation |delta|, so that most ratios lie below 1 and the upper clip hardly
    ever acts. Adding |delta|^2 / 2 (over D for the mean reduction) centres it. The correction is a constant to the gradient,
    which stays that of the log-prob.
    """
    old = Transition(old_mean, transition.std)
    return log_ratio + Transition(transition.mean.detach(), transition.std).kl(old, reduction)


def step_scale(chosen: Coefficients, trained: Coefficients) -> torch.Tensor:
    """[B] factors that make log-ratios of different denoising steps alike (GRPO-Guard).

    A change dv of the velocity moves a step's mean by b dv, hence the centred log-ratio z . (b dv) / std scales with b / std.
    Multiplied by std / |b| it scales with dv alone: one clip range then acts alike at every step, and steps weigh alike in the
    gradient. `trained` holds the coefficients of all steps that the run may train, [n]; the factors are divided by their mean
    over these, so that a clip range keeps its meaning. `chosen` holds those of the B steps at hand.
    """
    scale = (trained.std / trained.velocity.abs()).mean()
    return (chosen.std / chosen.velocity.abs() / scale).float()


def beta_for_nats(nats: float) -> float:
    """The KL weight at which an unclipped policy gradient of unit advantages settles at `nats` per step: 1 / sqrt(2 nats)."""
    return 1.0 / math.sqrt(2.0 * nats)


def ratio_metrics(log_ratio: torch.Tensor, clip_low: float, clip_high: float | None = None) -> dict[str, torch.Tensor]:
    """Diagnostics of a micro-batch as scalar tensors (still on the device, so that one transfer fetches all).

    `ratio_mean`, `ratio_std` (population), `clip_fraction` (ratios outside the clip range) and `approx_kl` = mean(r - 1 - log
    r), the nonnegative estimate of KL(sampling || present policy) in the units of the reduction.
    """
    log_ratio = log_ratio.detach()
    ratio = log_ratio.exp()
    high = clip_low if clip_high is None else clip_high
    return {
        "ratio_mean": ratio.mean(),
        "ratio_std": ratio.std(correction=0),
        "clip_fraction": ((ratio < 1.0 - clip_low) | (ratio > 1.0 + high)).float().mean(),
        "approx_kl": (torch.expm1(log_ratio) - log_ratio).mean(),
    }
