"""Lexicons: hand-written YAML files of scenes, and how they are read.

A scene is a kind of place with what can stand in it. Everything inside one scene goes together; that is what keeps sentences sensible.

    - scene: harbour
      flags: wide deep              # what a camera may do here
      light: day dawn dusk          # names of pools in banks.yaml
      subjects: |                   # noun phrase with its *head | flags | +verb place ; ... | detail ; detail ; ...
        a squat *lighthouse | orbit tall | +stands on an islet | its gallery ~ streaked with rust
      near: |                       # clauses, one a line; likewise side, far, above, ground
        {n} dinghies ~ upturned on trestles

"{n}" draws from the bank of that name, "[red/blue/]" one of the given words.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import yaml

from world_r1_prompts.grammar.english import Clause, articles, clause, is_plural
from world_r1_prompts.record import CATEGORIES

#: Where items stand, relative to the subject.
SLOTS = ("near", "side", "far", "above", "ground")
#: What a camera may do: go around it, travel into it, pass along it, follow its height; "still": only a fixed camera makes sense.
FLAGS = frozenset({"orbit", "deep", "wide", "tall", "still"})

_SLOT = re.compile(r"\{(\w+)\}|\[([^\[\]]*)\]")
_HEAD = re.compile(r"\*([^*|~;]+?)\*|\*([\w'-]+)")


@dataclass(frozen=True)
class Subject:
    """What a prompt is about. `phrase` and `head` may hold slots; `places` are "+verb place", `details` "noun ~ rest"."""

    key: str
    phrase: str
    flags: frozenset[str]
    places: tuple[str, ...]
    details: tuple[str, ...]


@dataclass(frozen=True)
class Scene:
    """A kind of place: subjects, the items around them by slot, and the names of its light pools."""

    category: str
    name: str
    kind: str
    flags: frozenset[str]
    light: tuple[str, ...]
    subjects: tuple[Subject, ...]
    items: dict[str, tuple[str, ...]]
    #: How far items are introduced: "outdoor", "indoor" or "table".
    space: str
    #: Adjectives that fit most things here.
    looks: tuple[str, ...]


@dataclass(frozen=True)
class Lexicon:
    """All scenes by category, the word banks and the light pools."""

    scenes: dict[str, tuple[Scene, ...]]
    banks: dict[str, tuple[str, ...]]
    light: dict[str, tuple[str, ...]]

    def fill(self, text: str, rng: random.Random) -> str:
        """`text` with its slots drawn and its articles right."""
        while "{" in text or "[" in text:
            text = _SLOT.sub(lambda found: rng.choice(self._options(found[1], found[2])), text)
        return articles(" ".join(text.split()).replace(" ,", ","))

    def _options(self, bank: str | None, words: str | None) -> tuple[str, ...] | list[str]:
        if bank is None:
            return (words or "").split("/")
        if bank not in self.banks:
            raise ValueError(f"no bank named {bank!r} in banks.yaml; there are {', '.join(sorted(self.banks))}")
        return self.banks[bank]

    def clause(self, text: str, rng: random.Random) -> Clause:
        """A clause of the lexicon with its slots drawn."""
        return clause(self.fill(text, rng))


def head_of(phrase: str) -> tuple[str, str]:
    """("a squat lighthouse", "lighthouse") of "a squat *lighthouse"; ValueError when no head is marked."""
    found = _HEAD.search(phrase)
    if found is None:
        raise ValueError(f"a subject marks its head noun with *, as in 'a squat *lighthouse'; got {phrase!r}")
    return " ".join(phrase.replace("*", "").split()), (found[1] or found[2]).strip()


def plural_subject(phrase: str) -> bool:
    """Whether a drawn subject takes plural verbs."""
    return is_plural(phrase)


@cache
def load() -> Lexicon:
    """The shipped lexicon. ValueError with file and scene for a malformed entry."""
    folder = resources.files("world_r1_prompts") / "lexicon"
    banks = yaml.safe_load((folder / "banks.yaml").read_text(encoding="utf-8"))
    looks = yaml.safe_load((folder / "looks.yaml").read_text(encoding="utf-8"))
    scenes: dict[str, tuple[Scene, ...]] = {}
    for category in CATEGORIES:
        entries: list[Any] = []
        for file in sorted(folder.iterdir(), key=lambda f: f.name):
            if re.fullmatch(rf"{category}(_\w+)?\.yaml", file.name):
                entries += yaml.safe_load(file.read_text(encoding="utf-8"))
        scenes[category] = tuple(_scene(category, entry, looks[category]) for entry in entries)
    words = {name: tuple(_words(text)) for name, text in banks["words"].items()}
    light = {name: tuple(_lines(text)) for name, text in banks["light"].items()}
    return Lexicon(scenes, words, light)


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.replace("\n", " ").split(",") if word.strip()]


def _scene(category: str, entry: dict[str, Any], looks: dict[str, str]) -> Scene:
    where = f"{category}/{entry.get('scene')}"
    if entry.get("scene") not in looks:
        raise ValueError(f"{where}: looks.yaml has no adjectives for it")
    flags = _flags(entry.get("flags", ""), where)
    items = {slot: tuple(_lines(entry.get(slot, ""))) for slot in SLOTS}
    for lines in items.values():
        for line in lines:
            clause(line)
    subjects = tuple(_subject(where, line, flags) for line in _lines(entry["subjects"]))
    return Scene(
        category=category,
        name=entry["scene"],
        kind="dynamic" if category == "dynamic" else "rigid",
        flags=flags,
        light=tuple(entry["light"].split()),
        subjects=subjects,
        items=items,
        space=entry.get("space", "outdoor"),
        looks=tuple(_words(looks[entry["scene"]])),
    )


def _flags(text: str, where: str) -> frozenset[str]:
    flags = frozenset(text.split())
    if unknown := flags - FLAGS:
        raise ValueError(f"{where}: unknown flag {min(unknown)!r}; known are {', '.join(sorted(FLAGS))}")
    return flags


def _subject(where: str, line: str, flags: frozenset[str]) -> Subject:
    parts = [part.strip() for part in line.split("|")]
    if len(parts) != 4:
        raise ValueError(f"{where}: a subject is 'noun phrase | flags | places | details', got {line!r}")
    phrase, own, places, details = parts
    head = head_of(phrase)[1]
    said = tuple(part.strip() for part in details.split(";") if part.strip())
    for detail in said:
        clause(detail)
    spots = tuple(part.strip() for part in places.split(";") if part.strip())
    if not spots or not said or any(not spot.startswith("+") for spot in spots):
        raise ValueError(
            f"{where}: places begin with a verb marked '+', and there is at least one place and one detail; got {line!r}"
        )
    return Subject(f"{where}/{head.replace(' ', '-')}", phrase, flags | _flags(own, where), spots, said)
