"""Scenes: hand-written text files in `scenes/`, and how they are read.

An entry is one subject in one place. Everything in it is a whole sentence, and all its sentences are true of that place at the same
time (but for the light, of which a prompt gets one), so that any choice of them in any order describes one scene:

    @ coast                                  # the subcategory of what follows
    == lighthouse : aou                      # what the camera may name ("the lighthouse"), and flags
    O A squat lighthouse stands on an islet. # openings; at least two
    d Its gallery is streaked with rust.     # details, which follow an opening: "its" is the subject's
    n In front of the islet lie two floats.  # foreground; f background, s a side, a above, g ground, w light and weather
    S On the %, gorse runs down to the sea.  # "%" is "left" or "right"; a capital letter: may stand before the opening

A sentence may speak of "the clock" only where a clock was named: what a line presupposes is found when entries are read (`Line.needs`), and
the composer puts the line behind a sentence that names it or leaves it out.

Flags: `o` stands free, so that a camera can go around it; `a` nor is there a roof, so that it can arc over it; `u` there is room to crane;
`r` a roll shows something; `n` too narrow to move sideways. "[red|blue]" is one of the given words.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources

from world_r1_prompts.grammar.english import articles
from world_r1_prompts.record import CATEGORIES


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Kinds of sentences of an entry, by the letter they are written with.
SLOTS = {"d": "details", "n": "near", "f": "far", "s": "side", "a": "above", "g": "ground", "w": "light"}
#: Camera flags by letter.
FLAGS = {"o": "orbit", "a": "arc", "u": "crane", "r": "roll", "n": "narrow"}
#: What every entry has, and how often at least.
_LEAST = {"details": 2, "near": 1, "far": 1, "side": 2, "light": 2}
_THE = re.compile(r"\b[Tt]he ((?:[\w'-]+ ?){1,3})")
#: Where a noun phrase ends, and words of it that name nothing which has to be introduced.
_ENDS = _words(
    """
    a an and are as at away before behind below beneath beside between beyond but by down for from has have in into is like
    of off on or out over past than that through to towards under up where which while with without stands stand lies lie
    hangs hang rises rise shows show leans lean runs run sits sit rests rest grows grow makes make holds hold fills fill
    covers cover crosses cross closes close leads lead carries carry opens open ends end comes come goes go keeps keep turns
    turn falls fall reaches reach slopes slope
    """
)
_GENERAL = _words(
    """
    background big bottom bright camera centre corner dark deep distance far first floor foot foreground front ground half
    high highest horizon largest last least left light long low lower lowest middle moon most narrow near nearest next night
    old one other outer rest right same second shape short side size sky small smallest sun tallest top two upper very view
    water way whole widest wide white black grey blue red green yellow brown golden silver edge end rim part one's scene
    surface inside outside sea air wall
    """
)
#: Beginnings that say a place and no thing.
_PLACES = ("On the %", "In the ", "Behind <>")
_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_HEADER = re.compile(r"== ([\w' é-]+?) : ?([a-z]*)")


@dataclass(frozen=True)
class Line:
    """A sentence; `opens`: it may stand before the subject is named; `needs`: stems of what must have been named before."""

    text: str
    opens: bool
    needs: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Subject:
    """One entry. `key`: "urban/harbour/crane"; `head`: what a camera sentence calls it, without article."""

    key: str
    head: str
    flags: frozenset[str]
    openings: tuple[str, ...]
    lines: dict[str, tuple[Line, ...]]

    @property
    def category(self) -> str:
        return self.key.split("/")[0]

    @property
    def scene(self) -> str:
        """The subcategory."""
        return self.key.split("/")[1].replace("-", " ")


def stems(text: str) -> set[str]:
    """The words of a text, in lower case and without the endings of plurals and possessives."""
    words = re.findall(r"[a-z'é-]+", text.lower().replace("'s", ""))
    return {word if word.endswith("ss") or len(word) < 4 else word.removesuffix("s") for word in words}


def fill(text: str, rng: random.Random, side: str = "") -> str:
    """A sentence with its choices drawn, its side said and its articles right."""
    return articles(_CHOICE.sub(lambda found: rng.choice(found[1].split("|")), text).replace("%", side))


@cache
def load() -> dict[str, tuple[Subject, ...]]:
    """The shipped subjects by category. ValueError with file and line number for a malformed entry."""
    folder = resources.files("world_r1_prompts") / "scenes"
    found: dict[str, list[Subject]] = {category: [] for category in CATEGORIES}
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        if file.name.endswith(".txt"):
            category = file.name.partition("_")[0].removesuffix(".txt")
            if category not in found:
                raise ValueError(f"{file.name}: a file of scenes is named after its category, one of {', '.join(CATEGORIES)}")
            found[category] += read(file.read_text(encoding="utf-8"), category, file.name)
    keys = [subject.key for subjects in found.values() for subject in subjects]
    if repeated := {key for key in keys if keys.count(key) > 1}:
        raise ValueError(f"two entries are called {min(repeated)!r}; name one of them otherwise")
    return {category: tuple(subjects) for category, subjects in found.items()}


def read(text: str, category: str, file: str = "scenes") -> Iterator[Subject]:
    """The subjects of a file. ValueError says line and fault."""
    scene, head, flags, start = "", "", "", 0
    body: list[tuple[str, str]] = []
    for number, line in enumerate([*text.splitlines(), "@ "], 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        where = f"{file}:{number}"
        if line.startswith(("@", "==")):
            if head:
                yield _subject(f"{file}:{start}", f"{category}/{scene}", head, flags, body)
            head, body, start = "", [], number
            if line.startswith("@"):
                scene = line[1:].strip().replace(" ", "-")
            elif (header := _HEADER.fullmatch(line)) and scene and set(header[2]) <= set(FLAGS):
                head, flags = header[1], header[2]
            else:
                raise ValueError(f"{where}: an entry begins '== name : flags' below a line '@ scene'; got {line!r}")
            continue
        tag, _, said = line.partition(" ")
        if not head or (tag != "O" and tag.lower() not in SLOTS) or not said.endswith(".") or not said[:1].isupper():
            raise ValueError(f"{where}: a line is a letter of O{''.join(SLOTS)} and a whole sentence; got {line!r}")
        if ("%" in said) != (tag.lower() == "s"):
            raise ValueError(f"{where}: sentences of a side, and only they, say where with '%'; got {line!r}")
        body.append((tag, said))


def _subject(where: str, scene: str, head: str, flags: str, body: list[tuple[str, str]]) -> Subject:
    openings = tuple(said for tag, said in body if tag == "O")
    lines = {
        name: tuple(_line(tag, said, head, body) for tag, said in body if tag != "O" and tag.lower() == letter)
        for letter, name in SLOTS.items()
    }
    short = [name for name, least in _LEAST.items() if len(lines[name]) < least]
    if len(openings) < 2 or short:
        raise ValueError(f"{where}: {head!r} has too few sentences of {short[0] if short else 'openings'}")
    name = re.sub(r"\W+", "-", head.lower())
    return Subject(f"{scene}/{name}", head, frozenset(FLAGS[letter] for letter in flags), openings, lines)


def _line(tag: str, said: str, head: str, body: list[tuple[str, str]]) -> Line:
    """A line with what it presupposes: nouns behind "the" that another sentence of the entry introduces."""
    definite = _definite(said) - stems(head) - stems(_THE.sub("", said.partition(" the ")[0]))
    introduced: set[str] = set()
    for other, text in body:
        if text != said:
            introduced |= stems(text) - (set() if other == "O" else _definite(text))
    needs = frozenset(definite & introduced)
    # "On the left, ..." as the first words of every fifth prompt would be monotonous.
    return Line(said, tag.isupper() and not needs and not said.startswith(_PLACES), needs)


def _definite(text: str) -> set[str]:
    """Stems of the words that follow "the" in a text, up to the end of their noun phrase."""
    found: set[str] = set()
    for phrase in _THE.findall(text):
        for word in phrase.lower().split():
            if word in _ENDS:
                break
            if word != "the" and not word.endswith(("ed", "ing")) and word not in _GENERAL:
                found |= stems(word)
    return found
