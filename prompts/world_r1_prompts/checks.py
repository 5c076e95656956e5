"""Checking a file of prompts, anyone's: every defect with file, line, field, what is wrong and how to mend it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from world_r1_prompts import minhash
from world_r1_prompts.config import Words
from world_r1_prompts.grammar.compose import CameraLanguage
from world_r1_prompts.record import Record, from_json
from world_r1_prompts.validate import defects


@dataclass(frozen=True)
class Finding:
    """One defect of one line. Example: `Finding("my.jsonl", 12, "base", "has '8k' at character 40", "say what is seen instead")`"""

    file: str
    line: int
    field: str
    what: str
    mend: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.field}: {self.what}; {self.mend}"


def check(files: Iterable[Path], camera: CameraLanguage, limits: Words, jaccard: float = 0.7) -> Iterator[Finding]:
    """All defects of JSONL files: each record's own, ids and texts that repeat, near-duplicates (also across files).

    OSError for a file that cannot be read.
    """
    seen: dict[str, str] = {}
    places: list[tuple[str, int]] = []
    texts: list[str] = []
    for file in files:
        name = str(file)
        for number, record in _lines(file):
            if isinstance(record, str):
                yield Finding(name, number, "line", record, "write one JSON record a line; world-r1 prompts build shows the form")
                continue
            for defect in defects(record, camera, limits):
                yield Finding(name, number, defect.field, defect.what, defect.mend)
            if record.id in seen:
                yield Finding(
                    name, number, "id", f"{record.id!r} was used before ({seen[record.id]})", "give every record its own id"
                )
            seen.setdefault(record.id, f"{name}:{number}")
            places.append((name, number))
            texts.append(record.base)
    if not texts:
        return
    for later, first in sorted(minhash.duplicates(minhash.signatures(texts), jaccard).items()):
        where = ":".join(map(str, places[first]))
        yield Finding(*places[later], "base", f"nearly repeats {where} (similarity {jaccard} or more)", "drop one of the two")


def _lines(file: Path) -> Iterator[tuple[int, Record | str]]:
    """Line number and record, or what is wrong with the line."""
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        yield 1, f"is not UTF-8 text ({error.reason} at byte {error.start})"
        return
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                yield number, from_json(line)
            except ValueError as error:
                yield number, str(error)
