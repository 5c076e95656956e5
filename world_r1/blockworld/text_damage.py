"""Wrong captions: a scene's facts with one thing changed, so that the caption made from them names something that is not shown.

A kind of damage is a function from facts (see `captions.attributes`) to changed facts. `damaged_caption` also makes sure that the wrong
thing is said: captions leave out walls or sky now and then.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from world_r1 import camera
from world_r1.blockworld import captions, scenes

Facts = dict[str, Any]

_COLOURS = tuple(scenes.COLOURS)
_TEXTURES = tuple(name for name, *_ in scenes.OBJECT_TEXTURES)
_PAIRS = (
    ("push in", "pull out"),
    ("move left", "move right"),
    ("move up", "move down"),
    ("pan left", "pan right"),
    ("tilt up", "tilt down"),
    ("orbit left", "orbit right"),
)
_OPPOSITE = dict(_PAIRS) | {b: a for a, b in _PAIRS}


def _other(options: tuple[str, ...], taken: set[str], rng: random.Random) -> str:
    return rng.choice([option for option in options if option not in taken])


def _colour(facts: Facts, rng: random.Random) -> None:
    """One object gets a colour that no object of the scene has."""
    rng.choice(facts["objects"])["colour"] = _other(_COLOURS, {thing["colour"] for thing in facts["objects"]}, rng)


def _shape(facts: Facts, rng: random.Random) -> None:
    thing = rng.choice(facts["objects"])
    thing["shape"] = _other(scenes.SHAPES, {thing["shape"]}, rng)


def _texture(facts: Facts, rng: random.Random) -> None:
    thing = rng.choice(facts["objects"])
    thing["texture"] = _other(_TEXTURES, {thing["texture"]}, rng)


def _swap(facts: Facts, rng: random.Random) -> None:
    """Two objects exchange their colours; nothing changes if all are alike in colour or in all else."""
    things = facts["objects"]
    pairs = [(a, b) for a in things for b in things if a["colour"] != b["colour"] and a["shape"] != b["shape"]]
    if pairs:
        a, b = rng.choice(pairs)
        a["colour"], b["colour"] = b["colour"], a["colour"]


def _count(facts: Facts, rng: random.Random) -> None:
    """One object more, or one less (never the first: it may be the one that moves)."""
    things, order = facts["objects"], facts["order"]
    if len(things) > 1 and (len(things) == scenes.MAX_OBJECTS or rng.random() < 0.5):
        gone = rng.randrange(1, len(things))
        del things[gone]
        facts["order"] = [k - (k > gone) for k in order if k != gone]
        return
    colour = _other(_COLOURS, {thing["colour"] for thing in things}, rng)
    things.append({"colour": colour, "texture": rng.choice(_TEXTURES), "shape": rng.choice(scenes.SHAPES)})
    order.insert(rng.randint(0, len(order)), len(things) - 1)


def _floor(facts: Facts, rng: random.Random) -> None:
    table = scenes.FLOORS if facts["indoor"] else scenes.GROUNDS
    facts["floor"] = _other(tuple(row[0] for row in table), {facts["floor"]}, rng)


def _wall(facts: Facts, rng: random.Random) -> None:
    if facts["indoor"]:
        facts["wall_colour"] = _other(_COLOURS, {facts["wall_colour"]}, rng)


def _sky(facts: Facts, rng: random.Random) -> None:
    if not facts["indoor"]:
        facts["sky"] = _other(tuple(row[0] for row in scenes.SKIES), {facts["sky"]}, rng)


def _place(facts: Facts, rng: random.Random) -> None:
    """Indoors becomes outdoors and the other way round."""
    facts["indoor"] = not facts["indoor"]
    indoor = facts["indoor"]
    facts["floor"] = rng.choice(scenes.FLOORS if indoor else scenes.GROUNDS)[0]
    facts["wall_colour"] = rng.choice(_COLOURS) if indoor else None
    facts["wall_texture"] = rng.choice(scenes.WALL_TEXTURES)[0] if indoor else None
    facts["sky"] = None if indoor else rng.choice(scenes.SKIES)[0]


def _camera(facts: Facts, rng: random.Random) -> None:
    """Another command: the opposite of one or all moves, the parts of a sequence in the other order, or any other."""
    table, weights = scenes.commands()
    now = moves_of(facts["command"])
    segments = [list(segment) for segment in now]
    draw = rng.random()
    if draw < 0.6 and now != (("fixed",),):
        every = rng.random() < 0.5
        chosen = rng.randrange(len(segments))
        for i, segment in enumerate(segments):
            if every or i == chosen:
                segments[i] = [_OPPOSITE[move] for move in segment]
        wrong = tuple(camera.Segment(tuple(segment), 1.0) for segment in segments)
        facts["command"] = camera.Command(wrong).text
    elif draw < 0.7 and len(now) > 1:
        facts["command"] = camera.Command(tuple(camera.Segment(segment, 1.0) for segment in reversed(now))).text
    else:
        facts["command"] = next(text for text in iter(lambda: rng.choices(table, weights)[0].text, "") if moves_of(text) != now)


def moves_of(command: str) -> tuple[tuple[str, ...], ...]:
    """The moves of each segment of a command text, sorted, without speeds. Raises ValueError for a text that is no command."""
    parsed = camera.parse(command)
    if parsed is None:
        raise ValueError(f"{command!r} is no camera command; see world_r1.camera.MOTIONS")
    return tuple(tuple(sorted(segment.moves)) for segment in parsed.segments)


#: Kinds that make the scene sentence wrong, and the one that makes the camera sentence wrong.
SCENE_KINDS: dict[str, Callable[[Facts, random.Random], None]] = {
    "colour": _colour,
    "shape": _shape,
    "texture": _texture,
    "swap": _swap,
    "count": _count,
    "floor": _floor,
    "wall": _wall,
    "sky": _sky,
    "place": _place,
}
CAMERA_KINDS: dict[str, Callable[[Facts, random.Random], None]] = {"camera": _camera}
KINDS = tuple(SCENE_KINDS) + tuple(CAMERA_KINDS)


def damage_facts(facts: Facts, kind: str, rng: random.Random) -> Facts | None:
    """A changed copy of the facts, or None where the kind does not apply (no wall outdoors, no two colours to swap).

    Raises ValueError for an unknown kind.
    """
    change = SCENE_KINDS.get(kind) or CAMERA_KINDS.get(kind)
    if change is None:
        raise ValueError(f"unknown text damage {kind!r}; known: {', '.join(KINDS)}")
    wrong = {**facts, "objects": [dict(thing) for thing in facts["objects"]], "order": list(facts["order"])}
    change(wrong, rng)
    return None if wrong == facts else wrong


def damaged_caption(facts: Facts, kinds: tuple[str, ...], rng: random.Random) -> str | None:
    """A caption that is wrong in every one of `kinds` and says so, or None if one of them does not apply or cannot be said."""
    wrong = facts
    for kind in kinds:
        changed = damage_facts(wrong, kind, rng)
        if changed is None:
            return None
        wrong = changed
    for _ in range(8):  # a wording may leave out the wall or the sky that was changed; draw another
        seed = rng.getrandbits(32)
        text = captions.caption(wrong, random.Random(seed))
        if all(_says(wrong, kind, text) for kind in kinds):
            return text
    return None


def _says(wrong: Facts, kind: str, text: str) -> bool:
    if kind == "wall":
        return wrong["indoor"] and (" walls" in text or " room" in text)
    return kind != "sky" or (wrong["sky"] is not None and wrong["sky"] in text)
