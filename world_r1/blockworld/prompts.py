"""blockworld's prompt sets: captions of sampled scenes. A prompt's attributes say which scene it describes, so that it can be rendered.

A scene belongs to the test set or to the training set by a hash of its content (place and objects, without the camera command), so no
wording and no other command brings a test scene into training. Seeds lie above those of pretraining.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from typing import Any

from world_r1.types import Prompt

#: First scene seed of each split; a block of scenes is sampled per seed.
SEEDS = {"train": 20_000_000, "test": 21_000_000, "dynamic": 22_000_000}
BLOCK = 64
#: One scene in so many is held out for testing.
HELD_OUT = 8


def prompts(split: str, count: int) -> list[Prompt]:
    """The first `count` prompts of a split: "train" and "test" (nothing moves but the camera), or "dynamic" (an object moves).

    More of a split only appends to it. Attributes: those of `scenes.attributes`, plus `block` and `dynamic` as `scene_of` needs them.
    Raises ValueError for an unknown split or a count below 1.
    """
    if split not in SEEDS:
        raise ValueError(f"unknown blockworld split {split!r}; known: {', '.join(SEEDS)}")
    if count < 1:
        raise ValueError(f"a prompt set needs at least one prompt, got count={count}")
    found: dict[str, Prompt] = {}
    seed = SEEDS[split]
    while len(found) < count:
        for text, facts in _block(seed, dynamic=split == "dynamic"):
            if len(found) < count and text not in found and _belongs(facts, split):
                kind = "dynamic" if split == "dynamic" else "rigid"
                found[text] = Prompt(f"{split}-{len(found):06d}", text, kind, facts)  # type: ignore[arg-type]
        seed += 1
    return list(found.values())


def scene_of(prompt: Prompt) -> Any:
    """The `scenes.Scenes` (batch of one) that a prompt was made from."""
    from world_r1.blockworld import scenes

    facts = prompt.attributes
    index = facts["index"]
    return scenes.sample(facts["block"], seed=facts["scene_seed"], dynamic=facts["dynamic"])[index : index + 1]


def _block(seed: int, *, dynamic: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    from world_r1.blockworld import scenes

    batch = scenes.sample(BLOCK, seed=seed, dynamic=dynamic)
    for text, facts in zip(scenes.captions(batch, seed), scenes.attributes(batch), strict=True):
        yield text, {**facts, "block": BLOCK, "dynamic": dynamic}


def _belongs(facts: dict[str, Any], split: str) -> bool:
    moving_camera = facts["command"] != "fixed"
    return moving_camera and (zlib.crc32(_content(facts).encode()) % HELD_OUT == 0) == (split == "test")


def _content(facts: dict[str, Any]) -> str:
    """What is in the scene, in one canonical line; the camera command and the movement are not part of it."""
    place = [facts[key] for key in ("indoor", "floor", "wall_colour", "wall_texture", "sky")]
    things = sorted([thing["colour"], thing["texture"], thing["shape"]] for thing in facts["objects"])
    return json.dumps([place, things])
