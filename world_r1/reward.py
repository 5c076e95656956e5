"""The contract of reward plug-ins, and the rubric that runs them.

A *probe* looks at videos and gives named evidence ("geometry", "quality", ...); a *reward* turns evidence and prompt into one number,
or into none. Evidence is computed once per video and shared by all rewards that need it. A failure of any kind is a missing value:
it has a status and a reason, never a number.

    class Sharpness(Reward):                       # acme/rewards.py
        name, needs = "sharpness", ("frames",)     # "frames" is the clip itself, always there
        def score(self, clip, evidence):
            return self.ok(float(evidence["frames"].std()) / 128)

    rewards: {rewards: [{name: "acme.rewards:Sharpness", weight: 0.2}]}
"""

from __future__ import annotations

import importlib
import inspect
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from world_r1.config import RewardConfig, RewardsConfig
from world_r1.types import Clip, Evidence, Score, Verdict

log = logging.getLogger(__name__)

PROBES = "world_r1_rewards.probes"
SCORES = "world_r1_rewards.scores"


class Degenerate(Exception):
    """Raised by a probe or a reward for input that cannot be measured (blank, textureless, too short); becomes a missing value."""


class Probe(ABC):
    """Video -> evidence. Options arrive as keyword arguments of the constructor; unknown ones are a TypeError there."""

    #: Names of the evidence that `observe` puts into `Evidence.data`.
    gives: ClassVar[tuple[str, ...]]
    #: Evidence of other probes that this one reads.
    needs: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def observe(self, clips: Sequence[Clip], evidence: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any] | Exception]:
        """One result per clip: a mapping with a value for every name in `gives`, or the exception that clip caused.

        `evidence[i]` holds what `needs` names for `clips[i]`. Raising instead of returning an exception fails the whole batch.
        """


class Reward(ABC):
    """Evidence + prompt -> score. Larger is better; the documented range belongs into the class docstring."""

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()

    def applies(self, clip: Clip) -> bool:
        """Whether this reward has a say about the clip; one that has none is left out of the sum, neither missing nor a number.

        Must depend on what was asked for (prompt, trajectory) only, so that it is the same for every video of a group.
        """
        return True

    @abstractmethod
    def score(self, clip: Clip, evidence: Mapping[str, Any]) -> Score:
        """Score one clip from `evidence`, which has "frames" (the uint8 video) and every name in `needs`."""

    def ok(self, value: float, **parts: float) -> Score:
        """A measured score with its parts."""
        return Score(self.name, "ok", float(value), {key: float(part) for key, part in parts.items()})

    def missing(self, reason: str, status: str = "degenerate") -> Score:
        """A score that could not be measured."""
        return Score(self.name, status, None, {}, reason)  # type: ignore[arg-type]


def load(name: str, package: str, base: type) -> type:
    """Class for a plug-in name: the one subclass of `base` in `package.name`, or "module:Class" from anywhere on the path."""
    module_name, _, class_name = name.partition(":")
    if not class_name:
        module_name = f"{package}.{name}"
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and not module_name.startswith(error.name):
            raise  # the plug-in exists; something it imports does not
        raise ValueError(f"no plug-in {name!r}: cannot import {module_name}; known: {', '.join(available(package))}") from error
    if class_name:
        if not hasattr(module, class_name):
            raise ValueError(f"{module_name} has no class {class_name!r}")
        found = [getattr(module, class_name)]
    else:
        found = [c for c in vars(module).values() if inspect.isclass(c) and issubclass(c, base) and c.__module__ == module.__name__]
    if len(found) != 1 or not issubclass(found[0], base):
        raise ValueError(f"{module_name} must define exactly one {base.__name__}, found {[c.__name__ for c in found]}")
    return found[0]


def available(package: str) -> list[str]:
    """Names of the plug-ins that a package ships."""
    from pkgutil import iter_modules

    try:
        path = importlib.import_module(package).__path__
    except ModuleNotFoundError:
        return []
    return sorted(module.name for module in iter_modules(path) if not module.name.startswith("_"))


class Rubric:
    """Runs the probes that the rewards need, once per video, then the rewards; keeps every part.

    Raises ValueError at construction for an unknown name, a need that no configured probe gives, or two probes giving the same.
    """

    def __init__(self, config: RewardsConfig) -> None:
        self.rewards: list[tuple[RewardConfig, Reward]] = [
            (entry, load(entry.name, SCORES, Reward)(**entry.options)) for entry in config.rewards
        ]
        probes = {name: load(name, PROBES, Probe)(**options) for name, options in config.probes.items()}
        self.probes = _ordered(probes, {need for _, reward in self.rewards for need in reward.needs})

    def judge(self, clips: Sequence[Clip]) -> list[Verdict]:
        """Verdicts in the order of `clips`. Rewards apply per clip, by the kind of its prompt."""
        evidence: list[dict[str, Any]] = [{"frames": clip.video} for clip in clips]
        failures: list[dict[str, Exception]] = [{} for _ in clips]
        seconds: dict[str, float] = {}
        for name, probe in self.probes.items():
            ready = [i for i, clip in enumerate(clips) if self._wanted(clip, probe) and all(n in evidence[i] for n in probe.needs)]
            start = time.perf_counter()
            for i, result in zip(ready, _observe(probe, [clips[i] for i in ready], [evidence[i] for i in ready]), strict=True):
                if isinstance(result, Exception):
                    failures[i].update(dict.fromkeys(probe.gives, result))
                else:
                    evidence[i].update(result)
            seconds[name] = (time.perf_counter() - start) / max(1, len(ready))
        return [self._verdict(*item, seconds) for item in zip(clips, evidence, failures, strict=True)]

    def applies(self, entry: RewardConfig, clip: Clip) -> bool:
        """Whether a reward counts for a clip: World-R1's phases, switched per sample."""
        return entry.weight > 0 and entry.phase in ("all", clip.prompt.kind)

    def _applied(self, clip: Clip) -> list[tuple[RewardConfig, Reward]]:
        return [(entry, reward) for entry, reward in self.rewards if self.applies(entry, clip) and reward.applies(clip)]

    def _wanted(self, clip: Clip, probe: Probe) -> bool:
        needed = {need for _, reward in self._applied(clip) for need in reward.needs}
        for other in reversed(list(self.probes.values())):  # a probe may be needed only through another one
            if needed & set(other.gives):
                needed |= set(other.needs)
        return bool(needed & set(probe.gives))

    def _verdict(
        self, clip: Clip, evidence: Mapping[str, Any], failures: Mapping[str, Exception], seconds: Mapping[str, float]
    ) -> Verdict:
        applied = [
            (entry, replace(_score(reward, clip, evidence, failures), reward=entry.key)) for entry, reward in self._applied(clip)
        ]
        values = [score.value for _, score in applied]
        missing = not values or any(value is None for value in values)
        total = None if missing else sum(entry.weight * score.value for entry, score in applied if score.value is not None)
        return Verdict(clip.id, total, tuple(score for _, score in applied), dict(seconds))


def evidence_of(probe: str, result: Mapping[str, Any] | Exception, seconds: float) -> Evidence:
    """A probe's result as an `Evidence` record (what `world-r1 rewards score` prints)."""
    if isinstance(result, Exception):
        return Evidence(probe, _status(result), {}, f"{type(result).__name__}: {result}", seconds)
    return Evidence(probe, "ok", result, "", seconds)


def _status(error: Exception) -> Any:
    return "degenerate" if isinstance(error, Degenerate) else "failed"


def _observe(probe: Probe, clips: list[Clip], evidence: list[dict[str, Any]]) -> list[Mapping[str, Any] | Exception]:
    if not clips:
        return []
    try:
        results = probe.observe(clips, evidence)
    except Exception as error:  # a plug-in may raise anything; the batch becomes missing values, with the reason
        log.warning("probe %s failed on %d clips: %s: %s", type(probe).__name__, len(clips), type(error).__name__, error)
        return [error] * len(clips)
    if len(results) != len(clips):
        raise ValueError(f"probe {type(probe).__name__} returned {len(results)} results for {len(clips)} clips")
    for result in results:
        if not isinstance(result, Exception) and (lacking := set(probe.gives) - set(result)):
            raise ValueError(f"probe {type(probe).__name__} promised {sorted(lacking)} and did not give it")
    return results


def _score(reward: Reward, clip: Clip, evidence: Mapping[str, Any], failures: Mapping[str, Exception]) -> Score:
    for need in reward.needs:
        if need not in evidence:
            error = failures.get(need, RuntimeError(f"no {need} evidence"))
            return Score(reward.name, _status(error), None, {}, f"{need}: {error}")
    try:
        return reward.score(clip, evidence)
    except Exception as error:
        log.warning("reward %s failed on %s: %s: %s", reward.name, clip.id, type(error).__name__, error)
        return Score(reward.name, _status(error), None, {}, f"{type(error).__name__}: {error}")


def _ordered(probes: Mapping[str, Probe], needed: set[str]) -> dict[str, Probe]:
    """Probes in an order in which everyone's needs are given before; raises ValueError if that is impossible."""
    givers: dict[str, str] = {}
    for name, probe in probes.items():
        for given in probe.gives:
            if given in givers:
                raise ValueError(f"probes {givers[given]!r} and {name!r} both give {given!r}; configure one of them")
            givers[given] = name
    for need in needed | {need for probe in probes.values() for need in probe.needs}:
        if need not in givers and need != "frames":
            raise ValueError(
                f"no configured probe gives {need!r}; add one under rewards.probes (shipped: {', '.join(available(PROBES))})"
            )
    ordered: dict[str, Probe] = {}
    have = {"frames"}
    while len(ordered) < len(probes):
        ready = [name for name, probe in probes.items() if name not in ordered and set(probe.needs) <= have]
        if not ready:
            raise ValueError(f"probes {sorted(set(probes) - set(ordered))} need each other's evidence")
        for name in ready:
            ordered[name] = probes[name]
            have |= set(probes[name].gives)
    return ordered
