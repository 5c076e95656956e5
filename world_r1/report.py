"""The report of a run: one HTML file with everything inside, readable years later without a network.

Numbers first (held-out metrics before and after, with intervals), then what they look like (clips, camera paths, point clouds), then how
training went. Whatever a run lacks, the report says so and goes on: a crashed run deserves a report too.
"""

from __future__ import annotations

import html
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from world_r1 import charts, media, report_tables
from world_r1.charts import Series, number
from world_r1.run_files import Run, is_number

ASSETS = Path(__file__).parent / "assets"


def write_report(run_dir: str | Path) -> Path:
    """Write `report.html` into a run directory and return its path. Raises ValueError for a folder that is no run."""
    run = Run.read(run_dir)
    if not run.steps and run.before is None and not run.config:
        raise ValueError(f"{run.directory} holds neither metrics.jsonl nor an evaluation; there is nothing to report")
    page = render(run)
    path = run.directory / "report.html"
    part = path.with_suffix(".html.part")
    part.write_text(page, encoding="utf-8")
    os.replace(part, path)
    return path


def render(run: Run) -> str:
    """The whole page."""
    sections = [
        ("results", "Held-out results", report_tables.results(run)),
        ("clips", "Clips before and after", _clips(run)),
        ("space", "Camera paths and point clouds", _spaces(run)),
        ("training", "Training", _training(run)),
        ("failures", "What could not be measured", report_tables.missing(run)),
        ("configuration", "Configuration", _configuration(run)),
    ]
    shown = [(key, title, body) for key, title, body in sections if body]
    links = "".join(f'<a href="#{key}">{title}</a>' for key, title, _ in shown)
    bodies = "".join(f'<section id="{key}"><h2>{title}</h2>{body}</section>' for key, title, body in shown)
    name = html.escape(str(run.config.get("name") or run.directory.resolve().name))
    style, script = ((ASSETS / f).read_text(encoding="utf-8") for f in ("report.css", "report.js"))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name}: world-r1 report</title><style>{style}</style></head><body>"
        f'<header><p class="kicker">world-r1 report</p><h1>{name}</h1><p class="verdict">{report_tables.verdict(run)}</p>'
        f"{_facts(run)}<nav>{links}</nav></header>"
        f"<main>{bodies}</main><footer>Written by world-r1; everything shown is inside this file.</footer>"
        f"<script>{script}</script></body></html>\n"
    )


def _facts(run: Run) -> str:
    c = run.config
    get = lambda *keys: _dig(c, keys)  # noqa: E731
    seconds = sum(amount for _, amount in _times(run))
    lora = get("model", "lora", "rank")
    facts = [
        ("model", get("model", "path")),
        ("adapter", f"LoRA rank {lora}" if lora else ("full fine-tuning" if c else None)),
        ("steps", len(run.steps) or None),
        ("videos a step", f"{get('prompts', 'groups')} x {get('prompts', 'group_size')}" if get("prompts", "groups") else None),
        ("algorithm", get("algorithm", "name")),
        ("learning rate", get("optimizer", "learning_rate")),
        ("seed", get("seed")),
        ("training time", f"{seconds / 60:.1f} min" if seconds else None),
        ("held-out prompts", len(run.before["rows"]) if run.before else None),
    ]
    items = "".join(f"<li>{name} <b>{html.escape(str(value))}</b></li>" for name, value in facts if value is not None)
    return f'<ul class="facts">{items}</ul>'


def _dig(tree: Any, keys: Sequence[str]) -> Any:
    for key in keys:
        if not isinstance(tree, Mapping):
            return None
        tree = tree.get(key)
    return tree


def _clips(run: Run) -> str:
    cards = []
    for row in _kept(run):
        figures = []
        for label, style, folder, source in report_tables.sources(run):
            if (image := media.animation(folder / "clips" / f"{row['index']:03d}.mp4")) is None:
                continue
            note = _note(source, row["id"])
            figures.append(
                f'<figure><img alt="{label}" src="{image}"><figcaption><b class="word {style}">{label}</b> {note}</figcaption></figure>'
            )
        if figures:
            cards.append(
                f'<article class="clip"><p>{html.escape(row["prompt"])}</p><div class="row">{"".join(figures)}</div></article>'
            )
    if not cards:
        return ""
    sheets = ""
    for label, _, folder, _ in report_tables.sources(run):
        if (sheet := media.still(folder / "sheet.png")) is not None:
            sheets += (
                f'<details><summary>Contact sheet, {label}</summary><img alt="contact sheet, {label}" src="{sheet}"></details>'
            )
    intro = "<p>The same prompt and the same noise. The first clips of the held-out set, not the best ones.</p>"
    return intro + f'<div class="clips">{"".join(cards)}</div>' + sheets


def _note(source: Mapping[str, Any] | None, key: str) -> str:
    row = next((r for r in (source or {}).get("rows", ()) if r["id"] == key), None)
    if row is None:
        return ""
    pick = [("sweep", "plane_sweep"), ("residual", "sampson"), ("camera", "camera")]
    return ", ".join(f"{short} {number(row['values'][name], 2)}" for short, name in pick if row["values"].get(name) is not None)


def _kept(run: Run) -> list[Mapping[str, Any]]:
    found = run.before or run.after
    return [row for row in found["rows"] if "geometry" in row] if found else []


def _spaces(run: Run) -> str:
    after = {row["id"]: row for row in (run.after or {}).get("rows", ())}
    cards = []
    for row in _kept(run):
        views = [("before", row.get("geometry")), ("after", after.get(row["id"], {}).get("geometry"))]
        good = [(style, g) for style, g in views if g and not g["why"]]
        reasons = "; ".join(f"{style}: {g['why']}" for style, g in views if g and g["why"])
        commanded = next((g["commanded"] for _, g in views if g and g["commanded"]), None)
        if not good and commanded is None:
            continue
        depth = next((g["depth"] for _, g in views if g), 1.0)
        tracks = ([("commanded", commanded)] if commanded else []) + [(style, g["estimated"]) for style, g in good]
        title = f"{row['index']}. {row.get('command') or 'no camera command'}"
        if any(g.get("turns_only") for _, g in good):
            cloud = '<p class="empty">A camera that only turns shows no depth, so there is no point cloud.</p>'
        else:
            cloud = _cloud(good, commanded) if good else ""
        body = charts.paths(tracks, depth) + cloud
        why = f'<p class="empty">No reconstruction: {html.escape(reasons)}</p>' if reasons else ""
        cards.append(f'<article class="space"><p><b>{html.escape(title)}</b></p><div class="pair">{body}</div>{why}</article>')
    if not cards:
        return ""
    legend = "".join(f'<li class="{style}"><i></i>{text}</li>' for style, text in _LEGEND)
    intro = (
        "<p>Estimated by bundle adjustment of optical flow, scaled to the command. Short strokes show where the camera looks at the "
        "start, in the middle and at the end; the dot is the subject. Drag a cloud to turn it.</p>"
    )
    return intro + f'<ul class="legend">{legend}</ul><div class="spaces">{"".join(cards)}</div>'


_LEGEND = (("commanded", "commanded"), ("before", "estimated before"), ("after", "estimated after"))


def _cloud(views: Sequence[tuple[str, Mapping[str, Any]]], commanded: Any) -> str:
    clouds = [
        {
            "points": g["points"],
            "colours": g["colours"],
            "depth": g["depth"],
            "commanded": commanded,
            "estimated": g["estimated"],
            "colour": "#74a5ff" if style == "after" else "#c3c6cc",
        }
        for style, g in views
    ]
    buttons = "".join(
        f'<button type="button" aria-pressed="{"true" if i == len(views) - 1 else "false"}">{style}</button>'
        for i, (style, _) in enumerate(views)
    )
    data = json.dumps(clouds, separators=(",", ":")).replace("</", "<\\/")
    script = f'<script type="application/json">{data}</script>'
    return f'<figure class="cloud"><canvas></canvas><figcaption>{buttons}</figcaption>{script}</figure>'


def _training(run: Run) -> str:
    if not run.steps:
        return ""
    target = _dig(run.config, ("algorithm", "kl", "target_nats"))
    figures = [charts.curves("Reward", [_series(run, "reward", "reward")], note="mean of the videos of a step")]
    names = sorted({key for row in run.steps for key in row if key.startswith("reward/")})
    figures += [
        charts.curves(f"Reward: {name.removeprefix('reward/')}", [_series(run, name, name)])
        for name in names
        if name.count("/") == 1
    ]
    figures.append(
        charts.curves("KL to the base", [_series(run, "kl_nats", "KL")], note="nats per trained step", floor=0.0, guide=target)
    )
    figures.append(charts.curves("KL weight", [_series(run, "beta", "beta")], floor=0.0) if _has(run, "beta") else "")
    figures.append(charts.curves("Clipped ratios", [_series(run, "clip_fraction", "clipped")], note="share", floor=0.0))
    figures.append(charts.curves("Ratio spread", [_series(run, "ratio_std", "std")], note="standard deviation", floor=0.0))
    failed = [_series(run, "failure_rate", "failed", "reference")]
    figures.append(charts.curves("Failures", failed, note="share of videos without a score", floor=0.0))
    amounts = _times(run)
    inner = [name for name in names if name.count("/") > 1]
    details = "".join(charts.curves(name.removeprefix("reward/"), [_series(run, name, name)]) for name in inner)
    details = f'<details><summary>Parts of the rewards</summary><div class="grid3">{details}</div></details>' if details else ""
    split = f"<h3>Where the time went</h3>{charts.shares(amounts)}" if amounts else ""
    intro = "<p>Over training steps. Faint: every step; strong: running mean.</p>"
    return f'{intro}<div class="grid3">{"".join(figures)}</div>{details}{split}'


def _times(run: Run) -> list[tuple[str, float]]:
    """(part, seconds) summed over all steps, largest first; "total" is what the parts leave."""
    names = sorted({key for row in run.steps for key in row if key.startswith(("time/", "seconds/"))})
    sums = {key.partition("/")[2]: sum(float(row[key]) for row in run.steps if is_number(row.get(key))) for key in names}
    if (total := sums.pop("total", None)) is not None and (rest := total - sum(sums.values())) > 0.01 * total:
        sums["other"] = rest
    return sorted(sums.items(), key=lambda item: -item[1])


def _series(run: Run, key: str, label: str, style: str = "after") -> Series:
    values = [float(row[key]) if is_number(row.get(key)) else None for row in run.steps]
    return Series(label, [float(row.get("step", i)) for i, row in enumerate(run.steps)], values, style)


def _has(run: Run, key: str) -> bool:
    return any(key in row for row in run.steps)


def _configuration(run: Run) -> str:
    if not run.config:
        return ""
    text = html.escape(json.dumps(run.config, indent=2))
    return f"<details><summary>Show the resolved configuration</summary><pre>{text}</pre></details>"
