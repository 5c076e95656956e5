"""Writing a data set: JSONL and plain text by split, plots, and a card whose header makes the folder a Hugging Face data set."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from world_r1_prompts import store, summary
from world_r1_prompts.config import BuildConfig
from world_r1_prompts.record import CATEGORIES, Record, to_lines

_CRITERIA = """\
| criterion | a prompt passes if |
|---|---|
| grammatical | every sentence is correct English |
| visual | everything named can be seen; no abstractions |
| spatially explicit | it says where things are relative to each other |
| camera fits content | the move has something to show, and can be done there |
| not templated | it could have been written for this scene alone |
"""

_ORIGIN = {
    "grammar": "Composed by the grammar in `world_r1_prompts` of sentences in `scenes/`.",
    "written": (
        "The scenes in `world_r1_prompts/written/` were written one by one by a large language model, each for one camera sentence of the "
        "grammar, and then read in full and mended three times by others, also language models. The build itself calls no model."
    ),
}
_LIMITS = {
    "grammar": "The scenes are composed, so phrases recur: the same detail of the same subject is met several times.",
    "written": "Phrases that say where things are recur (on the left a, to the right of), because most moves need a thing on their side.",
}


def export(folder: Path, config: BuildConfig, splits: Mapping[str, Sequence[Record]], report: Mapping[str, Any]) -> list[Path]:
    """Write `<split>.jsonl`, `<split>.txt`, plots and README.md (the card) into `folder`; returns what was written.

    NOTES.md in the folder, if there is one, becomes a section of the card: what readers found is not for the build to say.
    """
    written = []
    for name, records in splits.items():
        for suffix, text in ((".jsonl", to_lines(records)), (".txt", "".join(record.text + "\n" for record in records))):
            store.write(folder / f"{name}{suffix}", text.encode())
            written.append(folder / f"{name}{suffix}")
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    pictures = [f"plots/{name}" for name in summary.plots(folder / "plots", splits)]
    notes = folder / "NOTES.md"
    card = _card(config, splits, report, pictures, notes.read_text(encoding="utf-8") if notes.is_file() else "")
    store.write(folder / "README.md", card.encode())
    return [*written, *(folder / name for name in pictures), folder / "README.md"]


def _card(
    config: BuildConfig, splits: Mapping[str, Sequence[Record]], report: Mapping[str, Any], pictures: Sequence[str], notes: str
) -> str:
    found = {name: summary.counts(records) for name, records in splits.items()}
    # One configuration a split: the fields of a camera plan differ between them, and a reader infers one type a configuration.
    files = "".join(
        f"  - config_name: {name}\n    data_files:\n      - split: {name}\n        path: {name}.jsonl\n" for name in splits
    )
    total = sum(len(records) for records in splits.values())
    parts = [
        f"---\npretty_name: World descriptions with camera instructions ({config.name})\nlicense: apache-2.0\nlanguage: [en]\n"
        f"task_categories: [text-to-video]\nsize_categories: [{'1K<n<10K' if total >= 1000 else 'n<1K'}]\n"
        f"configs:\n{files}---\n\n",
        "# World descriptions with camera instructions\n\n"
        f"{total} English prompts for text-to-video models: a scene with its layout, and what the camera does in it. Text only; no "
        "image or video was used or is needed. Every prompt comes with its camera plan in JSON.\n\n",
        _sizes(found),
        "\nTrain and test are rigid scenes (only the camera moves) except the test prompts of category dynamic; dynamic "
        "scenes move as well. No subject of the test split occurs in another split.\n\n",
        "".join(f"![{name}]({name})\n" for name in pictures),
        "\n## Fields\n\n`id`, `split`, `category`, `subcategory`, `kind` (rigid or dynamic), `base` (the scene), `text` (camera "
        "sentence and scene: what a model is given), `camera` (plan: steps of simultaneous moves), `source`, `licence`, "
        "`generator`, `quality` (words, camera difficulty, cosine to the nearest prompt of the split).\n\n",
        f"## Provenance and licence\n\n{_ORIGIN[config.source]} No text of any other data set. Apache-2.0. Rebuilt by `world-r1 "
        f"prompts build` from the configuration `{config.name}`, seed {config.seed}, {report['candidates']} candidates; same "
        "configuration, same files (embeddings are compared with a threshold, so another processor could in principle drop another "
        "repeat).\n\n",
        _tables(found, report),
        "\n## Reading\n\n`world-r1 prompts sample FILES` prints the fixed random hundred that readers rate. Criteria:\n\n"
        + _CRITERIA,
        f"\n{notes.strip()}\n" if notes.strip() else "",
        f"\n## Limits\n\nEnglish only. {_LIMITS[config.source]} There are no people in rigid scenes, no brands, no text to be "
        "rendered. The safety word list catches words, not intentions.\n",
        "\n## Twenty random prompts of each category\n" + _samples(splits),
    ]
    return "".join(parts)


def _sizes(found: Mapping[str, Mapping[str, Any]]) -> str:
    rows = "".join(
        f"| {name} | {c['prompts']} | {c['subjects']} | {c['words']['least']} / {c['words']['median']} / {c['words']['most']} |\n"
        for name, c in found.items()
    )
    return "| split | prompts | subjects | words: least / median / most |\n|---|---|---|---|\n" + rows


def _tables(found: Mapping[str, Mapping[str, Any]], report: Mapping[str, Any]) -> str:
    out = ["## Counts\n"]
    for title, field in (("category", "categories"), ("camera difficulty", "difficulties"), ("move", "moves")):
        names = list(dict.fromkeys(name for values in found.values() for name in values[field]))
        out.append(f"\n| {title} | {' | '.join(found)} |\n|---|{'---|' * len(found)}\n")
        out += [f"| {name} | {' | '.join(str(values[field].get(name, 0)) for values in found.values())} |\n" for name in names]
    out.append("\nOf the candidates of the build:\n\n| what | how many |\n|---|---|\n")
    for name, value in report.items():
        if name == "invalid":
            out += [f"| dropped: {rule} | {n} |\n" for rule, n in value.items()]
        elif name == "off quota":
            out += [
                f"| furthest move off its quota, {split} | {max(map(abs, v.values())):.1%} |\n" for split, v in value.items() if v
            ]
        else:
            out.append(f"| {name} | {value} |\n")
    return "".join(out)


def _samples(splits: Mapping[str, Sequence[Record]]) -> str:
    rng = random.Random(20)
    out = []
    for category in CATEGORIES:
        found = [record for records in splits.values() for record in records if record.category == category]
        if found:
            out.append(f"\n### {category}\n\n")
            out += [f"- `{record.id}` {record.text}\n" for record in rng.sample(found, min(20, len(found)))]
    return "".join(out)
