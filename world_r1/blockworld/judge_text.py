"""Caption tables for training the critic: right and wrong captions of every scene as token ids on the device."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from world_r1 import camera
from world_r1.blockworld import captions, scenes
from world_r1.blockworld.critic import PAD, Vocabulary
from world_r1.blockworld.text_damage import KINDS, SCENE_KINDS, damaged_caption

#: Captions per scene: right ones, wrong scenes, scenes of another clip, wrong cameras.
RIGHT, WRONG, OTHER, CAMERA = 2, 4, 1, 2
#: How likely a batch shows each of them.
SHARES = [0.4 / RIGHT] * RIGHT + [0.34 / WRONG] * WRONG + [0.08 / OTHER] * OTHER + [0.18 / CAMERA] * CAMERA


@dataclass
class TextTable:
    """V captions for each of N scenes."""

    ids: torch.Tensor  #: [N, V, L] int64
    fidelity: torch.Tensor  #: [N, V] target: 1 right, 0.25^k with k things wrong
    camera: torch.Tensor  #: [N, V] target: 1 or 0
    moving: torch.Tensor  #: [N] bool: the camera moves
    dynamic: torch.Tensor  #: [N] bool: an object moves

    def draw(self, index: torch.Tensor, g: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """One caption for each clip: ids [B, L], fidelity [B], camera [B]."""
        shares = torch.tensor(SHARES, device=index.device)
        pick = torch.multinomial(shares, len(index), replacement=True, generator=g)
        return self.ids[index, pick], self.fidelity[index, pick], self.camera[index, pick]


def build_vocabulary(facts: Sequence[dict[str, Any]], seed: int) -> Vocabulary:
    """Words of captions of `facts`, of camera commands in many wordings, and of everything the scene generator can name."""
    rng = random.Random(seed)
    texts = [captions.caption(fact, rng) for fact in facts]
    commands = [command for command in scenes.commands()[0] for _ in range(20)]
    texts += [camera.describe(command, rng) for command in commands] + [command.text for command in commands]
    tables = (scenes.FLOORS, scenes.GROUNDS, scenes.SKIES, scenes.WALL_TEXTURES, scenes.OBJECT_TEXTURES)
    texts += [row[0] for table in tables for row in table]
    texts += [*scenes.COLOURS, *scenes.SHAPES, *scenes.MOVEMENTS, *camera.MOTIONS]
    texts.append("a an the and with in on under of to room wall walls camera slowly quickly first then while , .")
    return Vocabulary.build(texts)


def wrong_caption(fact: dict[str, Any], rng: random.Random, kinds: int) -> tuple[str, int]:
    """A caption with `kinds` things of the scene wrong (fewer where they do not apply) and how many are; 0 if none could be."""
    names = rng.sample(list(SCENE_KINDS), len(SCENE_KINDS))
    for k in range(kinds, 0, -1):
        for first in range(0, len(names) - k + 1, k):
            text = damaged_caption(fact, tuple(names[first : first + k]), rng)
            if text is not None:
                return text, k
    return captions.caption(fact, rng), 0


def build_table(facts: Sequence[dict[str, Any]], vocabulary: Vocabulary, device: torch.device, seed: int) -> TextTable:
    """Right and wrong captions of every scene; seeded."""
    rng = random.Random(seed)
    texts: list[str] = []
    fidelity: list[list[float]] = []
    moves: list[list[float]] = []
    for fact in facts:
        row, right, camera_right = [captions.caption(fact, rng) for _ in range(RIGHT)], [1.0] * RIGHT, [1.0] * RIGHT
        for n in range(WRONG):
            text, k = wrong_caption(fact, rng, 1 if n < WRONG - 1 else rng.randint(2, 3))
            row, right, camera_right = [*row, text], [*right, 0.25**k], [*camera_right, 1.0]
        for _ in range(OTHER):
            other = rng.choice(facts)
            same = all(other[key] == fact[key] for key in ("floor", "objects"))
            row.append(captions.caption({**other, "command": fact["command"]}, rng))
            right, camera_right = [*right, float(same)], [*camera_right, 1.0]
        for _ in range(CAMERA):
            turned = damaged_caption(fact, ("camera",), rng)
            row.append(turned or captions.caption(fact, rng))
            right, camera_right = [*right, 1.0], [*camera_right, float(turned is None)]
        texts += row
        fidelity.append(right)
        moves.append(camera_right)
    ids = vocabulary.encode(texts)
    longest = int((ids != PAD).sum(1).max())
    ids = ids[:, :longest].reshape(len(facts), -1, longest)
    return TextTable(
        ids.to(device),
        torch.tensor(fidelity, device=device),
        torch.tensor(moves, device=device),
        torch.tensor([fact["command"] != "fixed" for fact in facts], device=device),
        torch.tensor([fact["movement"] is not None for fact in facts], device=device),
    )


def wrong_by_kind(facts: Sequence[dict[str, Any]], seed: int) -> dict[str, list[str | None]]:
    """For every kind of text damage one wrong caption a scene, None where it does not apply (for measuring)."""
    rng = random.Random(seed)
    return {kind: [damaged_caption(fact, (kind,), rng) for fact in facts] for kind in KINDS}
