"""Dense optical flow between keyframes and frames of one clip, checked forward against backward (OpenCV's DIS, no weights).

Long gaps start from the composition of shorter flows, frame by frame, so that a large displacement is always a small refinement of
a known one. Runs on one CPU thread per clip; OpenCV releases the GIL, so threads over clips scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np

#: Forward-backward tolerance: constant part in working pixels, and a share of the displacement.
TOLERANCE, TOLERANCE_SHARE = 0.7, 0.05
#: A grid point counts as textured when its gradient exceeds this many grey levels a pixel (of the stretched image).
TEXTURE = 3.0
#: Displacement in pixels below which order cannot be told from wobble.
JITTER = 0.5
#: The stretch of a clip's grey values is limited, or sensor noise of a blank clip would become texture.
MAX_GAIN = 6.0
#: OpenCV's settings of DIS flow by name; "medium" refines to half the resolution, the others to a quarter.
PRESETS = {
    "ultrafast": cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST,
    "fast": cv2.DISOPTICAL_FLOW_PRESET_FAST,
    "medium": cv2.DISOPTICAL_FLOW_PRESET_MEDIUM,
}


@dataclass(frozen=True)
class Tracks:
    """Flow from A keyframes to T used frames on a grid of h x w points, in working pixels (pixel centres at +0.5).

    Example: `Tracks(target=<3x9x19x32x2>, weight=<3x9x19x32>, used=<3x9>, ...)`
    """

    #: [A, T, h, w, 2] float32 displacement.
    target: np.ndarray
    #: [A, T, h, w] float32: 1 where forward and backward flow agree inside the frame, 0 elsewhere and for unused pairs.
    mask: np.ndarray
    #: [A, T] bool: pair measured and not skipped for its length.
    used: np.ndarray
    #: [A, T] float32: share of the points that stay in the frame on which the two flows agree; 1 on unused pairs.
    coverage: np.ndarray
    #: [A, h, w] float32 in 0..1: how well a point's texture fixes its flow.
    texture: np.ndarray
    #: Smallest coverage between neighbouring frames: a cut shows here.
    link: float
    #: |flow over two steps| / (sum of the two steps) over the clip: 1 for smooth motion, about 0.5 for shuffled frames.
    straightness: float
    #: How far the unused frames lie off the way between their used neighbours, in units of the way: the worst gap. 0 for smooth motion.
    detour: float
    #: Mean displacement between neighbouring used frames, pixels.
    step: float


def stretch(video: np.ndarray) -> np.ndarray:
    """[T, H, W, 3] uint8 -> [T, H, W] uint8 grey, one affine map for the whole clip (so flicker stays, contrast and gain do not)."""
    grey = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in video])
    low, high = np.percentile(grey[:, ::2, ::2], (1.0, 99.0))
    gain = min(MAX_GAIN, 230.0 / max(high - low, 1.0))
    return np.clip((grey.astype(np.float32) - (low + high) / 2) * gain + 128.0, 0, 255).astype(np.uint8)


def grid(height: int, width: int, stride: int) -> np.ndarray:
    """[h, w, 2] float32 pixel indices (x, y) of the sample points, centred in the frame."""
    x = np.arange((width - 1) % stride // 2, width, stride, dtype=np.float32)
    y = np.arange((height - 1) % stride // 2, height, stride, dtype=np.float32)
    return np.stack(np.meshgrid(x, y), -1)


class _Flows:
    """Directed flows between the frames of one clip, computed once each and started from shorter ones."""

    def __init__(self, grey: np.ndarray, keys: Sequence[int], upsample: int, preset: str) -> None:
        self.upsample = upsample
        self.images = [self.enlarge(g) for g in grey]
        self.keys = set(keys)
        self.dis = cv2.DISOpticalFlow.create(PRESETS[preset])
        height, width = self.images[0].shape
        x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
        self.at = np.stack([x, y], -1)
        self.known: dict[tuple[int, int], np.ndarray] = {}

    def enlarge(self, grey: np.ndarray) -> np.ndarray:
        """Upsampled as all images of this clip."""
        if self.upsample == 1:
            return grey
        return cv2.resize(grey, None, fx=self.upsample, fy=self.upsample, interpolation=cv2.INTER_CUBIC)

    def __call__(self, i: int, j: int) -> np.ndarray:
        """[H, W, 2] flow from frame i to frame j in pixels of the (upsampled) images."""
        if (i, j) not in self.known:
            start = None
            if abs(i - j) > 1:
                step = 1 if j > i else -1
                middle = j - step if i in self.keys else i + step
                first = self(i, middle)
                start = first + cv2.remap(self(middle, j), self.at + first, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
            self.known[i, j] = self.dis.calc(self.images[i], self.images[j], start)
        return self.known[i, j]


def track(
    grey: np.ndarray, between: np.ndarray, keys: Sequence[int], stride: int, upsample: int, max_flow: float, preset: str
) -> Tracks:
    """Flows from every keyframe to every frame of `grey` [T, H, W] uint8 on the grid of `stride` pixels.

    `between` [N, H, W] holds one frame from each gap between used frames (N = T - 1, or 0 if there are no gaps); they only enter the
    link, so that nothing can hide in frames that are not used.
    A pair farther apart than the keyframe spacing is skipped once its median displacement exceeds `max_flow` of the width: long
    baselines lose flow, and left in they would make the score prefer small camera moves.
    """
    count, height, width = grey.shape
    flows = _Flows(grey, keys, upsample, preset)
    points = grid(height, width, stride)
    shape = (len(keys), count, *points.shape[:2])
    target, mask = np.zeros((*shape, 2), np.float32), np.zeros(shape, np.float32)
    used, coverage = np.zeros(shape[:2], bool), np.ones(shape[:2], np.float32)
    reach = max([b - a for a, b in pairwise(keys)] + [keys[0], count - 1 - keys[-1], 1])
    for a, key in enumerate(keys):
        for targets in (range(key + 1, count), range(key - 1, -1, -1)):
            for t in targets:
                target[a, t], mask[a, t], coverage[a, t] = _checked(flows(key, t), flows(t, key), points, upsample)
                used[a, t] = abs(t - key) <= reach or np.median(np.linalg.norm(target[a, t], axis=-1)) <= max_flow * width
                if not used[a, t]:
                    mask[a, t], coverage[a, t] = 0, 1
                    break
    steps = [_checked(flows(i, i + 1), flows(i + 1, i), points, upsample) for i in range(count - 1)]
    moved = [float(np.linalg.norm(step[0], axis=-1).mean()) for step in steps]
    hidden = _hidden(flows, between, points, upsample)
    return Tracks(
        target, mask, used, coverage, _texture(grey, keys, stride),
        link=min([step[2] for step in steps] + [coverage for _, coverage in hidden]),
        straightness=_straightness(flows, moved, points, upsample),
        detour=_detour([step[0] for step in steps], [half for half, _ in hidden]),
        step=float(np.mean(moved)),
    )  # fmt: skip


def _hidden(flows: _Flows, between: np.ndarray, points: np.ndarray, upsample: int) -> list[tuple[np.ndarray, float]]:
    """Displacement [h, w, 2] and coverage between used frames and the unused frames after them."""
    found = []
    for i, grey in enumerate(between):
        image = flows.enlarge(grey)
        there, back = flows.dis.calc(flows.images[i], image, None), flows.dis.calc(image, flows.images[i], None)
        moved, _, coverage = _checked(there, back, points, upsample)
        found.append((moved, coverage))
    return found


def _detour(steps: list[np.ndarray], halves: list[np.ndarray]) -> float:
    """Largest mean distance of an unused frame from the middle of its gap, over the clip's mean half step (`JITTER` added)."""
    if not halves:
        return 0.0
    way = np.mean([np.linalg.norm(step, axis=-1).mean() for step in steps]) / 2 + JITTER
    return float(max(np.median(np.linalg.norm(half - step / 2, axis=-1)) for half, step in zip(halves, steps, strict=True)) / way)


def _checked(forward: np.ndarray, backward: np.ndarray, points: np.ndarray, upsample: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Displacement [h, w, 2] at the grid points, their mask [h, w], and the share of points in the frame that agree."""
    # pixel centres at +0.5: index x of the frame lies at index u x + (u - 1) / 2 of the image upsampled by u
    here = points * upsample + (upsample - 1) / 2
    moved = cv2.remap(forward, here, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    there = here + moved
    back = cv2.remap(backward, there, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    error = np.linalg.norm(moved + back, axis=-1) / upsample
    moved = moved / upsample
    limit = np.array([forward.shape[1] - 1, forward.shape[0] - 1], np.float32)
    inside = ((there >= 0) & (there <= limit)).all(-1)
    good = inside & (error < TOLERANCE + TOLERANCE_SHARE * np.linalg.norm(moved, axis=-1))
    # a pair that hardly overlaps is judged against a fifth of the frame, or three lucky points would be full coverage
    return moved, good.astype(np.float32), float(good.sum() / max(inside.sum(), 0.2 * inside.size))


def _texture(grey: np.ndarray, keys: Sequence[int], stride: int) -> np.ndarray:
    points = grid(grey.shape[1], grey.shape[2], stride).astype(int)
    maps = []
    for key in keys:
        smooth = cv2.GaussianBlur(grey[key].astype(np.float32), (0, 0), 1.0)
        x, y = (cv2.Sobel(smooth, cv2.CV_32F, *order, scale=0.125) for order in ((1, 0), (0, 1)))
        # not cv2.magnitude, whose last digit depends on where in memory its result lies: runs would not repeat
        slope = cv2.boxFilter(np.sqrt(x * x + y * y), -1, (7, 7))[points[..., 1], points[..., 0]]
        maps.append(slope / (slope + TEXTURE))
    return np.stack(maps).astype(np.float32)


def _straightness(flows: _Flows, moved: list[float], points: np.ndarray, upsample: int) -> float:
    """Displacement over two steps against the sum of its two steps, summed over the clip.

    One reversal (a command may ask for it) costs little. `JITTER` is added to both sides, so that the wobble of a clip that hardly moves
    is not taken for disorder.
    """
    here = points * upsample + (upsample - 1) / 2
    net = path = 1e-6
    for i in range(len(moved) - 1):
        over = cv2.remap(flows(i, i + 2), here, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE) / upsample
        net += min(float(np.linalg.norm(over, axis=-1).mean()), moved[i] + moved[i + 1]) + JITTER
        path += moved[i] + moved[i + 1] + JITTER
    return net / path
