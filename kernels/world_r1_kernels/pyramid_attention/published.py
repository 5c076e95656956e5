"""Published sparse attentions as plans, to compare with: the paper's pyramid sparse attention, BLADE's adaptive one, and binary top-k.

Their block scores sample tokens; the samples come from a generator that the caller seeds, so these plans too are reproducible.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from world_r1_kernels.pyramid_attention.allocate import block_tokens, rank_of
from world_r1_kernels.pyramid_attention.plan import PYRAMID, Plan, blocks
from world_r1_kernels.pyramid_attention.reference import pool

#: Share of blocks at each level of the PSA paper's default allocation for video (levels 1/2/4/8 up to .10/.15/.15/.35; the rest dropped).
PAPER_SHARES: dict[int, float] = {1: 0.10, 2: 0.05, 8: 0.20}


@torch.no_grad()
def sampled_importance(
    q: torch.Tensor, k: torch.Tensor, block: int, seed: int, *, normalised: bool = True, scale: float | None = None
) -> torch.Tensor:
    """float32 [B, H, nq, nk]: largest softmax weight between sampled queries and sampled keys of two blocks, rows scaled to sum 1.

    A quarter of each block's tokens is sampled, the same places in every block, as in the PSA paper (section 3). `normalised=False` takes
    exp(logit - row maximum) instead of the softmax, as the public implementation computes it. Full blocks only hold all samples; places
    beyond the end of a short last block are left out.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    generator = torch.Generator().manual_seed(seed)
    places = [torch.randperm(block, generator=generator)[: block // 4].sort().values for _ in range(2)]
    sides = [
        (x, at + torch.arange(blocks(n, block))[:, None] * block, n)
        for x, at, n in zip((q, k), places, (q.shape[2], k.shape[2]), strict=True)
    ]
    (qs, q_valid), (ks, k_valid) = ((x.float()[:, :, at.flatten().clamp(max=n - 1)], (at < n).to(x.device)) for x, at, n in sides)
    ks = ks.repeat_interleave(q.shape[1] // k.shape[1], 1)
    logits = (scale * qs @ ks.transpose(-1, -2)).masked_fill(~k_valid.flatten(), -torch.inf)
    weight = torch.softmax(logits, -1) if normalised else torch.exp(logits - logits.amax(-1, keepdim=True))
    weight = weight.masked_fill(~q_valid.flatten()[:, None], 0)
    score = weight.unflatten(-1, k_valid.shape).amax(-1).unflatten(-2, q_valid.shape).amax(-2)
    return score / score.sum(-1, keepdim=True).clamp(min=1e-30)


def paper_psa(
    q: torch.Tensor,
    k: torch.Tensor,
    shares: Mapping[int, float] | None = None,
    *,
    block: int = 128,
    seed: int = 0,
    normalised: bool = True,
) -> Plan:
    """Pyramid sparse attention of the PSA paper: `shares` of the blocks at levels 1, 2, 4, 8 in order of importance, the others dropped.

    No variance correction. Shares of (1: .05, 2: .04, 4: .06, 8: .12) make a density of about .10.
    """
    shares = PAPER_SHARES if shares is None else shares
    rank = rank_of(sampled_importance(q, k, block, seed, normalised=normalised))
    levels, start = torch.zeros_like(rank), 0.0
    for level in sorted(shares):
        first, last = (round(x * rank.shape[-1]) for x in (start, start + shares[level]))
        levels = torch.where((rank >= first) & (rank < last), level, levels)
        start += shares[level]
    levels = torch.where(rank == 0, 1, levels)
    return Plan(levels.to(torch.uint8), q.shape[2], k.shape[2], block, block, PYRAMID, False, False, "none", estimator_cost=1 / 32)


def asa(
    q: torch.Tensor,
    k: torch.Tensor,
    density: float = 0.10,
    *,
    energy: float = 0.95,
    global_group: int = 0,
    block: int = 128,
    seed: int = 0,
) -> Plan:
    """BLADE's adaptive block-sparse attention: the smallest set of blocks with `energy` of the score, at most `density` of them.

    `global_group` (16, 32, ...; 0: none) adds all keys pooled in such groups as global tokens, which count selected blocks twice, as
    published. The global tokens' cost comes out of `density`.
    """
    score = sampled_importance(q, k, block, seed, normalised=False)
    rank = rank_of(score)
    ordered = torch.sort(score, dim=-1, descending=True, stable=True).values
    before = (ordered.cumsum(-1) - ordered).gather(-1, rank)
    limit = max(1, round((density - (1 / global_group if global_group else 0)) * rank.shape[-1]))
    levels = ((before < energy) & (rank < limit)) | (rank == 0)
    rest = global_group or block
    return Plan(
        levels.to(torch.uint8),
        q.shape[2],
        k.shape[2],
        block,
        rest,
        (1,),
        bool(global_group),
        bool(global_group),
        "none",
        estimator_cost=1 / 32,
    )


@torch.no_grad()
def binary_top_k(q: torch.Tensor, k: torch.Tensor, density: float = 0.10, *, block: int = 128, scale: float | None = None) -> Plan:
    """The `density` share of key blocks with the largest score of block means for each query block; nothing else is seen."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    means = pool(k.float(), block).mean.repeat_interleave(q.shape[1] // k.shape[1], 1)
    score = scale * pool(q.float(), block).mean @ means.transpose(-1, -2) + block_tokens(k.shape[2], block, k.device).log()
    levels = rank_of(score) < max(1, round(density * score.shape[-1]))
    return Plan(
        levels.to(torch.uint8), q.shape[2], k.shape[2], block, block, (1,), False, False, "none", estimator_cost=0.5 / block**2
    )
