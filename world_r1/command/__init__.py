"""Camera commands: what they are, how they are read from a prompt (`reading`), written into one (`writing`) and spelt (`words`)."""

from __future__ import annotations

import random
from dataclasses import dataclass

from world_r1.command import reading, writing
from world_r1.command.plan import CameraPlan, CameraTextError, Move, Step
from world_r1.command.plan_reading import parse_plan
from world_r1.command.plan_writing import describe_plan
from world_r1.command.words import MOTIONS, SPEEDS, axis

__all__ = [
    "MOTIONS",
    "SPEEDS",
    "CameraPlan",
    "CameraTextError",
    "Command",
    "Move",
    "Segment",
    "Step",
    "axis",
    "describe",
    "describe_plan",
    "parse",
    "parse_plan",
]


@dataclass(frozen=True)
class Segment:
    """One stretch of time: the moves that happen together, and their speed factor.

    Example: `Segment(("push in", "tilt up"), 0.6)`. ValueError for unknown, repeated or contradictory moves, or an unknown speed.
    """

    moves: tuple[str, ...]
    speed: float = 1.0

    def __post_init__(self) -> None:
        axes = [axis(move) for move in self.moves]
        if not axes or len(set(axes)) < len(axes) or ("fixed" in axes and len(axes) > 1):
            raise ValueError(
                f"the moves of one segment must be compatible, got {self.moves}; put contradictory moves into two segments"
            )
        if self.speed not in SPEEDS.values() or ("fixed" in axes and self.speed != 1.0):
            raise ValueError(
                f"a segment's speed is one of {sorted(SPEEDS.values())} (1.0 for 'fixed'), got {self.speed} for {self.moves}"
            )

    @property
    def text(self) -> str:
        """Canonical text, for example "push in and tilt up slowly"."""
        manner = next(word for word, factor in SPEEDS.items() if factor == self.speed)
        return " and ".join(self.moves) + (f" {manner}" if manner else "")


@dataclass(frozen=True)
class Command:
    """Segments one after the other; ValueError if there are none. Example: `Command((Segment(("push in",)), Segment(("pan left",))))`"""

    segments: tuple[Segment, ...]

    def __post_init__(self) -> None:
        if not self.segments:
            raise ValueError("a camera command needs at least one segment; 'fixed' is the command not to move")

    @property
    def text(self) -> str:
        """Canonical text, for example "push in and tilt up slowly, then pan left"; `parse` reads it back."""
        return ", then ".join(segment.text for segment in self.segments)


def parse(text: str) -> Command | None:
    """The camera command of a prompt, or None when it names none. Case, hyphens and line breaks do not matter.

    `parse(command.text) == command` for every command.
    """
    steps = reading.read(text)
    return Command(tuple(Segment(moves, speed) for moves, speed in steps)) if steps else None


def describe(command: Command, rng: random.Random) -> str:
    """A natural phrasing of the command without full stop, such as "The camera pushes in, then pans left"; `parse` reads it back."""
    return writing.write([(segment.moves, segment.speed) for segment in command.segments], rng)
