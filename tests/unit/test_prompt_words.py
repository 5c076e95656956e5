"""The English of the prompt grammar, near-duplicates and quotas: functions that need no build."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from world_r1_prompts import balance, minhash
from world_r1_prompts.config import Split
from world_r1_prompts.grammar import english, lexicon


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


@pytest.mark.parametrize(
    ("phrase", "plural"),
    [
        ("three dinghies", True),
        ("a row of poplars", False),
        ("a pair of spectacles", False),
        ("wild garlic", False),
        ("fronds of bracken", True),
        ("old newspapers", True),
        ("a carafe of water", False),
        ("river cobbles", True),
        ("moss", False),
        ("its edges", True),
        ("people", True),
        ("poppies and clover", True),
    ],
)
def test_number_of_a_noun_phrase(phrase: str, plural: bool) -> None:
    assert english.is_plural(phrase) is plural


@pytest.mark.parametrize(
    ("verb", "base", "ing"),
    [("stands", "stand", "standing"), ("lies", "lie", "lying"), ("carries", "carry", "carrying"), ("reaches", "reach", "reaching"),
     ("sits", "sit", "sitting"), ("rises", "rise", "rising"), ("is", "are", "being"), ("shoes", "shoe", "shoeing")],
)  # fmt: skip
def test_forms_of_a_verb(verb: str, base: str, ing: str) -> None:
    assert (english.plain(verb), english.participle(verb)) == (base, ing)


def test_a_clause_is_finite_or_absolute() -> None:
    assert english.clause("its posts ~ worn to points").finite == "its posts are worn to points"
    assert english.clause("a gull ~ +hangs on the wind").absolute == "a gull hanging on the wind"
    assert english.clause("two doors ~ +open and +shut").finite == "two doors open and shut"
    assert english.clause("a cage ~ with a cloud inside").finite == "a cage has a cloud inside"
    with pytest.raises(ValueError, match="a clause is written"):
        english.clause("a gull hangs")


def test_every_line_of_every_lexicon_reads_as_english() -> None:
    """Every slot has its bank, every verb its forms: all lines can be said both ways and no mark is left over."""
    words, rng = lexicon.load(), random.Random(0)
    lines = [line for scenes in words.scenes.values() for scene in scenes for slot in scene.items.values() for line in slot]
    lines += [detail for scenes in words.scenes.values() for scene in scenes for s in scene.subjects for detail in s.details]
    lines += [line for pool in words.light.values() for line in pool if not line.startswith("@")]
    assert len(lines) > 3000
    for line in lines:
        clause = words.clause(line, rng)
        for said in (clause.finite, clause.absolute, clause.tight):
            assert not set(said) & set("+~{}[]*/|"), said
    pools = {name for scenes in words.scenes.values() for scene in scenes for name in scene.light}
    assert pools <= set(words.light)


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
