"""One prompt: draw a subject, choose a shot that it allows, choose sentences of its entry that show it, put them in order.

Nothing is said that was not written whole: no frame, no slot. `compose(library, camera, seed, index, weights)` is a pure function of
its arguments: a million candidates can be drawn anywhere, in any order.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from world_r1_prompts.grammar import shots
from world_r1_prompts.grammar.scenes import Line, Subject, fill, stems
from world_r1_prompts.record import Record

GENERATOR = "world_r1_prompts.grammar/2"
#: Sentences beside the opening, and how often.
_LENGTHS = ((2, 0.12), (3, 0.38), (4, 0.35), (5, 0.15))
#: How often a prompt begins with a sentence that may stand before the opening, if it has one.
_BEFORE = 0.55
#: At most so many sentences of a kind.
_MOST = {"details": 2, "near": 1, "far": 1, "left": 1, "right": 1, "above": 1, "ground": 1, "light": 1}
#: How often a kind is drawn to fill a prompt up.
_WEIGHTS = {"details": 1.6, "near": 1.0, "far": 1.0, "left": 0.7, "right": 0.7, "above": 0.5, "ground": 0.6, "light": 1.4}
#: How often the choice of sentences is tried until the shot has what it must show, and how often another shot is drawn.
_ATTEMPTS = 12
_SHOTS = 4
#: A detail with such a word must follow the opening directly: the word stands for the subject.
_OBJECT = re.compile(r"\b(it|them|him|her|he|she|they)\b", re.IGNORECASE)
#: What says where things are relative to each other; every prompt has one of them at least.
_SPATIAL = ("near", "far", "left", "right")


class CameraLanguage(Protocol):
    """What the pipeline needs to know of cameras; `world_r1.curation.Camera` is the project's.

    The JSON form of a plan is {"text"?, "steps": [{"moves": [{"move", "speed"?, ...}], ...}], "handheld"?}.
    """

    @property
    def motions(self) -> Sequence[str]:
        """Names of the moves that can be asked for."""

    def read(self, text: str) -> dict[str, Any] | None:
        """JSON form of the camera plan of a text, or None; ValueError for an ambiguous or contradictory one."""

    def write(self, plan: Mapping[str, Any], rng: random.Random, target: str) -> str:
        """A camera sentence with its full stop for a plan in JSON form, perhaps naming the target ("the lighthouse")."""


def compose(
    library: Mapping[str, Sequence[Subject]], camera: CameraLanguage, seed: int, index: int, weights: Mapping[str, float]
) -> Record:
    """Candidate `index` of a run. `weights`: how often each category is drawn."""
    rng = random.Random(f"world-r1 prompts {seed} {index}")
    category = rng.choices(list(weights), list(weights.values()))[0]
    subject = rng.choice(library[category])
    kind = "dynamic" if category == "dynamic" else "rigid"
    slots = [name for name, lines in subject.lines.items() if lines]
    for _ in range(_SHOTS):  # a shot whose surroundings cannot be told is drawn again
        shot = shots.draw(subject.flags, slots, kind, rng, camera.motions)
        base, shown = _body(subject, shot, rng)
        if shown:
            break
    sentence = camera.write(shot.plan, rng, f"the {subject.head}")
    text = f"{base} {sentence}" if rng.random() < 0.15 else f"{sentence} {base}"
    return Record(
        id=f"c{index:07d}",
        split="",
        category=category,
        subcategory=subject.scene,
        kind=kind,
        base=base,
        text=text,
        camera=camera.read(sentence),
        source=f"grammar:{subject.key}",
        generator=GENERATOR,
        quality={"words": len(text.split()), "difficulty": shot.difficulty},
    )


def _body(subject: Subject, shot: shots.Shot, rng: random.Random) -> tuple[str, bool]:
    """The prompt without its camera sentence, and whether it says all that the shot must show; of a few attempts the first that does."""
    needed = list(dict.fromkeys(slot for move in shot.moves for slot in shots.SHOWS[move]))
    best: tuple[int, str] = (-2, "")
    for _ in range(_ATTEMPTS):
        said, text = _attempt(subject, needed, rng)
        if said == len(needed):
            return text, True
        best = max(best, (said, text))
    return best[1], False


def _attempt(subject: Subject, needed: Sequence[str], rng: random.Random) -> tuple[int, str]:
    """Some sentences in an order in which each finds named what it presupposes; and how many of the needed kinds are among them."""
    wanted = _kinds(subject, needed, rng)
    stock = {kind: rng.sample(lines, len(lines)) for kind, lines in subject.lines.items()}
    stock["left"] = stock["right"] = stock.pop("side")  # one stock for both sides
    before: list[str] = []
    rng.shuffle(wanted)
    wanted.sort(key=lambda kind: kind == "light")  # in between, light would part what belongs together
    first = next((kind for kind in wanted if kind != "details" and any(line.opens for line in stock[kind])), "")
    if first and rng.random() < _BEFORE:
        line = next(line for line in stock[first] if line.opens)
        stock[first].remove(line)
        before = [_before(fill(line.text, rng, first))]
    body = [fill(rng.choice(subject.openings), rng)]
    named = stems(" ".join([*before, *body, subject.head]))
    done = {first} if before else set()
    details = sorted(
        (stock["details"].pop() for _ in range(wanted.count("details"))), key=lambda line: not _OBJECT.search(line.text)
    )
    if len(details) > 1 and _OBJECT.search(details[1].text):
        details.pop()  # "it" would be the first detail
    queue: list[tuple[str, list[Line]]] = [("details", [line]) for line in details]
    queue += [(kind, stock[kind]) for kind in wanted if kind != "details" and kind not in done]
    for kind, lines in queue:
        fitting = [line for line in lines if line.needs <= named]
        if fitting:
            lines.remove(fitting[0])
            body.append(fill(fitting[0].text, rng, kind).replace("<>", f"the {subject.head}"))
            named |= stems(body[-1])
            done.add(kind)
    placed = bool(done & set(_SPATIAL))
    return len(done & set(needed)) if placed else -1, " ".join([*before, *body])


def _kinds(subject: Subject, needed: Sequence[str], rng: random.Random) -> list[str]:
    """Kinds of sentences beside the opening: those that the shot needs, one that says where things are, and more to the drawn length."""
    wanted = list(needed)
    length = max(rng.choices([n for n, _ in _LENGTHS], [w for _, w in _LENGTHS])[0], len(wanted))
    if not set(wanted) & set(_SPATIAL):
        wanted.append(rng.choice(_SPATIAL))
    have = {kind: len(subject.lines["side" if kind in ("left", "right") else kind]) for kind in _MOST}
    while len(wanted) < length:
        weights = {kind: _WEIGHTS[kind] for kind, most in _MOST.items() if wanted.count(kind) < min(most, have[kind])}
        if not weights:
            break
        wanted.append(rng.choices(list(weights), list(weights.values()))[0])
    return wanted


def _before(text: str) -> str:
    """A sentence of the background as it is said when the subject has no name yet."""
    return text.replace("Behind <>", "In the background").replace("behind <>", "in the background")
