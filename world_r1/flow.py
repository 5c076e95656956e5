"""Flow-matching policy: sigma schedule, stochastic and deterministic transitions, sampling loop over any velocity field.

Convention: x_t = (1 - sigma) x_0 + sigma eps, velocity v = eps - x_0; sigma falls from 1 (noise) to 0 (video). One denoising
step is a Gaussian transition whose mean is linear in x and v:

    x' ~ N(a x + b v, std^2 I),        (a, b, std) = `coefficients(family, sigma, sigma_next, noise_level)`

With d = sigma_next - sigma < 0, the three families are

* `flow_sde`  s_t = noise_level sqrt(sigma / (1 - sigma))  (Flow-GRPO, arXiv 2505.05470; at sigma = 1 the pole is replaced by
  the value at sigma_next in the denominator),
* `wan_sde`   s_t = noise_level sigma                      (the gentler variant used with Wan; no pole at sigma = 1),
  both with a = 1 + s_t^2 d / (2 sigma), b = (1 + s_t^2 (1 - sigma) / (2 sigma)) d, std = s_t sqrt(-d): the Euler-Maruyama step
  of the reverse SDE that has the marginals of the ODE dx = v dt;
* `cps`       std = sigma_next sin(noise_level pi / 2)     (coefficients-preserving sampling, arXiv 2509.05952): the step to
  sigma_next is rebuilt from the predicted x_0 and eps so that signal and noise keep their coefficients,
  x' = (1 - sigma_next) x0_hat + sqrt(sigma_next^2 - std^2) eps_hat + std z. It adds no noise at the last step. Its law is that
  of the ODE only where the injected noise per step is small (noise_level -> 0 as steps grow): eps_hat is a posterior mean and
  varies less than the eps it stands for. Public implementations drop 1 / (2 std^2) from its log-density, which weights steps
  by std^2; here the log-prob is the true one, with the true std, and such weighting is left to `algorithm.ratio_norm`.
* `vp_ddim`   the stochastic step of DDIM (arXiv 2010.02502, equations 12 and 16), whose home is the variance-preserving process
  y = alpha x_0 + beta eps with alpha^2 + beta^2 = 1. With n = sqrt((1 - sigma)^2 + sigma^2) that process is x / n: alpha = (1 - sigma) / n,
  beta = sigma / n. DDIM's std there, eta (beta' / beta) sqrt(1 - alpha^2 / alpha'^2) with eta = noise_level, is here n' times that,
  and the mean is (1 - sigma') x0_hat + sqrt(sigma'^2 - std^2) eps_hat; eta = 1 is the ancestral DDPM step. No noise at the last step.

All randomness comes from per-sample CPU generators, so that a sample does not depend on which others share its batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from world_r1 import rng
from world_r1.config import FlowConfig

Family = Literal["flow_sde", "wan_sde", "cps", "vp_ddim"]
Reduction = Literal["mean", "sum"]
#: velocity(x [B, ...] float32, sigma [B] float32) -> [B, ...] float32
VelocityFn = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

_LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)


def schedule(steps: int, shift: float) -> torch.Tensor:
    """Sigmas of `steps` denoising steps: linspace(1, 0, steps + 1), shifted by sigma -> shift sigma / (1 + (shift - 1) sigma).

    Returns float32 [steps + 1] on the CPU; the first is exactly 1 and the last exactly 0. ValueError for steps < 1 or shift <= 0.
    """
    if steps < 1 or shift <= 0:
        raise ValueError(f"a schedule needs steps >= 1 and shift > 0, got steps={steps}, shift={shift}")
    return shifted(torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64), shift).float()


def shifted(sigma: torch.Tensor, shift: float) -> torch.Tensor:
    """The timestep shift of Wan and Stable Diffusion 3, elementwise on sigmas in [0, 1]."""
    return shift * sigma / (1.0 + (shift - 1.0) * sigma)


def window(config: FlowConfig, *key: int | str) -> torch.Tensor:
    """The k stochastic steps of a rollout (Flow-GRPO-Fast, MixGRPO): ascending int64 [k] indices into the schedule.

    "first" gives 0..k-1; "random" draws k distinct steps from the first `window.within` (null: all but the last), a function
    of `key` alone. Raises ValueError if the window holds a step at which the family adds no noise.
    """
    size = config.window.size
    if config.window.position == "first":
        chosen = torch.arange(size)
    else:
        candidates = min(config.window.within or config.steps - 1, config.steps - 1)
        chosen = torch.randperm(candidates, generator=rng.generator(*key, "window"))[:size].sort().values
    if len(chosen) < size or int(chosen[-1]) >= config.steps:
        raise ValueError(f"flow.window.size={size} does not fit into flow.steps={config.steps}; lower the one or raise the other")
    if config.family in ("cps", "vp_ddim") and int(chosen[-1]) == config.steps - 1:
        raise ValueError(
            f"family {config.family} adds no noise at the last step, which cannot be trained; lower flow.window.size or raise flow.steps"
        )
    return chosen


def generators(seeds: Sequence[Sequence[int]]) -> list[torch.Generator]:
    """The generators that `sample` draws transition noise from: one per (run seed, step, prompt, sample)."""
    return [rng.generator(*seed, "sde") for seed in seeds]


def replay_noise(seeds: Sequence[Sequence[int]], k: int, shape: Sequence[int]) -> torch.Tensor:
    """The standard normal draws [B, k, *shape] (float32, CPU) that `sample` used with `generators(seeds)` at its k window steps."""
    return torch.stack([torch.stack([torch.randn(tuple(shape), generator=g) for _ in range(k)]) for g in generators(seeds)])


def _column(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """[B] or scalar -> broadcastable against [B, ...]."""
    return value.reshape(value.shape + (1,) * (like.dim() - 1)) if value.dim() else value


def _reduce(value: torch.Tensor, reduction: Reduction) -> torch.Tensor:
    """Over all but the batch dimension."""
    if reduction not in ("mean", "sum"):
        raise ValueError(f"a reduction is 'mean' or 'sum', got {reduction!r}")
    flat = value.flatten(1)
    return flat.mean(1) if reduction == "mean" else flat.sum(1)


@dataclass(frozen=True)
class Transition:
    """x' ~ N(mean, std^2 I): one denoising step of B samples.

    Example: `Transition(mean=<4x16x5x12x20 float32>, std=<4 float32>)`; std 0 is the deterministic (ODE) step, which can be sampled
    but has no density: a log-prob of it would be the solver's rounding error, not exploration.
    """

    #: [B, ...] float32.
    mean: torch.Tensor
    #: [B] or scalar float32, one standard deviation for all dimensions of a sample.
    std: torch.Tensor

    def __post_init__(self) -> None:
        if self.std.dim() > 1 or (self.std.dim() == 1 and len(self.std) != len(self.mean)):
            raise ValueError(f"std must be a scalar or [B={len(self.mean)}], got shape {tuple(self.std.shape)}")

    def sample(self, generator: torch.Generator | Sequence[torch.Generator]) -> torch.Tensor:
        """Draw x' [B, ...]. With one generator per sample, a sample's noise does not depend on its batch."""
        return self.mean + _column(self.std, self.mean) * self._noise(generator)

    def _noise(self, generator: torch.Generator | Sequence[torch.Generator]) -> torch.Tensor:
        if isinstance(generator, torch.Generator):
            noise = torch.randn(self.mean.shape, generator=generator, device=generator.device)
        elif len(generator) != len(self.mean):
            raise ValueError(f"{len(self.mean)} samples need as many generators, got {len(generator)}")
        else:
            noise = torch.stack([torch.randn(self.mean.shape[1:], generator=g, device=g.device) for g in generator])
        return noise.to(self.mean.device)

    def log_prob(self, x: torch.Tensor, reduction: Reduction) -> torch.Tensor:
        """[B] log-density of x [B, ...], averaged ("mean") or summed ("sum") over the D dimensions of a sample.

        Raises ValueError for a deterministic transition.
        """
        self._must_be_stochastic("log_prob")
        squares = _reduce((x - self.mean).square(), reduction)
        dimensions = 1 if reduction == "mean" else self.mean[0].numel()
        # The constant in float64: vectorised and scalar float32 logarithms differ in the last bit, which would leak the batch size.
        constant = dimensions * (self.std.double().log() + _LOG_SQRT_2PI)
        return -squares / (2.0 * self.std.square()) - constant.float()

    def kl(self, other: Transition, reduction: Reduction) -> torch.Tensor:
        """[B] closed-form KL(self || other) in nats, averaged or summed over the D dimensions of a sample.

        Raises ValueError if either transition is deterministic.
        """
        self._must_be_stochastic("kl")
        other._must_be_stochastic("kl")
        dimensions = 1 if reduction == "mean" else self.mean[0].numel()
        ratio = self.std / other.std
        spread = dimensions * (0.5 * (ratio.square() - 1.0) - ratio.log())
        return _reduce((self.mean - other.mean).square(), reduction) / (2.0 * other.std.square()) + spread

    def _must_be_stochastic(self, what: str) -> None:
        if not bool((self.std > 0).all()):
            raise ValueError(
                f"{what} of a deterministic transition (std = 0): only stochastic steps, those of the SDE window, have one"
            )


@dataclass(frozen=True)
class Coefficients:
    """mean = x * `x` + velocity * `velocity`, and the standard deviation: float64 CPU tensors of one shape."""

    x: torch.Tensor
    velocity: torch.Tensor
    std: torch.Tensor


def coefficients(family: Family, sigma: torch.Tensor | float, sigma_next: torch.Tensor | float, noise_level: float) -> Coefficients:
    """The linear coefficients of a stochastic step (module docstring), computed in float64 on the CPU.

    Raises ValueError unless 0 <= sigma_next < sigma <= 1 and the family is known.
    """
    s = torch.as_tensor(sigma, dtype=torch.float64, device="cpu")
    n = torch.as_tensor(sigma_next, dtype=torch.float64, device="cpu")
    if not bool(((n >= 0) & (n < s) & (s <= 1)).all()):
        raise ValueError(f"a denoising step needs 0 <= sigma_next < sigma <= 1, got sigma={s.tolist()}, sigma_next={n.tolist()}")
    if family in ("cps", "vp_ddim"):
        std = n * math.sin(noise_level * math.pi / 2.0) if family == "cps" else _ddim_std(s, n, noise_level)
        kept = (n.square() - std.square()).sqrt()
        return Coefficients((1.0 - n) + kept, -(1.0 - n) * s + kept * (1.0 - s), std)
    if family == "flow_sde":
        diffusion = noise_level * (s / (1.0 - torch.where(s == 1.0, n, s))).sqrt()
    elif family == "wan_sde":
        diffusion = noise_level * s
    else:
        raise ValueError(f"unknown family {family!r}; known: flow_sde, wan_sde, cps, vp_ddim")
    step_size = n - s
    half = diffusion.square() / (2.0 * s)
    return Coefficients(1.0 + half * step_size, (1.0 + half * (1.0 - s)) * step_size, diffusion * (-step_size).sqrt())


def _ddim_std(s: torch.Tensor, n: torch.Tensor, eta: float) -> torch.Tensor:
    """DDIM's standard deviation from sigma s to n, in this module's coordinates; 0 <= eta <= 1 or ValueError."""
    if not 0 <= eta <= 1:
        raise ValueError(f"family vp_ddim has a noise level eta in 0..1 (1 is the ancestral step), got {eta}")
    before, after = s / ((1.0 - s).square() + s.square()).sqrt(), n / ((1.0 - n).square() + n.square()).sqrt()
    spread = (1.0 - (1.0 - before.square()) / (1.0 - after.square())).clamp(min=0.0)
    return eta * ((1.0 - n).square() + n.square()).sqrt() * (after / before) * spread.sqrt()


def step(
    family: Family,
    x: torch.Tensor,
    velocity: torch.Tensor,
    sigma: torch.Tensor | float,
    sigma_next: torch.Tensor | float,
    noise_level: float,
) -> Transition:
    """The stochastic transition from sigma to sigma_next, each a scalar or [B]; x and velocity are [B, ...] float32."""
    c = coefficients(family, sigma, sigma_next, noise_level)
    a, b, std = (value.to(device=x.device, dtype=x.dtype) for value in (c.x, c.velocity, c.std))
    return Transition(torch.addcmul(x * _column(a, x), velocity, _column(b, x)), std)


def ode_step(
    x: torch.Tensor, velocity: torch.Tensor, sigma: torch.Tensor | float, sigma_next: torch.Tensor | float
) -> torch.Tensor:
    """The Euler step of dx = v dt from sigma to sigma_next: x + (sigma_next - sigma) v, [B, ...]."""
    difference = torch.as_tensor(sigma_next, dtype=torch.float64).cpu() - torch.as_tensor(sigma, dtype=torch.float64).cpu()
    return torch.addcmul(x, velocity, _column(difference.to(device=x.device, dtype=x.dtype), x))


@dataclass(frozen=True)
class Trace:
    """What sampling leaves behind: the result and the k stochastic steps.

    Example: `Trace(x0=<4x16x5x12x20>, latents=<4x3x16x5x12x20>, next_latents=<4x3x16x5x12x20>, log_probs=<4x3>)`, float32.
    """

    #: [B, ...] final latents.
    x0: torch.Tensor
    #: [B, k, ...] x before and after each stochastic step.
    latents: torch.Tensor
    next_latents: torch.Tensor
    #: [B, k] log-prob of each draw, in the reduction of the configuration.
    log_probs: torch.Tensor


@torch.no_grad()
def sample(
    velocity: VelocityFn,
    x_T: torch.Tensor,
    sigmas: torch.Tensor,
    config: FlowConfig,
    steps: torch.Tensor,
    generators: Sequence[torch.Generator],
    rounding: torch.dtype | None = None,
) -> Trace:
    """Denoise x_T [B, ...] (float32) along `sigmas` [n + 1]: stochastic steps where `steps` says so, Euler ODE steps elsewhere.

    `steps` is [k] or, with another window per sample, [B, k] ascending indices; k = 0 samples the ODE. Each generator gives its own
    sample's noise at its own window steps only, one draw a step. With `rounding` (bfloat16) x is rounded before and after a stochastic
    step and sampling goes on from there, so that latents kept in that type are what was sampled, and log-probs stay exact. Raises
    ValueError for steps outside the schedule.
    """
    batch, count = len(x_T), len(sigmas) - 1
    steps = steps.cpu().expand(batch, -1) if steps.dim() == 1 else steps.cpu()
    k = steps.shape[1]
    ascending = k == 0 or (int(steps.min()) >= 0 and int(steps.max()) < count and bool((steps.diff() > 0).all()))
    if steps.shape[0] != batch or not ascending:
        raise ValueError(f"window steps must be ascending indices below {count} for {batch} samples, got {steps.tolist()}")
    x = x_T.float()
    latents = x.new_empty((batch, k, *x.shape[1:]))
    next_latents = torch.empty_like(latents)
    log_probs = x.new_zeros((batch, k))
    for i in range(count):
        sigma, sigma_next = sigmas[i].expand(batch), sigmas[i + 1].expand(batch)
        rows, slots = (steps == i).nonzero(as_tuple=True)
        if rounding is not None and len(rows):
            x = _rounded(x, rows, rounding)
        v = velocity(x, sigma.to(x.device))
        following = ode_step(x, v, sigma, sigma_next) if len(rows) < batch else x
        if len(rows):
            transition = step(config.family, x, v, sigma, sigma_next, config.noise_level)
            noise = torch.stack([torch.randn(x.shape[1:], generator=generators[row]) for row in rows.tolist()]).to(x.device)
            drawn = transition.mean.clone()
            drawn[rows] += _column(transition.std[rows], x) * noise
            if rounding is not None:
                drawn = _rounded(drawn, rows, rounding)
            latents[rows, slots], next_latents[rows, slots] = x[rows], drawn[rows]
            # Over the whole batch, as the update does it: the same kernel on the same shape gives the same bits.
            log_probs[rows, slots] = transition.log_prob(drawn, config.log_prob)[rows]
            if len(rows) == batch:
                following = drawn
            else:
                following[rows] = drawn[rows]
        x = following
    return Trace(x, latents, next_latents, log_probs)


def _rounded(x: torch.Tensor, rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A copy of x whose `rows` hold values of `dtype`."""
    x = x.clone()
    x[rows] = x[rows].to(dtype).to(x.dtype)
    return x


def evaluate(
    velocity: VelocityFn, x: torch.Tensor, x_next: torch.Tensor, steps: torch.Tensor, sigmas: torch.Tensor, config: FlowConfig
) -> tuple[Transition, torch.Tensor]:
    """A stored transition x -> x_next ([B, ...]) at schedule indices `steps` [B] under another velocity field, with its gradient.

    Returns the transition and the [B] log-prob of x_next in the configured reduction. With the velocity that sampled it, in
    the same batch, the log-prob is the stored one to the last bit.
    """
    transition = evaluate_transition(velocity, x, steps, sigmas, config)
    return transition, transition.log_prob(x_next, config.log_prob)


def evaluate_transition(
    velocity: VelocityFn, x: torch.Tensor, steps: torch.Tensor, sigmas: torch.Tensor, config: FlowConfig
) -> Transition:
    """The transition from x [B, ...] at schedule indices `steps` [B] under a velocity field."""
    index = steps.cpu()
    sigma, sigma_next = sigmas.cpu()[index], sigmas.cpu()[index + 1]
    return step(config.family, x, velocity(x, sigma.to(x.device)), sigma, sigma_next, config.noise_level)
