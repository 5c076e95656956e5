"""The interface of a policy-optimisation algorithm: likelihood-based (Flow-GRPO) or forward-process (DiffusionNFT)."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from world_r1.policy import Policy
from world_r1.types import AttentionPlans, Trajectory


@dataclass(frozen=True)
class Batch:
    """A micro-batch of B videos for one loss evaluation. Tensors are on the policy's device, float32.

    Example: `Batch(steps=<B,2>, latents=<B,2,16,5,12,20>, ..., advantages=<B>, condition=<B,64,256>, seeds=((7,3,1,0), ...))`
    """

    #: [B, k] int64 indices of the stochastic steps in the sigma schedule (k = 0 for forward-process algorithms).
    steps: torch.Tensor
    #: [B, k, C, t, h, w] x before and after each stochastic step.
    latents: torch.Tensor
    next_latents: torch.Tensor
    #: [B, k] log-probs under the sampling policy.
    log_probs: torch.Tensor
    #: [B, C, t, h, w] final latents.
    x0: torch.Tensor
    #: [B] advantages; videos without a valid score or in a dropped group never get here.
    advantages: torch.Tensor
    #: [B, L, D] text conditioning.
    condition: torch.Tensor
    #: Per video (run seed, step, prompt, sample), for algorithms that draw noise in the update.
    seeds: tuple[tuple[int, int, int, int], ...]
    #: Per video the commanded camera, which fixes the law of its noise; empty where no video has one.
    trajectories: tuple[Trajectory | None, ...] = ()
    #: Per video the sparse-attention plans of its k steps; empty where attention is dense or plans are drawn anew.
    plans: tuple[tuple[AttentionPlans | None, ...], ...] = ()
    #: Latent frames before the video's first, whose noise no camera warps.
    ahead: int = 0

    def attending(self, policy: Policy, j: int) -> AbstractContextManager[None]:
        """Inside, the policy attends as the sampler did at window position j."""
        if not any(self.plans):
            return nullcontext()
        return policy.replaying([plans[j] for plans in self.plans])


@dataclass(frozen=True)
class Loss:
    """A scalar to differentiate and what to log: plain floats, already means over the micro-batch."""

    value: torch.Tensor
    metrics: dict[str, float] = field(default_factory=dict)


def floats(metrics: dict[str, torch.Tensor]) -> dict[str, float]:
    """Scalar tensors as numbers, fetched from the device at once."""
    numbers = torch.stack([value.detach() for value in metrics.values()]).tolist()
    return dict(zip(metrics, numbers, strict=True))


class Algorithm(Protocol):
    """One file in `world_r1.algorithms`, listed in its `ALGORITHMS` dict.

    The learner calls `losses` once per micro-batch and update, backpropagates each loss as it is yielded (so that only one
    graph lives at a time), and `after_update` once per optimizer step.
    """

    #: Whether rollouts must contain stochastic steps.
    stochastic: bool

    def losses(self, policy: Policy, batch: Batch) -> Any:
        """Iterator of `Loss`; their values are to be summed (each already weighted by 1/number of terms)."""

    def after_update(self, policy: Policy, metrics: dict[str, float]) -> dict[str, float]:
        """React to the mean metrics of one optimizer step (adaptive beta, moving averages); returns more metrics to log."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that resume must restore: numbers and numpy arrays only."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
