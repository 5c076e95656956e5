"""Plane-sweep consistency of a clip with its commanded camera, under a census cost. Evaluation only: no reward uses this code.

If a clip shows one rigid world from the commanded path, every patch of a reference frame has a depth at which the commanded
relative poses predict where it appears in the other frames. The sweep (Collins, "A space-sweep approach to true multi-image
matching", 1996) tries all depths; the census transform (Zabih and Woodfill, 1994) compares only the *order* of intensities, so that
contrast, gain and gamma buy nothing. What is left at the best depth, relative to what is left without any camera motion, is the
score.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from world_r1.types import Trajectory

#: Multipliers of the commanded motion that are tried: obedience in direction is judged, exact amplitude is not.
AMPLITUDES = (0.55, 0.7, 0.85, 1.0, 1.15, 1.3)
DEPTHS = 24
#: Census errors are shares of 24 comparisons; this much is rounding and resampling noise and counts neither way.
FLOOR = 0.02
#: Width in pixels of the frames that are swept: twice the resolution of a 160-pixel clip, so that a nearest neighbour is sub-pixel.
SWEEP_WIDTH = 320
_STRIDE = 4
_STEP = 2


@dataclass(frozen=True)
class Sweep:
    """Result of `plane_sweep`.

    Example: `Sweep(score=0.41, amplitude=1.0, reference=8, depth=<24x40 float32>, pixels=<24x40x2>)`
    """

    #: 1 - E_3D / E_static, clipped to [0, 1]; 0 means that the commanded camera explains the clip no better than a still one.
    score: float
    #: The multiplier of the commanded motion that fits best.
    amplitude: float
    #: Index of the reference frame that `depth` belongs to.
    reference: int
    #: [h, w] float32 z-depth in the trajectory's unit at `pixels`; inf where the farthest plane won.
    depth: np.ndarray
    #: [h, w, 2] float32 (x, y) in pixels of `trajectory.size`.
    pixels: np.ndarray
    #: [h, w] float32 matching error in 0..1 at the chosen depth.
    error: np.ndarray


def moves(trajectory: Trajectory) -> bool:
    """Whether the trajectory commands any camera motion (more than 0.1 degree or 0.1 % of the depth)."""
    rotation = np.arccos(np.clip((np.trace(trajectory.c2w[:, :3, :3], axis1=1, axis2=2) - 1) / 2, -1, 1)).max()
    return bool(rotation > np.radians(0.1) or turns_only(trajectory) is False)


def turns_only(trajectory: Trajectory) -> bool:
    """Whether the path has no translation to speak of (below 0.1 % of the depth)."""
    return float(np.linalg.norm(trajectory.c2w[:, :3, 3], axis=1).max()) <= 1e-3 * trajectory.depth


def scaled_path(c2w: np.ndarray, amplitude: float) -> np.ndarray:
    """[T, 4, 4] path whose increments are `amplitude` times those of `c2w` in se(3); orbits stay orbits, sequences stay
    sequences."""
    increments = np.linalg.inv(c2w[:-1].astype(np.float64)) @ c2w[1:].astype(np.float64)
    path = [c2w[0].astype(np.float64)]
    for increment in increments:
        path.append(path[-1] @ _exp(amplitude * _log(increment)))
    return np.stack(path)


def plane_sweep(
    gray: np.ndarray, trajectory: Trajectory, *, amplitudes: tuple[float, ...] = AMPLITUDES, depths: int = DEPTHS
) -> Sweep:
    """Sweep planes through a clip under the commanded camera.

    `gray` is [T, H, W] float32 or uint8 in 0..255. Raises ValueError when the trajectory commands no motion, when its length
    differs from the clip's, or when no reference frame has texture: then there is nothing to measure, and no number says so
    honestly.
    """
    if len(gray) != len(trajectory.c2w):
        raise ValueError(f"the clip has {len(gray)} frames and the trajectory {len(trajectory.c2w)} poses")
    if not moves(trajectory):
        raise ValueError("the command moves no camera, so a plane sweep has nothing to measure")
    frames = _Frames(gray, trajectory)
    turning = turns_only(trajectory)
    inverse = np.zeros(1) if turning else np.concatenate([[0.0], np.geomspace(1 / 5, 3.0, depths - 1)]) / trajectory.depth
    translating = float(np.abs(trajectory.c2w[:, :3, :3] - np.eye(3)).max()) < 1e-3
    tried = (1.0,) if translating else amplitudes  # amplitude and depth are the same thing for a pure translation
    best: tuple[float, float, list[_Match]] | None = None
    for amplitude in tried:
        path = scaled_path(trajectory.c2w, amplitude)
        matches = [frames.match(reference, sources, path, inverse) for reference, sources in views(len(gray))]
        score = 1 - (sum(m.moved for m in matches) + FLOOR * len(matches)) / (sum(m.still for m in matches) + FLOOR * len(matches))
        if best is None or score > best[0]:
            best = score, amplitude, matches
    assert best is not None
    score, amplitude, matches = best
    middle = matches[len(matches) // 2]
    with np.errstate(divide="ignore"):
        depth = (1 / inverse[middle.choice]).astype(np.float32)
    return Sweep(float(np.clip(score, 0, 1)), amplitude, middle.reference, depth, frames.pixels, middle.error)


def views(length: int) -> list[tuple[int, tuple[int, ...]]]:
    """(reference frame, source frames) of a clip: references at 1/4, 1/2 and 3/4, sources up to 3/8 of the clip away on either
    side."""
    last = length - 1
    offsets = sorted({round(last * share) for share in (-0.375, -0.1875, 0.1875, 0.375)} - {0})
    pairs = []
    for reference in sorted({round(last * share) for share in (0.25, 0.5, 0.75)}):
        sources = tuple(sorted({min(max(reference + offset, 0), last) for offset in offsets} - {reference}))
        pairs.append((reference, sources))
    if not all(sources for _, sources in pairs):
        raise ValueError(f"a clip of {length} frames is too short for a plane sweep; at least 4 are needed")
    return pairs


@dataclass(frozen=True)
class _Match:
    reference: int
    moved: float
    still: float
    choice: np.ndarray
    error: np.ndarray


class _Frames:
    """Census codes of all frames and the reference grid, shared by all references and amplitudes."""

    def __init__(self, gray: np.ndarray, trajectory: Trajectory) -> None:
        height, width = gray.shape[1:]
        scale = SWEEP_WIDTH / width
        self.size = (round(height * scale), SWEEP_WIDTH)
        wide = [
            cv2.resize(frame.astype(np.float32), self.size[::-1], interpolation=cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA)
            for frame in gray
        ]
        self.smooth = [cv2.GaussianBlur(frame, (0, 0), 1.2) for frame in wide]
        self.codes = [census(frame).ravel() for frame in self.smooth]
        ys, xs = np.mgrid[_STRIDE : self.size[0] - _STRIDE : _STRIDE, _STRIDE : self.size[1] - _STRIDE : _STRIDE]
        self.shape = ys.shape
        self.flat = (ys * self.size[1] + xs).ravel()
        own_height, own_width = trajectory.size
        # pixel centres: index i of the wide frame is at (i + 0.5) / scale in the continuous coordinates K is written for
        u = (xs.ravel() + 0.5) * own_width / self.size[1]
        v = (ys.ravel() + 0.5) * own_height / self.size[0]
        self.pixels = np.stack([u, v], -1).reshape(*self.shape, 2).astype(np.float32)
        self.K = trajectory.K.astype(np.float64).copy()
        self.rays = np.linalg.inv(self.K) @ np.stack([u, v, np.ones_like(u)])
        self.zoom = np.ones(len(gray)) if trajectory.zoom is None else trajectory.zoom.astype(np.float64)
        self.to_wide = np.diag([self.size[1] / own_width, self.size[0] / own_height, 1.0])

    def match(self, reference: int, sources: tuple[int, ...], path: np.ndarray, inverse: np.ndarray) -> _Match:
        """Best plane per grid point of one reference frame, and the texture-weighted mean errors with and without camera motion."""
        weight = self._texture(reference)
        code = self.codes[reference][self.flat]
        still = np.stack([_hamming(code, self.codes[source][self.flat]) for source in sources])
        costs = np.zeros((len(inverse), len(self.flat)), np.float32)
        seen = np.zeros_like(costs)
        for source in sources:
            relative = np.linalg.inv(path[source]) @ path[reference]
            error, inside = self._warped(code, source, relative, inverse, reference)
            costs += error * inside
            seen += inside
        enough = seen >= max(1, len(sources) / 2)
        costs = np.where(enough, costs / np.maximum(seen, 1), still.mean(0))  # a plane that leaves the picture explains nothing
        pooled = cv2.blur(costs.T.reshape(*self.shape, len(inverse)), (3, 3)).reshape(*self.shape, len(inverse))
        choice = pooled.argmin(-1)
        error = np.take_along_axis(pooled, choice[..., None], -1)[..., 0]
        return _Match(
            reference, float((weight * error).sum()), float((weight * still.mean(0).reshape(self.shape)).sum()), choice, error
        )

    def _warped(
        self, code: np.ndarray, source: int, relative: np.ndarray, inverse: np.ndarray, reference: int
    ) -> tuple[np.ndarray, np.ndarray]:
        K = self.K @ np.diag([self.zoom[source], self.zoom[source], 1.0])
        rays = self.rays / np.array([self.zoom[reference], self.zoom[reference], 1.0])[:, None]
        project = (self.to_wide @ K @ relative[:3, :3] @ rays).astype(np.float32)
        shift = (self.to_wide @ K @ relative[:3, 3]).astype(np.float32)
        x, y, z = (project[i] + inverse.astype(np.float32)[:, None] * shift[i] for i in range(3))
        z = np.maximum(z, 1e-3)
        column, row = (x / z).astype(np.int32), (y / z).astype(np.int32)  # truncation is right: continuous x lies in pixel floor(x)
        inside = (x > 0) & (y > 0) & (column < self.size[1]) & (row < self.size[0])
        index = np.where(inside, row * self.size[1] + column, 0)
        return _hamming(code, self.codes[source][index]), inside

    def _texture(self, reference: int) -> np.ndarray:
        """[h, w] weights summing to 1; relative to the frame itself, so that contrast does not matter."""
        image = self.smooth[reference]
        x, y = (cv2.Sobel(image, cv2.CV_32F, *order) for order in ((1, 0), (0, 1)))
        gradient = np.sqrt(x * x + y * y)  # not cv2.magnitude, whose last digit depends on where in memory its result lies
        gradient = cv2.blur(gradient, (5, 5)).ravel()[self.flat].reshape(self.shape)
        mean = float(gradient.mean())
        if mean < 1e-3:
            raise ValueError(f"frame {reference} has no texture to match")
        weight = gradient / (gradient + mean)
        return weight / weight.sum()


def census(image: np.ndarray) -> np.ndarray:
    """[H, W] uint32 census code: 24 comparisons of a pixel with a 5x5 neighbourhood two pixels apart (edge pixels repeat)."""
    reach = 2 * _STEP
    padded = cv2.copyMakeBorder(image, reach, reach, reach, reach, cv2.BORDER_REPLICATE)
    height, width = image.shape
    code = np.zeros(image.shape, np.uint32)
    for dy in range(-reach, reach + 1, _STEP):
        for dx in range(-reach, reach + 1, _STEP):
            if dx or dy:
                neighbour = padded[reach + dy : reach + dy + height, reach + dx : reach + dx + width]
                code = (code << np.uint32(1)) | (neighbour > image)
    return code


def _hamming(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.bitwise_count(a ^ b).astype(np.float32) / 24


def _log(transform: np.ndarray) -> np.ndarray:
    """[6] twist (rotation, translation) of a rigid 4x4 transform."""
    rotation = cv2.Rodrigues(transform[:3, :3])[0].ravel()
    return np.concatenate([rotation, np.linalg.solve(_left_jacobian(rotation), transform[:3, 3])])


def _exp(twist: np.ndarray) -> np.ndarray:
    """Rigid 4x4 transform of a twist; inverse of `_log`."""
    transform = np.eye(4)
    transform[:3, :3] = cv2.Rodrigues(twist[:3].reshape(3, 1))[0]
    transform[:3, 3] = _left_jacobian(twist[:3]) @ twist[3:]
    return transform


def _left_jacobian(rotation: np.ndarray) -> np.ndarray:
    angle = float(np.linalg.norm(rotation))
    x, y, z = rotation
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    if angle < 1e-6:
        return np.eye(3) + cross / 2
    return np.eye(3) + (1 - np.cos(angle)) / angle**2 * cross + (angle - np.sin(angle)) / angle**3 * cross @ cross
