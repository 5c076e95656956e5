"""From camera plans to English: varied sentences that `plan_reading` reads back as the same plan."""

from __future__ import annotations

import random

from world_r1.command.plan import CameraPlan, Move, Step, number
from world_r1.command.vocabulary import inflections, vocabulary

_CURVES = {
    "accelerating": ("accelerating", "speeding up", "gathering speed"),
    "decelerating": ("decelerating", "slowing down", "easing out"),
    "easing in and out": ("easing in and out", "with a soft start and stop"),
}
_HANDHELD = {
    "slight": ("Slightly handheld camera", "A subtle handheld shot"),
    "normal": ("Handheld camera", "A handheld shot"),
    "strong": ("Shaky handheld camera", "A very shaky handheld shot"),
}


def describe_plan(plan: CameraPlan, rng: random.Random) -> str:
    """A natural phrasing of a plan without full stop, such as "The camera slowly pushes in, then pans left by ten degrees".

    Wording, order and numerals vary with `rng`. `parse_plan` reads it back as the same plan, also within a longer text.
    """
    opening = rng.choice(_HANDHELD[plan.handheld]) if plan.handheld else ""
    if not plan.steps:
        return opening
    if plan.text == "fixed" and rng.random() < 0.3:
        return rng.choice(("Static camera", "Fixed camera", "A static shot"))
    form = "third" if opening else rng.choice(("base", "third", "third"))
    parts = [_step(step, form, rng) for step in plan.steps]
    text = parts[0]
    for index, part in enumerate(parts[1:], 2):
        last = index == len(parts) > 2
        joint = rng.choice((", then ", ", then ", " and then ") + ((", and finally ",) if last else ()))
        aside = plan.steps[index - 2].curve and joint == " and then "  # "zoom out, slowing down, and then tilt up"
        text += ("," if aside else "") + joint + part
    if form == "base" and len(parts) > 1 and rng.random() < 0.2:
        text = "first " + text
    if form == "third":
        return f"{opening}: the camera {text}" if opening else f"The camera {text}"
    return f"Camera {text}" if rng.random() < 0.5 else text[0].upper() + text[1:]


def _step(step: Step, form: str, rng: random.Random) -> str:
    if step.moves[0].name == "fixed":
        text = rng.choice(vocabulary().stillness[form])
    else:
        speeds = {move.speed for move in step.moves}
        shared = step.moves[0].speed if len(speeds) == 1 else None
        front = bool(shared) and rng.random() < 0.5
        joint, rest = (" while ", "participle") if len(step.moves) > 1 and rng.random() < 0.4 else (" and ", form)
        moves = []
        for index, move in enumerate(step.moves):
            at_end = shared is None or (not front and index == len(step.moves) - 1)
            moves.append(_move(move, rest if index else form, at_end, shared is None, rng))
        text = joint.join(moves)
        if front:
            text = f"{rng.choice(vocabulary().adverbs[shared or ''])} {text}"
    if step.curve:
        text += f", {rng.choice(_CURVES[step.curve])}"
    if step.seconds is not None:
        text += f" {rng.choice(('for', 'over'))} {_number(step.seconds, rng)} second{'' if step.seconds == 1 else 's'}"
    return text


def _move(move: Move, form: str, with_speed: bool, own_speed: bool, rng: random.Random) -> str:
    """One move; its speed behind it if `with_speed`, also where it is normal if `own_speed` (the moves differ)."""
    words = vocabulary()
    options = words.wordings[move.name]
    verb, _, direction = (options[0] if rng.random() < 0.4 else rng.choice(options)).partition(" ")
    verb = next(inflected for inflected, kind in inflections(verb).items() if kind == form)
    text = f"{verb} {direction}".rstrip()
    if move.extent:
        if move.extent in words.phrases and rng.random() < 0.7:
            text = f"{text} {rng.choice(words.phrases[move.extent])}"
        else:
            text = f"{rng.choice(words.adverbs[move.extent])} {text}"
    if move.amount is not None:
        how_far = move.how_far.removeprefix(move.name).split()
        amount = f"{_number(move.amount, rng)} {how_far[1]}"
        by = rng.choice(("by ", "", "about "))
        text = f"{verb} {amount} {direction}" if direction.startswith("to ") and rng.random() < 0.5 else f"{text} {by}{amount}"
    if with_speed and (move.speed or own_speed):
        text += f" {rng.choice(words.adverbs[move.speed]) if move.speed else 'at normal speed'}"
    return text


def _number(value: float, rng: random.Random) -> str:
    """Digits, or words for whole numbers below a hundred."""
    if value != int(value) or value >= 100 or rng.random() < 0.5:
        return number(value)
    words = {round(known): word for word, known in vocabulary().numbers.items()}
    if int(value) in words:
        return words[int(value)]
    return f"{words[int(value) // 10 * 10]}-{words[int(value) % 10]}"
