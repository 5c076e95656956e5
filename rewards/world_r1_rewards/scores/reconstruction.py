"""S_recon: does one rigid world explain the clip?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from world_r1.reward import Reward
from world_r1.types import Clip, Score
from world_r1_rewards.probes._geometry import Geometry
from world_r1_rewards.scores._command import STILL, commanded_motion, motion_gate, ramp

#: Measures of rigidity by the name of the option, as fields of `Geometry`.
RIGIDITY = {"graded": "rigidity", "inliers": "inliers", "unison": "unison"}
#: Disagreement of patches that is noise of the measurement: what relative appearance neither rewards nor punishes.
NOISE = 0.02


class Reconstruction(Reward):
    """Agreement of the clip with its own reconstruction, in [0, 1].

    Mean, weighted by `share`, of `appearance` (patch correlation of keyframes with their re-rendering from other frames, at the
    keyframes' own time, intrinsics and aspect; blind to contrast and lighting) and `rigidity` (how closely flow follows the
    reconstruction, graded over a few pixels, times coverage), times `link` (worst neighbouring frames; 0 across a cut), `order` (frames
    in order) and `motion` (0 for a frozen clip when the prompt commands motion; 1 when it asks for a fixed camera).

    Options: `rigidity` "graded" as above; "inliers", the share of flow within a third of a pixel and 3 % of the reconstruction's; or
    "unison", how closely flow averaged over neighbours follows it; the last two say more of other measures of consistency within a
    group of similar videos. `relative` in 0..1 mixes into appearance the share of the disagreement between frames that the reconstruction
    explains, 1 - (1 - correlation) / (1 - correlation without re-rendering): smooth pictures that hardly change agree under any camera
    and gain nothing by that. Alone (1) it pays for larger moves and louder textures, so a third or so is enough; a clip whose prompt
    asks for a fixed camera is held against the correlation alone. `link` and `order` [low, high], the values of the worst link and of
    the flow's straightness between which those factors rise from 0 to 1: the defaults tell a cut and shuffled frames from a wobble;
    for training, where every video of a group hangs together, [0, 0.15] and [0.3, 0.6] leave out what is mostly noise of the
    measurement. `share` of appearance in the mean. `photometric` in 0..1 gives that share of the mean to the PSNR of the re-rendering, from
    `decibels` [low, high]: patch correlation rises with texture, whose errors PSNR counts in full, so that with both louder
    surfaces pay less. It is not blind to contrast: with much of it, fading pays.
    """

    name, needs = "reconstruction", ("geometry",)
    parts = ("appearance", "rigidity", "photometric", "link", "order", "motion")
    rigid_wins = 0.15

    def __init__(
        self,
        link: Sequence[float] = (0.1, 0.5),
        rigidity: str = "graded",
        share: float = 0.5,
        order: Sequence[float] = (0.5, 0.85),
        relative: float = 0.0,
        photometric: float = 0.0,
        decibels: Sequence[float] = (15.0, 35.0),
    ) -> None:
        if rigidity not in RIGIDITY:
            raise ValueError(f"reconstruction: rigidity is {', '.join(RIGIDITY)}, got {rigidity!r}")
        for name, ends in (("link", link), ("order", order), ("decibels", decibels)):
            if len(ends) != 2 or not 0 <= ends[0] < ends[1]:
                raise ValueError(f"reconstruction: {name} is [low, high] with 0 <= low < high, got {list(ends)}")
        for name, part in (("share of appearance", share), ("relative", relative), ("photometric", photometric)):
            if not 0 <= part <= 1:
                raise ValueError(f"reconstruction: {name} must lie in [0, 1], got {part}")
        self.link, self.order, self.decibels = tuple(link), tuple(order), tuple(decibels)
        self.share, self.relative, self.photometric = share, relative, photometric
        self.measure = RIGIDITY[rigidity]

    def score(self, clip: Clip, evidence: Mapping[str, Any]) -> Score:
        geometry: Geometry = evidence["geometry"]
        appearance = ramp(self._appearance(clip, geometry), 0.0, 1.0)
        rigidity = float(getattr(geometry, self.measure)) * min(1.0, geometry.coverage / 0.9)
        link = ramp(geometry.link, *self.link)
        order = ramp(geometry.straightness, *self.order)
        motion = motion_gate(clip, geometry)
        photometric = ramp(geometry.photometric, *self.decibels)
        explained = self.share * appearance + (1 - self.share) * rigidity
        value = ((1 - self.photometric) * explained + self.photometric * photometric) * link * order * motion
        return self.ok(
            value, appearance=appearance, rigidity=rigidity, photometric=photometric, link=link, order=order, motion=motion
        )

    def _appearance(self, clip: Clip, geometry: Geometry) -> float:
        if not self.relative or (clip.trajectory is not None and commanded_motion(clip.trajectory, geometry) < STILL):
            return geometry.correlation
        explained = 1.0 - (1.0 - geometry.correlation + NOISE) / (1.0 - geometry.still + NOISE)
        explained = max(0.0, explained)  # a reconstruction that does worse than no motion explains nothing
        return (1.0 - self.relative) * geometry.correlation + self.relative * explained
