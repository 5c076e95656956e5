"""Choosing a plan: how much attention each key block gets from each query block, and at which resolution it is worth seeing.

Deterministic: no random numbers, ties go to the lower block. Nothing here carries gradients.

Importance. Queries are pooled to eight representatives a block, keys to groups of eight tokens; the softmax over all key groups (with log
count and variance correction, as in the operator itself) is summed over the groups of a key block and averaged over the representatives of
a query block. The result m_ij estimates the share of attention mass that query block i gives to key block j; a row sums to one. It costs
1/256 of dense attention at blocks of 128.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from world_r1_kernels.pyramid_attention.allocate import (
    block_tokens,
    by_budget,
    by_rank,
    caps,
    hidden_variance,
    longest_prefix,
    top,
)
from world_r1_kernels.pyramid_attention.plan import CORRECTIONS, PYRAMID, Plan, blocks, check_block
from world_r1_kernels.pyramid_attention.reference import pool

if TYPE_CHECKING:
    from world_r1_kernels.pyramid_attention.launch import Pyramid

ALLOCATIONS = ("budget", "quota", "top_p")


@dataclass(frozen=True)
class PyramidConfig:
    """How plans are drawn. ValueError for a setting that makes no sense."""

    density: float = 0.10
    """Share of dense attention's query-key pairs, in (0, 1]; rest tokens and forced blocks are part of it. Exact per head for "budget",
    an upper bound for "quota", unused by "top_p"."""
    allocation: str = "budget"
    """"budget": one threshold per head, so that rows with more to see get more and the head's total is exact; "quota": the same number of
    blocks for every row; "top_p": the smallest set of blocks that holds `top_p` of the mass, per row."""
    levels: tuple[int, ...] = (1,)
    """Resolutions that a selected block may have, of 1, 2, 4, 8; 1 must be among them."""
    shares: Mapping[int, float] = field(default_factory=dict)
    """"quota" with several levels: share of the selection's cost that each level gets; default: equal shares."""
    top_p: Mapping[int, float] = field(default_factory=lambda: {1: 0.9})
    """"top_p": cumulated mass up to which blocks get each level, rising with the level."""
    max_blocks: float = 1.0
    """"top_p": at most this share of a row's blocks is selected."""
    min_blocks: int = 1
    """Every row sees at least so many blocks at level 1."""
    rest: int | None = None
    """Tokens behind one key of an unselected block: a power of two from 16 up; None: the block; 0: unselected blocks are dropped."""
    correction: str = "isotropic"
    similarity: Mapping[int, float] = field(default_factory=dict)
    """Per level 2, 4, 8: least mean of |mean k|^2 / mean |k|^2 over a block's groups for the block to be pooled that far."""
    dense: tuple[tuple[int, int], ...] = ()
    """Token ranges [start, end), negative counted from the end, that see everything and are seen by everyone, token by token (text)."""
    causal: bool = False
    block: int = 128

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise ValueError(f"density is a share of dense attention in (0, 1], got {self.density}")
        if self.allocation not in ALLOCATIONS:
            raise ValueError(f"allocation is one of {', '.join(ALLOCATIONS)}, got {self.allocation!r}")
        if self.correction not in CORRECTIONS:
            raise ValueError(f"correction is one of {', '.join(CORRECTIONS)}, got {self.correction!r}")
        if 1 not in self.levels or not set(self.levels) <= set(PYRAMID):
            raise ValueError(f"levels are of {PYRAMID} and 1 is among them, got {self.levels}")
        check_block(self.block)
        if self.rest is not None and self.rest > self.block:
            raise ValueError(f"a rest token stands for at most a block's {self.block} tokens, got rest={self.rest}")
        if not set(self.similarity) <= {2, 4, 8}:
            raise ValueError(f"similarity has thresholds for levels 2, 4 and 8, got {dict(self.similarity)}")
        if self.allocation == "top_p":
            bounds = [self.top_p.get(level) for level in sorted(self.levels)]
            if None in bounds or bounds != sorted(bounds) or not all(0 < b <= 1 for b in bounds):  # type: ignore[type-var,operator]
                raise ValueError(
                    f"top_p needs one bound in (0, 1] for each of levels {self.levels}, rising; got {dict(self.top_p)}"
                )


@torch.no_grad()
def make_plan(
    q: torch.Tensor,
    k: torch.Tensor,
    config: PyramidConfig,
    *,
    scale: float | None = None,
    lengths: torch.Tensor | None = None,
    backend: str = "auto",
) -> Plan:
    """Plan for q [B, H, Nq, D] and k [B, Hkv, Nk, D] under `config`; `lengths` int [B] are the true lengths of a padded batch.

    backend "reference" is plain PyTorch, the specification; "triton" the selection kernels, which know "budget" and "quota" with level 1
    alone; "auto" takes them on a GPU where they apply. The kernels sum in another order, so that blocks whose scores agree to about 1e-6
    (with float32; 1e-2 with bfloat16, whose means are rounded) may swap; each is deterministic by itself. ValueError for a causal plan
    with unequal lengths, for bad ranges, and for backend="triton" where the kernels do not apply.
    """
    if config.causal and q.shape[2] != k.shape[2]:
        raise ValueError(f"a causal plan needs as many queries as keys, got {q.shape[2]} and {k.shape[2]}")
    draw = _draw_fast if _fast(q, config, backend) else _draw
    if lengths is not None:
        return _join(
            [draw(q[b : b + 1, :, :n], k[b : b + 1, :, :n], config, scale) for b, n in enumerate(lengths.tolist())], q, lengths
        )
    return draw(q, k, config, scale)


def drawn_by(attention: str) -> str:
    """The backend that draws plans for an attention backend: plain ones draw plainly, and so the same plans on any machine."""
    return "reference" if attention in ("masked", "reference") else "auto"


def _fast(q: torch.Tensor, config: PyramidConfig, backend: str) -> bool:
    """Whether the selection kernels draw this plan."""
    from world_r1_kernels.pyramid_attention.api import has_triton

    if backend not in ("auto", "triton", "reference"):
        raise ValueError(f"backend is one of auto, triton, reference, got {backend!r}")
    if backend == "reference" or (backend == "auto" and not (q.device.type == "cuda" and has_triton())):
        return False
    width = q.shape[-1]
    interpreted = q.device.type != "cuda"
    able = config.allocation != "top_p" and tuple(config.levels) == (1,) and width >= 16 and width & (width - 1) == 0
    able = able and config.block >= 16
    able = able and (q.dtype in (torch.bfloat16, torch.float16) or (interpreted and q.dtype == torch.float32))
    if backend == "triton" and not able:
        raise ValueError(
            "the selection kernels know 'budget' and 'quota' with levels=(1,), blocks of 16 tokens or more, head widths that are powers of "
            f"two and 16-bit tensors; got {config.allocation!r}, {config.levels}, {config.block}, {width} and {q.dtype}: use "
            "backend='reference'"
        )
    return able


@torch.no_grad()
def plan_and_pool(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, config: PyramidConfig, scale: float, backend: str = "auto"
) -> tuple[Plan, Pyramid | None]:
    """`make_plan`, and the rest tokens of k and v, which the selection kernels pool in the same pass; None where they do not apply."""
    alike = v.shape == k.shape and v.dtype == k.dtype and not (config.causal and q.shape[2] != k.shape[2])
    if config.rest == 0 or not alike or not _fast(q, config, backend):
        return make_plan(q, k, config, scale=scale, backend=backend), None
    return _select_fast(q, k, config, scale, v)


def _draw_fast(q: torch.Tensor, k: torch.Tensor, config: PyramidConfig, scale: float | None) -> Plan:
    """`_draw` by the selection kernels."""
    return _select_fast(q, k, config, scale)[0]


def _select_fast(
    q: torch.Tensor, k: torch.Tensor, config: PyramidConfig, scale: float | None, v: torch.Tensor | None = None
) -> tuple[Plan, Pyramid | None]:
    """The selection kernels' plan, and with v the rest tokens; everything that depends on shapes alone is computed here, on the host."""
    from world_r1_kernels.pyramid_attention import triton_select

    n_q, n_k = q.shape[2], k.shape[2]
    ranges = _ranges(config, n_q), _ranges(config, n_k)
    dense = [
        [int(any(first <= i < last for first, last in found)) for i in range(blocks(n, config.block))] if found else []
        for found, n in zip(ranges, (n_q, n_k), strict=True)
    ]
    budget, number = _spendable(n_q, n_k, config)
    found = triton_select.select_levels(
        q, k, block=config.block, rest=config.rest or config.block, drop=config.rest == 0, causal=config.causal,
        scale=q.shape[-1] ** -0.5 if scale is None else scale, budget=budget, number=number if config.allocation == "quota" else (),
        dense_rows=dense[0], dense_columns=dense[1], least=config.min_blocks, v=v,
    )  # fmt: skip
    return _plan_of(found.levels, n_q, n_k, config), found.pyramid


@lru_cache(maxsize=64)
def _spent_by_rest(n_q: int, n_k: int, block: int, rest: int, causal: bool) -> tuple[int, int, tuple[tuple[int, int], ...]]:
    """Query-key pairs of dense attention, and with rest tokens alone (rest 0: dropped), and (keys, rest tokens) of every query block."""
    tokens = block_tokens(n_k, block)
    cheap = torch.zeros_like(tokens) if rest == 0 else -(-tokens // rest)
    queries = block_tokens(n_q, block)
    per_row = torch.stack([tokens, cheap], -1).cumsum(0)
    per_row = per_row[: len(queries)] if causal else per_row[-1:].expand(len(queries), 2)
    total = (per_row * queries[:, None]).sum(0).tolist()
    return total[0], total[1], tuple((row[0], row[1]) for row in per_row.tolist())


def _spendable(n_q: int, n_k: int, config: PyramidConfig) -> tuple[int, tuple[int, ...]]:
    """For "budget" the pairs that a head may spend beyond its rest tokens; for "quota" the blocks at level 1 of every query block."""
    rest = config.block if config.rest is None else config.rest
    dense, cheap, rows = _spent_by_rest(n_q, n_k, config.block, rest, config.causal)
    extra = max(1.0, config.block - (0 if rest == 0 else config.block / rest))
    number = tuple(math.floor(max(0.0, config.density * full - base) / extra + 1e-9) for full, base in rows)
    return max(0, math.floor(config.density * dense + 1e-6) - cheap), number


def _join(plans: list[Plan], q: torch.Tensor, lengths: torch.Tensor) -> Plan:
    nq = blocks(q.shape[2], plans[0].block)
    levels = torch.zeros(len(plans), q.shape[1], nq, nq, dtype=torch.uint8, device=q.device)
    for b, plan in enumerate(plans):
        levels[b, :, : plan.levels.shape[2], : plan.levels.shape[3]] = plan.levels[0]
    first = plans[0]
    cost = sum(p.estimator_cost for p in plans) / len(plans)
    length = q.shape[2]
    return replace(first, levels=levels, q_length=length, k_length=length, lengths=lengths.int().to(q.device), estimator_cost=cost)


def _draw(q: torch.Tensor, k: torch.Tensor, config: PyramidConfig, scale: float | None) -> Plan:
    n_q, n_k = q.shape[2], k.shape[2]
    rest = config.block if not config.rest else config.rest
    mass = importance(q, k, config.block, scale, causal=config.causal)
    visible, forced = _masks(config, n_q, n_k, mass.device)
    mass = mass.masked_fill(~visible, 0)
    forced = forced.expand_as(mass).clone()
    forced |= top(mass.masked_fill(forced, -1), config.min_blocks) & visible
    tokens = block_tokens(n_k, config.block, mass.device)
    options = {level: -(-tokens // level) for level in sorted(config.levels)}
    options[rest] = -(-tokens // rest) if config.rest != 0 else torch.zeros_like(tokens)
    allowed = caps(k, config, q.shape[1] // k.shape[1])
    if config.allocation == "budget" and len(options) == 2:
        score = (
            mass.square()
            * (hidden_variance(k, rest, config.block, q.shape[1] // k.shape[1]) / (options[1] - options[rest]).clamp(min=1))[
                :, :, None
            ]
        )
        weight = (options[1] - options[rest]) * block_tokens(n_q, config.block, mass.device)[:, None]
        taken = longest_prefix(score, forced, visible, weight, _spendable(n_q, n_k, config)[0])
        levels = torch.where(taken, 1, rest)
    elif config.allocation == "budget":
        levels = by_budget(mass, forced, visible, options, allowed, k, q.shape[1] // k.shape[1], config, n_q)
    else:
        levels = by_rank(mass, forced, visible, options, allowed, config, rest)
    levels = torch.where(forced, 1, levels)
    if config.rest == 0:
        levels = torch.where(levels == rest, 0, levels)
    return _plan_of(torch.where(visible, levels, 0).to(torch.uint8), n_q, n_k, config)


def _plan_of(levels: torch.Tensor, n_q: int, n_k: int, config: PyramidConfig) -> Plan:
    cost = 0.5 * min(n_q, 8 * blocks(n_q, config.block)) * (-(-n_k // 8)) / (n_q * n_k)
    sizes = tuple(sorted(config.levels))
    rest = config.block if not config.rest else config.rest
    return Plan(levels, n_q, n_k, config.block, rest, sizes, config.rest != 0, False, config.correction, config.causal, None, cost)


def importance(
    q: torch.Tensor, k: torch.Tensor, block: int = 128, scale: float | None = None, *, causal: bool = False
) -> torch.Tensor:
    """float32 [B, H, nq, nk]: estimated share of each query block's attention mass on each key block; rows sum to 1."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    group = q.shape[1] // k.shape[1]
    part = block // 8
    pq, pk = pool(q.float(), part), pool(k.float(), 8)
    square = pool(
        q.float().square().sum(-1, keepdim=True), part
    ).mean  # mean |q|^2, not |mean q|^2: the correction is of the tokens
    log_count = pk.count.float().log()
    keys, spread = pk.mean.repeat_interleave(group, 1), pk.variance.sum(-1).repeat_interleave(group, 1)
    c = scale**2 / (2 * q.shape[-1]) * square * spread[:, :, None, :]
    logits = scale * pq.mean @ keys.transpose(-1, -2) + log_count + torch.minimum(c, log_count)
    if causal:
        of_q = torch.arange(logits.shape[2], device=q.device) // 8
        of_k = torch.arange(logits.shape[3], device=q.device) * 8 // block
        logits = logits.masked_fill(of_k > of_q[:, None], -math.inf)
    nq, nk = blocks(q.shape[2], block), blocks(k.shape[2], block)
    p = torch.softmax(logits, -1)
    p = torch.nn.functional.pad(p, (0, nk * part - p.shape[-1])).unflatten(-1, (nk, part)).sum(-1)
    weighted = torch.nn.functional.pad(p * pq.count[:, None], (0, 0, 0, nq * 8 - p.shape[-2])).unflatten(-2, (nq, 8)).sum(-2)
    return weighted / block_tokens(q.shape[2], block, q.device)[:, None]


def _masks(config: PyramidConfig, n_q: int, n_k: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Bool [nq, nk] each: what may be seen, and what must be seen token by token."""
    nq, nk = blocks(n_q, config.block), blocks(n_k, config.block)
    visible = torch.ones(nq, nk, dtype=torch.bool, device=device)
    forced = torch.zeros_like(visible)
    for forced_part, length in ((forced, n_q), (forced.T, n_k)):
        for first, last in _ranges(config, length):
            forced_part[first:last] = True
    if config.causal:
        visible = torch.tril(visible)
        forced |= torch.eye(nq, dtype=torch.bool, device=device)
    return visible, forced & visible


def _ranges(config: PyramidConfig, length: int) -> list[tuple[int, int]]:
    """Block ranges [first, last) that `config.dense` covers in a sequence; ValueError for one that lies outside."""
    found = []
    for start, end in config.dense:
        first, last = (x + length if x < 0 else x for x in (start, end if end != 0 else length))
        if not 0 <= first < last <= length:
            raise ValueError(f"dense range {(start, end)} lies outside the {length} tokens")
        found.append((first // config.block, blocks(last, config.block)))
    return found
