"""What of a trained adapter is signal: its strongest directions.

Reinforcement learning moves few directions (LoRA trained by policy gradients needs rank 1: Schulman et al., "LoRA Without Regret", 2025),
while Adam gives every entry steps of one size, whether its gradient is signal or the noise of a few dozen videos. The update B A of a
layer is then a spike plus the random walk of everything else, and its first singular directions are the part to keep (Eckart and Young,
1936; Gavish and Donoho, 2014, for a matrix in noise). Measured on the embedded model in LOG.md, 2026-11-30, third part.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

DOWN, UP = ".lora_A.", ".lora_B."


@torch.no_grad()
def strongest_directions(state: Mapping[str, torch.Tensor], keep: int) -> dict[str, torch.Tensor]:
    """`state` with the product B A of every adapter pair cut to its `keep` strongest singular directions (in float64).

    A is [r, in], B [out, r]; shapes, dtypes and devices stay, so that what reads the adapter still does: beyond `keep`, rows of A and
    columns of B are zero. Other entries are passed on as they are. Raises ValueError for keep < 1.
    """
    if keep < 1:
        raise ValueError(f"at least one direction of an adapter must be kept, got {keep}")
    found = dict(state)
    for name, down in state.items():
        partner = name.replace(DOWN, UP)
        if DOWN in name and partner in state and keep < len(down):
            found[name], found[partner] = _cut(down, state[partner], keep)
    return found


def _cut(down: torch.Tensor, up: torch.Tensor, keep: int) -> tuple[torch.Tensor, torch.Tensor]:
    # the factors of thin QR carry all of the product that is not orthonormal: a decomposition of [r, r] instead of [out, in]
    q_up, r_up = torch.linalg.qr(up.double())
    q_down, r_down = torch.linalg.qr(down.double().T)
    left, sizes, right = torch.linalg.svd(r_up @ r_down.T)
    root = sizes[:keep].sqrt()
    new_down, new_up = torch.zeros_like(down), torch.zeros_like(up)
    new_down[:keep] = (root[:, None] * (right[:keep] @ q_down.T)).to(down.dtype)
    new_up[:, :keep] = ((q_up @ left[:, :keep]) * root).to(up.dtype)
    return new_down, new_up
