"""The evaluator: which floor, walls, sky, objects and camera moves a blockworld video shows. For evaluation only, never a reward.

A residual network per frame (with the change to the next frame as extra channels) and a recurrent network over frames. With `dense`, a
decoder names the surface that each pixel of first, middle and last frame shows, and the dominant object is read off the areas. Labels
come straight from the scene generator, damages are `EVALUATOR_DAMAGES`. Architecture, seed and damages differ from the critic's, so that a
policy that learned to please the critic is not graded by the same eyes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from world_r1.blockworld.evaluator_dense import LEAST, Segmenter, areas, key_frames, read_off
from world_r1.blockworld.judge_io import as_uint8, fit, load_weights, save_weights
from world_r1.blockworld.judge_labels import AXES, CLASSES, COLOURS, SURFACES, camera_signs

#: What is read off the pixels if there is a decoder.
READ_OFF = ("object_colour", "object_shape")


class _Residual(nn.Module):
    """Two 3x3 convolutions with batch norm and a shortcut; halves the picture."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(inside, outside, 3, 2, 1, bias=False), nn.BatchNorm2d(outside, momentum=0.05)
        self.second, self.norm2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False), nn.BatchNorm2d(outside, momentum=0.05)
        self.short = nn.Sequential(nn.AvgPool2d(2, ceil_mode=True), nn.Conv2d(inside, outside, 1, bias=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = nn.functional.silu(self.norm1(self.first(x)))
        return nn.functional.silu(self.norm2(self.second(y)) + self.short(x))


class Evaluator(nn.Module):
    """At most 1.6 M parameters. Example: `Evaluator.from_pretrained(folder).attribute_accuracy(videos, attributes)["floor"].nanmean()`"""

    def __init__(
        self, widths: Sequence[int] = (32, 64, 96, 128), hidden: int = 96, notes: dict[str, Any] | None = None, dense: int = 64
    ) -> None:
        super().__init__()
        self.widths, self.hidden, self.dense, self.notes = tuple(widths), hidden, dense, dict(notes or {})
        a, b, c, d = self.widths
        self.stem = nn.Sequential(nn.Conv2d(6, a, 5, 2, 2, bias=False), nn.BatchNorm2d(a, momentum=0.05), nn.SiLU())
        self.trunk = nn.Sequential(_Residual(a, b), _Residual(b, c), _Residual(c, d))
        self.pool = nn.AdaptiveAvgPool2d((3, 5))
        self.frame = nn.Sequential(nn.Linear(15 * d + d, 2 * hidden), nn.SiLU(), nn.LayerNorm(2 * hidden))
        self.over_time = nn.GRU(2 * hidden, hidden, batch_first=True, bidirectional=True)
        self.attend = nn.Linear(2 * hidden, 1)
        self.segmenter = Segmenter(self.widths, dense, 2 * hidden) if dense else None
        wide = 6 * hidden + (len(SURFACES) if dense else 0)
        learned = {name: len(classes) for name, classes in CLASSES.items() if not dense or name not in READ_OFF}
        self.heads = nn.ModuleDict({name: nn.Linear(wide, count) for name, count in learned.items()})
        self.colours = nn.Linear(wide, len(COLOURS))
        self.camera = nn.Sequential(nn.Linear(2 * hidden, hidden), nn.SiLU(), nn.Linear(hidden, 3 * len(AXES)))
        self.quality = nn.Sequential(nn.Linear(wide, hidden), nn.SiLU(), nn.Linear(hidden, 1))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits for videos [B, 3, T, H, W] in -1..1: [B, classes] a head, `colours` [B, 10], `camera` [B, 2, 6, 3], `quality` [B]."""
        return self.see(x)[0]

    def see(self, x: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
        """`forward`, and the `Segmenter`'s maps of first, middle and last frame [B, 3, classes + 1, H/2, W/2] if it is `dense`."""
        b, _, t = x.shape[:3]
        change = torch.cat([x[:, :, 1:] - x[:, :, :-1], x[:, :, -1:] - x[:, :, -2:-1]], 2)
        images = torch.cat([x, change], 1).transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        maps = [self.stem(images)]
        for block in self.trunk:
            maps.append(block(maps[-1]))
        y = maps[-1]
        still = self.frame(torch.cat([self.pool(y).flatten(1), y.amax((2, 3))], 1).float()).unflatten(0, (b, t))
        moving = self.over_time(still)[0]
        weight = self.attend(moving).softmax(1)
        z = torch.cat([still.mean(1), (weight * still).sum(1), moving.mean(1)], -1)
        surfaces, out = None, {}
        if self.segmenter is not None:
            keys = key_frames(t)
            some = [m.unflatten(0, (b, t))[:, keys].flatten(0, 1).contiguous(memory_format=torch.channels_last) for m in maps]
            surfaces = self.segmenter(some, moving[:, keys].flatten(0, 1)).unflatten(0, (b, len(keys)))
            share, largest = areas(surfaces)
            z, out = torch.cat([z, torch.log(share + LEAST).to(z.dtype)], -1), read_off(share, largest)
        out |= {name: head(z) for name, head in self.heads.items()}
        out["colours"], out["quality"] = self.colours(z), self.quality(z)[:, 0]
        middle = math.ceil(t / 2)
        halves = torch.stack([moving[:, :middle].mean(1), moving[:, middle:].mean(1)], 1)
        out["camera"] = self.camera(halves).unflatten(-1, (len(AXES), 3))
        return out, surfaces

    @torch.inference_mode()
    def logits(self, videos: np.ndarray | torch.Tensor, batch: int | None = None) -> dict[str, torch.Tensor]:
        """`forward` for uint8 videos [B, T, H, W, 3], in chunks; float32 on the CPU. Raises ValueError for wrong shapes or no video."""
        clips = as_uint8(videos, 5, "videos [B, T, H, W, 3]")
        if len(clips) == 0 or clips.shape[1] < 2:
            raise ValueError(f"expected at least one video of at least 2 frames, got {tuple(clips.shape)}")
        batch = batch or (2 if self.attend.weight.device.type == "cpu" else 32)
        parts = [self(fit(clips[i : i + batch], self.attend.weight.device)) for i in range(0, len(clips), batch)]
        return {key: torch.cat([part[key] for part in parts]).float().cpu() for key in parts[0]}

    def predict(self, videos: np.ndarray | torch.Tensor) -> dict[str, Any]:
        """What each video shows: class names; `colours` lists of names; `camera` int64 [B, 2, 6]; `quality` float32 [B] in 0..1."""
        logits = self.logits(videos)
        out: dict[str, Any] = {name: [classes[i] for i in logits[name].argmax(-1).tolist()] for name, classes in CLASSES.items()}
        out["colours"] = [[c for c, seen in zip(COLOURS, row, strict=True) if seen > 0] for row in logits["colours"].tolist()]
        out["camera"], out["quality"] = logits["camera"].argmax(-1) - 1, logits["quality"].sigmoid()
        return out

    def attribute_accuracy(
        self, videos: np.ndarray | torch.Tensor, attributes: Sequence[Mapping[str, Any]]
    ) -> dict[str, torch.Tensor]:
        """Right (1.0), wrong (0.0) or not asked (nan) per video, float32 [B], for every attribute.

        `attributes` are facts as `captions.attributes` gives them; a missing or None entry is not asked. Without `dominant` (a prompt
        was never rendered) the dominant object's colour and shape count as right if any object of the prompt has them. `camera` is right
        if all axes agree in both halves of the clip, `camera_direction` if every commanded axis has its sign.
        Raises ValueError if there are not as many attributes as videos.
        """
        if len(attributes) != len(videos):
            raise ValueError(f"one attribute dict per video is needed, got {len(attributes)} for {len(videos)} videos")
        seen = self.predict(videos)
        return _compare(seen, attributes)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `evaluator.safetensors` (fp16) and `config.json` (widths, classes, notes)."""
        config = {"widths": self.widths, "hidden": self.hidden, "dense": self.dense, "classes": CLASSES, "notes": self.notes}
        save_weights(self, Path(folder), "evaluator", config | ({"surfaces": SURFACES} if self.dense else {}))

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: torch.device | str = "cpu") -> Evaluator:
        """Load in eval mode, fp32. Raises ValueError if the folder lacks an evaluator or it was trained for other classes."""
        config, weights = load_weights(Path(folder), "evaluator")
        known = {name: tuple(values) for name, values in config["classes"].items()}
        if known != CLASSES or tuple(config.get("surfaces", SURFACES)) != SURFACES:
            raise ValueError(f"the evaluator in {folder} was trained for other classes than blockworld has now; train it again")
        evaluator = cls(config["widths"], config["hidden"], config["notes"], config.get("dense", 0))
        evaluator.load_state_dict(weights)
        return evaluator.to(device=device, memory_format=torch.channels_last).eval().requires_grad_(False)


def _compare(seen: Mapping[str, Any], attributes: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    names = (*CLASSES, "colours", "camera", "camera_direction")
    out = {name: torch.full((len(attributes),), float("nan")) for name in names}
    for i, facts in enumerate(attributes):
        for name, key in (("floor", "floor"), ("wall", "wall_colour"), ("sky", "sky")):
            if facts.get(key) is not None:
                out[name][i] = float(seen[name][i] == facts[key])
        things = facts.get("objects") or []
        if things:
            asked = things if facts.get("dominant") is None else [things[facts["dominant"]]]
            out["object_colour"][i] = float(seen["object_colour"][i] in {thing["colour"] for thing in asked})
            out["object_shape"][i] = float(seen["object_shape"][i] in {thing["shape"] for thing in asked})
            out["count"][i] = float(int(seen["count"][i]) == len(things))
            out["colours"][i] = float({thing["colour"] for thing in things} <= set(seen["colours"][i]))
        if facts.get("command"):
            want = camera_signs(facts["command"])
            out["camera"][i] = float(torch.equal(seen["camera"][i], want))
            out["camera_direction"][i] = float(torch.equal(torch.where(want == 0, 0, seen["camera"][i]), want))
    return out
