"""Clips for the discrimination benchmark: rigid worlds with exact cameras, and eighteen kinds of damage to each.

A benchmark scene is one of `world_r1.blockworld.scenes` with two or three objects whose camera executes one of `MOVES` at an amplitude.
Amplitude 1 is `SPEED` of the preset's amplitude (an orbit of 26 degrees, a push by a quarter of the depth); 2 is more than the preset's.
Seeds decide everything; scenes of different splits share no seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch

from world_r1 import camera
from world_r1.blockworld import raycast, scenes
from world_r1.types import Clip, Prompt, Trajectory

#: Amplitude 1 in units of the preset's amplitude.
SPEED = 0.62
AMPLITUDES = (0.4, 0.7, 1.0, 1.5, 2.0)
#: Camera commands, one a scene in turn; a tuple of tuples is a sequence of simultaneous moves.
MOVES: tuple[tuple[tuple[str, ...], ...], ...] = (
    (("push in",),), (("move left",),), (("orbit right",),), (("pan left",),), (("move up",),), (("pull out",),),
    (("push in", "pan right"),), (("move right",),), (("tilt up",),), (("orbit left",),), (("pan right",),), (("move down",),),
    (("move right",), ("push in",)), (("tilt down",),), (("orbit left", "move up"),), (("pull out", "pan left"),),
    (("orbit right",), ("tilt down",)), (("move left", "tilt up"),),
)  # fmt: skip
#: First seed of each split; thresholds may be chosen on "tuning" only.
SPLITS = {"tuning": 310_000, "held_out": 910_000, "fresh": 1_710_000}
#: How near a surface of an object the camera may come, scene units.
CLEARANCE = 0.25


@dataclass(frozen=True)
class World:
    """One scene with its camera command. Example: `World(tensors=..., command=Command(...), distance=3.5, pitch=-0.2, ...)`"""

    tensors: raycast.SceneTensors
    command: camera.Command
    #: Distance of the scene's centre from the first camera, scene units, and the first camera's pitch, radians.
    distance: float
    pitch: float
    name: str
    seed: int

    def poses(self, amplitude: float = 1.0) -> torch.Tensor:
        """[T, 4, 4] float32 camera-to-world, frame 0 the identity."""
        controls = torch.as_tensor(camera.segment_controls(self.command, scenes.FRAMES, scenes.PRESET)) * SPEED * amplitude
        return camera.path(controls, self.distance, self.pitch)

    def render(self, amplitude: float = 1.0, size: tuple[int, int] = (scenes.HEIGHT, scenes.WIDTH)) -> np.ndarray:
        """[T, H, W, 3] uint8."""
        c2w = (self.tensors.c2w[0, 0] @ self.poses(amplitude))[None]
        return _video(self.tensors._replace(c2w=c2w), size)

    def trajectory(self, amplitude: float = 1.0, size: tuple[int, int] = (scenes.HEIGHT, scenes.WIDTH)) -> Trajectory:
        """The exact path as the command."""
        K = raycast.intrinsics(*size, scenes.PRESET.fov_x).numpy()
        return Trajectory(self.poses(amplitude).numpy(), K, size, self.distance, self.command.text)

    def clip(self, video: np.ndarray, amplitude: float = 1.0, name: str = "clean") -> Clip:
        """A video, clean or damaged, with what was asked for."""
        text = f"Camera {self.command.text}."
        return Clip(f"{self.name}-{name}", video, Prompt(self.name, text), self.trajectory(amplitude, video.shape[1:3]))


def worlds(split: str, count: int) -> list[World]:
    """`count` worlds of a split. ValueError for an unknown split."""
    if split not in SPLITS:
        raise ValueError(f"discrimination: split must be one of {', '.join(SPLITS)}, got {split!r}")
    return [world(split, index) for index in range(count)]


def world(split: str, index: int) -> World:
    """World `index` of a split: the first scene from its seed on with two objects or more that the camera passes at a distance."""
    segments = tuple(camera.Segment(moves, 1.0) for moves in MOVES[index % len(MOVES)])
    for attempt in range(100):
        seed = SPLITS[split] + 100 * index + attempt
        scene = scenes.sample(1, seed=seed, dynamic=False)
        x, _, z = scene.tensors.c2w[0, 0, :3, 3].tolist()
        base = scene.tensors.c2w[0, 0]
        pitch = -math.asin(float(base[1, 2]))
        found = World(scene.tensors, camera.Command(segments), math.hypot(x, z), pitch, f"{split}-{index}", seed)
        widest = base @ found.poses(max(AMPLITUDES))
        if int(scene.count[0]) >= 2 and _clear(scene.tensors, widest):
            return replace(found, tensors=scene.tensors._replace(room=_room(scene.tensors, widest)))
    raise RuntimeError(f"no scene from seed {SPLITS[split] + 100 * index} on suits the command {found.command.text!r}")


def _clear(tensors: raycast.SceneTensors, c2w: torch.Tensor) -> bool:
    """Above the ground and outside every object at all frames."""
    position = c2w[:, :3, 3]
    present = tensors.shape[0] >= 0
    radius = tensors.half[0, :, [0, 2]].norm(dim=1) + CLEARANCE
    away = (position[:, None, [0, 2]] - tensors.centre[0, :1, :, [0, 2]].transpose(1, 2).reshape(1, -1, 2)).norm(dim=-1)
    above = -position[:, None, 1] > 2 * tensors.half[0, None, :, 1] + CLEARANCE
    return bool(((away > radius) | above | ~present).all()) and bool((position[:, 1] < -CLEARANCE).all())


def _room(tensors: raycast.SceneTensors, c2w: torch.Tensor) -> torch.Tensor:
    """[1, 4] the scene's room, enlarged to hold the widest path."""
    x, y, z = c2w[:, :3, 3].unbind(-1)
    need = torch.stack([x.abs().max() + 0.5, z.min() - 0.5, z.max() + 0.5, (-y).max() + 0.4])
    room = tensors.room[0].clone()
    room[[0, 2, 3]] = torch.maximum(room[[0, 2, 3]], need[[0, 2, 3]])
    room[1] = torch.minimum(room[1], need[1])
    return room[None]


def _video(tensors: raycast.SceneTensors, size: tuple[int, int]) -> np.ndarray:
    rgb, _, _ = raycast.cast(tensors, *size, scenes.PRESET.fov_x, 2)
    return ((rgb[0].permute(1, 2, 3, 0) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()


def _frames(
    world: World, change: Callable[[raycast.SceneTensors, float, int], raycast.SceneTensors], size: tuple[int, int]
) -> np.ndarray:
    """Rendered frame by frame from a scene that changes with the time s in 0..1."""
    c2w = world.tensors.c2w[0, 0] @ world.poses()
    out = []
    for t, pose in enumerate(c2w):
        tensors = world.tensors._replace(c2w=pose[None, None], centre=world.tensors.centre[:, :1].clone())
        out.append(_video(change(tensors, t / (len(c2w) - 1), t), size))
    return np.concatenate(out)


def _flicker(tensors: raycast.SceneTensors, s: float, t: int, seed: int) -> raycast.SceneTensors:
    draw = torch.Generator().manual_seed(seed + 7 * t)
    attr, sky = tensors.attr.clone(), tensors.sky.clone()
    attr[..., 1:7] = (attr[..., 1:7] + 0.12 * torch.randn(attr[..., 1:7].shape, generator=draw)).clamp(0, 1)
    sky[..., :9] = (sky[..., :9] + 0.12 * torch.randn(sky[..., :9].shape, generator=draw)).clamp(0, 1)
    return tensors._replace(attr=attr, sky=sky)


def _morph(tensors: raycast.SceneTensors, s: float, t: int, seed: int) -> raycast.SceneTensors:
    """Objects grow or shrink by up to half and slide; the walls come nearer."""
    k = torch.arange(tensors.half.shape[1], dtype=torch.float32) + seed % 7
    half = tensors.half * (1 + 0.5 * s * (1.7 * k).cos())[None, :, None]
    centre, room = tensors.centre.clone(), tensors.room.clone()
    centre[..., 0] += 0.45 * s * (2 + k).sin()
    centre[..., 2] += 0.45 * s * k.cos()
    centre[..., 1] = -half[:, None, :, 1]
    room[:, 0] *= 1 + 0.12 * s
    room[:, 2] *= 1 - 0.1 * s
    return tensors._replace(half=half, centre=centre, room=room)


def _slide(tensors: raycast.SceneTensors, s: float, t: int, seed: int) -> raycast.SceneTensors:
    centre = tensors.centre.clone()
    centre[:, :, 0, 0] += 0.9 * s
    centre[:, :, 1, 2] -= 0.7 * s
    return tensors._replace(centre=centre)


def field(draw: np.random.Generator, height: int, width: int, cells: int = 4) -> np.ndarray:
    """[H, W, 2] smooth noise of about unit variance."""
    coarse = draw.standard_normal((cells + 1, cells * width // height + 1, 2)).astype(np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def bend(frame: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """A frame pulled from `offset` [H, W, 2] pixels away; borders are reflected."""
    y, x = np.mgrid[: frame.shape[0], : frame.shape[1]].astype(np.float32)
    at_x, at_y = x + offset[..., 0].astype(np.float32), y + offset[..., 1].astype(np.float32)
    return cv2.remap(frame, at_x, at_y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)


def _byte(x: np.ndarray) -> np.ndarray:
    return np.clip(np.round(x), 0, 255).astype(np.uint8)


def _jitter(video: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Every frame bent by its own smooth field of 2.2 pixels rms at a width of 160."""
    height, width = video.shape[1:3]
    return np.stack([bend(frame, 2.2 * width / 160 * field(draw, height, width)) for frame in video])


def _wobble(video: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Jelly: a sine runs down the rows, with another phase and tilt in every frame, 2.5 pixels at a width of 160."""
    height, width = video.shape[1:3]
    y, x = np.mgrid[:height, :width] / height
    out = []
    for frame in video:
        phase, tilt, waves = draw.uniform(0, 2 * math.pi), draw.uniform(-1, 1), draw.uniform(1, 2)
        wave = 2.5 * width / 160 * np.sin(2 * math.pi * waves * (y + 0.3 * tilt * x) + phase)
        out.append(bend(frame, np.stack([wave, 0.4 * np.roll(wave, height // 4, 0)], -1)))
    return np.stack(out)


def _swim(video: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """A non-rigid flow that sways and grows smoothly to about 5 pixels at a width of 160."""
    height, width = video.shape[1:3]
    first, second = field(draw, height, width, 3), field(draw, height, width, 3)
    at = np.linspace(0, 1, len(video))
    size = 5.0 * width / 160
    return np.stack([bend(f, size * (first * math.sin(2.6 * math.pi * s) + second * s)) for f, s in zip(video, at, strict=True)])


def _swap(video: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Four frames in each other's places."""
    order, moved = np.arange(len(video)), draw.choice(np.arange(2, len(video) - 2), 4, replace=False)
    order[moved] = order[np.roll(moved, 1)]
    return video[order]


def _zoom(video: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """The first frame as a flat picture, zoomed into by 35 % off its centre."""
    height, width = video.shape[1:3]
    centre = np.array([width * draw.uniform(0.35, 0.65), height * draw.uniform(0.35, 0.65)])
    out = []
    for s in np.linspace(0, 1, len(video)):
        scale = 1 + 0.35 * s
        M = np.array([[1 / scale, 0, centre[0] * (1 - 1 / scale)], [0, 1 / scale, centre[1] * (1 - 1 / scale)]])
        out.append(cv2.warpAffine(video[0], M, (width, height), flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP))
    return np.stack(out)


def _jpeg(video: np.ndarray) -> np.ndarray:
    out = []
    for frame in video:
        decoded = cv2.imdecode(cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 60])[1], cv2.IMREAD_COLOR)
        assert decoded is not None
        out.append(decoded[..., ::-1])
    return np.stack(out)


def _lighting(video: np.ndarray) -> np.ndarray:
    """The whole picture 25 % brighter and darker, one and a half periods a clip."""
    return _byte(video * (1 + 0.25 * np.sin(np.linspace(0, 3 * math.pi, len(video))))[:, None, None, None])


#: Damages that leave a rigid world rigid: reported, not expected to be told from clean.
HARMLESS = ("object_move", "jpeg")
DAMAGES = (
    "static", "static_noise", "shuffle", "swap", "jitter", "wobble", "swim", "flicker", "lighting", "morph", "dissolve", "cut",
    "flat_zoom", "object_move", "noise", "blank", "slow_motion", "jpeg",
)  # fmt: skip


def damaged(world: World, clean: np.ndarray, name: str) -> np.ndarray:
    """[T, H, W, 3] uint8: `clean` (this world at amplitude 1) with a damage of `DAMAGES`. ValueError for another name."""
    draw = np.random.default_rng(world.seed)
    size: tuple[int, int] = clean.shape[1:3]
    simple: dict[str, Callable[[], np.ndarray]] = {
        "static": lambda: np.repeat(clean[:1], len(clean), 0),
        "static_noise": lambda: _byte(clean[:1] + 2.55 * draw.standard_normal(clean.shape)),
        "shuffle": lambda: clean[draw.permutation(len(clean))],
        "swap": lambda: _swap(clean, draw),
        "jitter": lambda: _jitter(clean, draw),
        "wobble": lambda: _wobble(clean, draw),
        "swim": lambda: _swim(clean, draw),
        "flicker": lambda: _frames(world, lambda x, s, t: _flicker(x, s, t, world.seed), size),
        "lighting": lambda: _lighting(clean),
        "morph": lambda: _frames(world, lambda x, s, t: _morph(x, s, t, world.seed), size),
        "dissolve": lambda: _dissolve(clean, _other(world, size)),
        "cut": lambda: np.concatenate([clean[: len(clean) // 2], _other(world, size)[len(clean) // 2 :]]),
        "flat_zoom": lambda: _zoom(clean, draw),
        "object_move": lambda: _frames(world, lambda x, s, t: _slide(x, s, t, world.seed), size),
        "noise": lambda: draw.integers(0, 256, clean.shape, dtype=np.uint8),
        "blank": lambda: np.full_like(clean, 128),
        "slow_motion": lambda: world.render(0.12, size),
        "jpeg": lambda: _jpeg(clean),
    }
    if name not in simple:
        raise ValueError(f"discrimination: no damage {name!r}; known: {', '.join(DAMAGES)}")
    return simple[name]()


def _dissolve(video: np.ndarray, other: np.ndarray) -> np.ndarray:
    mix = np.linspace(0, 1, len(video))[:, None, None, None]
    return _byte((1 - mix) * video + mix * other)


def _other(at: World, size: tuple[int, int]) -> np.ndarray:
    """Another scene seen along the same kind of path."""
    split, index = at.name.rsplit("-", 1)
    return world(split, int(index) + 50 * len(MOVES)).render(1.0, size)


def auc(clean: np.ndarray, worse: np.ndarray) -> float:
    """Chance that a clean clip scores higher than a damaged one of any scene (ties count half)."""
    better, other = np.asarray(clean)[:, None], np.asarray(worse)[None]
    return float((better > other).mean() + 0.5 * (better == other).mean())
