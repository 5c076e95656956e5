"""From English to camera moves: a small recursive-descent grammar.

A prompt mixes a camera with a scene ("The camera pushes in while a red box moves to the left."), so camera words are read from two
kinds of places only: after a camera subject ("the camera ...", "Camera ...", "a static shot"), and from a sentence that is made of
nothing but camera phrases ("Orbit left, then push in."). Everything else is scene and never a command.

    text      = sentences; those that command follow each other in time, an identical restatement is ignored
    chain     = [lead] [subject] phrase (joint [subject] phrase)*
    joint     = then (", then", ",", "followed by", "transitioning into a", ...) | with ("and", "while", "as", ...) | after
    phrase    = [article] manner* verb manner* direction manner* [object]  |  a way to say that nothing moves
    object    = "toward the red box", "around it", ...: skipped

Contradictory moves that are joined as simultaneous ("pan left and right") follow each other instead.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from world_r1.command import words as w

Steps = list[tuple[tuple[str, ...], float]]


def read(text: str) -> Steps:
    """(moves, speed factor) of every segment that a text commands; empty when it names no camera."""
    steps: Steps = []
    pronoun = False
    for words in re.split(r"[.!?;\n]+", text.lower().replace("-", " ").replace("\u2019", "'")):
        tokens = tuple(re.findall(r"[^\W\d_]+(?:'[a-z]+)?|[,:()]|\d+", words))
        if tokens:
            found, pronoun = _Sentence(tokens).read(pronoun)
            if found != steps:
                steps += found
    return steps


@dataclass
class _Step:
    """A segment under construction."""

    moves: list[str]
    speed: float | None

    def take(self, moves: list[str], speed: float | None) -> bool:
        """Add simultaneous moves; False, and nothing happens, if they contradict those that are there."""
        here = [move for move in self.moves if move != "fixed"]
        new = [move for move in moves if move != "fixed" and move not in here]
        if {w.axis(move) for move in here} & {w.axis(move) for move in new}:
            return False
        self.moves = here + new or ["fixed"]
        self.speed = self.speed if self.speed is not None else speed
        return True

    def result(self) -> tuple[tuple[str, ...], float]:
        return tuple(self.moves), 1.0 if self.speed is None or self.moves == ["fixed"] else self.speed


@dataclass
class _Phrase:
    moves: list[str]
    speed: float | None
    end: int
    #: "base", "noun", "third", "participle" or "state".
    form: str
    verb: str = ""
    #: The words themselves name the camera ("a static shot").
    explicit: bool = False


@dataclass
class _Chain:
    """Joined phrases up to `end`; `explicit` once a camera is named, `objects` once an object was skipped."""

    explicit: bool
    end: int = 0
    objects: bool = False
    phrases: list[_Phrase] = field(default_factory=list)
    steps: list[_Step] = field(default_factory=list)

    def append(self, phrase: _Phrase, kind: str, reach: int) -> None:
        self.phrases.append(phrase)
        self.end, self.objects = reach, self.objects or reach > phrase.end
        if kind == "with" and self.steps and self.steps[-1].take(phrase.moves, phrase.speed):
            return
        step = _Step(list(phrase.moves), phrase.speed)
        self.steps.insert(len(self.steps) - (kind == "after"), step)


class _Sentence:
    """The words of one sentence; every method takes a position and says what it finds there."""

    def __init__(self, tokens: tuple[str, ...]) -> None:
        self.tokens = tokens

    def at(self, i: int) -> str:
        return self.tokens[i] if 0 <= i < len(self.tokens) else ""

    def starts(self, i: int, words: tuple[str, ...]) -> bool:
        return self.tokens[i : i + len(words)] == words

    def read(self, pronoun: bool) -> tuple[Steps, bool]:
        """Segments of all commands in the sentence, and whether an "it" in the next one can only be the camera.

        `pronoun`: whether "it" at the start of this one is the camera.
        """
        steps: Steps = []
        i, clear = 0, False
        while i < len(self.tokens):
            chain = self.chain(i, pronoun)
            if chain is not None:
                steps += [step.result() for step in chain.steps]
                clear = (
                    chain.end == len(self.tokens)
                    and not chain.objects
                    and chain.phrases[0].form in ("third", "participle", "state")
                )
            i = chain.end if chain is not None else i + 1
        return steps, clear

    def chain(self, i: int, pronoun: bool) -> _Chain | None:
        """The run of camera phrases that starts at i, or None if there is none or it is none of the camera's business."""
        first = i == 0
        while first and self.at(i) in w.LEADS:
            i += 1 + (self.at(i + 1) == ",")
        subject = self.subject(i)
        named = subject is not None or (first and pronoun and self.at(i) == "it")
        head = self.predicate(subject if subject is not None else i + named, named)
        if head is None or (self.at(i - 1) == "with" and head.form in ("base", "third")):
            return None
        chain = self.extend(head, named or head.explicit)
        if named or head.explicit:
            return chain
        if not first or not self.imperative(chain):
            return None
        return chain if chain.explicit or chain.end == len(self.tokens) else None

    def imperative(self, chain: _Chain) -> bool:
        """Whether phrases without a camera subject can only be meant for the camera."""
        head = chain.phrases[0]
        if head.form == "base":
            return True
        return not chain.objects and (head.form in ("state", "noun") or head.verb in w.CAMERA_ONLY)

    def subject(self, i: int) -> int | None:
        """Position after "the camera", "Camera:", "camera movement is"; None if there is no camera subject at i."""
        if self.at(i) in ("the", "our", "this") and self.at(i + 1) == "camera" and self.at(i - 1) not in w.GOVERNS:
            i += 2
        elif self.at(i) == "camera" and (i == 0 or self.at(i - 1) in w.BEFORE_SUBJECT):
            i += 1
        else:
            return None
        i += self.at(i) in ("movement", "motion", "move", "work") and self.phrase(i, False) is None
        return i + (self.at(i) in (":", ","))

    def predicate(self, i: int, named: bool, elided: bool = False) -> _Phrase | None:
        """A phrase, behind auxiliaries ("is slowly panning", "starts to pan") if it has a camera subject, which may be elided."""
        while (phrase := self.phrase(i, named, elided)) is None and named and self.at(i) in w.AUXILIARIES:
            i += 1
        return phrase

    def phrase(self, i: int, named: bool, elided: bool = False) -> _Phrase | None:
        return self.still(i, named, elided) or self.motion(i)

    def motion(self, i: int) -> _Phrase | None:
        """One move: "slowly pans to the left", "a gentle push in", "leftward pan"."""
        noun = self.at(i) in ("a", "an", "the")
        i, before = self.manner(i + noun, before_verb=True)
        early = w.DIRECTIONS.get(self.at(i)) if self.at(i + 1) in w.VERBS else None
        i += early is not None
        verb, form = w.VERB_FORMS.get(self.at(i), ("", ""))
        if not verb or (form != "base" and (noun or early)):
            return None
        i, middle = self.manner(i + 1)
        direction, i = (early, i) if early else self.direction(i)
        move = w.VERBS[verb].get(direction)
        if move is None:
            return None
        i, after = self.manner(i)
        i += self.at(i) in ("shot", "movement", "motion", "move")
        speed = next((value for value in (before, middle, after) if value is not None), None)
        return _Phrase([move], speed, i, "noun" if noun or early else form, verb)

    def manner(self, i: int, before_verb: bool = False) -> tuple[int, float | None]:
        """Skip words of manner ("slowly and smoothly"); the first that names a speed counts.

        Behind a verb, "and" may also lead to the next phrase: "pans left slowly and smoothly tilts up".
        """
        speed: float | None = None
        begin = i
        while self.at(i) in w.MANNERS or (
            i > begin and self.at(i) == "and" and self.at(i + 1) in w.MANNERS and (before_verb or self.phrase(i + 1, False) is None)
        ):
            speed = speed if speed is not None else w.MANNERS.get(self.at(i))
            i += 1
        return i + (before_verb and i > begin and self.at(i) == ","), speed

    def direction(self, i: int) -> tuple[str, int]:
        """ "left", "to the left", "upward": direction and position behind it; "" and i if there is none."""
        if self.at(i) in ("to", "toward", "towards") and self.at(i + 1) == "the" and self.at(i + 2) in ("left", "right"):
            return self.at(i + 2), i + 3
        word = w.DIRECTIONS.get(self.at(i), "")
        return word, i + bool(word)

    def still(self, i: int, named: bool, elided: bool = False) -> _Phrase | None:
        """A way to say that the camera does not move."""
        for words in w.NO_CAMERA_MOTION:
            if self.starts(i, words):
                return _Phrase(["fixed"], None, i + len(words), "state", explicit=True)
        for words in w.NO_MOTION:
            if named and self.starts(i, words):
                return _Phrase(["fixed"], None, i + len(words), "state")
        j = i + (self.at(i) in ("a", "an", "the"))
        k = j + 1 + (self.at(j + 1) == "off")
        if self.at(j) in w.STILL and self.at(k) in w.SHOTS:
            opens = i == 0 or self.at(i - 1) in w.BEFORE_SUBJECT | {"from", "is"}
            return _Phrase(["fixed"], None, k + 1, "state", explicit=True) if opens else None
        stays = self.at(i) in w.STAY
        j = i + stays + (self.at(i + stays) in ("completely", "perfectly", "absolutely", "entirely"))
        if self.at(j) not in w.STILL or (stays and not named):
            return None
        j += 1 + (self.at(j + 1) in ("off", "down"))
        bare_end = self.at(j) in ("", ",", "then") or (
            named and (self.at(j) in w.OBJECT_STARTS or self.at(j) in ("and", "while", "as"))
        )
        bare = self.at(i) in ("fixed", "static", "stationary", "locked") or (named and not elided)
        return _Phrase(["fixed"], None, j, "state") if stays or (bare and bare_end) else None

    def reach(self, i: int) -> int:
        """End of an object that starts at i: the next joint with a camera phrase, a barrier, or the end; i if there is none."""
        if self.at(i) not in w.OBJECT_STARTS:
            return i
        j = i + 1
        while j < len(self.tokens) and self.at(j) not in w.BARRIERS and self.joint(j) is None:
            j += 1
        return j

    def extend(self, head: _Phrase, explicit: bool) -> _Chain:
        """The chain of `head` and all joined phrases behind it."""
        chain = _Chain(explicit)
        chain.append(head, "then", self.reach(head.end))
        while (found := self.joint(chain.end, chain)) is not None:
            phrase, kind, named = found
            chain.explicit = chain.explicit or named or phrase.explicit
            chain.append(phrase, kind, self.reach(phrase.end))
        return chain

    def joint(self, i: int, chain: _Chain | None = None) -> tuple[_Phrase, str, bool] | None:
        """A joint at i and the phrase behind it: (phrase, kind, whether it names the camera).

        With the chain before it, "it" may be the camera (unless it may be an object), and a direction may borrow the verb.
        """
        for words, kind in w.JOINTS:
            if not self.starts(i, words):
                continue
            j = i + len(words)
            subject = self.subject(j)
            known = chain is not None and chain.explicit
            it = known and chain is not None and not chain.objects and self.at(j) == "it"
            new = subject is not None or it
            phrase = self.predicate(subject if subject is not None else j + it, new or known, elided=not new)
            if phrase is None and chain is not None and words[-1] in ("and", "then"):
                phrase = self.borrowed(j, chain.phrases[-1])
            if phrase is not None:
                return phrase, kind, subject is not None
        return None

    def borrowed(self, i: int, last: _Phrase) -> _Phrase | None:
        """A direction that shares the verb of the phrase before: the "up" of "moves left and up"."""
        direction, j = self.direction(i)
        move = w.VERBS.get(last.verb, {}).get(direction) if direction else None
        if move is None:
            return None
        j, speed = self.manner(j)
        return _Phrase([move], speed, j, last.form, last.verb)
