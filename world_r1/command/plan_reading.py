"""From English to camera plans: the grammar of `reading` with amounts, durations, speed curves, negation, roll, arc, crane, zoom and
hand-held cameras, and with errors that say where the text is ambiguous or contradictory.

A prompt mixes a camera with a scene, so camera words are read from two kinds of places only: after a camera subject ("the camera
...", "Camera ...", "a static shot"), and from a sentence that is made of nothing but camera phrases. Everything else is scene.

    text      = sentences; those that command follow each other in time, an identical restatement is ignored
    chain     = [lead] [subject] phrase (joint [subject] phrase)*
    joint     = then (", then", ",", "followed by", ...) | while ("while", "as", "together with", ...) | and | after
    phrase    = [article] modifier* verb modifier* direction modifier* [object]  |  a way to say that nothing moves  |  hand-held
    modifier  = speed | extent | amount | duration | speed curve | words of manner that say nothing measurable
    object    = "toward the red box", "around it", ...: skipped

Moves joined by "while" happen together, and contradict each other if they are opposites or one of them is not to move. Moves joined
by "and" happen together where they can and follow each other where they cannot ("pans left and right"). A speed that only one of
the moves of a step names counts for all of them.

Only sentences that can hold a command are looked at word by word, which is what makes long prompts cheap.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from world_r1.command import plan_sentences as sentences
from world_r1.command.plan import KINDS, CameraPlan, CameraTextError, Move, Step
from world_r1.command.plan_parts import Chain, Phrase, Problem
from world_r1.command.plan_phrases import Phrases
from world_r1.command.vocabulary import ARTICLES, Vocabulary, vocabulary

_TOKEN = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?|\d+(?:\.\d+)?|[,:()\u00b0\u00d7]")
#: The same for text of ASCII characters in lower case, in a fraction of the time.
_PLAIN_TOKEN = re.compile(r"[a-z]+(?:'[a-z]+)?|[0-9]+(?:\.[0-9]+)?|[,:()]")
#: Words that name a camera: sentences without them are only looked at if they start like a command.
_NAMES = ("camera", "shot", "view", "fram", "handheld", "hand held")
_AXES = {name: kind.axis for name, kind in KINDS.items()}
_cached_move = lru_cache(maxsize=4096)(Move)


def parse_plan(text: str) -> CameraPlan | None:
    """The camera plan of a prompt, or None when it names no camera. Case, hyphens and line breaks do not matter.

    `parse_plan(plan.text) == plan` for every plan. CameraTextError (a ValueError) for a command that is ambiguous ("the camera
    pans"), contradictory ("pan left while panning right") or impossible ("tilt up 200 degrees").
    """
    words = vocabulary()
    token = _PLAIN_TOKEN if text.isascii() else _TOKEN
    lowered = text.lower().replace("-", " ").replace("\u2019", "'")
    steps: list[Step] = []
    handheld, where = "", (0, 0)
    pronoun, last = False, 0
    for start, end in _candidates(lowered, words):
        if pronoun and token.search(lowered, last, start):
            pronoun = False
        last = end
        try:
            found, pronoun, held = (_known if end - start <= _LONG else _read)(lowered[start:end], token, pronoun)
        except Problem as problem:
            raise _located(problem, text, lowered, start, end) from None
        if held and not handheld:
            handheld, where = held, (start, end)
        if found and found != steps:
            steps += found
    if not steps and not handheld:
        return None
    if handheld and steps and all(step.moves[0].name == "fixed" for step in steps):
        raise _located(Problem("contradictory", "a camera is either fixed or held by hand", 0, 0), text, lowered, *where)
    return CameraPlan(tuple(steps), handheld)


def _read(sentence: str, token: re.Pattern[str], pronoun: bool) -> tuple[list[Step], bool, str]:
    """What one sentence commands: its steps, whether "it" in the next one is the camera, and a key of `HANDHELD`."""
    tokens, words = token.findall(sentence), vocabulary()
    if words.heart.isdisjoint(tokens):
        return [], False, ""
    reader = _Sentence(tokens, words)
    steps, clear = reader.read(pronoun)
    return steps, clear, reader.handheld


#: Prompts share their camera sentences: "The camera pans left." is read once. Longer ones than this hardly come back.
_LONG = 160
_known = lru_cache(maxsize=8192)(_read)


def _candidates(text: str, words: Vocabulary) -> list[tuple[int, int]]:
    """(start, end) of the sentences that name a camera or start like a command, in order."""
    found: list[tuple[int, int]] = []
    for match in words.head.finditer("." + text):  # the mark in front of the text moves its beginning by one
        start = match.start()
        if start == 0 or not sentences.decimal(text, start - 1):
            found.append((start, sentences.end(text, match.end() - 2)))
    named = False
    for name in _NAMES:
        place = text.find(name)
        while place >= 0:
            for start, end in found:
                if start <= place < end:
                    break
            else:
                end = sentences.end(text, place)
                found.append((sentences.start(text, place), end))
                named = True
            place = text.find(name, end)
    return sorted(found) if named else found


def _located(problem: Problem, text: str, lowered: str, start: int, end: int) -> CameraTextError:
    """The error with offsets into the original text, whose length may change in lower case."""
    spans = [match.span() for match in _TOKEN.finditer(lowered, start, end)]
    first, last = spans[problem.begin][0], spans[problem.end - 1 if problem.end > 0 else -1][1]
    if len(lowered) != len(text):
        place = [index for index, character in enumerate(text) for _ in character.lower()]
        first, last = place[first], place[last - 1] + 1
    return CameraTextError(problem.kind, problem.why, text, first, last)


class _Sentence(Phrases):
    """Joins the phrases of a sentence into chains, and chains into steps."""

    #: Key of `HANDHELD` once a hand-held camera was read.
    handheld = ""
    #: The sentence says nothing but what the camera does not do.
    denied = False

    def read(self, pronoun: bool) -> tuple[list[Step], bool]:
        """Steps of all commands in the sentence, and whether an "it" in the next one can only be the camera.

        `pronoun`: whether "it" at the start of this one is the camera.
        """
        steps: list[Step] = []
        i, clear, n, t, inside = 0, False, self.n, self.t, self.w.starts_inside
        while i < n:
            chain = self.chain(i, pronoun) if i == 0 or t[i] in inside or t[i + 1] == "camera" else None
            if chain is None:
                i += 1
                continue
            steps += self.steps(chain)
            clear = chain.end == n and not chain.objects and chain.phrases[0].form in ("third", "participle", "state")
            i = chain.end
        return steps, clear or (self.denied and not steps)

    def chain(self, i: int, pronoun: bool) -> Chain | None:
        """The run of camera phrases that starts at i, or None if there is none or it is none of the camera's business."""
        t, first, lead = self.t, i == 0, Phrase(i)
        while first and t[i] in self.w.leads:
            i += 1 + (t[i + 1] == ",")
        if first and (found := self.modifier(i)) is not None and found[0] == "seconds" and t[found[2]] == ",":
            lead.note(found[0], found[1], i, found[2])
            i = found[2] + 1
        subject = self.subject(i)
        named = subject is not None or (first and pronoun and t[i] == "it")
        head = self.predicate(subject if subject is not None else i + named, named)
        if head is None or (not first and not named and not head.explicit):
            return None
        if t[i - 1] == "with" and head.form in ("base", "third"):
            return None
        if lead.seconds is not None:
            head.note("seconds", lead.seconds, i, head.end)
        chain = self.extend(head, named or head.explicit)
        if not (named or head.explicit) and not (self.imperative(chain) and (chain.explicit or chain.end == self.n)):
            return None
        for phrase in chain.phrases:
            if phrase.error is not None:
                raise phrase.error
        return chain

    def imperative(self, chain: Chain) -> bool:
        """Whether phrases without a camera subject can only be meant for the camera."""
        head = chain.phrases[0]
        if head.form == "base":
            return not chain.place or chain.explicit
        return not chain.objects and (head.form in ("state", "noun") or head.verb in self.w.camera_only)

    def subject(self, i: int) -> int | None:
        """Position after "the camera", "Camera:", "camera movement is"; None if there is no camera subject at i."""
        t, w, start = self.t, self.w, i
        if t[i + 1] == "camera" and t[i] in ("the", "our", "this") and t[i - 1] not in w.governs:
            i += 2
        elif t[i] == "camera" and (i == 0 or t[i - 1] in w.barriers or t[i - 1] in w.leads or t[i - 1] in ("and", "with")):
            i += 1
        else:
            return None
        i += t[i] in ("movement", "motion", "move", "work") and self.phrase(i, False) is None
        return i + (t[i] == ":" or (t[i] == "," and start == 0))

    def predicate(self, i: int, named: bool, elided: bool = False) -> Phrase | None:
        """A phrase, behind auxiliaries ("is slowly panning", "starts to pan") if it has a camera subject, which may be elided."""
        phrase = self.phrase(i, named, elided)
        while phrase is None and named and i < self.n:
            if (size := self.negation(i)) > 0:
                denied = self.phrase(i + size, False)
                self.denied = denied is not None and denied.end == self.n
                while self.t[i] not in ("but", "instead", ""):
                    i += 1
                i += 1 + (self.t[i + 1] in ("it", "only", "rather", "instead"))
                return self.phrase(i, named, elided)
            if self.t[i] not in self.w.auxiliaries:
                return None
            i += 1
            phrase = self.phrase(i, named, elided)
        return phrase

    def negation(self, i: int) -> int:
        """Number of words of a negation at i, 0 if there is none."""
        rows = self.w.negations.get(self.t[i], ())
        return next((len(words) for words in rows if self.t[i : i + len(words)] == words), 0)

    def extend(self, head: Phrase, explicit: bool) -> Chain:
        """The chain of `head` and all joined phrases behind it."""
        chain = Chain(explicit)
        self.append(chain, head, "then")
        while (found := self.joint(chain.end, chain)) is not None:
            phrase, kind, named = found
            chain.explicit = chain.explicit or named or phrase.explicit
            self.append(chain, phrase, kind)
        return chain

    def append(self, chain: Chain, phrase: Phrase, kind: str) -> None:
        end = self.reach(phrase.end)
        if end > phrase.end:
            chain.objects = True
            chain.place = chain.place or (not chain.phrases and self.t[phrase.end] in self.w.places)
            if phrase.move:
                end = self.modifiers(end, phrase)
                phrase.finish(phrase.move, phrase.end)
        chain.phrases.append(phrase)
        chain.kinds.append(kind)
        chain.end = end

    def reach(self, i: int) -> int:
        """End of an object that starts at i: the next joint with a camera phrase, a barrier, an amount, or the end; i if there is none."""
        t, barriers, joints = self.t, self.w.barriers, self.w.joints
        if t[i] not in self.w.object_starts or self.accompanied(i) is not None:
            return i
        j = i + 1
        while j < self.n and t[j] not in barriers:
            if t[j] in joints and self.joint(j) is not None:
                break
            if t[j] in ("for", "over", "during", "by") and self.modifier(j) is not None:
                break
            j += 1
        return j

    def accompanied(self, i: int) -> Phrase | None:
        """The noun phrase of "with a slight tilt up"."""
        if self.t[i] != "with" or self.t[i + 1] not in ARTICLES:
            return None
        return self.motion(i + 1)

    def joint(self, i: int, chain: Chain | None = None) -> tuple[Phrase, str, bool] | None:
        """A joint at i and the phrase behind it: (phrase, kind, whether it names the camera).

        With the chain before it, "it" may be the camera (unless it may be an object), and a direction may borrow the verb.
        """
        t = self.t
        k = i + (t[i] == ",")
        if chain is not None and chain.phrases[-1].handheld and (found := self.phrase(i, True)) is not None:
            return found, "while", False
        for words, size, kind in self.w.joints.get(t[k], ()):
            if size > 1 and t[k : k + size] != words:
                continue
            if (joined := self.joined(k + size, kind, words[-1], chain)) is not None:
                return joined
        if k > i and (joined := self.joined(k, ",", ",", chain)) is not None:
            return joined
        if (phrase := self.accompanied(k)) is not None:
            return phrase, "while", False
        return None

    def joined(self, j: int, kind: str, last: str, chain: Chain | None) -> tuple[Phrase, str, bool] | None:
        subject = self.subject(j)
        known = chain is not None and chain.explicit
        it = known and chain is not None and not chain.objects and self.t[j] == "it"
        new = subject is not None or it
        phrase = self.predicate(subject if subject is not None else j + it, new or known, elided=not new)
        if phrase is None and chain is not None and last in ("and", "then"):
            phrase = self.borrowed(j, chain.phrases[-1])
        return None if phrase is None else (phrase, kind, subject is not None)

    def borrowed(self, i: int, last: Phrase) -> Phrase | None:
        """A direction that shares the verb of the phrase before: the "up" of "moves left and up"."""
        direction, j = self.direction(i)
        move = self.w.verbs.get(last.verb, {}).get(direction) if direction else None
        if move is None and direction and last.move and KINDS[last.move].unit == "metres":
            move = self.w.verbs["move"].get(direction)  # "pulls back and up"
        if move is None:
            return None
        phrase = Phrase(i)
        phrase.verb, phrase.form = last.verb, last.form
        phrase.finish(move, self.modifiers(j, phrase))
        return phrase

    def steps(self, chain: Chain) -> list[Step]:
        """The steps of a chain in order of time; a hand-held camera is none. Problem for phrases that contradict each other."""
        groups: list[list[Phrase]] = []
        for phrase, kind in zip(chain.phrases, chain.kinds, strict=True):
            if phrase.handheld:
                self.handheld = self.handheld or phrase.handheld
                continue
            if groups and kind in ("while", "and", "but", ","):
                group = groups[-1]
                if kind == ",":
                    together = group[0].move == "fixed" and _still_zoom(group, phrase)
                else:
                    rival = _rival(group, phrase)
                    together = rival is None
                    if rival is not None and kind == "while":
                        why = f"{phrase.move!r} cannot happen together with {rival.move!r}; say 'then' to do one after the other"
                        raise Problem("contradictory", why, phrase.begin, phrase.end)
                if together:
                    if group[0].move == "fixed":  # a zoom of a camera that does not move
                        group.clear()
                    group.append(phrase)
                    continue
            groups.insert(len(groups) - (kind == "after"), [phrase])
        return [_step(group) for group in groups]


def _still_zoom(group: list[Phrase], phrase: Phrase) -> bool:
    """Whether a phrase zooms and the group before it is a camera that does not move: "Static camera, zooming in"."""
    return _AXES[phrase.move] == "zoom" and group[0].move == "fixed" and group[0].seconds is None


def _rival(group: list[Phrase], phrase: Phrase) -> Phrase | None:
    """The phrase of a group that cannot happen together with another one. Only a zoom goes with a camera that does not move."""
    axis = _AXES[phrase.move]
    for other in group:
        known = _AXES[other.move]
        if known == axis or ("fixed" in (known, axis) and not _still_zoom(group, phrase)):
            return other
    return None


def _step(group: list[Phrase]) -> Step:
    """One step. A speed that only some of the moves name counts for all of them if it is one speed."""
    if len(group) == 1:
        (phrase,) = group
        if phrase.move == "fixed":
            return Step((_cached_move("fixed"),), "", phrase.seconds)
        return Step((_move(phrase, None),), phrase.curve or "", phrase.seconds)
    named = {phrase.speed for phrase in group if phrase.speed is not None}
    shared = named.pop() if len(named) == 1 else None
    moves = tuple([_move(phrase, shared) for phrase in group])
    return Step(
        moves, _one(group, [phrase.curve for phrase in group], "curve") or "", _one(group, [p.seconds for p in group], "duration")
    )


def _move(phrase: Phrase, shared: str | None) -> Move:
    speed = phrase.speed if phrase.speed is not None else shared
    amount = phrase.amount[0] if phrase.amount is not None else None
    return _cached_move(phrase.move, "" if speed is None or speed == "normal" else speed, phrase.extent or "", amount)


def _one(group: list[Phrase], values: list[Any], name: str) -> Any:
    """The one of the `values` of a group that is not None, or None; Problem if they differ."""
    found = None
    for phrase, value in zip(group, values, strict=True):
        if value is not None and found is not None and value != found:
            raise Problem(
                "contradictory", f"moves that happen together have one {name}: {found} or {value}", phrase.begin, phrase.end
            )
        found = found if value is None else value
    return found
