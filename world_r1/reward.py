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
import importlib.util
import inspect
import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from world_r1.config import RewardConfig, RewardsConfig
from world_r1.types import Clip, Evidence, NotFinite, Score, Verdict

log = logging.getLogger(__name__)

PROBES = "world_r1_rewards.probes"
SCORES = "world_r1_rewards.scores"


class Degenerate(Exception):
    """Raised by a probe or a reward for input that cannot be measured (blank, textureless, too short); becomes a missing value."""


class Plugin:
    """What a probe or a reward says about itself (`world-r1 rewards list` shows it), all of it optional."""

    #: Modules that it imports beyond this project's own dependencies.
    packages: ClassVar[tuple[str, ...]] = ()
    #: Extra of this project that installs them: pip install 'world-r1[EXTRA]'.
    extra: ClassVar[str] = ""
    #: How to get `packages` where no extra does, in words.
    install: ClassVar[str] = ""
    #: Default weights: a hub id ("owner/name"), or in words where others come from; "" for none.
    weights: ClassVar[str] = ""
    #: Licence of code and default weights.
    licence: ClassVar[str] = "Apache-2.0"

    @classmethod
    def lacks(cls) -> str:
        """What is missing on this machine, with the remedy; "" if it can run. Must not import the packages."""
        missing = [name for name in cls.packages if not _importable(name)]
        if not missing:
            return ""
        remedy = f"pip install 'world-r1[{cls.extra}]'" if cls.extra else cls.install or f"pip install {' '.join(missing)}"
        return f"needs {', '.join(missing)}: {remedy}"


def _importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # a parent that is not there, or is no package
        return False


class Probe(Plugin, ABC):
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


class Reward(Plugin, ABC):
    """Evidence + prompt -> score. Larger is better; the documented range belongs into the class docstring."""

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    #: Names of the parts that its scores may have.
    parts: ClassVar[tuple[str, ...]] = ()
    #: By how much a clip of a rigid room must score above the same clip with swimming textures; 0 for a reward that claims no such thing.
    rigid_wins: ClassVar[float] = 0.0

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
    """Class for a plug-in name: the one subclass of `base` in `package.name`, what an entry point of that name leads to, or
    "module:Class" from anywhere on the path; "module:function" is a TRL-style reward function (see `world_r1.trl_rewards`).

    Raises ValueError for a name that leads nowhere or to something else.
    """
    module_name, _, attribute = name.partition(":")
    if not attribute:
        module_name = f"{package}.{name}"
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and not module_name.startswith(error.name):
            raise  # the plug-in exists; something it imports does not
        if not attribute and (point := registered(base).get(name)):
            return _only_class([point.load()], f"entry point {name} = {point.value}", base)
        known = ", ".join([*available(package), *registered(base)])
        raise ValueError(f"no plug-in {name!r}: cannot import {module_name}; known: {known}") from error
    if attribute:
        if not hasattr(module, attribute):
            raise ValueError(f"{module_name} has no class {attribute!r}")
        return _only_class([getattr(module, attribute)], name, base)
    found = [c for c in vars(module).values() if inspect.isclass(c) and issubclass(c, base) and c.__module__ == module.__name__]
    return _only_class(found, module_name, base)


def _only_class(found: Sequence[Any], where: str, base: type) -> type:
    if len(found) == 1 and base is Reward and inspect.isroutine(found[0]):
        from world_r1.trl_rewards import reward_class

        return reward_class(found[0])
    if len(found) != 1 or not (inspect.isclass(found[0]) and issubclass(found[0], base)):
        names = [getattr(c, "__name__", repr(c)) for c in found]
        raise ValueError(f"{where} must define exactly one {base.__name__}, found {names}")
    return found[0]


def available(package: str) -> list[str]:
    """Names of the plug-ins that a package ships: its modules; those of a package inside it are "package.module"."""
    from pkgutil import iter_modules

    try:
        path = importlib.import_module(package).__path__
    except ModuleNotFoundError:
        return []
    names: list[str] = []
    for module in iter_modules(path):
        if not module.name.startswith("_"):
            inner = available(f"{package}.{module.name}") if module.ispkg else []
            names += [f"{module.name}.{name}" for name in inner] or [module.name]
    return sorted(names)


def registered(base: type) -> dict[str, Any]:
    """Entry points of installed packages in the group "world_r1.rewards" (or "world_r1.probes") by name."""
    from importlib.metadata import entry_points

    group = "world_r1.rewards" if base is Reward else "world_r1.probes"
    return {point.name: point for point in entry_points(group=group)}


class Rubric:
    """Runs the probes that the rewards need, once per video, then the rewards; keeps every part.

    Raises ValueError at construction for an unknown name, a need that no configured probe gives, or two probes giving the same.
    """

    def __init__(self, config: RewardsConfig) -> None:
        self.rewards: list[tuple[RewardConfig, Reward]] = [
            (entry, load(entry.name, SCORES, Reward)(**entry.options)) for entry in config.rewards
        ]
        if config.compat:
            log.warning("rewards.compat: %s repeats a public release with its known defects, for comparison only", config.compat)
        probes = {name: load(name, PROBES, Probe)(**options) for name, options in config.probes.items()}
        self.probes = _ordered(probes, {need for _, reward in self.rewards for need in reward.needs})

    def judge(self, clips: Sequence[Clip]) -> list[Verdict]:
        """Verdicts in the order of `clips`. Rewards apply per clip, by the kind of its prompt."""
        return [verdict for verdict, _ in self.examine(clips)]

    def examine(self, clips: Sequence[Clip]) -> list[tuple[Verdict, list[Exception]]]:
        """`judge`, each verdict with the exceptions behind its missing values (those of probes first)."""
        evidence, failures, seconds = self.observe(clips)
        return [self.verdict(*item, seconds) for item in zip(clips, evidence, failures, strict=True)]

    def observe(self, clips: Sequence[Clip]) -> tuple[list[dict[str, Any]], list[dict[str, Exception]], dict[str, float]]:
        """Per clip, what the probes saw and, by name of the evidence that is lacking, why; and seconds a clip by probe."""
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
        return evidence, failures, seconds

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

    def verdict(
        self, clip: Clip, evidence: Mapping[str, Any], failures: Mapping[str, Exception], seconds: Mapping[str, float]
    ) -> tuple[Verdict, list[Exception]]:
        """The rewards' verdict on what `observe` gave for one clip, with the exceptions behind its missing values."""
        errors = list({id(error): error for error in failures.values()}.values())
        applied, scores = self._applied(clip), []
        for entry, reward in applied:
            score, error = _score(reward, clip, evidence, failures)
            scores.append(replace(score, reward=entry.key))
            errors += [] if error is None or any(error is known for known in errors) else [error]
        return Verdict(clip.id, weighted([entry for entry, _ in applied], scores), tuple(scores), dict(seconds)), errors


def weighted(entries: Sequence[RewardConfig], scores: Sequence[Score]) -> float | None:
    """Sum of weight times value over a clip's rewards and their scores; None if there are none or one is missing."""
    values = [score.value for score in scores]
    if not values or any(value is None for value in values):
        return None
    return sum(entry.weight * value for entry, value in zip(entries, values, strict=True) if value is not None)


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


def _score(
    reward: Reward, clip: Clip, evidence: Mapping[str, Any], failures: Mapping[str, Exception]
) -> tuple[Score, Exception | None]:
    """A finite score, or a missing one with its reason and the exception behind it."""
    for need in reward.needs:
        if need not in evidence:
            error = failures.get(need, RuntimeError(f"no {need} evidence"))
            return Score(reward.name, _status(error), None, {}, f"{need}: {error}"), error
    try:
        return _finite(reward.score(clip, evidence)), None
    except Exception as error:
        log.warning("reward %s failed on %s: %s: %s", reward.name, clip.id, type(error).__name__, error)
        return Score(reward.name, _status(error), None, {}, f"{type(error).__name__}: {error}"), error


def _finite(score: Any) -> Score:
    """`score`, if it is one; NotFinite if a part of it is NaN or infinite (its value was checked when it was made)."""
    if not isinstance(score, Score):
        raise TypeError(f"a reward returns a Score (self.ok(value) makes one), got {type(score).__name__}")
    if bad := [f"{name}={part}" for name, part in score.parts.items() if not math.isfinite(part)]:
        raise NotFinite(f"the parts of a score must be finite, got {', '.join(bad)}")
    return score


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
