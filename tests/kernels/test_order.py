"""Token orders are permutations of any grid, undone exactly, and make compact blocks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from world_r1_kernels.order import KINDS, token_order

SIDE = st.integers(1, 9)


@settings(max_examples=60, deadline=None)
@given(grid=st.tuples(SIDE, SIDE, SIDE), kind=st.sampled_from(KINDS))
def test_any_grid_is_permuted_and_restored(grid: tuple[int, int, int], kind: str) -> None:
    order = token_order(grid, kind)
    n = grid[0] * grid[1] * grid[2]
    assert torch.equal(order.forward.sort().values, torch.arange(n))
    x = torch.arange(2 * n * 3).view(2, n, 3)
    assert torch.equal(order.undo(order.apply(x, 1), 1), x)


def radius(grid: tuple[int, int, int], kind: str, group: int) -> float:
    """Root mean square distance of the tokens of a group from its centre."""
    index = token_order(grid, kind).forward
    cells = torch.stack(torch.unravel_index(index, grid), -1).double()
    groups = cells[: len(cells) // group * group].view(-1, group, 3)
    return float((groups - groups.mean(1, keepdim=True)).square().sum(-1).mean().sqrt())


def test_blocks_are_nearly_cuboids() -> None:
    """An ideal 4x4x8 cuboid has 2.63, the raster order of this grid 15.3."""
    assert radius((21, 30, 52), "tiles", 128) < 2.7
    assert radius((21, 30, 52), "hilbert", 128) < 3.0
    assert radius((21, 30, 52), "hilbert", 8) < 0.95


def test_hilbert_steps_are_neighbours_on_a_power_of_two_cube() -> None:
    cells = torch.stack(torch.unravel_index(token_order((8, 8, 8), "hilbert").forward, (8, 8, 8)), -1)
    assert (cells.diff(dim=0).abs().sum(-1) == 1).all()


def test_bad_orders_are_refused() -> None:
    with pytest.raises(ValueError, match="one of tiles"):
        token_order((2, 2, 2), "spiral")
    with pytest.raises(ValueError, match="at least one token"):
        token_order((0, 2, 2))
    with pytest.raises(ValueError, match="2x2x2 = 8 tokens, got 7"):
        token_order((2, 2, 2)).apply(torch.zeros(7), 0)
