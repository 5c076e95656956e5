"""Camera phrases: the words of one sentence, and which phrase starts at a position in them."""

from __future__ import annotations

from world_r1.command.plan import DIGITS
from world_r1.command.plan_parts import Phrase, Problem
from world_r1.command.vocabulary import ARTICLES, Vocabulary

#: Empty words behind the last, so that looking ahead needs no check.
_END = [""] * 12
_SIDES = ("left", "right")
_FILMED = ("filmed", "shot", "captured", "recorded")


class Phrases:
    """The words of one sentence; every method takes a position and says what it finds there."""

    def __init__(self, tokens: list[str], words: Vocabulary) -> None:
        self.n, self.t, self.w = len(tokens), tokens + _END, words
        #: Modifiers that were looked for, by position: a phrase, its joint and its object ask for the same ones.
        self.seen: dict[int, tuple[str, object, int] | None] = {}

    def phrase(self, i: int, named: bool, elided: bool = False) -> Phrase | None:
        word, found = self.t[i], None
        if word in self.w.starts_still:
            found = self.still(i, named, elided) or (self.held(i, named) if word in ARTICLES or word in self.w.handheld else None)
        if found is None and (word in self.w.starts_motion or word[:1].isdecimal()):
            found = self.motion(i, named, elided)
        return found

    def motion(self, i: int, named: bool = False, elided: bool = False) -> Phrase | None:
        """One move: "slowly pans to the left by 30 degrees", "a gentle push in", "leftward pan".

        With a camera subject, a verb that lacks its direction is an error that the phrase carries.
        """
        t, w = self.t, self.w
        phrase = Phrase(i)
        noun, early, found = False, None, w.forms.get(t[i])
        if found is None:
            noun = t[i] in ARTICLES
            i = self.modifiers(i + noun, phrase, before_verb=True)
            early = w.directions.get(t[i]) if t[i + 1] in w.verbs else None
            i += early is not None
            found = w.forms.get(t[i])
        if found is None or (found[1] != "base" and (noun or early)):
            return None
        phrase.verb, phrase.form = verb, form = found
        i += 1
        if form == "base":
            if noun or early:
                phrase.form = "noun"
            if t[i] == "the" and t[i + 1] == "camera":
                i, phrase.explicit = i + 2, True
        begins = w.starts_modifier
        if t[i] in begins or t[i][:1].isdecimal():
            i = self.modifiers(i, phrase)
        direction, i = (early, i) if early else self.direction(i)
        if direction == "in" and t[i - 1] == "in" and ((t[i] in ARTICLES and self.modifier(i) is None) or t[i + 1] == "motion"):
            direction, i = "", i - 1  # "moves in a circle", "in slow motion"
        moves = w.verbs[verb]
        move = moves.get(direction or ("in" if t[i] in w.inward and "" not in moves else ""))
        if direction and t[i] == "around" and verb in w.around:
            move = {"left": "orbit left", "right": "orbit right"}.get(direction, move)
        if move is None:
            return self.incomplete(phrase, i, elided) if named and not direction else None
        if t[i] in begins or t[i][:1].isdecimal():
            i = self.modifiers(i, phrase)
        if t[i] in ("shot", "movement", "motion", "move"):
            phrase.explicit = phrase.explicit or t[i] == "shot"
            i += 1
        phrase.finish(move, i)
        return phrase

    def incomplete(self, phrase: Phrase, i: int, elided: bool) -> Phrase | None:
        """A verb of motion without its direction, if nothing says that the words mean something else.

        `elided`: the camera is not named right before, so a participle may belong to the scene ("while drifting clouds part").
        """
        w, word = self.w, self.t[i]
        if phrase.verb not in (w.camera_only if elided else w.needs_direction):
            return None
        ends = not word or word in w.object_starts or word in w.barriers or word in self.w.joints
        if not ends and (elided or word not in ARTICLES):
            return None
        wanted = [name for name in self.w.verbs[phrase.verb] if name not in ("", "cw", "ccw")]
        why = f"{phrase.verb!r} needs a direction: {', '.join(wanted) or 'clockwise or counterclockwise'}"
        phrase.end, phrase.move = i, "fixed"
        phrase.error = phrase.error or Problem("ambiguous", why, phrase.begin, i)
        return phrase

    def modifiers(self, i: int, phrase: Phrase, before_verb: bool = False) -> int:
        """Note the modifiers at i ("slowly and smoothly", "by 30 degrees") and return the position behind them.

        Behind a verb, "and" may also lead to the next phrase: "pans left slowly and smoothly tilts up".
        """
        t, known, begin = self.t, self.w.modifiers, i
        while True:
            word = t[i]
            skipped = word == "," or (word == "and" and i > begin)
            first = t[i + 1] if skipped else word
            if first not in known and not first[:1].isdecimal():
                break
            found = self.modifier(i + skipped)
            if found is None:
                break
            kind, value, end = found
            if skipped and not before_verb and self.phrase(i + 1, False) is not None:
                break
            if word == "," and (before_verb or not self.inserted(end)):
                break
            phrase.note(kind, value, i + skipped, end)
            i = end
            if word == t[i] == "," and t[i + 1] in self.w.object_starts and self.phrase(i + 1, False) is None:
                i += 1  # the comma behind an insertion: "glides forward, very slowly, toward the door"
        return i + 1 if before_verb and i > begin and t[i] == "," else i

    def inserted(self, i: int) -> bool:
        """Whether nothing but further modifiers stand between i and the next joint or the end."""
        while (found := self.modifier(i)) is not None:
            i = found[2]
        return self.t[i] in ("", ",") or self.t[i] in self.w.joints

    def modifier(self, i: int) -> tuple[str, object, int] | None:
        """One modifier: (kind, value, position behind it)."""
        word = self.t[i]
        if word not in self.w.modifiers and not word[:1].isdecimal():
            return None
        if i in self.seen:
            return self.seen[i]
        found = self.seen[i] = self.new_modifier(i)
        return found

    def new_modifier(self, i: int) -> tuple[str, object, int] | None:
        """A modifier at a position that was not looked at before."""
        t = self.t
        rows = self.w.modifiers_by_two.get(t[i])
        if rows is None:
            return self.quantity(i)
        for words, size, kind, value in rows.get(t[i + 1]) or rows[""]:
            if size > 2 and t[i : i + size] != words:
                continue
            if kind in ("by", "for"):
                found = self.quantity(i + size, counted=True)
                if found is not None and (found[0] == "seconds") == (kind == "for"):
                    return found
                continue
            if kind == "number":
                if (found := self.quantity(i)) is not None:
                    return found
                continue
            return kind, value, i + size
        return None

    def quantity(self, i: int, counted: bool = False) -> tuple[str, object, int] | None:
        """A number with its unit: ("amount", (value, unit), end) or ("seconds", value, end).

        `counted`: words like "for" announce it; without them "a second" is no duration ("a second time").
        """
        t, word = self.t, self.t[i]
        article = word in ("a", "an")
        if word[:1].isdecimal():
            value = float(word)
        elif word == "half" and t[i + 1] in ("a", "an"):
            value, i = 0.5, i + 1
        elif article:
            value = 1.0
        elif word in self.w.numbers:
            value = self.w.numbers[word]
            if value >= 20 and self.w.numbers.get(t[i + 1], 10) < 10:
                value, i = value + self.w.numbers[t[i + 1]], i + 1
        elif counted and (found := self.modifier(i)) is not None and found[0] == "amount":
            return found
        else:
            return None
        unit, factor = self.w.units.get(t[i + 1], ("", 1.0))
        if not unit or (unit == "seconds" and article and not counted):
            return None
        value *= factor
        if value % 1.0:
            value = round(value, DIGITS)
        if unit == "seconds":
            return ("seconds", value, i + 2) if 0 < value <= 3600 else None
        return "amount", (value, unit), i + 2

    def direction(self, i: int) -> tuple[str, int]:
        """ "left", "to the left", "from right to left", "upward": direction and position behind it; "" and i if there is none."""
        t = self.t
        word = t[i]
        if word in self.w.directions:
            if word in _SIDES and t[i + 1] == "to" and t[i + 2] in _SIDES:
                return t[i + 2], i + 3
            return self.w.directions[word], i + 1
        if word in ("to", "toward", "towards") and t[i + 1] == "the" and t[i + 2] in _SIDES:
            return t[i + 2], i + 3
        if word == "from" and t[i + 1] in _SIDES and t[i + 2] == "to" and t[i + 3] in _SIDES:
            return t[i + 3], i + 4
        if word in ("counter", "anti") and t[i + 1] == "clockwise":
            return "ccw", i + 2
        return "", i

    def still(self, i: int, named: bool, elided: bool = False) -> Phrase | None:
        """A way to say that the camera does not move, and for how long."""
        t, w = self.t, self.w
        for words in self.w.no_camera_motion.get(t[i], ()):
            if t[i : i + len(words)] == words:
                return self.fixed(i, i + len(words), explicit=True)
        if named:
            for words in self.w.no_motion.get(t[i], ()):
                if t[i : i + len(words)] == words:
                    return self.fixed(i, i + len(words))
        j = i + (t[i] in ARTICLES)
        k = j + 1 + (t[j + 1] == "off")
        if t[j] in w.still and t[k] in w.shots:
            return self.fixed(i, k + 1, explicit=True) if self.opens(i) else None
        if named and t[i] in w.holds:
            phrase = self.fixed(i, i + 1)
            if phrase.seconds is not None or t[i + 1] in ("", ",") or t[i + 1] in self.w.joints:
                return phrase
        stays = t[i] in w.stay
        j = i + stays + (t[i + stays] in ("completely", "perfectly", "absolutely", "entirely"))
        if t[j] not in w.still or (stays and not named):
            return None
        j += 1 + (t[j + 1] in ("off", "down"))
        phrase = self.fixed(i, j)
        following = t[phrase.end]
        then = following == "and" and t[phrase.end + 1] == "then"
        bare_end = (
            then
            or following in ("", ",", "then", "followed", "before")
            or (named and (following in w.object_starts or following in ("and", "while", "as", "after")))
        )
        bare = t[i] in ("fixed", "static", "stationary", "locked") or (named and not elided)
        return phrase if stays or (bare and bare_end) else None

    def opens(self, i: int) -> bool:
        """Whether words at i that name a camera themselves stand where a command may start."""
        before = self.t[i - 1]
        return i == 0 or before in self.w.barriers or before in self.w.leads or before in ("and", "with", "from", "is")

    def fixed(self, i: int, end: int, explicit: bool = False) -> Phrase:
        """The phrase not to move at words i to end, with a duration behind it."""
        phrase = Phrase(i, "fixed", "state", end, explicit)
        found = self.modifier(end)
        if found is not None and found[0] == "seconds":
            phrase.note(found[0], found[1], end, found[2])
            phrase.end = found[2]
        return phrase

    def held(self, i: int, named: bool) -> Phrase | None:
        """A camera that is held by hand: "handheld", "a slightly shaky shot", "the camera is handheld"."""
        t = self.t
        j = i + (t[i] in ARTICLES)
        for words, strength in self.w.handheld.get(t[j], ()):
            k = j + len(words)
            if t[j:k] != words:
                continue
            noun = t[k] in self.w.shots or t[k] in ("footage", "style", "feel", "movement", "camerawork")
            bare = "hand" in words[-1] or words[-1] == "held" or named
            filmed = t[i - 1] in _FILMED or (t[i - 1] in ("with", "on", "by") and t[i - 2] in _FILMED)
            opens = self.opens(i) and (t[i - 1] != "with" or i == 1 or t[i - 2] == ",")
            if not (bare or noun) or not (named or opens or filmed):
                return None
            if not noun and not (t[k] in ("", ",") or t[k] in self.w.joints):
                return None
            phrase = Phrase(i, "", "state", k + noun, noun or filmed)
            phrase.handheld = strength
            return phrase
        return None
