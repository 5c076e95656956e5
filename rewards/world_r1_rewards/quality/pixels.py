"""Frames as the towers were trained to see them. PIL's antialiased bicubic throughout, as in the published pipelines."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

#: Mean and deviation of OpenAI's CLIP, which all models here use.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
FITS = ("crop", "pad", "squash")


@dataclass(frozen=True)
class FrameChoice:
    """Which frames of a clip a picture model scores: `count` of them, "spread" evenly with both ends, or the "first" ones."""

    count: int = 8
    take: str = "spread"

    def __post_init__(self) -> None:
        if self.count < 1 or self.take not in ("spread", "first"):
            raise ValueError(f"frames must be at least 1 and take spread or first, got frames={self.count}, take={self.take!r}")

    def of(self, video: np.ndarray) -> np.ndarray:
        """[n, H, W, 3] uint8 of [T, H, W, 3]; n is at most T."""
        count = min(self.count, len(video))
        return video[:count] if self.take == "first" else video[np.linspace(0, len(video) - 1, count).round().astype(int)]


def square(frames: np.ndarray, side: int, fit: str) -> torch.Tensor:
    """[n, 3, side, side] float32, normalised. "crop": shorter side to `side`, then the centre (CLIP, PickScore); "pad": longer side to
    `side`, black around it (HPSv2); "squash": both sides, whatever the aspect.
    """
    if fit not in FITS:
        raise ValueError(f"fit is one of {', '.join(FITS)}, got {fit!r}")
    return normalise(np.stack([_square(Image.fromarray(frame), side, fit) for frame in frames]))


def _square(image: Image.Image, side: int, fit: str) -> np.ndarray:
    width, height = image.size
    if fit == "squash":
        return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC))
    if fit == "crop":
        short = min(width, height)
        size = (side, int(side * height / short)) if width == short else (int(side * width / short), side)
        image = image.resize(size, Image.Resampling.BICUBIC)
        left, top = (size[0] - side) // 2, (size[1] - side) // 2
        return np.asarray(image)[top : top + side, left : left + side]
    scale = side / max(width, height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    canvas = np.zeros((side, side, 3), np.uint8)
    left, top = (side - size[0]) // 2, (side - size[1]) // 2
    canvas[top : top + size[1], left : left + size[0]] = np.asarray(image.resize(size, Image.Resampling.BICUBIC))
    return canvas


def resized(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """[n, height, width, 3] uint8."""
    return np.stack([np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC)) for frame in frames])


def normalise(frames: np.ndarray) -> torch.Tensor:
    """[n, H, W, 3] uint8 -> [n, 3, H, W] float32 with CLIP's mean and deviation taken out."""
    pixels = torch.from_numpy(np.ascontiguousarray(frames)).float().movedim(-1, 1) / 255
    return (pixels - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


def patches(frames: torch.Tensor, patch: int = 14, merge: int = 2, temporal: int = 2) -> tuple[torch.Tensor, tuple[int, int, int]]:
    """Qwen-VL's flat patches of one picture or clip: ([t * h * w, 3 * temporal * patch * patch], (t, h, w)).

    `frames` is [n, 3, H, W], normalised, sides multiples of patch * merge; a last frame is repeated to fill the last slice (so a
    picture counts as two equal frames). Patches of one merge x merge block are neighbours. ValueError for other sides.
    """
    if frames.shape[2] % (patch * merge) or frames.shape[3] % (patch * merge):
        raise ValueError(f"frames of {frames.shape[2]}x{frames.shape[3]} cannot be cut into blocks of {patch * merge} pixels")
    if missing := -len(frames) % temporal:
        frames = torch.cat([frames, frames[-1:].expand(missing, -1, -1, -1)])
    slices, rows, columns = len(frames) // temporal, frames.shape[2] // patch, frames.shape[3] // patch
    split = frames.reshape(slices, temporal, 3, rows // merge, merge, patch, columns // merge, merge, patch)
    flat = split.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(slices * rows * columns, 3 * temporal * patch * patch)
    return flat, (slices, rows, columns)
