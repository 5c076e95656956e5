"""Pyramid sparse attention: every key block at the resolution it deserves, none dropped. `reference.py` is the specification."""

from world_r1_kernels.pyramid_attention.api import (
    pyramid_attention,
    pyramid_attention_varlen,
)
from world_r1_kernels.pyramid_attention.apply import apply_pyramid_attention
from world_r1_kernels.pyramid_attention.language import LanguageAttention, apply_causal_pyramid_attention
from world_r1_kernels.pyramid_attention.plan import Plan, dense_plan
from world_r1_kernels.pyramid_attention.select import PyramidConfig, make_plan
from world_r1_kernels.pyramid_attention.video import PyramidAttention

__all__ = [
    "LanguageAttention",
    "Plan",
    "PyramidAttention",
    "PyramidConfig",
    "apply_causal_pyramid_attention",
    "apply_pyramid_attention",
    "dense_plan",
    "make_plan",
    "pyramid_attention",
    "pyramid_attention_varlen",
]
