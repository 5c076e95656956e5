"""`apply_pyramid_attention`: pyramid attention in a video transformer, by its kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from world_r1_kernels.order import KINDS
from world_r1_kernels.pyramid_attention.cogvideox import CogVideoXPyramidAttention
from world_r1_kernels.pyramid_attention.select import PyramidConfig
from world_r1_kernels.pyramid_attention.video import LayerProcessor, PyramidAttention
from world_r1_kernels.pyramid_attention.wan import WanPyramidAttention


def apply_pyramid_attention(
    transformer: Any,
    config: PyramidConfig | None = None,
    *,
    order: str = "tiles",
    dense_layers: Sequence[int] = (),
    dense_above: float | None = None,
    backend: str = "auto",
) -> PyramidAttention:
    """Give a diffusers `WanTransformer3DModel` or `CogVideoXTransformer3DModel` pyramid self-attention.

    Wan's cross-attention stays as it is; CogVideoX's text, which shares the sequence with the video, sees and is seen in full.

    `dense_layers` keep exact attention; so do all layers at sigma > `dense_above` (timestep / 1000). `order` is a `token_order`. Returns
    the handle that removes it again and records and replays plans. ValueError for another kind of model or a layer that does not exist.
    """
    name = type(transformer).__name__
    if "Wan" in name and all(hasattr(transformer, part) for part in ("blocks", "rope", "patch_embedding")):
        kind: type[PyramidAttention] = WanPyramidAttention
        blocks = transformer.blocks
    elif "CogVideoX" in name and all(hasattr(transformer, part) for part in ("transformer_blocks", "patch_embed", "norm_final")):
        kind, blocks = CogVideoXPyramidAttention, transformer.transformer_blocks
    else:
        raise ValueError(f"pyramid attention knows diffusers' WanTransformer3DModel and CogVideoXTransformer3DModel, got {name}")
    if order not in KINDS:
        raise ValueError(f"a token order is one of {', '.join(KINDS)}, got {order!r}")
    layers = len(blocks)
    if any(not -layers <= layer < layers for layer in dense_layers):
        raise ValueError(f"dense_layers must be within the {layers} layers, got {tuple(dense_layers)}")
    if any(isinstance(block.attn1.processor, LayerProcessor) for block in blocks):
        raise ValueError("this transformer has pyramid attention already; remove() it first")
    config = config or PyramidConfig()
    if config.causal or config.dense:
        raise ValueError(
            "a video transformer's self-attention is not causal, and its text is found by itself: leave causal and dense unset"
        )
    return kind(
        transformer,
        config,
        order,
        frozenset(layer % layers for layer in dense_layers),
        dense_above,
        backend,
    )
