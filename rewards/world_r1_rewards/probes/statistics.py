"""Simple statistics of the picture, for guards and reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from world_r1.reward import Probe
from world_r1.types import Clip


def statistics(video: np.ndarray) -> dict[str, float]:
    """Statistics of [T, H, W, 3] uint8, means over frames.

    contrast: standard deviation of luminance (0..1); sharpness: mean absolute Laplacian of luminance (0..1 a pixel); saturation: mean of
    (max - min) over channels (0..1); luminance: its mean (0..1); motion: mean absolute change between neighbouring frames (0..1).
    """
    # by pairs of channels: numpy takes ten times as long for the largest of three neighbours in memory
    red, green, blue = (np.ascontiguousarray(video[..., i]) for i in range(3))
    high, low = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    grey = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in video]).astype(np.float32) / 255
    return {
        "contrast": float(grey.std((1, 2)).mean()),
        "sharpness": float(np.mean([np.abs(cv2.Laplacian(g, cv2.CV_32F)).mean() for g in grey])),
        "saturation": float((high - low).mean() / 255),
        "luminance": float(grey.mean()),
        "motion": float(np.abs(np.diff(grey, axis=0)).mean()) if len(grey) > 1 else 0.0,
    }


class Statistics(Probe):
    """Gives "statistics", a mapping of contrast, sharpness, saturation, luminance and motion; a few milliseconds a clip."""

    gives = ("statistics",)

    def observe(self, clips: Sequence[Clip], evidence: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any] | Exception]:
        return [{"statistics": statistics(clip.video)} for clip in clips]
