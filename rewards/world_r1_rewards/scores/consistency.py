"""S_recon without its preference for small camera moves, unsteady light and flat pictures: the default composite of the benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from world_r1.reward import Reward
from world_r1.types import Clip, Score
from world_r1_rewards.probes._geometry import Geometry
from world_r1_rewards.scores._command import motion_gate, ramp

#: On perfect renders each measurement falls by this much a share of the width that the picture moves (fitted on 18 scenes at five
#: amplitudes): added back, up to a motion of `LONGEST`, so that the score says nothing about how far the camera goes.
CORRELATION_SLOPE, UNISON_SLOPE, COVERAGE_SLOPE, LINK_SLOPE = 1.5, 0.6, 2.5, 3.0
LONGEST = 0.06
#: Patch correlation that counts as no likeness, and as likeness in full (plain patches correlate with nothing, not even themselves).
UNLIKE, ALIKE = 0.3, 0.95
#: Fit of the flow's common motion that counts as no rigidity (half: off by the whole limit everywhere), and as rigidity in full.
LOOSE, RIGID = 0.5, 0.95
#: Light: steady up to the first (standard deviations of the picture), half the credit lost at the second beyond it.
STEADY, UNSTEADY = 0.03, 0.3
#: Detour of unused frames (in units of their way) that is none, and that means another order.
ON_THE_WAY, ASTRAY = 0.4, 1.2
#: Relief (spread of log depth) of a flat picture and of a scene, where it is translation that moves the picture.
FLAT, DEEP = 0.1, 0.2
#: Credit that a flat picture loses. Not all: a wall seen from the front is flat, too.
FLATNESS = 0.7


class Consistency(Reward):
    """How well one rigid, steadily lit, solid world explains the clip, in [0, 1], whatever the size of the camera's move.

    Mean of `appearance` (patch correlation of re-rendered keyframes) and `rigidity` (fit of what neighbouring points of the flow have
    in common, weighted by texture, times coverage), both compensated for the measured motion; times `link` (0 across a cut), `order`
    (frames in order), `light` (brightness and contrast stay), `solid` (what translation moves has depth) and `motion` (0 for a frozen
    clip when the prompt commands motion, 1 when it asks for a fixed camera). Parts are these factors.
    """

    name, needs = "consistency", ("geometry",)
    parts = ("appearance", "rigidity", "link", "order", "light", "solid", "motion")
    rigid_wins = 0.3

    def score(self, clip: Clip, evidence: Mapping[str, Any]) -> Score:
        geometry: Geometry = evidence["geometry"]
        moved = min(geometry.motion, LONGEST)
        factors = {
            "link": ramp(geometry.link + LINK_SLOPE * moved, 0.1, 0.5),
            "order": min(ramp(geometry.straightness, 0.5, 0.85), 1 - ramp(geometry.detour, ON_THE_WAY, ASTRAY)),
            "light": 1 / (1 + (max(0.0, geometry.exposure - STEADY) / UNSTEADY) ** 2),
            "solid": 1 - FLATNESS * ramp(geometry.translation_share, 0.5, 0.9) * (1 - ramp(geometry.relief, FLAT, DEEP)),
            "motion": motion_gate(clip, geometry),
        }
        appearance = ramp(geometry.correlation + CORRELATION_SLOPE * moved, UNLIKE, ALIKE)
        covered = min(1.0, (geometry.coverage + COVERAGE_SLOPE * moved) / 0.95)
        rigidity = ramp(geometry.unison + UNISON_SLOPE * moved, LOOSE, RIGID) * covered
        value = 0.5 * (appearance + rigidity)
        for factor in factors.values():
            value *= factor
        return self.ok(value, appearance=appearance, rigidity=rigidity, **factors)
