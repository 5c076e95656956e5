"""Paired bootstrap and the before/after summary."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from world_r1.comparison import bootstrap, compare, metric, summarise


def evaluation(values: dict[str, list[float | None]]) -> dict[str, Any]:
    count = len(next(iter(values.values())))
    return {"rows": [{"id": f"test-{i:06d}", "values": {name: column[i] for name, column in values.items()}} for i in range(count)]}


def test_interval_agrees_with_the_normal_one_on_many_gaussian_differences() -> None:
    differences = np.random.default_rng(0).normal(0.3, 1.0, 400)
    low, high = bootstrap(differences, draws=4000, seed=1) or (0, 0)
    half = 1.96 * differences.std(ddof=1) / np.sqrt(400)
    assert low == pytest.approx(differences.mean() - half, abs=0.01)
    assert high == pytest.approx(differences.mean() + half, abs=0.01)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(2)
    hits = 0
    for trial in range(200):
        low, high = bootstrap(rng.normal(0.5, 1.0, 48), draws=400, seed=trial) or (0, 0)
        hits += low <= 0.5 <= high
    assert 0.89 <= hits / 200 <= 0.985  # nominal 0.95, a little less at n = 48


def test_interval_is_seeded_and_needs_two_differences() -> None:
    values = [0.1, -0.2, 0.4, 0.0, 0.3]
    assert bootstrap(values, seed=3) == bootstrap(values, seed=3)
    assert bootstrap(values, seed=3) != bootstrap(values, seed=4)
    assert bootstrap([0.5]) is None
    assert bootstrap([]) is None
    assert bootstrap([0.25, 0.25, 0.25]) == (0.25, 0.25)


def test_pairing_removes_what_the_prompts_differ_by() -> None:
    rng = np.random.default_rng(4)
    level = rng.normal(0, 10, 48)
    first = evaluation({"plane_sweep": list(level)})
    second = evaluation({"plane_sweep": list(level + 0.1 + rng.normal(0, 0.05, 48))})
    shuffled = {"rows": second["rows"][::-1]}
    entry = compare(first, shuffled)["plane_sweep"]
    assert entry["delta"] == pytest.approx(0.1, abs=0.03)
    assert 0 < entry["ci95"][0] < entry["ci95"][1] < 0.15
    assert entry["verdict"] == "better"
    assert entry["n"] == 48


def test_lower_is_better_where_it_is() -> None:
    first, second = evaluation({"sampson": [1.0, 1.1, 0.9, 1.2] * 3}), evaluation({"sampson": [0.7, 0.8, 0.7, 0.8] * 3})
    assert compare(first, second)["sampson"]["verdict"] == "better"
    assert compare(second, first)["sampson"]["verdict"] == "worse"
    assert metric("reward/trajectory").role == "reference"
    assert metric("fidelity").role == "guard"


def test_a_handful_of_pairs_gets_no_verdict() -> None:
    first, second = evaluation({"sampson": [1.0, 1.1]}), evaluation({"sampson": [0.7, 0.8]})
    entry = compare(first, second)["sampson"]
    assert entry["ci95"][1] < 0
    assert entry["verdict"] == "unclear"


def test_a_missing_value_drops_its_pair_and_is_counted() -> None:
    first = evaluation({"sampson": [1.0, None, 3.0, 100.0], "motion": [1.0, 1.0, 1.0, 1.0]})
    second = evaluation({"sampson": [2.0, 9.0, 3.5, None], "motion": [1.0, 1.0, 1.0, 1.0]})
    entry = compare(first, second)["sampson"]
    assert (entry["before"], entry["after"], entry["delta"]) == (2.0, 2.75, 0.75)
    assert (entry["n"], entry["missing_before"], entry["missing_after"]) == (2, 1, 1)
    assert compare(first, second)["motion"]["verdict"] == "unclear"


def test_nothing_measured_is_none_and_never_zero() -> None:
    first, second = evaluation({"camera": [None, None]}), evaluation({"camera": [0.5, None]})
    entry = compare(first, second)["camera"]
    assert [entry[key] for key in ("before", "after", "delta", "ci95")] == [None] * 4
    assert (entry["n"], entry["verdict"]) == (0, "unclear")
    assert summarise(first["rows"])["camera"] == {"mean": None, "std": None, "n": 0, "missing": 2}


def test_other_clips_are_refused() -> None:
    first, second = evaluation({"motion": [1.0, 2.0]}), evaluation({"motion": [1.0, 2.0, 3.0]})
    with pytest.raises(ValueError, match=r"different clips.*test-000002"):
        compare(first, second)


def test_gap_closed_is_measured_towards_the_round_trip() -> None:
    base, trip = np.linspace(0.3, 0.5, 20), np.linspace(0.6, 0.8, 20)
    after = base + 0.4 * (trip - base)
    anchors = {
        "render": evaluation({"plane_sweep": [0.9] * 20, "sampson": [0.1] * 20})["rows"],
        "roundtrip": evaluation({"plane_sweep": list(trip), "sampson": [0.2] * 20})["rows"],
    }
    first = evaluation({"plane_sweep": list(base), "sampson": [0.1] * 20})
    second = evaluation({"plane_sweep": list(after), "sampson": [0.15] * 20})
    found = compare(first, second, reference=anchors)
    assert found["plane_sweep"]["gap_closed"] == pytest.approx(0.4)
    assert found["plane_sweep"]["gap_ci95"] == pytest.approx([0.4, 0.4])
    assert (found["plane_sweep"]["render"], found["plane_sweep"]["roundtrip"]) == (pytest.approx(0.9), pytest.approx(0.7))
    assert found["sampson"]["gap_closed"] is None  # the base is already better than the round trip: there is no gap
    assert found["sampson"]["roundtrip"] == pytest.approx(0.2)


def test_draws_without_a_gap_leave_a_finite_interval() -> None:
    """Of a metric of yes and no few clips may differ from their round trips, so that some draws meet none of them."""
    count, apart = 96, 4
    start, end = evaluation({"fidelity": [0.0] * count}), evaluation({"fidelity": [1.0] * 2 + [0.0] * (count - 2)})
    trip = evaluation({"fidelity": [1.0] * apart + [0.0] * (count - apart)})["rows"]
    entry = compare(start, end, reference={"render": trip, "roundtrip": trip}, draws=20_000)["fidelity"]
    assert entry["gap_closed"] == pytest.approx(0.5)
    assert np.isfinite(entry["gap_ci95"]).all()
