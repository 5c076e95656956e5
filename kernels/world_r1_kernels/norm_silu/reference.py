"""The specification, in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

#: Lengths below this divide as this, as `torch.nn.functional.normalize` does.
LEAST = 1e-12


def norm_silu_taps(x: torch.Tensor, gain: torch.Tensor, first: int, last: int, taps: int, fold: bool) -> torch.Tensor:
    """y[t] = silu(gain * x[t] / |x[t]|), |.| over channels, for a causal convolution of `taps` frames that makes frames first..last - 1.

    x [T, H, W, C] contiguous, gain [C]. Returns the frames that the convolution reads: [last - first + taps - 1, H, W, C], the frame
    first - taps + 1 in front; or, with `fold`, for every made frame all of its taps side by side, [last - first, H, W, taps C], the
    latest last, so that a convolution over time becomes one over space. Frames before 0 are zeros. ValueError for a range outside x.
    """
    check(x, gain, first, last, taps)
    begin = max(0, first - taps + 1)
    part = x[begin:last].float()
    y = F.silu(part / part.norm(dim=-1, keepdim=True).clamp_min(LEAST) * gain.float()).to(x.dtype)
    missing = taps - 1 - (first - begin)
    y = torch.cat([y.new_zeros(missing, *y.shape[1:]), y])
    return torch.cat([y[k : k + last - first] for k in range(taps)], -1) if fold else y


def check(x: torch.Tensor, gain: torch.Tensor, first: int, last: int, taps: int) -> None:
    """ValueError for shapes and ranges that do not fit."""
    if x.ndim != 4 or not x.is_contiguous() or gain.shape != x.shape[-1:]:
        raise ValueError(
            f"norm_silu_taps needs contiguous x [T, H, W, C] and gain [C]; got {tuple(x.shape)} and {tuple(gain.shape)}"
        )
    if not 0 <= first < last <= len(x) or taps < 1:
        raise ValueError(f"norm_silu_taps: frames {first} to {last} with {taps} taps do not lie in a video of {len(x)} frames")
