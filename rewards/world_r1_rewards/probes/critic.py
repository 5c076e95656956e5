"""A learned critic's opinion of the whole clip: visual quality, fidelity to the prompt, the camera."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from world_r1.reward import Degenerate, Probe
from world_r1.types import Clip
from world_r1_rewards.probes._critic import DEFAULT, load_critic


class Critic(Probe):
    """Gives "quality_critic": {quality, fidelity, camera}, each in [0, 1].

    Options: `model` "module:Class" with `from_pretrained(folder, device)` and `score(videos, prompts)`; `path` its folder
    ("blockworld" is the shipped critic); `device` "auto", "cpu" or "cuda".
    """

    gives = ("quality_critic",)

    def __init__(self, model: str = DEFAULT, path: str = "blockworld", device: str = "auto") -> None:
        self.critic = load_critic(model, path, device)

    def observe(self, clips: Sequence[Clip], evidence: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any] | Exception]:
        results: list[Mapping[str, Any] | Exception] = [RuntimeError("not judged")] * len(clips)
        sizes: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for i, clip in enumerate(clips):
            sizes[clip.video.shape].append(i)
        for members in sizes.values():
            try:
                scores = self.critic.score(np.stack([clips[i].video for i in members]), [clips[i].prompt.text for i in members])
            except ValueError as error:  # this size cannot be judged; clips of other sizes go on
                for i in members:
                    results[i] = Degenerate(str(error))
                continue
            for row, i in enumerate(members):
                results[i] = {"quality_critic": {name: float(values[row]) for name, values in scores.items()}}
        return results
