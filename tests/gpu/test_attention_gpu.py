"""Pyramid attention on the device: against the float32 reference, repeatable to the bit, at full length, in every shipped setting."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

pytest.importorskip("triton")

from world_r1_kernels.bench import attention as bench
from world_r1_kernels.pyramid_attention import PyramidConfig, dense_plan, make_plan, pyramid_attention, tuning
from world_r1_kernels.pyramid_attention import operator as ops

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda")


def inputs(tokens: int, heads: int = 4, kv_heads: int = 4, width: int = 128, batch: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    shapes = (heads, kv_heads, kv_heads)
    return [torch.randn(batch, h, tokens, width, generator=generator).to(DEVICE, torch.bfloat16) for h in shapes]


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.float() - b.float()).norm() / b.float().norm())


def test_outputs_and_gradients_against_the_reference() -> None:
    assert bench.check(DEVICE)


@pytest.mark.parametrize("tokens", [500, 512, 1000, 4097])
@pytest.mark.parametrize("width", [64, 128])
def test_lengths_and_widths(tokens: int, width: int) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        config = PyramidConfig(density=0.5, levels=(1, 2, 4, 8), rest=32)
        assert bench.compare("length", config, tokens, width, dtype, DEVICE) < bench.TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("tokens", [4097, 17776, 32760])
def test_density_one_is_dense_attention(tokens: int, causal: bool) -> None:
    q, k, v = inputs(tokens, heads=2, kv_heads=1)
    out = pyramid_attention(q, k, v, dense_plan(1, 2, tokens, tokens, causal=causal))
    assert relative(out, scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)) < 5e-3


@pytest.mark.parametrize("tokens", [32760, 75600])
def test_full_length_repeats_to_the_bit(tokens: int) -> None:
    q, k, v = (x.requires_grad_() for x in inputs(tokens, heads=2, kv_heads=2))
    plan = make_plan(q, k, PyramidConfig(density=0.1, rest=32))
    runs = []
    for _ in range(2):
        poison = torch.full((2**28,), float("nan"), device=DEVICE)  # what the allocator hands out next is this
        del poison
        out, lse = pyramid_attention(q, k, v, plan, return_lse=True)
        runs.append([out, lse, *torch.autograd.grad(out, (q, k, v), torch.ones_like(out))])
    for first, second in zip(*runs, strict=True):
        assert torch.isfinite(first).all()
        assert torch.equal(first, second)
    assert torch.equal(make_plan(q, k, PyramidConfig(density=0.1, rest=32)).levels, plan.levels)


@pytest.mark.parametrize("allocation", ["budget", "quota"])
@pytest.mark.parametrize("causal", [False, True])
def test_plans_of_the_selection_kernels(allocation: str, causal: bool) -> None:
    """Nearly those of the specification (bfloat16 means move near ties), within the same budget, the same bits every time."""
    q, k, _ = inputs(17776, heads=4, kv_heads=2)
    k = (k.float() + sum(k.float().roll(n, 2) for n in (1, 2, 3))).to(k.dtype)
    config = PyramidConfig(density=0.15, rest=32, allocation=allocation, causal=causal)
    plan, expected = (make_plan(q, k, config, backend=backend) for backend in ("triton", "reference"))
    plan.check()
    assert (plan.levels != expected.levels).float().mean() < 0.02
    if allocation == "budget":
        spent = plan.density_per_head
        assert (spent <= 0.15).all()
        assert (spent > 0.15 - 2 * 128 * 128 / 17776**2).all()
    again = make_plan(q, k, config)
    assert torch.equal(again.levels, plan.levels)


@pytest.mark.parametrize("settings", tuning.FORWARD_CANDIDATES[:3])
def test_candidates_agree(settings: tuning.ForwardSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The likeliest; the tuner checks each of them, in a process of its own, because one may crash the compiler."""
    q, k, v = inputs(4097)
    plan = make_plan(q, k, PyramidConfig(density=0.4, levels=(1, 2, 4, 8), rest=32))
    base = pyramid_attention(q, k, v, plan)
    monkeypatch.setattr(ops, "forward_settings", lambda *_: settings)
    assert relative(pyramid_attention(q, k, v, plan), base) < 5e-3


def repeat(rank: int) -> None:
    """Three hundred times the same bits, in the shapes in which a warp-specialised loop once did not give them (LOG.md, 2026-11-29)."""
    shape = (4, 12, 4680, 128)
    q, k, v = (torch.randn(shape, generator=torch.Generator(DEVICE).manual_seed(i), device=DEVICE).bfloat16() for i in range(3))
    plan = make_plan(q, k, PyramidConfig(density=0.15))
    first = pyramid_attention(q, k, v, plan)
    assert first.isfinite().all()
    for i in range(300):
        assert torch.equal(pyramid_attention(q, k, v, plan), first), f"process {rank}, call {i}"


@pytest.mark.slow
def test_processes_that_take_turns_on_the_gpu() -> None:
    torch.multiprocessing.spawn(repeat, nprocs=3)


@pytest.mark.parametrize("causal", [False, True])
def test_blocks_of_64(causal: bool) -> None:
    config = PyramidConfig(density=0.5, rest=32, block=64, causal=causal)
    assert bench.compare("blocks of 64", config, 1000, 128, torch.bfloat16, DEVICE) < bench.TOLERANCE[torch.bfloat16]


def test_layouts_agree_to_the_bit() -> None:
    q, k, v = inputs(1000)
    plan = make_plan(q, k, PyramidConfig(density=0.4))
    turned = pyramid_attention(*(x.transpose(1, 2).contiguous() for x in (q, k, v)), plan, layout="BNHD")
    assert torch.equal(turned.transpose(1, 2), pyramid_attention(q, k, v, plan))


def test_compiled_without_a_graph_break() -> None:
    q, k, v = (x.requires_grad_() for x in inputs(1000))
    plan = make_plan(q, k, PyramidConfig(density=0.4))

    settings = (plan.block, plan.rest, list(plan.sizes), plan.has_rest, plan.everywhere, plan.correction, plan.causal)

    def layer(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        return torch.ops.world_r1.pyramid_attention(q * 1.0, k, v, levels, None, 128**-0.5, False, *settings)[0].float().square()

    out = torch.compile(layer, fullgraph=True)(q, k, v, plan.levels)
    assert relative(out, layer(q, k, v, plan.levels)) < 1e-3
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(out.sum(), (q, k, v)))
