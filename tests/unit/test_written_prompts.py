"""Scenes written whole: their files, what becomes of them in a build, and that every shipped one keeps the rules."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from world_r1_prompts import config, pipeline, written
from world_r1_prompts.config import Words
from world_r1_prompts.record import CATEGORIES
from world_r1_prompts.validate import defects

from world_r1.curation import Camera

ROOT = Path(__file__).parents[2]
TEXT = """# two of them
@ natural / coast
< split boulder | The camera circles left.
On a beach of grey shingle lies a boulder split down the middle, with two bleached logs crossed in front of it.

@ dynamic / single mover
> kite | The camera is fixed.
Over a mown field, a red kite climbs to the left of a row of poplars, drops, and climbs again.
"""


@pytest.fixture(scope="module")
def camera() -> Camera:
    return Camera()


def test_an_entry_is_a_subject_a_camera_sentence_and_a_scene(camera: Camera) -> None:
    first, second = written.read(TEXT, "coast.txt")
    assert (first.category, first.subcategory, first.subject, first.last, first.test) == (
        "natural",
        "coast",
        "split boulder",
        False,
        False,
    )
    record = first.record(7, camera)
    assert record.text == f"The camera circles left. {record.base}"
    assert record.camera is not None
    assert (record.id, record.split, record.kind, record.camera["text"]) == ("w000007", "", "rigid", "orbit left")
    assert record.source == "written:natural/coast/split boulder"
    (_, held_out) = written.read(TEXT, "test.txt", test=True)
    moved = held_out.record(0, camera)
    assert (moved.split, moved.kind, moved.quality["difficulty"]) == ("test", "dynamic", "still")
    assert moved.text == f"{second.scene} The camera is fixed."


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("< a | Pan left.\nA scene.", "x.txt:1: expected '< subject | camera sentence.' below a line '@ ...'"),
        ("@ natural", "x.txt:1: expected '@ category / subcategory' with one of natural"),
        ("@ seaside / coast", "x.txt:1: expected '@ category / subcategory'"),
        ("@ natural / coast\n< a | Pan left\nA scene.", "x.txt:2: expected '< subject"),
        ("@ natural / coast\n< a | Pan left.\n< b | Pan left.", "x.txt:3: expected the scene of 'a'"),
        ("@ natural / coast\nA scene.", "x.txt:2: expected '@', '<', '>' or '#'"),
        ("@ natural / coast\n< a | Pan left.", "x.txt: the last entry, 'a', has no scene"),
    ],
)
def test_a_malformed_file_names_the_line(text: str, says: str) -> None:
    with pytest.raises(ValueError) as found:
        list(written.read(text, "x.txt"))
    assert says in str(found.value)


def test_every_shipped_scene_keeps_the_rules_and_no_two_share_a_subject(camera: Camera) -> None:
    entries = written.load()
    assert {entry.category for entry in entries} == set(CATEGORIES)
    for number, entry in enumerate(entries):
        record = entry.record(number, camera)
        assert next(defects(record, camera, Words()), None) is None, (entry, next(defects(record, camera, Words())))
    for test in (True, False):
        counts = Counter((entry.category, entry.subject) for entry in entries if entry.test == test)
        assert max(counts.values()) == 1, counts.most_common(3)
    openings = Counter(" ".join(entry.scene.split()[:3]).lower() for entry in entries)
    assert len(openings) > 0.95 * len(entries)


def test_a_build_of_written_scenes_keeps_the_test_apart(tmp_path: Path, camera: Camera) -> None:
    wanted = config.load(ROOT / "configs/prompts.yaml")
    counts = {"train": 120, "dynamic": 20, "test": 28}
    splits = {name: split.model_copy(update={"count": counts[name]}) for name, split in wanted.splits.items()}
    less = {"splits": splits, "tolerance": 9.0, "dedup": config.Dedup(embeddings="none"), "work": tmp_path / "work"}
    built = pipeline.build(wanted.model_copy(update=less), camera)
    held_out = {entry.scene for entry in written.load() if entry.test}
    assert {name: len(records) for name, records in built.splits.items()} == counts
    assert all((record.base in held_out) == (name == "test") for name, records in built.splits.items() for record in records)
    again = pipeline.build(wanted.model_copy(update=less | {"work": tmp_path / "other"}), camera)
    assert again.splits == built.splits


def test_candidates_belong_to_the_grammar(tmp_path: Path) -> None:
    file = tmp_path / "build.yaml"
    text = (ROOT / "configs/prompts.yaml").read_text()
    file.write_text(text.replace("source: written", "source: written\ncandidates: 30"))
    with pytest.raises(ValueError, match="written scenes are taken as they are"):
        config.load(file)
    file.write_text(text.replace("source: written", "source: grammar"))
    with pytest.raises(ValueError, match="the grammar needs a positive number"):
        config.load(file)
