"""The stacked Muon takes the steps of torch.optim.Muon."""

import pytest
import torch

from world_r1.blockworld.muon import Muon


def test_it_equals_torch_muon() -> None:
    torch.manual_seed(0)
    start = [torch.randn(*shape) for shape in ((24, 40), (40, 24), (24, 40), (32, 32))]
    ours, theirs = ([torch.nn.Parameter(p.clone()) for p in start] for _ in range(2))
    mine = Muon(ours, lr=0.02, weight_decay=0.1)
    reference = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        mine.step()
        reference.step()
    for a, b, c in zip(ours, theirs, start, strict=True):
        assert (a - b).norm() < 0.02 * (b - c).norm()  # bf16 iterations differ in the order of sums


def test_it_refuses_vectors() -> None:
    with pytest.raises(ValueError, match="matrices"):
        Muon([torch.nn.Parameter(torch.zeros(3))], lr=0.1)
