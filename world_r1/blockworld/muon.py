"""Muon with all matrices of one shape updated at once.

`torch.optim.Muon` is the specification (a test holds this against it); it orthogonalises one matrix at a time, thousands of small kernels a
step, which took longer than the forward and backward pass of a 13 M transformer on an H100. Stacking by shape leaves a few dozen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import Optimizer

#: Quintic Newton-Schulz coefficients (Jordan et al., 2024), as in torch.optim.Muon.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class Muon(Optimizer):
    """Momentum orthogonalised by Newton-Schulz iterations, scaled to AdamW's update size: 0.2 sqrt(max(rows, columns)) lr.

    For 2-D parameters only (ValueError otherwise). Nesterov momentum, decoupled weight decay, iterations in bf16.
    """

    def __init__(self, parameters: Iterable[torch.Tensor], lr: float, weight_decay: float = 0.0, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        for group in self.param_groups:
            if wrong := [tuple(p.shape) for p in group["params"] if p.ndim != 2]:
                raise ValueError(f"Muon optimises matrices, got parameters of shapes {wrong}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient; `closure` is not supported."""
        if closure is not None:
            raise ValueError("Muon takes no closure")
        for group in self.param_groups:
            shapes: dict[tuple[int, ...], list[torch.Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes.setdefault(tuple(parameter.shape), []).append(parameter)
            for parameters in shapes.values():
                self._update(parameters, group)

    def _update(self, parameters: list[torch.Tensor], group: dict[str, Any]) -> None:
        buffers = [self.state[p].setdefault("momentum_buffer", torch.zeros_like(p)) for p in parameters]
        gradients: list[torch.Tensor] = [p.grad for p in parameters]  # type: ignore[misc]
        torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
        momenta = torch._foreach_lerp(gradients, buffers, group["momentum"])
        update = orthogonalise(torch.stack(list(momenta)))
        rate = 0.2 * math.sqrt(max(parameters[0].shape)) * group["lr"]
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, list((update.to(parameters[0].dtype) * -rate).unbind(0)))


def orthogonalise(x: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """[N, r, c] -> bf16 matrices with the same singular vectors and singular values near 1."""
    a, b, c = COEFFICIENTS
    x = x.bfloat16()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
