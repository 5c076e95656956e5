"""A learned judge's opinion of how the world moves: like a rendered one, or like the samples of a video model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from world_r1.blockworld import weights_path
from world_r1.blockworld.realism import Realism as Judge
from world_r1.reward import Degenerate, Probe
from world_r1.types import Clip


def _shipped() -> Path:
    return weights_path() / "realism"


class Realism(Probe):
    """Gives "realism": {score, logit}; score in [0, 1], 0.35 for the mean sample of the model that the judge was trained on.

    Options: `weights` the judge's folder ("blockworld" is the shipped one; ValueError if it is not there); `device` "auto", "cpu" or
    "cuda". Missing for clips of fewer than 5 frames.
    """

    gives = ("realism",)

    def __init__(self, device: str = "auto", weights: str = "blockworld") -> None:
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.judge = Judge.from_pretrained(_shipped() if weights == "blockworld" else Path(weights), device)

    @classmethod
    def lacks(cls) -> str:
        """As every plug-in's, and the shipped weights."""
        there = (_shipped() / "realism.safetensors").is_file()
        return super().lacks() or (
            "" if there else f"needs weights in {_shipped()}: train them, or give another folder as `weights`"
        )

    def observe(self, clips: Sequence[Clip], evidence: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any] | Exception]:
        results: list[Mapping[str, Any] | Exception] = [RuntimeError("not judged")] * len(clips)
        sizes: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for i, clip in enumerate(clips):
            sizes[clip.video.shape].append(i)
        for members in sizes.values():
            try:
                logits = self.judge.logits(np.stack([clips[i].video for i in members]))
            except ValueError as error:  # this size cannot be judged; clips of other sizes go on
                for i in members:
                    results[i] = Degenerate(str(error))
                continue
            for i, logit, score in zip(members, logits.tolist(), self.judge.scaled(logits).tolist(), strict=True):
                results[i] = {"realism": {"score": score, "logit": logit}}
        return results
