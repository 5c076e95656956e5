"""One rubric's verdict on the clip, by a vision-language model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from world_r1.reward import Reward
from world_r1.types import Clip, Score


class Opinion(Reward):
    """Expected digit / 9, in [0, 1], of the rubric `rubric` (the name inside the file).

    Parts: level, mass (share of the probability on digits), entropy (nats, at most 2.30), and what the judge saw and spent. Missing
    when the judge refused, did not answer in time, or would have said something else than a digit.
    """

    name, needs = "judge.opinion", ("judgement",)
    parts = ("level", "mass", "entropy", "frames", "height", "width", "input_tokens", "cost", "cached", "votes", "slices")

    def __init__(self, rubric: str = "clip_fidelity") -> None:
        self.rubric = rubric

    def score(self, clip: Clip, evidence: Mapping[str, Any]) -> Score:
        found = evidence["judgement"]
        if self.rubric not in found:
            raise ValueError(
                f"no judge was asked about {self.rubric!r}, only about {', '.join(found)}; name it in the probe's rubrics"
            )
        opinion = found[self.rubric]
        return replace(self.ok(opinion.answer.level, **opinion.answer.parts()), versions=opinion.versions)
