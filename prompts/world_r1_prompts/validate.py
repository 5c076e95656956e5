"""What makes a prompt fit to ship. Each rule is a function of a record that says what is wrong and how to mend it.

Rules hold for anyone's file; `world-r1 prompts check` runs all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from world_r1_prompts.config import Words
from world_r1_prompts.grammar.compose import CameraLanguage
from world_r1_prompts.grammar.shots import difficulty_of
from world_r1_prompts.record import Record

#: Words of film making: a scene text that uses them talks about the picture and not about the world.
CAMERA_WORDS = re.compile(
    r"\b(camera\w*|lens(?:es)?|zoom\w*|footage|close-?up|dolly|dollies|dollied|tracking shot|panning|tilt-shift|viewfinder|shutter speed"
    r"|b-?roll|cinematograph\w+|the (?:frame|shot|viewer|screen)|wide shot|slow motion|time-?lapse|fps|bokeh)\b",
    re.IGNORECASE,
)
#: Phrases that language models add to everything and that show nothing.
STOCK = re.compile(
    r"\b(breathtaking|stunning|awe-inspiring|mesmeri[sz]ing|a testament to|tapestry of|bustling|nestled|captivat\w+|whimsical dance"
    r"|in the heart of|sense of (?:wonder|calm|serenity|mystery|depth)|timeless|ethereal|masterpiece|hyper-?realistic|8k|4k|ultra-?detailed"
    r"|photorealistic|cinematic|highly detailed|beautifully|evok\w+|reminiscent of|invit\w+ the eye|speaks of|whispers? of)\b",
    re.IGNORECASE,
)
#: Subjects that a world model has no use for; matched as whole words, so "shooting star" and "bloodstone" pass.
UNSAFE = re.compile(
    r"\b(nude|naked|nsfw|porn\w*|sexual\w*|erotic\w*|gore|gory|corpses?|beheaded|suicide|massacre|rape\w*|torture\w*|genocide|swastikas?"
    r"|nazis?|terrorists?|lynch\w*|overdose|cocaine|heroin|bloodbath|mutilat\w+|child abuse|slurs?)\b",
    re.IGNORECASE,
)
_QUOTES = re.compile(r"[\"“”«»„]|(?<!\w)['\u2018](?=\w)")
_ENGLISH = frozenset(["the", "a", "an", "of", "in", "on", "and", "with", "to", "its", "at", "by", "from", "is", "are"])
_REPEATED = re.compile(r"\b(\w+(?: \w+){0,3}) \1\b", re.IGNORECASE)
_ARTICLE = re.compile(r"\b[Aa] (?=[aeio])(?!one\b|once\b)|\b[Aa]n (?=[bcdfgjklmnpqrstvwxyz])")


@dataclass(frozen=True)
class Defect:
    """What is wrong with one field, and how to mend it. Example: `Defect("base", "has a quotation mark", "remove it")`"""

    rule: str
    field: str
    what: str
    mend: str


RULES = (
    "id", "length", "camera words", "quotes", "stock phrase", "language", "safety", "grammar", "camera", "camera text", "kind", "still",
)  # fmt: skip


def defects(record: Record, camera: CameraLanguage, limits: Words) -> Iterator[Defect]:
    """Everything that is wrong with one record."""
    if not record.id.strip():
        yield Defect("id", "id", "is empty", "give every record a name of its own")
    yield from _wording(record, limits)
    yield from _camera(record, camera)
    if (record.category == "dynamic") != (record.kind == "dynamic"):
        what = f"is {record.kind!r} in category {record.category!r}"
        yield Defect("kind", "kind", what, "dynamic scenes are of kind dynamic, others rigid")


def _wording(record: Record, limits: Words) -> Iterator[Defect]:
    base, count = record.base, len(record.text.split())
    if not limits.least <= count <= limits.most:
        yield Defect("length", "text", f"has {count} words", f"write {limits.least} to {limits.most}")
    for pattern, rule, mend in (
        (CAMERA_WORDS, "camera words", "describe the world; only the camera sentence speaks of the camera"),
        (STOCK, "stock phrase", "say what is seen instead"),
        (UNSAFE, "safety", "choose another scene"),
        (_QUOTES, "quotes", "remove the quotation mark"),
        (_REPEATED, "grammar", "say the word once"),
        (_ARTICLE, "grammar", "mend the article"),
    ):
        if found := pattern.search(base):
            yield Defect(rule, "base", f"has {found[0].strip()!r} at character {found.start()}", mend)
    if not base or not base[0].isupper() or base.rstrip()[-1:] not in ".!?":
        yield Defect("grammar", "base", "does not begin with a capital and end with a full stop", "write whole sentences")
    words = re.findall(r"[^\W\d_]+", base.lower())
    strange = [char for char in base if ord(char) > 0x24F and char not in "\u2019\u2013\u2014\u201c\u201d\u2018"]
    if strange or (len(words) > 8 and sum(word in _ENGLISH for word in words) < 0.1 * len(words)):
        yield Defect("language", "base", f"is not English{f' ({strange[0]!r})' if strange else ''}", "translate it")


def _camera(record: Record, camera: CameraLanguage) -> Iterator[Defect]:
    try:
        inside, whole = camera.read(record.base), camera.read(record.text)
    except ValueError as error:
        yield Defect("camera text", "text", str(error), "rewrite the camera sentence")
        return
    if inside is not None:
        yield Defect("camera words", "base", f"commands the camera: {inside['text']!r}", "keep commands out of the scene text")
    if record.base not in record.text:
        yield Defect("camera text", "text", "does not contain the scene text", "text is the camera sentence and base")
    if (plain(record.camera) or None) != (plain(whole) or None):
        said, kept = (whole or {}).get("text"), (record.camera or {}).get("text")
        yield Defect("camera", "camera", f"is {kept!r} but the text says {said!r}", "store the plan that the text commands")
    if record.kind == "rigid" and whole is not None and not whole.get("handheld") and difficulty_of(whole) == "still":
        yield Defect("still", "camera", "is fixed in a rigid scene, so nothing moves at all", "move the camera or the scene")


def plain(plan: Mapping[str, Any] | None) -> dict[str, Any]:
    """A plan as plain data, to compare plans from files with parsed ones."""
    return {} if plan is None else {key: value for key, value in plan.items() if value not in ("", None)}
