"""Selection in Triton against the specification in PyTorch."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from world_r1_kernels.pyramid_attention import operator as ops
from world_r1_kernels.pyramid_attention import triton_select
from world_r1_kernels.pyramid_attention.select import _top, importance

pytestmark = pytest.mark.skipif(not ops.interpreted(), reason="needs TRITON_INTERPRET=1, set where no GPU is")


@pytest.mark.parametrize(("n_q", "n_k", "heads"), [(96, 96, 1), (75, 333, 1), (130, 70, 2)])
@pytest.mark.parametrize("bnhd", [False, True])
def test_masses_and_choice(n_q: int, n_k: int, heads: int, bnhd: bool) -> None:
    generator = torch.Generator().manual_seed(n_k)
    q, k = torch.randn(1, heads, n_q, 16, generator=generator), torch.randn(1, 1, n_k, 16, generator=generator)
    turned = [x.transpose(1, 2).contiguous() if bnhd else x for x in (q, k)]
    levels, mass = triton_select.quota_levels(*turned, 2, 32, 32, 0.25, bnhd, keep_mass=True)
    assert mass is not None
    torch.testing.assert_close(mass, importance(q, k, 32, 0.25), atol=1e-6, rtol=1e-4)
    assert torch.equal(levels == 1, _top(mass, 2))
    assert torch.equal((levels == 1) | (levels == 32), torch.ones_like(levels, dtype=torch.bool))


def test_ties_go_to_the_lower_block() -> None:
    q, k = torch.randn(1, 1, 32, 16), torch.ones(1, 1, 160, 16)
    levels, _ = triton_select.quota_levels(q, k, 3, 32, 32, 0.25, False)
    assert levels.flatten().tolist() == [1, 1, 1, 32, 32]
