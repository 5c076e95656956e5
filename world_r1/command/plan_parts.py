"""What the reader of plans finds: phrases, chains of them, and what is wrong with them."""

from __future__ import annotations

from world_r1.command.plan import KINDS


class Problem(Exception):
    """What is wrong with the words from `begin` to `end` of a sentence."""

    def __init__(self, kind: str, why: str, begin: int, end: int) -> None:
        super().__init__(kind, why, begin, end)
        self.kind, self.why, self.begin, self.end = kind, why, begin, end


class Phrase:
    """One camera phrase: what it commands, its words from `begin` to `end`, and the first thing that is wrong with it."""

    verb = handheld = ""
    #: What its modifiers say, None where nothing does: keys of `SPEEDS` (or "normal") and `EXTENTS`, one of `CURVES`, (value, unit).
    speed: str | None = None
    extent: str | None = None
    curve: str | None = None
    seconds: float | None = None
    amount: tuple[float, str] | None = None
    error: Problem | None = None

    def __init__(self, begin: int, move: str = "", form: str = "", end: int = 0, explicit: bool = False) -> None:
        self.begin, self.end, self.move, self.explicit = begin, end, move, explicit
        #: "base", "noun", "third", "participle" or "state".
        self.form = form

    def note(self, kind: str, value: object, begin: int, end: int) -> None:
        """Record a modifier at words `begin` to `end`."""
        if kind == "neutral":
            return
        before = getattr(self, kind)
        if before is None:
            setattr(self, kind, value)
        elif before != value and self.error is None:
            self.error = Problem("contradictory", f"a {kind} of {_said(value)} after one of {_said(before)}", begin, end)
        if self.amount is not None and self.extent is not None and self.error is None:
            self.error = Problem("contradictory", f"{self.extent!r} and an amount; give one of them", begin, end)

    def finish(self, move: str, end: int) -> None:
        """The phrase is complete: check its amount against the move."""
        self.move, self.end = move, end
        if self.amount is None or self.error is not None:
            return
        value, unit = self.amount
        kind = KINDS[move]
        if unit != kind.unit:
            self.error = Problem("impossible", f"{move!r} is measured in {kind.unit}, not in {unit}", self.begin, end)
        elif not kind.low < value <= kind.high:
            limits = f"above {kind.low:g} and at most {kind.high:g} {unit}"
            self.error = Problem("impossible", f"{move!r} takes an amount {limits}, got {value:g}", self.begin, end)


def _said(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


class Chain:
    """Joined phrases up to `end`; `explicit` once a camera is named, `objects` once an object was skipped."""

    __slots__ = ("end", "explicit", "kinds", "objects", "phrases", "place")

    def __init__(self, explicit: bool) -> None:
        self.explicit, self.objects, self.place, self.end = explicit, False, False, 0
        self.phrases: list[Phrase] = []
        self.kinds: list[str] = []
