"""The Triton kernels as torch operators `world_r1::pyramid_attention` and its backward, with fake kernels and autograd.

Plans enter as their map and settings, without gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import library

from world_r1_kernels.pyramid_attention import launch, launch_backward
from world_r1_kernels.pyramid_attention.plan import Plan
from world_r1_kernels.pyramid_attention.tuning import backward_settings, forward_settings


def _plan(
    q: torch.Tensor, k: torch.Tensor, levels: torch.Tensor, lengths: torch.Tensor | None, bnhd: bool, block: int, rest: int,
    sizes: Sequence[int], has_rest: bool, everywhere: bool, correction: str, causal: bool,
) -> Plan:  # fmt: skip
    tokens = 1 if bnhd else 2
    return Plan(
        levels, q.shape[tokens], k.shape[tokens], block, rest, tuple(sizes), has_rest, everywhere, correction, causal, lengths
    )  # fmt: skip


def _pyramid(pooled: torch.Tensor | None, stats: torch.Tensor | None) -> launch.Pyramid | None:
    return None if pooled is None or stats is None else launch.Pyramid(pooled, stats)


@library.custom_op("world_r1::pyramid_attention", mutates_args=())
def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    levels: torch.Tensor,
    lengths: torch.Tensor | None,
    scale: float,
    bnhd: bool,
    block: int,
    rest: int,
    sizes: Sequence[int],
    has_rest: bool,
    everywhere: bool,
    correction: str,
    causal: bool,
    pooled: torch.Tensor | None = None,
    pooled_stats: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    plan = _plan(q, k, levels.contiguous(), lengths, bnhd, block, rest, sizes, has_rest, everywhere, correction, causal)
    settings = forward_settings(q.device, q.shape[-1]).for_block(block)
    return launch.forward(q, k, v, plan, scale, settings, bnhd, _pyramid(pooled, pooled_stats))


@_attend.register_fake
def _(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, levels: torch.Tensor, lengths: torch.Tensor | None, scale: float, bnhd: bool,
    *settings: Any,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    heads, tokens = (2, 1) if bnhd else (1, 2)
    return torch.empty_like(q, memory_format=torch.contiguous_format), q.new_empty(
        q.shape[0], q.shape[heads], q.shape[tokens], dtype=torch.float32
    )


@library.custom_op("world_r1::pyramid_attention_backward", mutates_args=())
def _attend_backward(
    grad_out: torch.Tensor,
    grad_lse: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    levels: torch.Tensor,
    lengths: torch.Tensor | None,
    scale: float,
    bnhd: bool,
    block: int,
    rest: int,
    sizes: Sequence[int],
    has_rest: bool,
    everywhere: bool,
    correction: str,
    causal: bool,
    pooled: torch.Tensor | None = None,
    pooled_stats: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    q, k, v, grad_out = (x.contiguous() for x in (q, k, v, grad_out))
    plan = _plan(q, k, levels.contiguous(), lengths, bnhd, block, rest, sizes, has_rest, everywhere, correction, causal)
    settings = backward_settings(q.device, q.shape[-1]).for_block(block)
    grad_lse = None if grad_lse is None else grad_lse.contiguous()
    return launch_backward.backward(
        q, k, v, out, lse, grad_out, grad_lse, plan, scale, settings, bnhd, _pyramid(pooled, pooled_stats)
    )


@_attend_backward.register_fake
def _(
    grad_out: torch.Tensor, grad_lse: torch.Tensor | None, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    q, k, v = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    return q, k, v


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    q, k, v, levels, lengths, *settings, pooled, stats = inputs
    ctx.settings = settings
    ctx.save_for_backward(q, k, v, *output, levels, lengths, pooled, stats)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad_out: torch.Tensor | None, grad_lse: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    q, k, v, out, lse, levels, lengths, pooled, stats = ctx.saved_tensors
    grad_out = torch.zeros_like(out) if grad_out is None else grad_out
    grads = _attend_backward(grad_out, grad_lse, q, k, v, out, lse, levels, lengths, *ctx.settings, pooled, stats)
    return *grads, *(None,) * (4 + len(ctx.settings))


_attend.register_autograd(_differentiate, setup_context=_remember)


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: Plan, scale: float, bnhd: bool, pyramid: launch.Pyramid | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output like q, and log-sum-exp [B, H, Nq] float32; arguments are checked by the caller.

    `pyramid`: the pooled keys and values, where selection made them on its way; they are constants here, and the gradients are still those
    of the whole, with respect to k and v.
    """
    pooled = (None, None) if pyramid is None else (pyramid.wide, pyramid.flat)
    return _attend(
        q, k, v, plan.levels, plan.lengths, scale, bnhd,
        plan.block, plan.rest, list(plan.sizes), plan.has_rest, plan.everywhere, plan.correction, plan.causal, *pooled,
    )  # fmt: skip


def interpreted() -> bool:
    """Whether the kernels were imported under Triton's interpreter (TRITON_INTERPRET=1), which runs them on the CPU."""
    return type(launch.kernels.forward_kernel).__name__ == "InterpretedFunction"
