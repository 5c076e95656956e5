"""Training data of critic and evaluator: a pool of clips on the device, VAE round trips of it, and batches damaged on the fly.

Nothing is read from the CPU while training: videos stay as uint8 on the device, captions are token tables, damages and augmentation
run batched. Half of the clean *and* half of the damaged clips went through the VAE, so that its blur is no cue for either.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from world_r1.blockworld import captions, data, raycast, scenes
from world_r1.blockworld.damage import Damage, changed, gaussian_blur, warp
from world_r1.blockworld.judge_labels import surface_table

#: Videos [B, 3, T, H, W] in -1..1 -> the same after encoding and decoding.
Roundtrip = Callable[[torch.Tensor], torch.Tensor]

#: Sizes of objects are kept as this many steps per doubling of their pixels.
SIZE_STEPS = 16
#: Frames, height and width of a survey, and its pixels.
SURVEY = (3, 48, 80)
SURVEYED = math.prod(SURVEY)


@dataclass
class Pool:
    """Clean clips with their facts. Example: `Pool(videos=<8000x3x17x96x160 uint8 on the device>, facts=[{...}, ...])`"""

    videos: torch.Tensor
    facts: list[dict[str, Any]]
    #: uint8 round trips of the first M clips, if they are made already (two trainers may share them).
    decoded: torch.Tensor | None = None
    #: What `survey` says every pixel shows, uint8 [N, 2, 3, H, W], if it is known already.
    surfaces: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if self.videos.ndim != 5 or self.videos.dtype != torch.uint8 or len(self.videos) != len(self.facts):
            raise ValueError(
                "a pool needs uint8 videos [N, 3, T, H, W] and one fact dict each, "
                f"got {tuple(self.videos.shape)} {self.videos.dtype} and {len(self.facts)} facts"
            )


def to_float(videos: torch.Tensor) -> torch.Tensor:
    """uint8 -> float32 in -1..1."""
    return videos.float() / 127.5 - 1


def to_uint8(videos: torch.Tensor) -> torch.Tensor:
    """float in -1..1 -> uint8, rounded."""
    return ((videos.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


@torch.no_grad()
def build_pool(count: int, device: torch.device, seed: int, seconds: float | None = None, batch: int = 16) -> Pool:
    """Render `count` scenes of the seeds from `seed` on, or as many batches as fit into `seconds` (at least one)."""
    begin = time.monotonic()
    videos: list[torch.Tensor] = []
    facts: list[dict[str, Any]] = []
    while len(facts) < count and (seconds is None or not facts or time.monotonic() - begin < seconds):
        drawn = data.draw(min(batch, count - len(facts)), seed + len(videos))
        rgb = scenes.render(drawn.scenes.to(device), supersample=2 if device.type == "cuda" else 1).rgb
        videos.append(to_uint8(rgb))
        facts += drawn.facts
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # the clock must see the rendering
    return Pool(torch.cat(videos), facts)


def add_areas(facts: Sequence[dict[str, Any]], device: torch.device) -> list[dict[str, Any]]:
    """Facts with `dominant` and `areas`, see `survey`."""
    return survey(facts, device)[0]


def surveyed(pool: Pool, device: torch.device) -> Pool:
    """The pool on the device, with what `survey` says unless it knows that already."""
    facts, surfaces = pool.facts, pool.surfaces
    if surfaces is None or any("areas" not in fact for fact in facts):
        facts, surfaces = survey(facts, device)
    return Pool(pool.videos.to(device), facts, pool.decoded, surfaces.to(device))


@torch.no_grad()
def survey(facts: Sequence[dict[str, Any]], device: torch.device) -> tuple[list[dict[str, Any]], torch.Tensor]:
    """What a small render of first, middle and last frame shows: facts with `dominant` (index of the object that covers most pixels) and
    `areas` (pixels per object), and two numbers for every pixel, uint8 [N, 2, 3, 48, 80]: its class (an index into `SURFACES`) and the
    size of its object in those frames (log2 of the pixels in `SIZE_STEPS`; 0 if it shows none).

    The scenes are drawn again from their seeds. Raises ValueError if the facts of a seed are not one whole batch in order.
    """
    by_seed: dict[int, list[int]] = {}
    for at, fact in enumerate(facts):
        by_seed.setdefault(fact["scene_seed"], []).append(at)
    out = [dict(fact) for fact in facts]
    table = surface_table(facts).to(device)
    surfaces = torch.zeros(len(facts), 2, *SURVEY, dtype=torch.uint8, device=device)
    frames = [0, scenes.FRAMES // 2, scenes.FRAMES - 1]
    for seed, places in by_seed.items():
        drawn = scenes.sample(len(places), seed=seed)
        again = captions.attributes(drawn)
        if any(
            facts[at]["objects"] != fact["objects"] or facts[at]["index"] != fact["index"]
            for at, fact in zip(places, again, strict=True)
        ):
            raise ValueError(
                f"facts of scene seed {seed} are not one whole batch in order; hand over whole batches of scenes.sample"
            )
        tensors = drawn.to(device).tensors
        few = tensors._replace(c2w=tensors.c2w[:, frames], centre=tensors.centre[:, frames])
        surface = raycast.cast(few, *SURVEY[1:], scenes.PRESET.fov_x, 1)[2]
        areas = torch.stack([(surface == raycast.OBJECTS + k).sum((1, 2, 3)) for k in range(scenes.MAX_OBJECTS)], 1)
        sizes = F.pad((SIZE_STEPS * torch.log2(areas.clamp(min=1))).round().byte(), (1 + raycast.OBJECTS, 0))
        for which, of in enumerate((table[places], sizes)):
            surfaces[places, which] = of.gather(1, (surface + 1).flatten(1)).view_as(surface)
        for at, area in zip(places, areas.tolist(), strict=True):
            area = area[: len(out[at]["objects"])]
            out[at] |= {"areas": area, "dominant": area.index(max(area))}
    return out, surfaces


@torch.no_grad()
def through(roundtrip: Roundtrip, videos: torch.Tensor, batch: int = 16, deadline: float | None = None) -> torch.Tensor:
    """uint8 videos after the VAE, uint8; stops at `deadline` (monotonic seconds) with the batches done by then, at least one."""
    out: list[torch.Tensor] = []
    for i in range(0, len(videos), batch):
        if out and deadline is not None and time.monotonic() > deadline:
            break
        out.append(to_uint8(roundtrip(to_float(videos[i : i + batch]))))
        if videos.is_cuda:
            torch.cuda.synchronize(videos.device)
    return torch.cat(out) if out else videos[:0]


@dataclass
class Damaged:
    """Clips that were damaged before the VAE round trip."""

    videos: torch.Tensor  #: uint8 [D, 3, T, H, W]
    source: torch.Tensor  #: [D] index of the clean clip
    strength: torch.Tensor  #: [D] in 0..1; 0 where the damage changed nothing
    family: torch.Tensor  #: [D] index into the damage set


@torch.no_grad()
def damage_pool(
    videos: torch.Tensor,
    damages: Sequence[Damage],
    roundtrip: Roundtrip,
    g: torch.Generator,
    deadline: float | None,
    batch: int = 16,
) -> Damaged:
    """Damage and round-trip the clips in order, the families in turn, until all are done or `deadline` passes (at least one batch)."""
    parts: list[tuple[torch.Tensor, ...]] = []
    for n, i in enumerate(range(0, len(videos), batch)):
        if parts and deadline is not None and time.monotonic() > deadline:
            break
        clean = to_float(videos[i : i + batch])
        strength = draw_strength(len(clean), videos.device, g)
        bad = damages[n % len(damages)].apply(clean, strength, g)
        strength = torch.where(changed(clean, bad), strength, 0.0)
        family = torch.full((len(clean),), n % len(damages), device=videos.device)
        source = torch.arange(i, i + len(clean), device=videos.device)
        parts.append((to_uint8(roundtrip(bad)), source, strength, family))
        if videos.is_cuda:
            torch.cuda.synchronize(videos.device)
    return Damaged(*(torch.cat(part) for part in zip(*parts, strict=True)))


def draw_strength(n: int, device: torch.device, g: torch.Generator, low: float = 0.1) -> torch.Tensor:
    """[n] uniform in low..1."""
    return torch.rand(n, generator=g, device=device) * (1 - low) + low


@torch.no_grad()
def augment(x: torch.Tensor, g: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """What must not count as damage, the same for clean and damaged clips: a still resampling, slight blur, gain, offset and grain.

    Also returns the resampling, [B, 3]: zoom and shift to the right and down in pixels, for labels of single pixels.
    """
    b, _, _, h, w = x.shape
    draw = lambda low, high: torch.rand(b, generator=g, device=x.device) * (high - low) + low  # noqa: E731
    on = (draw(0, 1) < 0.6).float()
    zoom, dx, dy = on * draw(0.0, 0.06), on * draw(-1.5, 1.5), on * draw(-1.5, 1.5)
    columns = torch.arange(w, device=x.device)[None, None] + 0.5 - w / 2
    rows = torch.arange(h, device=x.device)[None, :, None] + 0.5 - h / 2
    per = lambda v: v[:, None, None]  # noqa: E731
    offset = torch.stack([per(dx) - per(zoom) * columns + 0 * rows, per(dy) - per(zoom) * rows + 0 * columns], 1)
    x = warp(x, offset[:, :, None])
    x = gaussian_blur(x, torch.where(draw(0, 1) < 0.5, draw(0.3, 0.8), 0.05), radius=2)
    wide = lambda v: v[:, None, None, None, None]  # noqa: E731
    x = x * wide(draw(0.95, 1.05)) + wide(draw(-0.03, 0.03))
    grain = wide((draw(0, 1) < 0.3).float() * draw(0.0, 0.02))
    x = (x + grain * torch.randn(x.shape, generator=g, device=x.device)).clamp(-1, 1)
    return x, torch.stack([zoom, dx, dy], 1)


@dataclass
class Batch:
    """One training batch on the device; `family` is -1 for clean clips."""

    x: torch.Tensor  #: [B, 3, T, H, W] in -1..1
    index: torch.Tensor  #: [B] clip in the pool
    strength: torch.Tensor  #: [B], 0 for clean
    family: torch.Tensor  #: [B]
    keeps_scene: torch.Tensor  #: [B] bool
    keeps_camera: torch.Tensor  #: [B] bool
    in_frame: torch.Tensor  #: [B] bool
    resampling: torch.Tensor  #: [B, 3] zoom and shift, see `augment`


class Batches:
    """Draws batches: clean clips, clips damaged on the fly (`groups` families at a time) and clips damaged before the VAE.

    `clean` is the share of clean clips, `ready` that of clips from the damaged pool; half of the rest comes from `decoded`.
    """

    def __init__(
        self, pool: torch.Tensor, decoded: torch.Tensor, ready: Damaged | None, damages: Sequence[Damage],
        size: int, seed: int, clean: float = 0.45, ready_share: float = 0.2, groups: int = 4,
    ) -> None:  # fmt: skip
        self.pool, self.decoded, self.ready, self.damages = pool, decoded, ready, tuple(damages)
        self.device = pool.device
        self.g = torch.Generator(device=self.device).manual_seed(seed)
        self.rng = random.Random(seed)
        n_clean, n_ready = round(clean * size), round(ready_share * size) if ready is not None else 0
        groups = max(1, min(groups, size - n_clean - n_ready))
        self.n_clean, self.n_ready = n_clean, n_ready
        fly = size - n_clean - n_ready
        self.sizes = [fly // groups + (i < fly % groups) for i in range(groups)]
        flags = [(d.keeps_scene, d.keeps_camera, d.in_frame) for d in self.damages] + [(True, True, True)]  # the last row: clean
        self.flags = torch.tensor(flags, device=self.device)

    def _clips(self, n: int, every: int) -> tuple[torch.Tensor, torch.Tensor]:
        """n clips, one of `every` decoded where there are decoded ones, and their indices."""
        index = torch.randint(len(self.pool), (n,), generator=self.g, device=self.device)
        x = self.pool[index]
        if len(self.decoded):
            places = torch.arange(n - 1, -1, -every, device=self.device)
            of_decoded = torch.randint(len(self.decoded), (len(places),), generator=self.g, device=self.device)
            index[places] = of_decoded
            x[places] = self.decoded[of_decoded]
        return to_float(x), index

    @torch.no_grad()
    def draw(self) -> Batch:
        """The next batch, augmented."""
        x, index = self._clips(self.n_clean, 2)
        none = torch.zeros(self.n_clean, device=self.device)
        xs, indices, strengths, families = [x], [index], [none], [none.long() - 1]
        chosen = self.rng.sample(range(len(self.damages)), min(len(self.sizes), len(self.damages)))
        for size, family in zip(self.sizes, chosen, strict=False):
            clean, index = self._clips(size, 4 if self.n_ready else 2)  # those damaged before the VAE count too
            strength = draw_strength(size, self.device, self.g)
            bad = self.damages[family].apply(clean, strength, self.g)
            xs.append(bad)
            indices.append(index)
            strengths.append(torch.where(changed(clean, bad), strength, 0.0))
            families.append(torch.full((size,), family, device=self.device))
        if self.n_ready and self.ready is not None:
            pick = torch.randint(len(self.ready.videos), (self.n_ready,), generator=self.g, device=self.device)
            xs.append(to_float(self.ready.videos[pick]))
            indices.append(self.ready.source[pick])
            strengths.append(self.ready.strength[pick])
            families.append(self.ready.family[pick])
        strength, family = torch.cat(strengths), torch.cat(families)
        family = torch.where(strength > 0, family, -1)
        scene, camera, frame = self.flags[family].unbind(1)
        x, resampling = augment(torch.cat(xs), self.g)
        return Batch(x, torch.cat(indices), strength, family, scene, camera, frame, resampling)
