"""The picture of a camera path: its angles, what it shows, and its errors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from world_r1_prompts import preview

from world_r1 import camera
from world_r1.cli import run

PRESET = camera.PRESETS["blockworld"]


def drawn(text: str) -> preview.Path:
    plan = camera.parse_plan(text)
    assert plan is not None
    path = camera.trajectory(plan, 17, (96, 160), PRESET)
    return preview.Path(path.c2w, path.Ks, path.size, path.depth, PRESET.pitch)


@pytest.mark.parametrize(
    ("text", "change"),
    [
        ("pan right 30 degrees", (30, 0, 0)),
        ("pan left 200 degrees", (-200, 0, 0)),
        ("tilt up 25 degrees", (0, 25, 0)),
        ("roll right 15 degrees", (0, 0, 15)),
        ("orbit right 40 degrees", (-40, 0, 0)),
        ("arc up 20 degrees", (0, -20, 0)),
        ("push in", (0, 0, 0)),
    ],
)
def test_angles(text: str, change: tuple[float, ...]) -> None:
    angles = drawn(text).angles
    np.testing.assert_allclose(angles[0], [0, np.degrees(PRESET.pitch), 0], atol=1e-4)
    np.testing.assert_allclose(angles[-1] - angles[0], change, atol=1e-3)


def centre(picture: np.ndarray, colour: tuple[int, ...], box: tuple[int, int, int, int]) -> np.ndarray:
    """Mean (x, y) of the pixels of a colour in a box."""
    left, upper, right, lower = box
    near = np.abs(picture[upper:lower, left:right].astype(int) - np.array(colour)).max(-1) < 12
    assert near.sum() > 20
    rows, columns = np.nonzero(near)
    return np.array([columns.mean() + left, rows.mean() + upper])


def test_both_views_show_where_the_camera_goes() -> None:
    """Beginning, end and subject lie where the directions of the two views put them."""
    picture = np.asarray(preview.draw(drawn("move right and move up"), "move right and move up", "A box."))
    assert picture.shape == (preview.HEIGHT, preview.WIDTH, 3)
    blue, orange, red = (38, 84, 184), (232, 150, 40), (200, 60, 60)
    top, side = (50, 142, 580, 602), (640, 142, 1170, 602)
    begin, end, subject = (centre(picture, colour, top) for colour in (blue, orange, red))
    assert end[0] > begin[0] + 40  # to the right
    assert subject[1] < begin[1] - 150  # the subject is ahead
    begin, end, subject = (centre(picture, colour, side) for colour in (blue, orange, red))
    assert end[1] < begin[1] - 20  # up
    assert subject[0] > begin[0] + 150
    assert subject[1] > begin[1] + 20  # the first camera looks down at it


def test_a_zoom_has_a_curve_and_narrower_cones() -> None:
    zoomed, plain = (np.asarray(preview.draw(drawn(text), "")) for text in ("zoom in 3 times", "fixed"))
    curve = (80, 656, 1080, 806)
    assert centre(zoomed, (214, 120, 20), curve)[1] < 740
    with pytest.raises(AssertionError):
        centre(plain, (214, 120, 20), curve)


def test_malformed_paths_are_refused() -> None:
    good = drawn("push in")
    with pytest.raises(ValueError, match="intrinsics"):
        preview.Path(good.c2w, good.Ks[:3], good.size, good.depth, 0.0)
    with pytest.raises(ValueError, match="positive depth"):
        preview.Path(good.c2w, good.Ks, good.size, 0.0, 0.0)


def test_the_command_draws_a_prompt_and_a_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "path.png"
    assert run(["prompts", "preview", "The camera arcs up. A box.", "--out", str(out), "--frames", "9"]) == 0
    assert capsys.readouterr().out.splitlines() == ["arc up", str(out)]
    with Image.open(out) as image:
        assert image.size == (preview.WIDTH, preview.HEIGHT)
    source = tmp_path / "prompts.jsonl"
    source.write_text(json.dumps({"id": "p7", "text": "Camera zoom out."}) + "\n")
    assert run(["prompts", "preview", str(source), "--id", "p7", "--out", str(out), "--preset", "world_r1"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "zoom out"


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["A box."], "names no camera"),
        (["The camera pans left while panning right."], "characters 27-40"),
        (["Camera push in.", "--preset", "film"], "no preset 'film'"),
        (["Camera push in.", "--out", "path.gif"], "PNG"),
        (["blockworld:test:2", "--id", "nobody"], "no prompt with the id 'nobody'"),
    ],
)
def test_errors_of_the_command(arguments: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["prompts", "preview", *arguments]) == 2
    assert why in capsys.readouterr().err
