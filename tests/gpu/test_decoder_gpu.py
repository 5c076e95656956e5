"""The decoder on a GPU, where its norm is a Triton kernel and cuDNN convolves: against diffusers' chunk loop."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKLWan

from world_r1.policies import wan_vae
from world_r1.policies.wan_vae_frames import GpuDecoder

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize(("dtype", "most_off"), [(torch.float32, 2e-4), (torch.bfloat16, 4e-2)])
@pytest.mark.parametrize("most", [2**31 - 1, 3_000_000])
def test_at_full_width_against_the_stock_path(dtype: torch.dtype, most_off: float, most: int) -> None:
    """Wan2.1's decoder with random weights, 9x128x208; in bf16 against the float32 stock path, no further off than the bf16 one."""
    torch.manual_seed(0)
    exact = AutoencoderKLWan().cuda().eval()
    z = torch.randn(1, 16, 3, 16, 26, device="cuda")
    torch.backends.cudnn.allow_tf32, before = False, torch.backends.cudnn.allow_tf32
    try:
        with torch.no_grad():
            expected = exact.decode(z).sample
            vae = wan_vae.channels_last(exact.to(dtype))
            found = GpuDecoder(most).decode(vae, z.to(dtype)).float().clamp(-1, 1)
            stock = wan_vae.decode_chunked(vae, z.to(dtype)).float()
    finally:
        torch.backends.cudnn.allow_tf32 = before
    off, stock_off = ((video - expected).abs().mean() for video in (found, stock))
    assert expected.std() > 1e-2
    assert off < most_off * expected.std()
    assert off <= 1.1 * stock_off + 1e-5
