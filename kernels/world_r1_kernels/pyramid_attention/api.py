"""`pyramid_attention`: the operator as a function, on whatever the machine has."""

from __future__ import annotations

import importlib.util
import warnings
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, overload

import torch

from world_r1_kernels.pyramid_attention import masked, reference
from world_r1_kernels.pyramid_attention.plan import Plan
from world_r1_kernels.pyramid_attention.select import PyramidConfig, drawn_by, make_plan, plan_and_pool

if TYPE_CHECKING:
    from world_r1_kernels.pyramid_attention.launch import Pyramid

BACKENDS = ("auto", "triton", "masked", "reference")
PLAIN = {"masked": masked.attention, "reference": reference.attention}
LAYOUTS = ("BHND", "BNHD")


@overload
def pyramid_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: Plan | PyramidConfig | None = ..., *,
    layout: str = ..., scale: float | None = ..., return_lse: Literal[False] = ..., backend: str = ...,
) -> torch.Tensor: ...  # fmt: skip
@overload
def pyramid_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: Plan | PyramidConfig | None = ..., *,
    layout: str = ..., scale: float | None = ..., return_lse: Literal[True], backend: str = ...,
) -> tuple[torch.Tensor, torch.Tensor]: ...  # fmt: skip
def pyramid_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    plan: Plan | PyramidConfig | None = None,
    *,
    layout: str = "BHND",
    scale: float | None = None,
    return_lse: bool = False,
    backend: str = "auto",
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Sparse attention of q [B, H, Nq, D] on k and v [B, Hkv, Nk, D], or [B, N, H, D] with layout="BNHD"; H is a multiple of Hkv.

    `plan` is replayed; a `PyramidConfig` (None: the default one) draws a plan from q and k first. Differentiable in q, k, v with the plan
    held fixed. With `return_lse` the natural log-sum-exp [B, H, Nq], float32, comes too, and carries gradients. scale defaults to
    1/sqrt(D) and must be positive.

    backend "triton" needs a CUDA device (bfloat16 or float16, D of 64 or 128) or Triton's interpreter (float32 or float16); "reference"
    is plain PyTorch, slow, any float type; "masked" is the reference's function at once, in the memory of dense attention, for short
    sequences; "auto" takes triton on a GPU and otherwise the reference, with one warning. A call that records gradients never falls back
    by itself. The plain ones draw their plans plainly, too. ValueError for anything that does not fit.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout is one of {', '.join(LAYOUTS)}, got {layout!r}")
    bnhd = layout == "BNHD"
    qh, kh, vh = (x.transpose(1, 2) if bnhd and x.ndim == 4 else x for x in (q, k, v))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if scale <= 0:
        raise ValueError(f"scale must be positive, got {scale}")
    chosen = choose_backend(q, backend, any(x.requires_grad for x in (q, k, v)) and torch.is_grad_enabled())
    pyramid = None
    if not isinstance(plan, Plan):
        _check_heads(qh, kh, vh)
        drawn: tuple[Plan, Pyramid | None] = plan_and_pool(qh, kh, vh, plan or PyramidConfig(), scale, drawn_by(chosen))
        plan, pyramid = drawn
    reference.check_shapes(qh, kh, vh, plan)
    if plan.levels.device != q.device:
        plan = plan.to(q.device)
    if chosen in PLAIN:
        out, lse = PLAIN[chosen](qh, kh, vh, plan, scale)
        out, lse = (out.transpose(1, 2) if bnhd else out), lse.float()
    else:
        from world_r1_kernels.pyramid_attention import operator

        _check_kernel_inputs(q, k, v, plan)
        out, lse = operator.attend(q, k, v, plan, scale, bnhd, pyramid)
    return (out, lse) if return_lse else out


def pyramid_attention_varlen(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens: torch.Tensor,
    plan: Plan | PyramidConfig | None = None,
    *,
    scale: float | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """Self-attention of packed sequences: q [total, H, D], k and v [total, Hkv, D], cu_seqlens int [B + 1] from 0 to total.

    Returns [total, H, D]. The sequences are padded to the longest for the kernels, which skip the padding. ValueError for bad cu_seqlens.
    """
    ends = cu_seqlens.tolist()
    if len(ends) < 2 or ends[0] != 0 or ends[-1] != len(q) or any(a >= b for a, b in pairwise(ends)):
        raise ValueError(f"cu_seqlens must rise from 0 to the {len(q)} tokens, got {ends}")
    lengths = cu_seqlens.diff().to(torch.int32)
    padded = [torch.nn.utils.rnn.pad_sequence(list(x.split(lengths.tolist())), batch_first=True) for x in (q, k, v)]
    if not isinstance(plan, Plan):
        heads_first = [x.transpose(1, 2) for x in padded[:2]]
        drawn: Plan = make_plan(*heads_first, plan or PyramidConfig(), scale=scale, lengths=lengths.cpu())
        plan = drawn
    if plan.lengths is None or plan.lengths.tolist() != lengths.tolist():
        raise ValueError(f"the plan's lengths {None if plan.lengths is None else plan.lengths.tolist()} are not {lengths.tolist()}")
    out = pyramid_attention(padded[0], padded[1], padded[2], plan, layout="BNHD", scale=scale, backend=backend)
    return torch.cat([x[:n] for x, n in zip(out, lengths.tolist(), strict=True)])


def choose_backend(q: torch.Tensor, backend: str, training: bool) -> str:
    """ "triton" or "reference" for "auto", others as they are; ValueError for one that cannot run here."""
    if backend not in BACKENDS:
        raise ValueError(f"backend is one of {', '.join(BACKENDS)}, got {backend!r}")
    if backend in PLAIN:
        return backend
    able = q.device.type == "cuda" and has_triton()
    if backend == "triton":
        if not able and not (has_triton() and _interpreted()):
            raise ValueError(
                f"the Triton kernels cannot run on {q.device.type} tensors here: move q, k, v to a CUDA device with the triton package "
                "installed, set TRITON_INTERPRET=1 before starting Python (slow, for tests), or pass backend='masked'"
            )
        return backend
    if able:
        return "triton"
    if training:
        raise ValueError(
            f"no Triton kernel for {q.device.type} tensors here, and gradients are recorded: plain PyTorch is slow and adds in another "
            "order than the kernels, so training has to ask for it: backend='masked' (short sequences) or 'reference'"
        )
    _warn_once(q.device.type)
    return "reference"


def has_triton() -> bool:
    """Whether the triton package is installed."""
    return importlib.util.find_spec("triton") is not None


def _interpreted() -> bool:
    from world_r1_kernels.pyramid_attention import operator

    return operator.interpreted()


@cache
def _warn_once(device: str) -> None:
    warnings.warn(f"pyramid attention on {device}: the reference in plain PyTorch is used, which is slow", stacklevel=4)


def _check_heads(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    if any(x.ndim != 4 for x in (q, k, v)):
        raise ValueError(f"q, k and v need four dimensions, got {q.ndim}, {k.ndim} and {v.ndim}")
    if q.shape[0] != k.shape[0] or q.shape[1] % k.shape[1] or q.shape[-1] != k.shape[-1]:
        raise ValueError(f"q {tuple(q.shape)} and k {tuple(k.shape)} (B, H, N, D) do not belong together")


def _check_kernel_inputs(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: Plan) -> None:
    width, interpreted = q.shape[-1], _interpreted()
    if v.shape[-1] != width or not (width in (64, 128) or (interpreted and width >= 16 and width & (width - 1) == 0)):
        raise ValueError(f"the kernels take head widths 64 and 128, the same for q, k and v; got {width} and {v.shape[-1]}")
    if len({q.dtype, k.dtype, v.dtype}) > 1:
        raise ValueError(f"q, k and v must have one dtype, got {q.dtype}, {k.dtype}, {v.dtype}")
    if interpreted and q.dtype not in (torch.float32, torch.float16):
        raise ValueError(f"Triton's interpreter computes {q.dtype} wrongly; use float32 or float16 there")
    if not interpreted and q.dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(f"the kernels take bfloat16 or float16, got {q.dtype}; convert, or pass backend='reference'")
    if plan.block < (16 if interpreted else 64):
        raise ValueError(
            f"the kernels take blocks of 64 or 128 tokens, got {plan.block}; for smaller ones pass backend='masked' or 'reference'"
        )
    if plan.correction == "diagonal":
        raise ValueError("the kernels know the corrections 'isotropic' and 'none'; 'diagonal' is for backend='reference'")
