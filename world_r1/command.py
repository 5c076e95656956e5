"""Camera commands in words: a small grammar from English to segments of simultaneous moves, and back.

A prompt mixes a camera with a scene ("The camera pushes in while a red box moves to the left."), so camera words are read from two kinds
of places only: after a camera subject ("the camera ...", "Camera ...", "a static shot"), and from a sentence that is made of nothing but
camera phrases ("Orbit left, then push in."). Everything else is scene and never a command.

    text      = sentences; those that command follow each other in time, an identical restatement is ignored
    chain     = [lead] [subject] phrase (joint [subject] phrase)*
    joint     = sequential (", then", ",", "followed by", "transitioning into a", ...) | simultaneous ("and", "while", "as", ...)
    phrase    = [article] manner* verb manner* direction manner* [object]  |  a way to say that nothing moves
    object    = "toward the red box", "around it", ...: skipped

The verbs, directions and manners are tables: new words are new entries.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

MOTIONS = (
    "fixed",
    "push in",
    "pull out",
    "move left",
    "move right",
    "move up",
    "move down",
    "pan left",
    "pan right",
    "tilt up",
    "tilt down",
    "orbit left",
    "orbit right",
)

#: Adverb of the canonical text -> factor on the amplitude.
SPEEDS: Mapping[str, float] = {"": 1.0, "slowly": 0.6, "quickly": 1.35}

_AXES = ("fixed", "push pull", "move left right", "move up down", "pan", "tilt", "orbit")


def axis(move: str) -> str:
    """The degree of freedom that a motion uses; two moves of one axis cannot happen at the same time. ValueError for an unknown motion."""
    if move not in MOTIONS:
        raise ValueError(f"{move!r} is no camera motion; known are {', '.join(MOTIONS)}")
    verb, _, direction = move.partition(" ")
    if verb == "move":
        return "move left right" if direction in ("left", "right") else "move up down"
    return next(name for name in _AXES if verb in name.split())


@dataclass(frozen=True)
class Segment:
    """One stretch of time: the moves that happen together, and their speed factor.

    Example: `Segment(("push in", "tilt up"), 0.6)`. ValueError for unknown, repeated or contradictory moves and other speeds than `SPEEDS`.
    """

    moves: tuple[str, ...]
    speed: float = 1.0

    def __post_init__(self) -> None:
        axes = [axis(move) for move in self.moves]
        if not axes or len(set(axes)) < len(axes) or ("fixed" in axes and len(axes) > 1):
            raise ValueError(
                f"the moves of one segment must be compatible, got {self.moves}; put contradictory moves into two segments"
            )
        if self.speed not in SPEEDS.values() or ("fixed" in axes and self.speed != 1.0):
            raise ValueError(
                f"a segment's speed is one of {sorted(SPEEDS.values())} (1.0 for 'fixed'), got {self.speed} for {self.moves}"
            )

    @property
    def text(self) -> str:
        """Canonical text, for example "push in and tilt up slowly"."""
        manner = next(word for word, factor in SPEEDS.items() if factor == self.speed)
        return " and ".join(self.moves) + (f" {manner}" if manner else "")


@dataclass(frozen=True)
class Command:
    """Segments one after the other. Example: `Command((Segment(("push in",)), Segment(("pan left",))))`; ValueError without segments."""

    segments: tuple[Segment, ...]

    def __post_init__(self) -> None:
        if not self.segments:
            raise ValueError("a camera command needs at least one segment; 'fixed' is the command not to move")

    @property
    def text(self) -> str:
        """Canonical text, for example "push in and tilt up slowly, then pan left"; `parse` reads it back."""
        return ", then ".join(segment.text for segment in self.segments)


# ---- vocabulary

_SIDES = {"left": "move left", "right": "move right"}
_IN_OUT = {"in": "push in", "out": "pull out"}
_LEVEL = {"up": "move up", "down": "move down"}
_TURN = {"left": "pan left", "right": "pan right", "up": "tilt up", "down": "tilt down"}
_ROUND = {"left": "orbit left", "right": "orbit right"}
_ALL = _SIDES | _IN_OUT | _LEVEL

#: Verb -> motion by direction ("" = no direction named).
_VERBS: dict[str, dict[str, str]] = {
    "push": _IN_OUT | {"out": "pull out"},
    "pull": {"out": "pull out"},
    "dolly": _IN_OUT | _SIDES,
    "truck": _SIDES,
    "track": _SIDES | _IN_OUT,
    "slide": _SIDES,
    "strafe": _SIDES,
    "pedestal": _LEVEL,
    "crane": _LEVEL,
    "boom": _LEVEL,
    "move": _ALL,
    "glide": _ALL,
    "drift": _ALL,
    "travel": _ALL,
    "rise": {"": "move up", "up": "move up"},
    "ascend": {"": "move up", "up": "move up"},
    "descend": {"": "move down", "down": "move down"},
    "sink": {"": "move down", "down": "move down"},
    "advance": {"": "push in", "in": "push in"},
    "retreat": {"": "pull out", "out": "pull out"},
    "pan": _TURN,
    "turn": _TURN,
    "rotate": _TURN,
    "swivel": _TURN,
    "look": _TURN,
    "tilt": {"up": "tilt up", "down": "tilt down"},
    "orbit": _ROUND,
    "circle": _ROUND,
    "revolve": _ROUND,
}
#: Verbs that speak of a camera whoever says them; the others need a camera subject or an imperative.
_CAMERA_ONLY = {"push", "pull", "dolly", "truck", "pedestal", "pan", "tilt", "orbit"}

_DIRECTIONS = {
    "left": ("left", "leftward", "leftwards"),
    "right": ("right", "rightward", "rightwards"),
    "up": ("up", "upward", "upwards"),
    "down": ("down", "downward", "downwards"),
    "in": ("in", "inward", "inwards", "forward", "forwards", "closer", "ahead"),
    "out": ("out", "outward", "outwards", "back", "backward", "backwards", "away"),
}
_DIRECTION = {word: name for name, words in _DIRECTIONS.items() for word in words}
_MANNERS: dict[str, float | None] = (
    dict.fromkeys(("slowly", "slow", "gently", "gentle", "gradually", "gradual", "leisurely"), SPEEDS["slowly"])
    | dict.fromkeys(("quickly", "quick", "rapidly", "rapid", "fast", "swiftly", "swift"), SPEEDS["quickly"])
    | dict.fromkeys(("smoothly", "smooth", "steadily", "straight", "simply", "very", "slightly", "also", "simultaneously", "again"))
)
_STILL = {"fixed", "static", "still", "stationary", "motionless", "immobile", "locked", "unmoving", "put"}
_STAY = {
    "is",
    "stays",
    "stay",
    "staying",
    "remains",
    "remain",
    "remaining",
    "keeps",
    "keep",
    "holds",
    "hold",
    "stands",
    "be",
    "being",
}
_NO_MOTION = (
    "does not move", "doesn't move", "do not move", "don't move", "is not moving", "isn't moving", "never moves", "not moving", "does not change",
)  # fmt: skip
_NOUNS = {"shot", "view", "camera", "frame", "framing"}
_AUXILIARIES = {
    "is",
    "will",
    "starts",
    "begins",
    "continues",
    "keeps",
    "now",
    "to",
    "by",
    "should",
    "must",
    "then",
    "first",
    "finally",
}
_OBJECT_STARTS = {
    "toward", "towards", "on", "onto", "into", "to", "around", "round", "across", "along", "over", "past", "through", "from", "about", "at", "above",
    "behind", "for", "of", "with", "by", "between", "beside", "below", "under", "in", "without",
}  # fmt: skip
#: Words that may start another clause: an object never runs across them.
_BARRIERS = {",", ":", "while", "as", "when", "where", "which", "who", "that", "until", "whose", "because", "if", "but", "whilst"}
#: After these words "the camera" is an object of the sentence, not its subject.
_GOVERNS = {
    "of", "to", "at", "from", "toward", "towards", "past", "behind", "near", "by", "on", "under", "over", "beside", "before", "into", "around", "like",
    "holding", "carrying", "holds", "carries", "facing", "faces", "against", "through", "across", "above", "below", "for", "off", "in", "inside",
}  # fmt: skip
_SEQUENTIAL = (
    ", and then", ", then", "and then", "then", ", followed by", "followed by", ", transitioning into", "transitioning into", ", transitions into",
    "transitions into", ", before", "before", ", after which", "after which", ", next", "and finally", ", and finally", ", finally", ",",
)  # fmt: skip
_SIMULTANEOUS = (
    ", and simultaneously", "and simultaneously", ", simultaneously", "simultaneously", "and at the same time", ", while", "while", ", whilst", "whilst",
    ", as", "as", ", and", "and", "combined with", "together with", "plus",
)  # fmt: skip
_JOINTS = sorted(
    [(tuple(text.split()), False) for text in _SEQUENTIAL] + [(tuple(text.split()), True) for text in _SIMULTANEOUS],
    key=lambda j: -len(j[0]),
)
_LEADS = {"first", "then", "next", "finally", "afterwards"}


def _forms(verb: str) -> dict[str, str]:
    """Inflected word -> "base", "third" or "participle"."""
    stem = verb[:-1] if verb.endswith("e") else verb + verb[-1] if verb == "pan" else verb
    third = verb[:-1] + "ies" if verb.endswith("ly") else verb + ("es" if verb.endswith("sh") else "s")
    return {verb: "base", third: "third", stem + "ing": "participle"}


_VERB = {word: (verb, form) for verb in _VERBS for word, form in _forms(verb).items()}


# ---- reading


def parse(text: str) -> Command | None:
    """The camera command of a prompt, or None when it names none. Case, hyphens and line breaks do not matter.

    `parse(command.text) == command` for every command.
    """
    steps: list[_Step] = []
    follows = False
    for sentence in re.split(r"[.!?;\n]+", text.lower().replace("-", " ").replace("\u2019", "'")):
        tokens = tuple(re.findall(r"[a-z]+(?:'[a-z]+)?|[,:()]|\d+", sentence))
        if not tokens:
            continue
        found, follows = _Sentence(tokens).read(follows)
        if found and [s.key for s in found] != [s.key for s in steps]:
            steps += found
    return Command(tuple(step.segment() for step in steps)) if steps else None


@dataclass
class _Step:
    """A segment under construction."""

    moves: list[str]
    speed: float | None

    def join(self, moves: list[str], speed: float | None) -> bool:
        """Take moves into this segment; False if they contradict those that are there."""
        here, new = [m for m in self.moves if m != "fixed"], [m for m in moves if m != "fixed" and m not in self.moves]
        if {axis(move) for move in here} & {axis(move) for move in new}:
            return False
        self.moves = here + new or ["fixed"]
        self.speed = self.speed if self.speed is not None else speed
        return True

    def segment(self) -> Segment:
        return Segment(tuple(self.moves), 1.0 if self.speed is None or self.moves == ["fixed"] else self.speed)

    @property
    def key(self) -> Segment:
        return self.segment()


@dataclass
class _Phrase:
    moves: list[str]
    speed: float | None
    end: int
    #: "base", "third", "participle", "state"; and the verb ("" for a state).
    form: str
    verb: str = ""
    #: True if the words themselves name the camera ("a static shot").
    explicit: bool = False
    #: End of the object that follows, `end` if there is none.
    reach: int = 0


@dataclass
class _Chain:
    steps: list[_Step]
    end: int
    explicit: bool
    head: _Phrase
    objects: bool = False
    phrases: list[_Phrase] = field(default_factory=list)


class _Sentence:
    """Recursive descent over the words of one sentence; every method takes a position and returns what it found there or None."""

    def __init__(self, tokens: tuple[str, ...]) -> None:
        self.tokens = tokens

    def at(self, i: int) -> str:
        return self.tokens[i] if 0 <= i < len(self.tokens) else ""

    def words(self, i: int, *expected: str) -> bool:
        return self.tokens[i : i + len(expected)] == expected

    def read(self, follows: bool) -> tuple[list[_Step], bool]:
        """Steps of all commands in the sentence; whether a following "it" or "then" may speak of the camera.

        `follows`: the sentence before was about the camera.
        """
        steps: list[_Step] = []
        i = 0
        while i < len(self.tokens):
            chain = self.chain(i, follows and i == 0)
            if chain is None:
                i += 1
            else:
                steps += chain.steps
                i = max(chain.end, i + 1)
        return steps, bool(steps)

    def chain(self, i: int, follows: bool) -> _Chain | None:
        """A run of camera phrases that starts at i, if it is allowed to be a command there."""
        start = i
        while i == start == 0 and self.at(i) in _LEADS:
            i = start = i + 1 + (self.at(i + 1) == ",")
            if self.at(i) not in _LEADS:
                break
        subject = self.subject(i)
        pronoun = subject is None and follows and self.at(i) == "it"
        if subject is None and not pronoun and start != i:
            return None
        begin = subject if subject is not None else i + 1 if pronoun else i
        head = self.predicate(begin, subject is not None or pronoun)
        if head is None or (subject is None and not pronoun and i != start):
            return None
        if self.at(i - 1) == "with" and subject is not None and head.form in ("base", "third"):
            return None
        chain = self.extend(head, subject is not None or head.explicit)
        if chain.explicit and (subject is not None or head.explicit or self.opens(start)):
            return chain
        if not self.opens(start) or chain.end < len(self.tokens):
            return None
        return chain if pronoun or self.imperative(chain) else None

    def opens(self, i: int) -> bool:
        """Whether i is the first word of the sentence, leads aside."""
        return all(token in _LEADS or token == "," for token in self.tokens[:i])

    def imperative(self, chain: _Chain) -> bool:
        """Whether phrases without any camera subject can only be meant for the camera."""
        if chain.head.form == "state":
            return len(chain.phrases) > 1 or chain.end == chain.head.end
        if chain.head.form == "base":
            return True
        return chain.head.verb in _CAMERA_ONLY and not chain.objects

    def subject(self, i: int) -> int | None:
        """Position after "the camera", "Camera:", "camera movement is"; None if there is no camera subject at i."""
        if self.at(i) in ("the", "our", "this") and self.at(i + 1) == "camera":
            if self.at(i - 1) in _GOVERNS:
                return None
            i += 2
        elif self.at(i) == "camera" and (i == 0 or self.at(i - 1) in _BARRIERS | _LEADS | {"(", ")", "and", "with"}):
            i += 1
        else:
            return None
        i += self.at(i) in ("movement", "motion", "move", "work") and (self.at(i + 1) in (":", "is") or self.phrase(i) is None)
        return i + (self.at(i) == ":")

    def predicate(self, i: int, subject: bool) -> _Phrase | None:
        """A phrase after an optional auxiliary ("is slowly panning", "starts to pan")."""
        while (phrase := self.phrase(i, subject)) is None and subject and self.at(i) in _AUXILIARIES:
            i += 1
        return phrase

    def phrase(self, i: int, subject: bool = False) -> _Phrase | None:
        found = self.still(i, subject) or self.motion(i)
        if found is not None:
            found.reach = self.object_end(found.end)
        return found

    def motion(self, i: int) -> _Phrase | None:
        """One move: "slowly pans to the left", "a gentle push in", "leftward pan"."""
        noun = self.at(i) in ("a", "an", "the")
        i, before = self.manner(i + noun)
        early = _DIRECTION.get(self.at(i)) if self.at(i + 1) in _VERBS else None
        i += early is not None
        verb, form = _VERB.get(self.at(i), ("", ""))
        if not verb or (noun and form != "base"):
            return None
        i, middle = self.manner(i + 1)
        direction, i = (early, i) if early else self.direction(i)
        move = _VERBS[verb].get(direction or "")
        if move is None:
            return None
        i, after = self.manner(i)
        i += self.at(i) in ("shot", "movement", "motion", "move")
        speed = next((value for value in (before, middle, after) if value is not None), None)
        moves = [move]
        if self.at(i) == "and" and move.startswith("move"):  # "moves up and to the left"
            second, end = self.direction(i + 1)
            other = _VERBS[verb].get(second or "")
            if other and axis(other) != axis(move):
                i, late = self.manner(end)
                moves, speed = [move, other], speed if speed is not None else late
        return _Phrase(moves, speed, i, form, verb)

    def manner(self, i: int) -> tuple[int, float | None]:
        """Skip adverbs and adjectives of manner; the first that names a speed counts."""
        speed: float | None = None
        while self.at(i) in _MANNERS or (self.at(i) == "and" and self.at(i + 1) in _MANNERS and self.at(i - 1) in _MANNERS):
            speed = speed if speed is not None else _MANNERS.get(self.at(i))
            i += 1
        return i, speed

    def direction(self, i: int) -> tuple[str | None, int]:
        """ "left", "to the left", "toward the right", "upward": direction and position behind it."""
        if self.at(i) in ("to", "toward", "towards") and self.at(i + 1) == "the" and self.at(i + 2) in ("left", "right"):
            return self.at(i + 2), i + 3
        word = _DIRECTION.get(self.at(i))
        return (word, i + 1) if word else (None, i)

    def still(self, i: int, subject: bool) -> _Phrase | None:
        """A way to say that the camera does not move."""
        for words in ("no camera movement", "no camera motion", "without camera movement", "without camera motion"):
            if self.words(i, *words.split()):
                return _Phrase(["fixed"], None, i + 3, "state", explicit=True)
        if self.words(i, "no", "movement") or self.words(i, "no", "motion"):
            return _Phrase(["fixed"], None, i + 2, "state") if subject else None
        for words in _NO_MOTION:
            if subject and self.words(i, *words.split()):
                return _Phrase(["fixed"], None, i + len(words.split()), "state")
        article = self.at(i) in ("a", "an", "the")
        j = i + article
        if self.at(j) in _STILL and self.at(j + 1) == "off":
            j += 1
        if (self.at(j) in _STILL or self.at(j) == "off") and self.at(j + 1) in _NOUNS:
            allowed = i == 0 or self.at(i - 1) in {",", ":", "with", "from", "(", "is", "then"}
            return _Phrase(["fixed"], None, j + 2, "state", explicit=True) if allowed else None
        stays = self.at(i) in _STAY
        j, _ = self.manner(i + stays)
        j += self.at(j) in ("completely", "perfectly", "absolutely", "entirely")
        if self.at(j) in _STILL and (subject or stays or self.at(j) in ("fixed", "static")):
            return _Phrase(["fixed"], None, j + 1 + (self.at(j + 1) in ("in", "off") and self.at(j + 1) != "in"), "state")
        if stays and (self.words(j, "in", "place") or self.words(j, "at", "rest")):
            return _Phrase(["fixed"], None, j + 2, "state")
        return None

    def object_end(self, i: int) -> int:
        """End of an object ("toward the red box") that starts at i: the next joint with a phrase, a barrier, or the end; i if there is none."""
        if self.at(i) not in _OBJECT_STARTS:
            return i
        j = i + 1
        while j < len(self.tokens) and self.at(j) not in _BARRIERS and self.joint(j, objects=True) is None:
            j += 1
        return j

    def extend(self, head: _Phrase, explicit: bool) -> _Chain:
        """Append joined phrases for as long as they are camera phrases."""
        chain = _Chain([_Step(list(head.moves), head.speed)], head.reach, explicit, head, head.reach > head.end, [head])
        behind_object = head.reach > head.end
        while (found := self.joint(chain.end, behind_object, explicit=chain.explicit)) is not None:
            phrase, together, named = found
            if not (together and chain.steps[-1].join(phrase.moves, phrase.speed)):
                chain.steps.append(_Step(list(phrase.moves), phrase.speed))
            behind_object = phrase.reach > phrase.end
            chain.end, chain.explicit = phrase.reach, chain.explicit or named or phrase.explicit
            chain.objects = chain.objects or behind_object
            chain.phrases.append(phrase)
        return chain

    def joint(self, i: int, objects: bool, explicit: bool = True) -> tuple[_Phrase, bool, bool] | None:
        """A joint and the phrase behind it: (phrase, simultaneous, names the camera); behind an object "it" may be that object."""
        for words, together in _JOINTS:
            if not self.words(i, *words):
                continue
            j = i + len(words)
            named = self.subject(j)
            if named is None and self.at(j) == "it" and explicit and not objects:
                j += 1
            phrase = self.predicate(named if named is not None else j, named is not None)
            if phrase is not None:
                return phrase, together, named is not None
        return None


# ---- writing

#: Ways to say a move: (verb, direction words); the first is the canonical one and is drawn most often.
_WORDINGS: dict[str, tuple[tuple[str, str], ...]] = {
    "push in": (("push", "in"), ("dolly", "in"), ("move", "forward")),
    "pull out": (("pull", "out"), ("dolly", "out"), ("pull", "back"), ("move", "backward")),
    "move left": (("move", "left"), ("truck", "left"), ("move", "to the left")),
    "move right": (("move", "right"), ("truck", "right"), ("move", "to the right")),
    "move up": (("move", "up"), ("pedestal", "up"), ("rise", "")),
    "move down": (("move", "down"), ("pedestal", "down"), ("descend", "")),
    "pan left": (("pan", "left"), ("turn", "left"), ("pan", "to the left")),
    "pan right": (("pan", "right"), ("turn", "right"), ("pan", "to the right")),
    "tilt up": (("tilt", "up"), ("look", "up")),
    "tilt down": (("tilt", "down"), ("look", "down")),
    "orbit left": (("orbit", "left"), ("circle", "left"), ("orbit", "to the left")),
    "orbit right": (("orbit", "right"), ("circle", "right"), ("orbit", "to the right")),
}
_STILLNESS = {
    "base": ("fixed", "fixed", "static"),
    "third": ("is fixed", "stays still", "is static", "remains stationary", "does not move"),
    "participle": ("staying still", "remaining fixed"),
}


def describe(command: Command, rng: random.Random) -> str:
    """A natural phrasing of the command without full stop, for example "The camera pushes in, then pans left"; `parse` reads it back."""
    form = rng.choice(("base", "base", "base", "third", "third"))
    if command.segments == (Segment(("fixed",)),) and rng.random() < 0.3:
        return rng.choice(("Static camera", "Fixed camera", "A static shot"))
    parts = [_say(segment, form, rng) for segment in command.segments]
    first = form == "base" and len(parts) > 1 and rng.random() < 0.2
    joint = rng.choice((", then ", ", then ", " and then "))
    text = ("first " if first else "") + joint.join(parts)
    if form == "third":
        return "The camera " + text
    return "Camera " + text if rng.random() < 0.75 else text[0].upper() + text[1:]


def _say(segment: Segment, form: str, rng: random.Random) -> str:
    if segment.moves == ("fixed",):
        return rng.choice(_STILLNESS[form])
    manner = next(word for word, factor in SPEEDS.items() if factor == segment.speed)
    during = len(segment.moves) > 1 and rng.random() < 0.4
    said = []
    for index, move in enumerate(segment.moves):
        options = _WORDINGS[move]
        verb, direction = options[0] if rng.random() < 0.5 else rng.choice(options)
        wanted = "participle" if during and index else form
        word = next(inflected for inflected, kind in _forms(verb).items() if kind == wanted)
        said.append(f"{word} {direction}".strip())
    text = (" while " if during else " and ").join(said)
    return f"{manner} {text}" if manner and rng.random() < 0.4 else f"{text} {manner}".strip()
