"""Which camera moves a scene allows, and which of its things must then be described.

A camera never works against the content: only what stands free is orbited, only what has height is tilted along, a truck or a pan has
something to pass on that side. The moves are names of the camera language, which the caller gives.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: Moves by the flag that allows them; "": every scene does, if it has what the move shows.
_BY_FLAG = {
    "": ("push in", "pull out", "zoom in", "zoom out", "pan left", "pan right", "tilt up", "tilt down", "move up", "move down"),
    "wide": ("move left", "move right"),
    "orbit": ("orbit left", "orbit right"),
    "arc": ("arc up", "arc down"),
    "crane": ("crane up", "crane down"),
    "roll": ("roll left", "roll right"),
}
#: How often an axis is drawn when it is allowed, relative to 1.
_RARE = {"arc": 0.3, "zoom": 0.25, "roll": 0.12, "crane": 0.25}
#: What a prompt must describe so that a move has something to show.
SHOWS: dict[str, tuple[str, ...]] = {
    "push in": ("details",),
    "pull out": ("near", "far"),
    "orbit left": ("far", "details"),
    "orbit right": ("far", "details"),
    "move left": ("left", "near"),
    "move right": ("right", "near"),
    "pan left": ("left",),
    "pan right": ("right",),
    "tilt up": ("above",),
    "tilt down": ("ground",),
    "move up": ("above", "far"),
    "move down": ("ground", "near"),
    "arc up": ("details", "ground"),
    "arc down": ("details", "far"),
    "crane up": ("above", "far"),
    "crane down": ("ground", "near"),
    "zoom in": ("details",),
    "zoom out": ("near", "far"),
    "roll left": ("far",),
    "roll right": ("far",),
    "fixed": ("details",),
}
#: Moves that read well together, in one segment; each pair must differ in its axis.
_TOGETHER = (
    ("push in", "tilt up"),
    ("pull out", "tilt down"),
    ("move up", "tilt down"),
    ("move down", "tilt up"),
    ("push in", "pan left"),
    ("push in", "pan right"),
    ("pull out", "move up"),
    ("push in", "move down"),
    ("move left", "pan right"),
    ("move right", "pan left"),
    ("orbit left", "move up"),
    ("orbit right", "move up"),
    ("orbit left", "push in"),
    ("orbit right", "push in"),
    ("orbit left", "pull out"),
    ("orbit right", "pull out"),
    ("push in", "move left"),
    ("push in", "move right"),
    ("orbit left", "tilt up"),
    ("orbit right", "tilt down"),
)
#: Axes along which the picture changes alike.
_ALIKE = {"zoom": "dolly", "arc": "level", "crane": "level"}
DIFFICULTIES = ("single", "pair", "together", "triple", "still")


@dataclass(frozen=True)
class Shot:
    """A camera plan in its JSON form: {"steps": [{"moves": [{"move", "speed"?, ...}], ...}], "handheld"?}."""

    plan: Mapping[str, Any]

    @property
    def moves(self) -> tuple[str, ...]:
        """All moves in order."""
        return moves_of(self.plan)

    @property
    def difficulty(self) -> str:
        """ "still", "single", "together" (one step, several moves), "pair" or "triple" (steps)."""
        return difficulty_of(self.plan)


def moves_of(plan: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Names of all moves of a plan in order; none without a plan."""
    return tuple(move["move"] for step in (plan or {}).get("steps", ()) for move in step["moves"])


def difficulty_of(plan: Mapping[str, Any] | None) -> str:
    """How hard a plan is to follow, one of `DIFFICULTIES`; no plan and a camera that does not move are "still"."""
    steps = (plan or {}).get("steps", ())
    if set(moves_of(plan)) <= {"fixed"}:
        return "still"
    if len(steps) == 1:
        return "single" if len(steps[0]["moves"]) == 1 else "together"
    return "pair" if len(steps) == 2 else "triple"


def allowed(flags: frozenset[str], slots: Sequence[str]) -> tuple[str, ...]:
    """Moves that the flags of a subject allow and whose `SHOWS` are among the kinds of sentences that it has."""
    given = {"", *flags} | (set() if "narrow" in flags else {"wide"})
    filled = {*slots, *(("left", "right") if "side" in slots else ())}
    return tuple(move for flag in _BY_FLAG if flag in given for move in _BY_FLAG[flag] if set(SHOWS[move]) <= filled)


def draw(flags: frozenset[str], slots: Sequence[str], kind: str, rng: random.Random, known: Sequence[str]) -> Shot:
    """A shot that fits. Rigid scenes always move the camera (a still camera on a still scene shows nothing of either)."""
    moves = [move for move in allowed(flags, slots) if move in known]
    if not moves or (kind == "dynamic" and rng.random() < 0.14):
        return Shot({"steps": [{"moves": [{"move": "fixed"}]}]})
    # Every axis is drawn alike, whatever the number of its moves, so that no flag floods the set.
    axes: dict[str, list[str]] = {}
    for move in moves:
        axes.setdefault(_axis(move), []).append(move)
    chance = rng.random()
    pairs = [pair for pair in _TOGETHER if set(pair) <= set(moves)] if chance < 0.16 else []
    if pairs:
        return _shot([rng.choice(pairs)], kind, rng)
    length = 1 if chance < 0.58 else 2 if chance < 0.9 else 3
    steps: list[tuple[str, ...]] = []
    for _ in range(length):
        ways = [axis for axis in axes if not any(_repeats(axes[axis], step) for step in steps)]
        if not ways:
            break
        axis = rng.choices(ways, [_RARE.get(way, 1.0) for way in ways])[0]
        steps.append((rng.choice(axes[axis]),))
    return _shot(steps, kind, rng)


def _axis(move: str) -> str:
    verb, way = move.split()
    if verb == "move" and way in ("up", "down"):
        return "level"
    return "dolly" if verb in ("push", "pull") else verb


def _shot(steps: Sequence[tuple[str, ...]], kind: str, rng: random.Random) -> Shot:
    plan: dict[str, Any] = {"steps": [_step(moves, rng) for moves in steps]}
    if kind == "dynamic" and rng.random() < 0.04:
        plan["handheld"] = rng.choice(("slight", "normal"))
    return Shot(plan)


#: Amounts that people ask for, by axis: degrees and times; metres depend on a scene's scale and are left to the preset.
_AMOUNTS = {
    "pan": (15, 20, 30, 45, 60, 90),
    "tilt": (10, 15, 20, 30),
    "orbit": (20, 30, 45, 60, 90),
    "arc": (15, 20, 30),
}


def _step(moves: tuple[str, ...], rng: random.Random) -> dict[str, Any]:
    """A step with a manner: mostly none, else one of speed, extent, amount, curve."""
    speed = rng.choices(("", "slowly", "quickly", "very slowly"), (0.76, 0.16, 0.05, 0.03))[0]
    said: list[dict[str, Any]] = [{"move": move, "speed": speed} if speed else {"move": move} for move in moves]
    step: dict[str, Any] = {"moves": said}
    if speed or len(moves) > 1:
        return step
    chance, amounts = rng.random(), _AMOUNTS.get(_axis(moves[0]))
    if chance < 0.05 and _axis(moves[0]) != "zoom":
        said[0]["extent"] = "slightly"
    elif chance < 0.14 and amounts:
        said[0]["amount"] = float(rng.choice(amounts))
    elif 0.14 < chance < 0.18:
        step["curve"] = rng.choice(("accelerating", "decelerating", "easing in and out"))
    return step


def _repeats(options: list[str], before: tuple[str, ...]) -> bool:
    """Whether moves are along an axis that was used: going straight back is no new view, nor is a zoom after a dolly."""
    ways = {_ALIKE.get(_axis(move), _axis(move)) for move in before}
    return any(_ALIKE.get(_axis(option), _axis(option)) in ways for option in options)
