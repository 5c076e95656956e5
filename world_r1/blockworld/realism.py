"""The realism judge: does the world of a clip move like a rendered one, or like one that a video model dreams?

A small 3D-convolutional network that was shown VAE round trips of real renders and the base model's own samples (`pretrain_realism`).
It answers for every patch of space and time, and a clip's logit is the mean of its patches: a clip in which one object melts loses by
how much of it is melting, not by everything. It is a *reward*: it shares no architecture with the critic and none with the evaluator, and
nothing held out looks through it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from world_r1.blockworld.judge_io import as_uint8, fit, load_weights, save_weights

#: Fewer frames say nothing of how things move.
LEAST_FRAMES = 5
#: Where the mean of the base model's samples lies on the scale of 0..1, and as far from 1 that of the round trips.
BASE = 0.35
GROUPS = 8


class _Block(nn.Module):
    """Pre-norm residual block of two convolutions over space and time; may halve time and space and widen."""

    def __init__(self, inside: int, outside: int, stride: int = 1) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(GROUPS, inside), nn.GroupNorm(GROUPS, outside)
        self.first = nn.Conv3d(inside, outside, 3, stride, 1)
        self.second = nn.Conv3d(outside, outside, 3, 1, 1)
        self.short = nn.Conv3d(inside, outside, 1, stride) if stride > 1 or inside != outside else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(F.silu(self.norm1(x)))
        return self.short(x) + self.second(F.silu(self.norm2(y)))


class _Flat(nn.Module):
    """Pre-norm residual block with a convolution over space and one over time: cheap where the picture is large."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(GROUPS, width), nn.GroupNorm(GROUPS, width)
        self.space = nn.Conv2d(width, width, 3, 1, 1)  # over frames side by side: on a CPU four times as fast as (1, 3, 3)
        self.time = nn.Conv3d(width, width, (3, 1, 1), 1, (1, 0, 0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        frames = F.silu(self.norm1(x)).transpose(1, 2)
        y = self.space(frames.flatten(0, 1)).unflatten(0, frames.shape[:2]).transpose(1, 2)
        return x + self.time(F.silu(self.norm2(y)))


def _with_changes(x: torch.Tensor) -> torch.Tensor:
    """Videos [B, 3, T, H, W] with the change to the next frame and the change of that change as channels: [B, 9, T, H, W].

    From frames alone the network does not find motion in thousands of clips; with these it does in hundreds. They are small, so they
    are weighted up.
    """
    first = x[:, :, 1:] - x[:, :, :-1]
    second = first[:, :, 1:] - first[:, :, :-1]
    return torch.cat([x, 4 * F.pad(first, (0, 0, 0, 0, 0, 1)), 4 * F.pad(second, (0, 0, 0, 0, 1, 1))], 1)


class Realism(nn.Module):
    """At most 1.5 M parameters. A patch sees all frames and about half the height.

    Example: `Realism.from_pretrained(folder).score(videos)`, float32 [B] in 0..1.
    """

    def __init__(
        self, widths: Sequence[int] = (48, 96), scale: Mapping[str, float] | None = None, notes: dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.widths, self.notes = tuple(widths), dict(notes or {})
        #: `centre` and `temperature` of the logits' scale, see `calibrate`.
        self.scale = {"centre": 0.0, "temperature": 1.0} | dict(scale or {})
        a, b = self.widths
        self.stem = nn.Conv3d(9, a, (3, 7, 7), (1, 4, 4), (1, 3, 3))
        self.trunk = nn.Sequential(_Flat(a), _Flat(a), _Block(a, b, 2), _Block(b, b))
        self.head = nn.Sequential(nn.GroupNorm(GROUPS, b), nn.SiLU(), nn.Conv3d(b, 1, 1))

    def patches(self, x: torch.Tensor) -> torch.Tensor:
        """Videos [B, 3, T, H, W] in -1..1, of any size -> float32 logits [B, t, h, w] of every patch; large is real."""
        return self.head(self.trunk(self.stem(_with_changes(x))))[:, 0].float()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Videos [B, 3, T, H, W] in -1..1 -> logits [B]: the mean of their patches."""
        return self.patches(x).mean((1, 2, 3))

    @torch.inference_mode()
    def logits(self, videos: np.ndarray | torch.Tensor, batch: int | None = None) -> torch.Tensor:
        """`forward` for uint8 videos [B, T, H, W, 3], in chunks; float32 on the CPU. Raises ValueError for a wrong shape, no video, or
        fewer than 5 frames."""
        clips = as_uint8(videos, 5, "videos [B, T, H, W, 3]")
        if len(clips) == 0 or clips.shape[1] < LEAST_FRAMES:
            raise ValueError(f"expected at least one video of at least {LEAST_FRAMES} frames, got {tuple(clips.shape)}")
        device = self.stem.weight.device
        batch = batch or (1 if device.type == "cpu" else 32)  # one video at a time stays in the cache of a CPU
        parts = [self(fit(clips[i : i + batch], device)) for i in range(0, len(clips), batch)]
        return torch.cat(parts).float().cpu()

    def score(self, videos: np.ndarray | torch.Tensor, batch: int | None = None) -> torch.Tensor:
        """The logits on a scale of 0..1, float32 [B]; see `calibrate`."""
        return self.scaled(self.logits(videos, batch))

    def scaled(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits -> 0..1."""
        return ((logits - self.scale["centre"]) / self.scale["temperature"]).sigmoid()

    def calibrate(self, real: torch.Tensor, base: torch.Tensor) -> None:
        """Set the scale from held-out logits: the mean of `base` (samples) scores `BASE`, that of `real` 1 - `BASE`, 0.5 is the middle.

        So samples spread over the steep part of the curve. A judge that was not trained to tell them apart keeps a temperature of at least
        0.1, and its scores stay near 0.5.
        """
        high, low = float(real.float().mean()), float(base.float().mean())
        steep = 2 * float(np.log((1 - BASE) / BASE))
        self.scale = {"centre": (high + low) / 2, "temperature": max(0.1, (high - low) / steep)}

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `realism.safetensors` (fp16) and `config.json` (widths, scale, notes)."""
        save_weights(self, Path(folder), "realism", {"widths": self.widths, "scale": self.scale, "notes": self.notes})

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: torch.device | str = "cpu") -> Realism:
        """Load in eval mode, fp32. Raises ValueError if the folder lacks a realism judge."""
        if not (Path(folder) / "realism.safetensors").is_file():
            raise ValueError(f"no realism judge in {folder}; train one with world_r1.blockworld.pretrain_realism")
        config, weights = load_weights(Path(folder), "realism")
        judge = cls(config["widths"], config["scale"], config["notes"])
        judge.load_state_dict(weights)
        return judge.to(device=device).eval().requires_grad_(False)
