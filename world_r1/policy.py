"""The contract of a policy: one video model behind encode, velocity, decode and adapter.

A policy knows nothing of rewards, advantages or Ray. Its velocity includes classifier-free guidance: the guided field *is* the policy.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from world_r1.config import Config, ModelConfig, VideoConfig
from world_r1.types import AttentionPlans

if TYPE_CHECKING:
    import torch


class Policy(Protocol):
    """One video model. Tensors are on `device`; x, velocities and log-probs are float32 whatever the weights' dtype."""

    device: torch.device

    def latent_shape(self, video: VideoConfig) -> tuple[int, int, int, int]:
        """(C, t, h, w) of the latents of one video; ValueError for a size that the model cannot make."""

    def encode(self, prompts: Sequence[str]) -> torch.Tensor:
        """[B, L, D] text conditioning; with guidance the caller need not know about the negative prompt."""

    def velocity(self, x: torch.Tensor, sigma: torch.Tensor | float, condition: torch.Tensor) -> torch.Tensor:
        """[B, C, t, h, w] guided velocity v ~ eps - x_0 at x_t = (1 - sigma) x_0 + sigma eps; sigma is a scalar or [B]."""

    def decode(self, latents: torch.Tensor) -> np.ndarray:
        """[B, C, t, h, w] normalised latents -> [B, T, H, W, 3] uint8."""

    def reference(self) -> AbstractContextManager[None]:
        """Inside, `velocity` is the frozen base model's (adapter off, or a frozen copy in full fine-tuning)."""

    def recording(self, wanted: Collection[int] | None = None) -> AbstractContextManager[list[list[AttentionPlans | None]]]:
        """Inside, every `velocity` appends its videos' sparse-attention plans to the list (None where attention is dense), or of the
        `wanted` calls only, counted from 0."""

    def replaying(self, plans: Sequence[AttentionPlans | None]) -> AbstractContextManager[None]:
        """Inside, every `velocity` attends by these plans, one a video."""

    def named_parameters(self) -> dict[str, torch.nn.Parameter]:
        """The trained parameters by stable name (float32 masters)."""

    def state(self) -> dict[str, np.ndarray]:
        """Trained parameters as float32 numpy arrays, by the names of `named_parameters`."""

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Inverse of `state`; ValueError names missing and unexpected entries."""

    def save(self, directory: str) -> None:
        """Write the adapter (or the full transformer) in diffusers layout, safetensors, with LoRA metadata."""


def frames_ahead(policy: Any, video: VideoConfig) -> int:
    """Latent frames that a policy samples before the video's first and drops when decoding; 0 for a policy that does not say."""
    say = getattr(policy, "frames_ahead", None)
    return 0 if say is None else int(say(video))


def load_policy(config: Config, *, trainable: bool = True) -> Policy:
    """Build the policy that `config.model` names."""
    return policy_class(config.model)(config, trainable=trainable)


def policy_class(model: ModelConfig) -> type:
    """Class for `model.policy`: the `POLICY` of a module in `world_r1.policies`, or "module:Class"."""
    module_name, _, class_name = model.policy.partition(":")
    if class_name:
        return getattr(importlib.import_module(module_name), class_name)
    try:
        return importlib.import_module(f"world_r1.policies.{module_name}").POLICY
    except ModuleNotFoundError as error:
        if error.name != f"world_r1.policies.{module_name}":
            raise
        raise ValueError(f"unknown policy {model.policy!r}; shipped: wan, cogvideox. Your own: 'module:Class'") from error
