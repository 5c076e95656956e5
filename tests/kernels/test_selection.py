"""Selection in Triton against the specification in PyTorch."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from world_r1_kernels.pyramid_attention import PyramidConfig, launch, make_plan, triton_select
from world_r1_kernels.pyramid_attention import operator as ops
from world_r1_kernels.pyramid_attention.allocate import block_tokens, longest_prefix
from world_r1_kernels.pyramid_attention.select import importance, plan_and_pool

pytestmark = pytest.mark.skipif(not ops.interpreted(), reason="needs TRITON_INTERPRET=1, set where no GPU is")


def inputs(n_q: int, n_k: int, heads: int = 2, kv_heads: int = 1, batch: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n_q * 1000 + n_k)
    drift = torch.randn(batch, kv_heads, n_k, 16, generator=generator).cumsum(2) / 8  # neighbours resemble each other
    return (
        torch.randn(batch, heads, n_q, 16, generator=generator),
        drift + 0.3 * torch.randn(batch, kv_heads, n_k, 16, generator=generator),
    )


@pytest.mark.parametrize(("n_q", "n_k", "heads", "bnhd"), [(64, 96, 1, False), (75, 203, 1, False), (80, 70, 2, True)])
def test_masses_and_the_blocks_that_the_budget_pays_for(n_q: int, n_k: int, heads: int, bnhd: bool) -> None:
    """Masses and rank factors up to rounding; from these, the choice to the bit."""
    q, k = inputs(n_q, n_k, heads)
    turned = [x.transpose(1, 2).contiguous().transpose(1, 2) if bnhd else x for x in (q, k)]
    nq, nk = -(-n_q // 32), -(-n_k // 32)
    tokens = block_tokens(n_k, 32)
    extra = tokens - -(-tokens // 16)
    weight = block_tokens(n_q, 32)[:, None] * extra
    for budget in (0, int(weight.sum()) // 3, int(weight.sum())):
        found = triton_select.select_levels(
            *turned, block=32, rest=16, drop=False, causal=False, scale=0.25, budget=budget, keep_mass=True
        )
        assert found.mass is not None
        torch.testing.assert_close(found.mass, importance(q, k, 32, 0.25), atol=1e-6, rtol=1e-4)
        forced = found.mass == found.mass.amax(-1, keepdim=True)
        score = (found.mass * found.mass) * found.rank[:, :, None]
        taken = longest_prefix(score, forced, torch.ones(nq, nk, dtype=torch.bool), weight, budget)
        assert torch.equal(found.levels, torch.where(taken, 1, 16).to(torch.uint8))


@pytest.mark.parametrize(
    "config",
    [
        PyramidConfig(density=0.3, block=32),
        PyramidConfig(density=0.4, rest=16, block=32, causal=True),
        PyramidConfig(density=0.3, rest=0, block=32, min_blocks=3),
        PyramidConfig(density=0.4, block=32, dense=((-20, 0),)),
        PyramidConfig(density=0.3, block=32, allocation="quota"),
        PyramidConfig(density=0.5, rest=16, block=32, allocation="quota", causal=True, dense=((0, 10),)),
    ],
)
def test_plans_are_those_of_the_specification(config: PyramidConfig) -> None:
    n = 256 if config.allocation == "quota" else 139
    q, k = inputs(n, n)
    plan = make_plan(q, k, config, backend="triton").check()
    expected = make_plan(q, k, config, backend="reference")
    assert torch.equal(plan.levels, expected.levels)
    assert plan.density == expected.density


@pytest.mark.parametrize("allocation", ["budget", "quota"])
def test_ties_go_to_the_lower_block(allocation: str) -> None:
    q, k = torch.zeros(1, 1, 64, 16), torch.ones(1, 1, 160, 16)  # every logit is the same, to the bit
    for backend in ("triton", "reference"):
        config = PyramidConfig(density=0.65, block=32, allocation=allocation)
        levels = make_plan(q, k, config, backend=backend).levels
        expected = 2 * [[1, 1, 1, 32, 32]] if allocation == "quota" else [[1, 1, 1, 1, 1], [1, 32, 32, 32, 32]]
        assert levels[0, 0].tolist() == expected, backend


def test_padded_batches_and_what_the_kernels_do_not_know() -> None:
    q, k = inputs(120, 120, batch=2)
    config = PyramidConfig(density=0.4, block=32)
    plan, expected = (make_plan(q, k, config, lengths=torch.tensor([120, 77]), backend=b) for b in ("triton", "reference"))
    assert (plan.levels != expected.levels).float().mean() < 2e-3
    with pytest.raises(ValueError, match="use backend='reference'"):
        make_plan(q, k, PyramidConfig(levels=(1, 2), block=32), backend="triton")
    with pytest.raises(ValueError, match="blocks of 16 tokens or more"):
        make_plan(q, k, PyramidConfig(block=8), backend="triton")
    with pytest.raises(ValueError, match="backend is one of"):
        make_plan(q, k, config, backend="cuda")


@pytest.mark.parametrize(("n", "rest", "bnhd"), [(75, 16, False), (203, 32, True)])
def test_rest_tokens_pooled_on_the_way_are_those_of_the_attention(n: int, rest: int, bnhd: bool) -> None:
    """The same bits from both, whatever the memory order of k and v; and gradients through them are those of the whole."""
    q, k = inputs(n, n)
    v = torch.randn(k.shape, generator=torch.Generator().manual_seed(1))
    if bnhd:
        v = v.transpose(1, 2).contiguous().transpose(1, 2)
    config = PyramidConfig(density=0.4, block=32, rest=rest)
    plan, pyramid = plan_and_pool(q, k, v, config, 0.25, "triton")
    assert pyramid is not None
    assert torch.equal(plan.levels, make_plan(q, k, config, scale=0.25, backend="triton").levels)
    expected = launch.pool(k, v.contiguous(), None, launch.Geometry.of(q, k, plan, False))
    assert torch.equal(pyramid.wide, expected.wide)
    assert torch.equal(pyramid.bias, expected.bias)
    assert torch.equal(pyramid.variance, expected.variance)
    results = []
    for given in (pyramid, None):
        leaves = [x.contiguous().requires_grad_() for x in (q, k, v)]
        out, _ = ops.attend(leaves[0], leaves[1], leaves[2], plan, 0.25, False, given)
        results.append([out, *torch.autograd.grad(out.sin().sum(), leaves)])
    for shared, alone in zip(*results, strict=True):
        assert torch.equal(shared, alone)


@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize("sizes", [(1,), (1, 2, 4, 8), (1, 8)])
def test_every_head_begins_where_a_descriptor_may(block: int, sizes: tuple[int, ...]) -> None:
    """At a multiple of 16 bytes of float32, at any number of blocks."""
    for nk in range(1, 12):
        for rest in (16, 32, 64):
            g = launch.Geometry(1, 2, 2, nk * block - 3, nk * block - 3, 64, block, rest, sizes, False)
            assert g.rows % 4 == 0
            assert all(base % 4 == 0 for base in g.bases)
            assert g.bases[3] + g.rests <= g.rows
