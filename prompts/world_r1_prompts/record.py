"""The record that every stage reads and writes: one prompt with where it comes from. JSON lines, one record a line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

CATEGORIES = ("natural", "urban", "indoor", "micro", "fantasy", "artistic", "dynamic")
SPLITS = ("train", "dynamic", "test")
KINDS = ("rigid", "dynamic")


@dataclass(frozen=True)
class Record:
    """One prompt.

    Example: `Record(id="train-000017", split="train", category="urban", subcategory="harbour", kind="rigid", base="A crane ...",
    text="The camera orbits left. A crane ...", camera={"text": "orbit left", ...})`
    """

    id: str
    #: "train", "dynamic" or "test"; "" before the split stage.
    split: str
    category: str
    subcategory: str
    #: "rigid": nothing but the camera moves; "dynamic": the scene moves as well.
    kind: str
    #: The scene without any camera sentence.
    base: str
    #: What a model is given: camera sentence and scene.
    text: str
    #: JSON form of the camera plan, as the camera language's `read` gives it; None when the prompt names no camera.
    camera: Mapping[str, Any] | None
    #: What it was made from: "grammar:<category>/<scene>/<subject>", "written:<category>/<subcategory>/<subject>" or a file.
    source: str = ""
    licence: str = "Apache-2.0"
    #: What wrote the text: "world_r1_prompts.grammar/2", or the model that rewrote it.
    generator: str = ""
    #: Measured facts: words, difficulty of the camera, similarity to the nearest record.
    quality: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """One line of canonical JSON: fields in order, no spaces, so that equal records are equal bytes."""
        return json.dumps(asdict(self), ensure_ascii=False, separators=(",", ":"))

    def having(self, **changes: Any) -> Record:
        """A copy with some fields changed."""
        return replace(self, **changes)


FIELDS = tuple(f.name for f in fields(Record))
_TEXTS = ("id", "split", "category", "subcategory", "kind", "base", "text", "source", "licence", "generator")


def from_json(line: str) -> Record:
    """A record from a line; ValueError says which field is wrong and what it must be."""
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at character {error.pos}") from error
    if not isinstance(entry, dict):
        raise ValueError(f"expected a JSON object, got {type(entry).__name__}")
    if missing := [name for name in FIELDS if name not in entry]:
        raise ValueError(f"field {missing[0]!r} is missing; a record has {', '.join(FIELDS)}")
    if unknown := sorted(set(entry) - set(FIELDS)):
        raise ValueError(f"field {unknown[0]!r} is unknown; a record has {', '.join(FIELDS)}")
    for name in _TEXTS:
        if not isinstance(entry[name], str):
            raise ValueError(f"field {name!r} must be a string, got {entry[name]!r}")
    for name, wanted in (("category", CATEGORIES), ("kind", KINDS), ("split", ("", *SPLITS))):
        if entry[name] not in wanted:
            raise ValueError(f"field {name!r} must be one of {', '.join(filter(None, wanted))}; got {entry[name]!r}")
    if entry["camera"] is not None and not isinstance(entry["camera"], dict):
        raise ValueError(f"field 'camera' must be an object or null, got {entry['camera']!r}")
    if not isinstance(entry["quality"], dict):
        raise ValueError(f"field 'quality' must be an object, got {entry['quality']!r}")
    return Record(**entry)


def to_lines(records: Iterable[Record]) -> str:
    """The text of a JSONL file."""
    return "".join(record.to_json() + "\n" for record in records)


def read(path: Path) -> list[Record]:
    """Records of a JSONL file; ValueError with file and line number for a malformed one."""
    return list(_numbered(path))


def _numbered(path: Path) -> Iterator[Record]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            try:
                yield from_json(line)
            except ValueError as error:
                raise ValueError(f"{path}:{number}: {error}") from error
