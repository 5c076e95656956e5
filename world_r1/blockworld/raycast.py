"""Batched ray-caster of procedural scenes in plain torch: CPU, GPU and `torch.compile` run the same operations.

World frame: OpenCV-like (x right, y DOWN, z forward); the ground is y = 0. A pixel (i, j) is sampled at (i + 0.5, j + 0.5). Textures
are procedural in surface coordinates (so they stay on their surface whatever the camera does) and hashed with integers, so that CPU and
GPU draw the same texture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch

PLAIN, CHECK, STRIPE, BRICK, PLANK, TILE, DOT, MOTTLED = range(8)
FAR = 1e9
#: Rows of `SceneTensors.attr`: ground, ceiling, walls, then one per object.
FLOOR, CEILING, WALL, OBJECTS = 0, 1, 2, 3


class SceneTensors(NamedTuple):
    """Geometry and materials of B scenes with T frames and K objects; float32 unless said otherwise."""

    c2w: torch.Tensor  #: [B, T, 4, 4] camera-to-world
    room: torch.Tensor  #: [B, 4] half width x, rear wall z, front wall z, height
    indoor: torch.Tensor  #: [B] bool
    attr: torch.Tensor  #: [B, 3+K, 9] texture kind, colour 1 (3), colour 2 (3), scale, seed
    centre: torch.Tensor  #: [B, T, K, 3] object centres per frame
    half: torch.Tensor  #: [B, K, 3] half sizes
    yaw: torch.Tensor  #: [B, K, 2] cos, sin of the object's rotation about the vertical
    shape: torch.Tensor  #: [B, K] 0 box, 1 sphere, 2 cylinder, -1 absent
    light: torch.Tensor  #: [B, 3] unit vector towards the light
    sky: torch.Tensor  #: [B, 10] zenith, horizon, mountain colour, seed
    ambient: torch.Tensor  #: [B] brightness factor


@dataclass(frozen=True)
class Render:
    """What the ray-caster returns. Example: `Render(rgb=<32,3,17,96,160>, depth=<32,17,96,160>, surface=<32,17,96,160>)`"""

    #: [B, 3, T, H, W] in -1..1.
    rgb: torch.Tensor
    #: [B, T, H, W] z-depth in scene units; 0 where the ray meets the sky.
    depth: torch.Tensor
    #: [B, T, H, W] int64: -1 sky, 0 floor, 1 ceiling, 2 walls, 3 + k object k.
    surface: torch.Tensor


def intrinsics(height: int, width: int, fov_x: float) -> torch.Tensor:
    """[3, 3] pinhole matrix in pixels of (height, width) for a horizontal field of view in radians; pixel centres at +0.5."""
    f = width / 2 / math.tan(fov_x / 2)
    return torch.tensor([[f, 0, width / 2], [0, f, height / 2], [0, 0, 1]], dtype=torch.float32)


def cast(
    scene: SceneTensors, height: int, width: int, fov_x: float, supersample: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rays -> (rgb, depth, surface) of `Render`. rgb is the mean of supersample^2 rays, depth and surface the first ray's."""
    s = supersample
    rgb, depth, surface = _cast(scene, height * s, width * s, fov_x)
    b, t = depth.shape[:2]
    rgb = rgb.view(b, 3, t, height, s, width, s).mean((4, 6)) * 2 - 1
    pick = s // 2
    return rgb, depth[:, :, pick::s, pick::s], surface[:, :, pick::s, pick::s]


def _per_scene(x: torch.Tensor) -> torch.Tensor:
    return x[:, None, None, None]


def _per_frame(x: torch.Tensor) -> torch.Tensor:
    return x[:, :, None, None]


def _sign(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x >= 0, 1.0, -1.0)


def _nonzero(x: torch.Tensor) -> torch.Tensor:
    return _sign(x) * x.abs().clamp(min=1e-6)


Vec = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Hit(NamedTuple):
    """Nearest surface along each ray: all [B, T, H, W]."""

    t: torch.Tensor  #: z-depth (the ray direction has unit z in the camera)
    surface: torch.Tensor  #: float index into `attr`
    normal: Vec
    u: torch.Tensor  #: surface coordinates of the texture
    v: torch.Tensor
    face: torch.Tensor  #: offset of the texture seed, so that faces differ


def _cast(scene: SceneTensors, height: int, width: int, fov_x: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    origin, direction = _rays(scene.c2w, height, width, fov_x)
    hit = _room(scene, origin, direction)
    for k in range(scene.shape.shape[1]):
        hit = _nearer(hit, _object(scene, k, origin, direction), float(OBJECTS + k))
    seen = hit.t < FAR / 10
    t = torch.where(seen, hit.t, 0.0)
    point = tuple(o + t * d for o, d in zip(origin, direction, strict=True))
    lit = _lit(scene, point, hit.normal)  # type: ignore[arg-type]
    ground = _shade(scene, hit, lit)
    sky = _sky(scene, direction)
    horizon, mountain = scene.sky[:, 3:6], scene.sky[:, 6:9]
    haze = 1 - torch.exp(-(t - 6.0).clamp(min=0) * 0.075)
    haze = torch.where(_per_scene(scene.indoor), 0.0, haze)
    channels = []
    for c in range(3):
        far = _per_scene(0.5 * horizon[:, c] + 0.5 * mountain[:, c])
        channels.append(torch.where(seen, ground[c] * (1 - haze) + far * haze, sky[c]))
    surface = torch.where(seen, hit.surface, -1.0).long()
    return torch.stack(channels, 1), t, surface


def _rays(c2w: torch.Tensor, height: int, width: int, fov_x: float) -> tuple[Vec, Vec]:
    """World origins [B, T, 1, 1] and directions [B, T, H, W] with unit z in the camera frame."""
    tan_x = math.tan(fov_x / 2)
    tan_y = tan_x * height / width
    x = (((torch.arange(width, device=c2w.device) + 0.5) / width * 2 - 1) * tan_x)[None, None, None, :]
    y = (((torch.arange(height, device=c2w.device) + 0.5) / height * 2 - 1) * tan_y)[None, None, :, None]
    origin = tuple(_per_frame(c2w[..., i, 3]) for i in range(3))
    direction = tuple(
        _per_frame(c2w[..., i, 2]) + _per_frame(c2w[..., i, 0]) * x + _per_frame(c2w[..., i, 1]) * y for i in range(3)
    )
    return origin, direction  # type: ignore[return-value]


def _room(scene: SceneTensors, origin: Vec, direction: Vec) -> Hit:
    """Exit point of the room box; outdoors only the ground plane exists."""
    (ox, oy, oz), (dx, dy, dz) = origin, direction
    half_x, rear, front, high = (_per_scene(scene.room[:, i]) for i in range(4))
    indoor = _per_scene(scene.indoor)
    tx = torch.where(indoor, (torch.where(dx > 0, half_x, -half_x) - ox) / _nonzero(dx), FAR)
    tz = torch.where(indoor, (torch.where(dz > 0, front, rear) - oz) / _nonzero(dz), FAR)
    ty = (torch.where(dy > 0, torch.zeros_like(high), -high) - oy) / _nonzero(dy)
    ty = torch.where(indoor | (dy > 0), ty, FAR)
    t = torch.minimum(torch.minimum(tx, tz), ty)
    flat = t == ty
    on_x = (t == tx) & ~flat
    surface = torch.where(flat, torch.where(dy > 0, float(FLOOR), float(CEILING)), float(WALL))
    zero = torch.zeros_like(t)
    normal = (
        torch.where(on_x, -_sign(dx), zero),
        torch.where(flat, torch.where(dy > 0, -1.0, 1.0), zero),
        torch.where(flat | on_x, zero, -_sign(dz)),
    )
    x, y, z = ox + t * dx, oy + t * dy, oz + t * dz
    u = torch.where(on_x, z, x)
    v = torch.where(flat, z, y)
    side = torch.where(on_x, 1.0 + (dx > 0).float(), 3.0 + (dz > 0).float())
    return Hit(t, surface, normal, u, v, torch.where(flat, zero, side))


def _object(scene: SceneTensors, k: int, origin: Vec, direction: Vec) -> Hit:
    """Object k as a `Hit` (surface is filled in by the caller)."""
    cos, sin = _per_scene(scene.yaw[:, k, 0]), _per_scene(scene.yaw[:, k, 1])
    half = tuple(_per_scene(scene.half[:, k, i]) for i in range(3))
    shape = _per_scene(scene.shape[:, k])
    rel = tuple(o - _per_frame(scene.centre[:, :, k, i]) for i, o in enumerate(origin))
    p = (cos * rel[0] - sin * rel[2], rel[1], sin * rel[0] + cos * rel[2])
    q = (cos * direction[0] - sin * direction[2], direction[1], sin * direction[0] + cos * direction[2])
    t, face = _enter(shape, half, p, q)  # type: ignore[arg-type]
    x, y, z = (a + t * b for a, b in zip(p, q, strict=True))
    box, ball = shape == 0, shape == 1
    top, side_x = face == 1, face == 0
    inverse = 1 / half[0].clamp(min=1e-3)
    nx = torch.where(top, 0.0, torch.where(box, torch.where(side_x, _sign(x), 0.0), x * inverse))
    nz = torch.where(top, 0.0, torch.where(box, torch.where(side_x, 0.0, _sign(z)), z * inverse))
    ny = torch.where(top, _sign(y), torch.where(ball, y * inverse, 0.0))
    around = torch.atan2(x, z) * half[0]
    u = torch.where(top, x, torch.where(box, torch.where(side_x, z, x), around))
    v = torch.where(top, z, y)
    offset = face * 2.0 + torch.where(box & (torch.where(side_x, x, z) > 0), 1.0, 0.0)
    return Hit(t, face, (cos * nx + sin * nz, ny, -sin * nx + cos * nz), u, v, offset)


def _enter(shape: torch.Tensor, half: Vec, p: Vec, q: Vec) -> tuple[torch.Tensor, torch.Tensor]:
    """Entry of rays p + t q into a box, sphere or vertical cylinder -> t (FAR if none) and face (0 side x, 1 top or bottom, 2 other).

    A box is the intersection of three slabs; sphere and cylinder replace the two horizontal slabs by a quadric.
    """
    ix, iy, iz = (1 / _nonzero(d) for d in q)
    sx, sy, sz = half[0] * ix.abs(), half[1] * iy.abs(), half[2] * iz.abs()
    mx, my, mz = -p[0] * ix, -p[1] * iy, -p[2] * iz
    box, ball = shape == 0, shape == 1
    zero = torch.zeros_like(q[1])
    a = q[0] * q[0] + q[2] * q[2] + torch.where(ball, q[1] * q[1], zero)
    b = p[0] * q[0] + p[2] * q[2] + torch.where(ball, p[1] * q[1], zero)
    c = p[0] * p[0] + p[2] * p[2] + torch.where(ball, p[1] * p[1], zero) - half[0] * half[0]
    disc = b * b - a * c
    root = disc.clamp(min=0).sqrt()
    scale = 1 / a.clamp(min=1e-9)
    side_in = torch.where(box, torch.maximum(mx - sx, mz - sz), (-b - root) * scale)
    side_out = torch.where(box, torch.minimum(mx + sx, mz + sz), (-b + root) * scale)
    flat_in = torch.where(ball, side_in, my - sy)
    flat_out = torch.where(ball, side_out, my + sy)
    t_in, t_out = torch.maximum(side_in, flat_in), torch.minimum(side_out, flat_out)
    ok = (box | (disc > 0)) & (t_in < t_out) & (t_in > 1e-3) & (shape >= 0)
    face = torch.where(~ball & (flat_in > side_in), 1.0, torch.where(box & (mx - sx > mz - sz), 0.0, 2.0))
    return torch.where(ok, t_in, FAR), face


def _nearer(hit: Hit, other: Hit, surface: float) -> Hit:
    near = other.t < hit.t
    pick = lambda new, old: torch.where(near, new, old)  # noqa: E731
    normal = tuple(pick(n, o) for n, o in zip(other.normal, hit.normal, strict=True))
    return Hit(
        pick(other.t, hit.t),
        torch.where(near, surface, hit.surface),
        normal,  # type: ignore[arg-type]
        pick(other.u, hit.u),
        pick(other.v, hit.v),
        pick(other.face, hit.face),
    )


def _lit(scene: SceneTensors, point: Vec, normal: Vec) -> torch.Tensor:
    """1 where no object stands between the point and the light (hard shadows; walls cast none)."""
    start = tuple(p + n * 0.01 for p, n in zip(point, normal, strict=True))
    light = tuple(_per_scene(scene.light[:, i]) for i in range(3))
    lit = torch.ones_like(point[0])
    for k in range(scene.shape.shape[1]):
        cos, sin = _per_scene(scene.yaw[:, k, 0]), _per_scene(scene.yaw[:, k, 1])
        half = tuple(_per_scene(scene.half[:, k, i]) for i in range(3))
        rel = tuple(s - _per_frame(scene.centre[:, :, k, i]) for i, s in enumerate(start))
        p = (cos * rel[0] - sin * rel[2], rel[1], sin * rel[0] + cos * rel[2])
        q = (cos * light[0] - sin * light[2], light[1], sin * light[0] + cos * light[2])
        t, _ = _enter(_per_scene(scene.shape[:, k]), half, p, q)  # type: ignore[arg-type]
        lit = torch.where(t < FAR / 10, 0.0, lit)
    return lit


def _shade(scene: SceneTensors, hit: Hit, lit: torch.Tensor) -> list[torch.Tensor]:
    """Textured and lit surface colour, one tensor a channel."""
    batch = torch.arange(scene.attr.shape[0], device=lit.device)[:, None, None, None]
    index = hit.surface.clamp(min=0).long()
    material = lambda i: scene.attr[:, :, i][batch, index]  # noqa: E731
    mix, bright = _texture(material(0), hit.u / material(7), hit.v / material(7), (material(8) + hit.face).int())
    cosine = sum(n * _per_scene(scene.light[:, i]) for i, n in enumerate(hit.normal))
    shade = (0.58 + 0.12 * cosine + 0.32 * torch.clamp(cosine, min=0) * lit) * _per_scene(scene.ambient)
    return [((material(1 + c) * (1 - mix) + material(4 + c) * mix) * bright * shade).clamp(0, 1) for c in range(3)]


def _texture(kind: torch.Tensor, u: torch.Tensor, v: torch.Tensor, seed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Procedural texture at (u, v) in cells -> share of colour 2 and brightness. `seed` is int32."""
    smooth = _noise(u * 1.7, v * 1.7, seed)
    rough = _noise(u * 4.1 + 9.1, v * 4.1, seed + 13)
    iu, iv = torch.floor(u), torch.floor(v)
    fu, fv = u - iu, v - iv
    parity = lambda x: x - 2 * torch.floor(x * 0.5)  # noqa: E731
    row = torch.floor(v * 2)
    ub = u + 0.5 * parity(row)
    brick = ((ub - torch.floor(ub) < 0.08) | (v * 2 - row < 0.16)).float()
    tile = ((fu < 0.07) | (fv < 0.07)).float()
    up = u * 0.33 + 0.37 * iv
    plank = ((fv < 0.09) | (up - torch.floor(up) < 0.025)).float()
    dot = ((fu - 0.5) ** 2 + (fv - 0.5) ** 2 < 0.085).float()
    mix = torch.zeros_like(u)
    stripe = (fu < 0.5).float()
    mottled = 0.7 * smooth + 0.3 * rough
    for code, value in (
        (CHECK, parity(iu + iv)),
        (STRIPE, stripe),
        (BRICK, brick),
        (PLANK, plank),
        (TILE, tile),
        (DOT, dot),
        (MOTTLED, mottled),
    ):
        mix = torch.where(kind == code, value, mix)
    cell_u = torch.where(kind == BRICK, torch.floor(ub), torch.where(kind == PLANK, torch.floor(up), iu))
    cell = _hash(cell_u, torch.where(kind == BRICK, row, iv), seed + 27)
    even = (kind == PLAIN) | (kind == STRIPE) | (kind == DOT) | (kind == CHECK)
    bright = torch.where(even, 0.92 + 0.16 * smooth, torch.where(kind == MOTTLED, 0.92 + 0.16 * rough, 0.82 + 0.28 * cell))
    return mix, bright


def _sky(scene: SceneTensors, direction: Vec) -> list[torch.Tensor]:
    dx, dy, dz = direction
    up = -dy * torch.rsqrt(dx * dx + dy * dy + dz * dz)
    azimuth = torch.atan2(dx, dz)
    seed = _per_scene(scene.sky[:, 9]).int()
    zero = torch.zeros_like(azimuth)
    ridge = 0.05 + 0.16 * _noise(azimuth * 4.0 + 20, zero, seed) + 0.04 * _noise(azimuth * 11.0 + 60, zero, seed + 1)
    cloud = _noise(azimuth * 3.0 + 10, up * 9.0, seed + 3) * _noise(azimuth * 7.0 + 10, up * 15.0, seed + 4)
    blend = (up * 1.6).clamp(0, 1)
    channels = []
    for c in range(3):
        zenith, horizon, mountain = (_per_scene(scene.sky[:, i + c]) for i in (0, 3, 6))
        sky = horizon * (1 - blend) + zenith * blend + 0.2 * cloud * (1 - zenith) * (up * 4).clamp(0, 1)
        slope = (up / ridge.clamp(min=0.02)).clamp(0, 1)
        channels.append(torch.where(up < ridge, mountain * (0.85 + 0.3 * slope), sky).clamp(0, 1))
    return channels


def _hash(i: torch.Tensor, j: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
    """Integer lattice hash -> float in [0, 1); 32-bit wrap-around arithmetic, the same on every device."""
    h = i.int() * 374761393 + j.int() * 668265263 + seed * 1274126177
    h = (h ^ ((h >> 13) & 0x7FFFF)) * 1103515245
    h = (h ^ ((h >> 15) & 0x1FFFF)) * 739982445
    return ((h >> 8) & 0xFFFF).float() * (1.0 / 65536.0)


def _noise(u: torch.Tensor, v: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
    """Value noise with smooth interpolation, in [0, 1)."""
    iu, iv = torch.floor(u), torch.floor(v)
    fu, fv = u - iu, v - iv
    fu, fv = fu * fu * (3 - 2 * fu), fv * fv * (3 - 2 * fv)
    top = _hash(iu, iv, seed) * (1 - fu) + _hash(iu + 1, iv, seed) * fu
    bottom = _hash(iu, iv + 1, seed) * (1 - fu) + _hash(iu + 1, iv + 1, seed) * fu
    return top * (1 - fv) + bottom * fv
