"""Held-out geometry: what a clip is measured with before and after training, and what no reward may use.

Training rewards see dense DIS flow and bundle adjustment. Here are a plane sweep with a census cost (`plane_sweep`), epipolar
residuals and forward-backward errors of pyramidal Lucas-Kanade tracks (Bouguet, 2001), and the agreement of those tracks with the
commanded camera. numpy and OpenCV only, no learned weights. A quantity that cannot be measured is missing and has a reason; it is
never a number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, NamedTuple

import cv2
import numpy as np

from world_r1 import plane_sweep as sweeping
from world_r1.types import Trajectory


class Metric(NamedTuple):
    """What a reader must know of a metric. Example: `Metric("lower", "3d", "distance ... px")`"""

    better: Literal["higher", "lower"]
    #: "3d" metrics are the exam; "guard" metrics must not fall; "reference" metrics are shown and decide nothing.
    role: Literal["3d", "guard", "reference"]
    about: str


METRICS: Mapping[str, Metric] = {
    "plane_sweep": Metric(
        "higher", "3d", "share of the change between frames that one rigid world under the commanded camera explains"
    ),
    "sampson": Metric(
        "lower",
        "3d",
        "distance of point tracks from the best epipolar geometry or homography, px, at most 1 px a track; a lost track counts as 1 px",
    ),
    "inliers": Metric("higher", "3d", "share of point tracks within 0.5 px of that geometry; lost tracks count as outliers"),
    "forward_backward": Metric("lower", "3d", "distance between a point and itself tracked forth and back, px"),
    "sampson_kept": Metric(
        "lower", "reference", "the same over the tracks that survive alone, which a clip that loses tracks flatters"
    ),
    "camera": Metric("higher", "guard", "agreement of the observed motion with the commanded camera, -1 to 1"),
    "motion": Metric("higher", "guard", "median displacement per frame, px"),
    "sharpness": Metric("higher", "guard", "standard deviation of the Laplacian"),
    "contrast": Metric("higher", "guard", "standard deviation of the luminance"),
}
#: Frames wider than this are shrunk for tracking; all px values refer to the frame that is tracked.
TRACK_WIDTH = 256
#: Below this median displacement in px over the length of a track a clip counts as frozen: its geometry is undefined, not perfect.
FROZEN = 0.25
_INLIER = 0.5
_LOST = 1.5
_CAP = 3.0
#: Residuals in px count up to here, and a lost track counts so much (the truncated cost of MSAC; Torr and Zisserman, 2000).
_TRUNCATION = 1.0
_EPIPOLAR = ("sampson", "sampson_kept", "inliers")


@dataclass(frozen=True)
class Measurement:
    """Held-out metrics of one clip.

    Example: `Measurement(values={"plane_sweep": 0.41, "sampson": None, ...}, missing={"sampson": "frozen: ..."})`
    """

    #: One entry per name in `METRICS`; None where the clip gives no answer.
    values: Mapping[str, float | None]
    #: Why, for every None.
    missing: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Tracks:
    """Grid points with texture of one frame, followed over a quarter of the clip and back.

    Example: `Tracks(frame=4, last=8, start=<512x2>, end=<512x2>, error=<512>, kept=<512 bool>)`
    """

    #: Index of the first and of the last frame.
    frame: int
    last: int
    #: [N, 2] float32 pixels (x, y), pixel centres at integers.
    start: np.ndarray
    end: np.ndarray
    #: [N] float32 forward-backward distance in px, capped at `_CAP`; the cap where the tracker gave up.
    error: np.ndarray
    #: [N] bool: came back to within `_LOST` px.
    kept: np.ndarray


def measure(video: np.ndarray, trajectory: Trajectory | None) -> Measurement:
    """All held-out metrics of one clip (uint8 [T, H, W, 3]) under its commanded camera; about 0.4 CPU-s for 17x96x160.

    Raises ValueError for input that is not a video. Everything else that goes wrong becomes a missing value.
    """
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3:
        raise ValueError(f"a clip is uint8 [T, H, W, 3], got {video.dtype} {list(video.shape)}")
    gray = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in video])
    values: dict[str, float | None] = dict.fromkeys(METRICS)
    missing: dict[str, str] = {}
    values["sharpness"] = float(np.mean([cv2.Laplacian(frame, cv2.CV_32F).std() for frame in gray]))
    values["contrast"] = float(np.mean([frame.std() for frame in gray]))
    _track_metrics(gray, trajectory, values, missing)
    if trajectory is None:
        missing["plane_sweep"] = "the prompt commands no camera"
    else:
        try:
            values["plane_sweep"] = sweeping.plane_sweep(gray, trajectory).score
        except ValueError as error:
            missing["plane_sweep"] = str(error)
    return Measurement(values, missing)


def _track_metrics(
    gray: np.ndarray, trajectory: Trajectory | None, values: dict[str, float | None], missing: dict[str, str]
) -> None:
    names = ("motion", "forward_backward", *_EPIPOLAR, "camera")
    try:
        tracks = track(gray)
    except ValueError as error:
        missing.update(dict.fromkeys(names, str(error)))
        return
    moved = [np.linalg.norm(t.end - t.start, axis=1)[t.kept] for t in tracks]
    motion = float(np.mean([np.median(m) if len(m) else 0.0 for m in moved]))
    gap = tracks[0].last - tracks[0].frame
    lost = all(not t.kept.any() for t in tracks)
    if lost:
        missing["motion"] = "no track survives, so motion is unknown"
    else:
        values["motion"] = motion / gap
    try:
        if not lost and motion < FROZEN:
            raise ValueError(f"frozen: the median track moves {motion:.2f} px in {gap} frames")
        values["forward_backward"] = float(np.mean([np.median(t.error) for t in tracks]))
        values.update(zip(_EPIPOLAR, epipolar(tracks), strict=True))
    except ValueError as error:
        unknown = [name for name in ("forward_backward", *_EPIPOLAR) if values[name] is None]
        missing.update(dict.fromkeys(unknown, str(error)))
    if trajectory is None or not (sweeping.moves(trajectory) or trajectory.zoom is not None):
        missing["camera"] = "the prompt commands no camera motion"
    else:
        values["camera"] = camera_agreement(tracks, trajectory, _tracking_size(gray.shape[1:]))


def track(gray: np.ndarray) -> list[Tracks]:
    """Lucas-Kanade tracks over a quarter of the clip, in two hops, from about every fifth of it.

    `gray` is uint8 [T, H, W]. Lengths are shares of the clip, so that more frames of the same motion measure the same. The contrast
    of the clip is normalised first: no threshold depends on it. Raises ValueError for a clip of fewer than five frames or without
    texture.
    """
    if len(gray) < 5:
        raise ValueError(f"a clip of {len(gray)} frames is too short to track; at least 5 are needed")
    frames = _normalised(gray)
    height, width = frames.shape[1:]
    hop = max(1, round((len(frames) - 1) / 8))
    stride = max(4, round(width / 36))
    ys, xs = np.mgrid[stride : height - stride : stride, stride : width - stride : stride]
    grid = np.stack([xs, ys], -1).reshape(-1, 2).astype(np.float32)
    found = []
    for first in range(0, len(frames) - 2 * hop, max(1, round(1.5 * hop))):
        texture = cv2.cornerMinEigenVal(frames[first], 7)[grid[:, 1].astype(int), grid[:, 0].astype(int)]
        points = grid[texture > 2e-4]
        if len(points) < 24:
            continue
        hops = [frames[first], frames[first + hop], frames[first + 2 * hop]]
        end, there = _follow(hops, points)
        back, here = _follow(hops[::-1], end)
        error = np.minimum(np.linalg.norm(back - points, axis=1), _CAP)
        error[~(there & here)] = _CAP
        inside = (end >= 1).all(1) & (end[:, 0] < width - 2) & (end[:, 1] < height - 2)
        inside |= ~there  # the tracker gave up: lost, not out of view
        found.append(Tracks(first, first + 2 * hop, points[inside], end[inside], error[inside], (error < _LOST)[inside]))
    found = [tracks for tracks in found if len(tracks.start) >= 24]
    if not found:
        raise ValueError("too little texture to track")
    return found


def _normalised(gray: np.ndarray) -> np.ndarray:
    """uint8 [T, h, w] at most `TRACK_WIDTH` wide with mean 128 and standard deviation 48 over the clip; raises ValueError for a
    blank one."""
    height, width = _tracking_size(gray.shape[1:])
    deviation = float(gray.std())
    if deviation < 1.0:
        raise ValueError("the clip is blank")
    frames = [cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in gray]
    return np.clip((np.stack(frames).astype(np.float32) - gray.mean()) * (48 / deviation) + 128, 0, 255).round().astype(np.uint8)


def _tracking_size(size: tuple[int, ...]) -> tuple[int, int]:
    height, width = size
    scale = min(1.0, TRACK_WIDTH / width)
    return round(height * scale), round(width * scale)


def _follow(frames: list[np.ndarray], points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions [N, 2] after all hops and whether the tracker held on."""
    held = np.ones(len(points), bool)
    current = np.ascontiguousarray(points[:, None], np.float32)
    for before, after in pairwise(frames):
        current, status, _ = cv2.calcOpticalFlowPyrLK(
            before, after, current, None, winSize=(11, 11), maxLevel=3, criteria=(3, 15, 0.01)
        )
        held &= status.ravel() > 0
    return current.reshape(-1, 2), held


def epipolar(tracks: list[Tracks]) -> tuple[float, float, float]:
    """(mean Sampson residual in px, the same of surviving tracks alone, inlier share) over all pairs of frames.

    Per pair the better of a fundamental matrix and a homography counts (pure rotation has no fundamental matrix). Residuals are
    capped at 3 px among survivors, and truncated at 1 px over all, where a lost track counts as 1 px: over survivors alone, a clip whose
    hard points can no longer be followed would look better than one whose can. Raises ValueError when no pair has a model.
    """
    everyone, survivors, shares = [], [], []
    for pair in tracks:
        start, end = pair.start[pair.kept].astype(np.float64), pair.end[pair.kept].astype(np.float64)
        lost = len(pair.start) - len(start)
        if len(start) < 24:
            everyone.append(_TRUNCATION)
            shares.append(0.0)
            continue
        models = (_sampson(start, end, cv2.USAC_MAGSAC), _sampson(start, end, cv2.FM_RANSAC), _transfer(start, end))
        distances = [distance for distance in models if distance is not None]
        if not distances:
            continue
        best = min((np.minimum(distance, _CAP) for distance in distances), key=lambda distance: float(distance.mean()))
        everyone.append(float((np.minimum(best, _TRUNCATION).sum() + lost * _TRUNCATION) / len(pair.start)))
        survivors.append(float(best.mean()))
        shares.append(float((best < _INLIER).sum() / len(pair.start)))
    if not survivors:
        raise ValueError("no pair of frames has an epipolar geometry")
    return float(np.mean(everyone)), float(np.mean(survivors)), float(np.mean(shares))


def _sampson(start: np.ndarray, end: np.ndarray, method: int) -> np.ndarray | None:
    """[N] Sampson distance in px to a robust fundamental matrix (Hartley and Zisserman, eq. 11.9)."""
    cv2.setRNGSeed(7)
    try:
        matrix, _ = cv2.findFundamentalMat(start, end, method, _INLIER, 0.999, 2000)
    except cv2.error:  # a degenerate configuration may raise instead of returning nothing
        return None
    if matrix is None or matrix.shape != (3, 3):
        return None
    one = np.ones((len(start), 1))
    p, q = np.hstack([start, one]), np.hstack([end, one])
    line_q, line_p = p @ matrix.T, q @ matrix
    norm = line_q[:, 0] ** 2 + line_q[:, 1] ** 2 + line_p[:, 0] ** 2 + line_p[:, 1] ** 2
    return np.abs((q * line_q).sum(1)) / np.sqrt(np.maximum(norm, 1e-12))


def _transfer(start: np.ndarray, end: np.ndarray) -> np.ndarray | None:
    """[N] transfer error in px under a robust homography, per coordinate so that it compares with a one-dimensional distance."""
    cv2.setRNGSeed(7)
    try:
        matrix, _ = cv2.findHomography(start, end, cv2.RANSAC, 2 * _INLIER, maxIters=400)
    except cv2.error:
        return None
    if matrix is None:
        return None
    mapped = cv2.perspectiveTransform(start[:, None], matrix).reshape(-1, 2)
    return np.linalg.norm(mapped - end, axis=1) / np.sqrt(2)


def camera_agreement(tracks: list[Tracks], trajectory: Trajectory, size: tuple[int, int]) -> float:
    """Correlation (-1 to 1) of the tracks with the motion that the commanded camera induces on a proxy scene.

    The proxy is a ground plane through the subject with a distant backdrop: its inverse depth grows linearly from top to bottom and
    is 1/depth in the middle. Correlation is amplitude-free; a still clip gets 0, the opposite camera -1.
    """
    height, width = size
    to_own = np.array([trajectory.size[1] / width, trajectory.size[0] / height])
    observed, commanded, K = [], [], trajectory.Ks
    for pair in tracks:
        relative = np.linalg.inv(trajectory.c2w[pair.last]) @ trajectory.c2w[pair.frame]
        pixels = (pair.start[pair.kept] + 0.5) * to_own
        observed.append((pair.end - pair.start)[pair.kept] * to_own)
        commanded.append(
            _project(pixels, _proxy(pixels[:, 1] / trajectory.size[0]) / trajectory.depth, relative, K[pair.frame], K[pair.last])
            - pixels
        )
    seen, wanted = np.concatenate(observed), np.concatenate(commanded)
    if not len(seen):
        return 0.0
    # compress magnitudes: near floor moves much more than the rest and must not decide alone
    seen, wanted = (flow / np.sqrt(np.linalg.norm(flow, axis=1, keepdims=True) + 0.25) for flow in (seen, wanted))
    noise = 0.05 * len(seen)
    return float((seen * wanted).sum() / np.sqrt(((seen**2).sum() + noise) * ((wanted**2).sum() + noise)))


def _proxy(height_share: np.ndarray) -> np.ndarray:
    """Inverse depth in units of 1/depth, by image row (0 top, 1 bottom)."""
    return np.clip(1 + 2.6 * (height_share - 0.5), 0.3, None)


def _project(pixels: np.ndarray, inverse_depth: np.ndarray, relative: np.ndarray, K: np.ndarray, K_end: np.ndarray) -> np.ndarray:
    rays = np.linalg.inv(K) @ np.vstack([pixels.T, np.ones(len(pixels))])
    point = K_end @ (relative[:3, :3] @ rays + relative[:3, 3:] * inverse_depth)
    return (point[:2] / np.maximum(point[2], 1e-3)).T
