"""Camera commands as paths: amplitudes, integration of a command into poses, trajectories.

The words are read and written by `world_r1.command`, whose names are re-exported here. A command is a sequence of segments, a
segment is one or more simultaneous moves. Six controls describe every move:

    orbit, dolly, truck, pedestal, pan, tilt      angles in radians, translations as a share of `depth`

The T frames are split equally among the S segments; inside a segment every control grows linearly with time (constant speed), and
each segment starts from the pose that the one before has reached. Frame 0 is the identity.

The state is (position, yaw, pitch) in a frame whose vertical is gravity (OpenCV axes: x right, y down, z forward). With the
horizontal heading f(yaw) = (sin yaw, 0, cos yaw) and its right r(yaw) = (cos yaw, 0, -sin yaw), one segment does, in this order,

    orbit by a     pivot = position + R f(yaw);  yaw <- yaw - a;  position <- pivot - R f(yaw)
    dolly          position <- position + depth dolly f(yaw)
    truck          position <- position + depth truck r(yaw)
    pedestal       position <- position - depth pedestal (0, 1, 0)
    pan, tilt      yaw <- yaw + pan;  pitch <- pitch + tilt

so "orbit right" carries the camera to its right while it turns left, the distance to the vertical axis through the subject is
constant and the axis stays in the image column of the principal point, exactly. R is the distance of the subject along the heading:
`depth` at first, less after a push in, more after a pull out, so that "push in, then orbit left" orbits what was pushed in on.

(The public release of World-R1 places the centre of its orbits behind the camera, to the effect of an outward arc, and calls "orbit
left" the move to the right; its pushes, moves and pans are those of the preset `world_r1`.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from world_r1.command import MOTIONS, SPEEDS, Command, Segment, describe, parse
from world_r1.config import CameraConfig, VideoConfig
from world_r1.types import Trajectory

__all__ = [
    "CONTROLS",
    "MOTIONS",
    "PRESETS",
    "SPEEDS",
    "Command",
    "Preset",
    "Segment",
    "describe",
    "intrinsics",
    "parse",
    "path",
    "segment_controls",
    "trajectory",
    "trajectory_for",
]

CONTROLS = ("orbit", "dolly", "truck", "pedestal", "pan", "tilt")

#: The control that each motion drives, and its sign.
_DRIVES: dict[str, tuple[str, int]] = {
    "push in": ("dolly", 1),
    "pull out": ("dolly", -1),
    "move left": ("truck", -1),
    "move right": ("truck", 1),
    "move up": ("pedestal", 1),
    "move down": ("pedestal", -1),
    "pan left": ("pan", -1),
    "pan right": ("pan", 1),
    "tilt up": ("tilt", 1),
    "tilt down": ("tilt", -1),
    "orbit left": ("orbit", -1),
    "orbit right": ("orbit", 1),
}

#: An orbit's radius never falls below this share of `depth`, whatever moves came before it.
_MIN_RADIUS = 0.25


@dataclass(frozen=True)
class Preset:
    """Amplitudes of full-length, single moves at normal speed, and the first camera."""

    #: Distance of the subject in front of the first camera; any unit, which becomes the unit of the translations.
    depth: float
    #: Pitch of the first camera in radians; negative looks down.
    pitch: float
    #: Horizontal field of view in radians.
    fov_x: float
    #: Angles in radians.
    orbit: float
    #: Translations as a share of `depth`.
    dolly: float
    truck: float
    pedestal: float
    pan: float
    tilt: float
    #: Every control of a segment with two or more simultaneous moves is multiplied by this.
    together: float = 1.0
    #: Fastest a sequence may run, relative to a single move: each of S segments gets min(1, pace / S) of its amplitude.
    pace: float = math.inf


PRESETS: dict[str, Preset] = {
    "blockworld": Preset(
        depth=3.6,
        pitch=-0.23,
        fov_x=math.radians(68.0),
        orbit=math.radians(42.0),
        dolly=0.42,
        truck=0.36,
        pedestal=0.21,
        pan=math.radians(30.0),
        tilt=math.radians(16.0),
        together=0.75,
        pace=1.6,  # two segments get 0.8 of their amplitude each
    ),
    # Focal length 1.2 x width; the release has no vertical moves: up and down take the amplitude of left and right, tilt that of
    # pan.
    "world_r1": Preset(
        depth=1000.0,
        pitch=0.0,
        fov_x=2.0 * math.atan(1.0 / 2.4),
        orbit=math.radians(24.0),
        dolly=0.6,
        truck=0.22,
        pedestal=0.22,
        pan=math.radians(14.0),
        tilt=math.radians(14.0),
    ),
}


def segment_controls(command: Command, frames: int, preset: Preset) -> np.ndarray:
    """Controls over time, float32 [S, T, 6] in the order of `CONTROLS`; angles in radians, translations as a share of depth.

    Row [s, t] is what segment s has done by frame t: zero before its turn, linear during it, constant afterwards.
    ValueError without frames.
    """
    if frames < 1:
        raise ValueError(f"a camera path needs at least one frame, got frames={frames}")
    count = len(command.segments)
    time = np.linspace(0.0, 1.0, frames) if frames > 1 else np.zeros(1)
    share = min(1.0, preset.pace / count)
    controls = np.zeros((count, frames, len(CONTROLS)), np.float64)
    for index, segment in enumerate(command.segments):
        progress = np.clip(time * count - index, 0.0, 1.0)
        scale = share * segment.speed * (preset.together if len(segment.moves) > 1 else 1.0)
        for move in segment.moves:
            if move == "fixed":
                continue
            control, sign = _DRIVES[move]
            controls[index, :, CONTROLS.index(control)] += sign * scale * getattr(preset, control) * progress
    return controls.astype(np.float32)


def path(controls: torch.Tensor, depth: torch.Tensor | float, pitch: torch.Tensor | float) -> torch.Tensor:
    """Integrate controls [..., S, T, 6] into poses c2w [..., T, 4, 4] relative to the first camera (identity at t = 0).

    `depth` and `pitch` broadcast against the leading dimensions. The result has the dtype and device of `controls`.
    """
    lead = controls.shape[:-3]
    depth = torch.as_tensor(depth, dtype=controls.dtype, device=controls.device).expand(lead)[..., None]
    first_pitch = torch.as_tensor(pitch, dtype=controls.dtype, device=controls.device).expand(lead)[..., None]
    zero = torch.zeros_like(controls[..., 0, :, 0])
    x, y, z, yaw, tilt = zero, zero, zero, zero, first_pitch + zero
    for segment in controls.unbind(-3):
        orbit, dolly, truck, pedestal, pan, turn = segment.unbind(-1)
        radius = torch.maximum((depth - z) * yaw.cos() - x * yaw.sin(), _MIN_RADIUS * depth)
        turned = yaw - orbit
        forward, right = depth * dolly, depth * truck
        sine, cosine = turned.sin(), turned.cos()
        x = x + radius * (yaw.sin() - sine) + forward * sine + right * cosine
        z = z + radius * (yaw.cos() - cosine) + forward * cosine - right * sine
        y = y - depth * pedestal
        yaw, tilt = turned + pan, tilt + turn
    rotation = _rotation(yaw, tilt)
    first = _rotation(torch.zeros_like(first_pitch), first_pitch).transpose(-1, -2)
    c2w = torch.zeros(*zero.shape, 4, 4, dtype=controls.dtype, device=controls.device)
    c2w[..., :3, :3] = first @ rotation
    c2w[..., :3, 3] = (first @ torch.stack([x, y, z], -1)[..., None])[..., 0]
    c2w[..., 3, 3] = 1.0
    c2w[..., 0, :, :] = torch.eye(4, dtype=controls.dtype, device=controls.device)
    return c2w


def _rotation(yaw: torch.Tensor, pitch: torch.Tensor) -> torch.Tensor:
    """Camera axes (right, down, forward) as columns: [..., 3, 3] in the gravity frame."""
    sy, cy, sp, cp = yaw.sin(), yaw.cos(), pitch.sin(), pitch.cos()
    nil = torch.zeros_like(sy)
    right = torch.stack([cy, nil, -sy], -1)
    down = torch.stack([sy * sp, cp, cy * sp], -1)
    forward = torch.stack([sy * cp, -sp, cy * cp], -1)
    return torch.stack([right, down, forward], -1)


def intrinsics(size: tuple[int, int], fov_x: float) -> np.ndarray:
    """[3, 3] float32 pinhole intrinsics in pixels of size (height, width): square pixels, principal point in the centre."""
    height, width = size
    focal = 0.5 * width / math.tan(0.5 * fov_x)
    return np.array([[focal, 0.0, 0.5 * width], [0.0, focal, 0.5 * height], [0.0, 0.0, 1.0]], np.float32)


def trajectory(command: Command, frames: int, size: tuple[int, int], preset: Preset) -> Trajectory:
    """The path of a command for a clip of `frames` frames of size (height, width). ValueError for an empty clip."""
    if min(size) < 1:
        raise ValueError(f"a clip needs a positive size (height, width), got {size}")
    controls = torch.as_tensor(segment_controls(command, frames, preset)).double()
    c2w = path(controls, preset.depth, preset.pitch).float().numpy()
    return Trajectory(c2w=c2w, K=intrinsics(size, preset.fov_x), size=size, depth=preset.depth, command=command.text)


def trajectory_for(text: str, video: VideoConfig, camera: CameraConfig) -> Trajectory | None:
    """The path that a prompt commands, or None when it names no camera."""
    command = parse(text)
    if command is None:
        return None
    return trajectory(command, video.frames, (video.height, video.width), PRESETS[camera.preset])
