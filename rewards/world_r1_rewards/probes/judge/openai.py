"""What a vision-language model behind an HTTP endpoint says about the whole clip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from world_r1.reward import Probe
from world_r1.types import Clip
from world_r1_rewards.judges.asking import judge_by, load_rubrics, opinions, questions_of
from world_r1_rewards.judges.frames import Sampling


class OpenAI(Probe):
    """Gives "judgement": {rubric: Opinion} from any OpenAI-compatible endpoint (vLLM, SGLang, hosted).

    Options: `base_url`, `model` and all others of `judges.openai.OpenAIJudge`; `rubrics` names or paths; `frames`, `pixels`,
    `min_pixels` of `judges.frames.Sampling`. One request a clip and rubric, one token each.
    """

    gives = ("judgement",)
    weights = "the endpoint's"
    licence = "Apache-2.0; the model has its own"

    def __init__(
        self,
        base_url: str,
        model: str,
        rubrics: Sequence[str] = ("clip_fidelity",),
        frames: int = 8,
        pixels: int = 200_704,
        min_pixels: int = 65_536,
        **options: Any,
    ) -> None:
        self.rubrics, self.sampling = load_rubrics(rubrics, "clip"), Sampling(frames, pixels, min_pixels)
        self.judge = judge_by("openai", {"base_url": base_url, "model": model, **options})

    def observe(self, clips: Sequence[Clip], evidence: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any] | Exception]:
        asked = [questions_of(clip, self.rubrics, self.sampling, self.judge.multiple) for clip in clips]
        found = opinions(self.judge, asked, self.rubrics)
        return [item if isinstance(item, Exception) else {"judgement": item} for item in found]
