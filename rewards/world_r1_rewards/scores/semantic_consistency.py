"""Does the clip go on showing the same things?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from world_r1.reward import Reward
from world_r1.types import Clip, Score


class SemanticConsistency(Reward):
    """VBench's subject consistency: mean over frames of half the cosine to the frame before and half that to the first; in [0, 1].

    (Huang et al., CVPR 2024, there with DINO ViT-B/16.) It ranks frozen clips first: use it beside `motion` or `trajectory`, never alone;
    part `least` is the worst frame's value.
    """

    name, needs = "semantic_consistency", ("features",)
    parts = ("least", "to_previous", "to_first")

    def score(self, clip: Clip, evidence: Mapping[str, Any]) -> Score:
        vectors = evidence["features"]["vectors"]
        if len(vectors) < 2:
            return self.missing(f"consistency needs 2 frames, got {len(vectors)}")
        previous = np.maximum(0.0, (vectors[1:] * vectors[:-1]).sum(1))
        first = np.maximum(0.0, (vectors[1:] * vectors[:1]).sum(1))
        each = (previous + first) / 2
        return self.ok(
            min(1.0, float(each.mean())), least=float(each.min()), to_previous=float(previous.mean()), to_first=float(first.mean())
        )
