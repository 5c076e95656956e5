"""One prompt from a lexicon: draw the content, choose a shot that it allows, say it.

`compose(seed, index)` is a pure function of its arguments and the lexicon: a million candidates can be drawn anywhere, in any order.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from world_r1_prompts.grammar import sentences as say
from world_r1_prompts.grammar import shots
from world_r1_prompts.grammar.english import Clause, articles, clause, dressed, noun_of
from world_r1_prompts.grammar.lexicon import Lexicon, Scene, Subject, head_of, plural_subject
from world_r1_prompts.record import Record

GENERATOR = "world_r1_prompts.grammar/1"
#: Sentences behind the opening, and their weight: short, middling and long prompts.
#: How often a noun that stands bare gets an adjective of its scene.
_DRESS = 0.45
_LENGTHS = ((1, 0.1), (2, 0.3), (3, 0.35), (4, 0.25))


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


def compose(lexicon: Lexicon, camera: CameraLanguage, seed: int, index: int, weights: dict[str, float]) -> Record:
    """Candidate `index` of a run. `weights`: how often each category is drawn."""
    rng = random.Random(f"world-r1 prompts {seed} {index}")
    category = rng.choices(list(weights), list(weights.values()))[0]
    scene = rng.choice(lexicon.scenes[category])
    subject = rng.choice(scene.subjects)
    filled = [slot for slot in ("near", "far", "above", "ground") if scene.items[slot]] + ["details"]
    filled += ["left", "right"] if len(scene.items["side"]) > 1 else []
    shot = shots.draw(subject.flags, filled, scene.kind, rng, camera.motions)
    draft = _draft(lexicon, scene, subject, rng)
    base = articles(_body(draft, shot, rng))
    sentence = camera.write(shot.plan, rng, draft.the)
    text = f"{base} {sentence}" if rng.random() < 0.15 else f"{sentence} {base}"
    return Record(
        id=f"c{index:07d}",
        split="",
        category=category,
        subcategory=scene.name,
        kind=scene.kind,
        base=base,
        text=text,
        camera=camera.read(sentence),
        source=f"grammar:{subject.key}",
        generator=GENERATOR,
        quality={"words": len(text.split()), "difficulty": shot.difficulty},
    )


def _draft(lexicon: Lexicon, scene: Scene, subject: Subject, rng: random.Random) -> say.Draft:
    """Content drawn for one prompt; no item twice."""

    def some(lines: Sequence[str], count: int, dress: float = 0.0) -> list[Clause]:
        """Clauses whose nouns were not named before."""
        drawn: list[Clause] = []
        for line in rng.sample(lines, min(count + 2, len(lines))):
            item = lexicon.clause(line, rng)
            if len(drawn) < count and not (words := {noun_of(item.noun).removesuffix("s")} - {""}) & named:
                named.update(words)
                drawn.append(item)
        return [Clause(dressed(item.noun, fitting(item.finite)), item.rest) if rng.random() < dress else item for item in drawn]

    def fitting(text: str) -> str:
        """An adjective whose parts the text has not said yet; "" if none is left."""
        for look in looks:
            if not any(part[:5] in text for part in look.split("-")):
                looks.remove(look)
                return look
        return ""

    looks = rng.sample(scene.looks, min(4, len(scene.looks)))  # none twice in a prompt
    dress = _DRESS if scene.kind == "rigid" else 0.0  # what moves is often no thing: a shadow, rain
    phrase, head = head_of(lexicon.fill(subject.phrase, rng))
    if rng.random() < 1.5 * dress:
        phrase = articles(dressed(phrase, fitting(phrase), compound=True))
    place = lexicon.fill(rng.choice(subject.places), rng)
    named = {word.strip(",").removesuffix("s") for word in f"{phrase} {place}".lower().split()}
    sides = some(scene.items["side"], 2, dress)
    pool = rng.choice(scene.light)
    if pool not in lexicon.light:
        raise ValueError(f"{subject.key}: no light pool named {pool!r}; there are {', '.join(sorted(lexicon.light))}")
    lines = lexicon.light[pool]
    whens = [line[1:].strip() for line in lines if line.startswith("@")]
    lights = rng.sample([line for line in lines if not line.startswith("@")], 1)
    return say.Draft(
        rng=rng,
        subject=phrase,
        head=head,
        plural=plural_subject(phrase),
        place=place,
        space=scene.space,
        details=[clause(lexicon.fill(text, rng)) for text in rng.sample(subject.details, len(subject.details))],
        near=some(scene.items["near"], 2, dress),
        left=sides[:1],
        right=sides[1:],
        far=some(scene.items["far"], 2),
        above=some(scene.items["above"], 1),
        ground=some(scene.items["ground"], 1),
        light=[lexicon.clause(line, rng) for line in lights],
        when=rng.choice(whens) if whens and rng.random() < 0.5 else "",
    )


def _body(d: say.Draft, shot: shots.Shot, rng: random.Random) -> str:
    """Opening, what the shot must show, and more until the drawn length."""
    needed = list(dict.fromkeys(slot for move in shot.moves for slot in shots.SHOWS[move]))
    before = {slot: len(getattr(d, slot)) for slot in ("details", "near", "far", "left", "right", "above", "ground")}
    out = [say.opening(d)]
    missing = [slot for slot in needed if len(getattr(d, slot)) == before[slot] and before[slot]]
    length = max(rng.choices([n for n, _ in _LENGTHS], [w for _, w in _LENGTHS])[0], len(missing))
    extra = [slot for slot in ("details", "near", "far", "left", "right", "above", "ground", "light") if slot not in missing]
    rng.shuffle(extra)
    wanted = missing + [slot for slot in extra if getattr(d, slot)][: length - len(missing)]
    rng.shuffle(wanted)
    if "light" in wanted and rng.random() < 0.6:  # light mostly comes last
        wanted.remove("light")
        wanted.append("light")
    if "details" in wanted and rng.random() < 0.6:  # details mostly follow the subject
        wanted.remove("details")
        wanted.insert(0, "details")
    if "left" in wanted and "right" in wanted:
        wanted.remove("right")
        wanted[wanted.index("left")] = "both"
    for slot in wanted:
        if sentence := _sentence(d, slot, close=len(out) == 1):
            out.append(sentence)
    return say.finish(out, rng)


def _sentence(d: say.Draft, slot: str, close: bool) -> str:
    if slot == "both":
        return say.both_sides(d) if d.left and d.right else _sentence(d, "left" if d.left else "right", close)
    if not getattr(d, slot):
        return ""
    if slot in ("left", "right"):
        return say.side(d, slot)
    if slot == "details":
        return say.detail(d, close)
    return {"near": say.near, "far": say.far, "above": say.above, "ground": say.ground, "light": say.light}[slot](d)
