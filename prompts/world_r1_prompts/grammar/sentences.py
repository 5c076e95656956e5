"""Sentences from clauses. A `Draft` holds what a prompt will say; the functions here say it, each piece once.

Every frame is a way to say one relation; the caller chooses the order. Nothing here draws content.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass

from world_r1_prompts.grammar.english import Clause, capital, owned, predicate

#: Places of the foreground, of a side and of the background, by the kind of space.
NEAR = {
    "outdoor": (
        "in the foreground",
        "close by",
        "nearest of all",
        "at the front",
        "a few steps in front",
        "up close",
    ),
    "indoor": ("in the foreground", "close by", "at the front", "nearest of all", "just inside", "up close"),
    "table": ("in the foreground", "at the front", "nearest of all", "a finger's width in front", "close by", "just in front"),
}
FAR = {
    "outdoor": (
        "in the distance",
        "in the background",
        "far behind",
        "further off",
        "well behind",
        "beyond",
        "at the back of the view",
    ),
    "indoor": ("at the back", "in the background", "further in", "behind", "deeper inside", "at the far end"),
    "table": (
        "in the background",
        "further back",
        "behind",
        "out of focus behind",
        "a hand's breadth behind",
        "softly at the back",
    ),
}
SIDE = (
    "to the {}",
    "on the {}",
    "off to the {}",
    "over on the {}",
    "at the {} edge",
    "to the {} of the {head}",
    "{} of the {head}",
)
SIDE_PAIRS = (
    ("on the left", "on the right"),
    ("to the left", "to the right"),
    ("to the left of the {head}", "to its right"),
    ("at the left edge", "at the right edge"),
)
ABOVE = {
    "outdoor": ("overhead", "high above", "above the {head}", "up above", "over the {head}"),
    "indoor": ("overhead", "up above", "above the {head}", "near the ceiling", "high up"),
    "table": ("above the {head}", "overhead", "just above"),
}
GROUND = {
    "outdoor": ("underfoot", "below", "all around", "at ground level", "around the {head}"),
    "indoor": ("underfoot", "below", "at floor level", "around the {head}"),
    "table": ("underneath", "below", "all around", "around the {head}"),
}
_VERTICAL = frozenset(("underfoot", "below", "overhead", "above", "underneath", "beneath"))
_SMALL = frozenset(("a", "an", "the", "of", "in", "at", "on", "to", "by", "just", "all", "and"))
_PREPOSITIONS = frozenset(
    ("on", "in", "at", "to", "by", "with", "over", "under", "into", "from", "behind", "around", "along",
     "across", "beneath", "beside", "between", "through", "above", "onto", "up", "against")
)  # fmt: skip
#: Verbs that may stand before their subject.
_INVERTS = frozenset(
    ("stands", "sits", "lies", "rises", "hangs", "rests", "leans", "grows", "waits",
     "floats", "looms", "towers", "crouches", "perches", "nestles", "sprawls", "clings")
)  # fmt: skip
_POSSESSIVE = re.compile(r"\b(its|his|her|their) ")
_LOCATIVE = re.compile(
    r"^(on|in|at|beside|beneath|above|under|among|between|along|against|over|inside|near|behind|amid|atop|below|across|deep)\b"
)


@dataclass
class Draft:
    """The drawn content of one prompt; frames take from it."""

    rng: random.Random
    subject: str
    head: str
    plural: bool
    #: "+stands on a granite islet".
    place: str
    space: str
    details: list[Clause]
    near: list[Clause]
    left: list[Clause]
    right: list[Clause]
    far: list[Clause]
    above: list[Clause]
    ground: list[Clause]
    light: list[Clause]
    #: "at first light", or "".
    when: str = ""
    #: Whether "its" in the next sentence can only be the subject's.
    clear: bool = True

    @property
    def the(self) -> str:
        return f"the {self.head}"

    @property
    def main(self) -> str:
        """ "a squat lighthouse stands on a granite islet"."""
        return f"{self.subject} {predicate(self.place, self.plural)}"

    def own(self, clause: Clause) -> Clause:
        """A detail with "its" turned into "their" for a plural subject."""
        if not self.plural:
            return clause
        return Clause(_POSSESSIVE.sub("their ", clause.noun, count=1), _POSSESSIVE.sub("their ", clause.rest, count=1))

    def named(self, clause: Clause) -> Clause:
        """A detail whose possessive names the subject, for sentences that stand apart from it."""
        owner = owned(self.head, self.plural)
        if _POSSESSIVE.match(clause.noun):
            return Clause(f"{owner} {clause.noun.partition(' ')[2]}", clause.rest)
        return Clause(clause.noun, _POSSESSIVE.sub(f"{owner} ", clause.rest, count=1))

    def spot(self, options: tuple[str, ...]) -> str:
        """One of the place phrases, with the subject's name filled in."""
        return self.rng.choice(options).format("left", head=self.head)


def opening(d: Draft) -> str:
    """The first sentence: the subject in its place, told in one of a dozen ways."""
    ways = [_plain] * 4 + [_apart, _apart, _light_first, _when_first]
    verb, _, place = d.place[1:].partition(" ")
    if verb in _INVERTS and _LOCATIVE.match(place):
        ways += [_inverted, _inverted]
    if d.near:
        ways += [_beyond, _beyond, _near_first, _near_first]
    if d.far:
        ways += [_far_first, _against, _against]
    if d.left and d.right:
        ways += [_between, _flanked]
    if d.left or d.right:
        ways += [_beside, _beside]
    if d.ground:
        ways += [_ground_first]
    for _ in range(8):
        sentence = d.rng.choice(ways)(d)
        if sentence:
            return sentence
    return _plain(d)


def _attach(d: Draft, chance: float = 0.75) -> str:
    """Details as absolute clauses behind the main clause: ", its gallery streaked with rust"."""
    if not d.details or d.rng.random() > chance:
        return ""
    first = d.own(d.details.pop()).absolute
    if d.details and d.rng.random() < 0.4:
        return f", {first} and {d.own(d.details.pop()).absolute}"
    return f", {first}"


def _plain(d: Draft) -> str:
    return d.main + _attach(d)


def _apart(d: Draft) -> str:
    """Subject, absolute detail, predicate."""
    if not d.details or "," in d.subject or len(d.details[-1].absolute.split()) > 9:
        return ""
    return f"{d.subject}, {d.own(d.details.pop()).absolute}, {predicate(d.place, d.plural)}"


def _inverted(d: Draft) -> str:
    verb, _, place = d.place[1:].partition(" ")
    return f"{place} {predicate('+' + verb, d.plural)} {d.subject}" + _attach(d)


def _light_first(d: Draft) -> str:
    if not d.light:
        return ""
    light = d.light.pop()
    if d.rng.random() < 0.5:
        return f"with {light.absolute}, {d.main}"
    return f"{light.finite}{d.rng.choice((', and', ';'))} {d.main}"


def _when_first(d: Draft) -> str:
    if not d.when:
        return ""
    when, d.when = d.when, ""
    return f"{when}, {d.main}" + _attach(d)


def _beyond(d: Draft) -> str:
    word = d.rng.choice(("beyond", "behind", "past"))
    near = d.near[-1]
    if len(near.noun.split()) > 9 or near.noun.startswith(("its ", "the only")):
        return ""
    d.near.pop()
    return f"{word} {near.noun}, {d.main}" + _attach(d)


def _near_first(d: Draft) -> str:
    near = d.near.pop()
    pronoun = "them" if near.plural else "it"
    link = d.rng.choice((f", and behind {pronoun}", f"; beyond {pronoun}", f", and just past {pronoun}", f"; behind {pronoun}"))
    return f"{near.finite}{_spot(d, NEAR, near)}{link}, {d.main}"


def _far_first(d: Draft) -> str:
    far = d.far.pop()
    closer = d.rng.choice(("nearer", "closer", "in front", "this side of it", "much closer", "in the middle distance"))
    closer = "this side of them" if far.plural and closer == "this side of it" else closer
    return f"{far.finite}{_spot(d, FAR, far)}; {closer}, {d.main}"


def _spot(d: Draft, names: Mapping[str, tuple[str, ...]], item: Clause) -> str:
    """A place behind a short predicate; none where the predicate says places itself."""
    short = len(item.rest.split()) <= 3 and not set(item.rest.split()) & _PREPOSITIONS
    return f" {d.spot(names[d.space][:3])}" if short else ""


def _flanked(d: Draft) -> str:
    """The subject with what stands to both sides of it, in one breath."""
    left, right = d.left[-1], d.right[-1]
    if len(left.absolute.split()) + len(right.absolute.split()) > 18:
        return ""
    d.left.pop(), d.right.pop()
    d.clear = False
    return f"{d.main}, with {left.absolute} to the left and {right.absolute} to the right"


def _against(d: Draft) -> str:
    far = d.far[-1]
    if len(far.noun.split()) > 8 or far.rest.startswith("+") or not far.noun.startswith(("a ", "an ", "the ")):
        return ""
    d.far.pop()
    return f"{d.rng.choice(('against', 'before'))} {far.noun}, {d.main}" + _attach(d)


def _between(d: Draft) -> str:
    left, right = d.left[-1], d.right[-1]
    if len(left.noun.split()) + len(right.noun.split()) > 13:
        return ""
    d.left.pop(), d.right.pop()
    return f"between {left.noun} on the left and {right.noun} on the right, {d.main}" + _attach(d, 0.5)


def _beside(d: Draft) -> str:
    side, items = d.rng.choice([pair for pair in (("left", d.left), ("right", d.right)) if pair[1]])
    if len(items[-1].noun.split()) > 9 or len(d.place.split()) > 8:
        return ""
    other = "right" if side == "left" else "left"
    where = d.rng.choice((f"{other} of", f"just {other} of", f"a little to the {other} of"))
    d.clear = False
    return f"{d.main}, {where} {items.pop().noun}"


def _ground_first(d: Draft) -> str:
    return f"{d.ground.pop().finite}{d.rng.choice((', and', ';'))} {d.main}"


def placed(d: Draft, where: str, item: Clause) -> str:
    """A clause with its place: in front of it, behind it, or as an existential ("to the left is a wall stained by damp")."""
    draw = d.rng.random()
    if _says_where(item, where):
        return item.finite
    if draw < 0.4 and len(item.rest.split()) <= 4 and not set(item.rest.replace("+", "").split()) & _PREPOSITIONS:
        return f"{item.finite} {where}"
    if draw < 0.65:
        return f"{where} {'are' if item.plural else 'is'} {item.tight}"
    return f"{where}, {item.finite}"


def _says_where(item: Clause, where: str) -> bool:
    """Whether the clause already has the place, or another one of up and down."""
    said, asked = set(item.finite.split()), set(where.split())
    return bool((said & asked) - _SMALL or (said & _VERTICAL and asked & _VERTICAL))


def near(d: Draft) -> str:
    return placed(d, d.spot(NEAR[d.space]), d.near.pop())


def far(d: Draft) -> str:
    item = d.far.pop()
    where = d.spot((*FAR[d.space], "behind the {head}", "beyond the {head}"))
    return placed(d, where, item)


def side(d: Draft, which: str) -> str:
    where = d.rng.choice(SIDE).format(which, head=d.head)
    return placed(d, where, (d.left if which == "left" else d.right).pop())


def both_sides(d: Draft) -> str:
    one, other = d.rng.choice(SIDE_PAIRS)
    link = d.rng.choice(("; {}, ", ", while {} ", ", and {} "))
    left, right = d.left.pop(), d.right.pop()
    return f"{one.format(head=d.head)}, {left.finite}{link.format(other)}{right.finite}"


def above(d: Draft) -> str:
    return placed(d, d.spot(ABOVE[d.space]), d.above.pop())


def ground(d: Draft) -> str:
    item = d.ground.pop()
    where = d.spot(GROUND[d.space])
    return item.finite if _says_where(item, where) or d.rng.random() < 0.5 else f"{where}, {item.finite}"


def light(d: Draft) -> str:
    return d.light.pop().finite


def detail(d: Draft, close: bool) -> str:
    """One or two details; `close`: the subject was named in the sentence before, so "its" is clear."""
    how = d.own if close and d.clear and d.rng.random() < 0.6 else d.named
    item = d.details.pop()
    first = how(item).finite
    if d.details and d.rng.random() < 0.45:
        second = (d.own if _POSSESSIVE.match(item.noun) else d.named)(d.details.pop()).finite
        return f"{first}{d.rng.choice((', and ', '; ', ', while '))}{second}"
    return first


def finish(sentences: list[str], rng: random.Random) -> str:
    """Sentences as running text, some joined, some with the light hung behind them."""
    out: list[str] = []
    for sentence in sentences:
        simple = ";" not in sentence and ", and" not in sentence and ", while" not in sentence
        joins = len(out) > 1 and simple and ";" not in out[-1] and " while " not in out[-1] and rng.random() < 0.22
        if joins and len(out[-1].split()) + len(sentence.split()) <= 26:
            out[-1] += rng.choice(("; ", ", and ", ", while ")) + sentence
            continue
        out.append(sentence)
    return " ".join(capital(text) + "." for text in out)
