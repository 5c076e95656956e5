"""HPSv2.1 (arXiv 2306.09341): a CLIP-H trained on people's preferences between generated pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from world_r1.reward import Probe
from world_r1.types import Clip
from world_r1_rewards.probes._quality import cosines, under
from world_r1_rewards.quality.clip import ClipScorer
from world_r1_rewards.quality.pixels import FrameChoice


class HPSv2(Probe):
    """Gives "hpsv2": cosines of frames with the prompt, the published score.

    Options: `frames` and `take` of `quality.pixels.FrameChoice`; `checkpoint` the published file (open_clip's names), `model` the
    CLIP-H that lends configuration and tokenizer, and the other options of `quality.clip.ClipScorer`. The weights are read once.
    """

    gives = ("hpsv2",)
    weights = "xswu/HPSv2"
    licence = "Apache-2.0 (code); weights: see their card"

    def __init__(
        self,
        frames: int = 8,
        take: str = "spread",
        checkpoint: str = f"{weights}:HPS_v2.1_compressed.pt",
        model: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        fit: str = "pad",
        **options: Any,
    ) -> None:
        self.choice = FrameChoice(frames, take)
        self.scorer = ClipScorer(model, checkpoint=checkpoint, fit=fit, **options)

    def observe(self, clips: Sequence[Clip], evidence: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any] | Exception]:
        return under("hpsv2", cosines(self.scorer, self.choice, clips))
