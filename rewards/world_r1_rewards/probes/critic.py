"""A learned critic's opinion of the whole clip: visual quality, fidelity to the prompt, the camera."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from world_r1.reward import Degenerate, Probe
from world_r1.types import Clip
from world_r1_rewards.probes._critic import DEFAULT, load_critic


class Critic(Probe):
    """Gives "quality_critic": {quality, fidelity, camera}, each in [0, 1], and `objects` where the critic reads the prompt's attributes.

    Options: `model` "module:Class" with `from_pretrained(folder, device)` and `score(videos, prompts)`; `path` its folder
    ("blockworld" is the shipped critic); `device` "auto", "cpu" or "cuda". A critic whose class has `reads_attributes = True` is also
    given `attributes=`, the prompts' dictionaries; `objects` may then be nan, which leaves it out.
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
                scores = self._score([clips[i] for i in members])
            except ValueError as error:  # this size cannot be judged; clips of other sizes go on
                for i in members:
                    results[i] = Degenerate(str(error))
                continue
            for row, i in enumerate(members):
                found = {name: float(values[row]) for name, values in scores.items()}
                if math.isnan(found.get("objects", 0.0)):  # the prompt names none; a nan elsewhere is a failure, and stays one
                    del found["objects"]
                results[i] = {"quality_critic": found}
        return results

    def _score(self, clips: Sequence[Clip]) -> Mapping[str, Any]:
        """{part: [B]} for clips of one size."""
        videos, texts = np.stack([clip.video for clip in clips]), [clip.prompt.text for clip in clips]
        if getattr(self.critic, "reads_attributes", False):
            return self.critic.score(videos, texts, attributes=[clip.prompt.attributes for clip in clips])  # type: ignore[no-any-return]
        return self.critic.score(videos, texts)  # type: ignore[no-any-return]
