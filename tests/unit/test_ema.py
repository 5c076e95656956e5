"""The moving average: its formula with warm-up, the swap and back, and its state."""

from __future__ import annotations

import pytest
import torch

from world_r1.ema import EMA


def parameters() -> dict[str, torch.nn.Parameter]:
    return {"a": torch.nn.Parameter(torch.zeros(3)), "b": torch.nn.Parameter(torch.ones(2, 2, dtype=torch.bfloat16))}


def test_formula_with_warm_up() -> None:
    weights = parameters()
    ema = EMA(weights, 0.5)
    expected, decays = 0.0, []
    for n in range(12):
        with torch.no_grad():
            weights["a"].fill_(n + 1.0)
        ema.update()
        decays.append(min(0.5, (1 + n) / (10 + n)))
        expected = decays[-1] * expected + (1 - decays[-1]) * (n + 1.0)
    assert decays[0] == 0.1
    assert decays[-1] == 0.5
    torch.testing.assert_close(ema.average["a"], torch.full((3,), expected))
    assert ema.average["b"].dtype == torch.float32


def test_zero_decay_is_the_weights() -> None:
    weights = parameters()
    ema = EMA(weights, 0.0)
    with torch.no_grad():
        weights["a"].copy_(torch.tensor([1.0, 0.1, -3.7]))
    ema.update()
    assert torch.equal(ema.average["a"], weights["a"])


def test_applied_swaps_and_restores_even_after_an_error() -> None:
    weights = parameters()
    ema = EMA(weights, 0.9)
    trained = torch.tensor([0.3, 0.7, -1.1])
    with torch.no_grad():
        weights["a"].copy_(trained)
    with ema.applied():
        assert torch.equal(weights["a"], torch.zeros(3))
    assert torch.equal(weights["a"], trained)
    context = ema.applied()
    context.__enter__()
    assert context.__exit__(RuntimeError, RuntimeError(), None) is not True
    assert torch.equal(weights["a"], trained)


def test_state_round_trip_continues_bit_for_bit() -> None:
    def run(ema: EMA, weights: dict[str, torch.nn.Parameter], start: int, stop: int) -> None:
        for n in range(start, stop):
            with torch.no_grad():
                weights["a"].copy_(torch.rand(3, generator=torch.Generator().manual_seed(n)))
            ema.update()

    weights = parameters()
    whole = EMA(weights, 0.9)
    run(whole, weights, 0, 20)
    first_weights = parameters()
    first = EMA(first_weights, 0.9)
    run(first, first_weights, 0, 9)
    second_weights = parameters()
    second = EMA(second_weights, 0.9)
    second.load_state_dict(first.state_dict())
    run(second, second_weights, 9, 20)
    assert torch.equal(whole.average["a"], second.average["a"])


def test_state_errors_name_the_entries() -> None:
    ema = EMA(parameters(), 0.9)
    state = ema.state_dict()
    with pytest.raises(ValueError, match=r"missing \['a'\], unexpected \['c'\]"):
        ema.load_state_dict({**{k: v for k, v in state.items() if k != "a"}, "c": torch.zeros(1)})
    with pytest.raises(ValueError, match="average of a has shape"):
        ema.load_state_dict({**state, "a": torch.zeros(4)})
    with pytest.raises(ValueError, match="decay"):
        EMA(parameters(), 1.0)
