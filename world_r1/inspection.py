"""Looking at the parts by hand: which rewards there are, what a video scores, what a prompt set holds."""

from __future__ import annotations

import contextlib
import inspect
import json
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from world_r1.command import CameraPlan, CameraTextError, parse_plan
from world_r1.config import CameraConfig, Config, RewardConfig, RewardsConfig, VideoConfig
from world_r1.reward import PROBES, SCORES, Probe, Reward, Rubric, available, load, registered
from world_r1.types import Clip, Prompt, Verdict


def plugins() -> list[dict[str, str]]:
    """The shipped and the registered rewards and probes, each with what it says of itself, and whether it can run here ("state").

    Keys: kind, name, needs, gives (a probe's evidence, a reward's parts), extra, weights, licence, state, about.
    """
    rows: dict[str, list[dict[str, str]]] = {"reward": [], "probe": []}
    givers: dict[str, list[tuple[str, str]]] = {}
    for package, base, kind in ((PROBES, Probe, "probe"), (SCORES, Reward, "reward")):  # a reward is ready if its probes are
        for name in [*available(package), *registered(base)]:
            try:
                found: Any = load(name, package, base)
            except Exception as error:  # somebody's plug-in may fail to import in any way; the others are still to be shown
                reason = f"cannot be loaded: {type(error).__name__}: {error}"
                rows[kind].append({**dict.fromkeys(COLUMNS, ""), "kind": kind, "name": name, "state": reason, "about": ""})
                continue
            given = getattr(found, "gives", ()) if kind == "probe" else found.parts
            state = found.lacks() or _options_state(found) or _weights_state(found.weights)
            if kind == "probe":
                for gift in given:
                    givers.setdefault(gift, []).append((name, state))
            elif state == READY:
                state = _needs_state(found.needs, givers)
            rows[kind].append(
                {
                    "kind": kind,
                    "name": name,
                    "needs": ", ".join(found.needs),
                    "gives": ", ".join(given),
                    "extra": found.extra,
                    "weights": found.weights,
                    "licence": found.licence,
                    "state": state,
                    "about": _first_sentence(found),
                }
            )
    return rows["reward"] + rows["probe"]


#: What `plugins` says of each, in the order of the table.
COLUMNS = ("kind", "name", "needs", "gives", "extra", "weights", "licence", "state")


READY = "ready"


def _options_state(plugin: Any) -> str:
    """The options without a default, which a configuration must give; "" if there are none."""
    parameters = inspect.signature(plugin).parameters.values()
    free = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    wanted = [p.name for p in parameters if p.default is inspect.Parameter.empty and p.kind not in free]
    return f"needs the options {', '.join(wanted)} in a configuration" if wanted else ""


def _weights_state(weights: str) -> str:
    """ "ready", or that weights on the hub are not in the cache of this machine (nothing is fetched)."""
    named = re.match(r"[\w.-]+/[\w.-]+", weights)
    if not named:
        return READY
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE) / f"models--{named[0].replace('/', '--')}"
    return READY if any(folder.glob("snapshots/*/*")) else "weights not here yet: fetched at first use"


def _needs_state(needs: Sequence[str], givers: Mapping[str, Sequence[tuple[str, str]]]) -> str:
    """ "ready" if for every need there is a probe that is; else what the first of those that give it lacks."""
    for need in needs:
        found = givers.get(need, [])
        if need != "frames" and not any(state == READY for _, state in found):
            return f"by {found[0][0]}, which: {found[0][1]}" if found else f"no probe that is known gives {need}"
    return READY


def rewards_config(names: Sequence[str], first: Sequence[str] = ()) -> RewardsConfig:
    """Rewards by name with weight 1 and probes that give what they need: of several, one of `first`, else one that can run here.

    Raises ValueError for an unknown name, or a need that no known probe gives.
    """
    givers = probes_by_gift(first)
    wanted = [need for name in names for need in load(name, SCORES, Reward).needs]  # type: ignore[attr-defined]
    probes: dict[str, dict[str, Any]] = {}
    while wanted:
        need = wanted.pop()
        if need == "frames" or givers.get(need) in probes:
            continue
        if need not in givers:
            raise ValueError(f"no shipped probe gives {need!r}; write a configuration that names one under rewards.probes")
        probes[givers[need]] = {}
        wanted += load(givers[need], PROBES, Probe).needs  # type: ignore[attr-defined]
    return RewardsConfig(rewards=tuple(RewardConfig(name=name) for name in names), probes=probes)


def probes_by_gift(first: Sequence[str] = ()) -> dict[str, str]:
    """What probes give -> the probe to use for it: one of `first`, else one that lacks nothing here, else any; those without weights
    come before those with."""
    names = [*first, *(name for name in [*available(PROBES), *registered(Probe)] if name not in first)]
    found: list[tuple[tuple[bool, bool, bool], str, Any]] = []
    for name in names:
        with contextlib.suppress(ImportError):  # one whose module does not even import gives nothing
            probe: Any = load(name, PROBES, Probe)
            found.append(((name not in first, bool(probe.lacks()), bool(probe.weights)), name, probe))
    givers: dict[str, str] = {}
    for _, name, probe in sorted(found, key=lambda row: row[0]):
        for given in probe.gives:
            givers.setdefault(given, name)
    return givers


def read_clip(path: Path, prompt: str, camera: CameraConfig) -> Clip:
    """A video file with its prompt. The commanded path follows from the prompt, at the video's own length and size.

    Raises ValueError for a file that is no video, OSError for one that cannot be opened.
    """
    from world_r1.camera import trajectory_for
    from world_r1.video import read_mp4

    video, fps = read_mp4(path)
    frames, height, width, _ = video.shape
    size = VideoConfig(frames=frames, height=height, width=width, fps=fps)
    return Clip(path.stem, video, Prompt(path.stem, prompt), trajectory_for(prompt, size, camera), fps)


def score_clip(clip: Clip, rewards: RewardsConfig) -> tuple[Verdict, dict[str, Any]]:
    """All scores of a clip, and the evidence that they were made from, by name."""
    rubric = Rubric(rewards)
    evidence, failures, seconds = rubric.observe([clip])
    verdict, _ = rubric.verdict(clip, evidence[0], failures[0], seconds)
    return verdict, evidence[0]


def prompt_stats(source: str) -> dict[str, Any]:
    """Counts of a prompt set: prompts, kinds, words, distinct texts, camera moves. Raises ValueError for a malformed one."""
    from world_r1.prompts import load_prompts

    prompts = load_prompts(source)
    words = [len(prompt.text.split()) for prompt in prompts]
    plans = [_plan(prompt.text) for prompt in prompts]
    moves = Counter(move for plan in plans if plan for move in plan.names)
    return {
        "prompts": len(prompts),
        "distinct texts": len({prompt.text for prompt in prompts}),
        "kinds": dict(Counter(prompt.kind for prompt in prompts)),
        "words": {"least": min(words), "mean": round(float(np.mean(words)), 1), "most": max(words)},
        "with a camera command": sum(plan is not None for plan in plans),
        "in several segments": sum(plan is not None and len(plan.steps) > 1 for plan in plans),
        "moves": dict(moves.most_common()),
    }


def _plan(text: str) -> CameraPlan | None:
    """The camera plan of a text; None too where its command is ambiguous, which `world-r1 prompts check` reports."""
    try:
        return parse_plan(text)
    except CameraTextError:
        return None


#: What `world-r1 rewards score` gives when nothing is named: the rewards that run everywhere.
SCORED = ("reconstruction", "consistency", "trajectory", "meta_view", "quality", "motion", "guard")


def settings_for(config: Config | None, names: Sequence[str]) -> tuple[RewardsConfig, CameraConfig]:
    """Rewards and camera of a configuration, or the named shipped rewards (default `SCORED`); ValueError if both are given."""
    if config is not None and names:
        raise ValueError("give --config FILE or --reward NAME, not both (world-r1 rewards list shows the names)")
    if config is not None:
        return config.rewards, config.camera
    return rewards_config(names or SCORED), CameraConfig()


#: What `world-r1 rewards bench` measures when nothing is named.
MEASURED = ("consistency", "reconstruction", "trajectory")


def settings_to_measure(path: Path | None, names: Sequence[str], overrides: Sequence[str]) -> RewardsConfig:
    """Rewards of a file, or named ones (default `MEASURED`) with the probes they need, with overrides; every one with weight 1 and in all
    phases. Raises ValueError if both are given, or one cannot run here.
    """
    from world_r1.config import load as read
    from world_r1.config import override, parse
    from world_r1.reward_check import runnable

    if path is not None and names:
        raise ValueError("give --config or --reward, not both")
    if path is not None:
        config = read(path, list(overrides)).rewards
    else:
        tree = {"rewards": rewards_config(names or MEASURED).model_dump()}
        for text in overrides:
            override(tree, text)
        config = parse(tree).rewards
    entries = tuple(entry.model_copy(update={"phase": "all", "weight": 1.0}) for entry in config.rewards)
    config = config.model_copy(update={"rewards": entries})
    runnable(config)
    return config


def verdict_rows(verdict: Verdict) -> list[dict[str, Any]]:
    """One row a score, with its parts, for `show`; with what the numbers depend on if any score says so."""
    rows: list[dict[str, Any]] = []
    for score in verdict.scores:
        parts = "  ".join(f"{name} {value:.4g}" for name, value in score.parts.items())
        rows.append({"reward": score.reward, "status": score.status, "value": score.value, "parts": parts, "reason": score.reason})
    rows.append({"reward": "total", "status": "", "value": verdict.total, "parts": "", "reason": ""})
    if any(score.versions for score in verdict.scores):
        for row, versions in zip(rows, [*(score.versions for score in verdict.scores), {}], strict=True):
            row["versions"] = "  ".join(f"{name} {value}" for name, value in versions.items())
    return rows


def write_findings(video: Path, rows: Sequence[Mapping[str, Any]], evidence: Mapping[str, Any]) -> list[Path]:
    """Write VIDEO.scores.json and, if there is a reconstruction among the evidence, VIDEO.reconstruction.png next to a video."""
    written = [video.with_suffix(".scores.json")]
    written[0].write_text(json.dumps(list(rows), indent=2) + "\n", encoding="utf-8")
    if "geometry" in evidence:
        from world_r1.reconstruction_picture import draw

        written.append(draw(video.with_suffix(".reconstruction.png"), evidence["frames"], evidence["geometry"]))
    return written


def show(content: Mapping[str, Any] | Sequence[Mapping[str, Any]], as_json: bool) -> None:
    """Print a mapping as lines, rows as a table, or either as JSON."""
    if as_json:
        print(json.dumps(content, indent=2))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 140)
    if isinstance(content, Mapping):
        for key, value in content.items():
            text = "  ".join(f"{k} {_text(v)}" for k, v in value.items()) if isinstance(value, Mapping) else _text(value)
            console.print(f"{key}: {text}", markup=False, highlight=False)
        return
    table = Table(box=None, pad_edge=False)
    for column in content[0] if content else ():
        table.add_column(column, overflow="fold", no_wrap=column == "name")
    for row in content:
        table.add_row(*(escape(_text(value)) for value in row.values()))
    console.print(table)


def _first_sentence(found: type) -> str:
    text = " ".join((found.__doc__ or "").split())
    return text.partition(". ")[0].rstrip(".")


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
