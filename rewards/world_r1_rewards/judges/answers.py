"""What a judge is asked and what it answers: one token out of a fixed set, read as a distribution."""

from __future__ import annotations

import math
import statistics
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

#: The answers of a scale, worst to best, and of a yes/no probe.
DIGITS = tuple("0123456789")
YES_NO = ("no", "yes")
#: Below this share of the probability on allowed answers, the judge was not answering the question.
MIN_MASS = 0.5


class JudgeError(RuntimeError):
    """The judge gave no answer that can be used. Becomes a failed score with this message as its reason."""


@dataclass(frozen=True)
class Question:
    """One question about one set of pictures.

    Example: `Question(frames=<8x96x160x3 uint8>, times=(0.0, 0.29, ...), system="...", text="...", choices=DIGITS)`
    """

    #: [n, H, W, 3] uint8, sRGB: already sampled and within the pixel budget.
    frames: np.ndarray
    #: Seconds of the frames in the clip; () for a picture that is not from a clip.
    times: tuple[float, ...]
    system: str
    text: str
    #: Allowed answers, worst to best, lower case.
    choices: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """A distribution over the allowed answers.

    Example: `Answer({"0": 0.0, ..., "9": 0.7}, level=0.93, mass=0.98, entropy=0.61, details={"frames": 8.0}, model="...")`
    """

    #: By allowed answer; they sum to 1.
    probabilities: Mapping[str, float]
    #: Expected position on the scale from the worst (0) to the best answer (1).
    level: float
    #: Share of the model's probability that lay on allowed answers before normalising; the share of valid votes for votes.
    mass: float
    #: Of `probabilities`, in nats.
    entropy: float
    #: What was seen and spent: frames, height, width, tokens, cost, ...
    details: Mapping[str, float] = field(default_factory=dict)
    model: str = ""

    def parts(self) -> dict[str, float]:
        """Everything that is logged beside the value."""
        return {"level": self.level, "mass": self.mass, "entropy": self.entropy, **self.details}


class Judge(ABC):
    """A vision-language model behind some transport."""

    #: Model id, for the records.
    model: str
    #: Sides of the frames that it is shown are multiples of this many pixels.
    multiple: int = 1

    @abstractmethod
    def ask(self, questions: Sequence[Question]) -> list[Answer | Exception]:
        """One answer per question, or the exception that question caused. Never a made-up number."""


def choice_of(token: str, choices: Sequence[str]) -> str | None:
    """The allowed answer that a token spells (white space, its stand-ins in vocabularies and case do not matter), or None."""
    bare = token.replace("Ġ", " ").replace("▁", " ").replace("Ċ", " ").strip().casefold()
    return bare if bare in choices else None


def read(
    tokens: Iterable[tuple[str, float]], choices: Sequence[str], *, min_mass: float = MIN_MASS, said: str = ""
) -> tuple[dict[str, float], float, float, float]:
    """(probabilities, level, mass, entropy) from (token, log-prob) pairs of one position, in any order and number.

    Spellings of one answer add up ("7" and " 7"). Raises `JudgeError` for log-probs that are none (positive, NaN, more than 1 in
    sum) and when less than `min_mass` lies on the choices: an average over what the model did not want to say is noise.
    """
    found: dict[str, float] = dict.fromkeys(choices, 0.0)
    total, best = 0.0, ("", -math.inf)
    for token, log_prob in tokens:
        if math.isnan(log_prob) or log_prob > 1e-4:
            raise JudgeError(f"the judge's log-prob of {token!r} is {log_prob}, which no probability has")
        total += math.exp(log_prob)
        best = max(best, (token, log_prob), key=lambda pair: pair[1])
        choice = choice_of(token, choices)
        if choice is not None:
            found[choice] += math.exp(log_prob)
    if total > 1.01:
        raise JudgeError(f"the judge's probabilities add up to {total:.3f}")
    mass = sum(found.values())
    if mass < min_mass or mass <= 0:
        raise JudgeError(
            f"only {mass:.2f} of the probability lies on {choices[0]}..{choices[-1]}; the judge would say {said or best[0]!r}"
        )
    probabilities = {choice: value / mass for choice, value in found.items()}
    return probabilities, _level(probabilities, choices), min(mass, 1.0), _entropy(probabilities)


def vote(votes: Sequence[str | None], choices: Sequence[str]) -> tuple[dict[str, float], float, float, float]:
    """The same four numbers from sampled answers, for endpoints that give no log-probs: the median of a scale, the share of a yes.

    None is an invalid vote. Raises `JudgeError` unless more than half of the votes are valid.
    """
    valid = [choice for choice in votes if choice is not None]
    if 2 * len(valid) <= len(votes):
        raise JudgeError(f"only {len(valid)} of {len(votes)} sampled answers were one of {choices[0]}..{choices[-1]}")
    counts = Counter(valid)
    probabilities = {choice: counts[choice] / len(valid) for choice in choices}
    level = _level(probabilities, choices)
    if len(choices) > 2:
        level = statistics.median(choices.index(choice) for choice in valid) / (len(choices) - 1)
    return probabilities, level, len(valid) / len(votes), _entropy(probabilities)


def _level(probabilities: Mapping[str, float], choices: Sequence[str]) -> float:
    return sum(i * probabilities[choice] for i, choice in enumerate(choices)) / (len(choices) - 1)


def _entropy(probabilities: Mapping[str, float]) -> float:
    return -sum(p * math.log(p) for p in probabilities.values() if p > 0) + 0.0
