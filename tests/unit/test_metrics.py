from __future__ import annotations

import os
import signal

import pytest

from world_r1 import metrics
from world_r1.train import Stop
from world_r1.types import Group, Prompt, Score, Verdict

PROMPT = Prompt("p", "A box.")


def _verdict(name: str, a: float | None, b: float | None, reason: str = "blank") -> Verdict:
    scores = tuple(
        Score(reward, "ok", value, {"half": value / 2}) if value is not None else Score(reward, "degenerate", None, {}, reason)
        for reward, value in (("a", a), ("b", b))
    )
    return Verdict(name, None if a is None or b is None else a + b, scores)


GROUPS = [
    Group(PROMPT, ("x", "y", "z"), (_verdict("x", 1.0, 2.0), _verdict("y", 2.0, 5.0), _verdict("z", 4.0, None))),
    Group(PROMPT, ("u", "v"), (_verdict("u", None, None, "dark"), _verdict("v", 0.0, 1.0))),
]


def test_means_are_over_what_is_there() -> None:
    row = metrics.rewards(GROUPS)
    assert row["reward"] == pytest.approx((3 + 7 + 1) / 3)
    assert row["reward_std"] == 2.0  # the second group has one total: no spread
    assert row["reward/a"] == pytest.approx(7 / 4)
    assert row["reward/b"] == pytest.approx(8 / 3)
    assert row["reward/b/half"] == pytest.approx(4 / 3)


def test_failures_are_counted_with_their_reasons() -> None:
    assert metrics.failure_rate(GROUPS) == pytest.approx(2 / 5)
    assert metrics.reasons(GROUPS, most=2) == "1x b degenerate: blank; 1x a degenerate: dark"
    row = metrics.step_row("rigid", GROUPS, {"groups_flat": 1.0, "groups_few_valid": 1.0}, {"lr": 0.1}, {"total": 2.5})
    assert (row["failures"], row["dropped_groups"], row["phase"], row["lr"], row["time/total"]) == (2, 2, "rigid", 0.1, 2.5)


def test_what_numbers_depend_on_is_in_the_row() -> None:
    scores = [Score("judge", "ok", 0.5, versions={"rubric": f"r@1 sha256:{digest}", "model": "m"}) for digest in ("aa", "bb", "aa")]
    group = Group(PROMPT, ("x", "y", "z"), tuple(Verdict(str(i), 0.5, (score,)) for i, score in enumerate(scores)))
    row = metrics.step_row("rigid", [group], {}, {}, {})
    assert row["versions/judge"] == "model m, rubric r@1 sha256:aa | model m, rubric r@1 sha256:bb"
    assert not [name for name in metrics.step_row("rigid", GROUPS, {}, {}, {}) if name.startswith("versions")]


def test_a_mean_over_nothing_is_left_out() -> None:
    lost = [Group(PROMPT, ("x",), (_verdict("x", None, None),))]
    assert metrics.rewards(lost) == {}
    assert metrics.failure_rate(lost) == 1.0
    assert metrics.failure_rate([]) == 0.0
    assert metrics.reasons([Group(PROMPT, ("x",), (Verdict("x", None, ()),))]) == "no reward applies to these prompts"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_interrupt_asks_and_the_second_ends(number: int) -> None:
    said: list[str] = []
    before = signal.getsignal(number)
    with Stop(None, said.append) as stop:
        assert stop.reason() == ""
        os.kill(os.getpid(), number)
        assert stop.reason() == "interrupt"
        assert len(said) == 1
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_a_spent_budget_is_a_reason_to_stop() -> None:
    assert Stop(1e-9, print).reason() == "time"
    assert Stop(5.0, print).reason() == ""
