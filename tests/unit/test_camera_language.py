"""The language of camera plans: what is read, what is scene, what is refused and where, and that everything written is read back."""

from __future__ import annotations

import copy
import pickle
import random
import string
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from world_r1 import camera
from world_r1.command import CameraTextError, parse_plan
from world_r1.command.plan import KINDS
from world_r1.command.vocabulary import vocabulary

MOVES = [name for name in KINDS if name != "fixed"]

READ = {
    # amounts, durations, curves, extents
    "The camera slowly pushes in while tilting up 10 degrees, then orbits left by 30 degrees for two seconds.": (
        "push in and tilt up 10 degrees slowly, then orbit left 30 degrees for 2 seconds"
    ),
    "Camera: pan left by forty-five degrees.": "pan left 45 degrees",
    "The camera moves 1.5 metres to the left. A boat.": "move left 1.5 metres",
    "The camera booms down three feet.": "crane down 0.914 metres",
    "The camera glides forward half a metre.": "push in 0.5 metres",
    "The camera circles all the way around clockwise.": "orbit left 360 degrees",
    "The camera rolls counter-clockwise 15\u00b0 while it descends.": "roll left 15 degrees and move down",
    "Zoom in 2x.": "zoom in 2 times",
    "The camera slides a little to the right.": "move right slightly",
    "The camera barely tilts down.": "tilt down barely",
    "The camera pulls back a long way.": "pull out far",
    "The camera pushes in very slowly.": "push in very slowly",
    "The camera pushes in, accelerating, then pans left, slowing down.": "push in accelerating, then pan left decelerating",
    "The camera pans left with a soft start and stop.": "pan left easing in and out",
    "Over two seconds, the camera pushes in, then it holds for three seconds.": "push in for 2 seconds, then fixed for 3 seconds",
    "The camera glides forward, very slowly, toward the red house for three seconds, then tilts down.": (
        "push in very slowly for 3 seconds, then tilt down"
    ),
    "The camera pushes in slowly and tilts up at normal speed.": "push in slowly and tilt up at normal speed",
    # the new moves and their synonyms
    "The camera banks left.": "roll left",
    "The camera arcs up over the roof.": "arc up",
    "The camera arcs left around the tower by ninety degrees.": "orbit left 90 degrees",
    "The camera rotates left around the fountain.": "orbit left",
    "The camera cranes up quickly and zooms out a little.": "crane up and zoom out slightly quickly",
    "A slow zoom in.": "zoom in slowly",
    "The camera zooms into the flower.": "zoom in",
    "Static camera, zooming in slowly.": "zoom in slowly",
    "The camera stays still while zooming out.": "zoom out",
    "Handheld camera, first moving forward, then panning to the right.": "push in, then pan right, handheld",
    "A very shaky handheld shot: the camera moves left.": "move left, very shaky handheld",
    "Filmed with a handheld camera, a dog runs.": "handheld",
    "The camera is handheld and pushes in.": "push in, handheld",
    # order, simultaneity, objects
    "Camera: slow dolly in, then a fast pan to the left.": "push in slowly, then pan left quickly",
    "The camera begins with a slow push in, followed by a quick pan right.": "push in slowly, then pan right quickly",
    "The camera pushes in with a slight tilt up.": "push in and tilt up slightly",
    "The camera pushes in after panning left.": "pan left, then push in",
    "The camera flies forward over the valley while gently descending.": "push in and move down slowly",
    "The camera pulls back and up.": "pull out and move up",
    "The camera pans left and right.": "pan left, then pan right",
    "The camera pans from left to right across the valley.": "pan right",
    "The camera moves through the gate, then tilts up.": "push in, then tilt up",
    "The camera pushes in and holds.": "push in, then fixed",
    "Move the camera to the left slowly.": "move left slowly",
    "The camera performs a 45-degree orbit to the right.": "orbit right 45 degrees",
    # negation
    "The camera does not move.": "fixed",
    "A garden without any camera movement.": "fixed",
    "The camera does not pan left but pushes in.": "push in",
    "The camera never tilts up; it pans left.": "pan left",
}

SCENES = """
A fixed table stands beside a static display.
Fixed to the wall, a lamp glows.
A still lake mirrors the peaks.
The clock on the tower is fixed at noon.
The fixed stars turn slowly above the dome.
A fixed bridge spans the canal.
The statue remains still as crowds move left and right.
Boats move left along the quay.
A tram moves left, then turns right at the corner.
Leaves drift left across the wet stones.
Clouds move right above the ridge while the sea stays still.
The crowd moves forward, then back.
A glass elevator moves up the facade.
The river bends left, then right, and drops out of sight.
A path turns right at the mill.
Turn left at the old mill and the valley opens.
A wooden staircase spirals up to the right.
Stairs lead up and to the left.
The train rolls left past the signal box.
A wheel rolls to the right.
Rolling hills move out of the mist.
Bread rolls left on the table grow cold.
A barrel rolls down the ramp.
Dough is rolled out on a floured board.
A truck left in the snow rusts quietly.
Truck left in the snow.
A red truck moves left.
Trucks left by the harbour wall.
Train tracks left by the old quarry.
A crane lifts a beam up into the sky.
A crane up in the sky turns slowly.
Crane up in the sky, wings spread.
Cranes rise from the reeds and circle left.
A stone arc up on the hill.
The arc of the bridge tilts up from the river.
A dolly left in the corner of the workshop.
A pan left on the stove steams.
A pan left on the stove.
She pans for gold on the left bank.
Copper pans hang left of the oven.
Pans left to dry.
A map shows the orbit left by the comet.
The moon orbits to the right of a ringed planet.
Satellites orbit left to right across the dome.
Planets circle left around a dim sun.
A falcon circles right, then dives down.
Look left and the lagoon glitters.
Look up at the vaulted ceiling, where gold stars fade.
A child looks up, then down.
Two windows look out to the left.
The lighthouse beam rotates clockwise.
A mirror tilts down toward the floor.
The mast tilts left in the wind.
A door pushes in with the wind.
Waves push in and pull out over the pebbles.
The tide pulls back, then pushes in again.
A drawer pulled out to the left.
A telescope zooms in on a distant moon.
A map app zooms out on a phone screen.
The motorbike zooms in from the left.
A handheld lantern swings to the right.
Handheld fans flutter left and right.
A man with a handheld camera moves left.
The photographer holding the camera moves to the right.
A tourist lowers the camera and turns left.
He drops the camera, turns left and runs.
A security camera pans left above the gate.
The toy camera moves left.
The camera on the tripod moves left.
The camera shop moves right across the street.
A cat looks at the camera and moves forward.
An old box camera, fixed to a tripod, points up.
The box in front of the camera moves up.
A view of the valley opens to the left.
A still from an old film hangs on the wall.
The gun shot echoes left and right.
A steady shot of light rises up the wall.
The frame tilts left on its nail.
A static charge lifts the paper up.
The static of the radio moves in and out.
The kite rises, sinks, then moves right.
Smoke rises slowly, then drifts to the left.
Fog moves in.
The lift descends two metres and stops.
The gate swings 90 degrees to the left.
Hold still, the photographer says.
First the boats move left, then the gulls rise.
Move over to the window, the rain has stopped.
Slowly the sun moves down behind the pier.
Slowly, the drawbridge tilts up.
The dancers turn left, roll right and fall back.
Then the snow moves in from the north.
In the left pan of the scale lies a feather.
Nothing moves in the square.
The door does not move.
No movement in the grass.
Without moving, the heron waits.
A boom up ahead shakes the glass.
The boom swings left over the deck.
A slide to the left of the swings.
Slide left of the swings, a sandbox waits.
A push up the hill, a long pull back down.
The road climbs, turns left and descends to the sea.
The camera follows the car.
The camera looks at the house.
The camera does not pan left.
The camera never stops.
""".strip().split("\n")

REFUSED = {
    "The camera pans across the valley.": ("ambiguous", "pans"),
    "The camera moves in a circle.": ("ambiguous", "moves"),
    "A hut. The camera turns toward the door.": ("ambiguous", "turns"),
    "The camera pushes in while panning.": ("ambiguous", "panning"),
    "Pan left while panning right.": ("contradictory", "panning right"),
    "The camera pushes in as it pulls out.": ("contradictory", "pulls out"),
    "The camera is fixed while panning left.": ("contradictory", "panning left"),
    "The camera slowly and quickly pans left.": ("contradictory", "quickly"),
    "The camera slightly pans left by 30 degrees.": ("contradictory", "by 30 degrees"),
    "The camera is handheld and static.": ("contradictory", "The camera is handheld and static"),
    "The camera pans left for 2 seconds while tilting up for 3 seconds.": ("contradictory", "tilting up for 3 seconds"),
    "Tilt up 200 degrees.": ("impossible", "Tilt up 200 degrees"),
    "The camera tilts up two metres.": ("impossible", "tilts up two metres"),
    "Zoom in 0.5 times.": ("impossible", "Zoom in 0.5 times"),
    "\u0130stanbul, \u0130zmir. The camera rolls left while rolling right.": ("contradictory", "rolling right"),
}


@pytest.mark.parametrize(("text", "canonical"), READ.items())
def test_reads(text: str, canonical: str) -> None:
    plan = parse_plan(text)
    assert plan is not None
    assert plan.text == canonical
    assert parse_plan(canonical) == plan


@pytest.mark.parametrize("scene", SCENES)
def test_a_scene_is_no_command(scene: str) -> None:
    assert parse_plan(scene) is None
    assert parse_plan(f"A quiet place. {scene} The air is clear.") is None
    assert parse_plan(f"{scene} Camera push in.") == parse_plan("push in")


def test_there_are_enough_tricky_scenes() -> None:
    assert len(set(SCENES)) >= 60


@pytest.mark.parametrize(("text", "problem"), REFUSED.items())
def test_refusals_say_what_and_where(text: str, problem: tuple[str, str]) -> None:
    with pytest.raises(CameraTextError) as caught:
        parse_plan(text)
    error = caught.value
    assert (error.kind, text[error.start : error.end]) == problem
    assert f"characters {error.start}-{error.end}" in str(error)
    assert isinstance(error, ValueError)
    assert str(pickle.loads(pickle.dumps(error))) == str(copy.copy(error)) == str(error)
    assert camera.plan_for(text) == camera.plan_for(text)  # training never fails on a text


def test_what_training_makes_of_a_contradiction() -> None:
    plan = camera.plan_for("The camera pans left while panning right.")
    assert plan is not None
    assert plan.text == "pan left, then pan right"
    assert camera.plan_for("The camera pans across the valley.") is None


# ---- any text


def _survives(text: str) -> None:
    """Reading raises nothing but the documented error, with a position in the text, and what it finds is read back."""
    plan, refused = None, None
    try:
        plan = parse_plan(text)
    except CameraTextError as error:
        refused = error
    assert refused is None or 0 <= refused.start < refused.end <= len(text)
    assert plan is None or parse_plan(plan.text) == plan
    camera.plan_for(text)


WORDS = sorted(
    {
        *vocabulary().forms, *vocabulary().starts_still, *vocabulary().starts_motion, *vocabulary().joints, *vocabulary().units,
        *vocabulary().auxiliaries, *vocabulary().object_starts, *vocabulary().shots, "the camera", "camera", "it", "box", "2", "0", "1.5",
        ",", ".", ", then", "while", "and", "30 degrees", "for two seconds", "by", "red", "handheld", "motion", "clockwise", "degrees",
    }
)  # fmt: skip


def test_ten_thousand_texts_of_camera_words() -> None:
    rng = random.Random(4)
    found = 0
    for _ in range(10_000):
        text = rng.choice(("the camera ", "", "camera ")) + " ".join(rng.choices(WORDS, k=rng.randint(1, 16)))
        _survives(text)
        found += camera.plan_for(text) is not None
    assert found > 500  # the texts do hold commands


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(WORDS), max_size=20).map(" ".join))
def test_any_text_of_camera_words(text: str) -> None:
    _survives(text)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=200))
def test_any_unicode(text: str) -> None:
    _survives(text)
    _survives("The camera " + text)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=6)), max_size=16).map(" ".join))
def test_any_mixture(text: str) -> None:
    _survives(text)


def test_numbers_of_any_size_are_refused_or_read() -> None:
    for digits in ("0", "9" * 400, "0.0001", "1" + "0" * 30, "\u0663"):
        _survives(f"The camera pans left {digits} degrees for {digits} seconds.")


def test_reading_is_linear() -> None:
    begin = time.process_time()
    for long in (
        "the camera pans left to and " * 2000,
        "pan left toward the box and " * 2000,
        "a red box " * 5000,
        string.printable * 99,
    ):
        _survives(long)
    assert time.process_time() - begin < 8.0
