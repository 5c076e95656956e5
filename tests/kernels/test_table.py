"""kernels/README.md shows what the result files say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from world_r1_kernels.bench import table
from world_r1_kernels.bench.shapes import results_folder


def test_the_readme_is_current(tmp_path: Path) -> None:
    """Its tables are those that `world-r1 bench attention-table` makes of the files beside it."""
    readme = results_folder().parents[1] / "README.md"
    copy = tmp_path / "README.md"
    copy.write_text(readme.read_text(encoding="utf-8"), encoding="utf-8")
    table.write(copy, say=lambda _: None)
    assert copy.read_text(encoding="utf-8") == readme.read_text(encoding="utf-8"), "run: world-r1 bench attention-table"


def test_tables_hold_the_numbers(tmp_path: Path) -> None:
    machine = {"device": "H", "torch": "2", "triton": "3", "commit": "c"}
    row = {
        "shape": "S",
        "density": 0.1,
        "rest": 64,
        "cudnn forward ms": 11.7,
        "forward with everything ms": 1.95,
        "forward against cudnn": 6.0,
    }
    (tmp_path / "attention-h.json").write_text(json.dumps({"machine": machine, "rows": [row]}), encoding="utf-8")
    quality = {"source": "easy", "method": "m", "asked": 0.1, "with estimator": 0.12, "error": 0.25}
    (tmp_path / "attention-quality.json").write_text(json.dumps({"grid": [1, 2, 3], "rows": [quality]}), encoding="utf-8")
    text = table.render(tmp_path)
    assert "| S | 0.10 | 64 | 11.70 | 1.95 | 6.0 |" in text
    assert "| m | 0.250 (0.120) |" in text
    (tmp_path / "README.md").write_text("no marks", encoding="utf-8")
    with pytest.raises(ValueError, match="to put the tables between"):
        table.write(tmp_path / "README.md", tmp_path)
