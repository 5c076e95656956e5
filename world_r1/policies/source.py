"""Where a policy's parts come from, and on which device and in which precision they are put."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import nn


class Source(Protocol):
    """Where a model's parts come from: files (`wan_files`, `cogvideox_files`) or random numbers (`random_weights`)."""

    #: `model_index.json` and `world_r1.json`.
    index: dict[str, Any]
    settings: dict[str, Any]

    @property
    def vae_config(self) -> dict[str, Any]:
        """Configuration of the autoencoder."""

    @property
    def scheduler(self) -> dict[str, Any]:
        """Configuration of the scheduler."""

    def transformer(self, dtype: torch.dtype, part: str) -> nn.Module:
        """A transformer in evaluation mode; `part` is "transformer", "transformer_2", or a folder that holds one."""

    def vae(self) -> nn.Module:
        """The video autoencoder, float32, frozen."""

    def text(self, dtype: torch.dtype) -> tuple[Any, Any]:
        """Tokenizer and text encoder."""


def choose_device(name: str) -> torch.device:
    """ "auto" is the GPU where there is one. ValueError for a GPU that is asked for and absent."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("model.device=cuda, but torch sees no CUDA device; install a CUDA build of torch or set model.device=cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """ "auto" is bf16 on a GPU and fp32 on a CPU."""
    if name == "auto":
        name = "bf16" if device.type == "cuda" else "fp32"
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[name]
