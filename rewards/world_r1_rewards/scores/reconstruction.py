"""S_recon: does one rigid world explain the clip?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from world_r1.reward import Reward
from world_r1.types import Clip, Score
from world_r1_rewards.probes._geometry import Geometry
from world_r1_rewards.scores._command import motion_gate, ramp


class Reconstruction(Reward):
    """Agreement of the clip with its own reconstruction, in [0, 1].

    Mean of `appearance` (patch correlation of keyframes with their re-rendering from other frames, at the keyframes' own time,
    intrinsics and aspect; blind to contrast and lighting) and `rigidity` (how closely flow follows the reconstruction, graded over a few
    pixels, times coverage), times `link` (worst neighbouring frames; 0 across a cut), `order` (frames in order) and `motion` (0 for a
    frozen clip when the prompt commands motion; 1 when it asks for a fixed camera).
    """

    name, needs = "reconstruction", ("geometry",)

    def score(self, clip: Clip, evidence: Mapping[str, Any]) -> Score:
        geometry: Geometry = evidence["geometry"]
        appearance = ramp(geometry.correlation, 0.0, 1.0)
        rigidity = geometry.rigidity * min(1.0, geometry.coverage / 0.9)
        link = ramp(geometry.link, 0.1, 0.5)
        order = ramp(geometry.straightness, 0.5, 0.85)
        motion = motion_gate(clip, geometry)
        value = 0.5 * (appearance + rigidity) * link * order * motion
        return self.ok(value, appearance=appearance, rigidity=rigidity, link=link, order=order, motion=motion)
