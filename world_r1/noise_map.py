"""The map behind camera-warped noise: which pixels of a video's latent frames lie in the same canonical cell. See `noise` for its use.

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
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

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
    #: Whether any pixel has a cell of its own.
    owns: bool

    @property
    def nbytes(self) -> int:
        """Memory of the tensors in bytes."""
        return sum(value.nbytes for value in vars(self).values() if isinstance(value, torch.Tensor))


def check(trajectory: Trajectory, grid: tuple[int, int, int], fine: int) -> None:
    """ValueError if poses, intrinsics, zoom and grid do not belong together."""
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


def build(trajectory: Trajectory, grid: tuple[int, int, int], fine: int, device: torch.device | str) -> NoiseMap:
    """The map of a trajectory that `check` let pass."""
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
    owns = bool(own.any())
    return NoiseMap(grid, fine, ids, cells, anchor, weight, own, pair % (t * blocks), pair_cell, pair_count, count[cell], owns)
