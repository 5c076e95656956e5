# mypy: allow-untyped-defs
"""Selection in Triton: pooled scores of all block pairs, then each row's largest masses. The case that needs to be fast: "quota", level 1.

Same estimate as `select.importance`, and the same rule for ties: the lower block.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from world_r1_kernels.pyramid_attention.triton import LOG2E, origin


@triton.jit
def means_kernel(
    X, MEAN, SQUARE, VAR, heads, length, rows,
    D: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr, BNHD: tl.constexpr,
):  # fmt: skip
    """Mean, mean square norm and covariance trace of groups of GROUP tokens; one program a block of tokens."""
    i, h, b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    row, col = origin(b, h, heads, length, D, BNHD)
    ld = heads * D if BNHD else D
    t = i * BLOCK + tl.arange(0, BLOCK)
    d = tl.arange(0, D)
    x = tl.load(X + (row + t).to(tl.int64)[:, None] * ld + col + d[None, :], mask=t[:, None] < length, other=0.0).to(tl.float32)
    PER: tl.constexpr = BLOCK // GROUP
    g = tl.arange(0, PER)
    count = tl.minimum(tl.maximum(length - i * BLOCK - g * GROUP, 0), GROUP)
    inverse = 1.0 / tl.maximum(count, 1).to(tl.float32)
    mean = tl.sum(tl.reshape(x, [PER, GROUP, D]), 1) * inverse[:, None]
    square = tl.sum(tl.reshape(tl.sum(x * x, 1), [PER, GROUP]), 1) * inverse
    at = ((b * heads + h) * rows + i * PER + g).to(tl.int64)
    tl.store(MEAN + at[:, None] * D + d[None, :], mean.to(MEAN.dtype.element_ty))
    tl.store(SQUARE + at, square)
    tl.store(VAR + at, tl.maximum(square - tl.sum(mean * mean, 1), 0.0))


@triton.jit
def score_kernel(
    QM, QS, KM, KV, SCORE, scale, heads, group, n_k, q_rows, k_rows, nk,
    D: tl.constexpr, QT: tl.constexpr, PER: tl.constexpr, NB: tl.constexpr,
):  # fmt: skip
    """Log2-sum-exp over each key block of the logits of QT query means: SCORE [B, H, q_rows, nk]. NB key blocks of PER means a step."""
    i, h, b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    kv, kv_heads = h // group, heads // group
    d = tl.arange(0, D)
    r = i * QT + tl.arange(0, QT)
    q_at = ((b * heads + h) * q_rows + r).to(tl.int64)
    q = tl.load(QM + q_at[:, None] * D + d[None, :], mask=r[:, None] < q_rows, other=0.0)
    square = tl.load(QS + q_at, mask=r < q_rows, other=0.0) * (scale * scale / (2 * D) * LOG2E)
    for t in tl.range(0, tl.cdiv(nk, NB)):
        c = t * NB * PER + tl.arange(0, NB * PER)
        k_at = ((b * kv_heads + kv) * k_rows + c).to(tl.int64)
        count = tl.minimum(tl.maximum(n_k - c * 8, 0), 8)
        k = tl.load(KM + k_at[:, None] * D + d[None, :], mask=c[:, None] < k_rows, other=0.0)
        bias = tl.math.log2(tl.maximum(count, 1).to(tl.float32))
        spread = tl.load(KV + k_at, mask=c < k_rows, other=0.0)
        s = tl.dot(q, k.T) * (scale * LOG2E) + bias[None, :] + tl.minimum(square[:, None] * spread[None, :], bias[None, :])
        s = tl.reshape(tl.where((count > 0)[None, :], s, -1.0e30), [QT, NB, PER])
        top = tl.max(s, 2)
        total = top + tl.math.log2(tl.sum(tl.math.exp2(s - top[:, :, None]), 2))
        j = t * NB + tl.arange(0, NB)
        tl.store(SCORE + q_at[:, None] * nk + j[None, :], total, mask=(r[:, None] < q_rows) & (j[None, :] < nk))


@triton.jit
def quota_kernel(
    SCORE, LEVELS, MASS, heads, n_q, nq, nk, number, other,
    BLOCK: tl.constexpr, WIDTH: tl.constexpr, KEEP_MASS: tl.constexpr,
):  # fmt: skip
    """One program a query block: mass of every key block, the `number` largest at level 1, the others at level `other`."""
    i, h, b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    j = tl.arange(0, WIDTH)
    r = tl.arange(0, 8)
    row = ((b * heads + h) * nq + i).to(tl.int64)
    count = tl.minimum(tl.maximum(n_q - i * BLOCK - r * (BLOCK // 8), 0), BLOCK // 8).to(tl.float32)
    s = tl.load(SCORE + (row * 8 + r)[:, None] * nk + j[None, :], mask=(j < nk)[None, :], other=-1.0e30)
    p = tl.math.exp2(s - tl.max(s, 1)[:, None])
    p = p * (count / tl.sum(count, 0) / tl.sum(p, 1))[:, None]
    mass = tl.where(j < nk, tl.sum(p, 0), -1.0)
    if KEEP_MASS:
        tl.store(MASS + row * nk + j, mass, mask=j < nk)
    key = mass.to(tl.int32, bitcast=True)  # the order of non-negative floats is that of their bits; -1 is negative
    least = tl.zeros([], tl.int32)
    for bit in tl.static_range(30, -1, -1):
        trial = least | (1 << bit)
        least = tl.where(tl.sum((key >= trial).to(tl.int32), 0) >= number, trial, least)
    above = key > least
    tie = key == least
    room = number - tl.sum(above.to(tl.int32), 0)
    chosen = above | (tie & (tl.cumsum(tie.to(tl.int32), 0) <= room))
    tl.store(LEVELS + row * nk + j, tl.where(chosen, 1, other).to(tl.uint8), mask=j < nk)


def quota_levels(
    q: torch.Tensor,
    k: torch.Tensor,
    number: int,
    other: int,
    block: int,
    scale: float,
    bnhd: bool,
    keep_mass: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Map uint8 [B, H, nq, nk] with the `number` heaviest key blocks of each row at 1, the rest at `other`; and the masses, if asked."""
    heads_at, tokens_at = (2, 1) if bnhd else (1, 2)
    batch, width = q.shape[0], q.shape[3]
    heads, kv_heads, n_q, n_k = q.shape[heads_at], k.shape[heads_at], q.shape[tokens_at], k.shape[tokens_at]
    nq, nk = -(-n_q // block), -(-n_k // block)

    def means(x: torch.Tensor, h: int, length: int, n: int, group: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        rows = n * (block // group)
        mean = x.new_empty(batch, h, rows, width)
        square, variance = (x.new_empty(batch, h, rows, dtype=torch.float32) for _ in range(2))
        means_kernel[(n, h, batch)](
            x, mean, square, variance, h, length, rows, D=width, BLOCK=block, GROUP=group, BNHD=bnhd, num_warps=8
        )
        return mean, square, variance

    q_mean, q_square, _ = means(q, heads, n_q, nq, block // 8)
    k_mean, _, k_variance = means(k, kv_heads, n_k, nk, 8)
    score = q.new_empty(batch, heads, nq * 8, nk, dtype=torch.float32)
    tile = 64
    score_kernel[(-(-nq * 8 // tile), heads, batch)](
        q_mean, q_square, k_mean, k_variance, score, scale, heads, heads // kv_heads, n_k, nq * 8, k_mean.shape[2], nk,
        D=width, QT=tile, PER=block // 8, NB=max(1, 128 // (block // 8)), num_warps=4,
    )  # fmt: skip
    levels = torch.empty(batch, heads, nq, nk, dtype=torch.uint8, device=q.device)
    mass = torch.empty(batch, heads, nq, nk, dtype=torch.float32, device=q.device) if keep_mass else None
    quota_kernel[(nq, heads, batch)](
        score, levels, score if mass is None else mass, heads, n_q, nq, nk, number, other,
        BLOCK=block, WIDTH=1 << max(1, (nk - 1).bit_length()), KEEP_MASS=keep_mass, num_warps=1,
    )  # fmt: skip
    return levels, mass
