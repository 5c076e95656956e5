"""What the realism judge learns from: round trips of renders and samples of the same prompts, and the disguise that both wear.

Both kinds leave the same decoder by the same call, so its traces are no cue. How sharp, how bright and how colourful a clip is must be no
cue either: those are what a policy would change first, and they are not what is wrong with its samples. So `Pairs.draw` gives every
clip another blur, sharpening, contrast, brightness, saturation, gamma and noise, the same distribution for both kinds.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from world_r1.blockworld import scenes
from world_r1.blockworld.damage import gaussian_blur
from world_r1.types import Prompt

if TYPE_CHECKING:
    from world_r1.config import Config

#: Sizes that clips are cropped to; few, since a GPU chooses its kernels anew for each.
HEIGHTS, WIDTHS = (64, 80, 96), (112, 128, 144, 160)
ENCODED_TOGETHER = 16


@dataclass
class Pairs:
    """N prompts' round trips and K samples each. Example: `Pairs(real=<4000x17x96x160x3 uint8>, base=<4000x2x17x96x160x3 uint8>)`"""

    real: torch.Tensor
    base: torch.Tensor

    def __post_init__(self) -> None:
        if self.real.dtype != torch.uint8 or self.base.dtype != torch.uint8 or self.base[:, 0].shape != self.real.shape:
            raise ValueError(
                "pairs need uint8 videos [N, T, H, W, 3] and [N, K, T, H, W, 3], "
                f"got {tuple(self.real.shape)} {self.real.dtype} and {tuple(self.base.shape)} {self.base.dtype}"
            )

    def __len__(self) -> int:
        return len(self.real)

    def split(self, held: int) -> tuple[Pairs, Pairs]:
        """All but the last `held` prompts, and those."""
        return Pairs(self.real[:-held], self.base[:-held]), Pairs(self.real[-held:], self.base[-held:])


@torch.no_grad()
def collect(
    policy: Any, config: Config, prompts: Sequence[Prompt], noises: int, seed: int, deadline: float | None = None, batch: int = 48
) -> Pairs:
    """Round trips and `noises` samples of each prompt, on the policy's device; stops at `deadline` (monotonic seconds) with the batches
    of prompts done by then, at least two. The prompts must describe scenes of blockworld."""
    from world_r1.sample import generate

    real: list[torch.Tensor] = []
    base: list[torch.Tensor] = []
    for start in range(0, len(prompts), batch):
        if len(real) > 1 and deadline is not None and time.monotonic() > deadline:
            break
        some = prompts[start : start + batch]
        real.append(_round_trips(policy, config, some))
        keys = [[(seed, 0, start + i, k) for i in range(len(some))] for k in range(noises)]
        samples = [torch.from_numpy(generate(policy, config, some, row)).to(policy.device) for row in keys]
        base.append(torch.stack(samples, 1))
    return Pairs(torch.cat(real), torch.cat(base))


def _round_trips(policy: Any, config: Config, prompts: Sequence[Prompt]) -> torch.Tensor:
    """uint8 [N, T, H, W, 3] of the prompts' renders, encoded to the mean and decoded by the call that decodes samples."""
    from world_r1.policies import wan_vae

    rendered = _renders(config, prompts, policy.device)
    out = []
    for some in rendered.split(ENCODED_TOGETHER):
        mean = wan_vae.encode(policy.vae, some)[0]
        out.append(policy.decode(wan_vae.normalise(policy.vae, mean)))
    return torch.from_numpy(np.concatenate(out)).to(policy.device)


def _renders(config: Config, prompts: Sequence[Prompt], device: torch.device) -> torch.Tensor:
    """[N, 3, T, H, W] in -1..1; a block of scenes is drawn once for all of its prompts."""
    places: dict[tuple[int, int, bool], list[int]] = {}
    for at, prompt in enumerate(prompts):
        facts = prompt.attributes
        places.setdefault((facts["scene_seed"], facts["block"], facts["dynamic"]), []).append(at)
    out: list[torch.Tensor | None] = [None] * len(prompts)
    for (seed, block, dynamic), members in places.items():
        index = torch.tensor([prompts[at].attributes["index"] for at in members])
        drawn = scenes.sample(block, seed=seed, dynamic=dynamic)[index].to(device)
        for at, video in zip(members, scenes.render(drawn, config.video.height, config.video.width, 2).rgb, strict=True):
            out[at] = video
    return torch.stack([video for video in out if video is not None])


class Drawing:
    """Draws training batches: as many round trips as samples, of the same prompts, each cropped, turned and disguised on its own."""

    def __init__(self, pairs: Pairs, size: int, seed: int) -> None:
        self.pairs, self.half = pairs, max(1, size // 2)
        self.rng = random.Random(seed)
        self.g = torch.Generator(device=pairs.real.device).manual_seed(seed)

    @torch.no_grad()
    def draw(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(videos [B, 3, T, h, w] in -1..1, what they are [B]: 1 for round trips, 0 for samples)."""
        real, base = self.pairs.real, self.pairs.base
        index, noise = self._integers(len(real)), self._integers(base.shape[1])
        size = (self.rng.choice(HEIGHTS), self.rng.choice(WIDTHS))
        clips = torch.cat([self._crops(real, index, size), self._crops(base.flatten(0, 1), index * base.shape[1] + noise, size)])
        x = clips.permute(0, 4, 1, 2, 3).float() / 127.5 - 1
        return disguise(x, self.g), torch.cat([torch.ones(self.half), torch.zeros(self.half)]).to(x.device)

    def _integers(self, end: int) -> torch.Tensor:
        return torch.randint(end, (self.half,), generator=self.g, device=self.g.device)

    def _crops(self, videos: torch.Tensor, index: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """uint8 [half, T, h, w, 3] of `videos[index]`: one size for all, places and directions of time and left to right of their own."""
        _, t, height, width, _ = videos.shape
        h, w = min(height, size[0]), min(width, size[1])
        rows, columns = self._window(h, height), self._turned(self._window(w, width))
        times = self._turned(self._window(t, t))
        return videos[index[:, None, None, None], times[:, :, None, None], rows[:, None, :, None], columns[:, None, None, :]]

    def _window(self, length: int, whole: int) -> torch.Tensor:
        """[half, length] indices of a window at a random place of each clip."""
        return torch.arange(length, device=self.g.device)[None] + self._integers(whole - length + 1)[:, None]

    def _turned(self, at: torch.Tensor) -> torch.Tensor:
        """Half of the rows backwards."""
        return torch.where((self._integers(2) == 1)[:, None], at, at.flip(1))


def disguise(x: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """Videos [B, 3, T, H, W] in -1..1 with a look that says nothing of what they are: blur up to 1.5 px, sharpening, colour, grain.

    The look is the same in all frames of a clip: a change over time would be what the judge is to see.
    """
    draw = lambda low, high: torch.rand(len(x), 1, 1, 1, 1, generator=g, device=x.device) * (high - low) + low  # noqa: E731
    x = gaussian_blur(x, draw(0.0, 1.5).flatten(), radius=4)
    x = x + draw(0.0, 0.5) * (x - gaussian_blur(x, torch.ones(len(x), device=x.device), radius=3))
    grey = x.mean(1, keepdim=True)
    x = grey + draw(0.6, 1.4) * (x - grey)
    middle = grey.mean((2, 3, 4), keepdim=True)
    x = middle + draw(0.7, 1.3) * (x - middle) + draw(-0.2, 0.2)
    x = 2 * ((x.clamp(-1, 1) + 1) / 2).pow(torch.exp2(draw(-0.4, 0.4))) - 1
    grain = draw(0.0, 2.0) / 127.5
    return (x + grain * torch.randn(x.shape, generator=g, device=x.device)).clamp(-1, 1)


def sharpness(videos: torch.Tensor) -> torch.Tensor:
    """Spread of the Laplacian of the luminance, mean over frames, of uint8 videos [N, T, H, W, 3]: float32 [N]."""
    grey = videos.float().mean(-1)
    around = grey[..., :-2, 1:-1] + grey[..., 2:, 1:-1] + grey[..., 1:-1, :-2] + grey[..., 1:-1, 2:]
    return (around - 4 * grey[..., 1:-1, 1:-1]).flatten(2).std(-1).mean(1)
