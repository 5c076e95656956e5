"""Did the picture move as much as the command asks?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from world_r1.reward import Reward
from world_r1.types import Clip, Score
from world_r1_rewards.probes._geometry import Geometry
from world_r1_rewards.scores._command import STILL, commanded_motion

#: Displacement over the width at which a camera that should stand still scores 1/e.
DRIFT = 0.01


class Motion(Reward):
    """Measured over commanded displacement, in [0, 1]; applies to clips with a command only.

    1 from 60 % of the commanded motion on (depth is unknown to that extent), falling to 0 for a frozen clip; above 250 % it falls
    again. When the command asks for stillness: exp(-displacement / 1 % of the width).
    """

    name, needs = "motion", ("geometry",)
    parts = ("measured", "commanded")

    def applies(self, clip: Clip) -> bool:
        return clip.trajectory is not None

    def score(self, clip: Clip, evidence: Mapping[str, Any]) -> Score:
        geometry: Geometry = evidence["geometry"]
        assert clip.trajectory is not None
        commanded = commanded_motion(clip.trajectory, geometry)
        if commanded < STILL:
            value = math.exp(-geometry.motion / DRIFT)
        else:
            share = geometry.motion / commanded
            value = min(1.0, share / 0.6) if share < 2.5 else 2.5 / share
        return self.ok(value, measured=geometry.motion, commanded=commanded)
