"""From camera moves to English: varied phrasings that `reading` reads back, for captions of training data."""

from __future__ import annotations

import random

from world_r1.command.words import SPEEDS, forms

#: Ways to say a move: (verb, direction words); the first is the canonical one and is drawn most often.
WORDINGS: dict[str, tuple[tuple[str, str], ...]] = {
    "push in": (("push", "in"), ("dolly", "in"), ("move", "forward")),
    "pull out": (("pull", "out"), ("dolly", "out"), ("pull", "back"), ("move", "backward")),
    "move left": (("move", "left"), ("truck", "left"), ("move", "to the left")),
    "move right": (("move", "right"), ("truck", "right"), ("move", "to the right")),
    "move up": (("move", "up"), ("pedestal", "up"), ("rise", "")),
    "move down": (("move", "down"), ("pedestal", "down"), ("descend", "")),
    "pan left": (("pan", "left"), ("turn", "left"), ("pan", "to the left")),
    "pan right": (("pan", "right"), ("turn", "right"), ("pan", "to the right")),
    "tilt up": (("tilt", "up"), ("look", "up")),
    "tilt down": (("tilt", "down"), ("look", "down")),
    "orbit left": (("orbit", "left"), ("circle", "left"), ("orbit", "to the left")),
    "orbit right": (("orbit", "right"), ("circle", "right"), ("orbit", "to the right")),
}
STILLNESS = {
    "base": ("fixed", "fixed", "static"),
    "third": ("is fixed", "stays still", "is static", "remains stationary", "does not move"),
}


def write(segments: list[tuple[tuple[str, ...], float]], rng: random.Random) -> str:
    """A sentence without full stop for (moves, speed factor) segments; wording and order of words vary with `rng`."""
    form = rng.choice(("base", "base", "base", "third", "third"))
    if segments == [(("fixed",), 1.0)] and rng.random() < 0.3:
        return rng.choice(("Static camera", "Fixed camera", "A static shot"))
    parts = [_segment(moves, speed, form, rng) for moves, speed in segments]
    first = "first " if form == "base" and len(parts) > 1 and rng.random() < 0.2 else ""
    text = first + rng.choice((", then ", ", then ", " and then ")).join(parts)
    if form == "third":
        return "The camera " + text
    return "Camera " + text if rng.random() < 0.75 else text[0].upper() + text[1:]


def _segment(moves: tuple[str, ...], speed: float, form: str, rng: random.Random) -> str:
    if moves == ("fixed",):
        return rng.choice(STILLNESS[form])
    manner = next(word for word, factor in SPEEDS.items() if factor == speed)
    during = len(moves) > 1 and rng.random() < 0.4
    said = []
    for index, move in enumerate(moves):
        options = WORDINGS[move]
        verb, direction = options[0] if rng.random() < 0.5 else rng.choice(options)
        wanted = "participle" if during and index else form
        word = next(inflected for inflected, kind in forms(verb).items() if kind == wanted)
        said.append(f"{word} {direction}".strip())
    text = (" while " if during else " and ").join(said)
    return f"{manner} {text}" if manner and rng.random() < 0.4 else f"{text} {manner}".strip()
