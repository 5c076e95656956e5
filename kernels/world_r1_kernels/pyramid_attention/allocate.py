"""Which blocks a plan sees how finely, given the mass of each: the specification of "budget", "quota" and "top_p" in plain PyTorch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from world_r1_kernels.pyramid_attention.plan import blocks
from world_r1_kernels.pyramid_attention.reference import pool

if TYPE_CHECKING:
    from world_r1_kernels.pyramid_attention.select import PyramidConfig


def block_tokens(length: int, block: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """int64 [n]: tokens in each block of a sequence."""
    return (length - torch.arange(0, blocks(length, block) * block, block, device=device)).clamp(max=block)


def longest_prefix(
    score: torch.Tensor, forced: torch.Tensor, visible: torch.Tensor, weight: torch.Tensor, budget: int
) -> torch.Tensor:
    """Bool like score [..., nq, nk], float32 and not negative: the blocks that `budget` pays for, per head.

    Forced blocks first, then by falling score, ties in block order, as far as the running sum of `weight` stays within the budget; forced
    ones beyond it too.
    """
    key = score.masked_fill(forced, math.inf).masked_fill(~visible, -1).flatten(-2)
    order = torch.sort(key, dim=-1, descending=True, stable=True).indices
    cost = (weight * visible).expand_as(score).flatten(-2).gather(-1, order)
    taken = torch.zeros_like(key, dtype=torch.bool).scatter_(-1, order, cost.cumsum(-1) <= budget).view_as(score)
    return (taken | forced) & visible


def top(score: torch.Tensor, count: int) -> torch.Tensor:
    """Bool like score [..., n]: the `count` largest entries of each row, ties to the lower index."""
    return rank_of(score) < count


def rank_of(score: torch.Tensor) -> torch.Tensor:
    """int64 like score: place of each entry in its row's descending order, ties by index."""
    order = torch.sort(score, dim=-1, descending=True, stable=True).indices
    return torch.empty_like(order).scatter_(-1, order, torch.arange(score.shape[-1], device=score.device).expand_as(order))


def caps(k: torch.Tensor, config: PyramidConfig, group: int) -> dict[int, torch.Tensor]:
    """Per level a bool [B, H, 1, nk]: whether a block's keys are similar enough to be pooled that far."""
    allowed = {}
    for level, threshold in config.similarity.items():
        pooled = pool(k.float(), level)
        square = pooled.mean.square().sum(-1)
        similarity = square / (square + pooled.variance.sum(-1)).clamp(min=1e-30)
        mean = pool(similarity[..., None], config.block // level).mean[..., 0]
        allowed[level] = (mean >= threshold).repeat_interleave(group, 1)[:, :, None]
    return allowed


def by_rank(
    mass: torch.Tensor,
    forced: torch.Tensor,
    visible: torch.Tensor,
    options: dict[int, torch.Tensor],
    allowed: dict[int, torch.Tensor],
    config: PyramidConfig,
    rest: int,
) -> torch.Tensor:
    """int64 [B, H, nq, nk] for "quota" and "top_p": blocks in order of mass, each level a stretch of that order."""
    ranked = mass.masked_fill(forced, 2).masked_fill(~visible, -1)
    order = torch.sort(ranked, dim=-1, descending=True, stable=True).indices
    selected = sorted(config.levels)
    if config.allocation == "top_p":
        sorted_mass = mass.gather(-1, order)
        before = sorted_mass.cumsum(-1) - sorted_mass
        total = mass.sum(-1, keepdim=True)
        level = torch.full_like(order, rest)
        for size in reversed(selected):
            level = torch.where(before < config.top_p[size] * total, size, level)
        limit = math.ceil(config.max_blocks * mass.shape[-1])
        level = torch.where(torch.arange(mass.shape[-1], device=mass.device) < limit, level, rest)
    else:
        level = _quota_levels(order, visible, options, config, rest)
    levels = torch.empty_like(level).scatter_(-1, order, level)
    for size in (8, 4, 2):
        if size in allowed:  # a block that is not similar enough goes down one level, which may forbid it again
            levels = torch.where((levels == size) & ~allowed[size], max(s for s in selected if s < size), levels)
    return levels


def _quota_levels(
    order: torch.Tensor, visible: torch.Tensor, options: dict[int, torch.Tensor], config: PyramidConfig, rest: int
) -> torch.Tensor:
    """Level of each place in a row's order: as many blocks as the row's budget pays for, the largest masses at the finest level."""
    selected = sorted(config.levels)
    row_cost = config.density * (visible * options[1]).sum(-1)
    base = (visible * options[rest]).sum(-1)
    budget = (row_cost - base).clamp(min=0)
    shares = {size: config.shares.get(size, 1 / len(selected)) for size in selected}
    level = torch.full_like(order, rest)
    start = torch.zeros_like(budget)
    places = torch.arange(order.shape[-1], device=order.device)
    for size in selected:
        extra = max(1.0, config.block / size - (0 if config.rest == 0 else config.block / rest))
        end = start + torch.floor(budget * shares[size] / extra + 1e-9)
        level = torch.where((places >= start[:, None]) & (places < end[:, None]), size, level)
        start = end
    return level


def by_budget(
    mass: torch.Tensor,
    forced: torch.Tensor,
    visible: torch.Tensor,
    options: dict[int, torch.Tensor],
    allowed: dict[int, torch.Tensor],
    k: torch.Tensor,
    group: int,
    config: PyramidConfig,
    n_q: int,
) -> torch.Tensor:
    """int64 [B, H, nq, nk] for "budget" with several levels: least sum of m^2 e + lambda * cost, with lambda per head to meet the budget.

    e_j(level) is the variance of block j's keys that pooling to `level` hides: what a mean cannot represent. Squares, because the errors
    of different blocks add as independent ones.
    """
    sizes = sorted(options)
    queries = block_tokens(n_q, config.block, mass.device)
    cost = torch.stack([options[size] for size in sizes])  # [L, nk] keys
    hidden = torch.stack([hidden_variance(k, size, config.block, group) for size in sizes])  # [L, B, H, nk]
    weight = mass.double().square() * queries[:, None]
    distortion = weight * hidden.double()[:, :, :, None]  # [L, B, H, nq, nk]
    for i, size in enumerate(sizes):
        if size in allowed:
            distortion[i].masked_fill_(~allowed[size], math.inf)
    pairs = (cost[:, None] * queries[:, None]).double()[:, None, None]  # [L, 1, 1, nq, nk]: query-key pairs
    open_ = visible & ~forced
    dense_pairs = (visible * pairs[0, 0, 0]).sum()
    budget = (config.density * dense_pairs - (forced * pairs[0]).sum((-1, -2))).clamp(min=0)  # [B, H]

    def choose(multiplier: torch.Tensor) -> torch.Tensor:
        return (distortion + multiplier[..., None, None] * pairs).argmin(0)

    def spent(choice: torch.Tensor) -> torch.Tensor:
        return (pairs.expand_as(distortion).gather(0, choice[None])[0] * open_).sum((-1, -2))

    low = torch.zeros_like(budget)
    high = (distortion[torch.isfinite(distortion)].max() + 1).expand_as(budget).clone()
    for _ in range(60):
        middle = torch.where(low > 0, (low * high).sqrt(), high * 1e-12)
        over = spent(choose(middle)) > budget
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
    coarse, fine = choose(high), choose(low)
    left = budget - spent(coarse)  # what is left goes, in block order, to the blocks that stand on the threshold
    step = (
        (pairs.expand_as(distortion).gather(0, fine[None]) - pairs.expand_as(distortion).gather(0, coarse[None]))[0] * open_
    ).flatten(2)
    take = (step > 0) & (step.clamp(min=0).cumsum(-1) <= left[..., None])
    return torch.tensor(sizes, device=mass.device)[torch.where(take.view_as(coarse), fine, coarse)]


def hidden_variance(k: torch.Tensor, size: int, block: int, group: int) -> torch.Tensor:
    """float32 [B, H, nk]: mean variance of the keys within groups of `size`, per block."""
    if size == 1:
        variance = torch.zeros(*k.shape[:2], blocks(k.shape[2], block), device=k.device)
    else:
        within = pool(k.float(), size).variance.sum(-1, keepdim=True)
        variance = within[..., 0] if size == block else pool(within, block // size).mean[..., 0]
    return variance.repeat_interleave(group, 1)
