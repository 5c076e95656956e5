# mypy: allow-untyped-defs
"""Pyramid attention in Triton: the forward. Triton and torch only; `operator` registers the result with torch.

All tensors are two-dimensional to the kernels: row `origin(b, h) + token`, column `column(h) + channel`, which covers (B, H, N, D) and
(B, N, H, D) alike and is what the tensor memory accelerator addresses. The pooled keys of one head are one buffer [2s | 4s | 8s | rest]
of rows, with log2 of the group's count and the trace of its covariance beside it.

The forward of a query block has four parts: the full blocks, where the work is, without bias or mask; its rest tokens (contiguous, masked
by the plan); blocks at levels 2, 4, 8 (gathered in tiles of half a block); the short last block or the causal diagonal (one masked step).
The full blocks may run as their own kernel (`split`), whose registers then hold nothing else.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
#: Finite stand-in for the running maximum of an empty row: -inf - -inf would be NaN.
EMPTY = tl.constexpr(-1.0e30)


@triton.jit
def origin(b, h, heads, length, D: tl.constexpr, BNHD: tl.constexpr):
    """First row and column of head h of sequence b."""
    if BNHD:
        return b * length, h * D
    return (b * heads + h) * length, h * 0


@triton.jit
def _update(s, v, m, norm, acc):
    """Online softmax: logits s in log2 units, masked ones -inf."""
    top = tl.maximum(m, tl.max(s, 1))
    p = tl.math.exp2(s - top[:, None])
    shrink = tl.math.exp2(m - top)
    acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None])
    return top, norm * shrink + tl.sum(p, 1), acc


@triton.jit
def correct(s, bias, variance, square, CORRECT: tl.constexpr):
    """Pooled logits in log2 units: plus log2 count, plus the variance correction, which is at most the log count.

    Keys that are not seen have bias -inf and variance 0, and so logit -inf.
    """
    if CORRECT:
        return s + tl.minimum(square[:, None] * variance[None, :] + bias[None, :], 2 * bias[None, :])
    return s + bias[None, :]


@triton.jit
def pooled_rows(t, n2, n4, n8, LIST, base2, base4, base8, BK: tl.constexpr, TP: tl.constexpr):
    """Rows [TP] in the pooled buffer of the t-th tile of blocks at levels 2, 4, 8, and which of them are real.

    A tile has half a block's rows: one block at level 2, two at level 4, four at level 8. LIST points at the first block at level 2.
    """
    t4 = n2 + (n4 + 1) // 2
    four, eight = (t >= n2) & (t < t4), t >= t4
    size = tl.where(eight, 8, tl.where(four, 4, 2))
    base = tl.where(eight, base8, tl.where(four, base4, base2))
    entries = tl.where(eight, n8, tl.where(four, n4, n2))
    start = tl.where(eight, n2 + n4, tl.where(four, n2, 0))
    tile = t - tl.where(eight, t4, tl.where(four, n2, 0))
    r = tl.arange(0, TP)
    per = BK // size
    entry = tile * (size // 2) + r // per
    real = entry < entries
    j = tl.load(LIST + start + entry, mask=real, other=0)
    return base + j * per + r % per, real


@triton.jit
def edge_block(LEVELS, i, last, nk, BK: tl.constexpr, CAUSAL: tl.constexpr):
    """The key block that needs a mask, the causal diagonal or the short last one, and whether query block i sees it token by token."""
    j = i if CAUSAL else (last - 1) // BK
    seen_in_full = tl.load(LEVELS + tl.minimum(j, nk - 1)) == 1
    if not CAUSAL:
        seen_in_full = seen_in_full & ((j + 1) * BK > last)
    return j, seen_in_full


@triton.jit
def edge_tile(K, V, first, last, m_of, k_row, k_col, k_ld, D: tl.constexpr, TN: tl.constexpr, CAUSAL: tl.constexpr):
    """TN keys and values of the masked block from token `first` on, and which queries m_of see which of them."""
    c = first + tl.arange(0, TN)
    at = (k_row + c).to(tl.int64)[:, None] * k_ld + k_col + tl.arange(0, D)[None, :]
    k = tl.load(K + at, mask=c[:, None] < last, other=0.0)
    v = tl.load(V + at, mask=c[:, None] < last, other=0.0)
    return k, v, (c < last)[None, :] & ((c[None, :] <= m_of[:, None]) if CAUSAL else (m_of >= 0)[:, None])


@triton.jit
def _full_blocks(
    q, m, norm, acc, k_desc, v_desc, K, V, blocks, number, step, k_row, k_col, k_ld,
    D: tl.constexpr, BK: tl.constexpr, TN: tl.constexpr, TMA: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The blocks seen token by token: `number` of them, listed at `blocks`."""
    d = tl.arange(0, D)
    SPLIT: tl.constexpr = BK // TN
    for t in tl.range(0, number * SPLIT, num_stages=STAGES):
        c = tl.load(blocks + t // SPLIT) * BK + (t % SPLIT) * TN
        if TMA:
            k = k_desc.load([k_row + c, k_col])
        else:
            at = (k_row + c + tl.arange(0, TN)).to(tl.int64)[:, None] * k_ld + k_col + d[None, :]
            k = tl.load(K + at)
        s = tl.dot(q, k.T)
        top = tl.maximum(m, tl.max(s, 1) * step)
        p = tl.math.exp2(s * step - top[:, None])
        shrink = tl.math.exp2(m - top)
        norm = norm * shrink + tl.sum(p, 1)
        acc = acc * shrink[:, None]
        if TMA:
            v = v_desc.load([k_row + c, k_col])
        else:
            v = tl.load(V + at)
        acc = tl.dot(p.to(v.dtype), v, acc)
        m = top
    return m, norm, acc


@triton.jit
def _full_blocks_late(
    q, m, norm, acc, k_desc, v_desc, K, V, blocks, number, step, k_row, k_col, k_ld,
    D: tl.constexpr, BK: tl.constexpr, TN: tl.constexpr, TMA: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The same, a step's product with the values on the tensor cores while the next step's exponentials are taken.

    The compiler drains the tensor cores where a product's result is used within its own step, so the one that overlaps must belong to the
    step before.
    """
    d = tl.arange(0, D)
    SPLIT: tl.constexpr = BK // TN
    p = tl.zeros([q.shape[0], TN], tl.float32)  # carried in float32: as 16 bits it would go through shared memory
    shrink = tl.full([q.shape[0]], 1.0, tl.float32)
    c = tl.load(blocks, mask=number > 0, other=0) * BK
    for t in tl.range(0, number * SPLIT, num_stages=STAGES):
        before = tl.maximum(t - 1, 0)
        c = tl.load(blocks + t // SPLIT) * BK + (t % SPLIT) * TN
        b = tl.load(blocks + before // SPLIT) * BK + (before % SPLIT) * TN
        if TMA:
            k = k_desc.load([k_row + c, k_col])
            v = v_desc.load([k_row + b, k_col])
        else:
            rows = k_row + tl.arange(0, TN)
            k = tl.load(K + (rows + c).to(tl.int64)[:, None] * k_ld + k_col + d[None, :])
            v = tl.load(V + (rows + b).to(tl.int64)[:, None] * k_ld + k_col + d[None, :])
        s = tl.dot(q, k.T)
        acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None])
        top = tl.maximum(m, tl.max(s, 1) * step)
        p = tl.math.exp2(s * step - top[:, None])
        shrink = tl.math.exp2(m - top)
        norm = norm * shrink + tl.sum(p, 1)
        m = top
    if number > 0:
        if TMA:
            v = v_desc.load([k_row + c, k_col])
        else:
            v = tl.load(V + (k_row + c + tl.arange(0, TN)).to(tl.int64)[:, None] * k_ld + k_col + d[None, :])
        acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None])
    return m, norm, acc


@triton.jit
def _other_parts(
    q, m, norm, acc, r_desc, rv_desc, b_desc, x_desc, K, V, KP, VP, BIAS, VAR, LEVELS, LIST, COUNT, SEEN, width, scale,
            i, m_of, last, row, nk, pooled, k_row, k_col, k_ld, base2, base4, base8, base_rest,
    D: tl.constexpr, BK: tl.constexpr, TN: tl.constexpr, TP: tl.constexpr, REST: tl.constexpr,
    PYRAMID: tl.constexpr, RESTS: tl.constexpr, CORRECT: tl.constexpr, CAUSAL: tl.constexpr,
    EDGE: tl.constexpr, TMA: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Rest tokens, blocks at levels 2, 4, 8, and the short last block or the causal diagonal."""
    d = tl.arange(0, D)
    step = scale * LOG2E
    square = tl.sum(q.to(tl.float32) * q.to(tl.float32), 1) * (scale * scale / (2 * D) * LOG2E)
    if RESTS:
        groups = i * (BK // REST) if CAUSAL else tl.cdiv(last, REST)
        for t in tl.range(0, tl.cdiv(groups, TP), num_stages=STAGES):
            r = t * TP + tl.arange(0, TP)
            at = pooled + base_rest + r
            if TMA:
                bias = b_desc.load([(row * width).to(tl.int32) + t * TP])
                variance = x_desc.load([pooled + base_rest + t * TP])
                k = r_desc.load([pooled + base_rest + t * TP, 0])
                v = rv_desc.load([pooled + base_rest + t * TP, 0])
            else:
                bias = tl.load(SEEN + row * width + r)
                variance = tl.load(VAR + at, mask=r < groups, other=0.0)
                k = tl.load(KP + at.to(tl.int64)[:, None] * D + d[None, :], mask=(r < groups)[:, None], other=0.0)
                v = tl.load(VP + at.to(tl.int64)[:, None] * D + d[None, :], mask=(r < groups)[:, None], other=0.0)
            s = correct(tl.dot(q, k.T) * step, bias, variance, square, CORRECT)
            m, norm, acc = _update(s, v, m, norm, acc)
    if PYRAMID:
        n2, n4, n8 = tl.load(COUNT + row * 4 + 1), tl.load(COUNT + row * 4 + 2), tl.load(COUNT + row * 4 + 3)
        for t in tl.range(0, n2 + (n4 + 1) // 2 + (n8 + 3) // 4, num_stages=STAGES):
            r, real = pooled_rows(t, n2, n4, n8, LIST + row * nk + tl.load(COUNT + row * 4), base2, base4, base8, BK, BK // 2)
            at = (pooled + r).to(tl.int64)
            k = tl.load(KP + at[:, None] * D + d[None, :], mask=real[:, None], other=0.0)
            v = tl.load(VP + at[:, None] * D + d[None, :], mask=real[:, None], other=0.0)
            bias = tl.load(BIAS + at, mask=real, other=-float("inf"))
            s = correct(tl.dot(q, k.T) * step, bias, tl.load(VAR + at, mask=real, other=0.0), square, CORRECT)
            m, norm, acc = _update(s, v, m, norm, acc)
    if EDGE:
        j, seen_in_full = edge_block(LEVELS + row * nk, i, last, nk, BK, CAUSAL)
        if seen_in_full:
            for part in tl.range(0, BK // TN):
                k, v, seen = edge_tile(K, V, j * BK + part * TN, last, m_of, k_row, k_col, k_ld, D, TN, CAUSAL)
                m, norm, acc = _update(tl.where(seen, tl.dot(q, k.T) * step, -float("inf")), v, m, norm, acc)
    return m, norm, acc


@triton.jit
def forward_kernel(
    k_desc, v_desc, r_desc, rv_desc, b_desc, x_desc, Q, K, V, KP, VP, BIAS, VAR, LEVELS, LIST, COUNT, SEEN, LENGTHS, OUT, LSE,
    PART, PART_LSE, width, scale, heads, group, n_q, n_k, nq, nk, rows, base2, base4, base8, base_rest,
    D: tl.constexpr, BK: tl.constexpr, BM: tl.constexpr, TN: tl.constexpr, TP: tl.constexpr, REST: tl.constexpr,
    PYRAMID: tl.constexpr, RESTS: tl.constexpr, CORRECT: tl.constexpr, CAUSAL: tl.constexpr,
    EDGE: tl.constexpr, VARLEN: tl.constexpr, BNHD: tl.constexpr, TMA: tl.constexpr, STAGES: tl.constexpr,
    PHASE: tl.constexpr, LATE: tl.constexpr,
):  # fmt: skip
    """PHASE 0: everything. 1: the full blocks, into PART and PART_LSE. 2: the other parts, starting from those."""
    pid, h, b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    i = pid // (BK // BM)
    kv = h // group
    kv_heads = heads // group
    last = tl.load(LENGTHS + b) if VARLEN else n_k
    last_q = tl.load(LENGTHS + b) if VARLEN else n_q
    q_row, q_col = origin(b, h, heads, n_q, D, BNHD)
    k_row, k_col = origin(b, kv, kv_heads, n_k, D, BNHD)
    q_ld = heads * D if BNHD else D
    k_ld = kv_heads * D if BNHD else D
    m_of = pid * BM + tl.arange(0, BM)
    d = tl.arange(0, D)
    row = ((b * heads + h) * nq + i).to(tl.int64)
    n1 = tl.load(COUNT + row * 4)
    q = tl.load(Q + (q_row + m_of).to(tl.int64)[:, None] * q_ld + q_col + d[None, :], mask=m_of[:, None] < last_q, other=0.0)
    stat = (b * heads + h).to(tl.int64) * n_q + m_of
    if PHASE == 2:  # the full blocks' output is a running state like any other, with everything at its log-sum-exp
        m = tl.load(PART_LSE + stat, mask=m_of < n_q, other=-float("inf")) * LOG2E
        norm = tl.where(m > EMPTY, 1.0, 0.0)
        m = tl.maximum(m, EMPTY)
        acc = tl.load(PART + stat[:, None] * D + d[None, :], mask=m_of[:, None] < n_q, other=0.0).to(tl.float32)
    else:
        m = tl.full([BM], EMPTY, tl.float32)
        norm = tl.zeros([BM], tl.float32)
        acc = tl.zeros([BM, D], tl.float32)
    pooled = (b * kv_heads + kv) * rows
    if PHASE != 1:
        m, norm, acc = _other_parts(
            q, m, norm, acc, r_desc, rv_desc, b_desc, x_desc, K, V, KP, VP, BIAS, VAR, LEVELS, LIST, COUNT, SEEN, width, scale,
            i, m_of, last, row, nk, pooled, k_row, k_col, k_ld, base2, base4, base8, base_rest,
            D, BK, TN, TP, REST, PYRAMID, RESTS, CORRECT, CAUSAL, EDGE, TMA, STAGES,
        )  # fmt: skip
    if PHASE != 2:
        if LATE:
            m, norm, acc = _full_blocks_late(
                q,
                m,
                norm,
                acc,
                k_desc,
                v_desc,
                K,
                V,
                LIST + row * nk,
                n1,
                scale * LOG2E,
                k_row,
                k_col,
                k_ld,
                D,
                BK,
                TN,
                TMA,
                STAGES,
            )
        else:
            m, norm, acc = _full_blocks(
                q, m, norm, acc, k_desc, v_desc, K, V, LIST + row * nk, n1, scale * LOG2E, k_row, k_col, k_ld,
                D, BK, TN, TMA, STAGES,
            )  # fmt: skip
    lse = tl.where(norm > 0, (m + tl.math.log2(tl.where(norm > 0, norm, 1.0))) / LOG2E, -float("inf"))
    out = acc / tl.where(norm > 0, norm, 1.0)[:, None]
    inside = m_of < last_q
    out = tl.where(inside[:, None], out, 0.0)
    lse = tl.where(inside, lse, -float("inf"))
    if PHASE == 1:
        tl.store(PART + stat[:, None] * D + d[None, :], out.to(PART.dtype.element_ty), mask=m_of[:, None] < n_q)
        tl.store(PART_LSE + stat, lse, mask=m_of < n_q)
    else:
        at = (q_row + m_of).to(tl.int64)[:, None] * q_ld + q_col + d[None, :]
        tl.store(OUT + at, out.to(OUT.dtype.element_ty), mask=m_of[:, None] < n_q)
        tl.store(LSE + stat, lse, mask=m_of < n_q)
