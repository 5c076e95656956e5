"""The specification against independent formulas: token by token, on tiny sizes, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from world_r1_kernels.pyramid_attention import Plan, dense_plan
from world_r1_kernels.pyramid_attention.published import asa, binary_top_k, paper_psa
from world_r1_kernels.pyramid_attention.reference import attention


def qkv(n_q: int, n_k: int, heads: int = 2, kv_heads: int = 2, width: int = 4) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = ((heads, n_q), (kv_heads, n_k), (kv_heads, n_k))
    return [torch.randn(1, *shape, width, generator=generator, dtype=torch.float64) for shape in shapes]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kv_heads", [2, 1])
def test_density_one_is_exact_attention(causal: bool, kv_heads: int) -> None:
    q, k, v = qkv(77, 77, kv_heads=kv_heads)
    out, lse = attention(q, k, v, dense_plan(1, 2, 77, 77, causal=causal, block=16))
    torch.testing.assert_close(out, scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True))
    s = q @ k.expand(-1, 2, -1, -1).transpose(-1, -2) / 2
    if causal:
        s = s.masked_fill(torch.triu(torch.ones(77, 77, dtype=torch.bool), 1), -math.inf)
    torch.testing.assert_close(lse, s.logsumexp(-1))


@pytest.mark.parametrize("correction", ["none", "isotropic", "diagonal"])
def test_one_row_by_hand(correction: str) -> None:
    """Levels 1, 2, 4, rest on a short last block: every term of the sum written out."""
    q, k, v = qkv(3, 57, heads=1, kv_heads=1)
    levels = torch.tensor([[[[1, 2, 4, 16]]]], dtype=torch.uint8)
    out, lse = attention(q, k, v, Plan(levels, 3, 57, 16, 16, correction=correction))
    for row in range(3):
        mass, total = 0.0, torch.zeros(4, dtype=torch.float64)
        for block, size in enumerate((1, 2, 4, 16)):
            for start in range(16 * block, min(16 * block + 16, 57), size):
                keys, values = k[0, 0, start : min(start + size, 57)], v[0, 0, start : min(start + size, 57)]
                query, n = q[0, 0, row], len(keys)
                spread = keys.var(0, unbiased=False) if n > 1 else torch.zeros(4, dtype=torch.float64)
                c = {
                    "none": 0.0,
                    "isotropic": float(query @ query * spread.sum()) / 4 / 8,
                    "diagonal": float(query.square() @ spread) / 8,
                }[correction]
                weight = n * math.exp(float(query @ keys.mean(0)) / 2 + min(c, math.log(n)))
                mass += weight
                total += weight * values.mean(0)
        assert float(lse[0, 0, row]) == pytest.approx(math.log(mass), rel=1e-12)
        torch.testing.assert_close(out[0, 0, row], total / mass)


def test_equal_keys_make_pooling_exact() -> None:
    """Where a block's keys are one key, every level gives the exact answer, whatever the values: nothing is counted twice."""
    q, k, v = qkv(40, 64)
    k = k[:, :, ::16].repeat_interleave(16, 2)
    exact = scaled_dot_product_attention(q, k, v)
    levels = torch.tensor([1, 2, 4, 8, 16, 1, 16, 8, 2, 4, 16, 16], dtype=torch.uint8).view(1, 1, 3, 4).expand(1, 2, 3, 4)
    out, _ = attention(q, k, v, Plan(levels.contiguous(), 40, 64, 16, 16))
    torch.testing.assert_close(out, exact)


def test_the_correction_lessens_the_error() -> None:
    """Means under-estimate the mass of a spread group (Jensen); the correction must bring it closer."""
    q, k, v = qkv(64, 64, width=16)
    exact = torch.logsumexp(q @ k.transpose(-1, -2) / 4, -1)
    levels = torch.full((1, 2, 4, 4), 16, dtype=torch.uint8)
    plain, corrected = (attention(q, k, v, Plan(levels, 64, 64, 16, 16, correction=c))[1] for c in ("none", "isotropic"))
    assert (plain <= exact).all()
    assert (corrected - exact).abs().mean() < 0.5 * (plain - exact).abs().mean()


def test_rows_that_see_nothing_are_zero() -> None:
    q, k, v = (x.requires_grad_() for x in qkv(20, 33))
    levels = torch.zeros(1, 2, 2, 3, dtype=torch.uint8)
    levels[0, 1, 1, 2] = 1
    out, lse = attention(q, k, v, Plan(levels, 20, 33, 16, 16, has_rest=False))
    assert torch.equal(out[0, 0], torch.zeros(20, 4, dtype=torch.float64))
    assert torch.isinf(lse[0, 0]).all()
    out.sum().backward()
    assert all(torch.isfinite(x.grad).all() for x in (q, k, v))


def test_published_plans() -> None:
    q, k, v = (x.float() for x in qkv(500, 500, width=16))
    psa = paper_psa(q, k, {1: 0.25, 2: 0.25, 4: 0.25}, block=32)
    assert [int((psa.levels == level).sum()) for level in (1, 2, 4, 0)] == [2 * 16 * 4] * 4
    assert psa.hash == paper_psa(q, k, {1: 0.25, 2: 0.25, 4: 0.25}, block=32).hash
    assert psa.attention_density == pytest.approx(0.25 * (1 + 1 / 2 + 1 / 4), abs=0.01)
    top = binary_top_k(q, k, 0.25, block=32)
    assert top.attention_density == pytest.approx(0.25, abs=0.01)
    with_global = asa(q, k, 0.25, global_group=16, block=32)
    assert with_global.everywhere
    assert with_global.attention_density <= 0.26
    for plan in (psa, top, with_global):
        assert torch.isfinite(attention(q, k, v, plan.check())[0]).all()
