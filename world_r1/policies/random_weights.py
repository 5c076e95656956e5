"""Models with the published architectures and random weights: for benchmarks and dry runs, where values do not matter but shapes do.

Speed and memory are those of the trained models; pictures are noise. There is no text encoder: text features are drawn from the words, as
many as there are words, in the encoder's width, since a run encodes a prompt once and frees the encoder.
"""

from __future__ import annotations

import re
import zlib
from typing import Any

import torch
from torch import nn

from world_r1.policies.architectures import Architecture, architecture, tiny

#: Standard deviation of weight matrices.
SCALE = 0.02


class RandomModel:
    """Parts of a known architecture, as `world_r1.policies.source.Source` asks for them. The same path gives the same weights."""

    def __init__(self, path: str, size: str, device: torch.device) -> None:
        """`size` is "full" or "tiny"; ValueError for a path without a known architecture."""
        found = architecture(path)
        self.path = path
        self.device = device
        self.architecture: Architecture = tiny(found) if size == "tiny" else found
        self.index: dict[str, Any] = dict(found.index)
        self.settings: dict[str, Any] = {"max_text_length": 24} if size == "tiny" else {}

    @property
    def vae_config(self) -> dict[str, Any]:
        """Arguments of the autoencoder."""
        return dict(self.architecture.vae)

    @property
    def scheduler(self) -> dict[str, Any]:
        """Configuration of the scheduler."""
        return dict(self.architecture.scheduler)

    def text(self, dtype: torch.dtype) -> tuple[Any, Any]:
        """Words as tokens, and an encoder that draws their features."""
        key = "text_dim" if self.architecture.family == "wan" else "text_embed_dim"
        return _Words(), _DrawnText(int(self.architecture.transformer[key]), dtype)

    def _build(self, kind: Any, settings: dict[str, Any], dtype: torch.dtype, name: str) -> nn.Module:
        """A module without its own initialisation (which takes a minute for 14B), filled on the device, in evaluation mode, frozen."""
        with torch.device("meta"):
            module = kind(**settings)
        module = nn.Module.to(module, dtype).to_empty(device=self.device)
        fill(module, zlib.crc32(f"{self.path} {name}".encode()))
        return module.eval().requires_grad_(False)


class RandomWan(RandomModel):
    """A Wan model; ValueError for an architecture of another family."""

    def __init__(self, path: str, size: str, device: torch.device) -> None:
        super().__init__(path, size, device)
        _refuse_other(self, "wan")

    def transformer(self, dtype: torch.dtype, part: str) -> nn.Module:
        """One expert, with the precision that diffusers gives each module of a model read in `dtype`."""
        from diffusers import WanTransformer3DModel
        from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed

        settings = dict(self.architecture.transformer)
        module: Any = self._build(WanTransformer3DModel, settings, dtype, part)
        head, patch, length = settings["attention_head_dim"], settings["patch_size"], settings["rope_max_seq_len"]
        module.rope = WanRotaryPosEmbed(head, patch, length).to(self.device)  # tables, not weights
        keep = WanTransformer3DModel._keep_in_fp32_modules
        for name, parameter in module.named_parameters():
            if any(part in keep for part in name.split(".")):
                parameter.data = parameter.data.float()
        return module

    def vae(self) -> nn.Module:
        """The autoencoder."""
        from diffusers import AutoencoderKLWan

        return self._build(AutoencoderKLWan, dict(self.architecture.vae), torch.float32, "vae")


class RandomCogVideoX(RandomModel):
    """A CogVideoX model; ValueError for an architecture of another family."""

    def __init__(self, path: str, size: str, device: torch.device) -> None:
        super().__init__(path, size, device)
        _refuse_other(self, "cogvideox")

    def transformer(self, dtype: torch.dtype, part: str) -> nn.Module:
        """The transformer."""
        from diffusers import CogVideoXTransformer3DModel

        return self._build(CogVideoXTransformer3DModel, dict(self.architecture.transformer), dtype, part)

    def vae(self) -> nn.Module:
        """The autoencoder."""
        from diffusers import AutoencoderKLCogVideoX

        return self._build(AutoencoderKLCogVideoX, dict(self.architecture.vae), torch.float32, "vae")


@torch.no_grad()
def fill(module: nn.Module, seed: int) -> None:
    """Matrices from N(0, 0.02^2), biases 0, gains of norms 1: activations of a deep network stay of order one."""
    for index, (name, parameter) in enumerate(module.named_parameters()):
        if parameter.ndim >= 2 and parameter.numel() > max(parameter.shape):
            generator = torch.Generator(parameter.device).manual_seed((seed << 16) + index)
            parameter.normal_(0.0, SCALE, generator=generator)
        else:  # norms (whose gains may have dimensions of one) and biases
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)


class _Words:
    """Splits a prompt into words; a token is a hash."""

    def __call__(self, texts: list[str], max_length: int, **_: Any) -> Any:
        words = [[zlib.crc32(word.encode()) for word in re.findall(r"\w+|[^\w\s]", text.lower())] + [1] for text in texts]
        ids = torch.zeros(len(texts), max_length, dtype=torch.int64)
        mask = torch.zeros(len(texts), max_length, dtype=torch.int64)
        for row, tokens in enumerate(words):
            kept = tokens[:max_length]
            ids[row, : len(kept)] = torch.tensor(kept)
            mask[row, : len(kept)] = 1
        return _Tokens(ids, mask)


class _Tokens:
    def __init__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> None:
        self.input_ids, self.attention_mask = input_ids, attention_mask


class _DrawnText(nn.Module):
    """Features N(0, 1) that follow from the token alone."""

    def __init__(self, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.width, self.dtype = width, dtype

    def forward(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> Any:
        drawn = {
            token: torch.randn(self.width, generator=torch.Generator().manual_seed(token)) for token in set(ids.flatten().tolist())
        }
        features = torch.stack([torch.stack([drawn[token] for token in row]) for row in ids.tolist()])
        return _Features(features.to(ids.device, self.dtype))


class _Features:
    def __init__(self, last_hidden_state: torch.Tensor) -> None:
        self.last_hidden_state = last_hidden_state

    def __getitem__(self, index: int) -> torch.Tensor:
        return (self.last_hidden_state,)[index]


def _refuse_other(model: RandomModel, family: str) -> None:
    found = model.architecture.family
    if found != family:
        raise ValueError(f"model {model.path!r} is of the family {found}; set model.policy={found}")
