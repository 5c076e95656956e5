"""What the pretraining stages share: options, pacing by steps or seconds, logging."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Options:
    """How a stage runs. Example: `Options(out=Path("out"), device=torch.device("cuda"), steps=5000, batch=16, workers=12)`"""

    out: Path
    device: torch.device
    #: Optimizer steps; with `seconds`, the number is set after the first steps were timed.
    steps: int | None = None
    seconds: float | None = None
    batch: int = 16
    #: Processes that draw scenes and captions.
    workers: int = 0
    seed: int = 0
    #: Write the resumable state every so many seconds.
    save_seconds: float = 60.0
    resume: bool = False
    #: Start from the weights in `out` with fresh optimizers (more training after a finished run).
    warm: bool = False


class Pace:
    """Steps of one stage: knows the total, the learning-rate factor and when to log and save.

    With a budget in seconds, steps 5 to 25 are timed and the total set from them, so that the cosine schedule ends in time.
    """

    TIMED = (5, 25)

    def __init__(self, options: Options, start: int = 0, warmup: int = 100) -> None:
        if (options.steps is None) == (options.seconds is None):
            raise ValueError("give either steps or seconds")
        self.options, self.step, self.warmup = options, start, warmup
        self.total = options.steps
        self.begin = self.saved = self.logged = time.monotonic()
        self.timed = 0.0

    def __iter__(self) -> Iterator[int]:
        start = self.step
        while self.total is None or self.step < self.total:
            if self.total is None:
                self._time(self.step - start)
            yield self.step
            self.step += 1

    def _time(self, done: int) -> None:
        if done in self.TIMED and self.options.device.type == "cuda":
            torch.cuda.synchronize()
        if done == self.TIMED[0]:
            self.timed = time.monotonic()
        elif done == self.TIMED[1]:
            assert self.options.seconds is not None
            each = (time.monotonic() - self.timed) / (self.TIMED[1] - self.TIMED[0])
            left = self.options.seconds - (time.monotonic() - self.begin)
            self.total = self.step + max(1, int(left / each))
            print(f"{each * 1000:.1f} ms a step: {self.total} steps", flush=True)

    def factor(self, decay: float = 1.0, floor: float = 0.02) -> float:
        """Learning-rate factor: linear warm-up, constant, then a cosine over the last share `decay` of the steps."""
        warm = min(1.0, (self.step + 1) / self.warmup)
        if self.total is None:
            return warm
        progress = max(0.0, (self.step / self.total - (1 - decay)) / decay)
        return warm * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))

    def due(self, what: str, seconds: float) -> bool:
        """True once every `seconds` for "save" or "log"."""
        now = time.monotonic()
        last = self.saved if what == "save" else self.logged
        if now - last < seconds:
            return False
        if what == "save":
            self.saved = now
        else:
            self.logged = now
        return True

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.begin


def write_metrics(out: Path, stage: str, metrics: dict[str, object]) -> None:
    """Merge one stage's figures into `metrics.json` of the output folder."""
    (out / "metrics.json").write_text(json.dumps(read_metrics(out) | {stage: metrics}, indent=2) + "\n")
    print(stage, json.dumps(metrics), flush=True)


def read_metrics(out: Path) -> dict[str, Any]:
    """Figures of the stages that have written theirs; empty for a new folder."""
    path = out / "metrics.json"
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return known


def psnr(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """[B] peak signal-to-noise ratio in dB of videos in -1..1."""
    return -10 * torch.log10(((a - b) / 2).square().flatten(1).mean(1))
