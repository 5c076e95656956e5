"""The question that the public World-R1 release asks about its rendered view: for comparison only, see `scores.compat`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from world_r1.reward import Probe
from world_r1.types import Clip
from world_r1_rewards.judges.answers import Question
from world_r1_rewards.judges.asking import judge_by, load_rubrics, opinions
from world_r1_rewards.judges.frames import Sampling


class WorldR1Judge(Probe):
    """Gives "compat_judgement": the Opinion of a vision-language model on the release's view, under a rubric that likes orbits and
    dislikes zooms, whatever was asked for.

    Options: `transport` and `judge` as of `judge.view` (default: `weights`, the release's model, in this process); `rubric` of a view.
    """

    gives = ("compat_judgement",)
    needs = ("compat_render",)
    weights = "Qwen/Qwen3-VL-4B-Instruct"
    licence = "Apache-2.0 (code and the Qwen3-VL weights); other models have their own"

    def __init__(
        self, transport: str = "transformers", judge: Mapping[str, Any] | None = None, rubric: str = "compat_world_r1_view"
    ) -> None:
        self.rubrics, self.sampling = load_rubrics([rubric], "view"), Sampling(1, 512 * 512, 65_536)
        default = {"model": self.weights} if transport == "transformers" else {}
        self.judge = judge_by(transport, {**default, **(judge or {})})

    def observe(self, clips: Sequence[Clip], evidence: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any] | Exception]:
        (rubric,) = self.rubrics
        asked = []
        for clip, found in zip(clips, evidence, strict=True):
            shown = self.sampling.fit(found["compat_render"]["view"][None], self.judge.multiple)
            asked.append([Question(shown, (), rubric.system, rubric.text(clip), rubric.choices)])
        answers = opinions(self.judge, asked, self.rubrics)
        return [item if isinstance(item, Exception) else {"compat_judgement": item[rubric.name]} for item in answers]
