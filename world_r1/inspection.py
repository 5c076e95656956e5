"""Looking at the parts by hand: which rewards there are, whether one keeps its contract, what a video scores, what a prompt set holds."""

from __future__ import annotations

import contextlib
import inspect
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from world_r1.config import CameraConfig, Config, RewardConfig, RewardsConfig, VideoConfig
from world_r1.reward import PROBES, SCORES, Probe, Reward, Rubric, available, load, registered
from world_r1.types import Clip, Prompt, Score, Verdict


def plugins() -> list[dict[str, str]]:
    """The shipped probes and rewards, each with what it needs, what it gives and the first sentence of its documentation."""
    rows = []
    for package, base, kind in ((SCORES, Reward, "reward"), (PROBES, Probe, "probe")):
        for name in available(package):
            found: Any = load(name, package, base)
            gives = ", ".join(getattr(found, "gives", ()))
            rows.append(
                {"kind": kind, "name": name, "needs": ", ".join(found.needs), "gives": gives, "about": _first_sentence(found)}
            )
    return rows


def rewards_config(names: Sequence[str]) -> RewardsConfig:
    """Rewards by name with weight 1 and probes that give what they need: of several, one that can run here, without weights if possible.

    Raises ValueError for an unknown name, or a need that no known probe gives.
    """
    givers = probes_by_gift()
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


def score_video(path: Path, prompt: str, rewards: RewardsConfig, camera: CameraConfig) -> Verdict:
    """All scores of a video file. The commanded path follows from the prompt, at the video's own length and size.

    Raises ValueError for a file that is no video, OSError for one that cannot be opened.
    """
    from world_r1.camera import trajectory_for
    from world_r1.video import read_mp4

    rubric = Rubric(rewards)
    video, fps = read_mp4(path)
    frames, height, width, _ = video.shape
    size = VideoConfig(frames=frames, height=height, width=width, fps=fps)
    clip = Clip(path.stem, video, Prompt(path.stem, prompt), trajectory_for(prompt, size, camera), fps)
    return rubric.judge([clip])[0]


def check_reward(name: str, rewards: RewardsConfig) -> list[dict[str, Any]]:
    """Run one reward on a real render, on a frozen copy of it and on a grey clip, and hold it against the contract.

    `rewards` has the reward and its probes. Returns one finding a rule: {"rule", "ok", "detail"}.
    """
    (entry,) = [entry for entry in rewards.rewards if entry.name == name]
    kind: Any = load(name, SCORES, Reward)
    video = _render()
    grey = Clip("grey", np.full_like(video.video, 128), video.prompt, video.trajectory, video.fps)
    frozen = Clip("frozen", np.repeat(video.video[:1], len(video.video), 0), video.prompt, video.trajectory, video.fps)
    clips = [video, frozen, grey]
    for clip in clips:
        clip.video.setflags(write=False)
    rubric = Rubric(RewardsConfig(rewards=(entry.model_copy(update={"phase": "all", "weight": 1.0}),), probes=rewards.probes))
    first, again = ([_only(verdict) for verdict in rubric.judge(clips)] for _ in range(2))
    alone = [_only(rubric.judge([clip])[0]) for clip in clips]
    said = ", ".join(f"{clip.id} {_said(score)}" for clip, score in zip(clips, first, strict=True))
    findings = [
        _finding("says what it measures", bool(inspect.getdoc(kind)), _first_sentence(kind) or "the class has no docstring"),
        _finding("a real video has a score", first[0].status == "ok", said),
        _finding("no input makes it fail", all(score.status != "failed" for score in first), said),
        _finding("the same input has the same score", _same(first, again), said),
        _finding("a score does not depend on the batch", _same(first, alone), ", ".join(_said(score) for score in alone)),
        _finding("names itself in the score", all(score.reward == kind.name for score in first), f"name = {kind.name!r}"),
    ]
    return findings


def prompt_stats(source: str) -> dict[str, Any]:
    """Counts of a prompt set: prompts, kinds, words, distinct texts, camera moves. Raises ValueError for a malformed one."""
    from world_r1.camera import parse
    from world_r1.prompts import load_prompts

    prompts = load_prompts(source)
    words = [len(prompt.text.split()) for prompt in prompts]
    commands = [parse(prompt.text) for prompt in prompts]
    moves = Counter(move for command in commands if command for segment in command.segments for move in segment.moves)
    return {
        "prompts": len(prompts),
        "distinct texts": len({prompt.text for prompt in prompts}),
        "kinds": dict(Counter(prompt.kind for prompt in prompts)),
        "words": {"least": min(words), "mean": round(float(np.mean(words)), 1), "most": max(words)},
        "with a camera command": sum(command is not None for command in commands),
        "in several segments": sum(command is not None and len(command.segments) > 1 for command in commands),
        "moves": dict(moves.most_common()),
    }


def settings_for(config: Config | None, names: Sequence[str]) -> tuple[RewardsConfig, CameraConfig]:
    """Rewards and camera of a configuration, or the named shipped rewards; ValueError if neither or both are given."""
    if (config is None) == (not names):
        raise ValueError("give either --config FILE or --reward NAME (world-r1 rewards list shows the names)")
    if config is not None:
        return config.rewards, config.camera
    return rewards_config(names), CameraConfig()


def verdict_rows(verdict: Verdict) -> list[dict[str, Any]]:
    """One row a score, with its parts, for `show`."""
    rows: list[dict[str, Any]] = []
    for score in verdict.scores:
        parts = "  ".join(f"{name} {value:.4g}" for name, value in score.parts.items())
        rows.append({"reward": score.reward, "status": score.status, "value": score.value, "parts": parts, "reason": score.reason})
    return [*rows, {"reward": "total", "status": "", "value": verdict.total, "parts": "", "reason": ""}]


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
        table.add_column(column, overflow="fold")
    for row in content:
        table.add_row(*(escape(_text(value)) for value in row.values()))
    console.print(table)


def _render() -> Clip:
    """A real video with its true camera command: a render of the first held-out scene."""
    import torch

    from world_r1.blockworld import prompts as blockworld
    from world_r1.blockworld import scenes
    from world_r1.camera import trajectory_for

    size, camera = VideoConfig(), CameraConfig()
    prompt = blockworld.prompts("test", 1)[0]
    with torch.no_grad():
        rgb = scenes.render(blockworld.scene_of(prompt), size.height, size.width, 2).rgb[0]
    video = ((rgb.permute(1, 2, 3, 0) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()
    return Clip("render", video, prompt, trajectory_for(prompt.text, size, camera), size.fps)


def _only(verdict: Verdict) -> Score:
    (score,) = verdict.scores
    return score


def _same(a: Sequence[Score], b: Sequence[Score]) -> bool:
    def near(x: float | None, y: float | None) -> bool:
        return x == y or (x is not None and y is not None and abs(x - y) <= 1e-4 * max(1.0, abs(x)))

    return all(x.status == y.status and near(x.value, y.value) for x, y in zip(a, b, strict=True))


def _said(score: Score) -> str:
    return f"{score.value:.4g}" if score.value is not None else f"{score.status} ({score.reason})"


def _finding(rule: str, ok: bool, detail: str) -> dict[str, Any]:
    return {"rule": rule, "ok": ok, "detail": detail}


def _first_sentence(found: type) -> str:
    text = " ".join((found.__doc__ or "").split())
    return text.partition(". ")[0].rstrip(".")


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
