"""The evaluator's eyes for single pixels: which surface each one shows, and what the areas say about the dominant object."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from world_r1.blockworld import scenes
from world_r1.blockworld.judge_labels import COLOURS, FIRST_OBJECT, SURFACES

#: Slope of the read-off answers over the logarithm of the area: twice the area is an odds ratio of 64.
SLOPE = 6.0
#: Smallest share of the picture that counts.
LEAST = 1e-5
#: Objects of one colour are told apart if the object that a pixel belongs to is this much smaller than all of that colour.
TWINS = 0.8


def key_frames(frames: int) -> list[int]:
    """First, middle and last: the frames by whose areas the generator names an object dominant."""
    return [0, frames // 2, frames - 1]


class Segmenter(nn.Module):
    """From the trunk's maps, coarse to fine, to what each pixel shows at half the picture's size; told what the whole clip shows.

    The channels are logits of `SURFACES`, then the size of the pixel's object: log2 of its share of all pixels of the key frames.
    """

    def __init__(self, widths: Sequence[int], inner: int, told: int) -> None:
        super().__init__()
        self.narrow = nn.ModuleList(nn.Conv2d(width, inner, 1, bias=False) for width in widths)
        self.tell = nn.Linear(told, inner)
        mixes = [nn.Sequential(nn.Conv2d(inner, inner, 3, 1, 1, bias=False), nn.BatchNorm2d(inner, momentum=0.05)) for _ in widths]
        self.mix = nn.ModuleList(mixes)
        self.out = nn.Conv2d(inner, len(SURFACES) + 1, 1)

    def forward(self, maps: Sequence[torch.Tensor], told: torch.Tensor) -> torch.Tensor:
        """Maps [N, C, H, W], the finest first, and [N, told] -> [N, classes + 1, H of the finest, W]."""
        y = self.tell(told)[:, :, None, None]
        for level in reversed(range(len(maps))):
            x = self.narrow[level](maps[level])
            if y.shape[-1] > 1:
                y = F.interpolate(y, x.shape[-2:], mode="bilinear", align_corners=False)
            y = F.silu(self.mix[level](x + y) + x)
        return self.out(y)


def areas(seen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Expected share of the key frames' pixels, float32: of each class [B, classes], of the largest object of each colour [B, colours].

    `seen` are the segmenter's maps [B, F, classes + 1, H, W]. Shapes are added up, because they are read less surely than colours and an
    object whose shape is in doubt is no smaller for that. If a colour with share S has two objects, its pixels' mean size M gives the
    larger: x^2 + (S - x)^2 = M S.
    """
    chance = seen[:, :, :-1].float().softmax(2)
    share = chance.mean((1, 3, 4))
    total = _by_colour(share).sum(2)
    with torch.no_grad():
        size = torch.exp2(seen[:, :, -1].float().clamp(-14, 0))
        coloured = _by_colour((chance * size[:, :, None]).mean((1, 3, 4))).sum(2)
        mean = coloured / total.clamp(min=LEAST)
        part = (1 + (2 * mean / total.clamp(min=LEAST) - 1).clamp(0, 1).sqrt()) / 2
        part = torch.where(mean < TWINS * total, part, 1.0)
    return share, total * part


def read_off(share: torch.Tensor, largest: torch.Tensor) -> dict[str, torch.Tensor]:
    """Logits of the dominant object's colour and shape from what `areas` gives: the colour of the largest, the shape of its pixels."""
    first = largest.argmax(1)
    shapes = _by_colour(share)[torch.arange(len(share), device=share.device), first]
    return {"object_colour": SLOPE * torch.log(largest + LEAST), "object_shape": SLOPE * torch.log(shapes + LEAST)}


def _by_colour(share: torch.Tensor) -> torch.Tensor:
    """[B, classes] -> [B, colours, shapes] of the objects."""
    return share[:, FIRST_OBJECT:].unflatten(1, (len(COLOURS), len(scenes.SHAPES)))


def moved_labels(labels: torch.Tensor, resampling: torch.Tensor, size: tuple[int, int], picture: tuple[int, int]) -> torch.Tensor:
    """Labels [B, ..., h, w] as `augment` moved the picture (zoom, shift in pixels of `picture`), sampled at `size`: [B, ..., *size]."""
    picks = []
    for axis, shift in ((0, resampling[:, 2]), (1, resampling[:, 1])):
        n, pixels, have = size[axis], picture[axis], labels.shape[axis - 2]
        at = (torch.arange(n, device=labels.device) + 0.5)[None] * (pixels / n)
        at = at + shift[:, None] - resampling[:, :1] * (at - pixels / 2)
        picks.append((at * (have / pixels)).floor().long().clamp(0, have - 1))
    batch = torch.arange(len(labels), device=labels.device)[:, None, None]
    picked = labels.flatten(1, -3).permute(0, 2, 3, 1)[batch, picks[0][:, :, None], picks[1][:, None, :]]
    return picked.permute(0, 3, 1, 2).unflatten(1, labels.shape[1:-2])
