"""What a vision-language model says about the new view that `novel_view` rendered: S_meta with a general judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from world_r1.reward import Probe
from world_r1.types import Clip
from world_r1_rewards.judges.answers import Question
from world_r1_rewards.judges.asking import judge_by, load_rubrics, opinions
from world_r1_rewards.judges.frames import Sampling


class View(Probe):
    """Gives "novel_view_critic": {quality, fidelity} in [0, 1] for the reward `meta_view`, and "view_judgement" with
    the Opinion behind each.

    Options: `transport` "openai" or "transformers", `judge` its options; `quality`, `fidelity` rubrics of a view, by name or path;
    `pixels`, `min_pixels` of `judges.frames.Sampling`. The rubrics hold the requested motion: no kind of motion is bad by itself.
    """

    gives = ("novel_view_critic", "view_judgement")
    needs = ("novel_view",)
    weights = "the judge's"
    licence = "Apache-2.0; the model has its own"

    def __init__(
        self,
        transport: str,
        judge: Mapping[str, Any],
        quality: str = "view_quality",
        fidelity: str = "view_fidelity",
        pixels: int = 262_144,
        min_pixels: int = 65_536,
    ) -> None:
        self.rubrics, self.sampling = load_rubrics((quality, fidelity), "view"), Sampling(1, pixels, min_pixels)
        self.judge = judge_by(transport, judge)

    def observe(self, clips: Sequence[Clip], evidence: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any] | Exception]:
        asked = []
        for clip, found in zip(clips, evidence, strict=True):
            shown = self.sampling.fit(np.asarray(found["novel_view"]["image"])[None], self.judge.multiple)
            asked.append([Question(shown, (), rubric.system, rubric.text(clip), rubric.choices) for rubric in self.rubrics])
        results: list[Mapping[str, Any] | Exception] = []
        for item in opinions(self.judge, asked, self.rubrics):
            if isinstance(item, Exception):
                results.append(item)
            else:
                judged = {name: item[rubric.name] for name, rubric in zip(("quality", "fidelity"), self.rubrics, strict=True)}
                critic = {name: opinion.answer.level for name, opinion in judged.items()}
                results.append({"novel_view_critic": critic, "view_judgement": judged})
        return results
