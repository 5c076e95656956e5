"""Counts of a prompt set, and the pictures of them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from world_r1_prompts.grammar.shots import DIFFICULTIES, difficulty_of, moves_of
from world_r1_prompts.record import CATEGORIES, Record

#: Seed of the hundred prompts that readers rate, unless another is given.
READING = 100


def counts(records: Sequence[Record]) -> dict[str, Any]:
    """Prompts by category, subcategory, difficulty and move; words; distinct texts and subjects."""
    words = sorted(len(record.text.split()) for record in records)
    moves = Counter(move for record in records for move in moves_of(record.camera))
    categories = Counter(record.category for record in records)
    return {
        "prompts": len(records),
        "distinct texts": len({record.text for record in records}),
        "subjects": len({record.source for record in records}),
        "kinds": dict(sorted(Counter(record.kind for record in records).items())),
        "words": {"least": words[0], "median": words[len(words) // 2], "most": words[-1]},
        "categories": {name: categories[name] for name in CATEGORIES if categories[name]},
        "subcategories": dict(sorted(Counter(f"{record.category}/{record.subcategory}" for record in records).items())),
        "difficulties": {name: n for name in DIFFICULTIES if (n := sum(difficulty_of(r.camera) == name for r in records))},
        "moves": dict(moves.most_common()),
    }


def reading_list(records: Sequence[Record], count: int = 100, seed: int = READING) -> list[Record]:
    """The random prompts that are read and rated: the same for the same set and seed. A new reading takes a new seed."""
    ordered = sorted(records, key=lambda record: record.id)
    return random.Random(seed).sample(ordered, min(count, len(ordered)))


def plot(path: Path, title: str, groups: Mapping[str, Mapping[str, float]]) -> None:
    """A PNG of horizontal bars, one colour a group, in the order of the first group's names."""
    from PIL import Image, ImageDraw, ImageFont

    names = list(dict.fromkeys(name for values in groups.values() for name in values))
    colours = ("#2f6f9f", "#c8742b", "#5b8c3a", "#8a4f8f")
    line, left, width, top = 15, 150, 760, 62
    height = top + len(names) * (line * len(groups) + 8) + 14
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    big, small = ImageFont.load_default(16), ImageFont.load_default(12)
    draw.text((16, 10), title, "#222222", big)
    across = 16
    for index, group in enumerate(groups):
        draw.rectangle((across, 39, across + 10, 49), colours[index % len(colours)])
        draw.text((across + 15, 36), group, "#444444", small)
        across += 40 + int(draw.textlength(group, small))
    most = max((value for values in groups.values() for value in values.values()), default=1.0) or 1.0
    y = top
    for name in names:
        draw.text((left - 8 - draw.textlength(name, small), y + (line * len(groups) - 14) / 2), name, "#222222", small)
        for index, values in enumerate(groups.values()):
            value = values.get(name, 0.0)
            end = left + (width - left - 70) * value / most
            draw.rectangle((left, y + 2, end, y + line - 2), colours[index % len(colours)])
            draw.text(
                (end + 5, y),
                f"{value:g}",
                "#444444",
                small,
            )
            y += line
        y += 8
    image.save(path)


def plots(folder: Path, splits: Mapping[str, Sequence[Record]]) -> list[str]:
    """Write categories.png, moves.png, difficulties.png and words.png; returns their names."""
    found = {name: counts(records) for name, records in splits.items() if records}
    shares: dict[str, dict[str, float]] = {}
    for name, values in found.items():
        total = sum(values["moves"].values()) or 1
        shares[name] = {move: round(100 * n / total, 1) for move, n in sorted(values["moves"].items())}
    lengths = {
        name: {
            f"{low}-{low + 9} words": float(n)
            for low, n in sorted(Counter(len(r.text.split()) // 10 * 10 for r in records).items())
        }
        for name, records in splits.items()
    }
    plot(folder / "categories.png", "Prompts by category", {name: values["categories"] for name, values in found.items()})
    plot(folder / "moves.png", "Camera moves, per cent of all moves of the split", shares)
    plot(
        folder / "difficulties.png",
        "Prompts by camera difficulty",
        {name: values["difficulties"] for name, values in found.items()},
    )
    plot(folder / "words.png", "Words a prompt", lengths)
    return ["categories.png", "moves.png", "difficulties.png", "words.png"]
