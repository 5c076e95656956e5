"""LAION's aesthetic predictor v2: how much people like a picture, whatever it shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from world_r1.reward import Probe
from world_r1.types import Clip
from world_r1_rewards.probes._quality import under
from world_r1_rewards.quality.clip import AestheticHead, ClipScorer, preference
from world_r1_rewards.quality.pixels import FrameChoice


class Aesthetic(Probe):
    """Gives "aesthetic": the predictor's marks of frames, about 1 to 10.

    Options: `head` the path of its weights (the published .pth, or a safetensors copy); `frames` and `take` of
    `quality.pixels.FrameChoice`; `model` and the other options of `quality.clip.ClipScorer`. The head reads vectors of OpenAI's
    ViT-L/14: those of another CLIP of the same width give numbers without meaning.
    """

    gives = ("aesthetic",)
    weights = "openai/clip-vit-large-patch14, and sac+logos+ava1-l14-linearMSE.pth (option head)"
    licence = "MIT (CLIP's code); weights: see their cards"

    def __init__(
        self, head: str, frames: int = 8, take: str = "spread", model: str = "openai/clip-vit-large-patch14", **options: Any
    ) -> None:
        self.choice, self.scorer = FrameChoice(frames, take), ClipScorer(model, **options)
        self.head, digest = AestheticHead.load(head, str(self.scorer.net.device))
        width, needed = self.scorer.net.config.projection_dim, self.head.layers[0].in_features
        if width != needed:
            raise ValueError(f"aesthetic: {model} gives vectors of {width} numbers, the head reads {needed}")
        self.versions = {**self.scorer.versions, "head": digest}

    @torch.inference_mode()
    def observe(self, clips: Sequence[Clip], evidence: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any] | Exception]:
        results: list[Mapping[str, Any] | Exception] = []
        for clip in clips:
            values = self.head(self.scorer.images(self.choice.of(clip.video))).cpu().numpy()
            finite = np.isfinite(values).all()
            results.append(preference(values, self.versions) if finite else RuntimeError("the aesthetic mark is not finite"))
        return under("aesthetic", results)
