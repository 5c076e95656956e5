"""Reads what a run has left in its directory, whole or in part: a crashed run is read like a finished one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from world_r1 import comparison
from world_r1.record import read_metrics


@dataclass(frozen=True)
class Run:
    """What a run directory holds; every part may be missing. Example: `Run.read("runs/blockworld")`"""

    directory: Path
    config: Mapping[str, Any]
    #: Rows of metrics.jsonl, in order; the last row of a step wins after a resume.
    steps: Sequence[Mapping[str, Any]]
    #: Entries of `comparison.compare`, by metric.
    summary: Mapping[str, Mapping[str, Any]]
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None

    @classmethod
    def read(cls, directory: str | Path) -> Run:
        """Read a run directory. Raises ValueError if it is none, or if a file in it is damaged."""
        root = Path(directory)
        if not root.is_dir():
            raise ValueError(f"no run directory at {root}; give the folder that holds metrics.jsonl")
        before, after = read_evaluation(root / "eval_before"), read_evaluation(root / "eval_after")
        if before is None and after is None:
            before = read_evaluation(root)  # the folder of a single evaluation
        config = _json(root / "config.json") or {}
        return cls(root, config, _steps(root), _summary(root, config, before, after), before, after)


def read_evaluation(folder: str | Path) -> dict[str, Any] | None:
    """The `eval.json` of an evaluation folder, or None if there is none; ValueError if it is damaged."""
    return _json(Path(folder) / "eval.json")


def is_number(value: Any) -> bool:
    """Whether a value of a JSON row is a number (a bool is none)."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _steps(root: Path) -> list[Mapping[str, Any]]:
    """Training rows in order of steps; of a step that was taken again after a resume, the last."""
    rows = [row for row in read_metrics(root) if any(key == "reward" or key.startswith(("reward/", "time/")) for key in row)]
    return [row for _, row in sorted({row["step"]: row for row in rows}.items())]


def _summary(root: Path, config: Mapping[str, Any], before: Any, after: Any) -> Mapping[str, Any]:
    """summary.json's metrics, or the comparison made now if the run ended before it was written."""
    stored = _json(root / "summary.json") or {}
    stored = stored.get("metrics", stored)
    found = {name: entry for name, entry in stored.items() if isinstance(entry, Mapping) and {"before", "after"} <= set(entry)}
    if found or before is None or after is None:
        return {
            name: {"role": comparison.metric(name).role, "better": comparison.metric(name).better} | dict(e)
            for name, e in found.items()
        }
    settings = config.get("evaluation", {})
    anchors = _json(root / "reference" / "reference.json")
    options = {"draws": settings.get("bootstrap", 2000), "seed": settings.get("seed", 0)}
    return comparison.compare(before, after, reference=anchors, **options)


def _json(path: Path) -> Any:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged ({error.msg} at line {error.lineno}); remove it to report without it") from error
