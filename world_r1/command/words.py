"""The vocabulary of camera commands: tables only, so that new words are new entries."""

from __future__ import annotations

from collections.abc import Mapping

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


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


def _phrases(*texts: str) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(phrase.split()) for text in texts for phrase in text.split("|"))


def axis(move: str) -> str:
    """The degree of freedom of a motion; two moves of one axis cannot happen at the same time. ValueError for an unknown motion."""
    if move not in MOTIONS:
        raise ValueError(f"{move!r} is no camera motion; known are {', '.join(MOTIONS)}")
    verb, _, direction = move.partition(" ")
    if verb == "move":
        return "truck" if direction in ("left", "right") else "pedestal"
    return {"push": "dolly", "pull": "dolly"}.get(verb, verb)


_SIDES = {"left": "move left", "right": "move right"}
_IN_OUT = {"in": "push in", "out": "pull out"}
_LEVEL = {"up": "move up", "down": "move down"}
_TURN = {"left": "pan left", "right": "pan right", "up": "tilt up", "down": "tilt down"}
_ROUND = {"left": "orbit left", "right": "orbit right"}
_ANY = _SIDES | _IN_OUT | _LEVEL

#: Verb -> motion by direction ("" where none is named).
VERBS: Mapping[str, Mapping[str, str]] = {
    "push": _IN_OUT,
    "pull": {"out": "pull out"},
    "dolly": _IN_OUT | _SIDES,
    "truck": _SIDES,
    "track": _SIDES | _IN_OUT,
    "slide": _SIDES,
    "strafe": _SIDES,
    "pedestal": _LEVEL,
    "crane": _LEVEL,
    "boom": _LEVEL,
    "move": _ANY,
    "glide": _ANY,
    "drift": _ANY,
    "travel": _ANY,
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
CAMERA_ONLY = _set("push pull dolly truck pedestal pan tilt orbit")

DIRECTIONS: Mapping[str, str] = {
    word: name
    for name, words in {
        "left": "left leftward leftwards",
        "right": "right rightward rightwards",
        "up": "up upward upwards",
        "down": "down downward downwards",
        "in": "in inward inwards forward forwards closer ahead",
        "out": "out outward outwards back backward backwards away",
    }.items()
    for word in words.split()
}
#: Adverbs and adjectives of manner -> speed factor, or None where they say nothing about speed.
MANNERS: Mapping[str, float | None] = (
    dict.fromkeys(_set("slowly slow gently gentle gradually gradual leisurely"), SPEEDS["slowly"])
    | dict.fromkeys(_set("quickly quick rapidly rapid fast swiftly swift"), SPEEDS["quickly"])
    | dict.fromkeys(_set("smoothly smooth steadily straight simply very slightly also simultaneously again"))
)

#: Standing still: "the camera STAY STILL", "a STILL shot", and whole phrases for a camera subject.
STILL = _set("fixed static still stationary motionless immobile locked unmoving put")
STAY = _set("is be being stay stays staying remain remains remaining keep keeps hold holds stands")
SHOTS = _set("shot view camera frame framing")
NO_MOTION = _phrases(
    "does not move|doesn't move|do not move|don't move|is not moving|isn't moving|never moves|not moving|no movement|no motion",
    "is in place|is at rest|stays in place|remains in place|stays at rest|remains at rest",
)
NO_CAMERA_MOTION = _phrases("no camera movement|no camera motion|no camera moves|without camera movement|without camera motion")

#: Words between a camera subject and its verb.
AUXILIARIES = _set("is still will starts begins continues keeps now to by should must then first finally")
#: Words that head a sentence before its camera phrase.
LEADS = _set("first then next finally afterwards")
#: Words that start an object ("toward the red box"), and those that an object never runs across because another clause may start
#: there.
OBJECT_STARTS = _set(
    "toward towards on onto into to around round across along over past through from about at above behind for of with by between "
    "beside below under in without"
)
BARRIERS = _set(", : ( ) while whilst as when where which who whose that until because if but")
#: After these words "the camera" is an object of the sentence, not its subject.
GOVERNS = _set(
    "of to at from toward towards past behind near by on under over beside before into around like holding carrying holds "
    "carries facing faces against through across above below for off in inside without"
)
#: Before a bare "camera" that is a subject.
BEFORE_SUBJECT = BARRIERS | LEADS | {"and", "with"}

#: What joins camera phrases, by kind: one follows the other, they happen together, or what comes next happens first.
_JOINTS = {
    "then": _phrases("then|and then|followed by|transitioning into|transitions into|before|after which|next|finally|and finally"),
    "with": _phrases(
        "and|while|whilst|as|simultaneously|and simultaneously|at the same time|and at the same time|together with|plus"
    ),
    "after": _phrases("after"),
}
_FLAT = [(lead + words, kind) for kind, table in _JOINTS.items() for words in table for lead in ((), (",",))]
#: (words, kind), longest first; a comma alone is "then".
JOINTS: tuple[tuple[tuple[str, ...], str], ...] = (*sorted(_FLAT, key=lambda joint: -len(joint[0])), ((",",), "then"))


def forms(verb: str) -> dict[str, str]:
    """Inflected word -> "base", "third" or "participle"."""
    stem = verb[:-1] if verb.endswith("e") else verb + "n" if verb == "pan" else verb
    third = verb[:-1] + "ies" if verb.endswith("ly") else verb + ("es" if verb.endswith("sh") else "s")
    return {verb: "base", third: "third", stem + "ing": "participle"}


#: Inflected word -> (verb, form).
VERB_FORMS: Mapping[str, tuple[str, str]] = {word: (verb, form) for verb in VERBS for word, form in forms(verb).items()}
