"""The discrimination benchmark from a configuration to a file, a table and a picture: what `world-r1 rewards bench` does."""

from __future__ import annotations

import hashlib
import html
import json
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import torch

from world_r1.config import RewardsConfig
from world_r1.reward import Rubric
from world_r1_rewards.discrimination import DAMAGES, SPLITS, world
from world_r1_rewards.discrimination_report import BARS, accuracy, measure, measure_accuracy, summarise

WHAT = "clips of 17x96x160 from world_r1_rewards.discrimination; AUC of clean against damaged clips over all pairs of scenes"


def bench(
    rewards: RewardsConfig,
    split: str,
    scenes: int,
    out: Path,
    *,
    accuracy_only: bool = False,
    resume: bool = False,
    say: Callable[[str], Any] | None = None,
) -> dict[str, Any]:
    """Measure `scenes` worlds of a split; writes bench.json, bench.svg and a file a scene under `out`, and returns the figures.

    `resume` takes scenes from `out` that were measured with the same settings; whether the code is still the same is for the caller to
    know. One thread. ValueError for an unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"--split must be one of {', '.join(SPLITS)}, got {split!r}")
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    rubric = Rubric(rewards)
    settings = json.dumps(rewards.model_dump(mode="json", include={"rewards", "probes"}), sort_keys=True)
    make = measure_accuracy if accuracy_only else measure
    folder = out / "scenes"
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for index in range(scenes):
        key = hashlib.sha256(f"{make.__name__} {settings}".encode()).hexdigest()[:12]
        file = folder / f"{split}-{index}-{key}.json"
        if not (resume and file.is_file()):
            file.write_text(json.dumps(make(world(split, index), rubric)), encoding="utf-8")
        rows.append(json.loads(file.read_text(encoding="utf-8")))
        if say:
            say(f"{rows[-1]['world']:14} {rows[-1]['command']:30} {rows[-1]['seconds']:.2f} CPU-s a clip")
    found = {
        "what": WHAT, "split": split, "scenes": scenes, "settings": json.loads(settings),
        "rewards": {} if accuracy_only else {entry.key: summarise(rows, entry.key) for entry in rewards.rewards},
        "geometry": accuracy(rows) if any(row["accuracy"] for row in rows) else {},
        "cpu_seconds_a_clip": sorted(row["seconds"] for row in rows)[len(rows) // 2],
        "machine": {"python": platform.python_version(), "torch": torch.__version__, "opencv": cv2.__version__, "threads": 1},
    }  # fmt: skip
    (out / "bench.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    if not accuracy_only:
        (out / "bench.svg").write_text(picture(found), encoding="utf-8")
    return found


def table(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a kind of damage: the bar, and AUC, paired wins and mean of every reward. A star marks an AUC below its bar."""
    rows = []
    for damage in DAMAGES if found["rewards"] else ():
        row: dict[str, Any] = {"damage": damage, "bar": BARS.get(damage, "harmless" if _harmless(found, damage) else "")}
        for name, one in found["rewards"].items():
            it = one["damages"][damage]
            mean = "missing" if it["mean"] is None else f"{it['mean']:.2f}"
            row[f"{name}: AUC, pairs, mean"] = (
                f"{it['auc']:.3f}{'' if it.get('holds', True) else '*'}  {it['paired_wins']:.2f}  {mean}"
            )
        rows.append(row)
    return rows


def facts(found: Mapping[str, Any]) -> dict[str, Any]:
    """What the table has no place for: means by amplitude, errors of the geometry, CPU seconds."""
    lines: dict[str, Any] = {}
    for name, one in found["rewards"].items():
        lines[f"{name}, clean clips by amplitude"] = {**one["amplitudes"], "half the range": one["band"]}
        lines[f"{name}, scenes"] = one["scenes"]
    if found["geometry"]:
        lines["geometry"] = found["geometry"]
    return {**lines, "CPU seconds a clip": round(found["cpu_seconds_a_clip"], 3)}


def _harmless(found: Mapping[str, Any], damage: str) -> bool:
    return any(one["damages"][damage].get("harmless", False) for one in found["rewards"].values())


COLOURS = ("#1d6fb8", "#c4532d", "#3c8c4a", "#8250a8", "#8a6d1f", "#4d4d4d")


def picture(found: Mapping[str, Any]) -> str:
    """A standalone SVG: AUC by damage, a dot a reward and a tick at the bar; beside it clean clips by amplitude."""
    left, width, line, top = 96, 260, 15, 34
    bottom = top + line * len(DAMAGES)
    x = lambda auc: left + width * auc  # noqa: E731
    parts = [_text(left, top - 14, "AUC of clean over damaged clips, tick: bar", "b")]
    for share in (0.0, 0.5, 1.0):
        parts += [_line(x(share), top - 6, x(share), bottom - 6, "#ddd"), _text(x(share), bottom + 8, f"{share:g}", "m")]
    for row, damage in enumerate(DAMAGES):
        y = top + line * row
        parts.append(_text(left - 8, y + 4, damage.replace("_", " "), "e"))
        if damage in BARS:
            parts.append(_line(x(BARS[damage]), y - 6, x(BARS[damage]), y + 6, "#222"))
        for colour, one in zip(_colours(found), found["rewards"].values(), strict=True):
            parts.append(
                f'<circle cx="{x(one["damages"][damage]["auc"]):.1f}" cy="{y}" r="3.4" fill="{colour}" fill-opacity="0.8"/>'
            )
    parts += _amplitudes(found, left + width + 70, top, 200, bottom - 6 - top)
    for row, (colour, name) in enumerate(zip(_colours(found), found["rewards"], strict=True)):
        parts.append(f'<circle cx="{left + 4}" cy="{bottom + 24 + 14 * row}" r="3.4" fill="{colour}"/>')
        parts.append(_text(left + 14, bottom + 28 + 14 * row, html.escape(name), ""))
    size = (left + width + 310, bottom + 40 + 14 * len(found["rewards"]))
    style = "text{font:11px sans-serif;fill:#222}.b{font-weight:600}.m{text-anchor:middle}.e{text-anchor:end}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0]} {size[1]}" width="{size[0]}" role="img">'
        f'<style>{style}</style><rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def _amplitudes(found: Mapping[str, Any], left: float, top: float, width: float, height: float) -> list[str]:
    """Mean of clean clips by camera amplitude, on a scale that holds all rewards and 0 to 1."""
    curves = [[(float(a), v) for a, v in one["amplitudes"].items() if v is not None] for one in found["rewards"].values()]
    values = [v for curve in curves for _, v in curve]
    low, high = min(0.0, *values, 0.0), max(1.0, *values, 1.0)
    at = lambda a, v: (left + width * a / 2, top + height * (1 - (v - low) / (high - low)))  # noqa: E731
    parts = [_text(left, top - 14, "clean clips by camera amplitude", "b")]
    for v in (low, high):
        parts += [_line(left, at(0, v)[1], left + width, at(0, v)[1], "#ddd"), _text(left - 6, at(0, v)[1] + 4, f"{v:.2g}", "e")]
    parts += [_text(at(a, low)[0], top + height + 14, f"{a:g}", "m") for a in (0.4, 1.0, 2.0)]
    for colour, curve in zip(_colours(found), curves, strict=True):
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(a, v) for a, v in curve))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
    return parts


def _colours(found: Mapping[str, Any]) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(len(found["rewards"]))]


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{text}</text>'
