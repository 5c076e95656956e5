"""Camera commands and plans as paths: integration of controls into poses, trajectories.

The words are read and written by `world_r1.command`, what they amount to is decided by `world_r1.camera_motion`; the names of both
are re-exported here. A command is a sequence of segments, a segment is one or more simultaneous moves. Six controls describe every
move of a command, three more those of a plan:

    orbit, dolly, truck, pedestal, pan, tilt, roll, arc, crane      angles in radians, translations as a share of `depth`

The T frames are split equally among the S segments of a command; inside one every control grows linearly with time (constant speed),
and each segment starts from the pose that the one before has reached. Frame 0 is the identity.

The state is (position, yaw, pitch, roll) in a frame whose vertical is gravity (OpenCV axes: x right, y down, z forward). With the
horizontal heading f(yaw) = (sin yaw, 0, cos yaw) and its right r(yaw) = (cos yaw, 0, -sin yaw), one segment does, in this order,

    orbit by a     pivot = position + R f(yaw);  yaw <- yaw - a;  position <- pivot - R f(yaw)
    dolly          position <- position + depth dolly f(yaw)
    truck          position <- position + depth truck r(yaw)
    pedestal       position <- position - depth pedestal (0, 1, 0)
    pan, tilt      yaw <- yaw + pan;  pitch <- pitch + tilt

    arc by a       the point Q of the optical axis at the horizontal distance R stays; the camera rises on the circle around it
    crane          position <- position - depth crane (0, 1, 0), and the pitch keeps the point at R in its image row
    roll           about the optical axis, after yaw and pitch; right is clockwise as seen from behind the camera

(arc and crane come between pedestal and pan), so "orbit right" carries the camera to its right while it turns left, the distance to
the vertical axis through the subject is constant and the axis stays in the image column of the principal point, exactly. R is the
distance of the subject along the heading: `depth` at first, less after a push in, more after a pull out, so that "push in, then orbit
left" orbits what was pushed in on.

(The public release of World-R1 places the centre of its orbits behind the camera, to the effect of an outward arc, and calls "orbit
left" the move to the right; its pushes, moves and pans are those of the preset `world_r1`.)

A zoom moves no camera: it is the factor on the focal length by frame, `Trajectory.zoom`.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from world_r1.camera_motion import CONTROLS, PLAN_CONTROLS, PRESETS, Preset, segment_controls, zoom_factors
from world_r1.command import (
    MOTIONS,
    SPEEDS,
    CameraPlan,
    CameraTextError,
    Command,
    Move,
    Segment,
    Step,
    describe,
    describe_plan,
    parse,
    parse_plan,
)
from world_r1.config import CameraConfig, VideoConfig
from world_r1.types import Trajectory

__all__ = [
    "CONTROLS",
    "MOTIONS",
    "PLAN_CONTROLS",
    "PRESETS",
    "SPEEDS",
    "CameraPlan",
    "CameraTextError",
    "Command",
    "Move",
    "Preset",
    "Segment",
    "Step",
    "describe",
    "describe_plan",
    "intrinsics",
    "parse",
    "parse_plan",
    "path",
    "plan_for",
    "segment_controls",
    "trajectory",
    "trajectory_for",
    "zoom_factors",
]

#: An orbit's radius never falls below this share of `depth`, whatever moves came before it.
_MIN_RADIUS = 0.25
#: An arc never looks steeper than this, in radians.
_STEEPEST = math.radians(80.0)


def path(controls: torch.Tensor, depth: torch.Tensor | float, pitch: torch.Tensor | float) -> torch.Tensor:
    """Integrate controls [..., S, T, 6] into poses c2w [..., T, 4, 4] relative to the first camera (identity at t = 0).

    The controls of a plan, [..., S, T, 9], add roll, arc and crane. `depth` and `pitch` broadcast against the leading dimensions. The
    result has the dtype and device of `controls`.
    """
    lead = controls.shape[:-3]
    depth = torch.as_tensor(depth, dtype=controls.dtype, device=controls.device).expand(lead)[..., None]
    first_pitch = torch.as_tensor(pitch, dtype=controls.dtype, device=controls.device).expand(lead)[..., None]
    zero = torch.zeros_like(controls[..., 0, :, 0])
    x, y, z, yaw, tilt, roll = zero, zero, zero, zero, first_pitch + zero, None
    more = controls.shape[-1] > len(CONTROLS)
    for segment in controls.unbind(-3):
        orbit, dolly, truck, pedestal, pan, turn = segment[..., : len(CONTROLS)].unbind(-1)
        radius = torch.maximum((depth - z) * yaw.cos() - x * yaw.sin(), _MIN_RADIUS * depth)
        turned = yaw - orbit
        forward, right = depth * dolly, depth * truck
        sine, cosine = turned.sin(), turned.cos()
        x = x + radius * (yaw.sin() - sine) + forward * sine + right * cosine
        z = z + radius * (yaw.cos() - cosine) + forward * cosine - right * sine
        y = y - depth * pedestal
        if more and bool(segment[..., len(CONTROLS) :].any()):
            x, y, z, tilt = _arc(segment[..., 7], radius, x, y, z, turned, tilt)
            y, tilt = _crane(depth * segment[..., 8], depth, x, y, z, turned, tilt)
            roll = segment[..., 6] if roll is None else roll + segment[..., 6]
        yaw, tilt = turned + pan, tilt + turn
    rotation = _rotation(yaw, tilt)
    if roll is not None:
        rotation = rotation @ _about_forward(roll)
    first = _rotation(torch.zeros_like(first_pitch), first_pitch).transpose(-1, -2)
    c2w = torch.zeros(*zero.shape, 4, 4, dtype=controls.dtype, device=controls.device)
    c2w[..., :3, :3] = first @ rotation
    c2w[..., :3, 3] = (first @ torch.stack([x, y, z], -1)[..., None])[..., 0]
    c2w[..., 3, 3] = 1.0
    c2w[..., 0, :, :] = torch.eye(4, dtype=controls.dtype, device=controls.device)
    return c2w


def _arc(
    angle: torch.Tensor,
    radius: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor,
    z: torch.Tensor,
    yaw: torch.Tensor,
    pitch: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, y, z and pitch after a rise by `angle` on the circle around the point of the optical axis that is `radius` ahead."""
    steeper = (pitch - angle).clamp(-_STEEPEST, _STEEPEST)
    distance = radius / pitch.cos()
    nearer = radius - distance * steeper.cos()
    lower = distance * steeper.sin() - radius * pitch.tan()
    moves = angle != 0
    return (
        torch.where(moves, x + nearer * yaw.sin(), x),
        torch.where(moves, y + lower, y),
        torch.where(moves, z + nearer * yaw.cos(), z),
        torch.where(moves, steeper, pitch),
    )


def _crane(
    rise: torch.Tensor,
    depth: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor,
    z: torch.Tensor,
    yaw: torch.Tensor,
    pitch: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """y and pitch after a vertical rise that keeps the subject in its image row."""
    radius = torch.maximum((depth - z) * yaw.cos() - x * yaw.sin(), _MIN_RADIUS * depth)
    aimed = (pitch.tan() - rise / radius).atan()
    return y - rise, torch.where(rise != 0, aimed, pitch)


def _about_forward(angle: torch.Tensor) -> torch.Tensor:
    """Rotation [..., 3, 3] in camera axes; positive turns the camera clockwise as seen from behind."""
    sine, cosine, nil = angle.sin(), angle.cos(), torch.zeros_like(angle)
    rows = ((cosine, -sine, nil), (sine, cosine, nil), (nil, nil, torch.ones_like(angle)))
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


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


def trajectory(command: Command | CameraPlan, frames: int, size: tuple[int, int], preset: Preset, fps: float = 8.0) -> Trajectory:
    """The path of a command or plan for a clip of `frames` frames of size (height, width). ValueError for an empty clip.

    `fps` matters for durations in seconds and for the shake of a hand only.
    """
    if min(size) < 1:
        raise ValueError(f"a clip needs a positive size (height, width), got {size}")
    controls = torch.as_tensor(segment_controls(command, frames, preset, fps)).double()
    c2w = path(controls, preset.depth, preset.pitch).float().numpy()
    zoom = None if isinstance(command, Command) else zoom_factors(command, frames, preset, fps)
    return Trajectory(c2w, intrinsics(size, preset.fov_x), size, preset.depth, command.text, zoom)


def plan_for(text: str) -> CameraPlan | None:
    """The plan that a prompt commands, or None when it names no camera; never an error.

    A text that `parse_plan` refuses as ambiguous or contradictory is read as far as the embedded model's language goes, in which
    opposite moves follow each other and incomplete ones do not count; `world-r1 prompts check` reports such texts.
    """
    try:
        return parse_plan(text)
    except CameraTextError:
        command = parse(text)
        return None if command is None else CameraPlan.of(command)


def trajectory_for(text: str, video: VideoConfig, camera: CameraConfig) -> Trajectory | None:
    """The path that a prompt commands, or None when it names no camera."""
    plan = plan_for(text)
    if plan is None:
        return None
    return trajectory(plan, video.frames, (video.height, video.width), PRESETS[camera.preset], video.fps)
