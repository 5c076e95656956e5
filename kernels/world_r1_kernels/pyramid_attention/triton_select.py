# mypy: allow-untyped-defs
"""Selection in Triton: the masses of `select.importance`, then the blocks that the budget pays for. Level 1 and rest tokens only.

Eight launches and one memset, none of which waits for the host. "budget" is one threshold per head on the float bits of m^2 e: three
histograms of 11, 10 and 10 bits, added up with integer atomics, which give the same sums in any order. Ties on the threshold go to the
lower block. Given the same masses this is `select.longest_prefix` to the bit; the masses agree with the specification up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from world_r1_kernels.pyramid_attention.launch import Pyramid, padded
from world_r1_kernels.pyramid_attention.triton import LOG2E, origin
from world_r1_kernels.pyramid_attention.triton_pool import keys_kernel, row_sums
from world_r1_kernels.pyramid_attention.tuning import has_tma

#: Copies of the first histogram, by query block: where most scores fall into a few bins, atomics on one copy wait for each other.
COPIES = tl.constexpr(4)
#: Entries of a head's histograms: the first in copies, then two of 1024 bins.
HISTOGRAM = tl.constexpr(4 * 2048 + 2 * 1024)
#: Key of a block that must be seen token by token; greater than that of any finite score.
FORCED = tl.constexpr(2147483647)


@triton.jit
def means_kernel(
    X, MEAN, SQUARE, heads, length, rows,
    D: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr, BNHD: tl.constexpr,
):  # fmt: skip
    """Mean and mean square norm of groups of GROUP queries; one program a block of them."""
    i, h, b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    row, col = origin(b, h, heads, length, D, BNHD)
    PER: tl.constexpr = BLOCK // GROUP
    g = tl.arange(0, PER)
    total, squares = row_sums(X, row, col, heads * D if BNHD else D, i * BLOCK, length, GROUP, PER, D)
    inverse = 1.0 / tl.maximum(tl.minimum(length - i * BLOCK - g * GROUP, GROUP), 1).to(tl.float32)
    at = ((b * heads + h) * rows + i * PER + g).to(tl.int64)
    tl.store(MEAN + at[:, None] * D + tl.arange(0, D)[None, :], (total * inverse[:, None]).to(MEAN.dtype.element_ty))
    tl.store(SQUARE + at, squares * inverse)


@triton.jit
def score_kernel(
    k_desc, b_desc, v_desc, QM, QS, KM, KB, KV, SCORE, scale, heads, group, q_rows, k_rows, nk, tiles, steps,
    D: tl.constexpr, QT: tl.constexpr, PER: tl.constexpr, NB: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Log2-sum-exp over each key block of the logits of QT query means: SCORE [B, H, q_rows, nk].

    A step takes NB key blocks of PER means, a program `steps` of them; program_id(0) counts the `tiles` of queries first.

    The sums over a block's means are a product with a matrix of ones and zeros, relative to the largest logit of the step: a block that
    lies 2^126 below it counts as 0.
    """
    i, h, b = tl.program_id(0) % tiles, tl.program_id(1), tl.program_id(2)
    begin = tl.program_id(0) // tiles * steps
    kv, kv_heads = h // group, heads // group
    d = tl.arange(0, D)
    r = i * QT + tl.arange(0, QT)
    q_at = ((b * heads + h) * q_rows + r).to(tl.int64)
    q = tl.load(QM + q_at[:, None] * D + d[None, :], mask=r[:, None] < q_rows, other=0.0)
    square = tl.load(QS + q_at, mask=r < q_rows, other=0.0) * (scale * scale / (2 * D) * LOG2E)
    COLUMNS: tl.constexpr = NB if NB > 16 else 16
    g = tl.arange(0, COLUMNS)
    ones = (tl.arange(0, NB * PER)[:, None] // PER == g[None, :]).to(q.dtype)
    for t in tl.range(begin, tl.minimum(begin + steps, tl.cdiv(nk, NB)), num_stages=2):
        c = t * NB * PER + tl.arange(0, NB * PER)
        start = (b * kv_heads + kv) * k_rows + t * NB * PER
        if TMA:  # rows past the end are another head's
            k = k_desc.load([start, 0])
            bias = tl.where(c < k_rows, b_desc.load([start]), -1.0e30)
            spread = tl.where(c < k_rows, v_desc.load([start]), 0.0)
        else:
            k_at = ((b * kv_heads + kv) * k_rows + c).to(tl.int64)
            k = tl.load(KM + k_at[:, None] * D + d[None, :], mask=c[:, None] < k_rows, other=0.0)
            bias = tl.load(KB + k_at, mask=c < k_rows, other=-1.0e30)
            spread = tl.load(KV + k_at, mask=c < k_rows, other=0.0)
        s = tl.dot(q, k.T) * (scale * LOG2E) + tl.minimum(square[:, None] * spread[None, :] + bias[None, :], 2 * bias[None, :])
        top = tl.max(s, 1)
        held = tl.dot(tl.math.exp2(s - top[:, None]).to(q.dtype), ones)
        total = tl.where(held > 0, top[:, None] + tl.math.log2(tl.where(held > 0, held, 1.0)), -1.0e30)
        j = t * NB + g
        tl.store(SCORE + q_at[:, None] * nk + j[None, :], total, mask=(r[:, None] < q_rows) & (g < NB)[None, :] & (j < nk)[None, :])


@triton.jit
def _weights(i, j, n_q, n_k, BLOCK: tl.constexpr, REST: tl.constexpr, DROP: tl.constexpr):
    """Query-key pairs that level 1 costs more than rest tokens, for query block i and key blocks j."""
    queries = tl.minimum(n_q - i * BLOCK, BLOCK)
    tokens = tl.minimum(tl.maximum(n_k - j * BLOCK, 0), BLOCK)
    return (queries * (tokens - (0 if DROP else tl.cdiv(tokens, REST)))).to(tl.int64)


@triton.jit
def mass_kernel(
    SCORE, RANK, ROW_DENSE, COL_DENSE, NUMBER, KEY, MASS, HIST, LEVELS, heads, group, n_q, n_k, nq, nk,
    BLOCK: tl.constexpr, REST: tl.constexpr, DROP: tl.constexpr, WIDTH: tl.constexpr, CAUSAL: tl.constexpr, LEAST: tl.constexpr,
    QUOTA: tl.constexpr, KEEP_MASS: tl.constexpr,
):  # fmt: skip
    """One program a query block: the mass of every key block, and its key for the head's threshold; with QUOTA the choice itself."""
    i, h, b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    j = tl.arange(0, WIDTH)
    r = tl.arange(0, 8)
    head = (b * heads + h).to(tl.int64)
    row = head * nq + i
    visible = (j < nk) & (j <= i) if CAUSAL else j < nk
    count = tl.minimum(tl.maximum(n_q - i * BLOCK - r * (BLOCK // 8), 0), BLOCK // 8).to(tl.float32)
    s = tl.load(SCORE + (row * 8 + r)[:, None] * nk + j[None, :], mask=visible[None, :], other=-1.0e30)
    p = tl.math.exp2(s - tl.max(s, 1)[:, None])
    p = p * (count / tl.sum(count, 0) / tl.sum(p, 1))[:, None]
    mass = tl.where(visible, tl.sum(p, 0), 0.0)
    if KEEP_MASS:
        tl.store(MASS + row * nk + j, mass, mask=j < nk)
    forced = (tl.load(COL_DENSE + j, mask=j < nk, other=0) > 0) | (tl.load(ROW_DENSE + i) > 0)
    if CAUSAL:
        forced = forced | (j == i)
    forced = forced & visible
    for _ in tl.static_range(LEAST):
        open_mass = tl.where(visible & (forced == 0), mass, -1.0)
        best = tl.min(tl.where(open_mass == tl.max(open_mass, 0), j, WIDTH), 0)
        forced = forced | ((j == best) & visible)
    if QUOTA:
        key = tl.where(forced, FORCED, mass.to(tl.int32, bitcast=True))  # the order of non-negative floats is that of their bits
        key = tl.where(visible, key, -1)
        number = tl.load(NUMBER + i)
        least = tl.zeros([], tl.int32)
        for bit in tl.static_range(30, -1, -1):
            trial = least | (1 << bit)
            least = tl.where(tl.sum((key >= trial).to(tl.int32), 0) >= number, trial, least)
        tie = key == least
        room = number - tl.sum((key > least).to(tl.int32), 0)
        chosen = forced | (key > least) | (tie & (tl.cumsum(tie.to(tl.int32), 0) <= room))
        level = tl.where(visible, tl.where(chosen, 1, 0 if DROP else REST), 0)
        tl.store(LEVELS + row * nk + j, level.to(tl.uint8), mask=j < nk)
    else:
        rank = tl.load(RANK + (b * (heads // group) + h // group) * nk + j, mask=j < nk, other=0.0)
        score = (mass * mass) * rank
        key = tl.where(visible, tl.where(forced, FORCED, score.to(tl.int32, bitcast=True)), -1)
        tl.store(KEY + row * nk + j, key, mask=j < nk)
        mine = HIST + head * HISTOGRAM + (i % COPIES) * 2048
        tl.atomic_add(mine + (key >> 20), _weights(i, j, n_q, n_k, BLOCK, REST, DROP), mask=key >= 0, sem="relaxed")


@triton.jit
def _threshold_bin(HIST, room, BINS: tl.constexpr, SUMMED: tl.constexpr):
    """The lowest bin above which everything fits into `room`, and the room that is left for the bin itself; SUMMED copies add up."""
    held = tl.load(HIST + tl.arange(0, BINS))
    for copy in tl.static_range(1, SUMMED):
        held += tl.load(HIST + copy * BINS + tl.arange(0, BINS))
    above = tl.sum(held, 0) - tl.cumsum(held, 0)
    fits = above <= room
    return tl.sum((fits == 0).to(tl.int32), 0), room - tl.max(tl.where(fits, above, 0), 0)


@triton.jit
def refine_kernel(
    KEY, HIST, LEVELS, TIES, STATE, budget, heads, n_q, n_k, nq, nk,
    BLOCK: tl.constexpr, REST: tl.constexpr, DROP: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
    TILE: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """ROWS query blocks a program, TILE of them at a time.

    STEP 1, 2: the histogram of the next ten bits of the keys that share the threshold's bits so far.
    STEP 3: the threshold is known; blocks above it get level 1, and each row notes what its blocks on the threshold would cost.
    """
    part, h, b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    head = (b * heads + h).to(tl.int64)
    hist = HIST + head * HISTOGRAM
    bits, room = _threshold_bin(hist, budget, 2048, COPIES)
    hist += COPIES * 2048
    if STEP > 1:
        low, room = _threshold_bin(hist, room, 1024, 1)
        bits = (bits << 10) | low
    if STEP > 2:
        low, room = _threshold_bin(hist + 1024, room, 1024, 1)
        bits = (bits << 10) | low
        tl.store(STATE + head * 2, bits.to(tl.int64), mask=part == 0)
        tl.store(STATE + head * 2 + 1, room, mask=part == 0)
    j = tl.arange(0, WIDTH)[None, :]
    for first in tl.range(part * ROWS, tl.minimum(part * ROWS + ROWS, nq), TILE):
        row = first + tl.arange(0, TILE)
        i = row[:, None]
        real = (i < tl.minimum(part * ROWS + ROWS, nq)) & (j < nk)
        at = (head * nq + i) * nk + j
        key = tl.load(KEY + at, mask=real, other=-1)
        weight = _weights(i, j, n_q, n_k, BLOCK, REST, DROP)
        if STEP == 1:
            tl.atomic_add(hist + ((key >> 10) & 1023), weight, mask=(key >= 0) & (key >> 20 == bits), sem="relaxed")
        elif STEP == 2:
            tl.atomic_add(hist + 1024 + (key & 1023), weight, mask=(key >= 0) & (key >> 10 == bits), sem="relaxed")
        else:
            level = tl.where((key > bits) | (key == FORCED), 1, 0 if DROP else REST)
            tl.store(LEVELS + at, tl.where(key >= 0, level, 0).to(tl.uint8), mask=real)
            cost = tl.sum(tl.where((key == bits) & (key != FORCED), weight, 0), 1)
            tl.store(TIES + head * nq + row, cost, mask=row < tl.minimum(part * ROWS + ROWS, nq))


@triton.jit
def ties_kernel(
    KEY, LEVELS, TIES, STATE, heads, n_q, n_k, nq, nk,
    BLOCK: tl.constexpr, REST: tl.constexpr, DROP: tl.constexpr, WIDTH: tl.constexpr, WIDTH_Q: tl.constexpr,
):  # fmt: skip
    """One program a query block: of the head's blocks on the threshold as many, in order, as there is room for."""
    i, h, b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    head = (b * heads + h).to(tl.int64)
    own = tl.load(TIES + head * nq + i)
    if own > 0:
        rows = tl.arange(0, WIDTH_Q)
        before = tl.sum(tl.load(TIES + head * nq + rows, mask=rows < i, other=0), 0)
        bits, room = tl.load(STATE + head * 2), tl.load(STATE + head * 2 + 1)
        j = tl.arange(0, WIDTH)
        at = (head * nq + i) * nk + j
        key = tl.load(KEY + at, mask=j < nk, other=-1)
        tie = (key == bits) & (key != FORCED)
        cost = tl.where(tie, _weights(i, j, n_q, n_k, BLOCK, REST, DROP), 0)
        taken = tie & (before + tl.cumsum(cost, 0) <= room)
        tl.store(LEVELS + at, tl.full([WIDTH], 1, tl.uint8), mask=taken)


@dataclass(frozen=True)
class Selection:
    """What `select_levels` found."""

    levels: torch.Tensor
    """uint8 [B, H, nq, nk]."""
    mass: torch.Tensor | None
    """float32 [B, H, nq, nk], if asked for."""
    rank: torch.Tensor
    """float32 [B, Hkv, nk]: the factor of m^2 in a block's score."""
    pyramid: Pyramid | None = None
    """Rest tokens for the attention itself, if v was given."""


@lru_cache(maxsize=64)
def _vector(values: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype, device=device)


def select_levels(
    q: torch.Tensor,
    k: torch.Tensor,
    *,
    block: int,
    rest: int,
    drop: bool,
    causal: bool,
    scale: float,
    budget: int = 0,
    number: Sequence[int] = (),
    dense_rows: Sequence[int] = (),
    dense_columns: Sequence[int] = (),
    least: int = 1,
    keep_mass: bool = False,
    v: torch.Tensor | None = None,
) -> Selection:
    """Map of q [B, H, Nq, D] on k [B, Hkv, Nk, D]: level 1 for the chosen blocks, `rest` (0 with `drop`) for the others.

    With `number`, one per query block, each row gets that many blocks ("quota"); otherwise each head gets blocks for `budget` query-key
    pairs beyond what rest tokens cost. `dense_rows`, `dense_columns` (0 or 1 per block) must be seen in full, and the `least` heaviest of
    each row. Either axis order in memory; other strides are copied. With v [B, Hkv, Nk, D] the rest tokens are pooled on the way.
    """
    (q, q_bnhd), (k, k_bnhd) = _layout(q), _layout(k)
    batch, heads, n_q, width = q.shape
    kv_heads, n_k = k.shape[1], k.shape[2]
    nq, nk = -(-n_q // block), -(-n_k // block)
    device = q.device

    q_mean = torch.empty(batch, heads, nq * 8, width, dtype=q.dtype, device=device)
    q_square = torch.empty(batch, heads, nq * 8, dtype=torch.float32, device=device)
    means_kernel[(nq, heads, batch)](
        q, q_mean, q_square, heads, n_q, nq * 8, D=width, BLOCK=block, GROUP=block // 8, BNHD=q_bnhd, num_warps=4
    )
    k_rows = nk * (block // 8)
    k_mean = torch.empty(batch, kv_heads, k_rows, width, dtype=k.dtype, device=device)
    k_bias, k_variance = torch.empty(2, batch, kv_heads, k_rows, dtype=torch.float32, device=device).unbind()
    rank = torch.empty(batch, kv_heads, nk, dtype=torch.float32, device=device)
    pyramid = None if v is None else Pyramid.empty(k, batch, kv_heads, nk * (block // rest))
    values, v_bnhd = (k, k_bnhd) if v is None else _layout(v)
    pooled = (rank,) * 4 if pyramid is None else (pyramid.keys, pyramid.values, pyramid.bias, pyramid.variance)
    keys_kernel[(nk, kv_heads, batch)](
        k, values, k_mean, k_bias, k_variance, rank, *pooled, rank, kv_heads, n_k, padded(nk * (block // rest)), 0,
        D=width, BK=block, REST=rest, BNHD=k_bnhd, V_BNHD=v_bnhd, VARLEN=False, SELECT=True, POOL=v is not None, DROP=drop,
        num_warps=4,
    )  # fmt: skip
    score = torch.empty(batch, heads, nq * 8, nk, dtype=torch.float32, device=device)
    tile, step = 64, max(1, 128 // (block // 8))
    tiles = -(-nq * 8 // tile)
    rounds = -(-nk // step)
    steps = -(-rounds // 4)  # about four programs a tile: one for every processor would leave a long tail
    tma = has_tma(device) and k_rows >= step * (block // 8)
    sources: list[torch.Tensor | TensorDescriptor] = [k_mean, k_bias, k_variance]
    if tma:
        rows = step * (block // 8)
        sources = [TensorDescriptor(k_mean.view(-1, width), [batch * kv_heads * k_rows, width], [width, 1], [rows, width])]
        sources += [TensorDescriptor(x.view(-1), [x.numel()], [1], [rows]) for x in (k_bias, k_variance)]
    score_kernel[(tiles * -(-rounds // steps), heads, batch)](
        *sources, q_mean, q_square, k_mean, k_bias, k_variance, score, scale, heads, heads // kv_heads, nq * 8, k_rows, nk, tiles, steps,
        D=width, QT=tile, PER=block // 8, NB=step, TMA=tma, num_warps=4,
    )  # fmt: skip
    levels = torch.empty(batch, heads, nq, nk, dtype=torch.uint8, device=device)
    key = torch.empty(batch, heads, nq, nk, dtype=torch.int32, device=device)
    mass = torch.empty(batch, heads, nq, nk, dtype=torch.float32, device=device) if keep_mass else None
    hist = torch.zeros(batch, heads, HISTOGRAM.value, dtype=torch.int64, device=device)
    in_rows, in_columns = tuple(dense_rows) or (0,) * nq, tuple(dense_columns) or (0,) * nk
    constants = {"BLOCK": block, "REST": rest, "DROP": drop, "WIDTH": _power_of_two(nk)}
    mass_kernel[(nq, heads, batch)](
        score, rank, _vector(in_rows, torch.uint8, device), _vector(in_columns, torch.uint8, device),
        _vector(tuple(number) or (0,), torch.int32, device), key, score if mass is None else mass, hist, levels,
        heads, heads // kv_heads, n_q, n_k, nq, nk,
        **constants, CAUSAL=causal, LEAST=least, QUOTA=bool(number), KEEP_MASS=keep_mass, num_warps=4,
    )  # fmt: skip
    if not number:
        ties = torch.empty(batch, heads, nq, dtype=torch.int64, device=device)
        state = torch.empty(batch, heads, 2, dtype=torch.int64, device=device)
        per = max(1, nq * heads * batch // 256)
        at_once = max(1, min(_power_of_two(per), 4096 // _power_of_two(nk)))  # as many as fit into the registers
        for step in (1, 2, 3):
            refine_kernel[(-(-nq // per), heads, batch)](
                key, hist, levels, ties, state, budget, heads, n_q, n_k, nq, nk,
                **constants, ROWS=per, TILE=at_once, STEP=step, num_warps=4,
            )  # fmt: skip
        ties_kernel[(nq, heads, batch)](
            key, levels, ties, state, heads, n_q, n_k, nq, nk, **constants, WIDTH_Q=_power_of_two(nq), num_warps=1
        )
    return Selection(levels, mass, rank, pyramid)


def _layout(x: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """x [B, H, N, D] in one of the two memory orders that the kernels address, and whether that is (B, N, H, D)."""
    if x.is_contiguous():
        return x, False
    if x.transpose(1, 2).is_contiguous():
        return x, True
    return x.contiguous(), False


def _power_of_two(n: int) -> int:
    return 1 << max(1, (n - 1).bit_length())
