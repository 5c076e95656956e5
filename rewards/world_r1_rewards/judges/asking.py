"""From clips to questions and back: what the probes of all judges share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from world_r1.types import Clip
from world_r1_rewards.judges.answers import Answer, Judge, Question
from world_r1_rewards.judges.frames import Sampling
from world_r1_rewards.judges.rubrics import RubricFile

TRANSPORTS = ("openai", "transformers")


@dataclass(frozen=True)
class Opinion:
    """An answer and the rubric that it answers; what a score is made of.

    Example: `Opinion(Answer(...), "clip_fidelity@1 sha256:3c1d...")`
    """

    answer: Answer
    rubric: str

    @property
    def versions(self) -> dict[str, str]:
        """What the number depends on, for the records."""
        return {"rubric": self.rubric, "model": self.answer.model}


def judge_by(transport: str, options: Mapping[str, Any]) -> Judge:
    """The judge of a transport, "openai" or "transformers", with its options. ValueError for another name or option."""
    if transport == "openai":
        from world_r1_rewards.judges.openai import OpenAIJudge

        return _make(OpenAIJudge, transport, options)
    if transport == "transformers":
        from world_r1_rewards.judges.local import TransformersJudge

        return _make(TransformersJudge, transport, options)
    raise ValueError(f"judge: transport must be one of {', '.join(TRANSPORTS)}, got {transport!r}")


def _make(cls: Callable[..., Judge], transport: str, options: Mapping[str, Any]) -> Judge:
    try:
        return cls(**options)
    except TypeError as error:
        raise ValueError(f"judge: options of transport {transport}: {error}") from error


def load_rubrics(names: Sequence[str], of: str) -> list[RubricFile]:
    """Rubrics by name or path. ValueError if there is none, one is named twice, or one is of something else than `of`."""
    if isinstance(names, str) or not names:
        raise ValueError(f"judge: rubrics is a list with at least one name, got {names!r}")
    rubrics = [RubricFile.load(name) for name in names]
    if wrong := [rubric.name for rubric in rubrics if rubric.of != of]:
        raise ValueError(f"judge: rubrics {wrong} are not of a {of}; choose others")
    if len({rubric.name for rubric in rubrics}) < len(rubrics):
        raise ValueError(f"judge: two rubrics have the same name: {[rubric.name for rubric in rubrics]}")
    return rubrics


def questions_of(clip: Clip, rubrics: Iterable[RubricFile], sampling: Sampling, multiple: int = 1) -> list[Question]:
    """One question per rubric about the sampled frames of a clip, at sides that are multiples of `multiple`."""
    frames, times = sampling.sample(clip.video, clip.fps)
    shown = sampling.fit(frames, multiple)
    return [Question(shown, times, rubric.system, rubric.text(clip), rubric.choices) for rubric in rubrics]


def opinions(
    judge: Judge, asked: Sequence[Sequence[Question]], rubrics: Sequence[RubricFile]
) -> list[dict[str, Opinion] | Exception]:
    """One {rubric: opinion} per clip for its questions (one per rubric, in order), or the exception of its first question
    without an answer: a clip that was judged by halves would be scored by another measure than its group.
    """
    flat = iter(judge.ask([question for questions in asked for question in questions]))
    results: list[dict[str, Opinion] | Exception] = []
    for questions in asked:
        answers = [next(flat) for _ in questions]
        errors = [answer for answer in answers if isinstance(answer, Exception)]
        found = {
            rubric.name: Opinion(answer, rubric.id)
            for rubric, answer in zip(rubrics, answers, strict=True)
            if isinstance(answer, Answer)
        }
        results.append(errors[0] if errors else found)
    return results
