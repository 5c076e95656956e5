"""What a geometry probe gives: one reconstruction of one clip."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Geometry:
    """Cameras, depth and the quality of a reconstruction. The unit of length is arbitrary (monocular).

    Example: `Geometry(c2w=<17x4x4>, K=<3x3>, size=(96, 160), frames=<9>, keys=<3>, inliers=0.96, motion=0.11, ...)`
    """

    #: [T, 4, 4] float32 camera-to-world, OpenCV axes, frame 0 is the identity. Between `frames` the poses are interpolated.
    c2w: np.ndarray
    #: [3, 3] float32 intrinsics in pixels of `size`.
    K: np.ndarray
    #: (height, width) that `K` and `depth` belong to: the clip's own aspect.
    size: tuple[int, int]
    #: [F] int64 frames whose poses were estimated, [A] int64 keyframes among all T frames.
    frames: np.ndarray
    keys: np.ndarray
    #: [A, h, w] float32 z-depth of the keyframes on a grid; `grid` [h, w, 2] float32 holds its points in pixels of `size`.
    depth: np.ndarray
    grid: np.ndarray
    #: [A, h, w] share of the frames in which the point was seen consistently, 0..1.
    confidence: np.ndarray
    #: Mean over the checked observations of 1 / (1 + (residual / limit)^2): graded where most are outliers of the limit below, 0..1.
    rigidity: float
    #: The same with observations weighted by texture: where there is none, flow and its residual say little. 0..1.
    firmness: float
    #: `firmness` of residuals averaged over a neighbourhood: errors of flow cancel there, what moves by itself does not. 0..1.
    unison: float
    #: Share of the checked observations within half a working pixel of the reconstruction, 0..1.
    inliers: float
    #: Mean robust residual in working pixels.
    residual: float
    #: Mean and worst share of the points on which forward and backward flow agree, 0..1.
    coverage: float
    link: float
    #: Mean displacement between keyframes and frames over the width; 0 for a frozen clip.
    motion: float
    #: 1 for smooth motion, about 0.5 for shuffled frames.
    straightness: float
    #: How far frames that were not used lie off the way between those that were, in units of that way; 0 for smooth motion.
    detour: float
    #: Share of the displacement that translation explains, 0..1 (0 for pure rotation), and spread of log depth.
    translation_share: float
    relief: float
    #: Share of grid points with texture, 0..1.
    texture: float
    #: Re-rendered keyframes: mean patch correlation -1..1, the same without re-rendering (a camera that never moved), and PSNR in dB after
    #: gain and bias.
    correlation: float
    still: float
    photometric: float
    #: Keyframes against their re-rendering: difference in brightness and contrast over the standard deviation, >= 0.
    exposure: float
    #: [A, F] float32 firmness and patch correlation by pair of keyframe and frame; nan where `pairs` is False.
    pair_firmness: np.ndarray
    pair_correlation: np.ndarray
    #: Coloured points for reports and new views: [N, 3] float32 in the frame of camera 0, [N, 3] uint8.
    points: np.ndarray
    colours: np.ndarray
    #: log(focal / width) minus its prior.
    focal_shift: float
    #: [A, F] bool: pairs of keyframe and frame that were measured.
    pairs: np.ndarray
    #: Median depth of the middle keyframe, in the unit of `c2w`.
    scene_depth: float
