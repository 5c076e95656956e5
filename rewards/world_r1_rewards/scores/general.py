"""R_gen of World-R1: how good the first K frames look to a picture model, always the same frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from world_r1.reward import Reward
from world_r1.types import Clip, Score

#: Typical spread of each model's values about their middle, so that `general` has one unit whatever scores it: (middle, spread).
UNITS = {"hpsv3": (6.0, 4.0), "hpsv2": (0.27, 0.04), "pickscore": (0.21, 0.02), "clip": (0.28, 0.05), "aesthetic": (5.5, 1.0)}


class General(Reward):
    """Mean over the scored frames of a picture model, on a scale where most clips lie in [-1, 1] (not bounded).

    World-R1's equation 10 with K frames: configure the probe with `take: first` and `frames: K`, so that every video of a group is judged
    on the same ones (the public release draws one at random, and takes 0.5 for a failure). Options: `of` the evidence, one of hpsv3
    (default), hpsv2, pickscore, clip, aesthetic; `unit` [middle, spread] to replace the table's.
    """

    name, needs = "general", ("hpsv3",)
    parts = ("mean", "least", "frames")

    def __init__(self, of: str = "hpsv3", unit: Sequence[float] | None = None) -> None:
        if of not in UNITS and unit is None:
            raise ValueError(f"general: of must be one of {', '.join(UNITS)} (or give `unit` for another one), got {of!r}")
        self.middle, self.spread = UNITS[of] if unit is None else (float(unit[0]), float(unit[1]))
        if self.spread <= 0:
            raise ValueError(f"general: the spread must be positive, got {self.spread}")
        self.needs = (of,)  # type: ignore[misc]  # what it needs is an option

    def score(self, clip: Clip, evidence: Mapping[str, Any]) -> Score:
        values = np.asarray(evidence[self.needs[0]]["values"], np.float64)
        if not len(values):
            return self.missing("the picture model scored no frame", "failed")
        value = (values.mean() - self.middle) / self.spread
        return self.ok(value, mean=float(values.mean()), least=float(values.min()), frames=float(len(values)))
