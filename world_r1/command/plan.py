"""Camera plans: everything a prompt can ask of a camera, as plain data with a canonical text and a JSON form.

A plan is a sequence of steps, a step is one or more moves that happen together. `Command` is the part of this language that the
embedded model was trained on; `CameraPlan.of` makes a plan of a command, and `CameraPlan.command` goes back where that is possible.

    plan = parse_plan("The camera slowly pushes in while tilting up 10 degrees, then pans left for two seconds.")
    plan.text       "push in slowly and tilt up 10 degrees slowly, then pan left for 2 seconds"
    plan.to_dict()  {"text": ..., "steps": [{"moves": [{"move": "push in", "speed": "slowly"}, ...]}, ...]}

What the words amount to in angles, lengths and time is decided by `world_r1.camera_motion`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from world_r1.command import Command


class Kind(NamedTuple):
    """What a move does: the degree of freedom it uses, its sign there, and the unit and limits of an amount."""

    axis: str
    sign: int
    unit: str = ""
    low: float = 0.0
    high: float = 0.0


def _pair(positive: str, negative: str, axis: str, unit: str, low: float, high: float) -> dict[str, Kind]:
    return {positive: Kind(axis, 1, unit, low, high), negative: Kind(axis, -1, unit, low, high)}


#: Every move. Two moves of one axis cannot happen at the same time.
KINDS: Mapping[str, Kind] = {
    "fixed": Kind("fixed", 0),
    **_pair("push in", "pull out", "dolly", "metres", 0.0, 1000.0),
    **_pair("move right", "move left", "truck", "metres", 0.0, 1000.0),
    **_pair("move up", "move down", "pedestal", "metres", 0.0, 1000.0),
    **_pair("pan right", "pan left", "pan", "degrees", 0.0, 360.0),
    **_pair("tilt up", "tilt down", "tilt", "degrees", 0.0, 90.0),
    **_pair("roll right", "roll left", "roll", "degrees", 0.0, 360.0),
    **_pair("orbit right", "orbit left", "orbit", "degrees", 0.0, 360.0),
    **_pair("arc up", "arc down", "arc", "degrees", 0.0, 90.0),
    **_pair("crane up", "crane down", "crane", "metres", 0.0, 1000.0),
    **_pair("zoom in", "zoom out", "zoom", "times", 1.0, 10.0),
}
#: Adverb -> factor on the speed of a move, which is a factor on its amplitude since its time is given.
SPEEDS: Mapping[str, float] = {"": 1.0, "slowly": 0.6, "quickly": 1.35, "very slowly": 0.35, "very quickly": 1.8}
#: Adverb -> factor on the amplitude of a move.
EXTENTS: Mapping[str, float] = {"": 1.0, "barely": 0.2, "slightly": 0.4, "far": 1.6}
#: Words for the curve of the speed over a step; "" is constant speed.
CURVES = ("", "accelerating", "decelerating", "easing in and out")
#: How strongly a held camera shakes: name -> (canonical words, factor).
HANDHELD: Mapping[str, tuple[str, float]] = {
    "": ("", 0.0),
    "slight": ("slightly handheld", 0.5),
    "normal": ("handheld", 1.0),
    "strong": ("very shaky handheld", 2.0),
}
#: Digits behind the point that an amount or a duration keeps, so that its text is exact.
DIGITS = 3


class CameraTextError(ValueError):
    """A camera command that is ambiguous, contradictory or impossible, with the place in the text that says so.

    `start` and `end` are character offsets into `text`; `kind` is "ambiguous", "contradictory" or "impossible".
    """

    def __init__(self, kind: str, why: str, text: str, start: int, end: int) -> None:
        self.kind, self.why, self.text, self.start, self.end = kind, why, text, start, end
        super().__init__(f"{kind} camera command at characters {start}-{end} ({text[start:end]!r}): {why}")

    def __reduce__(self) -> tuple[type[CameraTextError], tuple[str, str, str, int, int]]:
        return type(self), (self.kind, self.why, self.text, self.start, self.end)


@dataclass(frozen=True, slots=True)
class Move:
    """One move, with how fast and how far; ValueError for words that it does not take.

    Example: `Move("pan left", speed="slowly", amount=30.0)` turns by 30 degrees. Without an amount, the preset's amplitude times
    speed and extent counts; with one, an extent would contradict it and a speed only says how much of the time it may take.
    """

    name: str
    #: A key of `SPEEDS` and of `EXTENTS`.
    speed: str = ""
    extent: str = ""
    #: In the unit of the move's kind: degrees, metres, or times (of the focal length); None leaves it to the preset.
    amount: float | None = None

    def __post_init__(self) -> None:
        kind = KINDS.get(self.name)
        if kind is None:
            raise ValueError(f"{self.name!r} is no camera move; known are {', '.join(KINDS)}")
        if self.speed or self.extent or self.amount is not None:
            self._check(kind)

    def _check(self, kind: Kind) -> None:
        if self.speed not in SPEEDS or self.extent not in EXTENTS:
            raise ValueError(
                f"{self.name}: speed is one of {list(SPEEDS)} and extent one of {list(EXTENTS)}, got {self.speed!r}, {self.extent!r}"
            )
        if kind.axis == "fixed":
            raise ValueError(f"a fixed camera has no speed, extent or amount, got {self.speed!r}, {self.extent!r}, {self.amount}")
        if self.amount is not None:
            if self.extent:
                raise ValueError(f"{self.name}: {self.extent!r} and an amount of {self.amount:g} {kind.unit}; give one of them")
            if not kind.low < self.amount <= kind.high or self.amount != round(self.amount, DIGITS):
                raise ValueError(
                    f"{self.name}: an amount is above {kind.low:g}, at most {kind.high:g} {kind.unit} and has at most {DIGITS} "
                    f"decimals, got {self.amount!r}"
                )

    @property
    def axis(self) -> str:
        """The degree of freedom that the move uses."""
        return KINDS[self.name].axis

    @property
    def how_far(self) -> str:
        """Canonical text without the speed, such as "pan left 30 degrees"."""
        if self.amount is None:
            return f"{self.name} {self.extent}".rstrip()
        unit = KINDS[self.name].unit
        return f"{self.name} {number(self.amount)} {unit[:-1] if self.amount == 1 else unit}"

    def to_dict(self) -> dict[str, Any]:
        """JSON form; "unit" repeats what the move implies, for readers."""
        out: dict[str, Any] = {"move": self.name}
        if self.speed:
            out["speed"] = self.speed
        if self.extent:
            out["extent"] = self.extent
        if self.amount is not None:
            out |= {"amount": self.amount, "unit": KINDS[self.name].unit}
        return out

    @classmethod
    def from_dict(cls, data: Any) -> Move:
        """Inverse of `to_dict`; ValueError for anything else."""
        _check_keys(data, {"move": str, "speed": str, "extent": str, "amount": float, "unit": str}, "move")
        move = cls(data["move"], data.get("speed", ""), data.get("extent", ""), _float(data.get("amount")))
        if "unit" in data and (move.amount is None or data["unit"] != KINDS[move.name].unit):
            raise ValueError(f"{move.name} is measured in {KINDS[move.name].unit or 'nothing'}, got {data}")
        return move


@dataclass(frozen=True, slots=True)
class Step:
    """Moves that happen together; ValueError if they contradict each other.

    Example: `Step((Move("push in"), Move("tilt up")), curve="accelerating", seconds=2.0)`
    """

    moves: tuple[Move, ...]
    #: One of `CURVES`.
    curve: str = ""
    #: How long it takes; None shares the time that is left.
    seconds: float | None = None

    def __post_init__(self) -> None:
        if len(self.moves) != 1 and len({move.axis for move in self.moves} - {"fixed"}) != max(1, len(self.moves)):
            raise ValueError(
                f"the moves of one step must be compatible, got {[move.name for move in self.moves]}; put contradictory ones into two"
            )
        if self.curve or self.seconds is not None:
            self._check()

    def _check(self) -> None:
        if self.curve not in CURVES or (self.curve and self.moves[0].name == "fixed"):
            raise ValueError(f"a step's curve is one of {list(CURVES)} ('' for a fixed camera), got {self.curve!r}")
        seconds = self.seconds
        if seconds is not None and not (0 < seconds <= 3600 and seconds == round(seconds, DIGITS)):
            raise ValueError(f"a step's seconds are above 0, at most 3600 and have at most {DIGITS} decimals, got {seconds!r}")

    @property
    def text(self) -> str:
        """Canonical text, such as "push in and tilt up slowly for 2 seconds"."""
        speeds = {move.speed for move in self.moves}
        if len(speeds) == 1:
            text = " and ".join(move.how_far for move in self.moves)
            text += f" {self.moves[0].speed}" if self.moves[0].speed else ""
        else:
            text = " and ".join(f"{move.how_far} {move.speed or 'at normal speed'}" for move in self.moves)
        text += f" {self.curve}" if self.curve else ""
        if self.seconds is not None:
            text += f" for {number(self.seconds)} second{'' if self.seconds == 1 else 's'}"
        return text

    def to_dict(self) -> dict[str, Any]:
        """JSON form, without what is at its default."""
        out: dict[str, Any] = {"moves": [move.to_dict() for move in self.moves]}
        if self.curve:
            out["curve"] = self.curve
        if self.seconds is not None:
            out["seconds"] = self.seconds
        return out

    @classmethod
    def from_dict(cls, data: Any) -> Step:
        """Inverse of `to_dict`; ValueError for anything else."""
        _check_keys(data, {"moves": list, "curve": str, "seconds": float}, "step")
        return cls(tuple(map(Move.from_dict, data["moves"])), data.get("curve", ""), _float(data.get("seconds")))


@dataclass(frozen=True, slots=True)
class CameraPlan:
    """Steps one after the other, and whether the camera is held by hand; ValueError for an empty or contradictory plan.

    Example: `CameraPlan((Step((Move("push in"),)), Step((Move("pan left", "slowly"),))), handheld="slight")`. A camera that is only
    held by hand has no steps.
    """

    steps: tuple[Step, ...]
    #: A key of `HANDHELD`.
    handheld: str = ""

    def __post_init__(self) -> None:
        if self.handheld not in HANDHELD:
            raise ValueError(f"handheld is one of {list(HANDHELD)}, got {self.handheld!r}")
        if not self.steps and not self.handheld:
            raise ValueError("a camera plan needs a step; 'fixed' is the plan not to move")
        if self.handheld and self.steps and all(step.moves[0].name == "fixed" for step in self.steps):
            raise ValueError("a camera is either fixed or held by hand; leave out one of them")

    @property
    def text(self) -> str:
        """Canonical text, such as "push in slowly, then pan left, handheld"; `parse_plan` reads it back."""
        text = ", then ".join(step.text for step in self.steps)
        words = HANDHELD[self.handheld][0]
        return f"{text}, {words}" if text and words else text or words

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all moves in order of time, and "handheld" at the end: what quotas and statistics count."""
        names = tuple(move.name for step in self.steps for move in step.moves)
        return (*names, "handheld") if self.handheld else names

    @property
    def command(self) -> Command | None:
        """The same plan in the language of the embedded model; None where that lacks a word for it."""
        from world_r1.command import MOTIONS, Command, Segment
        from world_r1.command import SPEEDS as KNOWN

        if self.handheld:
            return None
        segments = []
        for step in self.steps:
            names, speeds = tuple(move.name for move in step.moves), {move.speed for move in step.moves}
            plain = all(not move.extent and move.amount is None and move.name in MOTIONS for move in step.moves)
            if not plain or len(speeds) > 1 or step.curve or step.seconds is not None or not speeds <= set(KNOWN):
                return None
            segments.append(Segment(names, KNOWN[speeds.pop()]))
        return Command(tuple(segments))

    @classmethod
    def of(cls, command: Command) -> CameraPlan:
        """The plan that a command is."""
        words = {factor: word for word, factor in SPEEDS.items()}
        return cls(tuple(Step(tuple(Move(name, words[s.speed]) for name in s.moves)) for s in command.segments))

    def to_dict(self) -> dict[str, Any]:
        """JSON form; "text" repeats the canonical text, for readers.

        {"text", "steps": [{"moves": [{"move", "speed"?, "extent"?, "amount"?, "unit"?}], "curve"?, "seconds"?}], "handheld"?}
        """
        out: dict[str, Any] = {"text": self.text, "steps": [step.to_dict() for step in self.steps]}
        return out | {"handheld": self.handheld} if self.handheld else out

    @classmethod
    def from_dict(cls, data: Any) -> CameraPlan:
        """Inverse of `to_dict`; ValueError, which says what is wrong, for anything else."""
        _check_keys(data, {"steps": list, "handheld": str, "text": str}, "camera plan")
        plan = cls(tuple(map(Step.from_dict, data["steps"])), data.get("handheld", ""))
        if data.get("text", plan.text) != plan.text:
            raise ValueError(f"the text of a camera plan must be {plan.text!r}, which its steps say; got {data['text']!r}")
        return plan


def number(value: float) -> str:
    """Shortest decimal text of a value with at most `DIGITS` decimals, never with an exponent."""
    return f"{value:.{DIGITS}f}".rstrip("0").rstrip(".")


def _float(value: float | None) -> float | None:
    return None if value is None else float(value)


def _check_keys(data: Any, types: Mapping[str, type], what: str) -> None:
    """ValueError unless `data` is an object with the first key of `types`, no others than those, and values of their types."""
    first = next(iter(types))
    if not isinstance(data, Mapping) or first not in data:
        raise ValueError(f"a {what} is an object with {first!r}, got {data!r}")
    if unknown := sorted(map(str, set(data) - set(types))):
        raise ValueError(f"a {what} has no {unknown[0]!r}; known: {', '.join(types)}")
    for key, value in data.items():
        wanted = types[key]
        good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not (good if wanted is float else isinstance(value, wanted)):
            raise ValueError(f"{key!r} of a {what} must be a {wanted.__name__}, got {value!r}")
