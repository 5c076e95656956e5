"""Camera-warped noise: exactly white and N(0, 1) in every frame, correlated between frames as the projection says."""

import math
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from world_r1 import camera, noise, rng
from world_r1.camera import PRESETS
from world_r1.config import NoiseConfig
from world_r1.types import Trajectory

PURE = NoiseConfig(degradation=0.0, strength=1.0, fine=4)
CHANNELS = 2000
MOVES = ("push in", "pull out", "pan left", "orbit right", "move up", "push in, then pan left", "orbit left and tilt up")
#: A small odd grid: 9 frames of 40x56 pixels, latents (3, 5, 7).
FRAMES, SIZE, GRID = 9, (40, 56), (3, 5, 7)


def trajectory(text: str, preset: str = "blockworld", frames: int = FRAMES, size: tuple[int, int] = SIZE) -> Trajectory:
    command = camera.parse(text)
    assert command is not None
    return camera.trajectory(command, frames, size, PRESETS[preset])


def shifted(cells: float, depth: float = 2.0) -> Trajectory:
    """Two frames, the second moved to the right by so many latent cells of 8 pixels on the plane."""
    c2w = np.eye(4, dtype=np.float32)[None].repeat(2, 0)
    K = camera.intrinsics(SIZE, 1.0)
    c2w[1, 0, 3] = cells * 8 * depth / K[0, 0]
    return Trajectory(c2w=c2w, K=K, size=SIZE, depth=depth)


def panned(cells: float) -> Trajectory:
    """Two frames, the second panned so that the centre moves by so many latent cells of 8 pixels."""
    K = camera.intrinsics(SIZE, 1.0)
    angle = math.atan(cells * 8 / K[0, 0])
    c2w = np.eye(4, dtype=np.float32)[None].repeat(2, 0)
    c2w[1, :3, :3] = [[math.cos(angle), 0, math.sin(angle)], [0, 1, 0], [-math.sin(angle), 0, math.cos(angle)]]
    return Trajectory(c2w=c2w, K=K, size=SIZE, depth=2.0)


def predicted(where: noise.NoiseMap, a: int, b: int) -> np.ndarray:
    """[hw, hw] covariance between latent frames a and b from the counts m and k (the module's formula), by loops over pixels."""
    t, h, w = where.grid
    ids = where.ids.numpy().reshape(t, h * w, -1)
    count = np.zeros((t, h * w, where.cells))
    for frame in (a, b):
        for block in range(h * w):
            np.add.at(count[frame, block], ids[frame, block][ids[frame, block] >= 0], 1.0)
    total = count.sum(1, keepdims=True)
    weight = count / np.sqrt(np.maximum(total, 1))
    return weight[a] @ weight[b].T / where.fine**2


def measured(x: torch.Tensor, a: int, b: int) -> np.ndarray:
    """[hw, hw] covariance between frames over channels of x [C, t, h, w]."""
    flat = x.flatten(2).double().numpy()
    return flat[:, a].T @ flat[:, b] / len(flat)


def kolmogorov(values: np.ndarray) -> float:
    """sqrt(n) times the largest distance between the empirical and the normal distribution function; 1.95 is its 0.1 % bound."""
    ordered = np.sort(values.ravel())
    normal = np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in ordered])
    rank = np.arange(len(ordered) + 1) / len(ordered)
    return math.sqrt(len(ordered)) * max(np.abs(normal - rank[1:]).max(), np.abs(normal - rank[:-1]).max())


# ---- the law within a frame


def excess(x: torch.Tensor, a: int, b: int, want: np.ndarray) -> float:
    """Largest deviation of a covariance from what it should be, in standard errors."""
    error = np.sqrt((1 + want**2) / len(x))
    return float((np.abs(measured(x, a, b) - want) / error).max())


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("text", MOVES)
def test_white_within_frames_and_correlated_between_them(text: str, preset: str) -> None:
    """Within a frame the covariance is the identity; between frames it is what the counts of pixels in cells say."""
    path = trajectory(text, preset)
    x = noise.initial_noise(path, (CHANNELS, *GRID), PURE, 1, text)
    where = noise.noise_map(path, GRID, PURE.fine)
    for frame in range(GRID[0]):
        assert excess(x, frame, frame, np.eye(35)) < 5.0
    for a, b in ((0, 1), (0, 2)):
        want = predicted(where, a, b)
        assert want.max() > 0.2
        assert excess(x, a, b, want) < 5.0


@pytest.mark.parametrize("text", ["push in", "pull out", "orbit left"])
def test_values_are_normal_over_many_seeds(text: str) -> None:
    path = trajectory(text)
    x = np.stack([noise.initial_noise(path, (4, *GRID), PURE, seed).numpy() for seed in range(60)])
    for frame in range(GRID[0]):
        values = x[:, :, frame].astype(np.float64).ravel()
        n = len(values)
        assert kolmogorov(values) < 1.95
        assert abs(values.mean()) < 4 / math.sqrt(n)
        assert abs(values.var() - 1) < 4 * math.sqrt(2 / n)
        assert abs((values**3).mean()) < 4 * math.sqrt(15 / n)
        assert abs((values**4).mean() - 3) < 4 * math.sqrt(96 / n)


@pytest.mark.parametrize("text", ["push in quickly", "pull out", "pan right", "orbit left, then push in"])
def test_no_spatial_autocorrelation_at_full_size(text: str) -> None:
    x = noise.initial_noise(trajectory(text, frames=17, size=(96, 160)), (16, 5, 12, 20), PURE, 3)
    for dy, dx in ((0, 1), (1, 0), (1, 1), (0, 2), (2, 0)):
        product = x[..., dy:, dx:] * x[..., : 12 - dy, : 20 - dx]
        assert (product.mean((0, 2, 3)).abs() * math.sqrt(product[:, 0].numel())).max() < 4.5


def test_a_heavy_zoom_keeps_the_law() -> None:
    """One cell fills many latents; what the fresh part must supply is then nearly everything."""
    path = trajectory("fixed")
    c2w = path.c2w.copy()
    c2w[:, 2, 3] = np.linspace(0, 0.93, FRAMES) * path.depth
    x = noise.initial_noise(replace(path, c2w=c2w), (CHANNELS, *GRID), PURE, 5)
    assert excess(x, 2, 2, np.eye(35)) < 5.0
    assert kolmogorov(x[:200, 2].numpy()) < 1.95


# ---- the law between frames


def test_a_static_camera_gives_identical_frames() -> None:
    x = noise.initial_noise(trajectory("fixed"), (16, *GRID), PURE, 1)
    assert torch.equal(x[:, 0], x[:, 1])
    assert torch.equal(x[:, 0], x[:, 2])


@pytest.mark.parametrize(
    "text", ["push in slowly", "pull out slowly", "pan left slowly", "orbit right slowly", "move right", "tilt down slowly"]
)
def test_noise_moves_as_the_plane_projects(text: str) -> None:
    """A last-frame latent correlates with the first-frame latents that the plane's homography spreads it over, in their shares."""
    path = trajectory(text)
    K, last = path.K.astype(np.float64), path.c2w[-1].astype(np.float64)
    _, h, w = GRID
    covariance = predicted(noise.noise_map(path, GRID, 16), 2, 0).reshape(h, w, h, w)
    offsets = (np.arange(40) + 0.5) / 40
    checked = 0
    for row, column in np.ndindex(h, w):
        pixels = np.stack(np.meshgrid(8 * (column + offsets), 8 * (row + offsets), [1.0]), -1).reshape(-1, 3)
        rays = np.linalg.solve(K, pixels.T).T @ last[:3, :3].T
        points = last[:3, 3] + rays * ((path.depth - last[2, 3]) / rays[:, 2:])
        u, v = (points @ K.T / points[:, 2:]).T[:2] / 8
        if u.min() < 0 or u.max() >= w or v.min() < 0 or v.max() >= h or np.linalg.norm(points, axis=1).max() > 1.95 * path.depth:
            continue
        share = np.zeros((h, w))
        np.add.at(share, (v.astype(int), u.astype(int)), 1 / len(u))
        np.testing.assert_allclose(covariance[row, column] / covariance[row, column].sum(), share, atol=0.08)
        checked += 1
    assert checked >= 4


@pytest.mark.parametrize("make", [shifted, panned])
@pytest.mark.parametrize(("cells", "fine"), [(0.4, 20), (0.4, 8), (1.25, 8), (0.05, 16)])
def test_motion_below_a_cell_interpolates(make, cells: float, fine: int) -> None:
    """z' = (1 - s) of one neighbour and s of the next: covariance 1 - s with the one, s with the other, to half a pixel."""
    covariance = predicted(noise.noise_map(make(cells), (2, 5, 7), fine), 1, 0).reshape(5, 7, 5, 7)
    whole, part = divmod(cells, 1.0)
    near, far = covariance[2, 3, 2, 3 + int(whole)], covariance[2, 3, 2, 4 + int(whole)]
    tolerance = 0.5 / fine + (0.02 if make is panned else 1e-6)
    assert near == pytest.approx(1 - part, abs=tolerance)
    assert far == pytest.approx(part, abs=tolerance)


def test_samples_show_motion_below_a_cell() -> None:
    x = noise.initial_noise(panned(0.4), (4000, 2, 5, 7), NoiseConfig(degradation=0, fine=10), 6)
    covariance = measured(x, 1, 0).reshape(5, 7, 5, 7)
    assert covariance[2, 3, 2, 3] == pytest.approx(0.6, abs=0.08)
    assert covariance[2, 3, 2, 4] == pytest.approx(0.4, abs=0.08)
    assert abs(covariance[2, 3, 2, 2]) < 0.08


@pytest.mark.parametrize(
    ("text", "anchor"), [("fixed", 0), ("push in", 0), ("pull out", 2), ("pan left", 1), ("tilt up", 1), ("move left", 0)]
)
def test_the_anchor_sees_the_world_coarsest(text: str, anchor: int) -> None:
    where = noise.noise_map(trajectory(text, "world_r1"), GRID, 8)
    assert where.anchor == anchor
    ids = where.ids[anchor]
    assert len(ids.unique()) == len(ids)  # the anchor's own pixels are cells


def test_all_motions_and_presets_give_valid_maps() -> None:
    for preset in PRESETS:
        for text in (*camera.MOTIONS, "push in, then orbit left, then tilt up", "pull out and pan right quickly"):
            where = noise.noise_map(trajectory(text, preset), GRID, 4)
            assert where.ids.shape == (3, 5 * 7 * 16)
            assert where.ids.min() >= 0
            assert len(where.ids.unique()) == where.cells == int(where.ids.max()) + 1
            assert torch.isfinite(where.weight).all()


def test_rays_that_miss_get_fresh_noise() -> None:
    """A camera that has run through the plane sees no proxy: independent of the other frames, and still white."""
    path = trajectory("fixed")
    c2w = path.c2w.copy()
    c2w[:, 2, 3] = np.linspace(0, 1.6, FRAMES) * path.depth
    gone = replace(path, c2w=c2w)
    where = noise.noise_map(gone, GRID, 8)
    assert where.own[2].eq(64).all()
    assert where.own[0].eq(0).all()
    x = noise.initial_noise(gone, (CHANNELS, *GRID), NoiseConfig(degradation=0, fine=8), 8)
    assert excess(x, 2, 0, np.zeros((35, 35))) < 5.0
    assert excess(x, 2, 2, np.eye(35)) < 5.0


# ---- degradation, strength, seeds


def test_degradation_and_strength_blend_at_unit_variance() -> None:
    path, shape = trajectory("push in"), (8, *GRID)
    draw = lambda **options: noise.initial_noise(path, shape, NoiseConfig(**{"degradation": 0.0, **options}), 9)  # noqa: E731
    warped, white = draw(), noise.initial_noise(None, shape, PURE, 9)
    assert torch.equal(draw(strength=0.0), white)
    assert torch.equal(draw(warp=False), white)
    assert torch.allclose(draw(strength=0.45), (0.55 * white + 0.45 * warped) / math.hypot(0.55, 0.45), atol=1e-6)
    fresh = draw(degradation=1.0)
    assert torch.allclose(draw(degradation=0.35), (0.65 * warped + 0.35 * fresh) / math.hypot(0.65, 0.35), atol=1e-6)
    for one, other in ((warped, white), (warped, fresh), (white, fresh)):
        assert abs((one * other).mean()) < 4.5 / math.sqrt(one.numel())


def test_degradation_sets_the_correlation_of_a_static_camera() -> None:
    x = noise.initial_noise(trajectory("fixed"), (1000, *GRID), NoiseConfig(degradation=0.35, fine=2), 1).double()
    ceiling = 0.65**2 / (0.65**2 + 0.35**2)
    assert (x[:, 0] * x[:, 2]).mean().item() == pytest.approx(ceiling, abs=0.02)
    assert x.var().item() == pytest.approx(1.0, abs=0.02)


def test_noise_is_a_function_of_its_key() -> None:
    path, shape = trajectory("orbit left"), (16, *GRID)
    state = torch.get_rng_state()
    first = noise.initial_noise(path, shape, NoiseConfig(), 7, 3, 1, 0)
    noise.forget()
    assert torch.equal(noise.initial_noise(path, shape, NoiseConfig(), 7, 3, 1, 0), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.shape == shape
    assert first.dtype == torch.float32
    assert first.is_contiguous()
    for key in ((7, 3, 1, 1), (8, 3, 1, 0), (7, 3, 1, "0")):
        other = noise.initial_noise(path, shape, NoiseConfig(), *key)
        assert abs((other * first).mean()) < 4.5 / math.sqrt(first.numel())


def test_channels_do_not_depend_on_each_other_or_on_the_cache() -> None:
    maps = noise._Cache(budget=1)
    where = noise.noise_map(trajectory("push in"), GRID, 4)
    maps.put(("a",), where)
    maps.put(("b",), where)
    assert maps.get(("a",)) is None
    assert maps.get(("b",)) is where
    assert noise.noise_map(trajectory("push in"), GRID, 4) is where


def test_the_counter_based_generator() -> None:
    drawn = lambda seed, count: noise._normals(torch.tensor([seed]), count, 1, "cpu")[:, 0]  # noqa: E731
    x = drawn(123, 200_001)
    assert torch.equal(drawn(123, 1001), x[:1001])
    assert kolmogorov(x[:100_000].numpy()) < 1.95
    for lag in (1, 2, 3, 64):
        assert abs((x[lag:] * x[:-lag]).mean()) < 4.5 / math.sqrt(len(x))
    for seed in (124, -5, 2**62):
        assert abs((drawn(seed, len(x)) * x).mean()) < 4.5 / math.sqrt(len(x))
    assert torch.isfinite(x).all()


@pytest.mark.parametrize("text", ["push in", "orbit left", None])
@pytest.mark.parametrize(("strength", "ahead"), [(1.0, 0), (0.7, 1)])
def test_samples_drawn_together_are_those_drawn_alone(text: str | None, strength: float, ahead: int) -> None:
    path = trajectory(text) if text else None
    settings, keys = NoiseConfig(strength=strength, fine=4), [(0, 1, 2), (0, "b"), (2**40,)]
    shape = (3, GRID[0] + ahead, *GRID[1:])
    together = noise.initial_noises(path, shape, settings, keys, ahead=ahead)
    alone = [noise.initial_noise(path, shape, settings, *key, ahead=ahead) for key in keys]
    assert torch.equal(together, torch.stack(alone))
    assert not torch.equal(together[0], together[1])


# ---- the batched core


def test_batched_warp_has_the_law_of_single_samples() -> None:
    paths = [trajectory(text) for text in ("push in", "pull out", "orbit left", "fixed")]
    maps = [noise.noise_map(path, GRID, 4) for path in paths]
    ids, cells = torch.stack([where.ids for where in maps]).long(), max(where.cells for where in maps)
    x = noise.warp(ids, cells, CHANNELS, GRID, rng.generator(1, "warp"))
    assert x.shape == (4, CHANNELS, *GRID)
    for sample, where in zip(x, maps, strict=True):
        assert excess(sample, 2, 2, np.eye(35)) < 5.0
        assert excess(sample, 0, 2, predicted(where, 0, 2)) < 5.0
    assert torch.equal(x, noise.warp(ids, cells, CHANNELS, GRID, rng.generator(1, "warp")))
    assert torch.allclose(x[3][:, 0], x[3][:, 2], atol=1e-5)
    assert abs((x[0] * x[1]).mean()) < 4.5 / math.sqrt(x[0].numel())


def test_batched_warp_with_cells_of_their_own() -> None:
    ids = torch.full((2, 2, 3 * 5 * 16), -1)
    ids[:, 0] = torch.arange(240)
    x = noise.warp(ids, 240, 2000, (2, 3, 5), rng.generator(2, "warp"))
    assert excess(x[0], 1, 1, np.eye(15)) < 5.0
    assert excess(x[0], 0, 1, np.zeros((15, 15))) < 5.0
    with pytest.raises(ValueError, match="do not fit"):
        noise.warp(ids, 240, 4, (2, 4, 5), rng.generator(2, "warp"))


# ---- sizes and errors


@pytest.mark.parametrize(
    ("frames", "size", "grid"), [(1, (40, 56), (1, 5, 7)), (5, (90, 166), (2, 12, 21)), (21, (33, 50), (6, 4, 6))]
)
def test_odd_sizes(frames: int, size: tuple[int, int], grid: tuple[int, int, int]) -> None:
    x = noise.initial_noise(trajectory("push in", frames=frames, size=size), (3, *grid), NoiseConfig(fine=3), 1)
    assert x.shape == (3, *grid)
    assert torch.isfinite(x).all()


def test_what_does_not_fit_is_refused() -> None:
    path = trajectory("push in")
    wrong_grid = [("divide", (4, 5, 7)), ("divide", (12, 5, 7)), ("shapes differ", (3, 7, 5)), ("positive", (3, 0, 7))]
    wrong_path = [
        ("intrinsics", replace(path, K=camera.intrinsics((480, 832), 1.0))),
        ("intrinsics", replace(path, K=np.zeros((3, 3), np.float32))),
        ("finite", replace(path, c2w=path.c2w * np.nan)),
        ("finite", replace(path, depth=0.0)),
    ]
    for match, given, grid in [(m, path, g) for m, g in wrong_grid] + [(m, p, GRID) for m, p in wrong_path]:
        with pytest.raises(ValueError, match=match):
            noise.initial_noise(given, (4, *grid), PURE, 1)


def test_blockworld_takes_well_under_a_second_and_a_half() -> None:
    noise.forget()
    begin = time.process_time()
    x = noise.initial_noise(trajectory("orbit left", frames=17, size=(96, 160)), (16, 5, 12, 20), NoiseConfig(), 1)
    assert time.process_time() - begin < 1.5
    assert x.shape == (16, 5, 12, 20)
