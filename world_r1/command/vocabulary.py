"""The camera vocabulary of `cameras.yaml` as lookup tables for the reader and the writer of plans."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from world_r1.command.plan import CURVES, EXTENTS, HANDHELD, KINDS, SPEEDS

#: Words of a phrase, their number, what kind of modifier it is and its value.
Modifier = tuple[list[str], int, str, Any]


@dataclass(frozen=True)
class Vocabulary:
    """Tables by the first word of a phrase; lists of phrases have the longest first."""

    verbs: Mapping[str, Mapping[str, str]]
    #: Inflected word -> (verb, "base", "third" or "participle").
    forms: Mapping[str, tuple[str, str]]
    directions: Mapping[str, str]
    modifiers: Mapping[str, list[Modifier]]
    #: The same by first and second word: what can still match, in the same order; under "" those of one word.
    modifiers_by_two: Mapping[str, Mapping[str, list[Modifier]]]
    joints: Mapping[str, list[tuple[list[str], int, str]]]
    handheld: Mapping[str, list[tuple[list[str], str]]]
    no_motion: Mapping[str, list[list[str]]]
    no_camera_motion: Mapping[str, list[list[str]]]
    negations: Mapping[str, list[list[str]]]
    numbers: Mapping[str, float]
    #: Unit word -> (unit, factor).
    units: Mapping[str, tuple[str, float]]
    #: Plain sets of words, which the file explains.
    around: frozenset[str]
    camera_only: frozenset[str]
    needs_direction: frozenset[str]
    inward: frozenset[str]
    still: frozenset[str]
    stay: frozenset[str]
    holds: frozenset[str]
    shots: frozenset[str]
    auxiliaries: frozenset[str]
    leads: frozenset[str]
    object_starts: frozenset[str]
    places: frozenset[str]
    barriers: frozenset[str]
    governs: frozenset[str]
    #: Words that a still phrase, a motion, a modifier and, within a sentence, a chain of phrases may start with.
    starts_still: frozenset[str]
    starts_motion: frozenset[str]
    starts_modifier: frozenset[str]
    starts_inside: frozenset[str]
    #: A sentence without any of these commands nothing, whatever it begins with.
    heart: frozenset[str]
    #: What the writer says, as in the file.
    wordings: Mapping[str, list[str]]
    adverbs: Mapping[str, list[str]]
    phrases: Mapping[str, list[str]]
    stillness: Mapping[str, list[str]]
    #: Finds the ends of sentences whose next sentence may command something without naming a camera.
    head: re.Pattern[str]


_SETS = [
    field.name for field in fields(Vocabulary) if field.type == "frozenset[str]" and not field.name.startswith(("starts", "heart"))
]
ARTICLES = frozenset(("a", "an", "the"))


@cache
def vocabulary() -> Vocabulary:
    """The tables, read once. ValueError if the file names a move, a direction or a value that does not exist."""
    data = yaml.safe_load((Path(__file__).parent / "cameras.yaml").read_text(encoding="utf-8"))
    _check(data)
    forms = {word: (verb, form) for verb in data["verbs"] for word, form in inflections(verb).items()}
    directions = {word: name for name, words in data["directions"].items() for word in words}
    modifiers = _modifiers(data)
    handheld = _by_first((phrase, (name,)) for name, phrases in data["handheld"].items() for phrase in phrases)
    tables: dict[str, Any] = {}
    for name in ("no_motion", "no_camera_motion", "negations"):
        rows = _by_first((phrase, ()) for phrase in data[name])
        tables[name] = {first: [words for (words,) in found] for first, found in rows.items()}
    joints = _by_first((phrase, (kind,)) for kind, phrases in data["joints"].items() for phrase in phrases)
    sets: dict[str, Any] = {name: frozenset(data[name]) for name in _SETS}
    still = (
        sets["still"]
        | sets["stay"]
        | sets["holds"]
        | ARTICLES
        | set(handheld)
        | set(tables["no_motion"])
        | set(tables["no_camera_motion"])
    )
    motion = ARTICLES | set(modifiers) | set(forms) | set(directions)
    return Vocabulary(
        verbs=data["verbs"],
        forms=forms,
        directions=directions,
        modifiers=modifiers,
        modifiers_by_two={first: _by_second(rows) for first, rows in modifiers.items()},
        joints={first: [(words, len(words), kind) for words, kind in rows] for first, rows in joints.items()},
        handheld=handheld,
        **tables,
        numbers={word: float(value) for word, value in data["numbers"].items()},
        units={word: (unit, float(factor)) for unit, words in data["units"].items() for word, factor in words.items()},
        **sets,
        starts_still=frozenset(still),
        starts_motion=frozenset(motion),
        starts_modifier=frozenset({*modifiers, ",", "and"}),
        heart=frozenset(
            {"camera", *forms, *sets["still"], *sets["holds"], *handheld, *(word for name in tables for word in tables[name])}
        ),
        starts_inside=frozenset({"camera", *ARTICLES, *sets["still"], *handheld, *tables["no_camera_motion"]}),
        **{name: data[name] for name in ("wordings", "adverbs", "phrases", "stillness")},
        head=_head_pattern(still | motion | sets["leads"] | {"it", "camera"}),
    )


def inflections(verb: str) -> dict[str, str]:
    """Inflected word -> "base", "third" or "participle"."""
    doubled = {"pan", "jib", "spin", "put"}
    stem = verb[:-1] if verb.endswith("e") else verb + verb[-1] if verb in doubled else verb
    consonant_y = verb.endswith("y") and verb[-2] not in "aeiou"
    third = verb[:-1] + "ies" if consonant_y else verb + ("es" if verb.endswith(("sh", "ch")) else "s")
    return {verb: "base", third: "third", stem + "ing": "participle"}


def _head_pattern(words: Iterable[str]) -> re.Pattern[str]:
    """The end of a sentence, an article or none, and one of `words` or a number."""
    word = rf"(?:{_alternatives(set(words) - ARTICLES)}|\d+)(?![^\W\d_])"
    return re.compile(rf"[.!?;\n][\W_]*(?:(?:{_alternatives(ARTICLES)})[\W_]+)?{word}")


def _alternatives(words: Iterable[str]) -> str:
    """A pattern of literal words that share their beginnings, which matches much faster than a list of them."""
    tree: dict[str, Any] = {}
    for word in words:
        node = tree
        for character in word:
            node = node.setdefault(character, {})
        node[""] = {}
    return _branches(tree)


def _branches(tree: Mapping[str, Any]) -> str:
    parts = [re.escape(character) + _branches(rest) for character, rest in sorted(tree.items()) if character]
    if not parts:
        return ""
    body = parts[0] if len(parts) == 1 and "" not in tree else f"(?:{'|'.join(parts)})"
    return f"{body}?" if "" in tree else body


def _modifiers(data: Mapping[str, Any]) -> dict[str, list[Modifier]]:
    rows: list[tuple[str, tuple[str, Any]]] = []
    for field, kind in (("speeds", "speed"), ("extents", "extent"), ("curves", "curve")):
        rows += [(phrase, (kind, value)) for value, phrases in data[field].items() for phrase in phrases]
    rows += [(phrase, ("neutral", None)) for phrase in data["neutral"]]
    for amount, phrases in data["amounts"].items():
        value, unit = amount.split()
        rows += [(phrase, ("amount", (float(value), unit))) for phrase in phrases]
    rows += [(phrase, ("by", None)) for phrase in data["amount_starts"]]
    rows += [(phrase, ("for", None)) for phrase in data["duration_starts"]]
    rows += [(word, ("number", None)) for word in (*data["numbers"], "a", "an", "half")]
    return {first: [(words, len(words), *rest) for words, *rest in found] for first, found in _by_first(rows).items()}


def _by_second(rows: list[Modifier]) -> dict[str, list[Modifier]]:
    seconds = {words[1] for words, *_ in rows if len(words) > 1}
    return {second: [row for row in rows if row[1] == 1 or row[0][1] == second] for second in ("", *seconds)}


def _by_first(rows: Iterable[tuple[str, tuple[Any, ...]]]) -> dict[str, list[Any]]:
    """Phrases with what belongs to them, by first word, the longest first: {first: [(words, *rest)]}."""
    out: dict[str, list[Any]] = {}
    for phrase, rest in rows:
        words = phrase.split()
        out.setdefault(words[0], []).append((words, *rest))
    return {first: sorted(found, key=lambda row: -len(row[0])) for first, found in out.items()}


def _check(data: Mapping[str, Any]) -> None:
    known = {"speeds": {*SPEEDS, "normal"} - {""}, "extents": set(EXTENTS) - {""}, "curves": set(CURVES) - {""}}
    for field, names in {**known, "handheld": set(HANDHELD) - {""}}.items():
        if set(data[field]) != names:
            raise ValueError(f"cameras.yaml: {field} must be {sorted(names)}, got {sorted(data[field])}")
    for verb, table in data["verbs"].items():
        if bad := (set(table) - {*data["directions"], ""}) | (set(table.values()) - set(KINDS)):
            raise ValueError(f"cameras.yaml: the verb {verb!r} names {sorted(bad)}, which is no direction and no move")
