"""A checklist of yes/no probes for one prompt: what is in it, how many, and what the camera does (VQAScore, arXiv 2404.01291).

The published score is P("Yes") to one question; here it is P(yes) / (P(yes) + P(no)) per item, with the mass of both checked.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from world_r1.types import Clip
from world_r1_rewards.judges.quoting import clean, quote
from world_r1_rewards.judges.rubrics import check_places, fill, identity, motion, read_sheet

#: Conditions under which an item is asked; they follow from what was asked for, never from the video.
WHEN = ("always", "moves", "fixed")
EACH = ("object", "count", "prompt")
NUMBERS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}
ARTICLES = ("a", "an", "the", "one", "another", "some", "several", "many")
_ENDS = (
    "on in at by of off to from with without under over above below beside behind before between near inside outside into onto "
    "through along across around against toward towards beneath next and or but while as is are was were has have that which who "
    "where when then its their his her stands stand sits sit lies lie hangs hang rises rise floats float rests rest lit seen moored"
)
#: Words that end a noun phrase.
ENDS = frozenset(_ENDS.split())


@dataclass(frozen=True)
class Item:
    """One question with the answer that is right.

    Example: `Item("object", 'Can "a red box" be seen?', expect="yes")`
    """

    kind: str
    text: str
    expect: str


@dataclass(frozen=True)
class Checklist:
    """The questions of a checklist file.

    Example: `Checklist.load("checklist").items(clip)`
    """

    name: str
    version: int
    system: str
    intro: str
    entries: tuple[dict[str, str], ...]
    digest: str

    @property
    def id(self) -> str:
        """Name, version and digest, for every score."""
        return identity(self.name, self.version, self.digest)

    @classmethod
    def load(cls, name: str) -> Checklist:
        """A shipped checklist by name, or a file by path. ValueError says what is wrong with it."""
        sheet = read_sheet(name)
        tree, source = sheet.tree, sheet.source
        try:
            entries = tuple(_entry(entry) for entry in tree["items"])
            made = cls(
                str(tree["name"]),
                int(tree["version"]),
                str(tree["system"]).strip(),
                str(tree["intro"]).strip(),
                entries,
                sheet.digest,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"checklist {source}: needs name, version, system, intro and items; {error}") from error
        for entry in made.entries:
            check_places(entry["ask"], ("motion", "item") if entry["each"] else ("motion",), source)
        check_places(made.system + made.intro, (), source)
        return made

    def items(self, clip: Clip, limit: int = 8) -> list[Item]:
        """The questions about a clip, at most `limit` of those per object, count or prompt. They depend on prompt and command only."""
        fixed = clip.trajectory is not None and clip.trajectory.command in ("", "fixed")
        moves = clip.trajectory is not None and not fixed
        things = phrases(clip.prompt.text)
        subjects = {
            "object": [thing for thing, number in things if number is None],
            "count": [thing for thing, number in things if number is not None],
            "prompt": [clean(clip.prompt.text)],
            "": [""],
        }
        items = []
        for entry in self.entries:
            if entry["when"] == "always" or (entry["when"] == "moves" and moves) or (entry["when"] == "fixed" and fixed):
                for subject in subjects[entry["each"]][:limit]:
                    values = {"motion": motion(clip), "item": quote(subject)}
                    items.append(Item(entry["kind"], f"{self.intro}\n{fill(entry['ask'], values)}", entry["expect"]))
        return items


def _entry(tree: Any) -> dict[str, str]:
    entry = {"when": "always", "each": "", "expect": "yes"} | {str(k): str(v) for k, v in tree.items()}
    if set(entry) != {"kind", "ask", "when", "each", "expect"}:
        raise ValueError(f"an item has kind, ask and optionally when, each, expect; got {sorted(tree)}")
    if entry["when"] not in WHEN or entry["each"] not in ("", *EACH) or entry["expect"] not in ("yes", "no"):
        raise ValueError(f"when is one of {WHEN}, each one of {EACH}, expect yes or no (quoted); got {tree}")
    return entry


def phrases(text: str) -> list[tuple[str, int | None]]:
    """(noun phrase, number or None) of a prompt, in order, without repetition; sentences about the camera are left out.

    A phrase starts at an article or a number and ends before a preposition, verb or punctuation: rules, not a parser. What they miss
    is still covered by the question about the whole prompt.
    """
    found: dict[str, int | None] = {}
    for sentence in re.split(r"(?<=[.!?;])\s+", clean(text)):
        if re.search(r"\b(camera|shot|view|lens)\b", sentence, re.IGNORECASE):
            continue
        words = re.findall(r"[\w'\u2019-]+|[^\w\s]", sentence)
        start: int | None = None
        for i, word in enumerate([*words, "."]):
            low = word.casefold()
            begins = low in ARTICLES or low in NUMBERS
            if start is not None and (begins or low in ENDS or not re.match(r"\w", word) or i - start > 5):
                if i - start > 1:
                    _add(found, words[start:i])
                start = None
            if begins:
                start = i
    return list(found.items())


def _add(found: dict[str, int | None], words: list[str]) -> None:
    phrase = " ".join([words[0].casefold(), *words[1:]])
    found.setdefault(phrase, NUMBERS.get(words[0].casefold()))
