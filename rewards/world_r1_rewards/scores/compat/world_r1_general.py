"""R_gen as the public World-R1 release computes it (not as its paper defines it): for comparison only.

One frame at random is all that counts of a clip, and the score's spread is a tenth of the 3D rewards'. Train with `general`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from world_r1.reward import Reward
from world_r1.types import Clip, Score


class WorldR1General(Reward):
    """HPSv2.1 of one frame, about 0.2 to 0.35.

    Drawn among the frames that the probe scored, the same for all videos of a prompt; the release draws anew at every call. It
    takes 0.5 for a failure, more than any success; here that is a missing value.
    """

    name, needs = "compat.world_r1_general", ("hpsv2",)
    parts = ("frame",)

    def score(self, clip: Clip, evidence: Mapping[str, Any]) -> Score:
        values = np.asarray(evidence["hpsv2"]["values"], np.float64)
        if not len(values):
            return self.missing("the picture model scored no frame", "failed")
        chosen = int.from_bytes(hashlib.sha256(clip.prompt.text.encode()).digest()[:8], "little") % len(values)
        return self.ok(values[chosen], frame=float(chosen))
