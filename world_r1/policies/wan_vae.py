"""Exact full-sequence pass of diffusers' `AutoencoderKLWan`: the numbers of the cached chunk loop in one sweep over time.

The stock `encode`/`decode` walk a video in chunks of four frames (one latent frame) and carry two past frames per convolution. That
bounds memory for long videos and makes short ones slow: a 17-frame video runs every layer five times, and autograd runs through
concatenated caches. Causal convolutions give the same result on the whole sequence if the first frame is kept apart where the
stock path does so: temporal resampling skips it, and so does the duplicating shortcut. The functions here walk the module tree; the
classes stay as they are, so weights, checkpoints and the stock path keep working.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from world_r1.policies.wan_vae_frames import CpuDecoder, GpuDecoder

#: Largest activation in bytes up to which videos are decoded together, and whole. Above it one by one: on a GPU by frames in memory, or
#: in chunks where memory is short.
LARGE = 2**30


def encode(vae: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode videos [B, 3, T, H, W] in -1..1 to (mean, log-variance), each [B, z, t, h, w], not normalised.

    Differentiable. ValueError for a T that is not 1 + 4k or an H or W that the spatial factor does not divide.
    """
    config: Any = vae.config
    frames, height, width = x.shape[2:]
    space = int(config.scale_factor_spatial)
    if (frames - 1) % 4 or height % space or width % space:
        fit = f"{1 + (frames - 1) // 4 * 4} frames of {height // space * space}x{width // space * space}"
        raise ValueError(
            f"the Wan VAE needs 1 + 4k frames and sides divisible by {space}; got {frames} frames of {height}x{width}; "
            f"crop or pad the video, for example to {fit}"
        )
    hidden = _encoder(vae.encoder, patchify(x, config.patch_size))
    mean, logvar = _conv(vae.quant_conv, hidden).chunk(2, dim=1)
    return mean, logvar


def decode(vae: nn.Module, z: torch.Tensor, clamp: bool = False) -> torch.Tensor:
    """Decode latents [B, z, t, h, w] (not normalised) to videos [B, 3, 1 + 4 (t - 1), H, W].

    Differentiable; without gradients a CPU, and for large videos a GPU, decodes one video at a time by `wan_vae_frames`. `clamp` cuts
    the result to -1..1 as the stock path does; leave it off in training, where it kills gradients.
    """
    config: Any = vae.config
    plain = not (torch.is_grad_enabled() or torch.is_autocast_enabled(z.device.type))
    if plain and z.device.type == "cpu" and z.dtype == torch.float32:
        hidden = torch.cat([CpuDecoder().decode(vae, one) for one in z.split(1)])
    elif plain and z.device.type == "cuda" and decode_bytes(vae, z[:1]) > LARGE:
        hidden = torch.cat([GpuDecoder().decode(vae, one) for one in z.split(1)])
    else:
        hidden = _decoder(vae.decoder, _conv(vae.post_quant_conv, z))
    video = unpatchify(hidden, config.patch_size)
    return video.clamp(-1.0, 1.0) if clamp else video


def decode_chunked(vae: Any, z: torch.Tensor, chunk: int = 1) -> torch.Tensor:
    """`decode` with the stock decoder and its carried frames: the first latent frame, then `chunk` at a time; clamped, not differentiable.

    A chunk of 1 is the stock path. Longer ones give the same video in fewer, larger operations, and take that many times the memory.
    """
    vae.clear_cache()
    hidden = vae.post_quant_conv(z)
    starts = [0, *range(1, hidden.shape[2], chunk)]
    pieces = []
    for start, end in zip(starts, [*starts[1:], hidden.shape[2]], strict=True):
        vae._conv_idx = [0]
        first = {"first_chunk": True} if start == 0 else {}
        pieces.append(vae.decoder(hidden[:, :, start:end], feat_cache=vae._feat_map, feat_idx=vae._conv_idx, **first))
    vae.clear_cache()
    return unpatchify(torch.cat(pieces, dim=2), vae.config.patch_size).clamp(-1.0, 1.0)


def decode_bytes(vae: nn.Module, z: torch.Tensor) -> int:
    """Size in bytes of the largest float32 activation that `decode` of `z` makes; a few of them live at a time."""
    config: Any = vae.config
    batch, _, frames, height, width = z.shape
    side = int(config.scale_factor_spatial) // int(config.patch_size or 1)
    channels = int(config.decoder_base_dim or config.base_dim) * int(config.dim_mult[1 if config.is_residual else 0])
    return 4 * batch * channels * (1 + 4 * (frames - 1)) * height * width * side * side


def normalise(vae: nn.Module, z: torch.Tensor) -> torch.Tensor:
    """Raw latents [B, z, t, h, w] to the zero-mean unit-variance latents that the transformer models."""
    mean, std = _statistics(vae, z)
    return (z - mean) / std


def denormalise(vae: nn.Module, z: torch.Tensor) -> torch.Tensor:
    """Inverse of `normalise`."""
    mean, std = _statistics(vae, z)
    return z * std + mean


def channels_last(module: nn.Module, on: bool = True) -> nn.Module:
    """Put convolution weights into channels-last layout (2-D and 3-D each in their own), or back; returns the module.

    `Module.to(memory_format=...)` knows one rank only and refuses a module that holds both. Call with `on=False` before saving.
    """
    layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim in layouts:
                layout = layouts[parameter.ndim] if on else torch.contiguous_format
                parameter.data = parameter.data.contiguous(memory_format=layout)
    return module


def patchify(x: torch.Tensor, size: int | None) -> torch.Tensor:
    """Fold `size` x `size` pixels into channels: [B, C, T, H, W] -> [B, C size^2, T, H/size, W/size]."""
    if not size or size == 1:
        return x
    b, c, t, h, w = x.shape
    x = x.reshape(b, c, t, h // size, size, w // size, size)
    return x.permute(0, 1, 6, 4, 2, 3, 5).reshape(b, c * size * size, t, h // size, w // size)


def unpatchify(x: torch.Tensor, size: int | None) -> torch.Tensor:
    """Inverse of `patchify`."""
    if not size or size == 1:
        return x
    b, c, t, h, w = x.shape
    x = x.reshape(b, c // (size * size), size, size, t, h, w)
    return x.permute(0, 1, 4, 5, 3, 6, 2).reshape(b, c // (size * size), t, h * size, w * size)


def _statistics(vae: nn.Module, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    config: Any = vae.config
    mean, std = (
        torch.tensor(v, dtype=torch.float32, device=z.device).view(1, -1, 1, 1, 1)
        for v in (config.latents_mean, config.latents_std)
    )
    return mean.to(z.dtype), std.to(z.dtype)


def _encoder(encoder: Any, x: torch.Tensor) -> torch.Tensor:
    x = _conv(encoder.conv_in, x)
    for block in encoder.down_blocks:
        x = _down(block, x)
    x = _middle(encoder.mid_block, x)
    return _conv(encoder.conv_out, encoder.nonlinearity(encoder.norm_out(x)))


def _decoder(decoder: Any, x: torch.Tensor) -> torch.Tensor:
    x = _conv(decoder.conv_in, x)
    x = _middle(decoder.mid_block, x)
    for block in decoder.up_blocks:
        x = _up(block, x)
    return _conv(decoder.conv_out, decoder.nonlinearity(decoder.norm_out(x)))


def _down(block: Any, x: torch.Tensor) -> torch.Tensor:
    """A residual down block (Wan2.2), or one of the flat layers of the Wan2.1 encoder."""
    if hasattr(block, "avg_shortcut"):
        y = x
        for resnet in block.resnets:
            y = _resnet(resnet, y)
        if block.downsampler is not None:
            y = _resample(block.downsampler, y)
        return y + block.avg_shortcut(x.contiguous())  # the shortcut views its input, so the layout must be the plain one
    if hasattr(block, "conv1"):
        return _resnet(block, x)
    return _resample(block, x)


def _up(block: Any, x: torch.Tensor) -> torch.Tensor:
    """An up block; the residual one (Wan2.2) adds its input, repeated in space and time, without the frames before the first."""
    y = x
    for resnet in block.resnets:
        y = _resnet(resnet, y)
    if hasattr(block, "avg_shortcut"):
        if block.upsampler is not None:
            y = _resample(block.upsampler, y)
        return y if block.avg_shortcut is None else y + block.avg_shortcut(x, first_chunk=True)
    return y if block.upsamplers is None else _resample(block.upsamplers[0], y)


def _middle(block: Any, x: torch.Tensor) -> torch.Tensor:
    x = _resnet(block.resnets[0], x)
    for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        x = _resnet(resnet, attention(x) if attention is not None else x)
    return x


def _resnet(block: Any, x: torch.Tensor) -> torch.Tensor:
    h = block.conv_shortcut(x)
    x = _conv(block.conv1, block.nonlinearity(block.norm1(x)))
    x = _conv(block.conv2, block.dropout(block.nonlinearity(block.norm2(x))))
    return x + h


def _conv(conv: Any, x: torch.Tensor) -> torch.Tensor:
    return conv(x)


def _resample(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """Spatial resampling of every frame; the temporal convolution leaves the first frame alone (`stock` chunk of one frame)."""
    if layer.mode == "upsample3d" and x.shape[2] > 1:
        b, c, t, h, w = x.shape
        pairs = _conv(layer.time_conv, x[:, :, 1:]).reshape(b, 2, c, t - 1, h, w)
        later = pairs.permute(0, 2, 3, 1, 4, 5).reshape(b, c, 2 * (t - 1), h, w)
        x = torch.cat([x[:, :, :1], later], dim=2)
    x = _per_frame(layer.resample, x)
    if layer.mode == "downsample3d" and x.shape[2] > 1:
        x = torch.cat([x[:, :, :1], _conv(layer.time_conv, x)], dim=2)
    return x


def _per_frame(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    b, c, t, h, w = x.shape
    y = layer(x.permute(0, 2, 1, 3, 4).reshape(b * t, c, h, w))
    return y.reshape(b, t, *y.shape[1:]).permute(0, 2, 1, 3, 4)
