"""Pyramid attention inside diffusers' Wan transformers: self-attention only, reversible, with LoRA and gradient checkpointing.

Tokens are put into their compact order once per forward, before the first block, and back after the last; rotary tables go with them.
All else in the model works token by token: the order decides only which tokens share a block.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from world_r1_kernels.order import KINDS, TokenOrder, token_order
from world_r1_kernels.pyramid_attention.api import pyramid_attention
from world_r1_kernels.pyramid_attention.plan import Plan
from world_r1_kernels.pyramid_attention.select import PyramidConfig, make_plan


@dataclass
class Call:
    """One forward of the model: its order, whether it is dense, and each layer's plan, drawn at first use and then kept.

    Kept, because gradient checkpointing runs a layer again, and that run must see the same blocks.
    """

    order: TokenOrder
    dense: bool
    plans: dict[int, Plan] = field(default_factory=dict)


class _Rotary(tuple):
    """(cos, sin) in the call's order. Every block gets it as an argument, so that a checkpointed run finds its own call again."""

    call: Call


class PyramidAttention:
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
        self._sigma = 0.0
        self._recorded: list[dict[int, Plan]] | None = None
        self._replayed: Iterator[Mapping[int, Plan]] | None = None
        self._processors = [block.attn1.processor for block in transformer.blocks]
        self._hooks = [
            transformer.register_forward_pre_hook(self._read_sigma, with_kwargs=True),
            transformer.rope.register_forward_hook(self._begin),
            transformer.blocks[-1].register_forward_hook(self._restore_order),
        ]
        for layer, block in enumerate(transformer.blocks):
            self._hooks.append(block.register_forward_pre_hook(self._reorder if layer == 0 else self._reorder_times))
            block.attn1.set_processor(_Processor(self, layer))

    def remove(self) -> None:
        """Back to the attention that the model had."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        for block, processor in zip(self.transformer.blocks, self._processors, strict=True):
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

    def attend(self, call: Call, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Self-attention [B, N, H, D] of one layer of one call."""
        if call.dense or layer in self.dense_layers:
            heads_first = (x.transpose(1, 2) for x in (q, k, v))
            return torch.nn.functional.scaled_dot_product_attention(*heads_first).transpose(1, 2)
        if layer not in call.plans:
            call.plans[layer] = make_plan(q.transpose(1, 2), k.transpose(1, 2), self.config)
        return pyramid_attention(q, k, v, call.plans[layer], layout="BNHD", backend=self.backend)

    def _read_sigma(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.dense_above is not None:  # reading it waits for the device, so only where a policy asks
            timestep = kwargs["timestep"] if "timestep" in kwargs else args[1]
            self._sigma = float(timestep.max()) / 1000

    def _begin(self, rope: Any, args: tuple[torch.Tensor, ...], tables: tuple[torch.Tensor, torch.Tensor]) -> _Rotary:
        """After the rotary tables [1, N, 1, D] are made: a new call, and the tables in its order."""
        size = args[0].shape[-3:]
        grid = tuple(n // p for n, p in zip(size, rope.patch_size, strict=True))
        order = token_order((grid[0], grid[1], grid[2]), self.order, self.config.block)
        call = Call(order, self.dense_above is not None and self._sigma > self.dense_above)
        if self._replayed is not None:
            plans = next(self._replayed, None)
            if plans is None:
                raise ValueError("more forwards than recorded plans: replay as many as were recorded")
            call.plans.update(plans)
        if self._recorded is not None:
            self._recorded.append(call.plans)
        rotary = _Rotary(order.apply(table, 1) for table in tables)
        rotary.call = call
        return rotary

    def _reorder(self, _: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        order = args[3].call.order
        return self._reorder_times(_, (order.apply(args[0], 1), *args[1:]))

    def _reorder_times(self, _: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Modulation that differs by token [B, N, 6, C] follows the tokens; the usual one [B, 6, C] is the same for all."""
        hidden, text, modulation, rotary = args
        return (hidden, text, rotary.call.order.apply(modulation, 1) if modulation.ndim == 4 else modulation, rotary)

    def _restore_order(self, _: Any, args: tuple[Any, ...], hidden: torch.Tensor) -> torch.Tensor:
        return args[3].call.order.undo(hidden, 1)


class _Processor:
    """Attention processor of one layer."""

    def __init__(self, owner: PyramidAttention, layer: int) -> None:
        self.owner = owner
        self.layer = layer

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        rotary_emb: _Rotary | None = None,
    ) -> torch.Tensor:
        if encoder_hidden_states is not None or attention_mask is not None or rotary_emb is None:
            raise ValueError(
                "pyramid attention replaces Wan's self-attention, which has rotary tables, no mask and no other tokens"
            )
        if getattr(attn, "fused_projections", False):
            q, k, v = attn.to_qkv(hidden_states).chunk(3, -1)
        else:
            q, k, v = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        q, k, v = (x.unflatten(2, (attn.heads, -1)) for x in (attn.norm_q(q), attn.norm_k(k), v))
        cos, sin = rotary_emb[0][..., ::2], rotary_emb[1][..., ::2]
        out = self.owner.attend(rotary_emb.call, self.layer, rotate(q, cos, sin), rotate(k, cos, sin), v)
        return attn.to_out[1](attn.to_out[0](out.flatten(2).type_as(q)))


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Pairs of neighbouring channels of x [B, N, H, D] turned by the angles of cos and sin [1, N, 1, D/2]; x's dtype."""
    pairs = x.unflatten(-1, (-1, 2))
    even, odd = pairs[..., 0], pairs[..., 1]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2).type_as(x)


def apply_pyramid_attention(
    transformer: Any,
    config: PyramidConfig | None = None,
    *,
    order: str = "tiles",
    dense_layers: Sequence[int] = (),
    dense_above: float | None = None,
    backend: str = "auto",
) -> PyramidAttention:
    """Give a diffusers `WanTransformer3DModel` pyramid self-attention; cross-attention stays as it is.

    `dense_layers` keep exact attention; so do all layers at sigma > `dense_above` (timestep / 1000). `order` is a `token_order`. Returns
    the handle that removes it again and records and replays plans. ValueError for another kind of model or a layer that does not exist.
    """
    name = type(transformer).__name__
    if not all(hasattr(transformer, part) for part in ("blocks", "rope", "patch_embedding")) or "Wan" not in name:
        raise ValueError(f"pyramid attention knows diffusers' WanTransformer3DModel, got {name}")
    if order not in KINDS:
        raise ValueError(f"a token order is one of {', '.join(KINDS)}, got {order!r}")
    layers = len(transformer.blocks)
    if any(not -layers <= layer < layers for layer in dense_layers):
        raise ValueError(f"dense_layers must be within the {layers} layers, got {tuple(dense_layers)}")
    if any(isinstance(block.attn1.processor, _Processor) for block in transformer.blocks):
        raise ValueError("this transformer has pyramid attention already; remove() it first")
    config = config or PyramidConfig()
    if config.causal or config.dense:
        raise ValueError("Wan's self-attention is not causal and holds no text: leave causal and dense unset")
    return PyramidAttention(transformer, config, order, frozenset(layer % layers for layer in dense_layers), dense_above, backend)
