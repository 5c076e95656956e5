"""The part of the configuration that says how the policy learns: sigmas, algorithm, optimizer. See `world_r1.config`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from world_r1.config_speed import Strict


class WindowConfig(Strict):
    """SDE window (Flow-GRPO-Fast, MixGRPO): stochastic steps inside, ODE elsewhere."""

    #: Number of stochastic (stored and trained) steps.
    size: int = Field(3, ge=1)
    #: "first": steps 0..size-1. "random": `size` distinct steps drawn per (step, prompt) from the first `within` steps.
    position: Literal["first", "random"] = "first"
    #: Candidate steps for "random"; null means all but the last.
    within: int | None = Field(None, ge=1)


class FlowConfig(Strict):
    """Sigma schedule and transitions of the policy."""

    #: Denoising steps in training rollouts.
    steps: int = Field(8, ge=1)
    #: Timestep shift: sigma -> shift sigma / (1 + (shift - 1) sigma).
    shift: float = Field(3.0, gt=0)
    #: Family of stochastic transitions: Flow-GRPO's SDE, its Wan variant, coefficients-preserving sampling, or DDIM's own (for
    #: models of the variance-preserving process such as CogVideoX).
    family: Literal["flow_sde", "wan_sde", "cps", "vp_ddim"] = "flow_sde"
    #: Noise level: a (flow_sde), multiplier of sigma (wan_sde), eta (cps, vp_ddim).
    noise_level: float = Field(0.7, gt=0)
    window: WindowConfig = WindowConfig()
    #: Reduction of the Gaussian log-density over latent dimensions.
    log_prob: Literal["mean", "sum"] = "mean"


class KLConfig(Strict):
    """KL to the frozen base model, scheduled by total nats per trained step (a weight on a per-dimension mean is no anchor)."""

    #: Weight of the KL, which is in the reduction of `flow.log_prob`; the start value when `target_nats` is set. 0 and no target: no KL;
    #: 0 with a target starts at 1 / sqrt(2 target_nats), the weight that holds there (derivation in `world_r1.loss`).
    beta: float = Field(0.3, ge=0)
    #: Adaptive beta: raise above and lower below this total KL in nats per trained step. null keeps beta fixed.
    target_nats: float | None = Field(None, gt=0)
    #: Largest change of beta in one update, as a factor.
    rate: float = Field(1.2, gt=1)


class AdvantageConfig(Strict):
    """Group-relative advantages."""

    #: "total": standardise the weighted sum. "parts": standardise every reward within its group, then weight and sum (GDPO).
    standardise: Literal["total", "parts"] = "total"
    clip: float = Field(5.0, gt=0)
    #: Groups whose spread is at or below this are dropped and counted.
    min_std: float = Field(1e-4, ge=0)
    #: Fewest valid videos a group needs.
    min_valid: int = Field(2, ge=2)


class AlgorithmConfig(Strict):
    """Policy-gradient algorithm: a name in `world_r1.algorithms`."""

    name: Literal["flow_grpo", "diffusion_nft"] = "flow_grpo"
    clip_low: float = Field(1e-3, gt=0)
    #: Upper clip; null uses `clip_low` (symmetric).
    clip_high: float | None = Field(None, gt=0)
    #: GRPO-Guard: standardise log-ratios per denoising step before clipping.
    ratio_norm: bool = False
    kl: KLConfig = KLConfig()
    advantage: AdvantageConfig = AdvantageConfig()
    #: Optimizer steps per rollout batch.
    updates: int = Field(1, ge=1)
    #: All window steps (Flow-GRPO) or noise levels (DiffusionNFT) of a micro-batch in one pass: fewer launches, more memory.
    together: bool = False
    #: DiffusionNFT: guidance strength beta, noise levels drawn per video, decay of the old policy.
    nft_beta: float = Field(1.0, gt=0)
    nft_sigmas: int = Field(2, ge=1)
    nft_decay: float = Field(0.9, ge=0, lt=1)
    #: Lowest noise level drawn, before the shift; high levels tell the videos of a group apart, low ones mostly draw variance.
    nft_sigma_min: float = Field(0.0, ge=0, lt=1)


class OptimizerConfig(Strict):
    """AdamW."""

    learning_rate: float = Field(1e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = Field(1e-4, ge=0)
    grad_clip: float = Field(1.0, gt=0)
    #: Optimizer steps of linear warm-up.
    warmup: int = Field(0, ge=0)
    #: Videos per forward in the update.
    micro_batch: int = Field(4, ge=1)
