"""Rubrics are files: versioned, hashed, and with two places only where the prompt may appear."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from world_r1.types import Clip
from world_r1_rewards.judges.answers import DIGITS, YES_NO
from world_r1_rewards.judges.quoting import quote

FOLDER = Path(__file__).with_name("rubrics")
#: What a text may hold in braces.
PLACES = ("prompt", "motion", "item")
ANSWERS = {"digits": DIGITS, "yes_no": YES_NO}


@dataclass(frozen=True)
class RubricFile:
    """One question with its scale.

    Example: `RubricFile.load("clip_fidelity").text(clip)`
    """

    name: str
    version: int
    #: "clip": frames of a video; "view": one picture, rendered from where the camera never was.
    of: str
    choices: tuple[str, ...]
    system: str
    question: str
    #: SHA-256 of the file's bytes.
    digest: str

    @property
    def id(self) -> str:
        """Name, version and digest, for every score that the rubric gave."""
        return identity(self.name, self.version, self.digest)

    @classmethod
    def load(cls, name: str) -> RubricFile:
        """A shipped rubric by name, or a file by path (anything with a suffix). ValueError says what is wrong with it."""
        sheet = read_sheet(name)
        tree, source = sheet.tree, sheet.source
        try:
            rubric = cls(
                name=str(tree["name"]),
                version=int(tree["version"]),
                of=str(tree["of"]),
                choices=ANSWERS[tree["answers"]],
                system=str(tree["system"]).strip(),
                question=str(tree["question"]).strip(),
                digest=sheet.digest,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"rubric {source}: needs name, version (a number), of (clip or view), answers ({' or '.join(ANSWERS)}), system and "
                f"question; {error}"
            ) from error
        if rubric.of not in ("clip", "view"):
            raise ValueError(f"rubric {source}: of must be clip or view, got {rubric.of!r}")
        check_places(rubric.system, (), source)
        check_places(rubric.question, ("prompt", "motion"), source)
        return rubric

    def text(self, clip: Clip) -> str:
        """The question about a clip: the rubric's own text, with the prompt and the requested motion as quoted data."""
        return fill(self.question, {"prompt": quote(clip.prompt.text), "motion": motion(clip)})


def motion(clip: Clip) -> str:
    """What the camera was asked to do, as a quotation. Never a judgement: a zoom that was asked for is right."""
    if clip.trajectory is None:
        return quote("nothing in particular; any camera motion is right")
    return quote(clip.trajectory.command or "stay still")


def fill(text: str, values: Mapping[str, str]) -> str:
    """Put values into their {places} in one pass, so that a value that looks like a place stays what it is."""
    return re.sub(r"\{(\w+)\}", lambda match: values[match.group(1)], text)


def check_places(text: str, allowed: tuple[str, ...], source: str) -> None:
    """ValueError for a {place} that is not allowed here."""
    for place in re.findall(r"\{(\w*)\}", text):
        if place not in allowed:
            raise ValueError(f"rubric {source}: {{{place}}} cannot be filled in here; known: {', '.join(allowed) or 'none'}")


def available() -> list[str]:
    """Names of the shipped rubrics."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


@dataclass(frozen=True)
class Sheet:
    """A YAML file of questions as it was read. Example: `Sheet(tree={"name": ..., ...}, source="a.yaml", digest="3c1d...")`"""

    tree: dict[str, Any]
    #: Where it came from, for errors; SHA-256 of the file's bytes.
    source: str
    digest: str


def identity(name: str, version: int, digest: str) -> str:
    """Name, version and digest of a file of questions, for every score that it gave."""
    return f"{name}@{version} sha256:{digest[:16]}"


def read_sheet(name: str) -> Sheet:
    """A shipped file by name, or one by path (anything with a suffix). ValueError for one that is not there or no YAML mapping."""
    path = Path(name) if Path(name).suffix else FOLDER / f"{name}.yaml"
    if not path.is_file():
        raise ValueError(f"no rubric {name!r}; shipped: {', '.join(available())}; or give the path of a .yaml file")
    data = path.read_bytes()
    try:
        tree = yaml.safe_load(data.decode("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"rubric {path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise ValueError(f"rubric {path} must hold a mapping, got {type(tree).__name__}")
    return Sheet(tree, str(path), hashlib.sha256(data).hexdigest())
