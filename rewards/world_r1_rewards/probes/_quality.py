"""Running a picture model over the frames of clips of any size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from world_r1.types import Clip
from world_r1_rewards.quality.clip import ClipScorer, preference
from world_r1_rewards.quality.pixels import FrameChoice


def cosines(scorer: ClipScorer, choice: FrameChoice, clips: Sequence[Clip]) -> list[dict[str, Any] | Exception]:
    """A preference per clip: cosines of its frames with its prompt. One clip's failure is its own."""
    results: list[dict[str, Any] | Exception] = []
    for clip in clips:
        try:
            ((values, cut),) = scorer.cosines([choice.of(clip.video)], [clip.prompt.text])
            results.append(preference(values, scorer.versions, cut_tokens=float(cut), scale=scorer.scale))
        except (RuntimeError, ValueError) as error:
            results.append(error.with_traceback(None))  # which would keep the tensors
    return results


def under(name: str, found: Sequence[Mapping[str, Any] | Exception]) -> list[Mapping[str, Any] | Exception]:
    """Each result under the name of its evidence."""
    return [item if isinstance(item, Exception) else {name: item} for item in found]
