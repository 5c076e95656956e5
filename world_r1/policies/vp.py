"""Models of the variance-preserving process in the coordinates of the project's flow contract.

Such a model knows y = alpha x_0 + beta eps, alpha^2 + beta^2 = 1, and predicts v = alpha eps - beta x_0 (Salimans and Ho, arXiv 2202.00512,
section 4). The flow's x = (1 - sigma) x_0 + sigma eps has the same mixture up to scale: with n = sqrt((1 - sigma)^2 + sigma^2)

    y = x / n,    alpha = (1 - sigma) / n,    beta = sigma / n,    eps - x_0 = (beta - alpha) y + (alpha + beta) v

because x_0 = alpha y - beta v and eps = beta y + alpha v. Nothing is approximated: schedules, transitions, log-probs and the camera's noise
are those of `world_r1.flow`, and a DDIM step of the model is exactly an Euler step here. `vp_ddim` is DDIM's stochastic step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def noise_levels(scheduler: Mapping[str, Any]) -> torch.Tensor:
    """float64 [T]: the flow's sigma at each training timestep 0..T-1 of a CogVideoX scheduler's configuration, rising.

    Betas, the SNR shift abar / (s + (1 - s) abar) and the rescaling to zero terminal SNR (arXiv 2305.08891, algorithm 1). ValueError for
    a schedule that is not "scaled_linear" or a model that does not predict v.
    """
    if scheduler.get("beta_schedule", "scaled_linear") != "scaled_linear" or scheduler.get("prediction_type") != "v_prediction":
        raise ValueError(
            "a scheduler of the variance-preserving process needs beta_schedule scaled_linear and prediction_type v_prediction, got "
            f"{scheduler.get('beta_schedule')!r} and {scheduler.get('prediction_type')!r}; choose CogVideoX 5B or 1.5-5B"
        )
    start, end = (float(scheduler.get(key, default)) for key, default in (("beta_start", 0.00085), ("beta_end", 0.012)))
    steps = int(scheduler.get("num_train_timesteps", 1000))
    betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64).square()
    kept = torch.cumprod(1.0 - betas, 0)
    shift = float(scheduler.get("snr_shift_scale", 3.0))
    kept = kept / (shift + (1.0 - shift) * kept)
    alpha = kept.sqrt()
    if scheduler.get("rescale_betas_zero_snr", False):
        alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    beta = (1.0 - alpha.square()).sqrt()
    return beta / (alpha + beta)


def timestep(levels: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """[B] float32 timesteps at which the process has the flow's sigma [B], fractional between the trained ones; 0 below the first level."""
    table = levels.to(sigma.device)
    sigma = sigma.double()
    upper = torch.searchsorted(table, sigma).clamp(1, len(table) - 1)
    low, high = table[upper - 1], table[upper]
    return (upper - 1 + ((sigma - low) / (high - low)).clamp(0.0, 1.0)).float()


def trailing(levels: torch.Tensor, steps: int) -> torch.Tensor:
    """float32 [steps + 1]: the sigmas of the published sampler ("trailing" timesteps T, T - T/steps, ..., minus one), then 0."""
    count = len(levels)
    chosen = (torch.arange(count, 0, -count / steps, dtype=torch.float64).round().long() - 1)[:steps]
    return torch.cat([levels[chosen], torch.zeros(1, dtype=torch.float64)]).float()


def to_process(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """y = x / n, x [B, ...] and sigma [B]."""
    return x / _column(_norm(sigma), x)


def to_velocity(y: torch.Tensor, v: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """The flow's eps - x_0 from the process's y and v [B, ...] at sigma [B]."""
    n = _norm(sigma)
    return _column((2.0 * sigma - 1.0) / n, y) * y + _column(1.0 / n, y) * v


def _norm(sigma: torch.Tensor) -> torch.Tensor:
    return ((1.0 - sigma).square() + sigma.square()).sqrt()


def _column(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return value.reshape(-1, *[1] * (like.dim() - 1))
