"""Camera-warped Gaussian noise: the rule for x_T everywhere, in training, sampling and evaluation.

The idea (Go-with-the-Flow, arXiv 2501.08331; World-R1, arXiv 2604.24764, eq. 6-7) is to move the initial noise of a video as its
camera moves, while every frame stays white N(0, 1). Those works warp frame after frame and drop what is below a pixel in each step.
Here every latent frame is mapped *directly* to one canonical set of cells, so nothing drifts.

**Geometry.** The world is a proxy: the plane z = depth in front of the first camera, cut off by the sphere of radius 2 depth around
it. The body behind which the plane lies is convex, so a ray from inside meets its surface exactly once, and directions of an inner
camera and points of the surface correspond one to one. One latent frame is the anchor. A pixel of any frame is cast to the proxy,
the point is looked at from the anchor, and the anchor's image coordinates, rounded down, are its cell. Inside its field of view
they are the ordinary pixel coordinates, so the anchor's own pixels are the cells; outside they go on linearly in the angle, first
horizontally on a cylinder, then vertically, with the slope that they have at the edge. A ray that misses (camera outside) gets a
cell of its own. The anchor is the frame that sees the world coarsest, such that the others enlarge it: the first for a push in, the
last for a pull out, the middle one for a pan. An area ratio above one skips cells, which loses correlation, never whiteness; the
choice minimises its mean logarithm.

A zoom changes the pixel coordinates of a frame, not its camera: a zoom in enlarges the anchor's cells like a push in, without parallax.

**Noise.** Every latent cell (L) is a block of fine x fine pixels; k_c pixels of a frame lie in cell c. With q ~ N(0, I) over the
cells, shared by all frames, and n ~ N(0, I) over the pixels, fresh in every frame, pixel i in cell c has

    x_i = q_c / sqrt(k_c) + n_i - mean_{j in c} n_j

The covariance of the pixels of c is 1/k_c + (delta_ij - 1/k_c) = delta_ij: unit variance and independent, whatever the map. The
latent noise

    z_L = 1/fine sum_{i in L} x_i  ~ N(0, 1), independent over L and channels within a frame, exactly;
    Cov(z_L, z'_M) = 1/fine^2 sum_c m_Lc m'_Mc / sqrt(k_c k'_c)   between two frames,     m_Lc = pixels of L in c.

**Fewer random numbers.** A cell that lies within one block adds nothing to the residual there, since its n_i - mean n sum to zero.
Only cells that straddle blocks matter, and of those only the sums over (L, c): with g ~ N(0, 1) per pair, the sum of n_i over the
pair is sqrt(m_Lc) g. `initial_noise` draws just these; `warp`, for batches of many maps, draws every n_i. Both have the same law.

**Randomness** is a function of (key, purpose, index): a counter-based generator (SplitMix64, Steele et al. 2014, and Box-Muller) in
integer and float64 tensor operations, so a sample does not depend on its batch, on the device (up to rounding of sums), or on the
order of evaluation.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from world_r1 import rng
from world_r1.config import NoiseConfig
from world_r1.types import Trajectory

#: Radius of the sphere that closes the proxy, in units of the subject's depth.
_RADIUS = 2.0
#: Added to fine pixel coordinates before rounding, so that exact ties fall the same way on every device.
_TIE = 1e-7


@dataclass(frozen=True)
class NoiseMap:
    """Where the pixels of every latent frame lie in the canonical cells; see the module's text for the symbols."""

    #: (t, h, w) of the latents and side of a block in pixels.
    grid: tuple[int, int, int]
    fine: int
    #: [t, P] int32, P = h w fine^2 ordered block by block: cell of each pixel, or -1 for a cell of its own.
    ids: torch.Tensor
    #: Number of cells; ids run from 0 to cells - 1.
    cells: int
    #: Latent frame whose pixels define the cells.
    anchor: int
    #: [t, P] float32: 1 / sqrt(k_c), 0 where the pixel has a cell of its own.
    weight: torch.Tensor
    #: [t, h w] int64: pixels with cells of their own.
    own: torch.Tensor
    #: [R] int64 per straddling (L, c) of a frame: flat index of L in t h w, index of the straddling cell, m_Lc; [G] int64 k_c per
    #: straddling cell.
    pair_block: torch.Tensor
    pair_cell: torch.Tensor
    pair_count: torch.Tensor
    cell_count: torch.Tensor

    @property
    def nbytes(self) -> int:
        """Memory of the tensors in bytes."""
        return sum(value.nbytes for value in vars(self).values() if isinstance(value, torch.Tensor))


# ---- the rule for x_T


def initial_noise(
    trajectory: Trajectory | None,
    shape: tuple[int, int, int, int],
    noise: NoiseConfig,
    *key: int | str,
    device: torch.device | str = "cpu",
    ahead: int = 0,
) -> torch.Tensor:
    """x_T of one sample: float32 [C, t, h, w] on the CPU; all randomness follows from `key`.

    Without a trajectory (or with `noise.warp` false) it is white. Otherwise the warped noise w is mixed, at constant variance, with fresh
    noise, ((1-a) w + a e) / sqrt((1-a)^2 + a^2), a = `noise.degradation`, then blended over an independent base, s = `noise.strength`.
    `device` says where to compute; the numbers are the same up to rounding. The first `ahead` latent frames are before the video (a model
    whose tokens hold several may need them): they are white, and the warp begins after them. ValueError if shape, frames and intrinsics
    do not fit.
    """
    channels, *grid = shape
    if ahead:
        video = initial_noise(trajectory, (channels, grid[0] - ahead, grid[1], grid[2]), noise, *key, device=device)
        return torch.cat([torch.randn(channels, ahead, *grid[1:], generator=rng.generator(*key, "x_T", "ahead")), video], dim=1)
    if len(shape) != 4 or min(shape) < 1:
        raise ValueError(f"latent noise has shape (C, t, h, w), all positive, got {shape}")
    seeds = torch.randint(-(2**63), 2**63 - 1, (5,), dtype=torch.int64, generator=rng.generator(*key, "x_T")).tolist()
    size = math.prod(grid)
    white = lambda seed: _normals(seed, size * channels, device).view(size, channels).float()  # noqa: E731
    if trajectory is None or not noise.warp:
        x = white(seeds[4])
    else:
        x = _warp_one(noise_map(trajectory, (grid[0], grid[1], grid[2]), noise.fine, device=device), channels, seeds)
        if noise.degradation > 0:
            x = _mix(x, white(seeds[3]), noise.degradation)
        if noise.strength < 1:
            x = _mix(white(seeds[4]), x, noise.strength)
    return x.T.reshape(channels, *grid).contiguous().cpu()


def _mix(first: torch.Tensor, second: torch.Tensor, share: float) -> torch.Tensor:
    """Blend two independent unit Gaussians at unit variance; `share` 0 is the first, 1 the second."""
    return ((1 - share) * first + share * second) / math.hypot(1 - share, share)


def _warp_one(where: NoiseMap, channels: int, seeds: list[int]) -> torch.Tensor:
    """Warped noise [t h w, C] from seeds (cells, own cells, straddling pairs)."""
    device, fine = where.ids.device, where.fine
    blocks = where.own.numel()
    cells = _normals(seeds[0], max(where.cells, 1) * channels, device).view(-1, channels).float()
    bags = where.ids.clamp(min=0).view(blocks, fine * fine)
    x = F.embedding_bag(bags, cells, per_sample_weights=where.weight.view(bags.shape), mode="sum")
    if bool(where.own.any()):
        fresh = _normals(seeds[1], blocks * channels, device).view(blocks, channels)
        x += where.own.view(-1, 1).sqrt() * fresh.float()
    if len(where.pair_block):
        g = _normals(seeds[2], len(where.pair_block) * channels, device).view(-1, channels)
        sums = where.pair_count[:, None].double().sqrt() * g
        # float64 sums: the order of atomic additions on a GPU then vanishes in the rounding to float32
        totals = torch.zeros(len(where.cell_count), channels, dtype=torch.float64, device=device).index_add_(
            0, where.pair_cell, sums
        )
        share = where.pair_count.double() / where.cell_count[where.pair_cell]
        residual = torch.zeros(blocks, channels, dtype=torch.float64, device=device)
        residual.index_add_(0, where.pair_block, sums - share[:, None] * totals[where.pair_cell])
        x += residual.float()
    return x / fine


def warp(ids: torch.Tensor, cells: int, channels: int, grid: tuple[int, int, int], generator: torch.Generator) -> torch.Tensor:
    """Warped noise of many samples at once: float32 [B, C, t, h, w] on the device of `ids`.

    `ids` [B, t, P] integers as in `NoiseMap` (cells below `cells`, -1: own cell), P = h w fine^2 block by block; `generator` lives on
    that device. ValueError if P does not fit the grid.
    """
    batch, frames, pixels = ids.shape
    t, height, width = grid
    fine = math.isqrt(max(pixels // max(height * width, 1), 0))
    if frames != t or fine < 1 or height * width * fine * fine != pixels:
        raise ValueError(f"ids of shape {tuple(ids.shape)} do not fit latents of (t, h, w) = {grid}; P must be h w fine^2")
    randn = lambda *size: torch.randn(*size, generator=generator, device=ids.device)  # noqa: E731
    # The extra cell collects the pixels with cells of their own: k = 1 and no mean for them.
    shared = torch.cat([randn(batch, cells, channels), torch.zeros(batch, 1, channels, device=ids.device)], 1).flatten(0, 1)
    offset = torch.arange(batch, device=ids.device)[:, None] * (cells + 1)
    out = []
    for frame in range(frames):
        cell = ids[:, frame].long()
        own = (cell < 0).flatten()
        index = (torch.where(cell < 0, cells, cell) + offset).flatten()
        count = torch.bincount(index, minlength=len(shared)).clamp(min=1).float()[:, None]
        n = randn(len(index), channels)
        mean = torch.zeros_like(shared).index_add_(0, index, n) / count
        base = shared * count.rsqrt() - mean
        x = n + base[index].masked_fill(own[:, None], 0.0)
        out.append(x.view(batch, height * width, fine * fine, channels).sum(2) / fine)
    return torch.stack(out, 1).view(batch, t, height, width, channels).permute(0, 4, 1, 2, 3).contiguous()


def _normals(seed: int, count: int, device: torch.device | str) -> torch.Tensor:
    """float64 [count] standard normals; number i is a function of (seed, i). SplitMix64 bits, Box-Muller transform."""
    bits = torch.arange((count + 1) // 2, dtype=torch.int64, device=device)
    bits = bits.mul_(-7046029254386353131).add_(seed)  # 0x9E3779B97F4A7C15
    bits.bitwise_xor_((bits >> 30) & 0x3FFFFFFFF).mul_(-4658895280553007687)  # 0xBF58476D1CE4E5B9
    bits.bitwise_xor_((bits >> 27) & 0x1FFFFFFFFF).mul_(-7723592293110705685)  # 0x94D049BB133111EB
    bits.bitwise_xor_((bits >> 31) & 0x1FFFFFFFF)
    uniform = ((bits >> 32) & 0xFFFFFFFF).double().add_(0.5).mul_(2.0**-32)
    angle = (bits & 0xFFFFFFFF).double().mul_(2.0 * math.pi * 2.0**-32)
    radius = uniform.log_().mul_(-2.0).sqrt_()
    return torch.stack([radius * angle.cos(), radius * angle.sin()], -1).flatten()[:count]


# ---- the map


class _Cache:
    """Least recently used maps within a budget of bytes."""

    def __init__(self, budget: int) -> None:
        self.budget, self.maps = budget, OrderedDict[tuple[object, ...], NoiseMap]()

    def get(self, key: tuple[object, ...]) -> NoiseMap | None:
        if key in self.maps:
            self.maps.move_to_end(key)
        return self.maps.get(key)

    def put(self, key: tuple[object, ...], value: NoiseMap) -> None:
        self.maps[key] = value
        while len(self.maps) > 1 and sum(kept.nbytes for kept in self.maps.values()) > self.budget:
            self.maps.popitem(last=False)


_CACHE = _Cache(budget=1 << 30)


def forget() -> None:
    """Drop all cached maps (they take up to 1 GiB)."""
    _CACHE.maps.clear()


def noise_map(trajectory: Trajectory, grid: tuple[int, int, int], fine: int, *, device: torch.device | str = "cpu") -> NoiseMap:
    """The cells of a trajectory for latents of (t, h, w), `fine` pixels a side in each; cached.

    Latent frame f belongs to video frame f (T - 1) / (t - 1). ValueError if that is no integer, or if K does not belong to the size.
    """
    _check(trajectory, grid, fine)
    zoom = None if trajectory.zoom is None else trajectory.zoom.tobytes()
    parts = (trajectory.c2w.tobytes(), trajectory.K.tobytes(), trajectory.size, trajectory.depth, zoom)
    key = (*parts, grid, fine, str(torch.device(device)))
    found = _CACHE.get(key)
    if found is None:
        found = _build(trajectory, grid, fine, device)
        _CACHE.put(key, found)
    return found


def _check(trajectory: Trajectory, grid: tuple[int, int, int], fine: int) -> None:
    frames, (height, width), K = len(trajectory.c2w), trajectory.size, np.asarray(trajectory.K)
    t, h, w = grid
    if min(grid) < 1 or fine < 1:
        raise ValueError(f"a noise map needs a positive grid (t, h, w) and fine >= 1, got {grid} and {fine}")
    if trajectory.c2w.shape != (frames, 4, 4) or not np.isfinite(trajectory.c2w).all() or not trajectory.depth > 0:
        raise ValueError(
            f"a trajectory has finite poses [T, 4, 4] and a positive depth, got {trajectory.c2w.shape} and {trajectory.depth}"
        )
    if (t == 1 and frames < 1) or (t > 1 and (frames < t or (frames - 1) % (t - 1))):
        raise ValueError(
            f"{frames} poses do not divide into {t} latent frames; frames must be 1 + stride (t - 1), for example 17 -> 5"
        )
    if K.shape != (3, 3) or not (K[0, 0] > 0 and K[1, 1] > 0 and 0 < K[0, 2] < width and 0 < K[1, 2] < height):
        raise ValueError(f"K must be [3, 3] intrinsics in pixels of size (height, width) = {trajectory.size}, got {K.tolist()}")
    zoom = trajectory.zoom
    if zoom is not None and (zoom.shape != (frames,) or not np.isfinite(zoom).all() or not (zoom > 0).all()):
        raise ValueError(f"a trajectory's zoom is a positive factor a frame, [{frames}], got {zoom!r}")
    if abs(math.log((height / h) / (width / w))) > math.log(1.25):
        raise ValueError(
            f"latents of (h, w) = {(h, w)} do not fit a video of (height, width) = {trajectory.size}: the shapes differ"
        )


@dataclass(frozen=True)
class _View:
    """Poses of the latent frames and intrinsics in fine pixels, float64."""

    rotation: torch.Tensor  #: [t, 3, 3]
    origin: torch.Tensor  #: [t, 3] in units of depth
    focal: tuple[float, float]
    #: [t] factor on the focal lengths by frame, None if they are constant.
    zoom: torch.Tensor | None
    centre: tuple[float, float]
    size: tuple[int, int]  #: (rows, columns) of the fine grid


def _view(trajectory: Trajectory, grid: tuple[int, int, int], fine: int, device: torch.device | str) -> _View:
    t, h, w = grid
    height, width = trajectory.size
    stride = (len(trajectory.c2w) - 1) // (t - 1) if t > 1 else 1
    pose = torch.as_tensor(np.ascontiguousarray(trajectory.c2w[::stride][:t]), dtype=torch.float64, device=device)
    sx, sy = w * fine / width, h * fine / height
    zoom = None
    if trajectory.zoom is not None:
        zoom = torch.as_tensor(np.ascontiguousarray(trajectory.zoom[::stride][:t]), dtype=torch.float64, device=device)
    K = trajectory.K.astype(np.float64)
    return _View(
        rotation=pose[:, :3, :3],
        origin=pose[:, :3, 3] / trajectory.depth,
        focal=(float(K[0, 0]) * sx, float(K[1, 1]) * sy),
        zoom=zoom,
        centre=(float(K[0, 2]) * sx, float(K[1, 2]) * sy),
        size=(h * fine, w * fine),
    )


def _build(trajectory: Trajectory, grid: tuple[int, int, int], fine: int, device: torch.device | str) -> NoiseMap:
    t, h, w = grid
    anchor = _choose_anchor(_view(trajectory, grid, fine, "cpu"))
    view = _view(trajectory, grid, fine, device)
    axis = lambda n: torch.arange(n, dtype=torch.float64, device=device) + 0.5  # noqa: E731
    y, x = torch.meshgrid(axis(h * fine), axis(w * fine), indexing="ij")
    x, y = (a.view(h, fine, w, fine).transpose(1, 2).reshape(-1) for a in (x, y))
    rays = _rays(view, x, y)
    columns, rows, hits = [], [], []
    for frames in torch.arange(t, device=device).split(t if rays.is_cuda else 1):  # one at a time stays in a CPU's cache
        point, hit = _points(view, frames, rays)
        u, v = _seen(view, anchor, point)
        columns.append(u.add_(_TIE).floor_().int())
        rows.append(v.add_(_TIE).floor_().int())
        hits.append(hit)
    ids, cells = _compact(torch.cat(columns), torch.cat(rows), torch.cat(hits))
    return _structure(ids, cells, anchor, grid, fine)


def _rays(view: _View, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Unit rays [N, 3] through pixels [N] in camera axes."""
    rays = torch.stack([(x - view.centre[0]) / view.focal[0], (y - view.centre[1]) / view.focal[1], torch.ones_like(x)], -1)
    return rays / rays.norm(dim=-1, keepdim=True)


def _points(view: _View, frames: torch.Tensor, rays: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Points [F, N, 3] of the proxy (units of depth) that the rays (at zoom 1) of frames [F] meet, and whether they do, [F, N]."""
    if view.zoom is not None:
        rays = rays / torch.stack([view.zoom[frames], view.zoom[frames], torch.ones_like(view.zoom[frames])], -1)[:, None]
        rays = rays / rays.norm(dim=-1, keepdim=True)
    direction = rays @ view.rotation[frames].transpose(-1, -2)
    origin = view.origin[frames][:, None]
    distance, hit = _cast(origin, direction)
    return torch.addcmul(origin, distance[..., None], direction), hit


def _seen(view: _View, anchor: int | torch.Tensor, point: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Extended image coordinates of points [F, N, 3] in one anchor camera ([F, N]) or in several ([A] -> [A, F, N])."""
    if isinstance(anchor, torch.Tensor):
        origin, rotation = view.origin[anchor][:, None, None], view.rotation[anchor][:, None]
    else:
        origin, rotation = view.origin[anchor], view.rotation[anchor]
    x, y, z = ((point - origin) @ rotation).unbind(-1)
    if view.zoom is not None:
        zoom = view.zoom[anchor]
        zoom = zoom[:, None, None] if isinstance(anchor, torch.Tensor) else zoom
        x, y = x * zoom, y * zoom  # outside the image too, where any continuation will do that is continuous and one to one
    return _extended(view, x, y, z)


def _cast(origin: torch.Tensor, direction: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Distance along unit rays to the proxy (units of depth), and whether they hit it.

    The body is {z <= 1} with {|X| <= 2}: from inside the exit counts, from outside the entry.
    """
    along = (direction @ origin.transpose(-1, -2))[..., 0]
    inside = along.square() - origin.square().sum(-1) + _RADIUS**2
    root = inside.clamp(min=0).sqrt()
    near, far = -along - root, -along + root
    dz = direction[..., 2]
    to_plane = (1.0 - origin[..., 2]) / torch.where(dz.abs() < 1e-12, 1e-12, dz)
    far = torch.where(dz > 0, torch.minimum(far, to_plane), far)
    near = torch.where(dz < 0, torch.maximum(near, to_plane), near)
    hit = (inside > 0) & (far > near) & (far > 0)
    return torch.where(near > 0, near, far), hit


def _extended(view: _View, x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Image coordinates of points in the anchor camera, continued linearly in the angle outside the image; finite everywhere."""
    (fx, fy), (cx, cy), (rows, columns) = view.focal, view.centre, view.size
    low, high = math.atan(-cx / fx), math.atan((columns - cx) / fx)
    angle = torch.atan2(x, z)
    inner = angle.clamp(low, high)
    u = cx + fx * torch.where(inner == angle, x / torch.where(z.abs() < 1e-12, 1e-12, z), inner.tan())
    u = u + fx * (angle - inner) / inner.cos().square()
    depth = torch.where(inner == angle, z, torch.hypot(x, z) * inner.cos()).clamp(min=1e-12)
    low, high = -cy / fy, (rows - cy) / fy
    slope = y / depth
    edge = slope.clamp(low, high)
    v = cy + fy * (edge + (slope.atan() - edge.atan()) * (1 + edge.square()))
    return u, v


def _choose_anchor(view: _View) -> int:
    """The latent frame into which the pixels of all frames map with the least shrinking: least mean of log max(1, area ratio)."""
    t = len(view.origin)
    rows, columns = view.size
    spread = lambda n, size: torch.linspace(0.04, 0.96, n, dtype=torch.float64) * size  # noqa: E731
    y, x = torch.meshgrid(spread(7, rows), spread(11, columns), indexing="ij")
    x, y, step = x.reshape(-1), y.reshape(-1), 0.25
    index = torch.arange(t)
    stencil = torch.cat([x - step, x + step, x, x]), torch.cat([y, y, y - step, y + step])
    point, hit = _points(view, index, _rays(view, *stencil))
    u, v = (value.unflatten(-1, (4, -1)) for value in _seen(view, index, point))
    area = ((u[:, :, 1] - u[:, :, 0]) * (v[:, :, 3] - v[:, :, 2]) - (u[:, :, 3] - u[:, :, 2]) * (v[:, :, 1] - v[:, :, 0])) / (
        2 * step
    ) ** 2
    loss = torch.where(hit.unflatten(-1, (4, -1)).all(1), area.abs().clamp(min=1.0).log(), 0.0).mean((1, 2))
    return int((loss <= loss.min() + 1e-6).nonzero()[0, 0])


def _compact(column: torch.Tensor, row: torch.Tensor, hit: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Number the cells that occur from 0 in raster order: int32 ids like `column`, -1 where the ray missed; and their number."""
    if not bool(hit.any()):
        return torch.full_like(column, -1, dtype=torch.int32), 0
    column, row = (torch.where(hit, value, torch.where(hit, value, 1 << 30).min()) for value in (column, row))
    column, row = column - column.min(), row - row.min()
    raster = row.long() * (int(column.max()) + 1) + column
    used = torch.zeros(int(raster.max()) + 1, dtype=torch.bool, device=raster.device)
    used[torch.where(hit, raster, raster[hit][0])] = True
    number = used.cumsum(0, dtype=torch.int32) - 1
    return torch.where(hit, number[raster], -1).int(), int(number[-1]) + 1


def _structure(ids: torch.Tensor, cells: int, anchor: int, grid: tuple[int, int, int], fine: int) -> NoiseMap:
    """Counts and straddling cells of compact ids [t, P]."""
    t, h, w = grid
    blocks, device = h * w, ids.device
    frame = torch.arange(t, device=device)[:, None]
    slot = torch.where(ids < 0, cells, ids.long()) + frame * (cells + 1)  # one spare slot a frame for own cells
    count = torch.bincount(slot.flatten(), minlength=t * (cells + 1))
    weight = torch.where(ids < 0, 0.0, count[slot].float().rsqrt())
    own = (ids < 0).view(t, blocks, fine * fine).sum(-1)
    block = (torch.arange(blocks, device=device).repeat_interleave(fine * fine) + frame * blocks).expand_as(ids)
    some = torch.zeros_like(count)
    some[slot.flatten()] = block.flatten()  # any block of the cell will do: one that differs from it proves straddling
    straddles = torch.zeros_like(count, dtype=torch.bool)
    straddles[slot[(block != some[slot]) & (ids >= 0)]] = True
    chosen = straddles[slot]
    pair, pair_count = torch.unique(slot[chosen] * (t * blocks) + block[chosen], return_counts=True)
    cell, pair_cell = torch.unique_consecutive(pair // (t * blocks), return_inverse=True)
    return NoiseMap(grid, fine, ids, cells, anchor, weight, own, pair % (t * blocks), pair_cell, pair_count, count[cell])
