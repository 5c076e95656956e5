"""Plans: legal, deterministic, within budget, kept exactly by files; properties by hypothesis."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from world_r1_kernels.pyramid_attention import Plan, PyramidConfig, dense_plan, make_plan
from world_r1_kernels.pyramid_attention.select import importance

LEVELS = st.sampled_from([(1,), (1, 2), (1, 8), (1, 2, 4, 8)])


def inputs(
    n_q: int, n_k: int, heads: int = 2, kv_heads: int = 1, batch: int = 1, width: int = 8
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n_q * 1000 + n_k)
    q = 2 * torch.randn(batch, heads, n_q, width, generator=generator)
    drift = torch.randn(batch, kv_heads, n_k, width, generator=generator).cumsum(2) / 8  # neighbours resemble each other
    return q, drift + 0.3 * torch.randn(batch, kv_heads, n_k, width, generator=generator)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(40, 400),
    density=st.floats(0.02, 1.0),
    levels=LEVELS,
    rest=st.sampled_from([None, 16, 0]),
    causal=st.booleans(),
    allocation=st.sampled_from(["budget", "quota", "top_p"]),
)
def test_every_plan_is_legal_and_counts_no_token_twice(
    n: int, density: float, levels: tuple[int, ...], rest: int | None, causal: bool, allocation: str
) -> None:
    bounds = dict(zip(levels, (0.5, 0.7, 0.8, 0.9), strict=False))
    config = PyramidConfig(
        density=density, levels=levels, rest=rest, causal=causal, allocation=allocation, top_p=bounds, block=32, dense=((-5, 0),)
    )
    plan = make_plan(*inputs(n, n), config).check()
    assert set(plan.levels.unique().tolist()) <= {0, *levels, plan.rest}
    visible = torch.ones(plan.levels.shape[2:], dtype=torch.bool)
    visible = torch.tril(visible) if causal else visible
    if rest != 0:
        assert (plan.levels > 0)[..., visible].all(), "a visible block was dropped"
    assert (plan.levels[..., visible] == 1).view(1, 2, -1).any(-1).all()
    last = (n - 5) // 32
    assert (plan.levels[:, :, last:][..., visible[last:]] == 1).all(), "text rows see everything"
    assert (plan.levels[..., last:][..., visible[:, last:]] == 1).all(), "text columns are seen by everyone"
    assert torch.equal(make_plan(*inputs(n, n), config).levels, plan.levels)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(600, 1500), density=st.floats(0.15, 1.0), levels=LEVELS, block=st.sampled_from([8, 32]))
def test_a_budget_is_spent_to_the_last_block_in_every_head(n: int, density: float, levels: tuple[int, ...], block: int) -> None:
    plan = make_plan(*inputs(n, n), PyramidConfig(density=density, levels=levels, block=block))
    one_block = block * block / n**2
    assert (plan.density_per_head <= density + 1e-12).all()
    assert (plan.density_per_head > density - one_block).all(), plan.density_per_head


@settings(max_examples=20, deadline=None)
@given(n_q=st.integers(20, 300), n_k=st.integers(20, 300), causal=st.booleans(), block=st.sampled_from([8, 32]))
def test_importance_is_a_distribution(n_q: int, n_k: int, causal: bool, block: int) -> None:
    n_q = n_k if causal else n_q
    mass = importance(*inputs(n_q, n_k), block, causal=causal)
    torch.testing.assert_close(mass.sum(-1), torch.ones(mass.shape[:-1]))
    if causal:
        assert torch.triu(mass, 1).abs().max() == 0


def test_importance_finds_the_mass() -> None:
    """Against the exact softmax, on keys whose neighbours resemble each other."""
    q, k = inputs(256, 512, kv_heads=2)
    exact = torch.softmax(q @ k.transpose(-1, -2) * 8**-0.5, -1).unflatten(-1, (16, 32)).sum(-1).unflatten(-2, (8, 32)).mean(-2)
    mass = importance(q, k, 32)
    assert (mass - exact).abs().mean() < 0.25 * exact.mean()
    hits = (mass.argmax(-1) == exact.argmax(-1)).float().mean()
    assert hits > 0.7


def test_top_p_takes_the_smallest_set() -> None:
    q, k = inputs(128, 512)
    plan = make_plan(q, k, PyramidConfig(allocation="top_p", top_p={1: 0.6}, block=32))
    mass = importance(q, k, 32)
    chosen = plan.levels == 1
    held = (mass * chosen).sum(-1)
    smallest = mass.masked_fill(~chosen, 2).amin(-1)
    assert (held >= 0.6).all()
    assert (held - smallest < 0.6).all()


def test_similar_keys_only_are_pooled() -> None:
    q, k = inputs(128, 256)
    k[:, :, :128] = torch.randn(1, 1, 128, 8)  # unlike each other
    k[:, :, 128:] = 1.0 + 0.01 * torch.randn(1, 1, 128, 8)
    free = make_plan(q, k, PyramidConfig(density=0.5, levels=(1, 2, 4, 8), allocation="quota", block=32))
    assert torch.isin(free.levels[..., :4], torch.tensor([2, 4, 8])).any()
    for allocation in ("quota", "budget"):
        config = PyramidConfig(
            density=0.5, levels=(1, 2, 4, 8), allocation=allocation, block=32, similarity={2: 0.8, 4: 0.8, 8: 0.8}
        )
        capped = make_plan(q, k, config)
        assert not torch.isin(capped.levels[..., :4], torch.tensor([2, 4, 8])).any()


def test_a_plan_survives_its_file(tmp_path: Path) -> None:
    q, k = inputs(100, 100, batch=2)
    plan = make_plan(
        q, k, PyramidConfig(density=0.3, levels=(1, 4), rest=16, block=32, causal=True), lengths=torch.tensor([100, 61])
    )
    plan.save(tmp_path / "plan.safetensors")
    again = Plan.load(tmp_path / "plan.safetensors")
    assert again.hash == plan.hash
    assert torch.equal(again.levels, plan.levels)
    assert again.density == plan.density
    other = plan.levels.clone()
    other[0, 0, 2, 0] = 1 if other[0, 0, 2, 0] != 1 else 16
    assert replace(plan, levels=other).hash != plan.hash
    assert replace(plan, correction="none").hash != plan.hash


def test_density_counts_what_is_computed() -> None:
    levels = torch.tensor([[1, 2, 4, 8], [16, 16, 0, 1]], dtype=torch.uint8)[None, None]
    plan = Plan(levels, 32, 50, 16, 16)  # key blocks of 16, 16, 16 and 2 tokens
    assert plan.attention_density == pytest.approx((16 + 8 + 4 + 1 + 1 + 1 + 0 + 2) / 100)
    assert replace(plan, everywhere=True).attention_density == pytest.approx((33 + 8) / 100)
    assert dense_plan(1, 2, 50, 50, block=16).attention_density == 1
    assert dense_plan(1, 2, 50, 50, block=16, causal=True).attention_density == 1
    config = PyramidConfig(density=1.0, block=32)
    drawn = make_plan(*inputs(200, 200), config)
    assert drawn.attention_density == 1
    assert drawn.density == pytest.approx(1 + 0.5 * 56 / 200 * 25 / 200)


@pytest.mark.parametrize(
    ("settings_", "complaint"),
    [
        ({"density": 0.0}, "density"),
        ({"density": 1.1}, "density"),
        ({"allocation": "best"}, "allocation"),
        ({"levels": (2, 4)}, "levels"),
        ({"correction": "full"}, "correction"),
        ({"similarity": {16: 0.5}}, "similarity"),
        ({"block": 4}, "block is a power of two from 8 to 128, got 4"),
        ({"block": 48}, "block is a power of two"),
        ({"rest": 16, "block": 8}, "rest=16"),
        ({"allocation": "top_p", "levels": (1, 2), "top_p": {1: 0.9, 2: 0.5}}, "top_p"),
    ],
)
def test_senseless_settings_are_refused(settings_: dict, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        PyramidConfig(**settings_)


def test_illegal_plans_are_refused() -> None:
    ones = torch.ones(1, 1, 2, 2, dtype=torch.uint8)
    with pytest.raises(ValueError, match="uint8"):
        Plan(ones.int(), 32, 32, 16, 16)
    with pytest.raises(ValueError, match="make"):
        Plan(ones, 48, 32, 16, 16)
    with pytest.raises(ValueError, match="block is a power of two"):
        Plan(ones, 8, 8, 4, 4)
    with pytest.raises(ValueError, match="rest is a power of two from 8 to the block's 8 tokens, got 4"):
        Plan(ones, 16, 16, 8, 4)
    with pytest.raises(ValueError, match="rest is a power of two from 16 to the block's 64 tokens, got 8"):
        Plan(ones, 128, 128, 64, 8)
    with pytest.raises(ValueError, match="levels must be one of"):
        Plan(3 * ones, 32, 32, 16, 16).check()
    with pytest.raises(ValueError, match="after the query's own"):
        Plan(ones, 32, 32, 16, 16, causal=True).check()
    with pytest.raises(ValueError, match="lies outside"):
        make_plan(*inputs(64, 64), PyramidConfig(dense=((10, 70),), block=32))
    with pytest.raises(ValueError, match="as many queries as keys"):
        make_plan(*inputs(64, 65), PyramidConfig(causal=True, block=32))
