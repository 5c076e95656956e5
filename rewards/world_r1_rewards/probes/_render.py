"""Re-rendering through a reconstruction: keyframes from other frames (how well does one world explain them?), and new views.

The comparison is made at the time, the intrinsics and the aspect of the clip itself: keyframe k, as filmed, against keyframe k
re-rendered from the pixels of frame t through depth and poses.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from world_r1_rewards.probes._lm import Problem, Projection

#: Side of the patches that are correlated, pixels.
PATCH = 7
#: Patches whose variance is this share of the clip's are half trusted.
FLAT = 0.02
#: Occlusion may excuse at most this share of the visible pixels.
EXCUSE = 0.35


class Agreement(NamedTuple):
    """How well keyframes are explained by other frames; [B] each, the mean over pairs."""

    correlation: torch.Tensor  #: mean ZNCC of textured patches, -1..1
    still: torch.Tensor  #: the same of the frames as they are: what a camera that never moved would explain
    photometric: torch.Tensor  #: PSNR in dB after the best gain and bias a pair
    exposure: torch.Tensor  #: how far brightness and contrast are apart, in standard deviations of the keyframe; 0 for steady light
    pairs: torch.Tensor  #: [B, A, T] correlation by pair

    def numbers(self) -> dict[str, float]:
        """The means of one clip (an agreement without its batch dimension)."""
        return {name: float(getattr(self, name)) for name in ("correlation", "still", "photometric", "exposure")}


def agreement(frames: torch.Tensor, problem: Problem, p: Projection, used: torch.Tensor) -> Agreement:
    """Compare keyframes with themselves re-rendered from all used frames.

    `frames` [B, T, H, W] grey in 0..1; `used` [B, A, T] bool says which pairs count. The grid of `problem` must be the clip's.
    """
    at = torch.stack([p.u * p.f, p.v * p.f], 3).unflatten(-1, problem.base.shape[:2])
    return compare(frames, at, p.ahead, problem.base, problem.keys, problem.weight, used)


def compare(
    frames: torch.Tensor,
    at: torch.Tensor,
    ahead: torch.Tensor,
    base: torch.Tensor,
    keys: torch.Tensor,
    weight: torch.Tensor,
    used: torch.Tensor,
) -> Agreement:
    """Compare keyframes with themselves, re-rendered by looking up every point where it appears in the other frames.

    `frames` [B, T, H, W] grey in 0..1; `at` [B, A, T, 2, h, w] where the grid points of keyframe a appear in frame t, pixels from the
    frame's centre, and `ahead` [B, A, T, h * w] bool whether before the camera; `base` [h, w, 2] the points themselves; `keys` [A];
    `weight` [B, A, T, h, w] is 0 where the flows disagree; `used` [B, A, T] bool says which pairs count.
    """
    B, T, H, W = frames.shape
    A = len(keys)
    seen = ahead.to(frames.dtype)
    dense = _upsample(at - base.permute(2, 0, 1), base, H, W)  # [B*A*T, 2, H, W]
    y, x = torch.meshgrid(torch.arange(H, device=dense.device), torch.arange(W, device=dense.device), indexing="ij")
    pixel = torch.stack([x, y]).to(dense) + 0.5 + dense
    look = torch.stack([pixel[:, 0] / W, pixel[:, 1] / H], -1) * 2 - 1
    source = frames[:, None].expand(B, A, T, H, W).reshape(-1, 1, H, W)
    warped = F.grid_sample(source, look, mode="bilinear", padding_mode="border", align_corners=False)[:, 0]
    inside = (look.abs() <= 1).all(-1)
    front = F.interpolate(seen.reshape(-1, 1, *base.shape[:2]), size=(H, W), mode="nearest")[:, 0]
    visible = _visible(weight, inside.to(frames.dtype) * front)
    key = frames[:, keys][:, :, None].expand(B, A, T, H, W).reshape(-1, H, W)
    variance = frames.flatten(2).var(2).mean(1).clamp_min(1e-6)
    floor = (FLAT * variance).repeat_interleave(A * T)
    pairs = used.reshape(-1).to(frames.dtype)
    mean = lambda value: ((value * pairs).view(B, -1).sum(1)) / pairs.view(B, -1).sum(1).clamp_min(1)  # noqa: E731
    correlation = _zncc(key, warped, visible, floor)
    still = _zncc(key, source[:, 0], _visible(weight, torch.ones_like(key)), floor)
    rest = mean(_psnr(key, warped, visible)), mean(_exposure(key, warped, visible))
    return Agreement(mean(correlation), mean(still), *rest, correlation.view(B, A, T))


def _upsample(shift: torch.Tensor, base: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Field on the grid -> every pixel, bilinear, extended linearly past the outermost grid points by clamping."""
    flat = shift.flatten(0, 2)
    x0, y0 = base[0, 0].tolist()
    step = (base[0, 1, 0] - base[0, 0, 0]).item() if base.shape[1] > 1 else 1.0
    x = (torch.arange(width, device=flat.device, dtype=flat.dtype) + 0.5 - width / 2 - x0) / step
    y = (torch.arange(height, device=flat.device, dtype=flat.dtype) + 0.5 - height / 2 - y0) / step
    return _lerp(y, flat.shape[-2]) @ flat @ _lerp(x, flat.shape[-1]).mT


def _lerp(at: torch.Tensor, size: int) -> torch.Tensor:
    """[N, size]: row i takes the linear interpolation at fractional index `at[i]` of `size` values, clamped to the ends.

    As a matrix product, which on a CPU takes a fifth of the time of picking the neighbours.
    """
    index = torch.arange(size, device=at.device, dtype=at.dtype)
    return (1 - (at.clamp(0, size - 1)[:, None] - index).abs()).clamp_min(0)


def _visible(weight: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """In the frame and not occluded (where the flows disagree), but occlusion may not excuse more than its share."""
    agreed = (weight > 0).to(inside.dtype).reshape(-1, 1, *weight.shape[3:])
    agreed = F.interpolate(agreed, size=inside.shape[1:], mode="nearest")[:, 0] * inside
    enough = agreed.sum((1, 2)) > (1 - EXCUSE) * inside.sum((1, 2))
    return torch.where(enough[:, None, None], agreed, inside)


def _box(x: torch.Tensor) -> torch.Tensor:
    """Mean over PATCH x PATCH at every second pixel of both directions (patches overlap by two thirds).

    As two matrix products, which are a third of the time of pooling on a CPU.
    """
    return _means(x.shape[-2], x) @ (x @ _means(x.shape[-1], x).mT)


def _means(size: int, like: torch.Tensor) -> torch.Tensor:
    """[ceil(size / 2), size]: row i takes the mean over PATCH pixels about pixel 2 i, fewer at the border."""
    pixel = torch.arange(size, device=like.device)
    near = ((pixel[::2, None] - pixel).abs() <= PATCH // 2).to(like.dtype)
    return near / near.sum(1, keepdim=True)


def _zncc(a: torch.Tensor, b: torch.Tensor, weight: torch.Tensor, floor: torch.Tensor) -> torch.Tensor:
    """[N] mean zero-normalised cross-correlation of patches, weighted by texture and `weight`.

    Textured is what either picture shows: a blurred rendering may not hide where the keyframe has detail, nor the reverse.
    """
    a_mean, b_mean = _box(a), _box(b)
    a_var = (_box(a * a) - a_mean * a_mean).clamp_min(0)
    b_var = (_box(b * b) - b_mean * b_mean).clamp_min(0)
    covariance = _box(a * b) - a_mean * b_mean
    floor = floor[:, None, None]
    correlation = covariance / (a_var * b_var).sqrt().clamp_min(1e-7).add(0.1 * floor)
    strongest = torch.maximum(a_var, b_var)
    trust = weight[:, ::2, ::2] * strongest / (strongest + floor)
    return (correlation.clamp(-1, 1) * trust).sum((1, 2)) / trust.sum((1, 2)).clamp_min(1e-6)


def _psnr(a: torch.Tensor, b: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """[N] PSNR in dB of b against a after the least-squares gain and bias of the pair (lighting is not geometry)."""
    total = weight.sum((1, 2)).clamp_min(1)
    mean = lambda x: (x * weight).sum((1, 2)) / total  # noqa: E731
    a_mean, b_mean = mean(a), mean(b)
    covariance, b_var = mean(a * b) - a_mean * b_mean, (mean(b * b) - b_mean**2).clamp_min(1e-6)
    gain = (covariance / b_var).clamp(0.5, 2.0)
    error = a - gain[:, None, None] * b - (a_mean - gain * b_mean)[:, None, None]
    return -10 * (mean(error * error) + 1e-5).log10()


def _exposure(a: torch.Tensor, b: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """[N] distance of two pictures in brightness and contrast: both differences over the mean standard deviation.

    What the camera does hardly changes either, and a gain of the whole clip changes neither; light that comes and goes does.
    """
    total = weight.sum((1, 2)).clamp_min(1)
    mean = lambda x: (x * weight).sum((1, 2)) / total  # noqa: E731
    a_mean, b_mean = mean(a), mean(b)
    a_std, b_std = ((mean(x * x) - m * m).clamp_min(1e-6).sqrt() for x, m in ((a, a_mean), (b, b_mean)))
    return ((a_mean - b_mean) ** 2 + (a_std - b_std) ** 2).sqrt() / (0.5 * (a_std + b_std))
