"""What a vision-language model in this process says about the whole clip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from world_r1.reward import Probe
from world_r1.types import Clip
from world_r1_rewards.judges.asking import judge_by, load_rubrics, opinions, questions_of
from world_r1_rewards.judges.frames import Sampling


class Transformers(Probe):
    """Gives "judgement": {rubric: Opinion} from a model that transformers can load (Qwen3-VL, Qwen2.5-VL, SmolVLM2, InternVL).

    Options: `model` (hub id or folder) and all others of `judges.local.TransformersJudge`; `rubrics` names or paths; `frames`,
    `pixels`, `min_pixels` of `judges.frames.Sampling`. One forward a batch of clips and rubrics, no generation.
    """

    gives = ("judgement",)
    packages, extra = ("torchvision",), "judge"
    weights = "Qwen/Qwen3-VL-4B-Instruct"
    licence = "Apache-2.0 (code and the Qwen3-VL weights); other models have their own"

    def __init__(
        self,
        model: str = weights,
        rubrics: Sequence[str] = ("clip_fidelity",),
        frames: int = 8,
        pixels: int = 200_704,
        min_pixels: int = 65_536,
        **options: Any,
    ) -> None:
        self.rubrics, self.sampling = load_rubrics(rubrics, "clip"), Sampling(frames, pixels, min_pixels)
        self.judge = judge_by("transformers", {"model": model, **options})

    def observe(self, clips: Sequence[Clip], evidence: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any] | Exception]:
        asked = [questions_of(clip, self.rubrics, self.sampling, self.judge.multiple) for clip in clips]
        found = opinions(self.judge, asked, self.rubrics)
        return [item if isinstance(item, Exception) else {"judgement": item} for item in found]
