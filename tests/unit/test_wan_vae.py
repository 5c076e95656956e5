"""The full-sequence VAE pass equals diffusers' cached chunk loop, and can be trained through."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKLWan

from world_r1.policies import wan_vae
from world_r1.policies.wan_vae_frames import GpuDecoder

VARIANTS = {
    "wan2.1": {
        "base_dim": 6,
        "z_dim": 4,
        "dim_mult": [1, 2, 2, 2],
        "num_res_blocks": 1,
        "temperal_downsample": [False, True, True],
        "latents_mean": [0.1, -0.2, 0.3, 0.0],
        "latents_std": [1.5, 2.0, 0.5, 1.0],
    },
    "wan2.2": {
        "base_dim": 4,
        "decoder_base_dim": 6,
        "z_dim": 4,
        "dim_mult": [1, 2, 2],
        "num_res_blocks": 1,
        "temperal_downsample": [True, True],
        "is_residual": True,
        "in_channels": 12,
        "out_channels": 12,
        "patch_size": 2,
        "latents_mean": [0.1, -0.2, 0.3, 0.0],
        "latents_std": [1.5, 2.0, 0.5, 1.0],
    },
    "wan2.2-deep": {
        "base_dim": 4,
        "decoder_base_dim": 8,
        "z_dim": 4,
        "dim_mult": [1, 2, 2, 2],
        "num_res_blocks": 2,
        "temperal_downsample": [False, True, True],
        "is_residual": True,
        "in_channels": 12,
        "out_channels": 12,
        "patch_size": 2,
        "scale_factor_spatial": 16,
        "latents_mean": [0.0] * 4,
        "latents_std": [1.0] * 4,
    },
}


def make(name: str, seed: int = 0) -> AutoencoderKLWan:
    torch.manual_seed(seed)
    vae = AutoencoderKLWan(**VARIANTS[name])
    with torch.no_grad():
        for parameter_name, parameter in vae.named_parameters():
            if parameter_name.endswith("gamma"):
                parameter.add_(0.2 * torch.randn_like(parameter))
    return vae.eval()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("frames", [1, 5, 17])
@pytest.mark.parametrize("name", VARIANTS)
def test_equals_the_stock_path(name: str, frames: int, channels_last: bool) -> None:
    vae = make(name)
    x = torch.rand(2, 3, frames, 48, 80, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        stock = vae.encode(x).latent_dist
        z = torch.randn(stock.mean.shape, generator=torch.Generator().manual_seed(2))
        stock_video = vae.decode(z).sample
        if channels_last:
            wan_vae.channels_last(vae)
        mean, logvar = wan_vae.encode(vae, x)
        video = wan_vae.decode(vae, z, clamp=True)
    differentiable = wan_vae.decode(vae, z, clamp=True)  # with gradients: the path of every device
    assert stock.mean.std() > 1e-3
    assert stock_video.std() > 1e-3
    torch.testing.assert_close(mean, stock.mean, atol=1e-5, rtol=0)
    torch.testing.assert_close(logvar.clamp(-30, 20), stock.logvar, atol=1e-5, rtol=0)
    torch.testing.assert_close(video, stock_video, atol=1e-5, rtol=0)
    torch.testing.assert_close(differentiable, stock_video, atol=1e-5, rtol=0)


@pytest.mark.parametrize("most", [2**31, 40_000, 1])
@pytest.mark.parametrize("frames", [1, 5])
@pytest.mark.parametrize("name", VARIANTS)
def test_the_gpu_decoder_in_parts_is_the_stock_path(name: str, frames: int, most: int) -> None:
    vae = make(name)
    z = torch.randn(1, 4, frames, 6, 10, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        hidden = GpuDecoder(most).decode(vae, z)
        video = wan_vae.unpatchify(hidden, vae.config.patch_size).clamp(-1, 1)
        torch.testing.assert_close(video, vae.decode(z).sample, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", VARIANTS)
def test_chunks_of_any_length_are_the_stock_path(name: str) -> None:
    vae = make(name)
    z = torch.randn(1, 4, 7, 6, 10, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        stock = vae.decode(z).sample
        for chunk in (1, 2, 4, 9):
            torch.testing.assert_close(wan_vae.decode_chunked(vae, z, chunk), stock, atol=1e-5, rtol=0)
        assert torch.equal(vae.decode(z).sample, stock), "the carried frames are cleared"


@pytest.mark.parametrize("name", ["wan2.1", "wan2.2"])
def test_gradients_equal_the_stock_path(name: str) -> None:
    x = torch.rand(1, 3, 9, 32, 48, generator=torch.Generator().manual_seed(3)) * 2 - 1
    grads = []
    for stock in (True, False):
        vae = make(name)
        if stock:
            z = vae.encode(x).latent_dist.mean
            video = vae.decode(z).sample
        else:
            z, _ = wan_vae.encode(vae, x)
            video = wan_vae.decode(vae, z, clamp=True)
        (video - x).square().mean().backward()
        grads.append({n: p.grad for n, p in vae.named_parameters()})
    assert all((g is None) == (grads[1][n] is None) for n, g in grads[0].items())
    for n, g in grads[0].items():
        if g is not None:
            torch.testing.assert_close(grads[1][n], g, atol=2e-6, rtol=1e-3)


def test_unclamped_decode_goes_beyond_one() -> None:
    vae = make("wan2.2")
    with torch.no_grad():
        vae.decoder.conv_out.bias.fill_(1.5)
        z = torch.zeros(1, 4, 2, 4, 4)
        assert wan_vae.decode(vae, z).max() > 1
        assert wan_vae.decode(vae, z, clamp=True).max() <= 1


def test_normalise_round_trip_and_statistics() -> None:
    vae = make("wan2.2")
    z = torch.randn(2, 4, 2, 3, 5)
    torch.testing.assert_close(wan_vae.denormalise(vae, wan_vae.normalise(vae, z)), z)
    torch.testing.assert_close(wan_vae.normalise(vae, z)[:, 1], (z[:, 1] + 0.2) / 2.0)


def test_channels_last_reaches_both_ranks_and_back() -> None:
    vae = make("wan2.2")
    before = {n: p.clone() for n, p in vae.named_parameters()}
    wan_vae.channels_last(vae)
    assert vae.decoder.up_blocks[0].upsampler.resample[1].weight.is_contiguous(memory_format=torch.channels_last)
    assert vae.decoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last_3d)
    wan_vae.channels_last(vae, on=False)
    assert all(p.is_contiguous() and torch.equal(p, before[n]) for n, p in vae.named_parameters())


@pytest.mark.parametrize("shape", [(1, 3, 6, 32, 32), (1, 3, 5, 33, 32), (1, 3, 5, 32, 36)])
def test_sizes_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="1 \\+ 4k frames"):
        wan_vae.encode(make("wan2.2"), torch.zeros(shape))


def test_bf16_autocast_trains() -> None:
    vae = wan_vae.channels_last(make("wan2.2").train())
    x = torch.rand(2, 3, 5, 32, 32) * 2 - 1
    with torch.autocast("cpu", torch.bfloat16):
        mean, logvar = wan_vae.encode(vae, x)
        video = wan_vae.decode(vae, mean + torch.randn_like(mean) * (0.5 * logvar).exp())
    (video.float() - x).abs().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for n, p in vae.named_parameters())
