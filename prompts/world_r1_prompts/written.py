"""Scenes written whole, one by one, for a given camera sentence: text files in `written/`, and how they are read.

    @ natural / coast                                # category and subcategory of what follows
    < split boulder | The camera circles left.       # "<": the camera sentence comes first; ">": it comes last
    On a beach of grey shingle lies a boulder ...    # the scene: one line

The first field is what the camera may name ("around the boulder"). Entries of the file `test.txt` belong to the test split, those of the
others never do. Nothing here is combined: who adds an entry writes a scene.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources

from world_r1_prompts.grammar.compose import CameraLanguage
from world_r1_prompts.grammar.shots import difficulty_of
from world_r1_prompts.record import CATEGORIES, Record

GENERATOR = "world_r1_prompts.written/1"
#: The file whose entries are the test split's.
_TEST = "test"


@dataclass(frozen=True, slots=True)
class Entry:
    """One scene with its camera sentence."""

    test: bool
    category: str
    subcategory: str
    subject: str
    camera: str
    #: Whether the camera sentence comes after the scene.
    last: bool
    scene: str

    def record(self, number: int, language: CameraLanguage) -> Record:
        """Candidate `number`; its camera plan is what the sentence says."""
        text = f"{self.scene} {self.camera}" if self.last else f"{self.camera} {self.scene}"
        plan = language.read(self.camera)
        return Record(
            id=f"w{number:06d}",
            split=_TEST if self.test else "",
            category=self.category,
            subcategory=self.subcategory,
            kind="dynamic" if self.category == "dynamic" else "rigid",
            base=self.scene,
            text=text,
            camera=plan,
            source=f"written:{self.category}/{self.subcategory}/{self.subject}",
            generator=GENERATOR,
            quality={"words": len(text.split()), "difficulty": difficulty_of(plan)},
        )


@cache
def load() -> tuple[Entry, ...]:
    """All entries of the package, file by file. ValueError with file and line for a malformed one."""
    folder = resources.files("world_r1_prompts") / "written"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".txt")), key=lambda file: file.name)
    return tuple(
        entry for file in files for entry in read(file.read_text(encoding="utf-8"), file.name, test=file.name == f"{_TEST}.txt")
    )


def read(text: str, name: str, *, test: bool = False) -> Iterator[Entry]:
    """Entries of one file's text; ValueError names `name` and the line."""
    place: tuple[str, str] | None = None
    head: tuple[bool, str, str] | None = None
    for number, line in enumerate(text.splitlines(), 1):
        mark, rest = line[:1], line[1:].strip()
        if not line.strip() or mark == "#":
            continue
        if head is not None:
            if mark in "@<>":
                raise ValueError(f"{name}:{number}: expected the scene of {head[1]!r}, one line of text, got {line!r}")
            assert place is not None
            yield Entry(test, *place, head[1], head[2], head[0], line.strip())
            head = None
        elif mark == "@":
            category, _, subcategory = (part.strip() for part in rest.partition("/"))
            if category not in CATEGORIES or not subcategory:
                raise ValueError(
                    f"{name}:{number}: expected '@ category / subcategory' with one of {', '.join(CATEGORIES)}; got {line!r}"
                )
            place = (category, subcategory)
        elif mark in "<>":
            subject, _, camera = (part.strip() for part in rest.partition("|"))
            if place is None or not subject or not camera.endswith("."):
                raise ValueError(
                    f"{name}:{number}: expected '{mark} subject | camera sentence.' below a line '@ ...', got {line!r}"
                )
            head = (mark == ">", subject, camera)
        else:
            raise ValueError(f"{name}:{number}: expected '@', '<', '>' or '#', got {line!r}")
    if head is not None:
        raise ValueError(f"{name}: the last entry, {head[1]!r}, has no scene")
