"""The numbers of a report as HTML: the verdict, the table of held-out results, clip-by-clip plots, and what could not be measured."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from world_r1 import charts, comparison
from world_r1.charts import number
from world_r1.run_files import Run, read_evaluation

NAMES = {
    "plane_sweep": "Plane sweep, census",
    "sampson": "Epipolar residual",
    "sampson_kept": "Epipolar residual of kept tracks",
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
#: A guard may move the wrong way by this share.
TOLERANCE = 0.1
GROUPS = (
    ("3d", "3D consistency (held out)"),
    ("guard", "Guards: these must not fall"),
    ("reference", "For reference: training rewards and single facts"),
)


def verdict(run: Run) -> str:
    """One honest sentence or two about what the held-out numbers say."""
    if not run.summary:
        if run.before:
            return f"One evaluation of {len(run.before['rows'])} held-out prompts; there is no second one to compare it with."
        return "This run has no held-out evaluation, so it shows how training went and not whether it helped."
    exam = {k: e for k, e in run.summary.items() if e.get("role") == "3d"}
    guards = {k: e for k, e in run.summary.items() if e.get("role") == "guard"}
    pairs = max((int(e.get("n", 0)) for e in exam.values()), default=0)
    least = comparison.LEAST_PAIRS
    if pairs < least:
        return (
            f"Only {pairs} held-out prompts were compared: too few for a verdict, which needs {least}, whatever the intervals say."
        )
    better, worse = ([k for k, e in exam.items() if e.get("verdict") == word] for word in ("better", "worse"))
    text = f"{len(better)} of {len(exam)} held-out 3D metrics improved with a 95 % interval that excludes zero"
    text += f"; {_listed(worse)} got worse. " if worse else ". "
    closed = [e["gap_closed"] for e in exam.values() if e.get("gap_closed") is not None]
    if closed:
        share = _percent(sum(closed) / len(closed))
        text += f"On average they closed {share} of the gap between base samples and VAE round trips of real renders. "
    fallen = [k for k, e in guards.items() if (change := _relative(e)) is not None and _fell(change, e) > TOLERANCE]
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


def results(run: Run) -> str:
    if not run.summary:
        return _single(run)
    n = max((e.get("n") or 0) for e in run.summary.values())
    head = (
        f"<p>Means over {n} prompts that training never saw, with the same noise before and after. Intervals are 95 % paired bootstrap "
        "intervals of the difference. None of these metrics is a training reward. The gap is the distance from the base samples to real "
        "renders after one round trip through the VAE, the best that latents can do.</p>"
    )
    rows, folded = [], ""
    reach = _reach(run)
    for role, title in GROUPS:
        entries = [(name, e) for name, e in run.summary.items() if e.get("role") == role]
        if not entries:
            continue
        lines = "".join(_line(name, e, reach) for name, e in entries)
        if role == "reference":
            folded = f"<details><summary>{title}</summary>{_table(lines, reach)}</details>"
        else:
            rows.append(f'<tr class="group"><th colspan="7">{title}</th></tr>{lines}')
    return head + _table("".join(rows), reach) + folded + _pairs(run)


def _reach(run: Run) -> float:
    """Half-width of the axis of changes, one for the whole table; rare wider intervals are cut."""
    ends = [abs(end) / abs(e["before"]) for e in run.summary.values() if e.get("ci95") and e.get("before") for end in e["ci95"]]
    wide = sorted(ends)[int(0.8 * (len(ends) - 1))] if ends else 0.1
    return next((r for r in (0.05, 0.1, 0.25, 0.5) if wide <= r), 1.0)


def _table(lines: str, reach: float) -> str:
    axis = f'change, 95 % interval<span class="ci">worse by {reach:.0%} &nbsp;|&nbsp; better by {reach:.0%}</span>'
    titles = ("metric", "before", "after", "change", axis, "gap closed", "clips")
    head = "<tr>" + "".join(f"<th{' class=mid' if title is axis else ''}>{title}</th>" for title in titles) + "</tr>"
    return f'<div class="scroll"><table>{head}{lines}</table></div>'


def _line(name: str, e: Mapping[str, Any], reach: float) -> str:
    known = comparison.metric(name)
    higher = e.get("better", known.better) == "higher"
    arrow = "higher is better" if higher else "lower is better"
    label = f"<b>{html.escape(NAMES.get(name, name))}</b><small>{html.escape(known.about)}; {arrow}</small>"
    change, ci = _relative(e), e.get("ci95")
    word = _word(e)
    plot, spread = "", ""
    if ci and change is not None:
        ends = [end / abs(e["before"]) for end in ci]
        towards = [end if higher else -end for end in (change, *ends)]
        plot = charts.interval(towards[0], min(towards[1:]), max(towards[1:]), reach, word)
        spread = f'<span class="ci">{_percent(ends[0], True)} to {_percent(ends[1], True)}</span>'
    lost = (e.get("missing_before") or 0) + (e.get("missing_after") or 0)
    clips = f"{e.get('n', 0)}" + (f'<span class="ci">{lost} missing</span>' if lost else "")
    shown = f'<span class="{word}">{_percent(change, True)}</span>{spread}' if change is not None else "n/a"
    return (
        f"<tr><td>{label}</td><td>{number(e.get('before'))}</td><td>{number(e.get('after'))}</td><td>{shown}</td>"
        f'<td class="mid">{plot}</td><td>{_gap(e)}</td><td>{clips}</td></tr>'
    )


def _word(e: Mapping[str, Any]) -> str:
    """Colour of a change: a guard that moved the wrong way by less than its tolerance raises no alarm."""
    word = str(e.get("verdict", "unclear"))
    change = _relative(e)
    tolerated = e.get("role") == "guard" and change is not None and _fell(change, e) <= TOLERANCE
    return "unclear" if word == "worse" and tolerated else word


def _gap(e: Mapping[str, Any]) -> str:
    closed = e.get("gap_closed")
    if closed is None:
        return f'<span class="ci">round trip {number(e["roundtrip"])}</span>' if e.get("roundtrip") is not None else ""
    limits = e.get("gap_ci95")
    spread = f'<span class="ci">{_percent(limits[0])} to {_percent(limits[1])}</span>' if limits else ""
    return f'{charts.gap(closed)}<b title="round trip {number(e.get("roundtrip"))}">{_percent(closed)}</b>{spread}'


def _percent(value: float, signed: bool = False) -> str:
    return (f"{value:+.1%}" if signed else f"{value:.0%}").replace("-", "\u2212")


def _pairs(run: Run) -> str:
    """Every clip as a dot, for the metrics of the exam."""
    if not run.before or not run.after:
        return ""
    after = {row["id"]: row["values"] for row in run.after["rows"]}
    figures = ""
    for name, entry in run.summary.items():
        if entry.get("role") != "3d":
            continue
        both = [(row["values"].get(name), after.get(row["id"], {}).get(name)) for row in run.before["rows"]]
        kept = [(x, y) for x, y in both if x is not None and y is not None]
        figures += charts.pairs(NAMES.get(name, name), [x for x, _ in kept], [y for _, y in kept], entry["better"])
    return (
        f'<h3>Clip by clip</h3><p class="soft">A dot in the shaded half improved.</p><div class="grid4">{figures}</div>'
        if figures
        else ""
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


def missing(run: Run) -> str:
    """Reasons for missing values in the evaluations, counted."""
    lines = []
    for label, _, _, source in sources(run):
        reasons: dict[str, tuple[set[str], set[str]]] = {}
        for row in (source or {}).get("rows", ()):
            for name, reason in row.get("missing", {}).items():
                metrics, clips = reasons.setdefault(reason, (set(), set()))
                metrics.add(NAMES.get(name, name))
                clips.add(row["id"])
        for reason, (metrics, clips) in sorted(reasons.items(), key=lambda item: -len(item[1][1]))[:12]:
            cells = (html.escape(reason), html.escape(", ".join(sorted(metrics))), label, str(len(clips)))
            lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    if not lines:
        return ""
    table = f"<table class=words><tr><th>reason</th><th>metrics</th><th>evaluation</th><th>clips</th></tr>{''.join(lines)}</table>"
    return f'<p>A value that could not be measured is left out of its mean and counted here.</p><div class="scroll">{table}</div>'


def sources(run: Run) -> list[tuple[str, str, Path, Mapping[str, Any] | None]]:
    """(label, style, folder, evaluation) of everything that has clips."""
    root = run.directory
    if run.before and not (root / "eval_before").is_dir():
        return [("sample", "after", root, run.before)]
    return [
        ("before", "before", root / "eval_before", run.before),
        ("after", "after", root / "eval_after", run.after),
        ("real render", "reference", root / "reference" / "render", read_evaluation(root / "reference" / "render")),
    ]
