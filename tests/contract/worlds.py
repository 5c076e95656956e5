"""Synthetic clips with exact cameras and depth, and damages of known strength: the ground truth of the reward contract."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
import torch

from world_r1.blockworld import raycast
from world_r1.types import Clip, Prompt, Trajectory

FRAMES, HEIGHT, WIDTH = 17, 96, 160
FOV = math.radians(68)
#: Distance of the subject from the first camera.
DEPTH = 3.6


@dataclass(frozen=True)
class World:
    """One rendered clip. Example: `World(video=<17x96x160x3>, c2w=<17x4x4>, K=<3x3>, depth=<17x96x160>, name="orbit left")`"""

    video: np.ndarray  #: [T, H, W, 3] uint8
    c2w: np.ndarray  #: [T, 4, 4] float32 relative to the first camera
    K: np.ndarray  #: [3, 3] pixels
    depth: np.ndarray  #: [T, H, W] z-depth, 0 for the sky
    name: str

    @property
    def trajectory(self) -> Trajectory:
        """The exact path as a command."""
        return Trajectory(self.c2w, self.K, self.video.shape[1:3], DEPTH, self.name)

    def clip(self, video: np.ndarray | None = None, *, commanded: bool = True) -> Clip:
        """The clip (or a damaged version of it) with the exact path as its command, or with none."""
        return Clip(
            self.name, self.video if video is None else video, Prompt(self.name, self.name), self.trajectory if commanded else None
        )


#: Path name -> (orbit angle, yaw, pitch, right, up, forward) reached at the last frame; angles in radians, lengths in units of DEPTH.
PATHS = {
    "fixed": (0, 0, 0, 0, 0, 0),
    "push in": (0, 0, 0, 0, 0, 0.3),
    "pull out": (0, 0, 0, 0, 0, -0.25),
    "move left": (0, 0, 0, -0.22, 0, 0),
    "move right": (0, 0, 0, 0.22, 0, 0),
    "move up": (0, 0, 0, 0, 0.15, 0),
    "pan left": (0, -0.28, 0, 0, 0, 0),
    "pan right": (0, 0.28, 0, 0, 0, 0),
    "tilt up": (0, 0, 0.16, 0, 0, 0),
    "orbit left": (0.45, 0, 0, 0, 0, 0),
    "orbit right": (-0.45, 0, 0, 0, 0, 0),
    "push in and pan right": (0, 0.2, 0, 0, 0, 0.2),
}


@cache
def world(
    seed: int,
    name: str,
    amplitude: float = 1.0,
    frames: int = FRAMES,
    height: int = HEIGHT,
    width: int = WIDTH,
    supersample: int = 2,
) -> World:
    """A seeded scene seen along a named path; indoors for even seeds."""
    c2w = _cameras(name, amplitude, frames)
    scene = _scene(seed, c2w)
    rgb, depth, _ = raycast.cast(scene, height, width, FOV, supersample)
    video = ((rgb[0].permute(1, 2, 3, 0) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()
    relative = torch.linalg.inv(c2w[:1]) @ c2w
    return World(video, relative.float().numpy(), raycast.intrinsics(height, width, FOV).numpy(), depth[0].numpy(), name)


def _cameras(name: str, amplitude: float, frames: int) -> torch.Tensor:
    orbit, yaw, pitch, right, up, forward = (amplitude * v for v in PATHS[name])
    poses = []
    for s in np.linspace(0, 1, frames):
        angle, turn = -orbit * s, yaw * s + orbit * s
        tilt = -0.22 + pitch * s
        R = _rotation(turn, tilt)
        level = _rotation(orbit * s, -0.22)
        position = np.array([math.sin(angle) * DEPTH, -1.35, -math.cos(angle) * DEPTH])
        position += DEPTH * (level @ np.array([right * s, -up * s, forward * s]))
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = R, position
        poses.append(pose)
    return torch.tensor(np.stack(poses))


def _rotation(yaw: float, pitch: float) -> np.ndarray:
    """Camera-to-world rotation: positive yaw looks right, positive pitch looks up."""
    cy, sy, cp, sp = math.cos(yaw), math.sin(yaw), math.cos(pitch), math.sin(pitch)
    return np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]]) @ np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])


def _scene(seed: int, c2w: torch.Tensor) -> raycast.SceneTensors:
    draw = np.random.default_rng(1000 + seed)
    frames, count = len(c2w), 4
    half = np.stack([draw.uniform(0.28, 0.5, count), draw.uniform(0.3, 0.8, count), draw.uniform(0.28, 0.5, count)], -1)
    shape = draw.integers(0, 3, count)
    half[shape == 1] = half[shape == 1][:, :1]
    place = np.array([(-1.2, -0.4), (1.1, -0.2), (0.0, 0.6), (-0.3, -0.9)]) + draw.uniform(-0.2, 0.2, (count, 2))
    centre = np.stack([place[:, 0], -half[:, 1], place[:, 1]], -1)
    turn = draw.uniform(0, math.pi / 2, count)
    kinds = np.concatenate([draw.choice([4, 5, 1, 7], 1), [0], draw.choice([3, 2, 5, 7], 1), draw.choice([1, 2, 3, 7], count)])
    first, second = draw.uniform(0.35, 0.95, (3 + count, 3)), draw.uniform(0.05, 0.45, (3 + count, 3))
    attr = np.concatenate(
        [kinds[:, None], first, second, draw.uniform(0.35, 0.8, (3 + count, 1)), draw.integers(0, 60000, (3 + count, 1))], 1
    )
    tensor = lambda x: torch.tensor(np.asarray(x), dtype=torch.float32)[None]  # noqa: E731
    xyz = c2w[:, :3, 3].abs().amax(0)
    room = [float(xyz[0]) + 1.2 + 1.5, -float(xyz[2]) - 1.0, 2.8, 3.4]
    return raycast.SceneTensors(
        c2w=c2w.float()[None], room=tensor(room), indoor=torch.tensor([seed % 2 == 0]), attr=tensor(attr),
        centre=tensor(centre)[:, None].expand(1, frames, count, 3).clone(), half=tensor(half),
        yaw=tensor(np.stack([np.cos(turn), np.sin(turn)], -1)), shape=tensor(shape.astype(float)),
        light=tensor(np.array([0.4, -0.8, -0.45]) / np.linalg.norm([0.4, -0.8, -0.45])),
        sky=tensor([0.22, 0.45, 0.85, 0.72, 0.84, 0.95, 0.42, 0.50, 0.62, 77]), ambient=torch.ones(1),
    )  # fmt: skip


def bend(video: np.ndarray, pixels: float, seed: int = 0) -> np.ndarray:
    """Every frame warped by its own smooth random field of about `pixels` rms."""
    draw = np.random.default_rng(seed)
    return np.stack([_warp(frame, pixels * _field(draw, *frame.shape[:2])) for frame in video])


def swim(video: np.ndarray, pixels: float, seed: int = 0) -> np.ndarray:
    """A non-rigid warp that grows and sways smoothly over the clip."""
    draw = np.random.default_rng(seed)
    first, second = _field(draw, *video.shape[1:3]), _field(draw, *video.shape[1:3])
    at = np.linspace(0, 1, len(video))
    return np.stack([_warp(f, pixels * (first * math.sin(8.2 * s) + second * s)) for f, s in zip(video, at, strict=True)])


def noisy(video: np.ndarray, level: float, seed: int = 0) -> np.ndarray:
    """White noise of `level` (share of full scale) in every frame."""
    return _byte(video + 255 * level * np.random.default_rng(seed).standard_normal(video.shape))


def shuffled(video: np.ndarray, seed: int = 0) -> np.ndarray:
    """All frames out of order."""
    return video[np.random.default_rng(seed).permutation(len(video))]


def frozen(video: np.ndarray) -> np.ndarray:
    """The first frame for ever."""
    return np.repeat(video[:1], len(video), 0)


def cut(video: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Another clip from the middle on."""
    return np.concatenate([video[: len(video) // 2], other[len(video) // 2 :]])


def dissolve(video: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Cross-fade to another clip."""
    mix = np.linspace(0, 1, len(video))[:, None, None, None]
    return _byte((1 - mix) * video + mix * other)


def gain(video: np.ndarray, factor: float) -> np.ndarray:
    """Contrast and brightness of the whole clip scaled."""
    return _byte(video * factor)


def _byte(x: np.ndarray) -> np.ndarray:
    return np.clip(np.round(x), 0, 255).astype(np.uint8)


def _field(draw: np.random.Generator, height: int, width: int, cells: int = 4) -> np.ndarray:
    coarse = draw.standard_normal((cells + 1, cells * width // height + 1, 2)).astype(np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def _warp(frame: np.ndarray, offset: np.ndarray) -> np.ndarray:
    y, x = np.mgrid[: frame.shape[0], : frame.shape[1]].astype(np.float32)
    offset = offset.astype(np.float32)
    return cv2.remap(frame, x + offset[..., 0], y + offset[..., 1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
