# mypy: allow-untyped-defs
"""Pooling and block lists in Triton: what attention needs of K and V beside themselves, and of a plan. `triton` has the layout."""

from __future__ import annotations

import triton
import triton.language as tl

from world_r1_kernels.pyramid_attention.triton import origin


@triton.jit
def group_sums(x, SIZE: tl.constexpr, ROWS: tl.constexpr, GROUPS: tl.constexpr):
    """Sums [GROUPS, D] float32 of SIZE consecutive rows of x [ROWS, D], as a product with a matrix of ones and zeros; exact products.

    Reshaping and adding in registers moves every element between threads and took eight times as long.
    """
    ones = (tl.arange(0, ROWS)[None, :] // SIZE == tl.arange(0, GROUPS)[:, None]).to(x.dtype)
    return tl.dot(ones, x)


@triton.jit
def _store_level(k, v, s, KP, VP, BIAS, VAR, row, first, n, SIZE: tl.constexpr, BK: tl.constexpr, D: tl.constexpr):
    """Write means, log2 counts and variances of the groups of SIZE tokens of one block; its first token is `first`, s [BK] are |k|^2."""
    ROWS: tl.constexpr = BK // SIZE
    GROUPS: tl.constexpr = ROWS if ROWS > 16 else 16  # what the tensor cores take at least
    g = tl.arange(0, GROUPS)
    d = tl.arange(0, D)
    real = g < ROWS
    count = tl.where(real, tl.minimum(tl.maximum(n - first - g * SIZE, 0), SIZE), 0)
    inverse = 1.0 / tl.maximum(count, 1).to(tl.float32)
    mean = group_sums(k, SIZE, BK, GROUPS) * inverse[:, None]
    at = (row + g).to(tl.int64)
    tl.store(KP + at[:, None] * D + d[None, :], mean.to(KP.dtype.element_ty), mask=real[:, None])
    means = group_sums(v, SIZE, BK, GROUPS) * inverse[:, None]
    tl.store(VP + at[:, None] * D + d[None, :], means.to(VP.dtype.element_ty), mask=real[:, None])
    squares = tl.sum(tl.where(tl.arange(0, BK)[None, :] // SIZE == g[:, None], s[None, :], 0.0), 1)
    tl.store(VAR + at, tl.maximum(squares * inverse - tl.sum(mean * mean, 1), 0.0), mask=real)
    tl.store(BIAS + at, tl.where(count > 0, tl.math.log2(tl.maximum(count, 1).to(tl.float32)), -float("inf")), mask=real)


@triton.jit
def pool_kernel(
    K, V, KP, VP, BIAS, VAR, LENGTHS, heads, length, nk, rows, base2, base4, base8, base_rest,
    D: tl.constexpr, BK: tl.constexpr, REST: tl.constexpr,
    L2: tl.constexpr, L4: tl.constexpr, L8: tl.constexpr, BNHD: tl.constexpr, VARLEN: tl.constexpr,
):  # fmt: skip
    """One program a key block: every level's means, counts and variances from one read of K and V."""
    j, h, b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    n = tl.load(LENGTHS + b) if VARLEN else length
    row0, col0 = origin(b, h, heads, length, D, BNHD)
    ld = heads * D if BNHD else D
    t = j * BK + tl.arange(0, BK)
    at = (row0 + t).to(tl.int64)[:, None] * ld + col0 + tl.arange(0, D)[None, :]
    k = tl.load(K + at, mask=t[:, None] < n, other=0.0)
    v = tl.load(V + at, mask=t[:, None] < n, other=0.0)
    wide = k.to(tl.float32)
    s = tl.sum(wide * wide, 1)
    base = (b * heads + h) * rows
    first = j * BK
    if L2:
        _store_level(k, v, s, KP, VP, BIAS, VAR, base + base2 + j * (BK // 2), first, n, 2, BK, D)
    if L4:
        _store_level(k, v, s, KP, VP, BIAS, VAR, base + base4 + j * (BK // 4), first, n, 4, BK, D)
    if L8:
        _store_level(k, v, s, KP, VP, BIAS, VAR, base + base8 + j * (BK // 8), first, n, 8, BK, D)
    _store_level(k, v, s, KP, VP, BIAS, VAR, base + base_rest + j * (BK // REST), first, n, REST, BK, D)


@triton.jit
def row_sums(X, row, col, ld, first, n, SIZE: tl.constexpr, GROUPS: tl.constexpr, D: tl.constexpr):
    """Sums [GROUPS, D] and sums of squares [GROUPS], float32, of SIZE consecutive tokens from `first` on; tokens from n on count as 0.

    One token of every group at a time, so that a thread adds what it loaded itself and nothing moves between threads.
    """
    g = tl.arange(0, GROUPS)
    d = tl.arange(0, D)
    total = tl.zeros([GROUPS, D], tl.float32)
    squares = tl.zeros([GROUPS, D], tl.float32)
    for u in tl.static_range(SIZE):
        t = first + g * SIZE + u
        x = tl.load(X + (row + t).to(tl.int64)[:, None] * ld + col + d[None, :], mask=(t < n)[:, None], other=0.0).to(tl.float32)
        total += x
        squares += x * x
    return total, tl.sum(squares, 1)


@triton.jit
def keys_kernel(
    K, V, MEAN, MEAN_BIAS, MEAN_VAR, RANK, KP, VP, BIAS, VAR, LENGTHS, heads, length, rows, base_rest,
    D: tl.constexpr, BK: tl.constexpr, REST: tl.constexpr, BNHD: tl.constexpr, V_BNHD: tl.constexpr, VARLEN: tl.constexpr,
    SELECT: tl.constexpr, POOL: tl.constexpr, DROP: tl.constexpr,
):  # fmt: skip
    """One program a key block, one read of K and V for all that selection and attention want of them beside themselves.

    SELECT: mean, log2 count and covariance trace of groups of 8 tokens, and the block's rank factor: the variance within groups of REST
    tokens over the keys that level 1 costs more. POOL: rest tokens, where a plan has no levels between.
    """
    j, h, b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    n = tl.load(LENGTHS + b) if VARLEN else length
    row, col = origin(b, h, heads, length, D, BNHD)
    first = j * BK
    head = b * heads + h
    d = tl.arange(0, D)
    PER: tl.constexpr = BK // 8
    RESTS: tl.constexpr = BK // REST
    total, squares = row_sums(K, row, col, heads * D if BNHD else D, first, n, 8, PER, D)
    p = tl.arange(0, RESTS)
    count = tl.minimum(tl.maximum(n - first - p * REST, 0), REST)
    inverse = 1.0 / tl.maximum(count, 1).to(tl.float32)
    centre = tl.sum(tl.reshape(total, [RESTS, REST // 8, D]), 1) * inverse[:, None]
    within = tl.maximum(tl.sum(tl.reshape(squares, [RESTS, REST // 8]), 1) * inverse - tl.sum(centre * centre, 1), 0.0)
    if SELECT:
        g = tl.arange(0, PER)
        of_group = tl.minimum(tl.maximum(n - first - g * 8, 0), 8)
        share = 1.0 / tl.maximum(of_group, 1).to(tl.float32)
        mean = total * share[:, None]
        to = ((head * tl.num_programs(0) + j) * PER + g).to(tl.int64)
        tl.store(MEAN + to[:, None] * D + d[None, :], mean.to(MEAN.dtype.element_ty))
        tl.store(MEAN_VAR + to, tl.maximum(squares * share - tl.sum(mean * mean, 1), 0.0))
        tl.store(MEAN_BIAS + to, tl.where(of_group > 0, tl.math.log2(tl.maximum(of_group, 1).to(tl.float32)), -1.0e30))
        tokens = tl.minimum(n - first, BK)
        groups = tl.cdiv(tokens, REST)
        extra = tl.maximum(tokens - (0 if DROP else groups), 1)
        tl.store(RANK + head * tl.num_programs(0) + j, tl.sum(tl.where(count > 0, within, 0.0), 0) / groups / extra)
    if POOL:
        at = (head * rows + base_rest + j * RESTS + p).to(tl.int64)
        tl.store(KP + at[:, None] * D + d[None, :], centre.to(KP.dtype.element_ty))
        tl.store(VAR + at, within)
        tl.store(BIAS + at, tl.where(count > 0, tl.math.log2(tl.maximum(count, 1).to(tl.float32)), -float("inf")))
        v_row, v_col = origin(b, h, heads, length, D, V_BNHD)
        v, _ = row_sums(V, v_row, v_col, heads * D if V_BNHD else D, first, n, 8, PER, D)
        v = tl.sum(tl.reshape(v, [RESTS, REST // 8, D]), 1) * inverse[:, None]
        tl.store(VP + at[:, None] * D + d[None, :], v.to(VP.dtype.element_ty))


@triton.jit
def lists_kernel(
    LEVELS, BIAS, LIST, COUNT, SEEN, LENGTHS, heads, group, nq, nk, length, rows, base_rest, width,
    BK: tl.constexpr, WIDTH: tl.constexpr, REST: tl.constexpr, RESTS: tl.constexpr, EVERYWHERE: tl.constexpr, CAUSAL: tl.constexpr,
    VARLEN: tl.constexpr,
):  # fmt: skip
    """One program a query block: its key blocks by ascending level, within a level by address, and how many of each.

    What the masked step handles (the short last block, the causal diagonal) is not among the full blocks. SEEN gets `width` entries, one a
    rest token: its log2 count where the query block sees it, -inf where not.
    """
    i, h, b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    n = tl.load(LENGTHS + b) if VARLEN else length
    j = tl.arange(0, WIDTH)
    row = ((b * heads + h) * nq + i).to(tl.int64)
    level = tl.load(LEVELS + row * nk + j, mask=j < nk, other=0).to(tl.int32)
    edge = (j == i) if CAUSAL else ((j + 1) * BK > n)
    start = tl.zeros([], tl.int32)
    for e in tl.static_range(4):
        on = (level == (1 << e)) & (j * BK < n)
        if e == 0:
            on = on & (edge == 0)
        place = tl.cumsum(on.to(tl.int32), 0) - 1
        tl.store(LIST + row * nk + start + place, j, mask=on)
        total = tl.sum(on.to(tl.int32), 0)
        tl.store(COUNT + row * 4 + e, total)
        start += total
    if RESTS:
        pooled = (b * (heads // group) + h // group) * rows + base_rest
        for first in tl.range(0, width, 128):
            r = first + tl.arange(0, 128)
            real = r * REST < nk * BK
            seen = real
            if not EVERYWHERE:
                seen = real & (tl.load(LEVELS + row * nk + r * REST // BK, mask=real, other=0) == REST)
            tl.store(SEEN + row * width + r, tl.load(BIAS + pooled + r, mask=seen, other=-float("inf")))


@triton.jit
def transpose_kernel(
    LEVELS, LIST, COUNT, heads, nq, nk, tiles, size, per_tile,
    WIDTH: tl.constexpr, PER: tl.constexpr,
):  # fmt: skip
    """One program a tile of `per_tile` key blocks: the query blocks that see any of them at level `size`, ascending."""
    t, h, b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    i = tl.arange(0, WIDTH)
    base = LEVELS + (b * heads + h).to(tl.int64) * nq * nk
    on = tl.zeros([WIDTH], tl.int32)
    for p in tl.static_range(PER):
        j = t * per_tile + p
        level = tl.load(base + i.to(tl.int64) * nk + j, mask=(i < nq) & (j < nk), other=0).to(tl.int32)
        on = on | (level == size).to(tl.int32)
    row = ((b * heads + h) * tiles + t).to(tl.int64)
    tl.store(LIST + row * nq + tl.cumsum(on, 0) - 1, i, mask=on > 0)
    tl.store(COUNT + row, tl.sum(on, 0))
