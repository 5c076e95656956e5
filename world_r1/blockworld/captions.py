"""Scene attributes -> prompt text and labels. Objects are named from left to right as first seen."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import torch

from world_r1 import camera
from world_r1.blockworld import raycast, scenes
from world_r1.blockworld.scenes import COLOURS, FLOORS, GROUNDS, MOVEMENTS, OBJECT_TEXTURES, SHAPES, SKIES, WALL_TEXTURES, Scenes

COLOUR_NAMES = tuple(COLOURS)


def attributes(batch: Scenes, *, dominant: bool = False) -> list[dict[str, Any]]:
    """One dict of plain Python facts a scene: what a caption may say and what an evaluator must find.

    With `dominant`, a small render (24x40, three frames) adds `dominant`: the index of the object that covers most pixels.
    """
    columns = (
        "command",
        "indoor",
        "floor",
        "wall_colour",
        "wall_texture",
        "sky",
        "count",
        "shape",
        "colour",
        "texture",
        "left_right",
        "dynamic",
        "movement",
    )
    data = {name: getattr(batch, name).tolist() for name in columns}
    facts = [_facts(batch.seed, index, {name: column[index] for name, column in data.items()}) for index in range(len(batch))]
    if dominant:
        for fact, k in zip(facts, _dominant(batch).tolist(), strict=True):
            fact["dominant"] = k
    return facts


def _facts(seed: int, index: int, row: dict[str, Any]) -> dict[str, Any]:
    ground = FLOORS if row["indoor"] else GROUNDS
    objects = [
        {
            "colour": COLOUR_NAMES[row["colour"][k]],
            "texture": OBJECT_TEXTURES[row["texture"][k]][0],
            "shape": SHAPES[row["shape"][k]],
        }
        for k in range(row["count"])
    ]
    return {
        "scene_seed": seed,
        "index": index,
        "command": scenes.commands()[0][row["command"]].text,
        "indoor": bool(row["indoor"]),
        "floor": ground[row["floor"]][0],
        "wall_colour": COLOUR_NAMES[row["wall_colour"]] if row["indoor"] else None,
        "wall_texture": WALL_TEXTURES[row["wall_texture"]][0] if row["indoor"] else None,
        "sky": None if row["indoor"] else SKIES[row["sky"]][0],
        "objects": objects,
        "order": sorted(range(row["count"]), key=lambda k: row["left_right"][k]),
        "movement": MOVEMENTS[row["movement"]] if row["dynamic"] else None,
    }


def _dominant(batch: Scenes) -> torch.Tensor:
    """[B] index of the object with the largest visible area over first, middle and last frame."""
    frames = [0, scenes.FRAMES // 2, scenes.FRAMES - 1]
    few = batch.tensors._replace(c2w=batch.tensors.c2w[:, frames], centre=batch.tensors.centre[:, frames])
    surface = raycast.cast(few, 24, 40, scenes.PRESET.fov_x, 1)[2]
    area = torch.stack([(surface == raycast.OBJECTS + k).sum((1, 2, 3)) for k in range(scenes.MAX_OBJECTS)], 1)
    return area.argmax(1)


def caption(fact: dict[str, Any], rng: random.Random) -> str:
    """Prompt text of one scene; wording, order and omissions vary with `rng`."""
    words = camera.describe(_command(fact["command"]), rng).rstrip(".")
    scene = body(fact, rng)
    first = words[0].upper() + words[1:]
    return f"{first}. {scene}." if rng.random() < 0.8 else f"{scene}. {first}."


@cache
def _command(text: str) -> camera.Command:
    command = camera.parse(text)
    if command is None:
        raise ValueError(f"{text!r} is no camera command")
    return command


def body(fact: dict[str, Any], rng: random.Random) -> str:
    """The scene sentence, without full stop and without camera words."""
    names = [_article(_name(fact["objects"][k])) for k in fact["order"]]
    objects = names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
    text = f"{objects} {_place(fact, rng)}"
    if fact["movement"]:
        mover = fact["objects"][0]
        text += f", the {mover['colour']} {mover['shape']} {fact['movement']}"
    return text[0].upper() + text[1:]


def _place(fact: dict[str, Any], rng: random.Random) -> str:
    if not fact["indoor"]:
        return f"on {fact['floor']}" + (f" under {fact['sky']}" if rng.random() < 0.9 else "")
    wall = " ".join(word for word in (fact["wall_colour"], fact["wall_texture"]) if word)
    draw = rng.random()
    if draw < 0.15:
        return f"on a {fact['floor']}"
    return f"on a {fact['floor']} in a room with {wall} walls" if draw < 0.65 else f"on a {fact['floor']} in a {wall} room"


def _name(thing: dict[str, str]) -> str:
    return " ".join(word for word in (thing["colour"], thing["texture"], thing["shape"]) if word)


def _article(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def captions(batch: Scenes, seed: int) -> list[str]:
    """One caption a scene; the same (scenes, seed) give the same texts."""
    rng = random.Random(seed)
    return [caption(fact, rng) for fact in attributes(batch)]
