# mypy: allow-untyped-defs
"""Backward of pyramid attention in Triton: dQ by the plan's lists, dK and dV by the transposed ones. No atomics: bitwise repeatable.

With P the softmax weights, dP = dO V', delta = rowsum(dO O) - dLSE and dS = P (dP - delta), the gradients of a pooled logit
s = a q.mean_g + log n + min(c, log n), c = a^2/(2D) |q|^2 var_g, are

    dq       = a sum_g dS_g mean_g + (a^2/D) (sum_g [c < log n] dS_g var_g) q
    dmean_g  = a sum_i dS_ig q_i
    dvar_g   = a^2/(2D) sum_i [c < log n] dS_ig |q_i|^2
    dk_t     = dmean_g / n + dvar_g 2 (k_t - mean_g) / n          for the tokens t of group g
    dv_t     = (sum_i P_ig dO_i) / n

The last two are added while a key block's own gradient is still in registers, so the pyramid costs no pass of its own.
"""

from __future__ import annotations

import triton
import triton.language as tl

from world_r1_kernels.pyramid_attention.triton import EMPTY, LOG2E, correct, edge_block, edge_tile, origin, pooled_rows


@triton.jit
def delta_kernel(
    Q, OUT, GRAD, LSE, GRAD_LSE, LSE2, DELTA, SQUARE, heads, n_q,
    D: tl.constexpr, BM: tl.constexpr, BNHD: tl.constexpr, LSE_GRAD: tl.constexpr,
):  # fmt: skip
    """Per query the log-sum-exp in log2 units, rowsum(dO O) - dLSE and |q|^2, in whole blocks.

    Queries that saw nothing, and those past the end, get the log-sum-exp 1e30, which makes every weight of theirs 0. So the kernels read
    these without a mask, and through descriptors: loaded by pointers, a few numbers a step became a hundred copies of four bytes.
    """
    i, h, b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    row, col = origin(b, h, heads, n_q, D, BNHD)
    ld = heads * D if BNHD else D
    m_of = i * BM + tl.arange(0, BM)
    at = (row + m_of).to(tl.int64)[:, None] * ld + col + tl.arange(0, D)[None, :]
    inside = m_of < n_q
    out = tl.load(OUT + at, mask=inside[:, None], other=0.0).to(tl.float32)
    grad = tl.load(GRAD + at, mask=inside[:, None], other=0.0).to(tl.float32)
    stat = (b * heads + h).to(tl.int64) * n_q + m_of
    to = ((b * heads + h) * tl.num_programs(0)).to(tl.int64) * BM + m_of
    delta = tl.sum(out * grad, 1)
    if LSE_GRAD:
        delta -= tl.load(GRAD_LSE + stat, mask=inside, other=0.0)
    tl.store(DELTA + to, delta)
    lse = tl.load(LSE + stat, mask=inside, other=-float("inf"))
    tl.store(LSE2 + to, tl.where(lse > EMPTY, lse * LOG2E, -EMPTY))
    q = tl.load(Q + at, mask=inside[:, None], other=0.0).to(tl.float32)
    tl.store(SQUARE + to, tl.sum(q * q, 1))


@triton.jit
def _full_blocks_late(
    q, grad, dq, k_desc, v_desc, blocks, number, step, lse, delta, k_row, k_col,
    D: tl.constexpr, BK: tl.constexpr, TN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """dQ of the full blocks, a step's dS K on the tensor cores while the next step's dS is computed (as `triton._full_blocks_late`)."""
    SPLIT: tl.constexpr = BK // TN
    ds = tl.zeros([q.shape[0], TN], tl.float32)
    c = tl.load(blocks, mask=number > 0, other=0) * BK
    for t in tl.range(0, number * SPLIT, num_stages=STAGES):
        before = tl.maximum(t - 1, 0)
        c = tl.load(blocks + t // SPLIT) * BK + (t % SPLIT) * TN
        b = tl.load(blocks + before // SPLIT) * BK + (before % SPLIT) * TN
        k = k_desc.load([k_row + c, k_col])
        v = v_desc.load([k_row + c, k_col])
        old = k_desc.load([k_row + b, k_col])
        s = tl.dot(q, k.T)
        dp = tl.dot(grad, v.T)
        dq = tl.dot(ds.to(old.dtype), old, dq)
        ds = tl.math.exp2(s * step - lse[:, None]) * (dp - delta[:, None])
    if number > 0:
        old = k_desc.load([k_row + c, k_col])
        dq = tl.dot(ds.to(old.dtype), old, dq)
    return dq


@triton.jit
def grad_q_kernel(
    k_desc, v_desc, r_desc, rv_desc, b_desc, x_desc, Q, K, V, GRAD, KP, VP, BIAS, VAR, LSE, DELTA, LEVELS, LIST, COUNT, LENGTHS, SEEN,
    GRAD_Q, width, scale, heads, group, n_q, n_k, nq, nk, rows, base2, base4, base8, base_rest,
    D: tl.constexpr, BK: tl.constexpr, BM: tl.constexpr, TN: tl.constexpr, TP: tl.constexpr, REST: tl.constexpr,
    PYRAMID: tl.constexpr, RESTS: tl.constexpr, CORRECT: tl.constexpr, CAUSAL: tl.constexpr,
    EDGE: tl.constexpr, VARLEN: tl.constexpr, BNHD: tl.constexpr, TMA: tl.constexpr, STAGES: tl.constexpr, LATE: tl.constexpr,
):  # fmt: skip
    """One program a tile of BM queries; the four parts of the forward, in its order."""
    pid, h, b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    i = pid // (BK // BM)
    kv, kv_heads = h // group, heads // group
    last = tl.load(LENGTHS + b) if VARLEN else n_k
    last_q = tl.load(LENGTHS + b) if VARLEN else n_q
    q_row, q_col = origin(b, h, heads, n_q, D, BNHD)
    k_row, k_col = origin(b, kv, kv_heads, n_k, D, BNHD)
    q_ld = heads * D if BNHD else D
    k_ld = kv_heads * D if BNHD else D
    m_of = pid * BM + tl.arange(0, BM)
    d = tl.arange(0, D)
    inside = m_of < last_q
    q_at = (q_row + m_of).to(tl.int64)[:, None] * q_ld + q_col + d[None, :]
    q = tl.load(Q + q_at, mask=inside[:, None], other=0.0)
    grad = tl.load(GRAD + q_at, mask=inside[:, None], other=0.0)
    stat = ((b * heads + h) * nq).to(tl.int64) * BK + m_of
    lse = tl.load(LSE + stat)
    delta = tl.load(DELTA + stat)
    step = scale * LOG2E
    square = tl.sum(q.to(tl.float32) * q.to(tl.float32), 1) * (scale * scale / (2 * D) * LOG2E)
    row = ((b * heads + h) * nq + i).to(tl.int64)
    pooled = (b * kv_heads + kv) * rows
    dq = tl.zeros([BM, D], tl.float32)
    spread = tl.zeros([BM], tl.float32)
    n1 = tl.load(COUNT + row * 4)
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
            p = tl.math.exp2(s - lse[:, None])
            ds = p * (tl.dot(grad, v.T) - delta[:, None])
            dq = tl.dot(ds.to(k.dtype), k, dq)
            if CORRECT:
                free = square[:, None] * variance[None, :] < bias[None, :]
                spread += tl.sum(tl.where(free, ds * variance[None, :], 0.0), 1)
    if PYRAMID:
        n2, n4, n8 = tl.load(COUNT + row * 4 + 1), tl.load(COUNT + row * 4 + 2), tl.load(COUNT + row * 4 + 3)
        for t in tl.range(0, n2 + (n4 + 1) // 2 + (n8 + 3) // 4, num_stages=STAGES):
            r, real = pooled_rows(t, n2, n4, n8, LIST + row * nk + n1, base2, base4, base8, BK, BK // 2)
            at = (pooled + r).to(tl.int64)
            k = tl.load(KP + at[:, None] * D + d[None, :], mask=real[:, None], other=0.0)
            v = tl.load(VP + at[:, None] * D + d[None, :], mask=real[:, None], other=0.0)
            bias = tl.load(BIAS + at, mask=real, other=-float("inf"))
            variance = tl.load(VAR + at, mask=real, other=0.0)
            s = correct(tl.dot(q, k.T) * step, bias, variance, square, CORRECT)
            p = tl.math.exp2(s - lse[:, None])
            ds = p * (tl.dot(grad, v.T) - delta[:, None])
            dq = tl.dot(ds.to(k.dtype), k, dq)
            if CORRECT:
                free = square[:, None] * variance[None, :] < bias[None, :]
                spread += tl.sum(tl.where(free, ds * variance[None, :], 0.0), 1)
    if EDGE:
        j, seen_in_full = edge_block(LEVELS + row * nk, i, last, nk, BK, CAUSAL)
        if seen_in_full:
            for part in tl.range(0, BK // TN):
                k, v, seen = edge_tile(K, V, j * BK + part * TN, last, m_of, k_row, k_col, k_ld, D, TN, CAUSAL)
                p = tl.where(seen, tl.math.exp2(tl.dot(q, k.T) * step - lse[:, None]), 0.0)
                ds = p * (tl.dot(grad, v.T) - delta[:, None])
                dq = tl.dot(ds.to(k.dtype), k, dq)
    if LATE:
        dq = _full_blocks_late(q, grad, dq, k_desc, v_desc, LIST + row * nk, n1, step, lse, delta, k_row, k_col, D, BK, TN, STAGES)
    else:
        SPLIT: tl.constexpr = BK // TN
        for t in tl.range(0, n1 * SPLIT, num_stages=STAGES):
            c = tl.load(LIST + row * nk + t // SPLIT) * BK + (t % SPLIT) * TN
            if TMA:
                k = k_desc.load([k_row + c, k_col])
                v = v_desc.load([k_row + c, k_col])
            else:
                at = (k_row + c + tl.arange(0, TN)).to(tl.int64)[:, None] * k_ld + k_col + d[None, :]
                k = tl.load(K + at)
                v = tl.load(V + at)
            p = tl.math.exp2(tl.dot(q, k.T) * step - lse[:, None])
            ds = p * (tl.dot(grad, v.T) - delta[:, None])
            dq = tl.dot(ds.to(k.dtype), k, dq)
    dq = dq * scale
    if CORRECT:  # read q again, in words that the compiler does not take for the first time: it would hold it in registers
        q = tl.load(Q + q_at, mask=inside[:, None], other=0.0, eviction_policy="evict_first")
        dq += (spread * (scale * scale / D))[:, None] * q.to(tl.float32)
    tl.store(GRAD_Q + q_at, dq.to(GRAD_Q.dtype.element_ty), mask=m_of[:, None] < n_q)


@triton.jit
def grad_pooled_kernel(
    q_desc, g_desc, l_desc, d_desc, s_desc, Q, K, V, GRAD, KP, VP, BIAS, VAR, LSE, DELTA, LEVELS, LIST, COUNT, LENGTHS, SEEN, SQUARE,
    GRAD_K, GRAD_V, GRAD_VAR, width, scale, heads, group, n_q, n_k, nq, nk, rows, base, count, out_rows, tiles, splits,
    D: tl.constexpr, BK: tl.constexpr, TP: tl.constexpr, QT: tl.constexpr, SIZE: tl.constexpr, DENSE: tl.constexpr,
    CORRECT: tl.constexpr, CAUSAL: tl.constexpr, VARLEN: tl.constexpr, BNHD: tl.constexpr,
    TMA: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One program TP pooled keys of one level; with DENSE, and one of `splits` stretches of the query blocks."""
    pid, kv, b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    tile = pid % tiles if DENSE else pid
    split = pid // tiles if DENSE else 0
    kv_heads = heads // group
    last_q = tl.load(LENGTHS + b) if VARLEN else n_q
    d = tl.arange(0, D)
    r = tile * TP + tl.arange(0, TP)
    valid = r < count
    at = ((b * kv_heads + kv) * rows + base + r).to(tl.int64)
    k = tl.load(KP + at[:, None] * D + d[None, :], mask=valid[:, None], other=0.0)
    v = tl.load(VP + at[:, None] * D + d[None, :], mask=valid[:, None], other=0.0)
    bias = tl.load(BIAS + at, mask=valid, other=-float("inf"))
    variance = tl.load(VAR + at, mask=valid, other=0.0)
    block = r * SIZE // BK
    step = scale * LOG2E
    unit = scale * scale / (2 * D)
    dk = tl.zeros([TP, D], tl.float32)
    dv = tl.zeros([TP, D], tl.float32)
    dvar = tl.zeros([TP], tl.float32)
    SPLIT: tl.constexpr = BK // QT
    for member in tl.range(0, group):
        h = kv * group + member
        if DENSE:
            per = tl.cdiv(nq, splits)
            first = split * per
            number = tl.maximum(tl.minimum(nq, first + per) - first, 0)
        else:
            first = 0
            number = tl.load(COUNT + (b * heads + h) * tl.cdiv(count, TP) + tile)
        listed = LIST + ((b * heads + h) * tl.cdiv(count, TP) + tile).to(tl.int64) * nq
        q_row, q_col = origin(b, h, heads, n_q, D, BNHD)
        q_ld = heads * D if BNHD else D
        for t in tl.range(0, number * SPLIT, num_stages=STAGES):
            i = first + t // SPLIT if DENSE else tl.load(listed + t // SPLIT)
            m_of = i * BK + (t % SPLIT) * QT + tl.arange(0, QT)
            inside = m_of < last_q
            row = ((b * heads + h) * nq + i).to(tl.int64)
            if DENSE:
                seen = tl.load(SEEN + row * width + r)
            else:
                level = tl.load(LEVELS + row * nk + block, mask=valid, other=0)
                seen = tl.where(level == SIZE, bias, -float("inf"))
            if TMA:  # rows past the end are another head's, and get weight 0 from their log-sum-exp
                q = q_desc.load([q_row + i * BK + (t % SPLIT) * QT, q_col])
                grad = g_desc.load([q_row + i * BK + (t % SPLIT) * QT, q_col])
            else:
                q_at = (q_row + m_of).to(tl.int64)[:, None] * q_ld + q_col + d[None, :]
                q = tl.load(Q + q_at, mask=inside[:, None], other=0.0)
                grad = tl.load(GRAD + q_at, mask=inside[:, None], other=0.0)
            stat = (b * heads + h) * nq * BK + i * BK + (t % SPLIT) * QT
            if TMA:
                lse, delta = l_desc.load([stat]), d_desc.load([stat])
                square = s_desc.load([stat]) * unit
            else:
                lse, delta = tl.load(LSE + stat + tl.arange(0, QT)), tl.load(DELTA + stat + tl.arange(0, QT))
                square = tl.load(SQUARE + stat + tl.arange(0, QT)) * unit
            s = tl.dot(k, q.T) * step
            if CORRECT:
                s += tl.minimum(variance[:, None] * (square * LOG2E)[None, :] + seen[:, None], 2 * seen[:, None])
            else:
                s += seen[:, None]
            p = tl.math.exp2(s - lse[None, :])
            dp = tl.dot(v, grad.T)
            dv = tl.dot(p.to(grad.dtype), grad, dv)  # on the tensor cores while dS is computed
            ds = p * (dp - delta[None, :])
            dk = tl.dot(ds.to(q.dtype), q, dk)
            if CORRECT:
                free = variance[:, None] * (square * LOG2E)[None, :] < bias[:, None]
                dvar += tl.sum(tl.where(free, ds * square[None, :], 0.0), 1)
    head = ((split * tl.num_programs(2) + b) * kv_heads + kv).to(tl.int64) * out_rows
    to = head + (0 if DENSE else base) + r
    tl.store(GRAD_K + to[:, None] * D + d[None, :], dk * scale, mask=valid[:, None])
    tl.store(GRAD_V + to[:, None] * D + d[None, :], dv, mask=valid[:, None])
    tl.store(GRAD_VAR + to, dvar, mask=valid)


@triton.jit
def _spread_values(dv, tokens, n, rows, GRAD_VP, SIZE: tl.constexpr, D: tl.constexpr):
    """Add one level's gradient of the values, shared out to the tokens of its groups. `rows`: of the level's first group."""
    at = (rows + tokens // SIZE).to(tl.int64)[:, None] * D + tl.arange(0, D)[None, :]
    inverse = 1.0 / tl.maximum(tl.minimum(n - tokens // SIZE * SIZE, SIZE), 1).to(tl.float32)
    return dv + tl.load(GRAD_VP + at, mask=(tokens < n)[:, None], other=0.0) * inverse[:, None]


@triton.jit
def _spread_keys(dk, k, tokens, n, rows, KP, GRAD_KP, GRAD_VAR, SIZE: tl.constexpr, D: tl.constexpr, CORRECT: tl.constexpr):
    """The same for the keys, through the mean and through the variance."""
    inside = tokens < n
    at = (rows + tokens // SIZE).to(tl.int64)
    wide = at[:, None] * D + tl.arange(0, D)[None, :]
    inverse = 1.0 / tl.maximum(tl.minimum(n - tokens // SIZE * SIZE, SIZE), 1).to(tl.float32)
    dk += tl.load(GRAD_KP + wide, mask=inside[:, None], other=0.0) * inverse[:, None]
    if CORRECT:
        spread = tl.load(GRAD_VAR + at, mask=inside, other=0.0) * inverse
        mean = tl.load(KP + wide, mask=inside[:, None], other=0.0).to(tl.float32)
        dk += 2.0 * spread[:, None] * (k.to(tl.float32) - mean)
    return dk


@triton.jit
def grad_kv_kernel(
    q_desc, g_desc, l_desc, d_desc, Q, K, V, GRAD, KP, VP, BIAS, VAR, LSE, DELTA, LEVELS, LIST, COUNT, LENGTHS,
    GRAD_KP, GRAD_VP, GRAD_VAR, GRAD_K, GRAD_V, scale, heads, group, n_q, n_k, nq, nk, rows, base2, base4, base8, base_rest,
    D: tl.constexpr, BK: tl.constexpr, KT: tl.constexpr, QT: tl.constexpr, REST: tl.constexpr,
    L2: tl.constexpr, L4: tl.constexpr, L8: tl.constexpr, CORRECT: tl.constexpr, CAUSAL: tl.constexpr,
    VARLEN: tl.constexpr, BNHD: tl.constexpr, TMA: tl.constexpr, STAGES: tl.constexpr, LATE: tl.constexpr,
):  # fmt: skip
    """One program KT keys: over the query blocks that see them token by token, then the pyramid's share."""
    pid, kv, b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    j = pid // (BK // KT)
    kv_heads = heads // group
    last = tl.load(LENGTHS + b) if VARLEN else n_k
    last_q = tl.load(LENGTHS + b) if VARLEN else n_q
    k_row, k_col = origin(b, kv, kv_heads, n_k, D, BNHD)
    k_ld = kv_heads * D if BNHD else D
    d = tl.arange(0, D)
    c = pid * KT + tl.arange(0, KT)
    k_at = (k_row + c).to(tl.int64)[:, None] * k_ld + k_col + d[None, :]
    k = tl.load(K + k_at, mask=c[:, None] < last, other=0.0)
    v = tl.load(V + k_at, mask=c[:, None] < last, other=0.0)
    step = scale * LOG2E
    dk = tl.zeros([KT, D], tl.float32)
    dv = tl.zeros([KT, D], tl.float32)
    SPLIT: tl.constexpr = BK // QT
    for member in tl.range(0, group):
        h = kv * group + member
        number = tl.load(COUNT + (b * heads + h) * nk + j)
        listed = LIST + ((b * heads + h) * nk + j).to(tl.int64) * nq
        q_row, q_col = origin(b, h, heads, n_q, D, BNHD)
        q_ld = heads * D if BNHD else D
        for t in tl.range(0, number * SPLIT, num_stages=STAGES):
            first = tl.load(listed + t // SPLIT) * BK + (t % SPLIT) * QT
            m_of = first + tl.arange(0, QT)
            inside = m_of < last_q
            if TMA:  # as for the pooled keys
                q = q_desc.load([q_row + first, q_col])
                grad = g_desc.load([q_row + first, q_col])
            else:
                q_at = (q_row + m_of).to(tl.int64)[:, None] * q_ld + q_col + d[None, :]
                q = tl.load(Q + q_at, mask=inside[:, None], other=0.0)
                grad = tl.load(GRAD + q_at, mask=inside[:, None], other=0.0)
            stat = (b * heads + h) * nq * BK + first
            if TMA:
                lse, delta = l_desc.load([stat]), d_desc.load([stat])
            else:
                lse, delta = tl.load(LSE + stat + tl.arange(0, QT)), tl.load(DELTA + stat + tl.arange(0, QT))
            p = tl.math.exp2(tl.dot(k, q.T) * step - lse[None, :])
            if CAUSAL:
                p = tl.where(c[:, None] <= m_of[None, :], p, 0.0)
            if LATE:  # dV on the tensor cores while dS is computed
                dp = tl.dot(v, grad.T)
                dv = tl.dot(p.to(grad.dtype), grad, dv)
            else:
                dv = tl.dot(p.to(grad.dtype), grad, dv)
                dp = tl.dot(v, grad.T)
            ds = p * (dp - delta[None, :])
            dk = tl.dot(ds.to(q.dtype), q, dk)
    head = (b * kv_heads + kv) * rows
    inside_k = (c < last)[:, None]
    if L2:
        dv = _spread_values(dv, c, last, head + base2, GRAD_VP, 2, D)
    if L4:
        dv = _spread_values(dv, c, last, head + base4, GRAD_VP, 4, D)
    if L8:
        dv = _spread_values(dv, c, last, head + base8, GRAD_VP, 8, D)
    if REST > 0:
        dv = _spread_values(dv, c, last, head + base_rest, GRAD_VP, REST, D)
    tl.store(GRAD_V + k_at, tl.where(inside_k, dv, 0.0).to(GRAD_V.dtype.element_ty), mask=c[:, None] < n_k)
    k = tl.load(K + k_at, mask=inside_k, other=0.0)  # again: held through the loop it would not fit into the registers
    dk = dk * scale
    if L2:
        dk = _spread_keys(dk, k, c, last, head + base2, KP, GRAD_KP, GRAD_VAR, 2, D, CORRECT)
    if L4:
        dk = _spread_keys(dk, k, c, last, head + base4, KP, GRAD_KP, GRAD_VAR, 4, D, CORRECT)
    if L8:
        dk = _spread_keys(dk, k, c, last, head + base8, KP, GRAD_KP, GRAD_VAR, 8, D, CORRECT)
    if REST > 0:
        dk = _spread_keys(dk, k, c, last, head + base_rest, KP, GRAD_KP, GRAD_VAR, REST, D, CORRECT)
    tl.store(GRAD_K + k_at, tl.where(inside_k, dk, 0.0).to(GRAD_K.dtype.element_ty), mask=c[:, None] < n_k)
