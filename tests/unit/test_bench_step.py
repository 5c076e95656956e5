"""The benchmark of a training step, at toy size: rows, counts, sums, the page; its figures mean nothing here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from world_r1 import bench_step, cli, performance, planning

ROOT = Path(__file__).parents[2]
WAN = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("bench") / "rows.json"
    rows = ["public", "window", "few steps", "whole"]
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(bench_step, "REPEATS", 1)
    result = bench_step.run(WAN, quick=True, rows=rows, out=out)
    monkeypatch.undo()
    assert json.loads(out.read_text()) == json.loads(json.dumps(result))
    return result


def test_rows_count_what_the_recipes_need(found: dict[str, Any]) -> None:
    rows = {row["row"]: row for row in found["rows"]}
    assert rows["public"]["counts"] == {"rollout": 100, "trained": 48, "without gradient": 48}
    assert rows["few steps"]["counts"] == {"rollout": 32, "trained": 4, "without gradient": 4}
    video, pieces = rows["public"]["seconds per video"], rows["public"]["pieces"]
    assert video["rollout"] == pytest.approx(50 * pieces["rollout"])
    assert video["update"] == pytest.approx(24 * (pieces["trained"] + pieces["reference"]) + pieces["optimizer"] / 32)
    assert video["total"] == pytest.approx(sum(video[key] for key in ("rollout", "decode", "update", "publish")))
    assert rows["window"]["pieces"] == rows["few steps"]["pieces"], "same settings are timed once"


def test_the_whole_step_is_a_step_of_training(found: dict[str, Any]) -> None:
    whole = found["rows"][-1]
    assert whole["ratio at the first update"] == 1.0
    assert whole["seconds per video"]["total"] > 0
    assert whole["stored MB a video"] == pytest.approx(
        (2 * 2 + 1) * 16 * 3 * 8 * 12 * 2 / 1e6
    )  # x and x' of two steps, x_0, in bf16
    assert whole["plans MB a video"] > 0


def test_constants_for_planning_come_out(found: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    path.write_text(json.dumps(found["costs"]))
    costs = planning.costs(path)
    assert costs["reference"]["frames"] == 9
    assert costs["reference"]["forward"]["seconds"] == pytest.approx(found["rows"][0]["pieces"]["rollout"] / 2)
    assert "random weights" in costs["switches"]["forward"]["source"]


def test_time_and_memory_that_run_out_are_rows_without_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    late = bench_step.run(WAN, quick=True, rows=["public"], seconds=0)
    assert "not begun" in late["rows"][0]["skipped"]

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    monkeypatch.setattr(bench_step, "_time", full)
    short = bench_step.run(WAN, quick=True, rows=["public"])
    assert "saves about" in short["rows"][0]["error"] or "every switch" in short["rows"][0]["error"]
    assert bench_step.table(short)[0]["total"] == ""


def test_an_unknown_row_and_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="no row 'fast'; known: public"):
        bench_step.run(WAN, rows=["fast"])
    assert cli.run(["bench", "step", "--list"]) == 0
    assert "recommended" in capsys.readouterr().out


def test_every_row_is_a_valid_configuration() -> None:
    from world_r1.config import parse

    for model in (WAN, "zai-org/CogVideoX-5b"):
        for quick in (True, False):
            tree = bench_step._merged(bench_step.PUBLIC, bench_step._base(model, quick))
            for row in bench_step.ROWS:
                tree = bench_step._merged(tree, row.tree)
                parse(bench_step._fitting(tree, quick))


def test_the_page_is_current() -> None:
    assert (ROOT / performance.PAGE).read_text(encoding="utf-8") == performance.page(), "run: python -m world_r1.performance"


def test_the_page_shows_figures_and_their_machine(found: dict[str, Any]) -> None:
    empty, filled = performance.markdown(None), performance.markdown(found)
    assert "Not measured yet" in empty
    assert "| public |" in filled
    assert found["device"] in filled
    assert "random weights" in filled
