"""Shot cuts, from pictures alone: no flow, no weights, eight milliseconds a clip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from world_r1.reward import Degenerate, Probe
from world_r1.types import Clip

#: Width of the pictures that are compared, pixels, and bins of hue, saturation and value.
WIDTH, BINS = 64, (12, 4, 6)


class Shots(Probe):
    """Gives "shots": `change` [T - 1] in 0..1, how much of the picture is new from frame to frame, and `usual`, its median.

    Change is the product of what the colour histograms and what the best-shifted thumbnails have not in common: a camera that moves changes
    the one little and the other not at all, light changes the first alone, a cut changes both. Fades and dissolves, which have no one
    moment, are the matter of `consistency`.
    """

    gives = ("shots",)

    def observe(self, clips: Sequence[Clip], evidence: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any] | Exception]:
        return [self._one(clip.video) for clip in clips]

    def _one(self, video: np.ndarray) -> Mapping[str, Any] | Exception:
        if len(video) < 3:
            return Degenerate(f"cuts need 3 frames, got {len(video)}")
        height = max(8, round(video.shape[1] * WIDTH / video.shape[2]))
        small = [cv2.resize(frame, (WIDTH, height), interpolation=cv2.INTER_AREA) for frame in video]
        colours = [_histogram(frame) for frame in small]
        greys = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32) for frame in small]
        change = np.array([_unlike(colours[i], colours[i + 1]) * _moved(greys[i], greys[i + 1]) for i in range(len(video) - 1)])
        return {"shots": {"change": np.sqrt(change).astype(np.float32), "usual": float(np.sqrt(np.median(change)))}}


def _histogram(frame: np.ndarray) -> np.ndarray:
    hsv = cv2.cvtColor(frame, cv2.COLOR_RGB2HSV)
    found = cv2.calcHist([hsv], [0, 1, 2], None, list(BINS), [0, 180, 0, 256, 0, 256]).ravel()
    return cv2.GaussianBlur((found / found.sum()).reshape(BINS[0], -1), (1, 3), 0).ravel()


def _unlike(a: np.ndarray, b: np.ndarray) -> float:
    """Share of the histograms that does not overlap."""
    return max(0.0, float(1 - np.minimum(a, b).sum()))


def _moved(a: np.ndarray, b: np.ndarray) -> float:
    """1 - correlation of the thumbnails after the best shift, clamped to 0..1."""
    (dx, dy), _ = cv2.phaseCorrelate(a, b)
    height, width = a.shape
    dx, dy = (float(np.clip(d, -width / 4, width / 4)) for d in (dx, dy))
    shifted = cv2.warpAffine(a, np.array([[1, 0, dx], [0, 1, dy]], np.float32), (width, height), borderMode=cv2.BORDER_REPLICATE)
    best = max(_correlation(shifted, b), _correlation(a, b))
    return float(np.clip(1 - best, 0, 1))


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return 1.0 if size < 1e-3 else float((a * b).sum() / size)
