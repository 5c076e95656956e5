"""Pyramid attention inside diffusers' CogVideoX transformers, whose layers attend over text and video in one sequence.

The sequence is turned round, video first: blocks of video tokens then begin at multiples of the block, and the text, which sees and is
seen in full, shares only the last of them. The video is put into its compact order once per forward, after the patch embedding, and back
before the final norm.
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


class CogVideoXPyramidAttention(PyramidAttention):
    """Pyramid attention in a `CogVideoXTransformer3DModel`."""

    @property
    def blocks(self) -> Sequence[Any]:
        """The transformer's layers."""
        return self.transformer.transformer_blocks

    def _install(self) -> list[Any]:
        self._current: Call | None = None
        for layer, block in enumerate(self.blocks):
            block.attn1.set_processor(Processor(self, layer))
        return [
            self.transformer.register_forward_pre_hook(self._begin, with_kwargs=True),
            self.transformer.patch_embed.register_forward_hook(self._reorder),
            self.transformer.norm_final.register_forward_pre_hook(self._restore_order),
        ]

    def _begin(self, transformer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A new call; the rotary tables in its order; and the call itself among the attention's arguments.

        As an argument it reaches the layers through gradient checkpointing too, whose second run then finds its own call.
        """
        hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        if len(args) > 5:
            raise ValueError(
                "pass image_rotary_emb and attention_kwargs to the transformer by name: pyramid attention changes both"
            )
        frames, _, height, width = hidden.shape[1:]
        patch, patch_t = (
            transformer.config.patch_size,
            transformer.config.patch_size_t or 1,
        )
        call = self._call(
            (-(-frames // patch_t), height // patch, width // patch),
            self._sigma_of(args, kwargs, 2),
        )
        self._current = call
        tables = kwargs.get("image_rotary_emb")
        if tables is not None:
            kwargs["image_rotary_emb"] = tuple(call.order.apply(table, 0) for table in tables)
        kwargs["attention_kwargs"] = {
            **(kwargs.get("attention_kwargs") or {}),
            "pyramid_call": call,
        }
        return args, kwargs

    def _reorder(self, _: Any, args: tuple[torch.Tensor, ...], embedded: torch.Tensor) -> torch.Tensor:
        text = args[0].shape[1]
        order = self._running().order
        return torch.cat([embedded[:, :text], order.apply(embedded[:, text:], 1)], 1)

    def _restore_order(self, _: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (self._running().order.undo(args[0], 1), *args[1:])

    def _running(self) -> Call:
        if self._current is None:
            raise RuntimeError("a part of the transformer ran outside of its forward")
        return self._current


class Processor(LayerProcessor):
    """Attention processor of one layer."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
        pyramid_call: Call | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if attention_mask is not None or pyramid_call is None:
            raise ValueError("pyramid attention in CogVideoX takes no mask and runs within the transformer's own forward")
        video, text = hidden_states.shape[1], encoder_hidden_states.shape[1]
        q, k, v = project(attn, torch.cat([hidden_states, encoder_hidden_states], 1))
        q, k, v = (x.unflatten(2, (attn.heads, -1)) for x in (q, k, v))
        q, k = (x if norm is None else norm(x) for x, norm in ((q, attn.norm_q), (k, attn.norm_k)))
        if image_rotary_emb is not None:
            cos, sin = (table[None, :, None, ::2] for table in image_rotary_emb)
            q, k = (torch.cat([rotate(x[:, :video], cos, sin), x[:, video:]], 1) for x in (q, k))
        out = self.attend(attn, pyramid_call, q, k, v, text)
        return out[:, :video], out[:, video:]
