"""Decoder of `AutoencoderKLWan` for sampling, frame by frame in memory: the numbers of `wan_vae.decode`, several times as fast.

Padding, norm, activation and upsampling cost more than the convolutions where each is a pass over the whole activation by itself.
Here activations are [T, H, W, C] (channels last, one video), norm and activation write straight into the padded input of the next
convolution, and pointwise convolutions are matrix products. `FrameDecoder` walks the module tree; the two below it say how a device
likes its convolutions. Not differentiable.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F

#: Largest convolution input on a GPU, in numbers: cuDNN's fast kernels count in 32 bits, and the memory stays bounded.
MOST = 2**31 - 1


class FrameDecoder(ABC):
    """The walk through `AutoencoderKLWan.decoder`; activations x are [T, H, W, C]."""

    def decode(self, vae: Any, z: torch.Tensor) -> torch.Tensor:
        """Decode latents [1, z, t, h, w] (not normalised) to the patchified video [1, C, T, H', W'], under `no_grad`."""
        decoder = vae.decoder
        x = _pointwise(vae.post_quant_conv, z[0].permute(1, 2, 3, 0).contiguous())
        x = self.conv(decoder.conv_in, x)
        x = self._middle(decoder.mid_block, x)
        for block in decoder.up_blocks:
            x = self._up(block, x)
        return self.activated_conv(decoder.norm_out, decoder.conv_out, x).permute(3, 0, 1, 2)[None]

    @abstractmethod
    def conv(self, conv: Any, x: torch.Tensor) -> torch.Tensor:
        """Causal convolution."""

    @abstractmethod
    def activated_conv(self, norm: Any, conv: Any, x: torch.Tensor, plus: torch.Tensor | None = None) -> torch.Tensor:
        """Causal convolution of SiLU of the RMS norm over channels, `plus` added."""

    @abstractmethod
    def doubled(self, layer: Any, x: torch.Tensor) -> torch.Tensor:
        """2x nearest upsampling of every frame, then a 3x3 convolution."""

    def _middle(self, block: Any, x: torch.Tensor) -> torch.Tensor:
        x = self._resnet(block.resnets[0], x)
        for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
            if attention is not None:
                x = attention(x.permute(3, 0, 1, 2)[None])[0].permute(1, 2, 3, 0).contiguous()
            x = self._resnet(resnet, x)
        return x

    def _up(self, block: Any, x: torch.Tensor) -> torch.Tensor:
        y = x
        for resnet in block.resnets:
            y = self._resnet(resnet, y)
        if not hasattr(block, "avg_shortcut"):
            return y if block.upsamplers is None else self._upsample(block.upsamplers[0], y)
        if block.upsampler is not None:
            y = self._upsample(block.upsampler, y)
        return y if block.avg_shortcut is None else _add_repeated(block.avg_shortcut, x, y)

    def _resnet(self, block: Any, x: torch.Tensor) -> torch.Tensor:
        h = x if isinstance(block.conv_shortcut, torch.nn.Identity) else _pointwise(block.conv_shortcut, x)
        return self.activated_conv(block.norm2, block.conv2, self.activated_conv(block.norm1, block.conv1, x), h)

    def _upsample(self, layer: Any, x: torch.Tensor) -> torch.Tensor:
        """Temporal doubling of all but the first frame, then upsampling in space."""
        if layer.mode == "upsample3d" and len(x) > 1:
            t, h, w, c = x.shape
            pairs = self.conv(layer.time_conv, x[1:]).view(t - 1, h, w, 2, c)
            x = torch.cat([x[:1], pairs.permute(0, 3, 1, 2, 4).reshape(2 * (t - 1), h, w, c)])
        return self.doubled(layer.resample[1], x)


class CpuDecoder(FrameDecoder):
    """Frame by frame, so that a frame stays in cache; upsampling and its convolution are one 2x2 convolution on the small image."""

    def conv(self, conv: Any, x: torch.Tensor) -> torch.Tensor:
        return self._convolved(conv, F.pad(x, (0, 0, 0, 0, 0, 0, conv._padding[4], 0)))

    def activated_conv(self, norm: Any, conv: Any, x: torch.Tensor, plus: torch.Tensor | None = None) -> torch.Tensor:
        past = conv._padding[4]
        y = x.new_empty((past + x.shape[0], *x.shape[1:]))
        y[:past] = 0
        gain = norm.gamma.flatten() * norm.scale
        for source, target in zip(x, y[past:], strict=True):
            length = torch.linalg.vector_norm(source, dim=-1, keepdim=True).clamp_min_(1e-12)
            torch.div(source, length, out=target)
            F.silu(target.mul_(gain), inplace=True)
        out = self._convolved(conv, y)
        return out if plus is None else out.add_(plus)

    def _convolved(self, conv: Any, x: torch.Tensor) -> torch.Tensor:
        """Convolution of [past + T, H, W, C], the past included; space is padded here."""
        padding = (0, conv._padding[2], conv._padding[0])
        x = x.permute(3, 0, 1, 2)[None]
        if (
            torch.backends.mkldnn.is_available()
        ):  # asked for by name: with one thread torch takes small inputs through im2col, at half the speed
            y = torch.mkldnn_convolution(x, conv.weight, conv.bias, padding, conv.stride, (1, 1, 1), 1)
        else:
            y = F.conv3d(x, conv.weight, conv.bias, conv.stride, padding)
        return y[0].permute(1, 2, 3, 0).contiguous()

    def doubled(self, layer: Any, x: torch.Tensor) -> torch.Tensor:
        """16 products instead of 36 per output."""
        t, h, w, c = x.shape
        kernel = _subpixel(
            _subpixel(layer.weight, 2), 4
        )  # [out, c, 2 (row parity), 2 (row tap), 2 (column parity), 2 (column tap)]
        kernel = kernel.permute(2, 4, 0, 1, 3, 5).reshape(-1, c, 2, 2).contiguous(memory_format=torch.channels_last)
        y = F.conv2d(x.permute(0, 3, 1, 2), kernel, layer.bias.repeat(4), padding=1).permute(0, 2, 3, 1)
        y = y.reshape(t, h + 1, w + 1, 2, 2, -1).permute(0, 1, 3, 2, 4, 5).reshape(t, 2 * h + 2, 2 * w + 2, -1)
        return y[:, 1:-1, 1:-1].contiguous()


class GpuDecoder(FrameDecoder):
    """Some frames at a time, so that no input of a convolution is larger than `most` numbers.

    A convolution over three frames and a plane is one over the plane alone, on the three frames' channels side by side: cuDNN has better
    kernels for it where channels are few or very many (H200, bf16, TFLOP/s, of three dimensions / of two on three times the channels:
    96 channels 289 / 508, 192 channels 641 / 550, 384 channels 562 / 772).
    """

    def __init__(self, most: int = MOST) -> None:
        self.most = most

    @staticmethod
    def bytes(largest: int, size: int) -> int:
        """Memory at most, for a largest activation of so many numbers of `size` bytes: three of them, and a part with its output."""
        return (3 * largest + 2 * min(MOST, 3 * largest)) * size

    def conv(self, conv: Any, x: torch.Tensor) -> torch.Tensor:
        taps = conv.kernel_size[0]
        padded = torch.cat([x.new_zeros(taps - 1, *x.shape[1:]), x])
        folded = torch.cat([padded[k : k + len(x)] for k in range(taps)], -1)
        return self._in_parts(len(x), folded[0].numel(), lambda a, b: _flat(conv, folded[a:b]), None)

    def activated_conv(self, norm: Any, conv: Any, x: torch.Tensor, plus: torch.Tensor | None = None) -> torch.Tensor:
        from world_r1_kernels.norm_silu import norm_silu_taps

        gain = norm.gamma.flatten() * norm.scale
        taps, channels = conv.kernel_size[0], x.shape[-1]
        fold = channels < 192 or channels >= 384
        past = 0 if fold else taps - 1

        def part(a: int, b: int) -> torch.Tensor:
            y = norm_silu_taps(x, gain, a, b, taps, fold)
            return _flat(conv, y) if fold else _deep(conv, y)

        return self._in_parts(len(x), x[0].numel() * (taps if fold else 1), part, plus, past)

    def doubled(self, layer: Any, x: torch.Tensor) -> torch.Tensor:
        t, h, w, c = x.shape

        def part(a: int, b: int) -> torch.Tensor:
            y = x[a:b, :, None, :, None].expand(b - a, h, 2, w, 2, c).reshape(b - a, 2 * h, 2 * w, c)
            return F.conv2d(y.permute(0, 3, 1, 2), layer.weight, layer.bias, padding=layer.padding).permute(0, 2, 3, 1)

        return self._in_parts(t, 4 * x[0].numel(), part, None)

    def _in_parts(self, frames: int, numbers: int, part: Any, plus: torch.Tensor | None, past: int = 0) -> torch.Tensor:
        """part(a, b) for ranges of frames that hold at most `most` numbers each (`numbers` a frame, `past` more of them); `plus` added."""
        step = max(1, self.most // numbers - past)
        out: torch.Tensor | None = None
        for a in range(0, frames, step):
            b = min(frames, a + step)
            y = part(a, b)
            if step >= frames:
                return (y if plus is None else y.add_(plus)).contiguous()
            if out is None:
                out = y.new_empty(frames, *y.shape[1:])
            if plus is None:
                out[a:b] = y
            else:
                torch.add(y, plus[a:b], out=out[a:b])
        assert out is not None
        return out


def _flat(conv: Any, x: torch.Tensor) -> torch.Tensor:
    """A causal convolution as one over planes, on taps side by side: x [T, H, W, taps C]. Few outputs are padded to eight for cuDNN."""
    outputs, channels, taps, *plane = conv.weight.shape
    weight = conv.weight.permute(0, 2, 1, 3, 4).reshape(outputs, taps * channels, *plane)
    bias, short = conv.bias, -outputs % 8
    if short:
        weight, bias = F.pad(weight, (0, 0, 0, 0, 0, 0, 0, short)), F.pad(bias, (0, short))
    if plane == [1, 1]:
        y = F.linear(x, weight.flatten(1), bias)
    else:
        weight = weight.contiguous(memory_format=torch.channels_last)
        y = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=(conv._padding[2], conv._padding[0])).permute(0, 2, 3, 1)
    return y[..., :outputs] if short else y


def _deep(conv: Any, x: torch.Tensor) -> torch.Tensor:
    """A causal convolution of [taps - 1 + T, H, W, C], the past included."""
    weight = conv.weight.contiguous(memory_format=torch.channels_last_3d)
    y = F.conv3d(x.permute(3, 0, 1, 2)[None], weight, conv.bias, padding=(0, conv._padding[2], conv._padding[0]))
    return y[0].permute(1, 2, 3, 0)


def _pointwise(conv: Any, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, conv.weight.flatten(1), conv.bias)


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
