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

from world_r1 import charts, comparison, media
from world_r1.charts import Series, number
from world_r1.run_files import Run, is_number, read_evaluation

ASSETS = Path(__file__).parent / "assets"
NAMES = {
    "plane_sweep": "Plane sweep, census",
    "sampson": "Epipolar residual",
    "inliers": "Epipolar inliers",
    "forward_backward": "Forward-backward error",
    "camera": "Camera agreement",
    "motion": "Motion",
    "sharpness": "Sharpness",
    "contrast": "Contrast",
    "fidelity": "Prompt fidelity",
    "direction": "Camera direction",
    "quality": "Undamaged",
    "reward": "Training reward",
}
GROUPS = (
    ("3d", "3D consistency (held out)"),
    ("guard", "Guards: these must not fall"),
    ("reference", "For reference: training rewards and single facts"),
)


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
        ("results", "Held-out results", _results(run)),
        ("clips", "Clips before and after", _clips(run)),
        ("space", "Camera paths and point clouds", _spaces(run)),
        ("training", "Training", _training(run)),
        ("failures", "What could not be measured", _missing(run)),
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
        f'<header><p class="kicker">world-r1 report</p><h1>{name}</h1><p class="verdict">{verdict(run)}</p>'
        f"{_facts(run)}<nav>{links}</nav></header>"
        f"<main>{bodies}</main><footer>Written by world-r1; everything shown is inside this file.</footer>"
        f"<script>{script}</script></body></html>\n"
    )


def verdict(run: Run) -> str:
    """One honest sentence or two about what the held-out numbers say."""
    if not run.summary:
        if run.before:
            return f"One evaluation of {len(run.before['rows'])} held-out prompts; there is no second one to compare it with."
        return "This run has no held-out evaluation, so it shows how training went and not whether it helped."
    exam = {k: e for k, e in run.summary.items() if e.get("role") == "3d"}
    guards = {k: e for k, e in run.summary.items() if e.get("role") == "guard"}
    better, worse = ([k for k, e in exam.items() if e.get("verdict") == word] for word in ("better", "worse"))
    text = f"{len(better)} of {len(exam)} held-out 3D metrics improved with a 95 % interval that excludes zero"
    text += f"; {_listed(worse)} got worse. " if worse else ". "
    fallen = [k for k, e in guards.items() if (change := _relative(e)) is not None and _fell(change, e) > 0.1]
    if fallen:
        text += f"Guards broken: {_listed(fallen)} fell by more than 10 %."
    elif guards:
        text += "No guard fell by more than 10 %."
    return text


def _listed(names: Sequence[str]) -> str:
    return ", ".join(NAMES.get(n, n).lower() for n in names)


def _relative(entry: Mapping[str, Any]) -> float | None:
    if entry.get("delta") is None or not entry.get("before"):
        return None
    return float(entry["delta"]) / abs(float(entry["before"]))


def _fell(change: float, entry: Mapping[str, Any]) -> float:
    return -change if entry.get("better") == "higher" else change


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


def _results(run: Run) -> str:
    if not run.summary:
        return _single(run)
    n = max((e.get("n") or 0) for e in run.summary.values())
    head = (
        f"<p>Means over {n} prompts that training never saw, with the same noise before and after. Intervals are 95 % paired bootstrap "
        "intervals of the difference. None of these metrics is a training reward. The gap is the distance from the base samples to real "
        "renders after one round trip through the VAE, the best that latents can do.</p>"
    )
    rows, folded = [], ""
    for role, title in GROUPS:
        entries = [(name, e) for name, e in run.summary.items() if e.get("role") == role]
        if not entries:
            continue
        lines = "".join(_line(name, e) for name, e in entries)
        if role == "reference":
            folded = f"<details><summary>{title}</summary>{_table(lines)}</details>"
        else:
            rows.append(f'<tr class="group"><th colspan="7">{title}</th></tr>{lines}')
    return head + _table("".join(rows)) + folded


def _table(lines: str) -> str:
    titles = ("metric", "before", "after", "change", "change with 95 % interval", "gap closed", "clips")
    head = "<tr>" + "".join(f"<th>{title}</th>" for title in titles) + "</tr>"
    return f'<div class="scroll"><table>{head}{lines}</table></div>'


def _line(name: str, e: Mapping[str, Any]) -> str:
    known = comparison.metric(name)
    arrow = "higher is better" if e.get("better", known.better) == "higher" else "lower is better"
    label = f"<b>{html.escape(NAMES.get(name, name))}</b><small>{html.escape(known.about)}; {arrow}</small>"
    change, ci = _relative(e), e.get("ci95")
    word = e.get("verdict", "unclear")
    plot, spread = "", ""
    if ci and change is not None:
        base = abs(e["before"])
        low, high = ci[0] / base, ci[1] / base
        reach = next((r for r in (0.1, 0.25, 0.5, 1.0, 2.0) if max(abs(low), abs(high)) <= r), 4.0)
        plot = charts.interval(change, low, high, reach, word) + f'<span class="ci">scale ±{reach:.0%}</span>'
        spread = f'<span class="ci">{low:+.1%} to {high:+.1%}</span>'
    closed = e.get("gap_closed")
    gap = ""
    if closed is not None:
        limits = e.get("gap_ci95")
        gap = (
            charts.gap(closed)
            + f"<b>{closed:.0%}</b>"
            + (f'<span class="ci">{limits[0]:.0%} to {limits[1]:.0%}</span>' if limits else "")
        )
    elif e.get("roundtrip") is not None:
        gap = f'<span class="ci">round trip {number(e["roundtrip"])}</span>'
    lost = (e.get("missing_before") or 0) + (e.get("missing_after") or 0)
    clips = f"{e.get('n', 0)}" + (f'<span class="ci">{lost} missing</span>' if lost else "")
    shown = f'<span class="{word}">{change:+.1%}</span>{spread}' if change is not None else "n/a"
    return (
        f"<tr><td>{label}</td><td>{number(e.get('before'))}</td><td>{number(e.get('after'))}</td><td>{shown}</td>"
        f'<td class="mid">{plot}</td><td>{gap}</td><td>{clips}</td></tr>'
    )


def _single(run: Run) -> str:
    """The table of one evaluation, with nothing to compare."""
    found = run.after or run.before
    if not found:
        return ""
    lines = ""
    for name, e in found["summary"].items():
        about = html.escape(comparison.metric(name).about)
        label = f"<b>{html.escape(NAMES.get(name, name))}</b><small>{about}</small>"
        lines += f"<tr><td>{label}</td><td>{number(e['mean'])}</td><td>{number(e['std'])}</td><td>{e['n']}</td><td>{e['missing']}</td></tr>"
    head = "<tr><th>metric</th><th>mean</th><th>standard deviation</th><th>clips</th><th>missing</th></tr>"
    return f'<div class="scroll"><table>{head}{lines}</table></div>'


def _clips(run: Run) -> str:
    cards = []
    for row in _kept(run):
        figures = []
        for label, style, folder, source in _sources(run):
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
    for label, _, folder, _ in _sources(run):
        if (sheet := media.still(folder / "sheet.png")) is not None:
            sheets += (
                f'<details><summary>Contact sheet, {label}</summary><img alt="contact sheet, {label}" src="{sheet}"></details>'
            )
    intro = "<p>The same prompt and the same noise. The first clips of the held-out set, not the best ones.</p>"
    return intro + f'<div class="clips">{"".join(cards)}</div>' + sheets


def _sources(run: Run) -> list[tuple[str, str, Path, Mapping[str, Any] | None]]:
    """(label, style, folder, evaluation) of everything that has clips."""
    root = run.directory
    if run.before and not (root / "eval_before").is_dir():
        return [("sample", "after", root, run.before)]
    return [
        ("before", "before", root / "eval_before", run.before),
        ("after", "after", root / "eval_after", run.after),
        ("real render", "reference", root / "reference" / "render", read_evaluation(root / "reference" / "render")),
    ]


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
        body = charts.paths(tracks, depth) + (_cloud(good, commanded) if good else "")
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
    ratio = [_series(run, "clip_fraction", "clipped", "after"), _series(run, "ratio_std", "std", "reference")]
    figures.append(charts.curves("Ratio", ratio, note="share clipped, and standard deviation", floor=0.0))
    figures.append(
        charts.curves(
            "Failures", [_series(run, "failure_rate", "failed", "reference")], note="share of videos without a score", floor=0.0
        )
    )
    amounts = _times(run)
    inner = [name for name in names if name.count("/") > 1]
    details = "".join(charts.curves(name.removeprefix("reward/"), [_series(run, name, name)]) for name in inner)
    details = f'<details><summary>Parts of the rewards</summary><div class="grid3">{details}</div></details>' if details else ""
    split = f"<h3>Where the time went</h3>{charts.shares(amounts)}" if amounts else ""
    return f'<p>Faint: every step. Strong: running mean.</p><div class="grid3">{"".join(figures)}</div>{details}{split}'


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


def _missing(run: Run) -> str:
    """Reasons for missing values in the evaluations, counted."""
    lines = []
    for label, _, _, source in _sources(run):
        reasons: dict[tuple[str, str], int] = {}
        for row in (source or {}).get("rows", ()):
            for name, reason in row.get("missing", {}).items():
                reasons[name, reason] = reasons.get((name, reason), 0) + 1
        for (name, reason), count in sorted(reasons.items(), key=lambda item: -item[1])[:12]:
            lines.append(
                f"<tr><td>{html.escape(reason)}</td><td>{html.escape(NAMES.get(name, name))}</td><td>{label}</td><td>{count}</td></tr>"
            )
    if not lines:
        return ""
    table = f"<table><tr><th>reason</th><th>metric</th><th>evaluation</th><th>clips</th></tr>{''.join(lines)}</table>"
    return f'<p>A value that could not be measured is left out of its mean and counted here.</p><div class="scroll">{table}</div>'


def _configuration(run: Run) -> str:
    if not run.config:
        return ""
    text = html.escape(json.dumps(run.config, indent=2))
    return f"<details><summary>Show the resolved configuration</summary><pre>{text}</pre></details>"
