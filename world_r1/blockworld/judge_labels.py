"""Facts of a scene as classes: what both judges are trained to name, straight from the scene generator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from world_r1.blockworld import scenes
from world_r1.blockworld.text_damage import moves_of

NONE = "none"
COLOURS = tuple(scenes.COLOURS)
#: Classes of the one-of-many heads.
CLASSES: dict[str, tuple[str, ...]] = {
    "floor": tuple(row[0] for row in scenes.FLOORS + scenes.GROUNDS),
    "wall": (*COLOURS, NONE),
    "sky": (*(row[0] for row in scenes.SKIES), NONE),
    "object_colour": COLOURS,
    "object_shape": scenes.SHAPES,
    "count": tuple(str(n + 1) for n in range(scenes.MAX_OBJECTS)),
}
#: Camera axes in the order of `camera.segment_controls`; each is -1, 0 or 1 in each half of the clip.
AXES = (
    ("orbit left", "orbit right"),
    ("pull out", "push in"),
    ("move left", "move right"),
    ("move down", "move up"),
    ("pan left", "pan right"),
    ("tilt down", "tilt up"),
)
HALVES = 2
#: Classes of a pixel: what the ray that made it met.
SURFACES = (
    *CLASSES["floor"],
    "ceiling",
    *(f"{colour} wall" for colour in COLOURS),
    *(row[0] for row in scenes.SKIES),
    *(f"{colour} {shape}" for colour in COLOURS for shape in scenes.SHAPES),
)
#: The object classes are the last ones: colour by colour, all shapes of each.
FIRST_OBJECT = len(SURFACES) - len(COLOURS) * len(scenes.SHAPES)


def camera_signs(command: str) -> torch.Tensor:
    """[2, 6] int64 in {-1, 0, 1}: direction of each axis in each half of the clip, for a camera command text."""
    segments = moves_of(command)
    signs = torch.zeros(HALVES, len(AXES), dtype=torch.int64)
    for half in range(HALVES):
        for move in segments[min(half, len(segments) - 1)]:
            for axis, ends in enumerate(AXES):
                if move in ends:
                    signs[half, axis] = 2 * ends.index(move) - 1
    return signs


def objects_seen(logits: Mapping[str, torch.Tensor], facts: Sequence[Mapping[str, Any]]) -> torch.Tensor:
    """float32 [B] in 0..1: how surely each video shows the objects that its prompt names; nan without any, or with unknown ones.

    The mean of two probabilities: that of their number, and the geometric mean of those of their colours. `logits` are of the heads
    `count` [B, classes] and `colours` [B, 10]. Shapes are left out: renders are asked for the dominant object's, and a prompt has none.
    """
    number, colours = logits["count"].float().softmax(-1), torch.nn.functional.logsigmoid(logits["colours"].float())
    seen = torch.full((len(facts),), float("nan"))
    for i, fact in enumerate(facts):
        things = list(fact.get("objects") or ())
        # With an unknown one among them, neither their number nor their colours can be asked.
        known = all(isinstance(thing, Mapping) and thing.get("colour") in COLOURS for thing in things)
        if known and 0 < len(things) <= len(CLASSES["count"]):
            # Sorted: a set of strings has another order in every process, and a sum of floats another value.
            named = sorted({COLOURS.index(thing["colour"]) for thing in things})
            seen[i] = (number[i, len(things) - 1] + colours[i, named].mean().exp()) / 2
    return seen


def surface_table(facts: Sequence[Mapping[str, Any]]) -> torch.Tensor:
    """[B, 4 + K] uint8 index into `SURFACES` of what the ray-caster numbers from -1 (sky) on: sky, floor, ceiling, walls, K objects."""
    table = torch.zeros(len(facts), 4 + scenes.MAX_OBJECTS, dtype=torch.uint8)
    for row, fact in zip(table, facts, strict=True):
        names = [fact["sky"], fact["floor"], "ceiling", fact["wall_colour"] and f"{fact['wall_colour']} wall"]
        names += [f"{thing['colour']} {thing['shape']}" for thing in fact["objects"]]
        for column, name in enumerate(names):
            row[column] = SURFACES.index(name) if name else 0  # no ray meets a sky in a room or a wall outdoors
    return table


def labels(facts: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """Targets of all heads from the generator's facts (with `dominant`), int64: [B] a class, `colours` [B, 10], `camera` [B, 2, 6]."""
    out: dict[str, list[int]] = {name: [] for name in CLASSES}
    for fact in facts:
        if "dominant" not in fact:
            raise ValueError("facts lack 'dominant'; make them with captions.attributes(batch, dominant=True)")
        thing = fact["objects"][fact["dominant"]]
        values = {
            "floor": fact["floor"], "wall": fact["wall_colour"] or NONE, "sky": fact["sky"] or NONE,
            "object_colour": thing["colour"], "object_shape": thing["shape"], "count": str(len(fact["objects"])),
        }  # fmt: skip
        for name, value in values.items():
            out[name].append(CLASSES[name].index(value))
    result = {name: torch.tensor(values) for name, values in out.items()}
    result["colours"] = torch.tensor([[int(any(t["colour"] == c for t in fact["objects"])) for c in COLOURS] for fact in facts])
    result["camera"] = torch.stack([camera_signs(fact["command"]) for fact in facts])
    return result
