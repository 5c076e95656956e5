# mypy: allow-untyped-defs
"""One pass over the input: a program takes some pixels of one frame, norms them and writes them wherever a convolution reads them."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from world_r1_kernels.norm_silu.reference import LEAST, check

#: Numbers that a program holds at a time.
HELD = 8192


@triton.jit
def norm_silu_kernel(
    X, GAIN, Y, begin, first, last, pixels, least, C: tl.constexpr, WIDTH: tl.constexpr, PIXELS: tl.constexpr, TAPS: tl.constexpr,
    FOLD: tl.constexpr,
):  # fmt: skip
    """program_id(1) is the frame read, from `begin` = first - TAPS + 1; frames before 0 are written as zeros."""
    t = begin + tl.program_id(1)
    p = tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    c = tl.arange(0, WIDTH)
    inside = (p < pixels)[:, None] & (c < C)[None, :]
    x = tl.load(X + (t.to(tl.int64) * pixels + p)[:, None] * C + c[None, :], mask=inside & (t >= 0), other=0.0).to(tl.float32)
    length = tl.maximum(tl.sqrt(tl.sum(x * x, 1)), least)
    y = x / length[:, None] * tl.load(GAIN + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
    y = (y / (1.0 + tl.exp(-y))).to(Y.dtype.element_ty)
    if FOLD:
        for k in tl.static_range(TAPS):  # frame t is tap k of the frame made TAPS - 1 - k later
            made = t + TAPS - 1 - k
            at = ((made - first).to(tl.int64) * pixels + p)[:, None] * (TAPS * C) + k * C + c[None, :]
            tl.store(Y + at, y, mask=inside & (made >= first) & (made < last))
    else:
        tl.store(Y + ((t - begin).to(tl.int64) * pixels + p)[:, None] * C + c[None, :], y, mask=inside)


def norm_silu_taps(x: torch.Tensor, gain: torch.Tensor, first: int, last: int, taps: int, fold: bool) -> torch.Tensor:
    """See `reference.norm_silu_taps`."""
    check(x, gain, first, last, taps)
    _, height, width, channels = x.shape
    made, read = last - first, last - first + taps - 1
    shape = (made, height, width, taps * channels) if fold else (read, height, width, channels)
    y = torch.empty(shape, dtype=x.dtype, device=x.device)
    held = triton.next_power_of_2(channels)
    pixels = max(1, HELD // held)
    norm_silu_kernel[(triton.cdiv(height * width, pixels), read)](
        x, gain, y, first - taps + 1, first, last, height * width, LEAST,
        C=channels, WIDTH=held, PIXELS=pixels, TAPS=taps, FOLD=fold, num_warps=8,
    )  # fmt: skip
    return y
