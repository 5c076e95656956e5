"""Where the sentences of a text begin and end."""

from __future__ import annotations

import re

#: What ends a sentence.
_MARKS = ".!?;\n"
_SEPARATOR = re.compile(f"[{_MARKS}]")


def start(text: str, place: int) -> int:
    """Where the sentence around a place starts."""
    start = 0
    for mark in _MARKS:
        at = text.rfind(mark, start, place)
        while at >= 0 and mark == "." and decimal(text, at):
            at = text.rfind(mark, start, at)
        start = max(start, at + 1)
    return start


def end(text: str, place: int) -> int:
    """Where the sentence around a place ends. A point between digits ends no sentence."""
    while (match := _SEPARATOR.search(text, place)) is not None:
        place = match.start()
        if not decimal(text, place):
            return place
        place += 1
    return len(text)


def decimal(text: str, point: int) -> bool:
    """Whether the point at a place stands between digits."""
    return text[point] == "." and text[point - 1 : point].isdecimal() and text[point + 1 : point + 2].isdecimal()
