"""The language of camera plans: everything that is written is read back, and what reading costs."""

from __future__ import annotations

import itertools
import random
import time

import pytest

from world_r1.command import CameraPlan, Command, Move, Segment, Step, describe, describe_plan, parse_plan, plan_reading
from world_r1.command.plan import CURVES, EXTENTS, HANDHELD, KINDS, SPEEDS

MOVES = [name for name in KINDS if name != "fixed"]


def plans(rng: random.Random, count: int) -> list[CameraPlan]:
    """Random plans of every construct."""
    found: list[CameraPlan] = []
    while len(found) < count:
        steps = tuple(_step(rng) for _ in range(rng.choice((0, 1, 1, 2, 3))))
        handheld = rng.choice(("", "", *HANDHELD))
        if (steps or handheld) and not (handheld and all(step.moves[0].name == "fixed" for step in steps) and steps):
            found.append(CameraPlan(steps, handheld))
    return found


def _step(rng: random.Random) -> Step:
    seconds = rng.choice((None, None, 1.0, 2.0, 0.5, 12.25))
    if rng.random() < 0.1:
        return Step((Move("fixed"),), "", seconds)
    shared, moves = rng.choice(list(SPEEDS)), []
    for name in rng.sample(MOVES, rng.choice((1, 1, 2, 3))):
        kind = KINDS[name]
        speed = shared if rng.random() < 0.8 else rng.choice(list(SPEEDS))
        amount = round(rng.uniform(kind.low + 0.01, min(kind.high, 99)), rng.choice((1, 3))) if rng.random() < 0.3 else None
        amount = float(rng.randint(2, 10)) if amount is not None and rng.random() < 0.5 else amount
        if kind.axis not in {move.axis for move in moves}:
            moves.append(Move(name, speed, rng.choice(list(EXTENTS)) if amount is None else "", amount))
    return Step(tuple(moves), rng.choice(("", *CURVES)), seconds)


def every_construct() -> list[CameraPlan]:
    """One plan for every move with every speed, extent and curve, every pair of moves, and amounts at the limits."""
    one = lambda move, **more: CameraPlan((Step((move,), **more),))  # noqa: E731
    found = [one(Move("fixed")), one(Move("fixed"), seconds=2.0)]
    found += [one(Move(name, speed, extent)) for name in MOVES for speed in SPEEDS for extent in EXTENTS]
    found += [one(Move(name), curve=curve, seconds=s) for name in MOVES for curve in CURVES for s in (None, 1.0, 2.5)]
    found += [one(Move(name, amount=KINDS[name].high)) for name in MOVES] + [one(Move(name, amount=1.001)) for name in MOVES]
    pairs = [(a, b) for a, b in itertools.permutations(MOVES, 2) if KINDS[a].axis != KINDS[b].axis]
    found += [CameraPlan((Step((Move(a), Move(b, "slowly"))),)) for a, b in pairs]
    found += [CameraPlan((Step((Move(a),)), Step((Move(b),)))) for a, b in itertools.permutations(KINDS, 2)]
    found += [CameraPlan(steps, held) for held in HANDHELD if held for steps in ((), (Step((Move("push in"),)),))]
    return found


def test_canonical_text_and_json_are_read_back() -> None:
    for plan in (*every_construct(), *plans(random.Random(1), 1000)):
        assert parse_plan(plan.text) == plan, plan.text
        assert CameraPlan.from_dict(plan.to_dict()) == plan
        if plan.steps:
            assert parse_plan(f"Camera {plan.text}. A red box moves to the left.") == plan


def test_descriptions_are_read_back_and_vary() -> None:
    rng = random.Random(2)
    scenes = ("", ". A red box moves to the left on grass.", ". The blue sphere rises, a dog turns right.")
    for plan in (*rng.sample(every_construct(), 500), *plans(rng, 1500)):
        text = describe_plan(plan, rng)
        assert parse_plan(text + rng.choice(scenes)) == plan, text
        assert parse_plan("A red box, fixed to a wall, moves up. " + text) == plan, text
    assert len({describe_plan(plan, random.Random(seed)) for seed in range(200)}) > 50
    assert describe_plan(plan, random.Random(5)) == describe_plan(plan, random.Random(5))


def test_the_embedded_models_language_is_a_part_of_this_one() -> None:
    """Whatever `describe` says of a command is read as the same command."""
    rng = random.Random(3)
    segments = [
        Segment(moves, speed) for moves in (("push in",), ("pan left", "tilt up"), ("orbit right",)) for speed in (0.6, 1.0)
    ]
    segments.append(Segment(("fixed",)))
    for parts in (*((s,) for s in segments), *itertools.permutations(segments, 2)):
        command = Command(parts)
        plan = CameraPlan.of(command)
        assert plan.command == command
        assert plan.text == command.text
        for _ in range(10):
            text = describe(command, rng)
            assert parse_plan(text) == plan, text
    richer = parse_plan("roll left, then push in 2 metres")
    assert richer is not None
    assert richer.command is None


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (None, "object with 'steps'"),
        ({}, "object with 'steps'"),
        ({"steps": "push in"}, "must be a list"),
        ({"steps": []}, "needs a step"),
        ({"steps": [{"moves": []}]}, "compatible"),
        ({"steps": [{"moves": [{"move": "zoom"}]}]}, "no camera move"),
        ({"steps": [{"moves": [{"move": "push in"}, {"move": "pull out"}]}]}, "compatible"),
        ({"steps": [{"moves": [{"move": "fixed"}, {"move": "push in"}]}]}, "compatible"),
        ({"steps": [{"moves": [{"move": "fixed", "speed": "slowly"}]}]}, "fixed camera has no speed"),
        ({"steps": [{"moves": [{"move": "push in", "speed": "slow"}]}]}, "speed is one of"),
        ({"steps": [{"moves": [{"move": "push in", "amount": True}]}]}, "must be a float"),
        ({"steps": [{"moves": [{"move": "push in", "amount": float("nan")}]}]}, "must be a float"),
        ({"steps": [{"moves": [{"move": "tilt up", "amount": 91}]}]}, "at most 90 degrees"),
        ({"steps": [{"moves": [{"move": "tilt up", "amount": 9, "extent": "far"}]}]}, "give one of them"),
        ({"steps": [{"moves": [{"move": "tilt up", "amount": 9, "unit": "metres"}]}]}, "measured in degrees"),
        ({"steps": [{"moves": [{"move": "push in"}], "curve": "fast"}]}, "curve is one of"),
        ({"steps": [{"moves": [{"move": "push in"}], "seconds": 0}]}, "seconds are above 0"),
        ({"steps": [{"moves": [{"move": "push in"}], "colour": 1}]}, "no 'colour'"),
        ({"steps": [{"moves": [{"move": "fixed"}]}], "handheld": "normal"}, "either fixed or held"),
        ({"steps": [{"moves": [{"move": "push in"}]}], "handheld": "yes"}, "handheld is one of"),
        ({"steps": [{"moves": [{"move": "push in"}]}], "text": "pull out"}, "must be 'push in'"),
    ],
)
def test_malformed_json_is_refused(data: object, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        CameraPlan.from_dict(data)


# ---- cost


def test_reading_is_cheap() -> None:
    """100 words with a command cost less than 20,000 turns of an empty loop; about 2,300 were measured alone, 6,000 under load."""
    rng = random.Random(5)
    nouns = ["harbour", "light", "boats", "pier", "water", "stone", "wall", "moss", "path", "pines", "river", "barn", "roof"]
    texts = []
    usual = [plan for plan in plans(rng, 1200) if len(plan.steps) in (1, 2) and len(plan.names) <= 2][:300]
    for plan in usual:
        said = describe_plan(plan, rng)
        count = 100 - len(said.split())
        texts.append(f"{said}. " + " ".join(rng.choice(nouns) + ("." if word % 12 == 11 else "") for word in range(count)))
    assert len(texts) == 300
    rounds = [(_seconds(_loop), _seconds(lambda: _read_anew(texts)) / len(texts)) for _ in range(9)]
    unit, spent = (min(times) for times in zip(*rounds, strict=True))  # in turn, so that a busy machine slows both
    assert spent < 0.2 * unit, f"{spent * 1e6:.0f} us a prompt, {unit * 1e6:.0f} us for an empty loop of 100,000 turns"


def test_a_sentence_that_was_read_before_is_not_read_again() -> None:
    plan_reading._known.cache_clear()
    first = parse_plan("The camera pans left by 12 degrees. A red hut.")
    assert parse_plan("A blue barn. The camera pans left by 12 degrees.") == first
    assert plan_reading._known.cache_info().misses <= 2
    with pytest.raises(ValueError, match="ambiguous"):
        parse_plan("A hut. The camera pans.")
    with pytest.raises(ValueError, match="characters 23-27"):
        parse_plan("A red hut. The camera pans.".replace("red ", "red, "))


def _read_anew(texts: list[str]) -> None:
    plan_reading._known.cache_clear()
    for text in texts:
        parse_plan(text)


def _loop() -> None:
    for _ in range(100_000):
        pass


def _seconds(call: object) -> float:
    begin = time.process_time()
    call()  # type: ignore[operator]
    spent = time.process_time() - begin
    return spent
