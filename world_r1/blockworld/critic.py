"""The quality critic: a small video-text model that plays the part of a preference model and a language-model judge for blockworld.

It looks at a video through a 2D trunk per frame and a trunk over neighbouring frames, reads the prompt word by word, and lets the words
attend to the video. Three answers for a video, two for a single frame; all are learned from renders, damaged renders and wrong
captions (`pretrain_critic`). It is a *reward*: evaluation uses `world_r1.blockworld.evaluator`, which shares nothing with it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from world_r1.blockworld.judge_io import as_uint8, fit, load_weights, save_weights
from world_r1.blockworld.judge_labels import AXES, CLASSES, COLOURS, HALVES, objects_seen

#: Time bins and grid that the words attend to.
BINS, GRID = 4, (6, 10)
MAX_WORDS = 64
PAD, UNKNOWN = 0, 1


class Vocabulary:
    """Words of the captions <-> ids; lower case, punctuation apart. 0 pads, 1 stands for every unknown word."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = tuple(words)
        self._ids = {word: i + 2 for i, word in enumerate(self.words)}

    @staticmethod
    def split(text: str) -> list[str]:
        return re.findall(r"\w+|[^\w\s]", text.lower())

    @classmethod
    def build(cls, texts: Iterable[str]) -> Vocabulary:
        """All words of `texts`, sorted."""
        return cls(sorted({word for text in texts for word in cls.split(text)}))

    def __len__(self) -> int:
        return len(self.words) + 2

    def encode(self, texts: Sequence[str], length: int = MAX_WORDS) -> torch.Tensor:
        """[B, length] int64 ids; longer texts are cut."""
        rows = []
        for text in texts:
            words = [self._ids.get(word, UNKNOWN) for word in self.split(text)[:length]]
            rows.append(words + [PAD] * (length - len(words)))
        return torch.tensor(rows, dtype=torch.int64).view(len(texts), length)


class _Conv(nn.Sequential):
    """Convolution, batch norm, ReLU on [N, C, H, W]."""

    def __init__(self, inside: int, outside: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inside, outside, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(outside, momentum=0.05),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] -> [N, outside, H', W']; in eval mode the norm is folded into the convolution (a fifth of the time on a CPU)."""
        conv, norm, act = self
        if self.training:
            return act(norm(conv(x)))
        scale, shift = _affine(norm)
        return act(F.conv2d(x, conv.weight * scale[:, None, None, None], shift, conv.stride, conv.padding))


def _affine(norm: nn.BatchNorm2d) -> tuple[torch.Tensor, torch.Tensor]:
    """(scale, shift) per channel of a batch norm that uses its running statistics."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return scale, norm.bias - norm.running_mean * scale


class _Temporal(nn.Module):
    """Convolution over a frame and its two neighbours, batch norm, ReLU: one 2D convolution whose outputs are shifted in time and added."""

    def __init__(self, inside: int, outside: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inside, 3 * outside, kernel, stride, kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(outside, momentum=0.05)

    def forward(self, x: torch.Tensor, frames: int) -> torch.Tensor:
        """[B*T, C, H, W] -> [B*T, outside, H', W']; the clip's ends are repeated."""
        y = self._spread(x).permute(0, 2, 3, 1).unflatten(0, (-1, frames))  # in memory order: slices in time stay contiguous
        before, now, after = y.chunk(3, -1)
        before = torch.cat([before[:, :1], before[:, :-1]], 1)
        after = torch.cat([after[:, 1:], after[:, -1:]], 1)
        z = (before + now + after).flatten(0, 1).permute(0, 3, 1, 2)
        return F.relu(self.norm(z) if self.training else z)

    def _spread(self, x: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] -> [N, 3 outside, H', W']: what a frame gives to the next, itself and the last; eval mode folds the norm in."""
        if self.training:
            return self.conv(x)
        scale, shift = _affine(self.norm)
        bias = torch.cat([torch.zeros_like(shift), shift, torch.zeros_like(shift)])
        weight = self.conv.weight * scale.repeat(3)[:, None, None, None]
        return F.conv2d(x, weight, bias, self.conv.stride, self.conv.padding)


class _Attend(nn.Module):
    """Pre-norm multi-head attention with a residual; attends to itself or to another sequence."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.q, self.kv, self.out = (
            nn.LayerNorm(width),
            nn.Linear(width, width),
            nn.Linear(width, 2 * width),
            nn.Linear(width, width),
        )

    def forward(self, x: torch.Tensor, other: torch.Tensor | None = None, mask: torch.Tensor | None = None) -> torch.Tensor:
        y = self.norm(x)
        k, v = self.kv(y if other is None else other).chunk(2, -1)
        q, k, v = (z.unflatten(-1, (self.heads, -1)).transpose(1, 2) for z in (self.q(y), k, v))
        z = F.scaled_dot_product_attention(q, k, v, None if mask is None else mask[:, None, None, :])
        return x + self.out(z.transpose(1, 2).flatten(2))


class _Feed(nn.Sequential):
    def __init__(self, width: int) -> None:
        super().__init__(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))


@cache
def _bins(frames: int, device: torch.device) -> torch.Tensor:
    """[BINS, frames] weights that average neighbouring frames; bins overlap by a frame where they do not divide the clip."""
    with torch.inference_mode(False):  # cached: scoring may come first and training, which needs a normal tensor, later
        weights = torch.zeros(BINS, frames)
        for k in range(BINS):
            weights[k, k * frames // BINS : -(-(k + 1) * frames // BINS)] = 1
        return (weights / weights.sum(1, keepdim=True)).to(device)


class Beliefs(nn.Module):
    """Attributes read off the tokens, learned from the generator's labels: floor, walls, sky, objects, camera axes in both halves."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.classes = nn.ModuleDict({name: nn.Linear(2 * width, len(options)) for name, options in CLASSES.items()})
        self.colours, self.camera = nn.Linear(2 * width, len(COLOURS)), nn.Linear(2 * width, 3 * len(AXES))
        self.scene_size = sum(len(options) for options in CLASSES.values()) + len(COLOURS)
        self.camera_size = 3 * HALVES * len(AXES)

    def forward(self, seen: torch.Tensor) -> dict[str, torch.Tensor]:
        """Tokens [B, N, d], ordered in time -> logits: [B, classes] a head, `colours` [B, 10], `camera` [B, 2, 6, 3]."""
        halves = torch.stack(seen.chunk(HALVES, 1), 1)
        z = torch.cat([halves.mean(2), halves.amax(2)], -1)
        out = {name: head(z.mean(1)) for name, head in self.classes.items()}
        return out | {"colours": self.colours(z.mean(1)), "camera": self.camera(z).unflatten(-1, (len(AXES), 3))}

    @staticmethod
    def scene(logits: dict[str, torch.Tensor]) -> torch.Tensor:
        """[B, scene_size] evidence for each attribute of the scene, of norm about 1 and without gradient."""
        parts = [_evidence(logits[name]) for name in CLASSES] + [logits["colours"].float().clamp(-4, 4) / 2]
        z = torch.cat(parts, -1).detach()
        return z / math.sqrt(z.shape[-1])

    @staticmethod
    def moves(logits: dict[str, torch.Tensor]) -> torch.Tensor:
        """[B, camera_size] evidence for each sign of the camera axes, of norm about 1 and without gradient."""
        z = _evidence(logits["camera"]).flatten(1).detach()
        return z / math.sqrt(z.shape[-1])


def _evidence(logits: torch.Tensor) -> torch.Tensor:
    """Log-probabilities against the uniform distribution, from -4 up."""
    return (logits.float().log_softmax(-1) + math.log(logits.shape[-1])).clamp(min=-4)


class QualityCritic(nn.Module):
    """At most 1.6 M parameters. Logits inside, `score` and `score_frames` give numbers in 0..1."""

    #: `score` takes the prompts' attributes (`world_r1_rewards.probes.critic`).
    reads_attributes = True

    def __init__(
        self,
        vocabulary: Vocabulary,
        widths: Sequence[int] = (24, 40, 64),
        text_width: int = 128,
        notes: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.vocabulary, self.widths, self.text_width, self.notes = vocabulary, tuple(widths), text_width, dict(notes or {})
        a, b, c = self.widths
        d = text_width
        self.stem = nn.Sequential(_Conv(3, a, 3, 2), _Conv(a, b, 3, 2))
        self.down, self.look = _Conv(b, c, 3, 2), _Conv(c, c)
        self.motion = _Temporal(b, c, 3, 2)
        self.mix = nn.ModuleList(nn.ModuleList([_Temporal(c, c, 1), _Conv(c, c)]) for _ in range(2))
        self.overview = nn.Linear(3 * c, d)
        self.time = nn.ModuleList([_Attend(d, 4), _Feed(d)])
        self.quality = nn.Sequential(nn.LayerNorm(3 * d), nn.Linear(3 * d, d), nn.GELU(), nn.Linear(d, 1))
        self.frame_quality = nn.Sequential(nn.Linear(3 * c, d), nn.GELU(), nn.Linear(d, 1))
        self.see, self.see_frame = nn.Linear(2 * c, d), nn.Linear(c, d)
        self.where = nn.Parameter(0.02 * torch.randn(GRID[0] * GRID[1], d))
        self.when = nn.Parameter(0.02 * torch.randn(BINS, 1, d))
        self.words, self.positions = (
            nn.Embedding(len(vocabulary), d, padding_idx=PAD),
            nn.Parameter(0.02 * torch.randn(1, MAX_WORDS, d)),
        )
        self.asks = nn.Parameter(0.02 * torch.randn(1, 2, d))  # what the two text answers are read from: scene, camera
        self.read = nn.ModuleList([_Attend(d, 4), _Feed(d)])
        self.compare = nn.ModuleList(nn.ModuleList([_Attend(d, 4), _Attend(d, 4), _Feed(d)]) for _ in range(2))
        self.norm_seen, self.norm_told, self.norm_read = nn.LayerNorm(d), nn.LayerNorm(d), nn.LayerNorm(d)
        self.fidelity, self.camera = nn.Linear(d, 1), nn.Linear(d, 1)
        self.beliefs = Beliefs(d)
        self.told, self.told_camera = nn.Linear(d, self.beliefs.scene_size), nn.Linear(d, self.beliefs.camera_size)
        for layer in (self.told, self.told_camera):  # before anything is learned, what is told must not matter
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def frames(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images [N, 3, H, W] in -1..1 -> (fine [N, b, H/4, W/4], coarse [N, c, H/8, W/8]) features."""
        fine = self.stem(x)
        coarse = self.down(fine)
        return fine, coarse + self.look(coarse)

    def watch(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Videos [B, 3, T, H, W] in -1..1 -> per-frame features [B, T, c, h, w] and features over time of the same shape."""
        b, _, t = x.shape[:3]
        images = x.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        fine, coarse = self.frames(images)
        y = coarse + self.motion(fine, t)
        for over_time, over_space in self.mix:  # type: ignore[misc]
            y = y + over_space(over_time(y, t))
        return coarse.unflatten(0, (b, t)), y.unflatten(0, (b, t))

    @staticmethod
    def _summary(y: torch.Tensor) -> torch.Tensor:
        """[..., c, h, w] -> [..., 3c]: mean, maximum and spread over the picture."""
        y = y.float().flatten(-2)
        return torch.cat([y.mean(-1), y.amax(-1), (y.var(-1) + 1e-4).sqrt()], -1)

    def judge_quality(self, y: torch.Tensor) -> torch.Tensor:
        """Features over time [B, T, c, h, w] -> quality logit [B]."""
        z = self.overview(self._summary(y))
        z = self.time[0](z)
        z = z + self.time[1](z)
        return self.quality(torch.cat([z.mean(1), z.amax(1), z.amin(1)], -1))[:, 0]

    def judge_frame(self, coarse: torch.Tensor) -> torch.Tensor:
        """Per-image features [N, c, h, w] -> quality logit [N]."""
        return self.frame_quality(self._summary(coarse))[:, 0]

    def tokens(self, coarse: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """What the words look at: [B, BINS * grid, d], ordered in time."""
        b, t = y.shape[:2]
        z = torch.cat([coarse, y], 2).flatten(0, 1)
        z = F.adaptive_avg_pool2d(z, GRID).permute(0, 2, 3, 1).float().reshape(b, t, -1)
        z = torch.einsum("kt,btn->bkn", _bins(t, y.device), z).view(b, BINS, GRID[0] * GRID[1], -1)
        return (self.see(z) + self.where + self.when).flatten(1, 2)

    def frame_tokens(self, coarse: torch.Tensor) -> torch.Tensor:
        """The same for single images [N, c, h, w] -> [N, grid, d]."""
        z = F.adaptive_avg_pool2d(coarse, GRID).permute(0, 2, 3, 1).float().flatten(1, 2)
        return self.see_frame(z) + self.where

    def ask(self, seen: torch.Tensor, ids: torch.Tensor, beliefs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Tokens of what is seen, word ids [B, L] and the beliefs -> logits [B, 2]: (the scene is as told, the camera moves as told).

        Two paths are added: the words attend to the tokens, and what the words say is matched with the beliefs (without
        gradient: they are learned from labels only).
        """
        z = torch.cat([self.asks.expand(len(ids), -1, -1), self.words(ids) + self.positions[:, : ids.shape[1]]], 1)
        mask = F.pad(ids != PAD, (2, 0), value=True)
        z = self.read[0](z, mask=mask)
        z = z + self.read[1](z)
        told = self.norm_told(z[:, :2])
        scene = (self.told(told[:, 0]).float() * self.beliefs.scene(beliefs)).sum(-1)
        camera = (self.told_camera(told[:, 1]).float() * self.beliefs.moves(beliefs)).sum(-1)
        seen = self.norm_seen(seen)
        for within, look, feed in self.compare:  # type: ignore[misc]
            z = look(within(z, mask=mask), seen)
            z = z + feed(z)
        z = self.norm_read(z)
        return torch.stack([self.fidelity(z[:, 0])[:, 0].float() + scene, self.camera(z[:, 1])[:, 0].float() + camera], 1)

    def forward(self, x: torch.Tensor, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits [B] of `quality`, `fidelity` and `camera` for videos [B, 3, T, H, W] in -1..1 and word ids [B, L]."""
        return self._judge(x, ids)[0]

    def _judge(self, x: torch.Tensor, ids: torch.Tensor) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """`forward`, and the beliefs it rests on."""
        coarse, y = self.watch(x)
        seen = self.tokens(coarse, y)
        beliefs = self.beliefs(seen)
        answers = self.ask(seen, ids, beliefs)
        return {"quality": self.judge_quality(y), "fidelity": answers[:, 0], "camera": answers[:, 1]}, beliefs

    @torch.inference_mode()
    def score(
        self,
        videos: np.ndarray | torch.Tensor,
        prompts: Sequence[str],
        batch: int | None = None,
        attributes: Sequence[Mapping[str, Any]] | None = None,
    ) -> dict[str, torch.Tensor]:
        """Videos uint8 [B, T, H, W, 3] and their prompts -> float32 [B] in 0..1 on the CPU: `quality`, `fidelity`, `camera`.

        Quality does not read the prompt. `camera` means something only for a prompt with a camera command. With the prompts' `attributes`
        (`captions.attributes`) also `objects`: how surely the objects that they name are there, nan where they name none.
        Raises ValueError for a wrong shape, dtype, fewer than 4 frames, or another number of prompts.
        """
        clips = as_uint8(videos, 5, "videos [B, T, H, W, 3]")
        if len(clips) != len(prompts):
            raise ValueError(f"one prompt per video is needed, got {len(prompts)} prompts for {len(clips)} videos")
        if clips.shape[1] < BINS:
            raise ValueError(f"a video needs at least {BINS} frames, got {clips.shape[1]}; use score_frames for stills")
        ids = self.vocabulary.encode(prompts)
        ids = ids[:, : max(1, int((ids != PAD).sum(1).max()))] if len(ids) else ids
        batch = batch or (1 if self.where.device.type == "cpu" else 32)  # one video at a time stays in the cache of a CPU
        parts = []
        for i in range(0, len(clips), batch):
            x = fit(clips[i : i + batch], self.where.device)
            logits, beliefs = self._judge(x, ids[i : i + batch].to(x.device))
            parts.append({name: value.float().sigmoid().cpu() for name, value in logits.items()})
            if attributes is not None:
                parts[-1]["objects"] = objects_seen({k: beliefs[k].cpu() for k in ("count", "colours")}, attributes[i : i + batch])
        return {k: torch.cat([p[k] for p in parts]) for k in parts[0]} if parts else _none(3)

    @torch.inference_mode()
    def score_frames(self, images: np.ndarray | torch.Tensor, prompts: Sequence[str], batch: int = 64) -> dict[str, torch.Tensor]:
        """Single images uint8 [B, H, W, 3], for example renders of new views -> float32 [B] in 0..1: `quality`, `fidelity`.

        Raises ValueError as `score` does.
        """
        stills = as_uint8(images, 4, "images [B, H, W, 3]")
        if len(stills) != len(prompts):
            raise ValueError(f"one prompt per image is needed, got {len(prompts)} prompts for {len(stills)} images")
        ids = self.vocabulary.encode(prompts)
        quality, fidelity = [], []
        for i in range(0, len(stills), batch):
            x = fit(stills[i : i + batch, None], self.where.device)[:, :, 0].contiguous(memory_format=torch.channels_last)
            coarse = self.frames(x)[1]
            quality.append(self.judge_frame(coarse))
            seen = self.frame_tokens(coarse)
            fidelity.append(self.ask(seen, ids[i : i + batch].to(x.device), self.beliefs(seen))[:, 0])
        if not quality:
            return _none(2)
        return {"quality": torch.cat(quality).float().sigmoid().cpu(), "fidelity": torch.cat(fidelity).float().sigmoid().cpu()}

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `critic.safetensors` (fp16) and `config.json` (widths, vocabulary, notes)."""
        config = {"widths": self.widths, "text_width": self.text_width, "words": self.vocabulary.words, "notes": self.notes}
        save_weights(self, Path(folder), "critic", config)

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: torch.device | str = "cpu") -> QualityCritic:
        """Load in eval mode, fp32. Raises ValueError if the folder lacks a critic."""
        config, weights = load_weights(Path(folder), "critic")
        critic = cls(Vocabulary(config["words"]), config["widths"], config["text_width"], config["notes"])
        critic.load_state_dict(weights)
        return critic.to(device=device, memory_format=torch.channels_last).eval().requires_grad_(False)


def _none(count: int) -> dict[str, torch.Tensor]:
    return {key: torch.zeros(0) for key in ("quality", "fidelity", "camera")[:count]}
