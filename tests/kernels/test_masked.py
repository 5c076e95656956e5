"""The masked softmax against the specification: outputs, log-sum-exps and gradients, at odd sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from world_r1_kernels.pyramid_attention import Plan, PyramidConfig, make_plan, masked, pyramid_attention, reference


def tensors(n_q: int, n_k: int, kv_heads: int = 2, width: int = 8, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    shapes = ((2, 4, n_q), (2, kv_heads, n_k), (2, kv_heads, n_k))
    return [torch.randn(*shape, width, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def results(attention: Any, inputs: list[torch.Tensor], plan: Plan) -> list[torch.Tensor]:
    """Output, log-sum-exp, and gradients of q, k and v of a sum that weighs both."""
    out, lse = attention(*inputs, plan)
    seen = torch.isfinite(lse)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return [out, lse, *torch.autograd.grad((out * weights).sum() + lse[seen].sin().sum(), inputs)]


def random_levels(n_q: int, n_k: int, values: tuple[int, ...], block: int = 16) -> torch.Tensor:
    chosen = torch.randint(len(values), (2, 4, -(-n_q // block), -(-n_k // block)), generator=torch.Generator().manual_seed(2))
    return torch.tensor(values, dtype=torch.uint8)[chosen]


@pytest.mark.parametrize("correction", ["none", "isotropic", "diagonal"])
@pytest.mark.parametrize(("n_q", "n_k", "kv_heads"), [(77, 77, 4), (33, 117, 2), (16, 1, 1)])
def test_every_level_at_once(n_q: int, n_k: int, kv_heads: int, correction: str) -> None:
    inputs = tensors(n_q, n_k, kv_heads)
    plan = Plan(random_levels(n_q, n_k, (1, 2, 4, 8, 16)), n_q, n_k, 16, 16, correction=correction)
    for one, other in zip(results(masked.attention, inputs, plan), results(reference.attention, inputs, plan), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    "options",
    [
        {"rest": 0},
        {"causal": True, "levels": (1, 4), "block": 32},
        {"dense": ((-9, 0),), "rest": 16, "block": 64},
        {"allocation": "top_p", "top_p": {1: 0.5, 2: 0.9}, "levels": (1, 2)},
        {"block": 8},
        {"block": 8, "causal": True, "levels": (1, 2, 4, 8)},
    ],
)
@pytest.mark.parametrize("lengths", [None, (77, 40)])
def test_plans_as_they_are_drawn(options: dict[str, Any], lengths: tuple[int, ...] | None) -> None:
    inputs = tensors(77, 77)
    config = PyramidConfig(**{"density": 0.4, "block": 16, **options})
    padded = None if lengths is None else torch.tensor(lengths)
    plan = make_plan(inputs[0], inputs[1], config, lengths=padded).check()
    for one, other in zip(results(masked.attention, inputs, plan), results(reference.attention, inputs, plan), strict=True):
        torch.testing.assert_close(one, other)


def test_blind_rows_and_tokens_seen_everywhere() -> None:
    """Rows that see nothing are 0 with finite gradients; rest tokens that are seen beside selected blocks count twice in both."""
    inputs = tensors(40, 50)
    blind = random_levels(40, 50, (0, 1))
    blind[:, :, 1] = 0
    plan = Plan(blind, 40, 50, 16, 16, has_rest=False)
    found = results(masked.attention, inputs, plan)
    assert torch.equal(found[0][:, :, 16:32], torch.zeros(2, 4, 16, 8, dtype=torch.float64))
    assert torch.isneginf(found[1][:, :, 16:32]).all()
    twice = Plan(random_levels(40, 50, (0, 1)), 40, 50, 16, 16, everywhere=True)
    for one, other in zip(
        found + results(masked.attention, inputs, twice),
        results(reference.attention, inputs, plan) + results(reference.attention, inputs, twice),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_sixteen_bits_are_read_as_float32() -> None:
    """Under autocast and in bf16 the sums are float32's: closer to float64 than a rounding of the inputs' type."""
    inputs = tensors(90, 90, dtype=torch.bfloat16)
    plan = make_plan(inputs[0], inputs[1], PyramidConfig(density=0.5, block=16))
    with torch.autocast("cpu", torch.bfloat16):
        out, lse = masked.attention(*inputs, plan)
    exact, sums = reference.attention(*(x.double() for x in inputs), plan)
    assert (out.dtype, lse.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(lse.double(), sums, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out.double(), exact, rtol=2**-8, atol=1e-5)


def test_the_function_takes_it_in_training_and_draws_the_plan() -> None:
    inputs = tensors(70, 70, dtype=torch.float32)
    config = PyramidConfig(density=0.5, block=16)
    turned = [x.transpose(1, 2) for x in inputs]
    found = pyramid_attention(*turned, config, layout="BNHD", backend="masked").transpose(1, 2)
    torch.testing.assert_close(found, pyramid_attention(*inputs, config, backend="reference"))
    assert found.requires_grad
