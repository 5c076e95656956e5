"""RMS norm over channels and SiLU, written where a causal convolution over time reads them: `norm_silu_taps`."""

from __future__ import annotations

import torch

from world_r1_kernels.norm_silu.reference import norm_silu_taps as reference

__all__ = ["norm_silu_taps"]


def norm_silu_taps(x: torch.Tensor, gain: torch.Tensor, first: int, last: int, taps: int, fold: bool) -> torch.Tensor:
    """Normed and activated frames `first` to `last` with the `taps` - 1 frames before them; see `reference.norm_silu_taps`.

    On a GPU one Triton kernel reads and writes every number once; elsewhere, and where Triton is missing, the reference answers.
    """
    if x.device.type == "cuda":
        try:
            from world_r1_kernels.norm_silu.triton import norm_silu_taps as fast
        except ImportError:
            return reference(x, gain, first, last, taps, fold)
        return fast(x, gain, first, last, taps, fold)
    return reference(x, gain, first, last, taps, fold)
