"""The tables of kernels/README.md, from the JSON that the benchmarks wrote: `world-r1 bench attention-table`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from world_r1_kernels.bench.shapes import results_folder

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
#: Heading of a speed table's columns and the key of a row, or what is computed from one.
SPEED: tuple[tuple[str, str], ...] = (
    ("cuDNN forward", "cudnn forward ms"),
    ("FlexAttention, full blocks alone", "flex forward ms"),
    ("ours, all", "forward with everything ms"),
    ("the same, blocks of 64", "forward with everything, blocks of 64 ms"),
    ("of it overhead", "overhead ms"),
    ("kernel", "kernel ms"),
    ("kernel TFLOP/s", "kernel TFLOP/s"),
    ("cuDNN backward", "cudnn backward ms"),
    ("ours backward", "backward ms"),
    ("forward, times", "forward against cudnn"),
    ("backward, times", "backward against cudnn"),
)


def write(readme: Path | None = None, results: Path | None = None, say: Callable[[str], None] = print) -> str:
    """Put the tables between the marks of the README; returns them. ValueError if it has no marks."""
    readme = readme or results_folder().parents[1] / "README.md"
    results = results or results_folder()
    text = readme.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise ValueError(f"{readme} has no lines {BEGIN} and {END} to put the tables between")
    tables = render(results)
    head, tail = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
    readme.write_text(f"{head}\n{tables}\n{tail}", encoding="utf-8")
    say(f"wrote the tables into {readme}")
    return tables


def render(results: Path) -> str:
    """All tables of a results folder as Markdown; says so where a kind of result is missing."""
    parts = []
    for path in sorted(results.glob("attention-*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        if "quality" not in path.name and content.get("rows"):
            parts.append(_speed(content, path.name))
    if not parts:
        parts.append("Speed: not measured yet.")
    full, quick = results / "attention-quality.json", results / "attention-quality-quick.json"
    found = full if full.is_file() else quick
    parts.append(
        _quality(json.loads(found.read_text(encoding="utf-8")), found.name) if found.is_file() else "Error: not measured yet."
    )
    return "\n\n".join(parts)


def _speed(content: dict[str, Any], name: str) -> str:
    machine = content["machine"]
    changed = " and uncommitted changes" if machine.get("changed") else ""
    rows = [dict(row) for row in content["rows"]]
    columns = [(title, key) for title, key in SPEED if any(row.get(key) is not None for row in rows)]
    lines = [
        f"Speed on {machine['device']} (torch {machine['torch']}, triton {machine['triton']}, commit {machine['commit']}{changed}, "
        f"`{name}`). Milliseconds; random inputs, bfloat16.",
        "",
        _line(["shape", "density", "rest", *(title for title, _ in columns)]),
        _line(["---"] * (len(columns) + 3)),
    ]
    for row in rows:
        lines.append(
            _line(
                [
                    row["shape"],
                    f"{row['density']:.2f}",
                    str(row.get("rest", "")),
                    *(_number(row.get(key), key) for _, key in columns),
                ]
            )
        )
    return "\n".join(lines)


def _number(value: float | None, key: str) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if "TFLOP" in key else f"{value:.1f}" if "against" in key or value >= 100 else f"{value:.2f}"


def _quality(content: dict[str, Any], name: str) -> str:
    rows = content["rows"]
    sources = list(dict.fromkeys(row["source"] for row in rows))
    blocks = []
    for group in ([s for s in sources if not s.startswith("blockworld")], [s for s in sources if s.startswith("blockworld")]):
        mine = [row for row in rows if row["source"] in group]
        if mine:
            blocks.append(_errors(mine, group))
    grid = "x".join(map(str, content["grid"]))
    intro = (
        f"Relative error of the output against exact attention, at equal density (`{name}`, picture beside it). Synthetic fields of "
        f"{grid} tokens, blocks of 128, one head of 64. In brackets the density with the estimator's own cost, where it differs by "
        "more than .005 from the one asked for."
    )
    return "\n\n".join([intro, *blocks])


def _errors(rows: list[dict[str, Any]], sources: Iterable[str]) -> str:
    asked = sorted({row["asked"] for row in rows})
    density = 0.1 if 0.1 in asked else asked[0]
    sources = list(sources)
    table = {(row["method"], row["source"]): row for row in rows if row["asked"] == density}
    lines = [f"Density {density:g}:", "", _line(["method", *sources]), _line(["---"] * (len(sources) + 1))]
    for method in dict.fromkeys(row["method"] for row in rows):
        cells = []
        for source in sources:
            row = table.get((method, source))
            spent = "" if row is None or abs(row["with estimator"] - density) <= 0.005 else f" ({row['with estimator']:.3f})"
            cells.append("" if row is None else f"{row['error']:.3f}{spent}")
        lines.append(_line([method, *cells]))
    return "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
