"""Pyramid sparse attention as one masked softmax: every query against every key of every level, those that its plan does not show masked.

The function of `reference` without its loops over sequences, heads and blocks, and therefore without its launches: for short sequences
(a few thousand tokens), on any device and with blocks of any size. It saves nothing: time and memory are those of dense attention and more.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from world_r1_kernels.pyramid_attention.plan import Plan
from world_r1_kernels.pyramid_attention.reference import Pooled, check_shapes, pool, pooled_logits


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: Plan, scale: float | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output [B, H, Nq, D] and natural log-sum-exp [B, H, Nq] as `reference.attention` gives them; 16-bit inputs are read as float32.

    Rows that see nothing, and rows beyond a sequence's length, are 0 with log-sum-exp -inf. ValueError for shapes that do not fit the plan.
    """
    check_shapes(q, k, v, plan)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    wide = torch.promote_types(q.dtype, torch.float32)
    with torch.autocast(q.device.type, enabled=False):
        if plan.lengths is None:
            out, lse = _attend(q.to(wide), k.to(wide), v.to(wide), plan, scale)
        else:
            out, lse = _one_by_one(q.to(wide), k.to(wide), v.to(wide), plan, scale)
    return out.to(v.dtype), lse


def _one_by_one(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: Plan, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences of different lengths: a mean at the end of one holds no padding."""
    assert plan.lengths is not None
    outputs, sums = [], []
    for b, length in enumerate(plan.lengths.tolist()):
        n = -(-length // plan.block)
        levels = plan.levels[b : b + 1, :, :n, :n]
        own = replace(plan, levels=levels, q_length=length, k_length=length, lengths=None)
        mine = slice(b, b + 1), slice(None), slice(length)
        out, lse = _attend(q[mine], k[mine], v[mine], own, scale)
        outputs.append(torch.nn.functional.pad(out, (0, 0, 0, q.shape[2] - length)))
        sums.append(torch.nn.functional.pad(lse, (0, q.shape[2] - length), value=-math.inf))
    return torch.cat(outputs), torch.cat(sums)


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: Plan, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    group = q.shape[1] // k.shape[1]
    levels = plan.levels.repeat_interleave(plan.block, 2)[:, :, : q.shape[2]]
    logits, seen, values = [], [], []
    for size in sorted({*plan.sizes, *([plan.rest] if plan.has_rest else [])}):
        keys, means = pool(k, size), pool(v, size).mean
        block_of = torch.arange(len(keys.count), device=q.device) * size // plan.block
        here = levels[..., block_of] == size
        if plan.everywhere and size == plan.rest:
            here = torch.ones_like(here)
        if plan.causal and size == 1:
            here = here & torch.ones(here.shape[-2:], dtype=torch.bool, device=q.device).tril()
        keys = Pooled(keys.mean.repeat_interleave(group, 1), keys.variance.repeat_interleave(group, 1), keys.count)
        logits.append(pooled_logits(q, keys, plan.correction if size > 1 else "none", scale))
        seen.append(here)
        values.append(means.repeat_interleave(group, 1))
    shown = torch.cat(seen, -1)
    blind = ~shown.any(-1, keepdim=True)
    # A row of -inf alone would have a gradient that is not a number.
    s = torch.cat(logits, -1).masked_fill(~shown, -math.inf).masked_fill(blind, 0)
    out = (torch.softmax(s, -1) @ torch.cat(values, -2)).masked_fill(blind, 0)
    return out, torch.logsumexp(s, -1).masked_fill(blind[..., 0], -math.inf)
