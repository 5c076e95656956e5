"""Scenes and how they are read, near-duplicates and quotas: functions that need no build."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from world_r1_prompts import balance, minhash
from world_r1_prompts.config import Split
from world_r1_prompts.grammar import english, scenes
from world_r1_prompts.validate import CAMERA_WORDS, STOCK, UNSAFE

from world_r1.curation import Camera


@pytest.mark.parametrize(
    ("text", "mended"),
    [
        ("a orange door and a hour", "an orange door and an hour"),
        ("an uniform row, an one-eyed cat", "a uniform row, a one-eyed cat"),
        ("a unicorn, an umbrella", "a unicorn, an umbrella"),
        ("A ivory key", "An ivory key"),
        ("an European town, a used car", "a European town, a used car"),
    ],
)
def test_articles_follow_the_next_word(text: str, mended: str) -> None:
    assert english.articles(text) == mended


COAST = """\
@ rocky coast
== lighthouse : ou
O A lighthouse stands on an islet.
O On an islet stands a [red|orange] lighthouse.
d Its gallery is rusty.
d Its door is shut.
n In front of the islet lie two floats.
N A keg stands in the foreground.
f Behind the keg, a headland drops to the sea.
F Low hills rise behind <>.
S On the %, gorse runs down to the sea.
s To the % of the lighthouse, a mast leans.
w Low sun skims the water.
w Fog hides the hills.
"""


def test_an_entry_is_read_with_what_each_line_presupposes() -> None:
    (found,) = scenes.read(COAST, "natural")
    assert (found.key, found.head, found.category, found.scene) == (
        "natural/rocky-coast/lighthouse", "lighthouse", "natural", "rocky coast",
    )  # fmt: skip
    assert found.flags == {"orbit", "crane"}
    assert len(found.openings) == 2
    keg, hills = found.lines["far"]
    assert keg.needs == {"keg"}
    assert (hills.needs, hills.opens) == (frozenset(), True)
    assert [line.needs for line in found.lines["near"]] == [{"islet"}, frozenset()]
    assert found.lines["light"][1].needs == {"hill"}
    rng = random.Random(0)
    assert {scenes.fill("A [red|orange] hut.", rng) for _ in range(20)} == {"A red hut.", "An orange hut."}
    assert scenes.fill("On the %, gorse.", rng, "left") == "On the left, gorse."


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("== lighthouse : ou", "== lighthouse : ox", r"mine:2: an entry begins '== name : flags'"),
        ("d Its door is shut.", "d Its door is shut", r"mine:6: a line is a letter"),
        ("d Its door is shut.", "x Its door is shut.", r"mine:6: a line is a letter"),
        ("On the %, gorse", "On the left, gorse", r"mine:11: sentences of a side"),
        ("N A keg", "N A keg on the %", r"mine:8: sentences of a side"),
        ("w Fog hides the hills.\n", "", r"mine:2: 'lighthouse' has too few sentences of light"),
        ("O On an islet stands a [red|orange] lighthouse.\n", "", r"'lighthouse' has too few sentences of openings"),
    ],
)
def test_a_malformed_entry_is_an_error_with_its_line(old: str, new: str, says: str) -> None:
    assert old in COAST
    with pytest.raises(ValueError, match=says):
        list(scenes.read(COAST.replace(old, new), "natural", "mine"))


def test_every_sentence_of_every_scene_keeps_the_rules() -> None:
    """All sentences, said once on either side: no mark left over, no rule broken, and no command to a camera."""
    library = scenes.load()
    subjects = [subject for found in library.values() for subject in found]
    assert len(subjects) > 300
    rng, language = random.Random(0), Camera()
    for subject in subjects:
        lines = [line.text for found in subject.lines.values() for line in found]
        assert len({*lines, *subject.openings}) == len(lines) + len(subject.openings), subject.key
        for text in (*subject.openings, *lines):
            for side in ("left", "right"):
                said = scenes.fill(text, rng, side).replace("<>", f"the {subject.head}")
                assert not set(said) & set("[]|%<>~+*"), said
                assert language.read(said) is None, said
                for pattern in (CAMERA_WORDS, STOCK, UNSAFE):
                    assert pattern.search(said) is None, said
        noun = max(scenes.stems(subject.head.split()[-1]), key=len)
        assert all(noun in opening.lower() for opening in subject.openings), subject.key


def test_minhash_estimates_jaccard() -> None:
    rng = random.Random(0)
    words = [f"w{i}" for i in range(300)]
    for keep in (30, 60, 90):
        one = rng.sample(words, 120)
        other = one[:keep] + rng.sample(words, 120 - keep)
        marks = minhash.signatures([" ".join(one), " ".join(other)], 512, 3)
        sets = [{tuple(text[i : i + 3]) for i in range(118)} for text in (one, other)]
        true = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
        assert abs(float(minhash.similarity(marks[0], marks[1])) - true) < 0.09


def test_near_duplicates_are_found_and_the_first_stays() -> None:
    rng = random.Random(1)
    texts = [" ".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=60)) for _ in range(200)]
    texts[150] = texts[20] + " x"
    texts[199] = texts[20]
    found = minhash.duplicates(minhash.signatures(texts), 0.6)
    assert found == {150: 20, 199: 20}
    marks = minhash.signatures(texts)
    assert minhash.nearest(marks[150:151], marks[:100]).item() > 0.9


def test_shares_sum_to_the_total() -> None:
    assert balance.shares(10, {"a": 1, "b": 1, "c": 1}) == {"a": 4, "b": 3, "c": 3}
    assert balance.shares(7, {"a": 3, "b": 1}) == {"a": 5, "b": 2}


def test_selection_meets_quotas_and_spreads_subjects() -> None:
    rng = random.Random(0)
    moves = ["push in", "pan left", "orbit left", "tilt up"]
    weights = [0.6, 0.2, 0.15, 0.05]
    items = []
    for index in range(4000):
        difficulty = rng.choice(["single", "pair"])
        drawn = tuple(rng.choices(moves, weights, k=1 + (difficulty == "pair")))
        items.append(balance.Item(index, rng.choice("ab"), difficulty, f"s/{rng.randrange(40)}", drawn))
    split = Split(count=400, categories={"a": 3, "b": 1}, difficulties={"single": 1, "pair": 1}, moves=dict.fromkeys(moves, 1.0))
    chosen = balance.select(items, split, 400)
    assert len(set(chosen)) == 400
    assert Counter(items[k].category for k in chosen) == {"a": 300, "b": 100}
    assert Counter(items[k].difficulty for k in chosen) == {"single": 200, "pair": 200}
    counts = Counter(move for k in chosen for move in items[k].moves)
    assert all(abs(value) < 0.05 for value in balance.off_quota(counts, split.moves).values()), counts
    assert max(Counter(items[k].subject for k in chosen).values()) <= 20
    first = Counter(items[k].category for k in chosen[:40])
    assert abs(first["a"] - 30) <= 2


def test_held_out_subjects_come_from_every_scene() -> None:
    names = [f"c/{scene}/{n}" for scene in "xyz" for n in range(9)]
    apart = balance.held_out(names, 0)
    assert Counter(name.split("/")[1] for name in apart) == {"x": 1, "y": 1, "z": 1}
    assert apart == balance.held_out(reversed(names), 0) != balance.held_out(names, 1)
