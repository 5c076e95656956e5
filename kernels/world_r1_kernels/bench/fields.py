"""Queries, keys and values with the structure of video: smooth random fields on a (T, H, W) grid, and those of a real transformer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import conv3d, pad

from world_r1_kernels.order import token_order
from world_r1_kernels.pyramid_attention import PyramidConfig, apply_pyramid_attention


@dataclass(frozen=True)
class Regime:
    """How peaked and how noisy attention on a field is."""

    temperature: float
    noise: float
    lengths: tuple[float, float, float]
    """Correlation lengths in tokens along T, H, W."""


REGIMES = {
    "easy": Regime(1.2, 0.5, (1.0, 2.0, 2.0)),
    "peaky": Regime(1.8, 0.5, (1.0, 2.0, 2.0)),
    "noisy": Regime(1.5, 1.0, (0.7, 1.2, 1.2)),
}


@dataclass(frozen=True)
class Sample:
    """One layer's attention input [1, H, N, D], tokens in raster order of their grid (T, H, W)."""

    name: str
    grid: tuple[int, int, int]
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor

    def ordered(self, kind: str, block: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """q, k and v in a token order; attention does not depend on it, plans do."""
        order = token_order(self.grid, kind, block)
        q, k, v = (order.apply(x, 2) for x in (self.q, self.k, self.v))
        return q, k, v


def field_sample(name: str, grid: tuple[int, int, int], width: int = 64, seed: int = 2) -> Sample:
    """One head on a random field of regime `name`: q and k are linear views of one smooth field plus noise, RMS-normed, rotated."""
    regime = REGIMES[name]
    generator = torch.Generator().manual_seed(seed)
    channels, tokens = 48, grid[0] * grid[1] * grid[2]
    field = _smooth(torch.randn(1, channels, *grid, generator=generator), regime.lengths)
    first, second, third = (torch.randn(channels, width, generator=generator) / channels**0.5 for _ in range(3))
    noise = [regime.noise * torch.randn(tokens, width, generator=generator) for _ in range(3)]
    q, k, v = field @ (0.6 * first + 0.4 * second) + noise[0], field @ first + noise[1], field @ third + noise[2]
    q, k = (regime.temperature * _rotate(x / x.square().mean(-1, keepdim=True).sqrt(), grid) for x in (q, k))
    return Sample(name, grid, *(x[None, None] for x in (q, k, v)))


def _smooth(x: torch.Tensor, lengths: tuple[float, float, float]) -> torch.Tensor:
    """[N, C]: x [1, C, T, H, W] under a Gaussian of these standard deviations, to unit variance."""
    channels = x.shape[1]
    for axis, length in enumerate(lengths):
        reach = int(3 * length) + 1
        kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / length) ** 2)
        shape, margins = [1] * 5, [0] * 6
        shape[axis + 2] = len(kernel)
        margins[4 - 2 * axis] = margins[5 - 2 * axis] = reach
        weight = (kernel / kernel.sum()).view(shape).repeat(channels, 1, 1, 1, 1)
        x = conv3d(pad(x, margins, mode="replicate"), weight, groups=channels)
    return (x / x.std())[0].flatten(1).T


def _rotate(x: torch.Tensor, grid: tuple[int, int, int]) -> torch.Tensor:
    """Rotary position encoding of x [N, D] along three axes, base 10,000, channel pairs shared out as in Wan."""
    width = x.shape[-1]
    side = 2 * (width // 6)
    position = torch.stack(torch.meshgrid(*(torch.arange(n) for n in grid), indexing="ij"), -1).view(-1, 3).float()
    angles = [
        position[:, axis : axis + 1] / 10000 ** (torch.arange(0, size, 2) / size)
        for axis, size in enumerate((width - 2 * side, side, side))
    ]
    angle = torch.cat(angles, 1)
    even, odd = x[:, ::2], x[:, 1::2]
    turned = torch.stack([even * angle.cos() - odd * angle.sin(), even * angle.sin() + odd * angle.cos()], -1)
    return turned.flatten(1)


@torch.no_grad()
def recorded(
    transformer: Any, latent_shape: tuple[int, int, int, int], text: torch.Tensor, sigmas: list[float]
) -> Iterator[Sample]:
    """Inputs of every self-attention of a Wan transformer while it samples: one per layer and sigma, all heads.

    Starts from noise [1, C, T, H, W] and follows the model's own velocity through `sigmas` (falling), with dense attention.
    """
    layers: dict[int, list[torch.Tensor]] = {}
    handle = apply_pyramid_attention(transformer, PyramidConfig(block=16), order="raster", backend="reference")
    patch = transformer.config.patch_size
    grid = (latent_shape[1] // patch[0], latent_shape[2] // patch[1], latent_shape[3] // patch[2])

    def remember(_: Any, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        layers[layer] = [x.transpose(1, 2).float() for x in (q, k, v)]
        return torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)

    handle.attend = remember  # type: ignore[assignment,method-assign]
    try:
        x = torch.randn(1, *latent_shape, generator=torch.Generator().manual_seed(0))
        for sigma, following in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
            velocity = transformer(x, torch.tensor([1000 * sigma]), text, return_dict=False)[0]
            for layer, tensors in sorted(layers.items()):
                yield Sample(f"layer {layer}, sigma {sigma:.2f}", grid, *tensors)
            x = x + (following - sigma) * velocity
    finally:
        handle.remove()
