"""Advantages by hand-worked numbers."""

from __future__ import annotations

import math

import pytest

from world_r1.advantage import group_relative
from world_r1.config import AdvantageConfig
from world_r1.types import Group, Prompt, Score, Verdict


def score(name: str, value: float | None) -> Score:
    return Score(name, "ok" if value is not None else "failed", value)


def group(name: str, totals: list[float | None], **parts: list[float | None]) -> Group:
    """A group with these totals; `parts` are the scores behind them (by default one reward "r" that is the total)."""
    parts = parts or {"r": totals}
    verdicts = tuple(
        Verdict(f"{name}{i}", total, tuple(score(part, values[i]) for part, values in parts.items()))
        for i, total in enumerate(totals)
    )
    return Group(Prompt(name, "a box"), tuple(f"{name}{i}" for i in range(len(totals))), verdicts)


def test_by_hand() -> None:
    # mean 4, population std sqrt((9 + 1 + 1 + 9) / 4) = sqrt(5)
    result = group_relative([group("a", [1.0, 3.0, 5.0, 7.0])], {"r": 1.0}, AdvantageConfig())
    expected = [-3 / math.sqrt(5), -1 / math.sqrt(5), 1 / math.sqrt(5), 3 / math.sqrt(5)]
    assert [result.values[f"a{i}"] for i in range(4)] == pytest.approx(expected)
    assert result.metrics["group_std"] == pytest.approx(math.sqrt(5))
    assert result.metrics["videos_trained"] == 4


def test_groups_do_not_see_each_other() -> None:
    alone = group_relative([group("a", [0.0, 1.0])], {"r": 1.0}, AdvantageConfig()).values
    beside = group_relative([group("a", [0.0, 1.0]), group("b", [100.0, 300.0, 200.0])], {"r": 1.0}, AdvantageConfig()).values
    assert (beside["a0"], beside["a1"]) == (alone["a0"], alone["a1"]) == (-1.0, 1.0)
    assert beside["b2"] == pytest.approx(0.0)


def test_a_missing_score_is_masked_not_zero() -> None:
    # valid: 2, 4 -> mean 3, std 1; a zero for the missing one would give mean 2
    result = group_relative([group("a", [2.0, None, 4.0])], {"r": 1.0}, AdvantageConfig())
    assert [result.values[f"a{i}"] for i in range(3)] == [-1.0, None, 1.0]
    assert result.metrics["videos_missing"] == 1
    assert result.metrics["videos_trained"] == 2
    assert result.metrics["groups_few_valid"] == 0


def test_not_a_number_is_missing_too() -> None:
    result = group_relative([group("a", [2.0, math.nan, 4.0, math.inf], r=[2.0, None, 4.0, None])], {"r": 1.0}, AdvantageConfig())
    assert [result.values[f"a{i}"] for i in range(4)] == [-1.0, None, 1.0, None]
    assert result.metrics["videos_missing"] == 2


def test_dropped_groups_are_counted() -> None:
    groups = [
        group("flat", [0.5, 0.5, 0.5]),
        group("nearly", [0.5, 0.5 + 1e-5, 0.5]),
        group("few", [0.1, None, None]),
        group("none", [None, None, None]),
        group("good", [0.0, 1.0, None]),
    ]
    result = group_relative(groups, {"r": 1.0}, AdvantageConfig(min_std=1e-4))
    assert {name for name, value in result.values.items() if value is not None} == {"good0", "good1"}
    assert (result.metrics["groups"], result.metrics["groups_flat"], result.metrics["groups_few_valid"]) == (5, 2, 2)
    assert (result.metrics["videos"], result.metrics["videos_missing"], result.metrics["videos_trained"]) == (15, 6, 2)
    strict = group_relative(groups, {"r": 1.0}, AdvantageConfig(min_valid=3))
    assert all(value is None for value in strict.values.values())
    assert strict.metrics["groups_few_valid"] == 3
    assert strict.metrics["group_std"] == 0.0


def test_clip() -> None:
    # 19 equal and one outlier: its standardised value is sqrt(19)
    totals: list[float | None] = [0.0] * 19 + [1.0]
    free = group_relative([group("a", totals)], {"r": 1.0}, AdvantageConfig(clip=5.0))
    assert free.values["a19"] == pytest.approx(math.sqrt(19))
    assert free.metrics["advantage_clipped"] == 0.0
    tight = group_relative([group("a", totals)], {"r": 1.0}, AdvantageConfig(clip=2.0))
    assert tight.values["a19"] == 2.0
    assert tight.values["a0"] == pytest.approx(-1 / math.sqrt(19))
    assert tight.metrics["advantage_clipped"] == pytest.approx(1 / 20)


def test_parts_weigh_alike_whatever_their_spread() -> None:
    # "small" spreads 0.01 and "large" 100: the total follows "large" alone; standardised parts cancel in a1/a2 and agree in a0/a3
    small, large = [0.00, 0.02, 0.00, 0.02], [0.0, 0.0, 200.0, 200.0]
    totals: list[float | None] = [a + b for a, b in zip(small, large, strict=True)]
    weights = {"small": 1.0, "large": 1.0}
    total = group_relative([group("a", totals, small=small, large=large)], weights, AdvantageConfig()).values
    assert total["a1"] == pytest.approx(-1.0, abs=1e-3)
    parts = group_relative([group("a", totals, small=small, large=large)], weights, AdvantageConfig(standardise="parts")).values
    # sums of standardised parts: -2, 0, 0, 2; root mean square sqrt(2)
    assert [parts[f"a{i}"] for i in range(4)] == pytest.approx([-math.sqrt(2), 0.0, 0.0, math.sqrt(2)])


def test_parts_are_weighted_and_scaled_over_the_batch() -> None:
    config = AdvantageConfig(standardise="parts")
    a = group("a", [0.0, 0.0], x=[0.0, 1.0], y=[1.0, 0.0])  # 3 (-1, 1) + 1 (1, -1) = (-2, 2)
    b = group("b", [0.0, 0.0], x=[0.0, 1.0], y=[0.0, 9.0])  # 3 (-1, 1) + 1 (-1, 1) = (-4, 4)
    values = group_relative([a, b], {"x": 3.0, "y": 1.0, "unused": 2.0}, config).values
    scale = math.sqrt((4 + 4 + 16 + 16) / 4)
    assert [values[k] for k in ("a0", "a1", "b0", "b1")] == pytest.approx([-2 / scale, 2 / scale, -4 / scale, 4 / scale])


def test_parts_with_missing_values_and_flat_parts() -> None:
    config = AdvantageConfig(standardise="parts")
    # a1 misses y, hence its total: out of both statistics. y is flat among the rest and says nothing.
    a = group("a", [0.0, None, 0.0, 0.0], x=[1.0, 50.0, 2.0, 3.0], y=[4.0, None, 4.0, 4.0])
    result = group_relative([a, group("b", [1.0, 1.0], x=[1.0, 1.0], y=[2.0, 2.0])], {"x": 1.0, "y": 1.0}, config)
    assert result.values["a1"] is None
    assert [result.values[k] for k in ("a0", "a2", "a3")] == pytest.approx([-math.sqrt(1.5), 0.0, math.sqrt(1.5)])
    assert (result.values["b0"], result.metrics["groups_flat"]) == (None, 1)


def test_a_reward_of_weight_zero_does_not_count() -> None:
    config = AdvantageConfig(standardise="parts")
    values = group_relative([group("a", [0.0, 1.0], x=[0.0, 1.0], y=[5.0, 0.0])], {"x": 1.0, "y": 0.0}, config).values
    assert (values["a0"], values["a1"]) == (-1.0, 1.0)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="occurs twice"):
        group_relative([group("a", [0.0, 1.0]), group("a", [0.0, 1.0])], {"r": 1.0}, AdvantageConfig())
    with pytest.raises(ValueError, match=r"no weight for the rewards \['y'\]"):
        group_relative([group("a", [0.0, 1.0], y=[0.0, 1.0])], {"r": 1.0}, AdvantageConfig(standardise="parts"))


def test_nothing_in_nothing_out() -> None:
    result = group_relative([], {}, AdvantageConfig())
    assert dict(result.values) == {}
    assert result.metrics["groups"] == 0
