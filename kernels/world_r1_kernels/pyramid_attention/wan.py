"""Pyramid attention inside diffusers' Wan transformers: self-attention only, reversible, with LoRA and gradient checkpointing.

Tokens are put into their compact order once per forward, before the first block, and back after the last; rotary tables go with them.
All else in the model works token by token: the order decides only which tokens share a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from world_r1_kernels.pyramid_attention.video import (
    Call,
    LayerProcessor,
    PyramidAttention,
    project,
    rotate,
)


class _Rotary(tuple):
    """(cos, sin) in the call's order. Every block gets it as an argument, so that a checkpointed run finds its own call again."""

    call: Call


class WanPyramidAttention(PyramidAttention):
    """Pyramid attention in a `WanTransformer3DModel`."""

    @property
    def blocks(self) -> Sequence[Any]:
        """The transformer's layers."""
        return self.transformer.blocks

    def _install(self) -> list[Any]:
        self._sigma = 0.0
        hooks = [
            self.transformer.register_forward_pre_hook(self._read_sigma, with_kwargs=True),
            self.transformer.rope.register_forward_hook(self._begin),
            self.blocks[-1].register_forward_hook(self._restore_order),
        ]
        for layer, block in enumerate(self.blocks):
            hooks.append(block.register_forward_pre_hook(self._reorder if layer == 0 else self._reorder_times))
            block.attn1.set_processor(Processor(self, layer))
        return hooks

    def _read_sigma(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._sigma = self._sigma_of(args, kwargs, 1)

    def _begin(
        self,
        rope: Any,
        args: tuple[torch.Tensor, ...],
        tables: tuple[torch.Tensor, torch.Tensor],
    ) -> _Rotary:
        """After the rotary tables [1, N, 1, D] are made: a new call, and the tables in its order."""
        size = args[0].shape[-3:]
        grid = tuple(n // p for n, p in zip(size, rope.patch_size, strict=True))
        call = self._call((grid[0], grid[1], grid[2]), self._sigma)
        rotary = _Rotary(call.order.apply(table, 1) for table in tables)
        rotary.call = call
        return rotary

    def _reorder(self, _: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        order = args[3].call.order
        return self._reorder_times(_, (order.apply(args[0], 1), *args[1:]))

    def _reorder_times(self, _: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Modulation that differs by token [B, N, 6, C] follows the tokens; the usual one [B, 6, C] is the same for all."""
        hidden, text, modulation, rotary = args
        return (
            hidden,
            text,
            rotary.call.order.apply(modulation, 1) if modulation.ndim == 4 else modulation,
            rotary,
        )

    def _restore_order(self, _: Any, args: tuple[Any, ...], hidden: torch.Tensor) -> torch.Tensor:
        return args[3].call.order.undo(hidden, 1)


class Processor(LayerProcessor):
    """Attention processor of one layer."""

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
        q, k, v = project(attn, hidden_states)
        q, k, v = (x.unflatten(2, (attn.heads, -1)) for x in (attn.norm_q(q), attn.norm_k(k), v))
        cos, sin = rotary_emb[0][..., ::2], rotary_emb[1][..., ::2]
        # As `LayerProcessor.attend`, written out: a compiler that stops at the attention starts a new program for every frame around it.
        q, k = rotate(q, cos, sin).type_as(v), rotate(k, cos, sin).type_as(v)
        out = self.owner.attend(rotary_emb.call, self.layer, q, k, v)
        return attn.to_out[1](attn.to_out[0](out.flatten(2)))
