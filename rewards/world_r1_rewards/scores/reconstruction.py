"""S_recon: does one rigid world explain the clip?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from world_r1.reward import Reward
from world_r1.types import Clip, Score
from world_r1_rewards.probes._geometry import Geometry
from world_r1_rewards.scores._command import motion_gate, ramp


class Reconstruction(Reward):
    """Agreement of the clip with its own reconstruction, in [0, 1].

    Mean, weighted by `share`, of `appearance` (patch correlation of keyframes with their re-rendering from other frames, at the
    keyframes' own time, intrinsics and aspect; blind to contrast and lighting) and `rigidity` (how closely flow follows the
    reconstruction, graded over a few pixels, times coverage), times `link` (worst neighbouring frames; 0 across a cut), `order` (frames
    in order) and `motion` (0 for a frozen clip when the prompt commands motion; 1 when it asks for a fixed camera).

    Options: `rigidity` "graded" as above, or "inliers", the share of flow within a third of a pixel and 3 % of the reconstruction's, which
    within a group of similar videos says more of other measures of consistency. `link` [low, high], the values of the worst link
    between which that factor rises from 0 to 1: the default tells a cut from a wobble; for training, where every video of a group hangs
    together, [0, 0.15] leaves out what is mostly noise of the measurement. `share` of appearance in the mean.
    """

    name, needs = "reconstruction", ("geometry",)
    parts = ("appearance", "rigidity", "link", "order", "motion")
    rigid_wins = 0.15

    def __init__(self, link: Sequence[float] = (0.1, 0.5), rigidity: str = "graded", share: float = 0.5) -> None:
        if rigidity not in ("graded", "inliers"):
            raise ValueError(f"reconstruction: rigidity is graded or inliers, got {rigidity!r}")
        if len(link) != 2 or not 0 <= link[0] < link[1]:
            raise ValueError(f"reconstruction: link is [low, high] with 0 <= low < high, got {list(link)}")
        if not 0 <= share <= 1:
            raise ValueError(f"reconstruction: share of appearance must lie in [0, 1], got {share}")
        self.low, self.high = link
        self.share = share
        self.graded = rigidity == "graded"

    def score(self, clip: Clip, evidence: Mapping[str, Any]) -> Score:
        geometry: Geometry = evidence["geometry"]
        appearance = ramp(geometry.correlation, 0.0, 1.0)
        rigidity = (geometry.rigidity if self.graded else geometry.inliers) * min(1.0, geometry.coverage / 0.9)
        link = ramp(geometry.link, self.low, self.high)
        order = ramp(geometry.straightness, 0.5, 0.85)
        motion = motion_gate(clip, geometry)
        value = (self.share * appearance + (1 - self.share) * rigidity) * link * order * motion
        return self.ok(value, appearance=appearance, rigidity=rigidity, link=link, order=order, motion=motion)
