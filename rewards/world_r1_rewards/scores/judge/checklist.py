"""How much of a checklist about the prompt a vision-language model finds in the clip."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from statistics import fmean
from typing import Any

from world_r1.reward import Reward
from world_r1.types import Clip, Score


class Checklist(Reward):
    """Weighted mean over kinds (content, object, count, direction, static) of the mean probability of the right answers, in [0, 1].

    Option `weights` by kind, default 1 each; a kind that the prompt has no question of is left out. Parts: one per kind, the least
    mass and the mean entropy of the answers, and the number of items.
    """

    name, needs = "judge.checklist", ("checklist",)
    parts = ("content", "object", "count", "direction", "static", "mass", "entropy", "items", "cost")

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        self.kinds = dict(weights or {})
        if any(weight < 0 for weight in self.kinds.values()):
            raise ValueError(f"judge.checklist: weights are not negative, got {self.kinds}")

    def score(self, clip: Clip, evidence: Mapping[str, Any]) -> Score:
        found = evidence["checklist"]
        kinds: dict[str, list[float]] = defaultdict(list)
        for kind, mark, _ in found["items"]:
            kinds[kind].append(mark)
        marks = {kind: fmean(values) for kind, values in kinds.items()}
        weights = {kind: self.kinds.get(kind, 1.0) for kind in marks}
        if sum(weights.values()) <= 0:
            return self.missing("no item of the checklist applies and has weight", "degenerate")
        value = sum(weights[kind] * mark for kind, mark in marks.items()) / sum(weights.values())
        answers = [answer for _, _, answer in found["items"]]
        marks["mass"], marks["entropy"] = min(a.mass for a in answers), fmean(a.entropy for a in answers)
        marks["items"], marks["cost"] = len(answers), sum(a.details.get("cost", 0.0) for a in answers)
        return replace(self.ok(value, **marks), versions={"rubric": found["rubric"], "model": found["model"]})
