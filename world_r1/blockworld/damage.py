"""Damaged videos with a known strength: what the quality critic and the evaluator learn to tell from clean ones.

Every family takes videos [B, 3, T, H, W] float in -1..1, strengths [B] in 0..1 and a generator on the same device, and gives videos of
the same shape and range. 0 changes next to nothing, 1 is obvious to anyone. `CRITIC_DAMAGES` and `EVALUATOR_DAMAGES` share no family:
the evaluator must not learn the critic's blind spots. All of it is batched and runs on the device of the videos.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

Family = Callable[[torch.Tensor, torch.Tensor, torch.Generator], torch.Tensor]


@dataclass(frozen=True)
class Damage:
    """One family. Example: `Damage("wobble", wobble)`"""

    name: str
    apply: Family
    #: What is shown (floor, colours, objects) stays recognisable, so that a caption that was right stays right.
    keeps_scene: bool = True
    #: The camera path stays what it was.
    keeps_camera: bool = True
    #: A single frame of the later half of the video shows it.
    in_frame: bool = True


def _rand(shape: tuple[int, ...], low: float, high: float, x: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    return torch.rand(shape, generator=g, device=x.device) * (high - low) + low


def _time(x: torch.Tensor) -> torch.Tensor:
    """[T] from 0 to 1."""
    return torch.linspace(0, 1, x.shape[2], device=x.device)


def _col(s: torch.Tensor, dims: int) -> torch.Tensor:
    """[B] -> [B, 1, 1, ...] with `dims` dimensions."""
    return s.view(-1, *([1] * (dims - 1)))


def _field(x: torch.Tensor, g: torch.Generator, channels: int, frames: int, cells: int) -> torch.Tensor:
    """Smooth noise of about unit variance, [B, channels, frames, H, W]: each frame drawn on its own coarse grid of `cells` rows."""
    b, _, _, h, w = x.shape
    coarse = torch.randn(b * frames, channels, cells, max(2, round(cells * w / h)), generator=g, device=x.device)
    smooth = F.interpolate(coarse, (h, w), mode="bicubic", align_corners=True)
    return smooth.view(b, frames, channels, h, w).transpose(1, 2)


def _pixels(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixel-centre coordinates (rows [H, 1], columns [1, W])."""
    h, w = x.shape[-2:]
    return torch.arange(h, device=x.device)[:, None] + 0.5, torch.arange(w, device=x.device)[None] + 0.5


def warp(x: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """Pull every output pixel from `offset` pixels away. x [B, 3, T, H, W]; offset [B, 2 (x, y), T or 1, H, W]; borders are reflected."""
    b, c, t, h, w = x.shape
    rows, columns = _pixels(x)
    offset = offset.expand(b, 2, t, h, w)
    grid_x = (columns + offset[:, 0]) * (2 / w) - 1
    grid_y = (rows + offset[:, 1]) * (2 / h) - 1
    grid = torch.stack([grid_x, grid_y], -1).reshape(b * t, h, w, 2)
    frames = x.transpose(1, 2).reshape(b * t, c, h, w)
    out = F.grid_sample(frames, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return out.view(b, t, c, h, w).transpose(1, 2)


def take_frames(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Videos with frame `index[b, t]` at time t. x [B, 3, T, H, W]; index [B, T] int64."""
    b, c, t, h, w = x.shape
    return x.gather(2, index.clamp(0, t - 1)[:, None, :, None, None].expand(b, c, t, h, w))


def gaussian_blur(x: torch.Tensor, sigma: torch.Tensor, radius: int = 8) -> torch.Tensor:
    """Spatial Gaussian blur with one sigma in pixels per video, [B]; the kernel ends after `radius` pixels, borders are reflected."""
    b, c, t, h, w = x.shape
    radius = min(radius, h - 1, w - 1)
    at = torch.arange(-radius, radius + 1, device=x.device, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (at[None] / sigma.clamp(min=0.05)[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True))[:, None, None, :].to(x.dtype)
    # One channel group per video; rows first, then the same over columns of the transposed picture.
    y = F.conv2d(F.pad(x.reshape(1, b, c * t * h, w), (radius, radius, 0, 0), mode="reflect"), kernel, groups=b)
    y = y.view(b, c * t, h, w).transpose(2, 3).reshape(1, b, c * t * w, h)
    y = F.conv2d(F.pad(y, (radius, radius, 0, 0), mode="reflect"), kernel, groups=b)
    return y.view(b, c, t, w, h).transpose(3, 4).contiguous()


def _blob(x: torch.Tensor, g: torch.Generator, low: float, high: float, centre: float = 0.7) -> torch.Tensor:
    """[B, 1, 1, H, W] soft window in 0..1 about a random place; radius a share `low`..`high` of the height."""
    b, h, w = x.shape[0], x.shape[3], x.shape[4]
    rows, columns = _pixels(x)
    cy = (0.5 + centre * _rand((b, 1, 1), -0.5, 0.5, x, g)) * h
    cx = (0.5 + centre * _rand((b, 1, 1), -0.5, 0.5, x, g)) * w
    radius = _rand((b, 1, 1), low, high, x, g) * h
    return torch.exp(-0.5 * ((rows - cy) ** 2 + (columns - cx) ** 2) / radius**2)[:, None, None]


def _partner(x: torch.Tensor) -> torch.Tensor:
    """Another video of the batch for each; a batch of one is mirrored instead."""
    return x.roll(1, 0) if x.shape[0] > 1 else x.flip(4)


def wobble(x: torch.Tensor, s: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """Every frame bent by its own smooth field of up to about 3 pixels."""
    return warp(x, _field(x, g, 2, x.shape[2], 4) * _col(0.3 + 2.4 * s, 5))


def swim(x: torch.Tensor, s: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """A smooth non-rigid flow that grows over the clip, to about 10 pixels: textures slide over surfaces."""
    return warp(x, _field(x, g, 2, 1, 4) * _time(x)[:, None, None] * _col(1.0 + 8.0 * s, 5))


def flicker(x: torch.Tensor, s: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """Gain and tint drawn anew for every frame."""
    b, t = x.shape[0], x.shape[2]
    gain = 1 + _col(0.03 + 0.25 * s, 5) * torch.randn(b, 1, t, 1, 1, generator=g, device=x.device)
    tint = _col(0.01 + 0.12 * s, 5) * torch.randn(b, 3, t, 1, 1, generator=g, device=x.device)
    return ((x + 1) * gain - 1 + tint).clamp(-1, 1)


def dissolve(x: torch.Tensor, s: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """Cross-dissolve to another scene; the strength is how much of it is there at the end."""
    start = _rand((x.shape[0], 1), 0.0, 0.5, x, g)
    mix = ((_time(x)[None] - start) / (1 - start)).clamp(min=0) * (0.15 + 0.85 * s)[:, None]
    return x + mix[:, None, :, None, None] * (_partner(x) - x)


def shuffle(x: torch.Tensor, s: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """Frames out of order: sort keys are the times plus noise of up to half the clip."""
    t = x.shape[2]
    key = _time(x)[None] + (1.5 / t + 0.5 * s)[:, None] * torch.randn(x.shape[0], t, generator=g, device=x.device)
    return take_frames(x, key.argsort(1))


def melt(x: torch.Tensor, s: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """Parts of the picture sag, swell or twist more and more."""
    rows, columns = _pixels(x)
    h, w = x.shape[-2:]
    offset = torch.zeros(x.shape[0], 2, 1, h, w, device=x.device)
    for _ in range(3):
        window = _blob(x, g, 0.10, 0.22)[:, 0]
        a = torch.randn(x.shape[0], 4, 1, 1, 1, generator=g, device=x.device)
        dy, dx = (rows - h / 2) / h, (columns - w / 2) / h
        offset[:, 0] += window * (a[:, 0] * 0.5 + a[:, 1] * dx - a[:, 2] * dy)
        offset[:, 1] += window * (a[:, 3] + a[:, 1] * dy + a[:, 2] * dx)
    return warp(x, offset * _time(x)[:, None, None] * _col(2.0 + 10.0 * s, 5))


def zebra(x: torch.Tensor, s: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """Stripes over the picture, still or moving: the reward hack that unanchored photometric rewards found."""
    b = x.shape[0]
    rows, columns = _pixels(x)
    angle, period = _rand((b, 1, 1, 1), 0, math.pi, x, g), _rand((b, 1, 1, 1), 4.0, 16.0, x, g)
    speed = _rand((b, 1, 1, 1), -6.0, 6.0, x, g) * (_rand((b, 1, 1, 1), 0, 1, x, g) < 0.6)
    bend = _field(x, g, 1, 1, 3)[:, 0] * _rand((b, 1, 1, 1), 0, 1.5, x, g)
    phase = (columns * angle.cos() + rows * angle.sin()) / period * 2 * math.pi + speed * _time(x)[None, :, None, None] + bend
    wave = torch.tanh(3 * phase.sin())[:, None]
    return (x + _col(0.04 + 0.6 * s, 5) * wave).clamp(-1, 1)


def sharpen(x: torch.Tensor, s: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """Unsharp masking with a small radius."""
    sigma = _rand((x.shape[0],), 0.8, 1.6, x, g)
    return (x + _col(0.4 + 3.0 * s, 5) * (x - gaussian_blur(x, sigma))).clamp(-1, 1)


def contrast(x: torch.Tensor, s: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """Contrast and saturation pushed up, or one of them down."""
    b = x.shape[0]
    up = _rand((b, 1, 1, 1, 1), 0, 1, x, g) < 0.65
    amount = _col(0.15 + 1.6 * s, 5)
    mean = x.mean((1, 2, 3, 4), keepdim=True)
    y = mean + (x - mean) * torch.where(up, 1 + amount, 1 / (1 + amount))
    grey = y.mean(1, keepdim=True)
    colour = torch.where(_rand((b, 1, 1, 1, 1), 0, 1, x, g) < 0.5, 1 + amount, torch.ones_like(amount))
    return (grey + (y - grey) * colour).clamp(-1, 1)


def blur(x: torch.Tensor, s: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """Gaussian blur of sigma 1.2 to 4 pixels: clearly more than a VAE round trip takes away."""
    return gaussian_blur(x, 1.2 + 2.8 * s)


def blobs(x: torch.Tensor, s: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """Coloured clouds that come and go between frames."""
    fine = _field(x, g, 3, x.shape[2], 7)
    still = _field(x, g, 3, 1, 5)
    mask = torch.sigmoid(4 * (_field(x, g, 1, 1, 3) - 0.5))
    return (x + _col(0.1 + 0.7 * s, 5) * mask * (0.6 * fine + 0.6 * still)).clamp(-1, 1)


def freeze(x: torch.Tensor, s: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """The clip stops: at strength 1 it is one still frame."""
    t = x.shape[2]
    last = ((1 - s) * (t - 2)).round().long()[:, None]
    return take_frames(x, torch.minimum(torch.arange(t, device=x.device)[None], last))


def speed(x: torch.Tensor, s: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """One part of the clip is slowed and another hurried: time t becomes t^p, p up to 4 or down to 1/4."""
    sign = torch.where(_rand((x.shape[0],), 0, 1, x, g) < 0.5, 1.0, -1.0)
    power = torch.exp(sign * (0.25 + 1.15 * s))
    index = (_time(x)[None] ** power[:, None]) * (x.shape[2] - 1)
    return take_frames(x, index.round().long())


def holes(x: torch.Tensor, s: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """Missing pixels as a re-projection leaves them: torn regions in black, grey or smeared from the side, fixed in the picture."""
    b = x.shape[0]
    noise = 0.6 * _field(x, g, 1, 1, 6) + 0.5 * _field(x, g, 1, 1, 24)
    mask = torch.sigmoid(12 * (noise - _col(1.25 - 1.0 * s, 5)))
    smear = x[..., :: max(1, x.shape[4] // 8)].repeat_interleave(max(1, x.shape[4] // 8), 4)[..., : x.shape[4]]
    flat = _rand((b, 1, 1, 1, 1), -1.0, 0.2, x, g).expand_as(x)
    fill = torch.where(_rand((b, 1, 1, 1, 1), 0, 1, x, g) < 0.4, smear, flat)
    return x + mask * (fill - x)


def ripple(x: torch.Tensor, s: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """A travelling sine wave bends the picture."""
    b = x.shape[0]
    rows, columns = _pixels(x)
    angle, length = _rand((b, 1, 1, 1), 0, math.pi, x, g), _rand((b, 1, 1, 1), 18.0, 60.0, x, g)
    phase = (columns * angle.cos() + rows * angle.sin()) / length + _rand((b, 1, 1, 1), 1.0, 5.0, x, g) * _time(x)[
        None, :, None, None
    ]
    wave = (2 * math.pi * phase).sin() * _col(0.5 + 3.0 * s, 4)
    return warp(x, torch.stack([wave * angle.sin(), wave * angle.cos()], 1))


def shake(x: torch.Tensor, s: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """The whole frame jumps and rolls, anew in every frame."""
    b, t = x.shape[0], x.shape[2]
    rows, columns = _pixels(x)
    shift = torch.randn(b, 2, t, 1, 1, generator=g, device=x.device) * _col(0.6 + 3.0 * s, 5)
    roll = torch.randn(b, t, 1, 1, generator=g, device=x.device) * _col(0.005 + 0.03 * s, 4)
    offset = torch.stack([-roll * (rows - x.shape[3] / 2) + 0 * columns, roll * (columns - x.shape[4] / 2) + 0 * rows], 1)
    return warp(x, offset + shift)


def tear(x: torch.Tensor, s: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """One side of a random line slides away along it."""
    b = x.shape[0]
    rows, columns = _pixels(x)
    angle = _rand((b, 1, 1, 1), 0, 2 * math.pi, x, g)
    side = (columns - x.shape[4] / 2) * angle.cos() + (rows - x.shape[3] / 2) * angle.sin() - _rand((b, 1, 1, 1), -20, 20, x, g)
    slide = torch.sigmoid(side) * _time(x)[None, :, None, None] * _col(2.0 + 14.0 * s, 4)
    return warp(x, torch.stack([-angle.sin() * slide, angle.cos() * slide], 1))


def replace(x: torch.Tensor, s: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """A region turns into a piece of another scene within a few frames."""
    start = _rand((x.shape[0], 1), 0.15, 0.7, x, g)
    when = ((_time(x)[None] - start) / 0.2).clamp(0, 1)[:, None, :, None, None]
    window = (_blob(x, g, 0.18, 0.4) * 2.5).clamp(max=1) * _col(0.25 + 0.75 * s, 5)
    return x + when * window * (_partner(x) - x)


def pulse(x: torch.Tensor, s: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """Exposure and white balance swing smoothly."""
    b = x.shape[0]
    phase = _rand((b, 3, 1, 1, 1), 0, 0.6, x, g) + _rand((b, 1, 1, 1, 1), 0, 1, x, g)
    wave = (2 * math.pi * (_rand((b, 1, 1, 1, 1), 1.0, 3.0, x, g) * _time(x)[None, None, :, None, None] + phase)).sin()
    return ((x + 1) * torch.exp(_col(0.08 + 0.5 * s, 5) * wave) - 1).clamp(-1, 1)


def posterise(x: torch.Tensor, s: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """Few tones: 14 down to 3 levels a channel."""
    levels = _col(14 - 11 * s, 5)
    return ((x + 1) / 2 * levels).round().div(levels) * 2 - 1


def checker(x: torch.Tensor, s: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """A checkerboard of 3 to 9 pixels modulates the picture's own contrast."""
    b = x.shape[0]
    rows, columns = _pixels(x)
    period = _rand((b, 1, 1), 3.0, 9.0, x, g)
    board = torch.where((torch.floor(rows / period) + torch.floor(columns / period)) % 2 == 0, 1.0, -1.0)[:, None, None]
    return (x + _col(0.05 + 0.45 * s, 5) * board * (0.4 + x.abs())).clamp(-1, 1)


def clarity(x: torch.Tensor, s: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """Local contrast with a large radius: halos about every edge."""
    sigma = _rand((x.shape[0],), 3.0, 5.0, x, g)
    return (x + _col(0.3 + 1.8 * s, 5) * torch.tanh(2 * (x - gaussian_blur(x, sigma)))).clamp(-1, 1)


def pixelate(x: torch.Tensor, s: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """Blocks of 3 to 8 pixels that show through by the strength."""
    b, c, t, h, w = x.shape
    block = 3 + int(torch.randint(0, 6, (1,), generator=g, device=x.device))
    small = F.interpolate(x.transpose(1, 2).reshape(b * t, c, h, w), (max(1, h // block), max(1, w // block)), mode="area")
    blocks = F.interpolate(small, (h, w), mode="nearest").view(b, t, c, h, w).transpose(1, 2)
    return x + _col(0.35 + 0.65 * s, 5) * (blocks - x)


def ghost(x: torch.Tensor, s: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """Earlier frames shine through: an average over the past with a decay of up to 0.9."""
    keep = _col(0.35 + 0.55 * s, 4)
    frames = [x[:, :, 0]]
    for t in range(1, x.shape[2]):
        frames.append(keep * frames[-1] + (1 - keep) * x[:, :, t])
    return torch.stack(frames, 2)


def grain(x: torch.Tensor, s: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """White noise, drawn anew for every frame."""
    noise = torch.randn(x.shape, generator=g, device=x.device)
    return (x + _col(0.06 + 0.4 * s, 5) * noise).clamp(-1, 1)


def stutter(x: torch.Tensor, s: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """Every frame is held for 2 to 6 frames."""
    hold = 2 + (4 * s).round()[:, None]
    return take_frames(x, (torch.floor(torch.arange(x.shape[2], device=x.device)[None] / hold) * hold).long())


def bounce(x: torch.Tensor, s: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """Time runs forth and back."""
    t = x.shape[2]
    period = 2 * ((t - 1) * (1 - 0.75 * s)).clamp(min=2)[:, None] * _rand((x.shape[0], 1), 0.55, 0.9, x, g)
    at = torch.arange(t, device=x.device)[None] % period
    return take_frames(x, torch.minimum(at, period - at).round().long())


def hue(x: torch.Tensor, s: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """Colours turn about the grey axis while the clip runs."""
    sign = torch.where(_rand((x.shape[0],), 0, 1, x, g) < 0.5, 1.0, -1.0)
    angle = ((0.3 + 2.2 * s) * sign)[:, None] * _time(x)[None]
    a, b = angle.cos()[:, None, :, None, None], angle.sin()[:, None, :, None, None] / math.sqrt(3)
    grey = x.mean(1, keepdim=True)
    turned = grey + a * (x - grey) + b * (x.roll(1, 1) - x.roll(-1, 1))
    return turned.clamp(-1, 1)


def stretch(x: torch.Tensor, s: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """A window of the picture is scaled along one direction, more and more."""
    b = x.shape[0]
    rows, columns = _pixels(x)
    window = _blob(x, g, 0.2, 0.35, centre=0.5)[:, 0]
    angle = _rand((b, 1, 1, 1), 0, math.pi, x, g)
    along = (columns - x.shape[4] / 2) * angle.cos() + (rows - x.shape[3] / 2) * angle.sin()
    amount = window * along * _time(x)[None, :, None, None] * _col(0.15 + 0.6 * s, 4)
    return warp(x, torch.stack([angle.cos() * amount, angle.sin() * amount], 1))


CRITIC_DAMAGES: tuple[Damage, ...] = (
    Damage("wobble", wobble),
    Damage("swim", swim, keeps_camera=False),
    Damage("flicker", flicker, in_frame=False),
    Damage("dissolve", dissolve, keeps_scene=False, keeps_camera=False),
    Damage("shuffle", shuffle, keeps_camera=False, in_frame=False),
    Damage("melt", melt, keeps_scene=False),
    Damage("zebra", zebra, keeps_scene=False, keeps_camera=False),
    Damage("sharpen", sharpen),
    Damage("contrast", contrast, keeps_scene=False),
    Damage("blur", blur),
    Damage("blobs", blobs, keeps_scene=False),
    Damage("freeze", freeze, keeps_camera=False, in_frame=False),
    Damage("speed", speed, keeps_camera=False, in_frame=False),
    Damage("holes", holes, keeps_scene=False),
)

EVALUATOR_DAMAGES: tuple[Damage, ...] = (
    Damage("ripple", ripple),
    Damage("shake", shake, keeps_camera=False, in_frame=False),
    Damage("tear", tear),
    Damage("replace", replace, keeps_scene=False),
    Damage("pulse", pulse, keeps_scene=False, in_frame=False),
    Damage("posterise", posterise),
    Damage("checker", checker),
    Damage("clarity", clarity),
    Damage("pixelate", pixelate),
    Damage("ghost", ghost, in_frame=False),
    Damage("grain", grain),
    Damage("stutter", stutter, keeps_camera=False, in_frame=False),
    Damage("bounce", bounce, keeps_camera=False, in_frame=False),
    Damage("hue", hue, keeps_scene=False),
    Damage("stretch", stretch),
)


def changed(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """[B] bool: whether a damage did anything. Freezing a still scene, or shuffling its frames, leaves a clean video."""
    return (after - before).abs().mean((1, 2, 3, 4)) > 0.006
