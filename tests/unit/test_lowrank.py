"""Cutting an adapter to its strongest directions: against numpy's decomposition of the whole product, and what it is for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from world_r1.ema import EMA
from world_r1.lowrank import strongest_directions

DOWN, UP = "blocks.0.attn1.to_q.lora_A.default.weight", "blocks.0.attn1.to_q.lora_B.default.weight"


def pair(rank: int, inside: int, outside: int, seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {DOWN: torch.randn(rank, inside, generator=g), UP: torch.randn(outside, rank, generator=g)}


def product(state: dict[str, torch.Tensor]) -> np.ndarray:
    return (state[UP].double() @ state[DOWN].double()).numpy()


@pytest.mark.parametrize(("rank", "inside", "outside", "keep"), [(7, 33, 21, 3), (5, 4, 19, 1), (6, 17, 3, 2), (4, 9, 9, 3)])
def test_the_product_is_the_best_of_its_rank(rank: int, inside: int, outside: int, keep: int) -> None:
    state = pair(rank, inside, outside)
    u, s, vt = np.linalg.svd(product(state), full_matrices=False)
    cut = strongest_directions(state, keep)
    np.testing.assert_allclose(product(cut), (u[:, :keep] * s[:keep]) @ vt[:keep], atol=2e-5)
    assert {name: value.shape for name, value in cut.items()} == {name: value.shape for name, value in state.items()}
    assert torch.equal(cut[DOWN][keep:], torch.zeros_like(cut[DOWN][keep:]))
    assert torch.equal(cut[UP][:, keep:], torch.zeros_like(cut[UP][:, keep:]))


def test_other_entries_full_adapters_and_untrained_ones_stay() -> None:
    state = pair(4, 9, 9) | {"norm.weight": torch.ones(3), "x.lora_A.default.weight": torch.ones(4, 2)}  # the last has no partner
    cut = strongest_directions(state, 4)
    assert all(cut[name] is value for name, value in state.items())
    assert strongest_directions(state, 2)["norm.weight"] is state["norm.weight"]
    assert strongest_directions(state, 2)["x.lora_A.default.weight"] is state["x.lora_A.default.weight"]
    fresh = pair(4, 9, 9) | {UP: torch.zeros(9, 4)}  # B = 0 is how training starts
    assert not product(strongest_directions(fresh, 1)).any()
    with pytest.raises(ValueError, match="at least one direction"):
        strongest_directions(state, 0)


def test_a_step_that_repeats_survives_and_a_random_walk_does_not() -> None:
    """Signal: the same rank-one step a hundred times. Noise: as many random steps of three times the length."""
    g = torch.Generator().manual_seed(1)
    spike = torch.outer(torch.randn(40, generator=g), torch.randn(60, generator=g)) / 50
    walk = torch.randn(100, 40, 60, generator=g).sum(0) * 3 * spike.norm() / 2400**0.5
    u, s, vt = torch.linalg.svd(100 * spike + walk, full_matrices=False)
    state = {DOWN: s[:32].sqrt()[:, None] * vt[:32], UP: u[:, :32] * s[:32].sqrt()}
    wanted = 100 * spike.double().numpy()
    error = {keep: np.linalg.norm(product(strongest_directions(state, keep)) - wanted) for keep in (1, 32)}
    assert error[1] < 0.5 * error[32]


def test_an_average_hands_out_what_it_keeps_and_goes_on_whole() -> None:
    weights = {name: torch.nn.Parameter(value) for name, value in pair(4, 9, 11).items()}
    ema = EMA(weights, 0.0, keep=2)
    trained = {name: parameter.detach().clone() for name, parameter in weights.items()}
    ema.update()
    assert np.linalg.matrix_rank(product(ema.weights()), tol=1e-4) == 2
    with ema.applied():
        assert np.linalg.matrix_rank(product({name: parameter.detach() for name, parameter in weights.items()}), tol=1e-4) == 2
    assert all(torch.equal(weights[name], value) for name, value in trained.items())
    assert all(torch.equal(ema.state_dict()[name], value) for name, value in trained.items())
