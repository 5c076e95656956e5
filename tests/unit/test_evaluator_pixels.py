"""What single pixels show: labels from the ray-caster, and the dominant object read off the areas."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from world_r1.blockworld import data, scenes, weights_path
from world_r1.blockworld.evaluator import Evaluator
from world_r1.blockworld.evaluator_dense import areas, key_frames, moved_labels, read_off
from world_r1.blockworld.judge_data import SIZE_STEPS, SURVEY, SURVEYED, Pool, augment, surveyed
from world_r1.blockworld.judge_labels import CLASSES, COLOURS, FIRST_OBJECT, SURFACES, labels


@pytest.fixture(scope="module")
def pool() -> Pool:
    """Twelve scenes; nobody looks at their videos."""
    drawn = data.draw(12, 3)
    return surveyed(Pool(torch.zeros(12, 3, 2, 8, 8, dtype=torch.uint8), drawn.facts), torch.device("cpu"))


def test_the_key_frames_are_those_of_the_survey() -> None:
    assert key_frames(scenes.FRAMES) == [0, 8, 16]


def test_the_survey_names_what_every_pixel_shows(pool: Pool) -> None:
    assert pool.surfaces is not None
    assert pool.surfaces.shape == (12, 2, *SURVEY)
    for fact, (seen, steps) in zip(pool.facts, pool.surfaces, strict=True):
        shown = {SURFACES[i] for i in seen.unique().tolist()}
        things = {f"{thing['colour']} {thing['shape']}" for thing in fact["objects"]}
        places = {
            fact["floor"],
            fact["sky"],
            "ceiling" if fact["indoor"] else None,
            fact["indoor"] and f"{fact['wall_colour']} wall",
        }
        assert fact["floor"] in shown
        assert shown <= things | places
        assert int((seen >= FIRST_OBJECT).sum()) == sum(fact["areas"])
        sizes = {round(SIZE_STEPS * math.log2(area)) for area in fact["areas"] if area}
        assert set(steps[seen >= FIRST_OBJECT].tolist()) == sizes
        assert not steps[seen < FIRST_OBJECT].any()


def _sure(surfaces: torch.Tensor) -> torch.Tensor:
    """The maps of a segmenter that knows."""
    chance = 30.0 * nn.functional.one_hot(surfaces[:, 0].long(), len(SURFACES)).permute(0, 1, 4, 2, 3)
    return torch.cat([chance, (surfaces[:, 1, :, None] / SIZE_STEPS - math.log2(SURVEYED))], 2)


def test_the_dominant_object_is_read_off_the_areas(pool: Pool) -> None:
    assert pool.surfaces is not None
    answers, truth = read_off(*areas(_sure(pool.surfaces))), labels(pool.facts)
    assert torch.equal(answers["object_colour"].argmax(1), truth["object_colour"])
    assert torch.equal(answers["object_shape"].argmax(1), truth["object_shape"])


def test_twins_are_told_apart_by_the_size_of_their_objects() -> None:
    """Two red boxes of 300 and 200 pixels a frame cover more than one green box of 400, but each less."""
    red, green = SURFACES.index("red box"), SURFACES.index("green box")
    surfaces = torch.zeros(1, 2, *SURVEY, dtype=torch.uint8)
    for start, end, kind in ((0, 300, red), (1000, 1200, red), (2000, 2400, green)):
        surfaces[:, 0].flatten(2)[..., start:end] = kind
        surfaces[:, 1].flatten(2)[..., start:end] = round(SIZE_STEPS * math.log2(3 * (end - start)))
    share, largest = areas(_sure(surfaces))
    assert share[0, red] > share[0, green]
    assert largest[0, COLOURS.index("red")] == pytest.approx(900 / SURVEYED, rel=0.05)
    assert COLOURS[int(read_off(share, largest)["object_colour"].argmax())] == "green"


def test_an_object_of_doubtful_shape_is_no_smaller() -> None:
    """A red thing of 500 pixels, half of them taken for a box and half for a sphere, is larger than a green box of 400."""
    red_box, red_sphere, green = (SURFACES.index(name) for name in ("red box", "red sphere", "green box"))
    surfaces = torch.zeros(1, 2, *SURVEY, dtype=torch.uint8)
    for start, end, kind, size in ((0, 240, red_box, 500), (240, 500, red_sphere, 500), (2000, 2400, green, 400)):
        surfaces[:, 0].flatten(2)[..., start:end] = kind
        surfaces[:, 1].flatten(2)[..., start:end] = round(SIZE_STEPS * math.log2(3 * size))
    answers = read_off(*areas(_sure(surfaces)))
    assert COLOURS[int(answers["object_colour"].argmax())] == "red"
    assert scenes.SHAPES[int(answers["object_shape"].argmax())] == "sphere"


def test_pixel_labels_follow_the_augmentation() -> None:
    """A chessboard of labels, resampled as a picture, shows the moved labels."""
    surfaces = ((torch.arange(48)[:, None] // 6 + torch.arange(80)[None] // 8) % 2).expand(1, 3, 48, 80).to(torch.uint8)
    x = (surfaces.float() - 0.5)[:, None].expand(1, 3, 3, 48, 80).repeat_interleave(2, 3).repeat_interleave(2, 4)
    for seed in range(8):
        moved, resampling = augment(x, torch.Generator().manual_seed(seed))
        want = moved_labels(surfaces, resampling, (96, 160), (96, 160))
        off = ((moved[0, 0] > 0) != want[0]).float().mean()
        assert off < 0.02
        if resampling.abs().sum() > 0:
            assert off < 0.7 * ((moved[0, 0] > 0) != (x[0, 0] > 0)).float().mean()
    assert torch.equal(moved_labels(surfaces, torch.zeros(1, 3), (48, 80), (96, 160)), surfaces)


def test_an_evaluator_without_pixels_still_loads_and_answers(tmp_path: Path) -> None:
    """Weights from before there was a decoder have no `dense` in their configuration."""
    torch.manual_seed(0)
    video = np.random.default_rng(0).integers(0, 256, (1, 5, 26, 42, 3), dtype=np.uint8)
    Evaluator((8, 8, 8, 8), 8, dense=0).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert "surfaces" not in config
    del config["dense"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = Evaluator.from_pretrained(tmp_path)
    assert loaded.segmenter is None
    assert loaded.predict(video)["object_colour"][0] in CLASSES["object_colour"]
    assert set(Evaluator.from_pretrained(weights_path() / "evaluator").predict(video)) == set(loaded.predict(video))
