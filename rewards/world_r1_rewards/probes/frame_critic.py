"""A learned critic's opinion of the new view that `novel_view` rendered."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from world_r1.reward import Probe
from world_r1.types import Clip
from world_r1_rewards.probes._critic import DEFAULT, load_critic


class FrameCritic(Probe):
    """Gives "novel_view_critic": {quality, fidelity} of the new view, each in [0, 1].

    Options as those of `critic`; the class needs `score_frames(images, prompts)`.
    """

    gives = ("novel_view_critic",)
    needs = ("novel_view",)

    def __init__(self, model: str = DEFAULT, path: str = "blockworld", device: str = "auto") -> None:
        self.critic = load_critic(model, path, device)

    def observe(self, clips: Sequence[Clip], evidence: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any] | Exception]:
        results: list[Mapping[str, Any] | Exception] = [RuntimeError("not judged")] * len(clips)
        sizes: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for i, found in enumerate(evidence):
            sizes[found["novel_view"]["image"].shape].append(i)
        for members in sizes.values():
            images = np.stack([evidence[i]["novel_view"]["image"] for i in members])
            scores = self.critic.score_frames(images, [clips[i].prompt.text for i in members])
            for row, i in enumerate(members):
                results[i] = {"novel_view_critic": {name: float(values[row]) for name, values in scores.items()}}
        return results
