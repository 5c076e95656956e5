"""How well a general CLIP finds the prompt in the frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from world_r1.reward import Probe
from world_r1.types import Clip
from world_r1_rewards.probes._quality import cosines, under
from world_r1_rewards.quality.clip import ClipScorer
from world_r1_rewards.quality.pixels import FrameChoice


class CLIP(Probe):
    """Gives "clip": cosines of frames with the prompt.

    Options: `frames` and `take` ("spread" or "first") of `quality.pixels.FrameChoice`; `model` and the other options of
    `quality.clip.ClipScorer`.
    """

    gives = ("clip",)
    weights = "openai/clip-vit-large-patch14"
    licence = "MIT (code); weights: see their card, which speaks of research"

    def __init__(self, frames: int = 8, take: str = "spread", model: str = weights, **options: Any) -> None:
        self.choice, self.scorer = FrameChoice(frames, take), ClipScorer(model, **options)

    def observe(self, clips: Sequence[Clip], evidence: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any] | Exception]:
        return under("clip", cosines(self.scorer, self.choice, clips))
