"""Camera-warped Gaussian noise: the rule for x_T everywhere, in training, sampling and evaluation.

The idea (Go-with-the-Flow, arXiv 2501.08331; World-R1, arXiv 2604.24764, eq. 6-7) is to move the initial noise of a video as its
camera moves, while every frame stays white N(0, 1). Those works warp frame after frame and drop what is below a pixel in each step.
Here every latent frame is mapped *directly* to one canonical set of cells (`noise_map`), so nothing drifts.

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
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from world_r1 import rng
from world_r1.config import NoiseConfig
from world_r1.noise_map import NoiseMap, build, check
from world_r1.types import Trajectory

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
    return initial_noises(trajectory, shape, noise, [key], device=device, ahead=ahead)[0]


def initial_noises(
    trajectory: Trajectory | None,
    shape: tuple[int, int, int, int],
    noise: NoiseConfig,
    keys: Sequence[tuple[int | str, ...]],
    *,
    device: torch.device | str = "cpu",
    ahead: int = 0,
) -> torch.Tensor:
    """`initial_noise` of several samples of one trajectory, float32 [len(keys), C, t, h, w] on the CPU: few kernels for all."""
    channels, *grid = shape
    if ahead:
        video = initial_noises(trajectory, (channels, grid[0] - ahead, grid[1], grid[2]), noise, keys, device=device)
        before = [torch.randn(channels, ahead, *grid[1:], generator=rng.generator(*key, "x_T", "ahead")) for key in keys]
        return torch.cat([torch.stack(before), video], dim=2)
    if len(shape) != 4 or min(shape) < 1:
        raise ValueError(f"latent noise has shape (C, t, h, w), all positive, got {shape}")
    drawn = [torch.randint(-(2**63), 2**63 - 1, (5,), dtype=torch.int64, generator=rng.generator(*key, "x_T")) for key in keys]
    seeds = torch.stack(drawn, 1)  # [5, samples]
    size = math.prod(grid)
    white = lambda which: _normals(seeds[which], size, channels, device).float()  # noqa: E731
    if trajectory is None or not noise.warp:
        x = white(4)
    else:
        x = _warped(noise_map(trajectory, (grid[0], grid[1], grid[2]), noise.fine, device=device), channels, seeds)
        if noise.degradation > 0:
            x = _mix(x, white(3), noise.degradation)
        if noise.strength < 1:
            x = _mix(white(4), x, noise.strength)
    return x.view(size, len(keys), channels).permute(1, 2, 0).reshape(len(keys), channels, *grid).contiguous().cpu()


def _mix(first: torch.Tensor, second: torch.Tensor, share: float) -> torch.Tensor:
    """Blend two independent unit Gaussians at unit variance; `share` 0 is the first, 1 the second."""
    return ((1 - share) * first + share * second) / math.hypot(1 - share, share)


def _warped(where: NoiseMap, channels: int, seeds: torch.Tensor) -> torch.Tensor:
    """Warped noise [t h w, S C] from seeds [3 or more, S]: of cells, own cells and straddling pairs. Samples lie beside each other as
    channels do."""
    device, fine = where.ids.device, where.fine
    blocks = where.own.numel()
    cells = _normals(seeds[0], max(where.cells, 1), channels, device).float()
    bags = where.ids.clamp(min=0).view(blocks, fine * fine)
    x = F.embedding_bag(bags, cells, per_sample_weights=where.weight.view(bags.shape), mode="sum")
    if where.owns:
        x += where.own.view(-1, 1).sqrt() * _normals(seeds[1], blocks, channels, device).float()
    if len(where.pair_block):
        g = _normals(seeds[2], len(where.pair_block), channels, device)
        sums = where.pair_count[:, None].double().sqrt() * g
        # float64 sums: the order of atomic additions on a GPU then vanishes in the rounding to float32
        totals = torch.zeros(len(where.cell_count), sums.shape[1], dtype=torch.float64, device=device).index_add_(
            0, where.pair_cell, sums
        )
        share = where.pair_count.double() / where.cell_count[where.pair_cell]
        residual = torch.zeros(blocks, sums.shape[1], dtype=torch.float64, device=device)
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


def _normals(seeds: torch.Tensor, rows: int, channels: int, device: torch.device | str) -> torch.Tensor:
    """float64 [rows, S C] standard normals for seeds int64 [S]; number (row, channel) of a seed is a function of it and the place alone.

    SplitMix64 bits, Box-Muller transform.
    """
    count = rows * channels
    bits = torch.arange((count + 1) // 2, dtype=torch.int64, device=device)
    bits = bits.mul_(-7046029254386353131) + seeds.to(device)[:, None]  # 0x9E3779B97F4A7C15
    bits.bitwise_xor_((bits >> 30) & 0x3FFFFFFFF).mul_(-4658895280553007687)  # 0xBF58476D1CE4E5B9
    bits.bitwise_xor_((bits >> 27) & 0x1FFFFFFFFF).mul_(-7723592293110705685)  # 0x94D049BB133111EB
    bits.bitwise_xor_((bits >> 31) & 0x1FFFFFFFF)
    uniform = ((bits >> 32) & 0xFFFFFFFF).double().add_(0.5).mul_(2.0**-32)
    angle = (bits & 0xFFFFFFFF).double().mul_(2.0 * math.pi * 2.0**-32)
    radius = uniform.log_().mul_(-2.0).sqrt_()
    numbers = torch.stack([radius * angle.cos(), radius * angle.sin()], -1).flatten(1)[:, :count]
    return numbers.view(len(seeds), rows, channels).transpose(0, 1).reshape(rows, len(seeds) * channels)


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
    check(trajectory, grid, fine)
    zoom = None if trajectory.zoom is None else trajectory.zoom.tobytes()
    parts = (trajectory.c2w.tobytes(), trajectory.K.tobytes(), trajectory.size, trajectory.depth, zoom)
    key = (*parts, grid, fine, str(torch.device(device)))
    found = _CACHE.get(key)
    if found is None:
        found = build(trajectory, grid, fine, device)
        _CACHE.put(key, found)
    return found
