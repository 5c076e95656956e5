"""What every video transformer with pyramid attention shares: one call's order and plans, the policies, recording and replay."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from world_r1_kernels.order import TokenOrder, token_order
from world_r1_kernels.pyramid_attention.api import pyramid_attention
from world_r1_kernels.pyramid_attention.plan import Plan
from world_r1_kernels.pyramid_attention.select import PyramidConfig, drawn_by, make_plan


@dataclass
class Call:
    """One forward of the model: its order, whether it is dense, and each layer's plan, drawn at first use and then kept.

    Kept, because gradient checkpointing runs a layer again, and that run must see the same blocks.
    """

    order: TokenOrder
    dense: bool
    plans: dict[int, Plan] = field(default_factory=dict)


class PyramidAttention(ABC):
    """What `apply_pyramid_attention` returns: takes the model back to dense, records plans, replays them."""

    def __init__(
        self,
        transformer: Any,
        config: PyramidConfig,
        order: str,
        dense_layers: frozenset[int],
        dense_above: float | None,
        backend: str,
    ) -> None:
        self.transformer = transformer
        self.config = config
        self.order = order
        self.dense_layers = dense_layers
        self.dense_above = dense_above
        self.backend = backend
        self._recorded: list[dict[int, Plan]] | None = None
        self._replayed: Iterator[Mapping[int, Plan]] | None = None
        self._processors = [block.attn1.processor for block in self.blocks]
        self._hooks = self._install()

    @property
    @abstractmethod
    def blocks(self) -> Sequence[Any]:
        """The transformer's layers."""

    @abstractmethod
    def _install(self) -> list[Any]:
        """Set the attention processors and register the hooks; the hooks' handles."""

    def remove(self) -> None:
        """Back to the attention that the model had."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        for block, processor in zip(self.blocks, self._processors, strict=True):
            block.attn1.set_processor(processor)

    @contextmanager
    def recording(self) -> Iterator[list[dict[int, Plan]]]:
        """Inside, every forward appends its plans {layer: plan} to the list that this yields."""
        self._recorded, before = [], self._recorded
        try:
            yield self._recorded
        finally:
            self._recorded = before

    @contextmanager
    def replaying(self, plans: Sequence[Mapping[int, Plan]]) -> Iterator[None]:
        """Inside, forwards take these plans, one entry each, in order; one forward too many raises a ValueError."""
        self._replayed, before = iter(plans), self._replayed
        try:
            yield
        finally:
            self._replayed = before

    def attend(
        self,
        call: Call,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        text: int = 0,
    ) -> torch.Tensor:
        """Self-attention [B, N, H, D] of one layer of one call; the last `text` tokens see and are seen in full."""
        if call.dense or layer in self.dense_layers:
            heads_first = (x.transpose(1, 2) for x in (q, k, v))
            return torch.nn.functional.scaled_dot_product_attention(*heads_first).transpose(1, 2)
        if layer not in call.plans:
            config = replace(self.config, dense=((-text, 0),)) if text else self.config
            call.plans[layer] = make_plan(q.transpose(1, 2), k.transpose(1, 2), config, backend=drawn_by(self.backend))
        return pyramid_attention(q, k, v, call.plans[layer], layout="BNHD", backend=self.backend)

    def _call(self, grid: tuple[int, int, int], sigma: float) -> Call:
        """A new call; its plans come from the replayed ones, and go to the recorded ones, where there are any."""
        call = Call(
            token_order(grid, self.order, self.config.block),
            self.dense_above is not None and sigma > self.dense_above,
        )
        if self._replayed is not None:
            plans = next(self._replayed, None)
            if plans is None:
                raise ValueError("more forwards than recorded plans: replay as many as were recorded")
            call.plans.update(plans)
        if self._recorded is not None:
            self._recorded.append(call.plans)
        return call

    def _sigma_of(self, args: tuple[Any, ...], kwargs: dict[str, Any], place: int) -> float:
        """timestep / 1000, read only where a policy asks: reading it waits for the device."""
        if self.dense_above is None:
            return 0.0
        timestep = kwargs["timestep"] if "timestep" in kwargs else args[place]
        return float(timestep.max()) / 1000


class LayerProcessor:
    """Attention processor of one layer: what those of all kinds begin and end with."""

    def __init__(self, owner: PyramidAttention, layer: int) -> None:
        self.owner = owner
        self.layer = layer

    def attend(self, attn: Any, call: Call, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, text: int = 0) -> torch.Tensor:
        """Output [B, N, C] of the layer for q, k, v [B, N, H, D].

        Autocast computes norms in float32; the kernels take one dtype, that of the values.
        """
        out = self.owner.attend(call, self.layer, q.type_as(v), k.type_as(v), v, text)
        return attn.to_out[1](attn.to_out[0](out.flatten(2)))


def project(attn: Any, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values [B, N, C] of a diffusers attention layer, its projections fused or not."""
    if getattr(attn, "fused_projections", False):
        q, k, v = attn.to_qkv(hidden).chunk(3, -1)
        return q, k, v
    return attn.to_q(hidden), attn.to_k(hidden), attn.to_v(hidden)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Pairs of neighbouring channels of x [B, N, H, D] turned by the angles of cos and sin [1, N, 1, D/2]; x's dtype."""
    pairs = x.unflatten(-1, (-1, 2))
    even, odd = pairs[..., 0], pairs[..., 1]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2).type_as(x)
