"""HPSv3 (arXiv 2508.03789): people's preferences between pictures, by a Qwen2-VL with a head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from world_r1.reward import Probe
from world_r1.types import Clip
from world_r1_rewards.probes._quality import under
from world_r1_rewards.quality.clip import preference
from world_r1_rewards.quality.pixels import FrameChoice
from world_r1_rewards.quality.qwen import HPSV3, QwenReward


class HPSv3(Probe):
    """Gives "hpsv3": the mean of the preference distribution of each frame, unbounded, some -2 to 15.

    World-R1 (arXiv 2604.24764, eq 10) averages it over the first frames: `take: first`. Options: `template` (see
    `quality.qwen.QwenReward`), `frames` and `take` of `quality.pixels.FrameChoice`, `base`, `checkpoint` and the others of `QwenReward`.
    """

    gives = ("hpsv3",)
    weights = "MizzenAI/HPSv3"
    licence = "MIT (code); weights: see their card; grown from Qwen2-VL-7B, Apache-2.0"

    def __init__(
        self,
        template: str,
        frames: int = 4,
        take: str = "first",
        base: str = "Qwen/Qwen2-VL-7B-Instruct",
        checkpoint: str = f"{weights}:HPSv3.safetensors",
        **options: Any,
    ) -> None:
        self.choice = FrameChoice(frames, take)
        self.model = QwenReward(HPSV3, base, checkpoint, template, **options)

    def observe(self, clips: Sequence[Clip], evidence: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any] | Exception]:
        chosen = [self.choice.of(clip.video) for clip in clips]
        items = [(frame[None], clip.prompt.text) for clip, frames in zip(clips, chosen, strict=True) for frame in frames]
        found = iter(self.model.scores(items))
        results: list[Mapping[str, Any] | Exception] = []
        for frames in chosen:
            answers = [next(found) for _ in frames]
            errors = [answer for answer in answers if isinstance(answer, Exception)]
            marks = np.array([answer.numpy()[0] for answer in answers if not isinstance(answer, Exception)])
            results.append(errors[0] if errors else preference(marks[:, 0], self.model.versions, spread=float(marks[:, 1].mean())))
        return under("hpsv3", results)
