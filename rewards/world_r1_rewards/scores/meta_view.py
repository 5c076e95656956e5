"""S_meta: does the reconstructed scene hold up from somewhere the camera never was?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from world_r1.reward import Reward
from world_r1.types import Clip, Score
from world_r1_rewards.scores._command import motion_gate

#: Commands whose cameras spread less than this (share of the depth) show no parallax, so depth cannot be asked for.
PARALLAX = 0.03


class MetaView(Reward):
    """The critic's opinion of a view off the camera's path, rendered from the reconstruction; in [0, 1].

    Geometric mean of the picture's `quality` and its `fidelity` to the prompt, times the motion gate (the flat picture that a frozen
    clip gives would look good from anywhere). Applies to clips whose command moves the camera, not only turns it. Missing when no new
    view shows enough of the scene.
    """

    name, needs = "meta_view", ("geometry", "novel_view_critic")
    parts = ("motion", "quality", "fidelity")

    def applies(self, clip: Clip) -> bool:
        if clip.trajectory is None:
            return False
        return bool(np.ptp(clip.trajectory.c2w[:, :3, 3], axis=0).max() > PARALLAX * clip.trajectory.depth)

    def score(self, clip: Clip, evidence: Mapping[str, Any]) -> Score:
        parts, motion = evidence["novel_view_critic"], motion_gate(clip, evidence["geometry"])
        score = self.ok(motion * (parts["quality"] * parts["fidelity"]) ** 0.5, motion=motion, **parts)
        # There if the critic is a vision-language model, whose rubrics belong to the score.
        judged = evidence.get("view_judgement", {})
        versions = {name: opinion.rubric for name, opinion in judged.items()}
        if judged:
            versions["model"] = judged["quality"].answer.model
        return replace(score, versions=versions)
