"""The rubric: no NaN becomes a number, every missing value keeps the exception behind it, plug-ins are found by every kind of name."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest

from world_r1.config import RewardConfig, RewardsConfig
from world_r1.reward import PROBES, SCORES, Degenerate, Probe, Reward, Rubric, available, load
from world_r1.types import Clip, NotFinite, Prompt, Score

ACME = "acme_rewards_of_the_test"


class Broken(Reward):
    """Gives `value` with the part `part`."""

    name: ClassVar[str] = "broken"

    def __init__(self, value: float = 1.0, part: float = 0.0) -> None:
        self.value, self.part = value, part

    def score(self, clip: Clip, evidence: Mapping[str, Any]) -> Score:
        return self.ok(self.value, part=self.part)


class NoScore(Reward):
    """Returns a number instead of a score."""

    name: ClassVar[str] = "no_score"

    def score(self, clip: Clip, evidence: Mapping[str, Any]) -> Score:
        return 1.0  # type: ignore[return-value]


class Hungry(Probe):
    """Runs out of memory on clips named "large"."""

    gives: ClassVar[tuple[str, ...]] = ("food",)

    def observe(self, clips: Sequence[Clip], evidence: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any] | Exception]:
        return [MemoryError("no room") if clip.id == "large" else {"food": 1.0} for clip in clips]


class Eats(Reward):
    """Reads what `Hungry` gives."""

    name: ClassVar[str] = "eats"
    needs: ClassVar[tuple[str, ...]] = ("food",)

    def score(self, clip: Clip, evidence: Mapping[str, Any]) -> Score:
        if clip.id == "blank":
            raise Degenerate("nothing to see")
        return self.ok(evidence["food"])


def brightness(prompts: list[str], completions: list[np.ndarray], scale: float = 1.0, **columns: Any) -> list[float]:
    """Mean of the frames times `scale`."""
    return [scale * float(video.mean()) / 255 for video in completions]


@pytest.fixture(autouse=True)
def acme(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType(ACME)
    for found in (Broken, NoScore, Hungry, Eats, brightness):
        setattr(module, found.__name__, found)
    monkeypatch.setitem(sys.modules, ACME, module)
    return module


def clip(name: str = "a") -> Clip:
    return Clip(name, np.full((3, 4, 5, 3), 51, np.uint8), Prompt("p", "A red box."), None)


def rubric(name: str, probes: dict[str, dict[str, Any]] | None = None, **options: Any) -> Rubric:
    return Rubric(RewardsConfig(rewards=(RewardConfig(name=f"{ACME}:{name}", options=options),), probes=probes or {}))


@pytest.mark.parametrize("options", [{"value": float("nan")}, {"value": float("inf")}, {"part": float("nan")}])
def test_what_is_not_finite_is_a_failed_score_and_never_a_number(options: dict[str, float]) -> None:
    ((verdict, errors),) = rubric("Broken", **options).examine([clip()])
    assert verdict.total is None
    assert [(score.status, score.value) for score in verdict.scores] == [("failed", None)]
    assert "finite" in verdict.scores[0].reason
    assert [type(error) for error in errors] == [NotFinite]


def test_a_reward_that_returns_no_score_fails() -> None:
    (verdict,) = rubric("NoScore").judge([clip()])
    assert verdict.total is None
    assert "returns a Score" in verdict.scores[0].reason


def test_the_exception_of_a_probe_is_kept_once_and_only_for_its_clip() -> None:
    probes = {f"{ACME}:Hungry": {}}
    examined = rubric("Eats", probes).examine([clip("small"), clip("large"), clip("blank")])
    assert [verdict.total for verdict, _ in examined] == [1.0, None, None]
    assert [[type(error) for error in errors] for _, errors in examined] == [[], [MemoryError], [Degenerate]]
    assert [verdict.scores[0].status for verdict, _ in examined] == ["ok", "failed", "degenerate"]


def test_a_function_is_a_reward_by_its_import_path() -> None:
    (verdict,) = rubric("brightness", scale=2.0).judge([clip()])
    assert verdict.total == pytest.approx(0.4)
    assert load(f"{ACME}:brightness", SCORES, Reward).__doc__ == "Mean of the frames times `scale`."
    with pytest.raises(ValueError, match="exactly one Probe, found"):
        load(f"{ACME}:brightness", PROBES, Probe)


def test_an_installed_package_registers_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    points = {
        "world_r1.rewards": [
            importlib.metadata.EntryPoint("acme", f"{ACME}:Broken", "world_r1.rewards"),
            importlib.metadata.EntryPoint("bright", f"{ACME}:brightness", "world_r1.rewards"),
        ],
        "world_r1.probes": [importlib.metadata.EntryPoint("hungry", f"{ACME}:Hungry", "world_r1.probes")],
    }
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: points[group])
    config = RewardsConfig(rewards=(RewardConfig(name="acme", options={"value": 0.25}), RewardConfig(name="bright")))
    (verdict,) = Rubric(config).judge([clip()])
    assert [score.value for score in verdict.scores] == [0.25, pytest.approx(0.2)]
    assert load("hungry", PROBES, Probe) is Hungry
    with pytest.raises(ValueError, match=r"no plug-in 'nothing'.*acme, bright"):
        load("nothing", SCORES, Reward)


def test_a_folder_of_plugins_is_named_with_dots(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "plugins_of_the_test"
    for file in ("__init__.py", "one.py", "_helper.py", "judge/__init__.py", "judge/local.py", "judge/_text.py"):
        (package / file).parent.mkdir(parents=True, exist_ok=True)
        (package / file).write_text("", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert available("plugins_of_the_test") == ["judge.local", "one"]


def test_a_plugin_says_what_it_lacks_without_importing_it() -> None:
    class Absent(Broken):
        packages = ("numpy", "a_package_that_is_not_there")
        extra = "vlm"

    class Unnamed(Absent):
        extra = ""

    assert Broken.lacks() == ""
    assert Absent.lacks() == "needs a_package_that_is_not_there: pip install 'world-r1[vlm]'"
    assert Unnamed.lacks() == "needs a_package_that_is_not_there: pip install a_package_that_is_not_there"
