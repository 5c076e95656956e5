"""Launches of the backward's kernels; those of the forward, and what both share, are in `launch`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from triton.tools.tensor_descriptor import TensorDescriptor

from world_r1_kernels.pyramid_attention import triton_backward as backward_kernels
from world_r1_kernels.pyramid_attention import triton_pool as pool_kernels
from world_r1_kernels.pyramid_attention.launch import (
    Geometry,
    Lists,
    Pyramid,
    descriptor,
    lists,
    parts,
    pool,
    power_of_two,
    rest_descriptors,
)
from world_r1_kernels.pyramid_attention.plan import Plan
from world_r1_kernels.pyramid_attention.tuning import BackwardSettings


def transpose(levels: torch.Tensor, size: int, per_tile: int, g: Geometry) -> tuple[torch.Tensor, torch.Tensor]:
    """Query blocks [B, H, tiles, nq] that see, at level `size`, any of `per_tile` consecutive key blocks, and their counts."""
    tiles = -(-g.nk // per_tile)
    blocks = torch.empty(g.batch, g.heads, tiles, g.nq, dtype=torch.int32, device=levels.device)
    counts = torch.empty(g.batch, g.heads, tiles, dtype=torch.int32, device=levels.device)
    pool_kernels.transpose_kernel[(tiles, g.heads, g.batch)](
        levels, blocks, counts, g.heads, g.nq, g.nk, tiles, size, per_tile, WIDTH=power_of_two(g.nq), PER=per_tile, num_warps=1
    )
    return blocks, counts


@dataclass(frozen=True)
class Backward:
    """What the parts of one backward share."""

    plan: Plan
    settings: BackwardSettings
    g: Geometry
    pyramid: Pyramid
    listed: Lists
    sources: tuple[torch.Tensor, ...]
    """q, k, v, dO, the pyramid, log-sum-exp and delta [B, H, nq * block], map: the kernels' first arguments."""
    shapes: tuple[float | int, ...]
    lengths: torch.Tensor
    square: torch.Tensor
    """|q|^2 [B, H, nq * block]."""

    @property
    def tma(self) -> bool:
        """Whether tiles come through descriptors, which know no sequence ends."""
        return self.settings.tma and self.plan.lengths is None

    def queries(self, rows: int, square: bool = False) -> tuple[TensorDescriptor | torch.Tensor, ...]:
        """Sources of tiles of `rows` queries: q, dO, log-sum-exp, delta and, on demand, |q|^2."""
        found = self.sources[0], self.sources[3]
        stats = (self.sources[8], self.sources[9], *((self.square,) if square else ()))
        if not self.tma:
            return *found, *stats
        flat = [x.view(-1) for x in stats]
        return *(descriptor(x, rows, self.g) for x in found), *(TensorDescriptor(x, [x.numel()], [1], [rows]) for x in flat)

    @property
    def flags(self) -> dict[str, bool | int]:
        """Constants of every backward kernel."""
        g = self.g
        return {
            "CAUSAL": self.plan.causal,
            "VARLEN": self.plan.lengths is not None,
            "BNHD": g.bnhd,
            "D": g.width,
            "BK": g.block,
            "TMA": self.tma,
        }


def backward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    grad_out: torch.Tensor,
    grad_lse: torch.Tensor | None,
    plan: Plan,
    scale: float,
    settings: BackwardSettings,
    bnhd: bool,
    pyramid: Pyramid | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k and v. Lists again rather than keeping them, and pools where the forward was not given its `pyramid`."""
    work = prepare_backward(q, k, v, out, lse, grad_out, grad_lse, plan, scale, settings, bnhd, pyramid)
    return grad_q(work), *grad_kv(work, grad_pooled(work))


def prepare_backward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    grad_out: torch.Tensor,
    grad_lse: torch.Tensor | None,
    plan: Plan,
    scale: float,
    settings: BackwardSettings,
    bnhd: bool,
    pyramid: Pyramid | None = None,
) -> Backward:
    """Pyramid, lists, rowsum(dO O) - dLSE and |q|^2."""
    g = Geometry.of(q, k, plan, bnhd)
    pyramid = pool(k, v, plan.lengths, g) if pyramid is None else pyramid
    listed = lists(plan, pyramid, g)
    stats = torch.empty(3, g.batch, g.heads, g.nq * g.block, dtype=torch.float32, device=q.device)
    log2_sum, delta, square = stats.unbind()
    backward_kernels.delta_kernel[(g.nq, g.heads, g.batch)](
        q, out, grad_out, lse, lse if grad_lse is None else grad_lse, log2_sum, delta, square, g.heads, g.n_q,
        D=g.width, BM=g.block, BNHD=g.bnhd, LSE_GRAD=grad_lse is not None, num_warps=4,
    )  # fmt: skip
    sources = (q, k, v, grad_out, pyramid.keys, pyramid.values, pyramid.bias, pyramid.variance, log2_sum, delta, plan.levels)
    shapes = (scale, g.heads, g.group, g.n_q, g.n_k, g.nq, g.nk, g.rows)
    lengths = plan.levels if plan.lengths is None else plan.lengths
    return Backward(plan, settings, g, pyramid, listed, sources, shapes, lengths, square)


def grad_q(work: Backward) -> torch.Tensor:
    """Gradient of q, by the plan's lists."""
    g, s = work.g, work.settings
    out = torch.empty_like(work.sources[0])
    rows, tile, pooled_tile = min(s.q_rows, g.block), min(s.q_tile, g.block), min(s.q_rest_tile, g.rest_tile)
    keys = work.sources[1], work.sources[2]
    pooled = [x.view(-1, g.width) for x in (work.pyramid.keys, work.pyramid.values)]
    if work.tma:
        sources = [descriptor(x, tile, g) for x in keys]
        sources += rest_descriptors(work.pyramid, work.listed, pooled_tile, work.plan.has_rest)
    else:
        sources = [*keys, *pooled, work.listed.seen, work.pyramid.variance]
    backward_kernels.grad_q_kernel[(g.nq * (g.block // rows), g.heads, g.batch)](
        *sources, *work.sources, work.listed.blocks, work.listed.counts, work.lengths, work.listed.seen, out,
        g.seen_width, *work.shapes, *g.bases,
        **work.flags | parts(work.plan, g), BM=rows, TN=tile, TP=pooled_tile, REST=g.rest,
        PYRAMID=g.pyramid, STAGES=s.q_stages, LATE=s.q_late and work.tma, num_warps=s.q_warps,
    )  # fmt: skip
    return out


def grad_kv(work: Backward, pooled: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of k and v, by the transposed lists, the pooled gradients shared out in the same pass."""
    g, s, plan = work.g, work.settings, work.plan
    grad_k, grad_v = torch.empty_like(work.sources[1]), torch.empty_like(work.sources[2])
    blocks, counts = transpose(plan.levels, 1, 1, g)
    tile, q_tile = min(s.k_rows, g.block), min(s.k_tile, g.block)
    backward_kernels.grad_kv_kernel[(g.nk * (g.block // tile), g.kv_heads, g.batch)](
        *work.queries(q_tile), *work.sources, blocks, counts, work.lengths, *pooled, grad_k, grad_v, *work.shapes, *g.bases,
        **work.flags, KT=tile, QT=q_tile, REST=g.rest if plan.has_rest else 0,
        L2=2 in g.sizes, L4=4 in g.sizes, L8=8 in g.sizes, CORRECT=plan.correction == "isotropic",
        STAGES=s.k_stages, LATE=s.k_late, num_warps=s.k_warps,
    )  # fmt: skip
    return grad_k, grad_v


def grad_pooled(work: Backward) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of the pooled keys, values and variances, float32, in the pooled buffer's rows.

    Rest tokens are seen by every query block, so their sum over query blocks is split and reduced in a fixed order; no atomics.
    """
    g, s, plan = work.g, work.settings, work.plan
    new = {"dtype": torch.float32, "device": work.sources[0].device}
    shape = (g.batch, g.kv_heads, g.rows)
    keys, values, variance = torch.empty(*shape, g.width, **new), torch.empty(*shape, g.width, **new), torch.empty(shape, **new)
    common = work.flags | {"CORRECT": plan.correction == "isotropic"}
    q_tile = min(s.pooled_tile, g.block)
    common |= {"QT": q_tile, "STAGES": s.pooled_stages, "num_warps": s.pooled_warps}
    half = g.block // 2
    for size, base in zip((2, 4, 8), g.bases, strict=False):
        if size in g.sizes:
            blocks, counts = transpose(plan.levels, size, size // 2, g)
            count = g.nk * g.block // size
            backward_kernels.grad_pooled_kernel[(blocks.shape[2], g.kv_heads, g.batch)](
                *work.queries(q_tile, square=True), *work.sources, blocks, counts, work.lengths, work.listed.seen, work.square,
                keys, values, variance,
                g.seen_width, *work.shapes, base, count, g.rows, 0, 1,
                **common, SIZE=size, TP=half, DENSE=False,
            )  # fmt: skip
    if plan.has_rest:
        count = g.nk * g.block // g.rest
        tile = min(s.rest_tile, g.rest_tile)
        tiles = -(-count // tile)
        splits = max(1, min(s.splits, g.nq))
        parts = [torch.empty(splits, g.batch, g.kv_heads, count, *x, **new) for x in ((g.width,), (g.width,), ())]
        backward_kernels.grad_pooled_kernel[(tiles * splits, g.kv_heads, g.batch)](
            *work.queries(q_tile, square=True), *work.sources, plan.levels, plan.levels, work.lengths, work.listed.seen, work.square,
            *parts, g.seen_width, *work.shapes, g.bases[3], count, count, tiles, splits,
            **common, SIZE=g.rest, TP=tile, DENSE=True,
        )  # fmt: skip
        for total, part in zip((keys, values, variance), parts, strict=True):
            torch.sum(part, 0, out=total[:, :, g.bases[3] : g.bases[3] + count])
    return keys, values, variance
