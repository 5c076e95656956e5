"""Holding one reward or probe against the contract on this machine: rules, time, memory, versions, licence."""

from __future__ import annotations

import difflib
import inspect
import time
from collections.abc import Mapping, Sequence
from typing import Any

from world_r1.config import RewardsConfig
from world_r1.reward import PROBES, SCORES, Probe, Reward, Rubric, available, load, registered
from world_r1.types import Clip, Score, Verdict

#: Clips that every reward must answer for; see `world_r1.blockworld.specimens`.
CLIPS = ("rigid", "swim", "frozen", "blank", "short", "odd", "free", "hostile")


def check(name: str, rewards: RewardsConfig | None = None) -> dict[str, Any]:
    """Run a reward, or a probe below the rewards that read what it gives, on the built-in clips.

    `rewards` gives options and probes; None takes the defaults. The result has "name", "kind", "findings" (one a rule: {"rule", "ok",
    "detail"}), "scores", "seconds" (a clip, by probe), "memory_mib" (of this process, afterwards), "versions", "licences", "weights".
    Raises ValueError for an unknown name, or a plug-in whose packages are missing here.
    """
    kind = "reward" if rewards is not None or _is_reward(name) else "probe"
    config = rewards or _config(name, kind)
    if kind == "reward" and name not in (entry.name for entry in config.rewards):
        raise ValueError(f"the configuration has no reward {name!r}; it has {', '.join(e.name for e in config.rewards)}")
    entries = [entry for entry in config.rewards if kind == "probe" or entry.name == name]
    entries = [entry.model_copy(update={"phase": "all", "weight": 1.0}) for entry in entries]
    config = RewardsConfig(rewards=tuple(entries), probes=config.probes)
    plugins = runnable(config)
    from world_r1.blockworld.specimens import specimens

    clips = specimens()
    for clip in clips.values():
        clip.video.setflags(write=False)
    rubric = Rubric(config)
    begin = time.perf_counter()
    first = rubric.judge([clips[key] for key in CLIPS])
    seconds = (time.perf_counter() - begin) / len(clips)
    again = rubric.judge([clips[key] for key in CLIPS])
    alone = [rubric.judge([clips[key]])[0] for key in CLIPS]
    findings = []
    for entry, reward in rubric.rewards:
        prefix = "" if len(rubric.rewards) == 1 else f"{entry.key}: "
        of = [[_score(verdict, entry.key) for verdict in verdicts] for verdicts in (first, again, alone)]
        findings += [{**finding, "rule": prefix + finding["rule"]} for finding in _rules(reward, clips, *of)]
    return {
        "name": name,
        "kind": kind,
        "findings": findings,
        "scores": {v.clip: {s.reward: s.value for s in v.scores} for v in first},
        "seconds": {"all": seconds, **{probe: max(v.seconds.get(probe, 0.0) for v in again) for probe in rubric.probes}},
        "memory_mib": _memory(),
        "versions": _versions(plugins),
        "licences": {key: plugin.licence for key, plugin in plugins.items()},
        "weights": {key: plugin.weights for key, plugin in plugins.items() if plugin.weights},
    }


def claims(rubric: Rubric) -> dict[str, float]:
    """Reward key -> by how much it says that a rigid room scores above swimming textures."""
    return {entry.key: reward.rigid_wins for entry, reward in rubric.rewards if reward.rigid_wins > 0}


def rigid_wins(rigid: Verdict, swim: Verdict, margins: Mapping[str, float]) -> list[dict[str, Any]]:
    """One finding for every reward that claims to tell the rigid room from the swim."""
    return [_margin(_score(rigid, key), _score(swim, key), margin, key) for key, margin in margins.items()]


def _rules(
    reward: Reward,
    clips: Mapping[str, Clip],
    first: Sequence[Score | None],
    again: Sequence[Score | None],
    alone: Sequence[Score | None],
) -> list[dict[str, Any]]:
    scores = dict(zip(CLIPS, first, strict=True))
    said = ", ".join(f"{name} {_said(score)}" for name, score in scores.items() if score is not None)
    about = " ".join((inspect.getdoc(type(reward)) or "").split()).partition(". ")[0]
    rigid = scores["rigid"]
    findings = [
        _finding("says what it measures", bool(about), about or "the class has no docstring"),
        _finding("a real video has a score", rigid is None or rigid.status == "ok", said),
        _finding("no input makes it fail", all(score is None or score.status != "failed" for score in first), said),
        _finding("the same input has the same score", _same(first, again), said),
        _finding("a score does not depend on the batch", _same(first, alone), ", ".join(_said(score) for score in alone)),
        _finding(
            "whether it applies follows from what was asked",
            (scores["rigid"] is None) == (scores["swim"] is None) == (scores["frozen"] is None),
            ", ".join(name for name, score in scores.items() if score is not None) or "nowhere",
        ),
    ]
    if reward.rigid_wins > 0:
        findings.append(_margin(rigid, scores["swim"], reward.rigid_wins, ""))
    return findings


def _margin(rigid: Score | None, swim: Score | None, margin: float, key: str) -> dict[str, Any]:
    rule = f"{f'{key}: ' if key else ''}a rigid room wins over swimming textures by {margin:g}"
    values = [None if score is None else score.value for score in (rigid, swim)]
    won = values[0] is not None and values[1] is not None and values[0] - values[1] >= margin
    return _finding(rule, won, f"rigid {_said(rigid)}, swim {_said(swim)}")


def _is_reward(name: str) -> bool:
    if name in available(SCORES) or name in registered(Reward):
        return True
    if name in available(PROBES) or name in registered(Probe):
        return False
    try:
        load(name, SCORES, Reward)
    except ValueError:
        if ":" not in name:
            known = [*available(SCORES), *registered(Reward), *available(PROBES), *registered(Probe)]
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "world-r1 rewards list shows the names"
            raise ValueError(f"no reward or probe {name!r}; {hint}") from None
        load(name, PROBES, Probe)
        return False
    return True


def _config(name: str, kind: str) -> RewardsConfig:
    """Defaults: the probes that a reward needs; or the shipped rewards that read a probe's evidence, with it as the giver."""
    from world_r1.inspection import rewards_config

    if kind == "reward":
        return rewards_config([name])
    gives: Any = set(load(name, PROBES, Probe).gives)  # type: ignore[attr-defined]
    readers = [reward for reward in available(SCORES) if gives & set(load(reward, SCORES, Reward).needs)]  # type: ignore[attr-defined]
    claiming = [reward for reward in readers if load(reward, SCORES, Reward).rigid_wins > 0]  # type: ignore[attr-defined]
    if not readers:
        raise ValueError(f"no shipped reward reads what {name} gives ({', '.join(sorted(gives))}); check the reward that does")
    return rewards_config(claiming or readers, first=[name])


def runnable(config: RewardsConfig) -> dict[str, Any]:
    """The plug-ins of a configuration; ValueError if one lacks something here."""
    plugins: dict[str, Any] = {entry.key: load(entry.name, SCORES, Reward) for entry in config.rewards}
    plugins |= {name: load(name, PROBES, Probe) for name in config.probes}
    for name, plugin in plugins.items():
        if lacks := plugin.lacks():
            raise ValueError(f"{name} cannot run here: it {lacks}")
    return plugins


def _score(verdict: Verdict, key: str) -> Score | None:
    """The verdict's score of a reward; None where it does not apply."""
    return next((score for score in verdict.scores if score.reward == key), None)


def _same(a: Sequence[Score | None], b: Sequence[Score | None]) -> bool:
    def near(x: Score | None, y: Score | None) -> bool:
        if x is None or y is None or x.value is None or y.value is None:
            return (x and x.status) == (y and y.status)
        return abs(x.value - y.value) <= 2e-3 * max(1.0, abs(x.value))

    return all(near(x, y) for x, y in zip(a, b, strict=True))


def _said(score: Score | None) -> str:
    if score is None:
        return "does not apply"
    return f"{score.value:.4g}" if score.value is not None else f"{score.status} ({score.reason})"


def _finding(rule: str, ok: bool, detail: str) -> dict[str, Any]:
    return {"rule": rule, "ok": ok, "detail": detail}


def _memory() -> float:
    """MiB that this process has held at most."""
    import resource
    import sys

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def _versions(plugins: Mapping[str, Any]) -> dict[str, str]:
    from importlib import metadata

    import world_r1

    found = {"world-r1": world_r1.__version__}
    for name in ("torch", "numpy", *sorted({package for plugin in plugins.values() for package in plugin.packages})):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "unknown"
    return found
