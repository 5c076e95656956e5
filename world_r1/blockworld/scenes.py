"""Procedural 3D scenes with known cameras: vocabulary, sampling, captions, labels and rendering.

A scene is a room or an outdoor place with one to three textured boxes, spheres and cylinders, of which one may move, seen by a camera
that executes a command of `world_r1.camera`. Sampling runs on the CPU from one seed, so the same seed gives the same scene everywhere;
rendering runs wherever the tensors are.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import torch

from world_r1 import camera
from world_r1.blockworld import raycast
from world_r1.blockworld.raycast import BRICK, CHECK, DOT, MOTTLED, PLAIN, PLANK, STRIPE, TILE, Render, SceneTensors

HEIGHT, WIDTH, FRAMES = 96, 160, 17
PRESET = camera.PRESETS["blockworld"]
MAX_OBJECTS = 3
#: Share of scenes in which the first object moves.
DYNAMIC_SHARE = 0.18

RGB = tuple[float, float, float]
COLOURS: dict[str, RGB] = {
    "red": (0.85, 0.13, 0.12),
    "green": (0.16, 0.62, 0.20),
    "blue": (0.14, 0.28, 0.85),
    "yellow": (0.95, 0.86, 0.16),
    "orange": (0.96, 0.50, 0.08),
    "purple": (0.50, 0.18, 0.68),
    "cyan": (0.12, 0.72, 0.76),
    "pink": (0.95, 0.50, 0.70),
    "white": (0.93, 0.93, 0.91),
    "black": (0.12, 0.12, 0.14),
}
OBJECT_TEXTURES = (("", PLAIN), ("checkered", CHECK), ("striped", STRIPE), ("spotted", DOT), ("marbled", MOTTLED))
SHAPES = ("box", "sphere", "cylinder")
#: Name, texture, main colour, second colour, cell size in scene units.
FLOORS: tuple[tuple[str, int, RGB, RGB, float], ...] = (
    ("wooden floor", PLANK, (0.60, 0.40, 0.22), (0.40, 0.25, 0.13), 0.5),
    ("tiled floor", TILE, (0.80, 0.79, 0.76), (0.45, 0.45, 0.45), 0.8),
    ("checkered floor", CHECK, (0.88, 0.88, 0.86), (0.20, 0.20, 0.22), 0.9),
    ("stone floor", MOTTLED, (0.58, 0.56, 0.54), (0.34, 0.33, 0.33), 0.6),
    ("red carpet", MOTTLED, (0.68, 0.14, 0.14), (0.45, 0.08, 0.10), 0.4),
    ("blue carpet", MOTTLED, (0.18, 0.26, 0.60), (0.10, 0.15, 0.38), 0.4),
)
GROUNDS: tuple[tuple[str, int, RGB, RGB, float], ...] = (
    ("grass", MOTTLED, (0.30, 0.56, 0.18), (0.15, 0.36, 0.11), 0.5),
    ("sand", MOTTLED, (0.88, 0.76, 0.50), (0.70, 0.57, 0.34), 0.6),
    ("snow", MOTTLED, (0.95, 0.96, 0.98), (0.74, 0.80, 0.90), 0.8),
    ("a stone plaza", TILE, (0.66, 0.63, 0.58), (0.38, 0.36, 0.34), 1.0),
    ("a brick road", BRICK, (0.62, 0.32, 0.24), (0.74, 0.70, 0.64), 0.9),
    ("dirt", MOTTLED, (0.50, 0.36, 0.22), (0.32, 0.22, 0.13), 0.5),
)
WALL_TEXTURES = (("", PLAIN, 1.2), ("brick", BRICK, 0.8), ("striped", STRIPE, 0.9), ("tiled", TILE, 0.8), ("wooden", PLANK, 0.6))
#: Name, zenith, horizon, mountain colour, brightness of the scene.
SKIES: tuple[tuple[str, RGB, RGB, RGB, float], ...] = (
    ("a blue sky", (0.22, 0.45, 0.85), (0.72, 0.84, 0.95), (0.42, 0.50, 0.62), 1.0),
    ("a sunset sky", (0.30, 0.24, 0.48), (0.98, 0.60, 0.32), (0.36, 0.20, 0.26), 0.95),
    ("a cloudy sky", (0.58, 0.62, 0.68), (0.82, 0.84, 0.86), (0.44, 0.48, 0.50), 0.95),
    ("a night sky", (0.03, 0.04, 0.12), (0.14, 0.16, 0.30), (0.06, 0.08, 0.13), 0.65),
)
MOVEMENTS = ("moves to the left", "moves to the right", "floats up", "jumps up and down")

#: Where objects may stand (x, z about the scene's centre), laid out facing the first view.
_SLOTS = ((-1.3, -0.3), (0.0, -0.5), (1.3, -0.3), (-0.75, 0.95), (0.8, 0.95), (0.0, 0.5))
#: Moves that may be combined in one command; each row excludes its own opposites.
_AXES = (
    ("push in", "pull out"),
    ("move left", "move right"),
    ("move up", "move down"),
    ("pan left", "pan right"),
    ("tilt up", "tilt down"),
    ("orbit left", "orbit right"),
)


@cache
def commands() -> tuple[tuple[camera.Command, ...], tuple[float, ...]]:
    """All commands a scene may execute, and their sampling weights: singles (70 %), simultaneous (12 %), sequences (18 %)."""
    moves = [move for axis in _AXES for move in axis]
    favour = {
        "push in": 1.4,
        "pull out": 1.3,
        "orbit left": 1.6,
        "orbit right": 1.6,
        "tilt up": 0.8,
        "tilt down": 0.8,
        "move up": 0.7,
        "move down": 0.7,
    }
    table: list[tuple[camera.Command, float]] = [(_command(("fixed",)), 0.05)]
    singles = [(move, speed, share) for move in moves for speed, share in ((1.0, 0.7), (0.6, 0.15), (1.35, 0.15))]
    total = sum(favour.get(move, 1.0) * share for move, _, share in singles)
    table += [(_command((move,), speed=speed), 0.65 * favour.get(move, 1.0) * share / total) for move, speed, share in singles]
    pairs = [pair for a, b in itertools.combinations(_AXES, 2) for pair in itertools.product(a, b) if _compatible(pair)]
    table += [(_command(pair), 0.12 / len(pairs)) for pair in pairs]
    sequences = [(a, b) for a, b in itertools.permutations(moves, 2) if _axis(a) != _axis(b)]
    table += [(_command((a,), (b,)), 0.18 / len(sequences)) for a, b in sequences]
    return tuple(command for command, _ in table), tuple(weight for _, weight in table)


def _command(*segments: tuple[str, ...], speed: float = 1.0) -> camera.Command:
    return camera.Command(tuple(camera.Segment(moves, speed) for moves in segments))


def _axis(move: str) -> int:
    return next(i for i, axis in enumerate(_AXES) if move in axis)


def _compatible(pair: tuple[str, ...]) -> bool:
    """Orbit with truck or pan nearly cancels or doubles what is seen; such pairs would be ambiguous captions."""
    orbits = any(move.startswith("orbit") for move in pair)
    return not (orbits and any(move.startswith(("pan", "move left", "move right")) for move in pair))


@cache
def controls() -> torch.Tensor:
    """[N, 2, T, 6] camera controls of `commands()` (one-segment commands have an idle second segment)."""
    table = torch.zeros(len(commands()[0]), 2, FRAMES, 6)
    for row, command in zip(table, commands()[0], strict=True):
        segments = torch.as_tensor(camera.segment_controls(command, FRAMES, PRESET))
        row[: len(segments)] = segments
    return table


@dataclass(frozen=True)
class Scenes:
    """A batch of scenes: what the ray-caster needs and the integer attributes that captions and labels are made of."""

    seed: int
    tensors: SceneTensors
    command: torch.Tensor  #: [B] index into `commands()`
    indoor: torch.Tensor  #: [B] bool
    floor: torch.Tensor  #: [B] index into FLOORS (indoor) or GROUNDS (outdoor)
    wall_colour: torch.Tensor
    wall_texture: torch.Tensor
    sky: torch.Tensor
    count: torch.Tensor  #: [B] number of objects
    shape: torch.Tensor  #: [B, K]
    colour: torch.Tensor  #: [B, K]
    texture: torch.Tensor  #: [B, K]
    left_right: torch.Tensor  #: [B, K] horizontal position as first seen
    dynamic: torch.Tensor  #: [B] bool: object 0 moves
    movement: torch.Tensor  #: [B] index into MOVEMENTS

    def __len__(self) -> int:
        return len(self.command)

    def to(self, device: torch.device | str) -> Scenes:
        """The same scenes with all tensors on `device`."""
        moved = {f.name: getattr(self, f.name).to(device) for f in fields(self) if isinstance(getattr(self, f.name), torch.Tensor)}
        return Scenes(seed=self.seed, tensors=SceneTensors(*(t.to(device) for t in self.tensors)), **moved)

    def __getitem__(self, index: Any) -> Scenes:
        """A sub-batch (slice or index tensor)."""
        picked = {f.name: getattr(self, f.name)[index] for f in fields(self) if isinstance(getattr(self, f.name), torch.Tensor)}
        return Scenes(seed=self.seed, tensors=SceneTensors(*(t[index] for t in self.tensors)), **picked)


class _Draw:
    """Uniform and integer draws from one CPU generator."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
        return torch.rand(shape, generator=self.generator) * (high - low) + low

    def integer(self, *shape: int, below: int) -> torch.Tensor:
        return torch.randint(below, shape, generator=self.generator)

    def weighted(self, n: int, weights: tuple[float, ...]) -> torch.Tensor:
        return torch.multinomial(torch.tensor(weights), n, replacement=True, generator=self.generator)


def sample(batch: int, device: torch.device | str = "cpu", seed: int = 0, *, dynamic: bool | None = None) -> Scenes:
    """`batch` random scenes from one seed; `dynamic` forces (True) or forbids (False) a moving object."""
    draw = _Draw(seed)
    command = draw.weighted(batch, commands()[1])
    phi = draw.uniform(batch, low=-0.6, high=0.6)
    c2w, pose = _cameras(draw, command, phi)
    indoor = draw.uniform(batch) < 0.55
    objects = _objects(draw, batch, phi, dynamic)
    floor, wall_texture, wall_colour = (
        draw.integer(batch, below=6),
        draw.integer(batch, below=len(WALL_TEXTURES)),
        draw.integer(batch, below=len(COLOURS)),
    )
    sky = draw.integer(batch, below=len(SKIES))
    azimuth, elevation = draw.uniform(batch, high=2 * math.pi), draw.uniform(batch, low=0.6, high=1.2)
    light = torch.stack([azimuth.cos() * elevation.cos(), -elevation.sin(), azimuth.sin() * elevation.cos()], -1)
    attr = torch.cat([_surroundings(indoor, floor, wall_texture, wall_colour), objects.pop("material")], 1)
    attr = torch.cat([attr, draw.integer(batch, attr.shape[1], 1, below=60_000).float()], -1)
    sky_colours = torch.tensor([[*s[1], *s[2], *s[3]] for s in SKIES])[sky]
    ambient = torch.where(indoor, torch.tensor(1.0), torch.tensor([s[4] for s in SKIES])[sky])
    tensors = SceneTensors(
        c2w=c2w,
        room=_room_around(draw, pose),
        indoor=indoor,
        attr=attr,
        centre=objects.pop("centre"),
        half=objects.pop("half"),
        yaw=objects.pop("yaw"),
        shape=objects.pop("kind"),
        light=light,
        sky=torch.cat([sky_colours, draw.integer(batch, 1, below=60_000).float()], -1),
        ambient=ambient,
    )
    scenes = Scenes(
        seed=seed, tensors=tensors, command=command, indoor=indoor, floor=floor,
        wall_colour=wall_colour, wall_texture=wall_texture, sky=sky, **objects,
    )  # fmt: skip
    return scenes.to(device)


def _cameras(draw: _Draw, command: torch.Tensor, phi: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """World poses [B, T, 4, 4] that execute the commands about the scene's centre, and the positions [B, T, 3]."""
    batch = len(command)
    path = controls()[command]
    last = path[:, :, -1].sum(1)
    pulls, sinks = last[:, 1] < 0, last[:, 3] < 0
    distance = draw.uniform(batch, low=3.3, high=3.9) - 0.4 * pulls
    height = draw.uniform(batch, low=1.1, high=1.7) + 0.5 * sinks
    pitch = -torch.atan2(height - draw.uniform(batch, low=0.45, high=0.75), distance)
    yaw = -phi
    cy, sy, cp, sp = yaw.cos(), yaw.sin(), pitch.cos(), pitch.sin()
    forward = torch.stack([sy * cp, -sp, cy * cp], -1)
    right = torch.stack([cy, torch.zeros_like(cy), -sy], -1)
    base = torch.eye(4).repeat(batch, 1, 1)
    base[:, :3, :3] = torch.stack([right, torch.linalg.cross(forward, right), forward], -1)
    base[:, :3, 3] = torch.stack([phi.sin() * distance, -height, -phi.cos() * distance], -1)
    c2w = base[:, None] @ camera.path(path, distance, pitch)
    return c2w, c2w[..., :3, 3]


def _room_around(draw: _Draw, position: torch.Tensor) -> torch.Tensor:
    """[B, 4] room box that holds the whole camera path and all objects."""
    batch = len(position)
    x, y, z = position.unbind(-1)
    return torch.stack(
        [
            x.abs().amax(1).clamp(min=2.3) + draw.uniform(batch, low=0.5, high=1.6),
            z.amin(1).clamp(max=-2.0) - draw.uniform(batch, low=0.5, high=1.2),
            z.amax(1).clamp(min=2.0) + draw.uniform(batch, low=0.3, high=1.8),
            torch.maximum((-y).amax(1) + 0.4, draw.uniform(batch, low=2.5, high=3.6)),
        ],
        -1,
    )


def _surroundings(indoor: torch.Tensor, floor: torch.Tensor, wall_texture: torch.Tensor, wall_colour: torch.Tensor) -> torch.Tensor:
    """[B, 3, 8] materials of floor, ceiling and walls."""
    batch = len(indoor)
    table = lambda rows: torch.tensor([[kind, *first, *second, cell] for _, kind, first, second, cell in rows])  # noqa: E731
    ground = torch.where(indoor[:, None], table(FLOORS)[floor], table(GROUNDS)[floor])
    ceiling = torch.tensor([PLAIN, 0.86, 0.86, 0.86, 0.7, 0.7, 0.7, 1.0]).expand(batch, 8)
    paint = torch.tensor(list(COLOURS.values()))[wall_colour]
    black = (wall_colour == list(COLOURS).index("black"))[:, None]
    first = torch.where(black, 1.4 * paint, 0.8 * paint + 0.15)
    texture = torch.tensor([[float(kind), cell] for _, kind, cell in WALL_TEXTURES])[wall_texture]
    light_joint = (texture[:, :1] == BRICK) | (texture[:, :1] == STRIPE)
    second = torch.where(light_joint, 0.55 * first + 0.36, 0.65 * first)
    walls = torch.cat([texture[:, :1], first, second, texture[:, 1:]], -1)
    return torch.stack([ground, ceiling, walls], 1)


def _objects(draw: _Draw, batch: int, phi: torch.Tensor, dynamic: bool | None) -> dict[str, torch.Tensor]:
    """Shapes, colours, places, movement and materials of the objects."""
    k = MAX_OBJECTS
    count = draw.weighted(batch, (0.34, 0.40, 0.26)) + 1
    slot = draw.uniform(batch, len(_SLOTS)).argsort(1)[:, :k]
    place = torch.tensor(_SLOTS)[slot] + draw.uniform(batch, k, 2, low=-0.2, high=0.2)
    cos, sin = phi.cos()[:, None], phi.sin()[:, None]
    x, z = place[..., 0] * cos - place[..., 1] * sin, place[..., 0] * sin + place[..., 1] * cos
    shape, colour, texture = (
        draw.integer(batch, k, below=3),
        draw.integer(batch, k, below=len(COLOURS)),
        draw.integer(batch, k, below=len(OBJECT_TEXTURES)),
    )
    ball = shape == 1
    a = torch.where(ball, draw.uniform(batch, k, low=0.40, high=0.60), draw.uniform(batch, k, low=0.30, high=0.46))
    c = torch.where(shape == 0, draw.uniform(batch, k, low=0.30, high=0.46), a)
    b = torch.where(ball, a, draw.uniform(batch, k, low=0.32, high=0.80))
    turn = draw.uniform(batch, k, high=math.pi / 2)
    moves = draw.uniform(batch) < DYNAMIC_SHARE if dynamic is None else torch.full((batch,), dynamic)
    movement = draw.integer(batch, below=len(MOVEMENTS))
    centre = torch.stack([x, -b, z], -1)
    kind = torch.where(torch.arange(k)[None] < count[:, None], shape, -1).float()
    return {
        "centre": _moving(draw, centre, phi, moves, movement),
        "half": torch.stack([a, b, c], -1),
        "yaw": torch.stack([turn.cos(), turn.sin()], -1),
        "kind": kind,
        "material": _paint(colour, texture),
        "count": count,
        "shape": shape,
        "colour": colour,
        "texture": texture,
        "left_right": place[..., 0],
        "dynamic": moves,
        "movement": movement,
    }


def _moving(draw: _Draw, centre: torch.Tensor, phi: torch.Tensor, moves: torch.Tensor, movement: torch.Tensor) -> torch.Tensor:
    """[B, T, K, 3] centres per frame; only object 0 moves: sideways in the first view, upwards, or in two jumps."""
    time = torch.linspace(0, 1, FRAMES)[None, :]
    sideways = ((movement == 1).float() - (movement == 0).float()) * draw.uniform(len(phi), low=0.9, high=1.5) * moves
    offset = torch.zeros(len(phi), FRAMES, 3)
    offset[..., 0] = (sideways * phi.cos())[:, None] * time
    offset[..., 2] = (sideways * phi.sin())[:, None] * time
    lift = ((movement == 2) & moves).float()[:, None] * 0.9 * time + ((movement == 3) & moves).float()[:, None] * 0.8 * (
        2 * math.pi * time
    ).sin().abs()
    offset[..., 1] = -lift
    centres = centre[:, None].repeat(1, FRAMES, 1, 1)
    centres[:, :, 0] += offset
    return centres


def _paint(colour: torch.Tensor, texture: torch.Tensor) -> torch.Tensor:
    """[B, K, 8] object materials; colour 2 contrasts in lightness only, so that the named colour dominates."""
    first = torch.tensor(list(COLOURS.values()))[colour]
    kind = torch.tensor([float(code) for _, code in OBJECT_TEXTURES])[texture][..., None]
    light = first.mean(-1, keepdim=True) > 0.55
    second = torch.where(light, first * 0.42, 0.5 * first + 0.46)
    cell = torch.where(kind == MOTTLED, 0.3, torch.where(kind == CHECK, 0.36, 0.42))
    return torch.cat([kind, first, second, cell], -1)


def render(scenes: Scenes, height: int = HEIGHT, width: int = WIDTH, supersample: int = 2) -> Render:
    """Ray-cast a batch on the device of its tensors; `supersample` squared rays a pixel."""
    return Render(*raycast.cast(scenes.tensors, height, width, PRESET.fov_x, supersample))


@cache
def compiled_cast() -> Any:
    """`raycast.cast` under `torch.compile` (about 45 s once a process on a GPU, then 7 times faster than eager)."""
    return torch.compile(raycast.cast, dynamic=False)


def captions(batch: Scenes, seed: int) -> list[str]:
    """See `world_r1.blockworld.captions.captions`."""
    from world_r1.blockworld import captions as texts

    return texts.captions(batch, seed)


def attributes(batch: Scenes, *, dominant: bool = False) -> list[dict[str, Any]]:
    """See `world_r1.blockworld.captions.attributes`."""
    from world_r1.blockworld import captions as texts

    return texts.attributes(batch, dominant=dominant)
