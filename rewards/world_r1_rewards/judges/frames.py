"""Which frames a judge sees and at what size. Processors' own defaults shrink an 81-frame 480p clip to 64x128 pixels a frame."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np


@dataclass(frozen=True)
class Sampling:
    """How many frames, and how many pixels each.

    Frames are spread evenly with the first and the last among them. A frame larger than `pixels` is shrunk to it, one smaller than
    `min_pixels` enlarged to it, keeping its aspect as far as sides that are multiples of the model's patches allow.
    """

    frames: int = 8
    pixels: int = 200_704
    min_pixels: int = 65_536

    def __post_init__(self) -> None:
        if self.frames < 1 or not 0 < self.min_pixels <= self.pixels:
            raise ValueError(
                f"a judge sees at least one frame and 0 < min_pixels <= pixels; got frames={self.frames}, "
                f"min_pixels={self.min_pixels}, pixels={self.pixels}"
            )

    def sample(self, video: np.ndarray, fps: float) -> tuple[np.ndarray, tuple[float, ...]]:
        """[n, H, W, 3] uint8 frames of [T, H, W, 3] and their times in seconds; n is `frames`, or T if that is less."""
        count = len(video)
        chosen = np.unique(np.linspace(0, count - 1, min(self.frames, count)).round().astype(int))
        return video[chosen], tuple(float(i) / fps for i in chosen)

    def fit(self, frames: np.ndarray, multiple: int = 1) -> np.ndarray:
        """[n, H, W, 3] uint8 at the size of the budget, sides being multiples of `multiple` pixels."""
        height, width = self.size(frames.shape[1], frames.shape[2], multiple)
        return np.stack([resize(frame, height, width) for frame in frames])

    def size(self, height: int, width: int, multiple: int = 1) -> tuple[int, int]:
        """(height, width) that a frame of this size is shown at. Raises ValueError if the budget cannot hold it."""
        target = min(max(height * width, self.min_pixels), self.pixels)
        exact = [side * (target / (height * width)) ** 0.5 / multiple for side in (height, width)]
        found = [
            (rows * multiple, columns * multiple)
            for rows in {max(1, math.floor(exact[0])), math.ceil(exact[0])}
            for columns in {max(1, math.floor(exact[1])), math.ceil(exact[1])}
            if rows * columns * multiple**2 <= self.pixels
        ]
        if not found:
            raise ValueError(
                f"a judge's pixels={self.pixels} cannot hold a frame of {height}x{width} in patches of {multiple}; allow more"
            )

        def off(size: tuple[int, int]) -> float:
            return abs(math.log(size[0] * width / (size[1] * height))) + 0.25 * abs(math.log(size[0] * size[1] / target))

        return min(sorted(found), key=off)


def resize(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """One [H, W, 3] uint8 frame at another size: area averages when it shrinks, bicubic when it grows."""
    if frame.shape[:2] == (height, width):
        return frame
    shrinks = height * width < frame.shape[0] * frame.shape[1]
    return cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
