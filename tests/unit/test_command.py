"""The grammar of camera commands: what is read, what is not, and that everything written is read back."""

import itertools
import random
import time

import pytest

from world_r1.command import MOTIONS, SPEEDS, Command, Segment, axis, describe, parse


def command(*segments: tuple[str, ...], speeds: tuple[float, ...] = ()) -> Command:
    return Command(tuple(Segment(moves, speed) for moves, speed in itertools.zip_longest(segments, speeds, fillvalue=1.0)))


def every_command() -> list[Command]:
    """Singles at all speeds, all compatible pairs and all ordered sequences, and one of three segments."""
    moving = MOTIONS[1:]
    singles = [command((move,), speeds=(speed,)) for move in moving for speed in SPEEDS.values()]
    pairs = [
        command(pair, speeds=(speed,))
        for pair in itertools.permutations(moving, 2)
        if axis(pair[0]) != axis(pair[1])
        for speed in (1.0, 0.6)
    ]
    sequences = [command((a,), (b,)) for a, b in itertools.permutations(MOTIONS, 2)]
    return [
        command(("fixed",)),
        *singles,
        *pairs,
        *sequences,
        command(("push in", "tilt up"), ("fixed",), ("orbit left", "move down"), speeds=(0.6, 1.0, 1.35)),
    ]


READ = {
    "Camera orbit left. A red box on a wooden floor.": "orbit left",
    "Camera push in, then pan left. A valley in the fog.": "push in, then pan left",
    "Camera move left, transitioning into a pull out. Boats in a harbour.": "move left, then pull out",
    "Camera fixed. A candle.": "fixed",
    "CAMERA PULL-OUT.": "pull out",
    "first orbit left, then push in": "orbit left, then push in",
    "push in while tilting up": "push in and tilt up",
    "push in and pan left": "push in and pan left",
    "orbit left while the camera pans right slowly.": "orbit left and pan right slowly",
    "A red box moves to the left while the camera slowly circles to the right around it.": "orbit right slowly",
    "The camera pushes in toward the red box, then pans left.": "push in, then pan left",
    "The camera moves forward.": "push in",
    "The camera moves backwards quickly.": "pull out quickly",
    "The camera is slowly moving to the right.": "move right slowly",
    "Dolly out.": "pull out",
    "truck left and pedestal up": "move left and move up",
    "The camera rises.": "move up",
    "The camera descends, then turns right.": "move down, then pan right",
    "The camera turns left and looks up.": "pan left and tilt up",
    "The camera moves up and to the left.": "move up and move left",
    "The camera pans left and right.": "pan left, then pan right",
    "The camera pushes in after panning left.": "pan left, then push in",
    "The camera pushes in. Then it pans left.": "push in, then pan left",
    "Camera movement: slow pan to the left.": "pan left slowly",
    "A slow push in.": "push in slowly",
    "Static camera. A red box moves to the left.": "fixed",
    "The camera stays still, a red box moves to the left.": "fixed",
    "The camera does not move.": "fixed",
    "A garden without camera movement.": "fixed",
    "The camera still moves left.": "move left",
    "The camera gently and smoothly orbits right.": "orbit right slowly",
    "With the camera panning left, a ball falls.": "pan left",
    "Camera orbit left. The camera orbits left. A box.": "orbit left",
}

NOT_READ = [
    "",
    "...",
    "The red box moves to the left.",
    "A red box moves left, then right, and rises slowly.",
    "A fixed table beside a static display.",
    "Fixed to the wall, a lamp glows.",
    "A still lake. Still life with a vase.",
    "A man with a camera moves left.",
    "The photographer holding the camera moves to the right.",
    "The box in front of the camera moves left.",
    "A cat looks at the camera and turns left.",
    "The toy camera moves left.",
    "The camera on the table moves left.",
    "The camera follows the car as it moves left.",
    "The car turns left and looks up at nothing.",
    "He turns right, then moves forward.",
    "It moves to the left.",
    "A dolly in a workshop, a truck left on the road.",
    "A crane up in the sky and a pan left on the stove.",
    "She pans for gold on the left bank.",
    "A push broom in the corner.",
    "A blue sphere rises while a red box descends.",
    "The camera zooms in.",
]


@pytest.mark.parametrize(("text", "canonical"), READ.items())
def test_reads(text: str, canonical: str) -> None:
    found = parse(text)
    assert found is not None
    assert found.text == canonical


@pytest.mark.parametrize("text", NOT_READ)
def test_scene_is_not_a_command(text: str) -> None:
    assert parse(text) is None


@pytest.mark.parametrize("scene", ["the red box moves to the left", "it moves right", "a fixed lamp glows", "still water shines"])
@pytest.mark.parametrize("joint", [" while ", ", ", ". ", ", and ", " as "])
def test_scene_after_a_command_adds_nothing(scene: str, joint: str) -> None:
    found = parse(f"Camera push in toward the house{joint}{scene}.")
    assert found == command(("push in",))


def test_canonical_text_is_read_back() -> None:
    for known in every_command():
        assert parse(known.text) == known
        assert parse(f"Camera {known.text}. A red box moves to the left.") == known


def test_descriptions_are_read_back_and_vary() -> None:
    rng = random.Random(0)
    scenes = ("", ". A red box moves to the left on grass.", ". The blue sphere rises, a dog turns right.")
    for known in every_command():
        text = describe(known, rng)
        assert parse(text + rng.choice(scenes)) == known, text
        assert parse("A red box, fixed to a wall, moves up. " + text) == known, text
    said = {describe(command(("push in",), ("pan left",)), rng) for _ in range(200)}
    assert len(said) > 25
    assert describe(known, random.Random(5)) == describe(known, random.Random(5))


@pytest.mark.parametrize(
    ("moves", "speed"),
    [
        ((), 1.0),
        (("push in", "pull out"), 1.0),
        (("pan left", "pan left"), 1.0),
        (("fixed", "pan left"), 1.0),
        (("zoom in",), 1.0),
        (("push in",), 0.5),
        (("fixed",), 0.6),
    ],
)
def test_impossible_segments_are_refused(moves: tuple[str, ...], speed: float) -> None:
    with pytest.raises(ValueError, match=r"moves|motion|speed"):
        Segment(moves, speed)


def test_a_command_needs_a_segment() -> None:
    with pytest.raises(ValueError, match="fixed"):
        Command(())


def test_long_prompts_are_read_in_linear_time() -> None:
    begin = time.process_time()
    parse("the camera pans left to and " * 2000)
    parse("pan left toward the box and " * 2000)
    parse("a red box " * 5000)
    assert time.process_time() - begin < 8.0
