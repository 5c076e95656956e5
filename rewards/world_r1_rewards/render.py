"""Rendering of reconstructions: coloured points with a depth buffer (always), gaussians (gsplat on a GPU, a plain reference elsewhere).

Cameras are OpenCV c2w matrices with intrinsics K in pixels of the picture that is drawn; pixel centres lie at +0.5.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F

#: What lies within this share behind the nearest point of a pixel is on the same surface and blended with it.
SAME_SURFACE = 1.02
#: Constants of the real spherical harmonics up to degree 2, in the order that 3D gaussian splatting uses.
SH0, SH1 = 0.28209479177387814, 0.4886025119029199
SH2 = (1.0925484305920792, -1.0925484305920792, 0.31539156525252005, -1.0925484305920792, 0.5462742152960396)


class Rendered(NamedTuple):
    """Pictures of V cameras."""

    image: torch.Tensor  #: [V, H, W, 3] in 0..1, black where nothing is
    covered: torch.Tensor  #: [V, H, W]: bool for points, opacity in 0..1 for gaussians
    depth: torch.Tensor  #: [V, H, W] z-depth in the unit of the points, 0 where nothing is


@dataclass(frozen=True)
class Gaussians:
    """N gaussians in world space. Example: `Gaussians(means=<Nx3>, scales=<Nx3>, rotations=<Nx4>, opacities=<N>, harmonics=<Nx3x9>)`"""

    #: [N, 3] centres; [N, 3] standard deviations along the own axes; [N, 4] unit quaternions w, x, y, z (own axes to world); [N] in 0..1.
    means: torch.Tensor
    scales: torch.Tensor
    rotations: torch.Tensor
    opacities: torch.Tensor
    #: [N, 3, D] colour as spherical harmonics, D = 1, 4, 9 or 16 (degree 0 to 3).
    harmonics: torch.Tensor

    def __post_init__(self) -> None:
        n, degrees = len(self.means), (1, 4, 9, 16)
        shapes = {"means": (n, 3), "scales": (n, 3), "rotations": (n, 4), "opacities": (n,)}
        for name, shape in shapes.items():
            if tuple(getattr(self, name).shape) != shape:
                raise ValueError(f"gaussians: {name} must be {shape}, got {tuple(getattr(self, name).shape)}")
        if self.harmonics.shape[:2] != (n, 3) or self.harmonics.shape[2] not in degrees:
            raise ValueError(f"gaussians: harmonics must be ({n}, 3, 1 | 4 | 9 | 16), got {tuple(self.harmonics.shape)}")


def splat(points: torch.Tensor, colours: torch.Tensor, c2w: torch.Tensor, K: torch.Tensor, size: tuple[int, int]) -> Rendered:
    """Draw coloured points into V pictures of `size` (height, width) with a depth buffer, all views at once.

    `points` [N, 3] world, `colours` [N, 3] in 0..1, `c2w` [V, 4, 4], `K` [3, 3] or [V, 3, 3] in pixels of `size`. A point paints the
    2x2 pixels about it; the nearest wins. Small holes are filled from their painted neighbours and count as covered.
    """
    height, width = size
    views = len(c2w)
    K = K.expand(views, 3, 3)
    local = (points - c2w[:, None, :3, 3]) @ c2w[:, :3, :3]  # [V, N, 3]
    ahead = local[..., 2] > 1e-3
    view = torch.arange(views, device=points.device)[:, None].expand_as(ahead)[ahead]
    paint, local = colours.expand(views, -1, 3)[ahead], local[ahead]
    u = local[:, 0] / local[:, 2] * K[view, 0, 0] + K[view, 0, 2] - 0.5
    v = local[:, 1] / local[:, 2] * K[view, 1, 1] + K[view, 1, 2] - 0.5
    columns = torch.stack([u.floor(), u.floor() + 1]).repeat(2, 1).flatten().long()
    rows = torch.stack([v.floor(), v.floor() + 1]).repeat_interleave(2, 0).flatten().long()
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    index = ((view.repeat(4) * height + rows) * width + columns)[inside]
    depth, paint = local[:, 2].repeat(4)[inside], paint.repeat(4, 1)[inside]
    nearest = torch.full((views * height * width,), torch.inf, device=depth.device, dtype=depth.dtype)
    nearest.scatter_reduce_(0, index, depth, "amin")
    front = depth <= nearest[index] * SAME_SURFACE
    total = torch.zeros(views * height * width, 5, device=depth.device, dtype=depth.dtype)
    total.index_add_(0, index[front], torch.cat([paint, torch.ones_like(paint[:, :1]), depth[:, None]], 1)[front])
    image = total.view(views, height, width, 5).permute(0, 3, 1, 2)
    for _ in range(2):
        around = F.avg_pool2d(image, 3, 1, 1)
        image = torch.where(image[:, 3:4] > 0, image, around)
    covered = image[:, 3] > 0
    mean = (image / image[:, 3:4].clamp_min(1e-6)).permute(0, 2, 3, 1) * covered[..., None]
    return Rendered(mean[..., :3], covered, mean[..., 4])


def gaussians(scene: Gaussians, c2w: torch.Tensor, K: torch.Tensor, size: tuple[int, int], backend: str = "auto") -> Rendered:
    """Draw gaussians into V pictures; arguments as in `splat`.

    `backend`: "gsplat" (needs the extra and a CUDA device), "reference" (plain torch, every gaussian against every pixel: small
    pictures only), or "auto", gsplat where it runs. ValueError for another name or a backend that does not run here.
    """
    runs = scene.means.is_cuda and importlib.util.find_spec("gsplat") is not None
    if backend not in ("auto", "gsplat", "reference"):
        raise ValueError(f"render: backend must be auto, gsplat or reference, got {backend!r}")
    if backend == "gsplat" and not runs:
        raise ValueError("render: gsplat needs tensors on a CUDA device and the package: pip install 'world-r1[gsplat]'")
    K = K.expand(len(c2w), 3, 3)
    return _gsplat(scene, c2w, K, size) if runs and backend != "reference" else _reference(scene, c2w, K, size)


def _gsplat(scene: Gaussians, c2w: torch.Tensor, K: torch.Tensor, size: tuple[int, int]) -> Rendered:
    from gsplat import rasterization

    drawn, opacity, _ = rasterization(
        means=scene.means, quats=scene.rotations, scales=scene.scales, opacities=scene.opacities,
        colors=scene.harmonics.mT.contiguous(), sh_degree=round(scene.harmonics.shape[2] ** 0.5) - 1,
        viewmats=torch.linalg.inv(c2w), Ks=K, width=size[1], height=size[0], render_mode="RGB+ED",
    )  # fmt: skip
    return Rendered(drawn[..., :3].clamp(0, 1), opacity[..., 0], drawn[..., 3])


def _reference(scene: Gaussians, c2w: torch.Tensor, K: torch.Tensor, size: tuple[int, int], chunk: int = 2048) -> Rendered:
    """Splatting of projected gaussians front to back (Zwicker et al., EWA splatting, 2001; Kerbl et al., 2023, eq. 3 and 5)."""
    height, width = size
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    pixels = torch.stack([x, y], -1).reshape(-1, 2).to(scene.means) + 0.5
    views = []
    for pose, k in zip(c2w, K, strict=True):
        mean, conic, depth, order = project_gaussians(scene, pose, k)
        colour = _harmonics(scene.harmonics, torch.nn.functional.normalize(scene.means - pose[:3, 3], dim=-1))[order]
        what = torch.cat([colour, depth[:, None], torch.ones_like(depth[:, None])], 1)
        rows = []
        for part in pixels.split(chunk):
            offset = part[:, None] - mean
            alpha = (scene.opacities[order] * (-0.5 * _quadratic(conic, offset)).exp()).clamp_max(0.999)
            alpha = torch.where(alpha >= 1 / 255, alpha, 0.0)
            passed = torch.cumprod(1 - alpha, 1)
            weight = alpha * torch.cat([torch.ones_like(passed[:, :1]), passed[:, :-1]], 1)
            rows.append(weight @ what)
        views.append(torch.cat(rows).view(height, width, 5))
    drawn = torch.stack(views)
    opacity = drawn[..., 4]
    return Rendered(drawn[..., :3].clamp(0, 1), opacity, drawn[..., 3] / opacity.clamp_min(1e-6))


def _quadratic(conic: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """[P, N] of offset' conic offset for offsets [P, N, 2] and symmetric conics [N, 2, 2]."""
    x, y = offset.unbind(-1)
    return conic[:, 0, 0] * x * x + 2 * conic[:, 0, 1] * x * y + conic[:, 1, 1] * y * y


def project_gaussians(
    scene: Gaussians, c2w: torch.Tensor, K: torch.Tensor, blur: float = 0.3
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Centres [M, 2] in pixels, inverse covariances [M, 2, 2], z-depths [M] and indices [M] of the gaussians ahead, nearest first.

    `blur` is added to the variances in square pixels, so that no gaussian falls between the pixels.
    """
    local = (scene.means - c2w[:3, 3]) @ c2w[:3, :3]
    order = local[:, 2].argsort()
    order = order[local[order, 2] > 0.01]
    X, Y, Z = local[order].unbind(-1)
    J = torch.zeros(len(order), 2, 3, dtype=X.dtype, device=X.device)
    J[:, 0, 0], J[:, 0, 2] = K[0, 0] / Z, -K[0, 0] * X / Z**2
    J[:, 1, 1], J[:, 1, 2] = K[1, 1] / Z, -K[1, 1] * Y / Z**2
    half = _rotations(scene.rotations[order]) * scene.scales[order][:, None]
    half = J @ c2w[:3, :3].T @ half
    covariance = half @ half.mT + blur * torch.eye(2, dtype=X.dtype, device=X.device)
    mean = torch.stack([X / Z * K[0, 0] + K[0, 2], Y / Z * K[1, 1] + K[1, 2]], -1)
    return mean, torch.linalg.inv(covariance), Z, order


def _rotations(q: torch.Tensor) -> torch.Tensor:
    """[N, 3, 3] of quaternions w, x, y, z."""
    w, x, y, z = torch.nn.functional.normalize(q, dim=-1).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def _harmonics(coefficients: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """[N, 3] colours of [N, 3, D] coefficients seen along unit directions [N, 3]; ValueError above degree 2 (gsplat knows degree 3)."""
    count = coefficients.shape[2]
    if count > 9:
        raise ValueError("render: the reference knows spherical harmonics up to degree 2; draw these on a GPU with gsplat")
    x, y, z = direction.unbind(-1)
    basis = [torch.full_like(x, SH0), -SH1 * y, SH1 * z, -SH1 * x]
    basis += [SH2[0] * x * y, SH2[1] * y * z, SH2[2] * (2 * z * z - x * x - y * y), SH2[3] * x * z, SH2[4] * (x * x - y * y)]
    return (torch.einsum("ncd,nd->nc", coefficients, torch.stack(basis[:count], -1)) + 0.5).clamp_min(0)
