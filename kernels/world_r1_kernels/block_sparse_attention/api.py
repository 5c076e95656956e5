"""Block-sparse attention from a mask, and BLADE's choice of the mask."""

from __future__ import annotations

import torch

from world_r1_kernels.pyramid_attention.allocate import block_tokens
from world_r1_kernels.pyramid_attention.api import pyramid_attention
from world_r1_kernels.pyramid_attention.plan import Plan
from world_r1_kernels.pyramid_attention.select import importance


def mask_plan(
    mask: torch.Tensor, q_length: int, k_length: int, *, block: int = 128, global_group: int = 0, complement: bool = False
) -> Plan:
    """Plan of a bool mask [B, H, nq, nk]: True blocks are seen token by token.

    `global_group` (16, 32, 64, 128; 0: none): all keys pooled in groups of that many tokens are seen too, as in BLADE, where selected
    blocks then count twice; with `complement` only those of unselected blocks, so that every token counts once.
    """
    rest = global_group or block
    levels = mask.to(torch.uint8)
    if global_group and complement:
        levels = torch.where(mask, 1, rest).to(torch.uint8)
    everywhere = bool(global_group) and not complement
    return Plan(levels, q_length, k_length, block, rest, (1,), bool(global_group), everywhere, "none")


def block_sparse_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor,
    *,
    global_group: int = 0,
    complement: bool = False,
    block: int = 128,
    layout: str = "BHND",
    scale: float | None = None,
    return_lse: bool = False,
    backend: str = "auto",
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Attention of q on the blocks of k and v that the bool `mask` [B, H, nq, nk] names, and on global tokens; see `mask_plan`.

    Layouts, backends, gradients and errors as `pyramid_attention`. Rows that see nothing are 0.
    """
    tokens = 1 if layout == "BNHD" else 2
    plan = mask_plan(mask, q.shape[tokens], k.shape[tokens], block=block, global_group=global_group, complement=complement)
    if return_lse:
        return pyramid_attention(q, k, v, plan, layout=layout, scale=scale, return_lse=True, backend=backend)
    return pyramid_attention(q, k, v, plan, layout=layout, scale=scale, backend=backend)


@torch.no_grad()
def adaptive_mask(
    q: torch.Tensor,
    k: torch.Tensor,
    *,
    energy: float = 0.95,
    minimum: float = 0.05,
    maximum: float = 0.17,
    dense: tuple[int, int] | None = None,
    block: int = 128,
    scale: float | None = None,
) -> torch.Tensor:
    """Bool mask [B, H, nq, nk] for q [B, H, Nq, D], k [B, Hkv, Nk, D]: per row the smallest set of blocks with `energy` of the mass.

    BLADE's rule (between `minimum` and `maximum` of the blocks) on a deterministic estimate of the mass instead of sampled maxima.
    `dense` is a token range that sees everything and is seen by everyone (text).
    """
    if not 0 < energy <= 1 or not 0 < minimum <= maximum <= 1:
        raise ValueError(f"need 0 < energy <= 1 and 0 < minimum <= maximum <= 1, got {energy}, {minimum}, {maximum}")
    mass = importance(q, k, block, scale)
    order = torch.sort(mass, dim=-1, descending=True, stable=True)
    before = order.values.cumsum(-1) - order.values
    place = torch.arange(mass.shape[-1], device=q.device)
    low, high = (max(1, round(x * mass.shape[-1])) for x in (minimum, maximum))
    keep = ((before < energy) | (place < low)) & (place < high)
    mask = torch.zeros_like(keep).scatter_(-1, order.indices, keep)
    if dense is not None:
        for side, length in ((-2, q.shape[2]), (-1, k.shape[2])):
            start = torch.arange(len(block_tokens(length, block)), device=q.device) * block
            hit = (start < dense[1]) & (start + block > dense[0])
            mask |= hit.unsqueeze(-1) if side == -2 else hit
    return mask
