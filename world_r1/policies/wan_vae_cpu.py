"""Decoder of `AutoencoderKLWan` for sampling on a CPU: the same numbers as `wan_vae.decode`, in about half the time on one core.

A CPU waits for memory where a GPU would not: padding, norm, activation and upsampling of a 20 MB activation cost as much as its
convolutions. Here activations are [T, H, W, C] (channels last, one video), norm and activation write straight into the padded input
of the next convolution frame by frame, so that a frame stays in cache, pointwise convolutions are matrix products, and nearest
upsampling followed by a 3x3 convolution is one 2x2 convolution on the small image (16 products instead of 36 per output).
Not differentiable.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F


def decode(vae: Any, z: torch.Tensor) -> torch.Tensor:
    """Decode latents [1, z, t, h, w] (float32, not normalised) to the patchified video [1, C, T, H', W'], under `no_grad`."""
    decoder = vae.decoder
    x = _pointwise(vae.post_quant_conv, z[0].permute(1, 2, 3, 0))
    x = _conv(decoder.conv_in, _padded(decoder.conv_in, x))
    x = _middle(decoder.mid_block, x)
    for block in decoder.up_blocks:
        x = _up(block, x)
    return _conv(decoder.conv_out, _activated(decoder.norm_out, decoder.conv_out, x)).permute(3, 0, 1, 2)[None]


def _middle(block: Any, x: torch.Tensor) -> torch.Tensor:
    x = _resnet(block.resnets[0], x)
    for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        if attention is not None:
            x = attention(x.permute(3, 0, 1, 2)[None])[0].permute(1, 2, 3, 0)
        x = _resnet(resnet, x)
    return x


def _up(block: Any, x: torch.Tensor) -> torch.Tensor:
    y = x
    for resnet in block.resnets:
        y = _resnet(resnet, y)
    if not hasattr(block, "avg_shortcut"):
        return y if block.upsamplers is None else _upsample(block.upsamplers[0], y)
    if block.upsampler is not None:
        y = _upsample(block.upsampler, y)
    return y if block.avg_shortcut is None else _add_repeated(block.avg_shortcut, x, y)


def _resnet(block: Any, x: torch.Tensor) -> torch.Tensor:
    h = x if isinstance(block.conv_shortcut, torch.nn.Identity) else _pointwise(block.conv_shortcut, x)
    y = _conv(block.conv1, _activated(block.norm1, block.conv1, x))
    y = _conv(block.conv2, _activated(block.norm2, block.conv2, y))
    return y.add_(h)


def _activated(norm: Any, conv: Any, x: torch.Tensor) -> torch.Tensor:
    """SiLU of the RMS norm over channels, behind the zero frames that the causal `conv` looks back on."""
    past = conv._padding[4]
    y = x.new_empty((past + x.shape[0], *x.shape[1:]))
    y[:past] = 0
    gain = norm.gamma.flatten() * norm.scale
    for source, target in zip(x, y[past:], strict=True):
        length = torch.linalg.vector_norm(source, dim=-1, keepdim=True).clamp_min_(1e-12)
        torch.div(source, length, out=target)
        F.silu(target.mul_(gain), inplace=True)
    return y


def _padded(conv: Any, x: torch.Tensor) -> torch.Tensor:
    return F.pad(x, (0, 0, 0, 0, 0, 0, conv._padding[4], 0))


def _conv(conv: Any, x: torch.Tensor) -> torch.Tensor:
    """Causal convolution of [past + T, H, W, C], the past included; space is padded here."""
    padding = (0, conv._padding[2], conv._padding[0])
    x = x.permute(3, 0, 1, 2)[None]
    if (
        torch.backends.mkldnn.is_available()
    ):  # asked for by name: with one thread torch takes small inputs through im2col, at half the speed
        y = torch.mkldnn_convolution(x, conv.weight, conv.bias, padding, conv.stride, (1, 1, 1), 1)
    else:
        y = F.conv3d(x, conv.weight, conv.bias, conv.stride, padding)
    return y[0].permute(1, 2, 3, 0).contiguous()


def _pointwise(conv: Any, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, conv.weight.flatten(1), conv.bias)


def _upsample(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """Temporal doubling of all but the first frame, then 2x nearest upsampling and a 3x3 convolution as one 2x2 convolution."""
    if layer.mode == "upsample3d" and len(x) > 1:
        t, h, w, c = x.shape
        pairs = _conv(layer.time_conv, _padded(layer.time_conv, x[1:])).view(t - 1, h, w, 2, c)
        x = torch.cat([x[:1], pairs.permute(0, 3, 1, 2, 4).reshape(2 * (t - 1), h, w, c)])
    conv = layer.resample[1]
    t, h, w, c = x.shape
    kernel = _subpixel(_subpixel(conv.weight, 2), 4)  # [out, c, 2 (row parity), 2 (row tap), 2 (column parity), 2 (column tap)]
    kernel = kernel.permute(2, 4, 0, 1, 3, 5).reshape(-1, c, 2, 2).contiguous(memory_format=torch.channels_last)
    y = F.conv2d(x.permute(0, 3, 1, 2), kernel, conv.bias.repeat(4), padding=1).permute(0, 2, 3, 1)
    y = y.reshape(t, h + 1, w + 1, 2, 2, -1).permute(0, 1, 3, 2, 4, 5).reshape(t, 2 * h + 2, 2 * w + 2, -1)
    return y[:, 1:-1, 1:-1].contiguous()


def _subpixel(weight: torch.Tensor, dim: int) -> torch.Tensor:
    """Three taps on the upsampled grid along `dim` -> (parity, two taps) on the small one, in place of `dim`.

    Between pixels i - 1 and i lie the upsampled pixels 2i - 1 (taps i-1, i-1, i) and 2i (taps i-1, i, i).
    """
    a, b, c = weight.unbind(dim)
    return torch.stack([torch.stack([a + b, c], dim), torch.stack([a, b + c], dim)], dim)


def _add_repeated(shortcut: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """y plus x repeated in space and time, without the frames before the first; in place."""
    if shortcut.repeats != shortcut.factor:  # channels change: the general duplication
        return y.add_(shortcut(x.permute(3, 0, 1, 2)[None], first_chunk=True)[0].permute(1, 2, 3, 0))
    (t, h, w, c), s, past = x.shape, shortcut.factor_s, shortcut.factor_t
    y[:1].view(1, h, s, w, s, c).add_(x[:1, :, None, :, None])
    if t > 1:
        y[1:].view(t - 1, past, h, s, w, s, c).add_(x[1:, None, :, None, :, None])
    return y
