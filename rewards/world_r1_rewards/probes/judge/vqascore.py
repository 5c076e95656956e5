"""A checklist of yes/no questions, put to a vision-language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from world_r1.reward import Probe
from world_r1.types import Clip
from world_r1_rewards.judges.answers import YES_NO, Answer, Question
from world_r1_rewards.judges.asking import judge_by
from world_r1_rewards.judges.checklist import Checklist
from world_r1_rewards.judges.frames import Sampling


class VQAScore(Probe):
    """Gives "checklist": {items: [(kind, probability of the right answer, Answer)], rubric, model}.

    Options: `transport` "openai" or "transformers", `judge` its options; `checklist` a name or path; `items` at most that many
    objects and counts; `frames`, `pixels`, `min_pixels` of `judges.frames.Sampling`. One question without an answer fails the clip.
    """

    gives = ("checklist",)
    weights = "the judge's"
    licence = "Apache-2.0; the model has its own"

    def __init__(
        self,
        transport: str,
        judge: Mapping[str, Any],
        checklist: str = "checklist",
        items: int = 8,
        frames: int = 8,
        pixels: int = 200_704,
        min_pixels: int = 65_536,
    ) -> None:
        self.checklist, self.items, self.sampling = Checklist.load(checklist), items, Sampling(frames, pixels, min_pixels)
        self.judge = judge_by(transport, judge)

    def observe(self, clips: Sequence[Clip], evidence: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any] | Exception]:
        asked = [self.checklist.items(clip, self.items) for clip in clips]
        questions: list[Question] = []
        for clip, items in zip(clips, asked, strict=True):
            frames, times = self.sampling.sample(clip.video, clip.fps)
            shown = self.sampling.fit(frames, self.judge.multiple)
            questions += [Question(shown, times, self.checklist.system, item.text, YES_NO) for item in items]
        flat = iter(self.judge.ask(questions))
        results: list[Mapping[str, Any] | Exception] = []
        for items in asked:
            answers = [next(flat) for _ in items]
            errors = [answer for answer in answers if isinstance(answer, Exception)]
            marks = [(i.kind, a.probabilities[i.expect], a) for i, a in zip(items, answers, strict=True) if isinstance(a, Answer)]
            found = {"items": marks, "rubric": self.checklist.id, "model": self.judge.model}
            results.append(errors[0] if errors else {"checklist": found})
        return results
