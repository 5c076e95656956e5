"""Pyramid sparse attention in plain PyTorch, in any float dtype: the specification that the kernels are tested against.

A group g of n tokens with keys k_t = mean_g + d_t enters the softmax as one key. Its exact mass is

    sum_t exp(a q.k_t) = n exp(a q.mean_g) mean_t exp(a q.d_t)  ~  n exp(a q.mean_g + a^2/2 q' Sigma_g q),      a = scale,

the second step to second order in d. So a pooled logit is a q.mean_g + log n + c, with

    c = 0                                   correction "none"
    c = a^2/2 |q|^2/D trace(Sigma_g)        correction "isotropic" (Sigma_g taken as a multiple of the identity)
    c = a^2/2 sum_d q_d^2 (Sigma_g)_dd      correction "diagonal"

and c at most log n, which keeps an expansion that has left its range from inventing mass. Without c the mean under-estimates every
pooled group (Jensen), the more so the larger the group. Its value is the mean of the group's values. Each token is counted once: within a
selected block the mean of that block is not seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from world_r1_kernels.pyramid_attention.plan import Plan


@dataclass(frozen=True)
class Pooled:
    """Groups of consecutive tokens: tensors [..., groups, D], [..., groups, D] and counts [groups]."""

    mean: torch.Tensor
    variance: torch.Tensor
    """Per channel, biased."""
    count: torch.Tensor


def pool(x: torch.Tensor, group: int) -> Pooled:
    """Means and variances of groups of `group` consecutive tokens of x [..., N, D]; the last group may be short."""
    length = x.shape[-2]
    groups = -(-length // group)
    padded = torch.nn.functional.pad(x, (0, 0, 0, groups * group - length)).unflatten(-2, (groups, group))
    count = (length - group * torch.arange(groups, device=x.device)).clamp(max=group)
    valid = (torch.arange(group, device=x.device) < count[:, None])[..., None]
    mean = padded.sum(-2) / count[:, None]
    spread = torch.where(valid, padded - mean.unsqueeze(-2), 0)
    return Pooled(mean, spread.square().sum(-2) / count[:, None], count)


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: Plan, scale: float | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output [B, H, Nq, D] and natural log-sum-exp [B, H, Nq] of q [B, H, Nq, D], k and v [B, Hkv, Nk, D] under `plan`.

    H is a multiple of Hkv. Rows that see nothing, and rows beyond a sequence's length, are 0 with log-sum-exp -inf. Differentiable;
    the plan itself is constant. ValueError for shapes that do not fit the plan.
    """
    check_shapes(q, k, v, plan)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    group = q.shape[1] // k.shape[1]
    outputs, sums = [], []
    for b in range(q.shape[0]):
        n_q, n_k = (q.shape[2], k.shape[2]) if plan.lengths is None else (int(plan.lengths[b]),) * 2
        for h in range(q.shape[1]):
            one = _one_head(q[b, h, :n_q], k[b, h // group, :n_k], v[b, h // group, :n_k], plan, plan.levels[b, h], scale)
            out, lse = q.new_zeros(q.shape[2], v.shape[-1]), q.new_full((q.shape[2],), -math.inf)
            outputs.append(torch.cat([one[0], out[n_q:]]))
            sums.append(torch.cat([one[1], lse[n_q:]]))
    shape = q.shape[:3]
    return torch.stack(outputs).view(*shape, v.shape[-1]), torch.stack(sums).view(shape)


def _one_head(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: Plan, levels: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """One sequence, one head: q [Nq, D], levels [nq, nk]."""
    sizes = sorted({*torch.unique(levels).tolist(), *([plan.rest] if plan.everywhere else [])} - {0})
    pyramid = {size: (pool(k, size), pool(v, size).mean) for size in sizes}
    outputs, sums = [], []
    for i, rows in enumerate(q.split(plan.block)):
        logits, values = [rows.new_zeros(len(rows), 0)], [v.new_zeros(0, v.shape[-1])]
        for size, (keys, means) in pyramid.items():
            block_of = torch.arange(len(keys.count), device=q.device) * size // plan.block
            seen = levels[i][block_of] == size
            if plan.everywhere and size == plan.rest:
                seen = torch.ones_like(seen)
            shown = Pooled(keys.mean[seen], keys.variance[seen], keys.count[seen])
            logits.append(pooled_logits(rows, shown, plan.correction if size > 1 else "none", scale))
            values.append(means[seen])
            if plan.causal and size == 1:
                visible = (
                    torch.arange(len(k), device=q.device)[seen]
                    <= i * plan.block + torch.arange(len(rows), device=q.device)[:, None]
                )
                logits[-1] = logits[-1].masked_fill(~visible, -math.inf)
        s = torch.cat(logits, 1)
        outputs.append(torch.softmax(s, -1) @ torch.cat(values) if s.shape[1] else rows.new_zeros(len(rows), v.shape[-1]))
        sums.append(torch.logsumexp(s, -1) if s.shape[1] else rows.new_full((len(rows),), -math.inf))
    return torch.cat(outputs), torch.cat(sums)


def pooled_logits(q: torch.Tensor, keys: Pooled, correction: str, scale: float) -> torch.Tensor:
    """Logits [..., rows, groups] of queries q [..., rows, D] on pooled keys, biased by log count and the variance correction."""
    log_count = keys.count.to(q.dtype).log()
    logits = scale * q @ keys.mean.transpose(-1, -2) + log_count
    if correction == "isotropic":
        spread = keys.variance.sum(-1)[..., None, :]
        c = scale**2 / (2 * q.shape[-1]) * q.square().sum(-1, keepdim=True) * spread
    elif correction == "diagonal":
        c = scale**2 / 2 * q.square() @ keys.variance.transpose(-1, -2)
    else:
        return logits
    return logits + torch.minimum(c, log_count)


def check_shapes(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: Plan) -> None:
    """ValueError if q, k, v (B, H, N, D) do not belong together or do not fit the plan."""
    if q.ndim != 4 or k.ndim != 4 or v.ndim != 4:
        raise ValueError(f"q, k and v need four dimensions, got {q.ndim}, {k.ndim} and {v.ndim}")
    if k.shape[:3] != v.shape[:3] or q.shape[0] != k.shape[0] or q.shape[-1] != k.shape[-1]:
        raise ValueError(f"q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)} do not belong together")
    if q.shape[1] % k.shape[1]:
        raise ValueError(f"{q.shape[1]} query heads are no multiple of {k.shape[1]} key heads")
    if plan.levels.shape[:2] != q.shape[:2] or (plan.q_length, plan.k_length) != (q.shape[2], k.shape[2]):
        raise ValueError(
            f"the plan was made for {tuple(plan.levels.shape[:2])} sequences and heads with {plan.q_length} queries and {plan.k_length} "
            f"keys; got {tuple(q.shape[:2])} with {q.shape[2]} and {k.shape[2]}"
        )
