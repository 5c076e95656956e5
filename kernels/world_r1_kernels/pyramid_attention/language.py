"""Pyramid attention for the prompt of a video-understanding language model (Qwen2.5-VL and its like), through transformers' interface.

The prompt, thousands of video tokens among some text, is read with a causal plan: the diagonal at level 1, earlier blocks as they deserve.
Decoding and short prompts keep exact attention. Order of tokens: the model's own, because the mask is causal in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from world_r1_kernels.pyramid_attention.api import pyramid_attention
from world_r1_kernels.pyramid_attention.plan import Plan
from world_r1_kernels.pyramid_attention.select import PyramidConfig, drawn_by, make_plan

#: Name in transformers' tables of attention and mask functions.
NAME = "world_r1_pyramid"


class LanguageAttention:
    """What `apply_causal_pyramid_attention` returns: takes the model back to its own attention; keeps the last prompt's plans."""

    def __init__(
        self, layers: Sequence[Any], config: PyramidConfig, dense_layers: frozenset[int], least_tokens: int, backend: str
    ) -> None:
        self.layers = list(layers)
        self.config = config
        self.dense_layers = dense_layers
        self.least_tokens = least_tokens
        self.backend = backend
        self.plans: dict[int, Plan] = {}
        """Plan of every layer that was sparse in the last prompt."""
        self._configs = list({id(layer.config): layer.config for layer in layers}.values())
        self._before = [config._attn_implementation for config in self._configs]
        for layer in layers:
            layer.pyramid_attention = self
        for model_config in self._configs:
            model_config._attn_implementation = NAME

    def remove(self) -> None:
        """Back to the attention that the model had."""
        for model_config, before in zip(self._configs, self._before, strict=True):
            model_config._attn_implementation = before
        for layer in self.layers:
            if hasattr(layer, "pyramid_attention"):
                del layer.pyramid_attention

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scale: float
    ) -> torch.Tensor:
        """Causal attention of q [B, H, Nq, D] on k and v [B, Hkv, Nk, D]; `mask` bool [B, Nk] is False for padding. [B, H, Nq, D]."""
        prompt = q.shape[2] == k.shape[2]
        if not prompt or layer in self.dense_layers or q.shape[2] < self.least_tokens:
            self.plans.pop(layer, None)
            return exact(q, k, v, mask, scale)
        lengths = None if mask is None else right_padded(mask)
        plan = make_plan(q, k, self.config, scale=scale, lengths=lengths, backend=drawn_by(self.backend))
        self.plans[layer] = plan
        return pyramid_attention(q, k, v, plan, scale=scale, backend=self.backend)


def exact(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scale: float) -> torch.Tensor:
    """Causal attention [B, H, Nq, D], the queries being the last Nq positions; `mask` bool [B, Nk] is False for padding."""
    n_q, n_k = q.shape[2], k.shape[2]
    if mask is None and n_q == n_k:
        return scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
    places = torch.arange(n_k, device=q.device)
    seen = places <= places[n_k - n_q :, None]
    if mask is not None:
        # a padded query sees itself: it would see nothing at all otherwise, and its output, which no one reads, would be NaN
        seen = (seen & mask[:, None, None, :n_k].bool()) | (places == places[n_k - n_q :, None])
    return scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale, enable_gqa=True)


def right_padded(mask: torch.Tensor) -> torch.Tensor:
    """int64 [B], on the CPU: true lengths; ValueError for padding anywhere but at the end."""
    mask = mask.bool().cpu()
    lengths = mask.sum(-1)
    if not torch.equal(mask, torch.arange(mask.shape[1]) < lengths[:, None]):
        raise ValueError("pyramid attention takes a batch of prompts padded on the right: set the processor's padding_side='right'")
    return lengths


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls; output [B, N, H, D]."""
    owner = getattr(module, "pyramid_attention", None)
    if owner is None:
        raise ValueError(f"{type(module).__name__} asks for {NAME!r} attention, which apply_causal_pyramid_attention has to set up")
    if dropout or sliding_window is not None or others.get("cu_seq_lens_q") is not None:
        raise ValueError("pyramid attention knows no attention dropout, sliding windows or packed prompts")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return owner.attend(module.layer_idx, query, key, value, attention_mask, scale).transpose(1, 2), None


def _mask(*args: Any, mask_function: Any = None, attention_mask: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor | None:
    """transformers' mask for `NAME`: the padding [B, N], None without any. ValueError for a mask that is not simply causal."""
    from transformers.masking_utils import causal_mask_function, flash_attention_mask

    if mask_function is not None and mask_function is not causal_mask_function:
        raise ValueError("pyramid attention knows causal masks alone, not packed sequences or windows")
    return flash_attention_mask(*args, mask_function=causal_mask_function, attention_mask=attention_mask, **kwargs)


def apply_causal_pyramid_attention(
    model: Any,
    config: PyramidConfig | None = None,
    *,
    dense_layers: Sequence[int] = (),
    least_tokens: int = 2048,
    backend: str = "auto",
) -> LanguageAttention:
    """Give the language part of a transformers model (Qwen2.5-VL; any whose causal layers use the attention interface) pyramid attention.

    Vision towers stay as they are. `dense_layers` and prompts of fewer than `least_tokens` tokens keep exact attention. Returns the handle
    that removes it. ValueError for a model without such layers, a layer that does not exist, or a config that draws no causal plan.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    layers = [
        module
        for module in model.modules()
        if getattr(module, "is_causal", False) and getattr(module, "layer_idx", None) is not None and hasattr(module, "q_proj")
    ]
    if not layers:
        raise ValueError(f"pyramid attention found no causal attention layers in {type(model).__name__}")
    count = len(layers)
    if any(not -count <= layer < count for layer in dense_layers):
        raise ValueError(f"dense_layers must be within the {count} layers, got {tuple(dense_layers)}")
    if any(hasattr(layer, "pyramid_attention") for layer in layers):
        raise ValueError("this model has pyramid attention already; remove() it first")
    config = replace(config or PyramidConfig(), causal=True)
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _mask)
    return LanguageAttention(layers, config, frozenset(layer % count for layer in dense_layers), least_tokens, backend)
