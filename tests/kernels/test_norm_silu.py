"""RMS norm and SiLU in front of a causal convolution: Triton against the specification, and the specification against torch's layers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")

from world_r1_kernels.norm_silu import norm_silu_taps, reference
from world_r1_kernels.norm_silu.triton import norm_silu_taps as fast
from world_r1_kernels.pyramid_attention import operator as ops


def video(frames: int = 5, height: int = 3, width: int = 7, channels: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(channels)
    x = torch.randn(frames, height, width, channels, generator=generator)
    x[1, 0, 0] = 0  # nothing to divide by
    return x, 1 + 0.3 * torch.randn(channels, generator=generator)


def test_the_specification_is_norm_silu_and_a_causal_padding() -> None:
    x, gain = video()
    expected = F.pad(F.silu(F.normalize(x, dim=-1) * gain), (0, 0, 0, 0, 0, 0, 2, 0))
    torch.testing.assert_close(reference(x, gain, 0, 5, 3, False), expected)
    torch.testing.assert_close(reference(x, gain, 2, 4, 3, False), expected[2:6])
    folded = reference(x, gain, 1, 4, 3, True)
    torch.testing.assert_close(folded, torch.cat([expected[k + 1 : k + 4] for k in range(3)], -1))


@pytest.mark.skipif(not ops.interpreted(), reason="needs TRITON_INTERPRET=1, set where no GPU is")
@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize(("first", "last", "taps"), [(0, 5, 3), (0, 1, 3), (1, 3, 3), (3, 5, 3), (0, 5, 1)])
@pytest.mark.parametrize("channels", [12, 16, 33])
def test_the_kernel_is_the_specification(channels: int, first: int, last: int, taps: int, fold: bool) -> None:
    x, gain = video(channels=channels)
    torch.testing.assert_close(fast(x, gain, first, last, taps, fold), reference(x, gain, first, last, taps, fold))


def test_ranges_and_shapes_that_do_not_fit_are_refused() -> None:
    x, gain = video()
    for first, last in ((0, 6), (3, 3), (-1, 2)):
        with pytest.raises(ValueError, match="do not lie in a video of 5 frames"):
            norm_silu_taps(x, gain, first, last, 3, False)
    with pytest.raises(ValueError, match="contiguous x"):
        norm_silu_taps(x.transpose(1, 2), gain, 0, 1, 3, False)
    with pytest.raises(ValueError, match="gain"):
        norm_silu_taps(x, gain[1:], 0, 1, 3, False)
