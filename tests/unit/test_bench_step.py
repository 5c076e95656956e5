"""The benchmark of a training step, at toy size: rows, counts, sums, the page; its figures mean nothing here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from world_r1 import bench_pieces, bench_step, cli, performance, planning

ROOT = Path(__file__).parents[2]
WAN = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("bench") / "rows.json"
    rows = ["public", "frames", "sparse", "window", "few steps", "dense start", "recommended", "whole", "14B"]
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(bench_pieces, "REPEATS", 1)
    result = bench_step.run(WAN, quick=True, rows=rows, out=out)
    monkeypatch.undo()
    assert json.loads(out.read_text()) == json.loads(json.dumps(result))
    return result


def test_rows_count_what_the_recipes_need(found: dict[str, Any]) -> None:
    rows = {row["row"]: row for row in found["rows"]}
    assert rows["public"]["counts"] == {"rollout": 100, "trained": 48, "without gradient": 48}
    assert rows["few steps"]["counts"] == {"rollout": 16, "trained": 8, "without gradient": 8}
    video, pieces = rows["public"]["seconds per video"], rows["public"]["pieces"]
    assert video["rollout"] == pytest.approx(50 * pieces["rollout"])
    assert video["update"] == pytest.approx(24 * (pieces["trained"] + pieces["reference"]) + pieces["optimizer"] / 32)
    assert video["total"] == pytest.approx(sum(video[key] for key in ("rollout", "decode", "update", "publish")))
    assert rows["window"]["pieces"] == rows["few steps"]["pieces"], "same settings are timed once"


def test_steps_that_attend_densely_are_counted_as_such(found: dict[str, Any]) -> None:
    """Of 8 steps at shift 3 two are above sigma .95 (1 and .955); both are among the first four, which are trained."""
    row = next(row for row in found["rows"] if row["row"] == "dense start")
    video, pieces = row["seconds per video"], row["pieces"]
    dense = pieces["dense"]
    assert dense["rollout"] != pieces["rollout"], "timed by itself"
    assert video["rollout"] == pytest.approx(6 * pieces["rollout"] + 2 * dense["rollout"])
    passes = [of["trained"] + of["reference"] for of in (pieces, dense)]
    assert video["update"] == pytest.approx(2 * sum(passes) + pieces["optimizer"] / 32)


def test_the_whole_step_is_a_step_of_training(found: dict[str, Any]) -> None:
    whole = next(row for row in found["rows"] if row["row"] == "whole")
    assert whole["ratio at the first update"] == 1.0
    assert whole["seconds per video"]["total"] > 0
    assert whole["stored MB a video"] == pytest.approx(
        (2 * 4 + 1) * 16 * 3 * 8 * 12 * 2 / 1e6
    )  # x and x' of four steps, x_0, in bf16
    assert whole["plans MB a video"] > 0


def test_constants_for_planning_come_out(found: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    path.write_text(json.dumps(found))
    costs = planning.costs(path)
    path.write_text(json.dumps(found["costs"]))
    assert planning.costs(path) == costs
    assert costs["optimizer"]["seconds"] == found["rows"][-3]["pieces"]["optimizer"], "of the recommended recipe"
    assert costs["reference"]["frames"] == 9
    assert costs["reference"]["forward"]["seconds"] == pytest.approx(found["rows"][0]["pieces"]["rollout"] / 2)
    assert "random weights" in costs["switches"]["forward"]["source"]


def test_time_and_memory_that_run_out_are_rows_without_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    late = bench_step.run(WAN, quick=True, rows=["public"], seconds=0)
    assert "not begun" in late["rows"][0]["skipped"]

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    monkeypatch.setattr(bench_pieces.Bench, "_time_transformer", full)
    short = bench_step.run(WAN, quick=True, rows=["public"])
    assert "saves about" in short["rows"][0]["error"] or "every switch" in short["rows"][0]["error"]
    assert bench_step.table(short)[0]["total"] == ""


def test_a_run_that_is_cut_short_keeps_its_pieces_and_goes_on(
    found: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "rows.json"
    before = {**found, "rows": [row for row in found["rows"] if row["row"] in ("public", "14B")]}
    out.write_text(json.dumps(before))

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    rows = ["public", "frames", "sparse", "window", "few steps", "dense start", "recommended", "whole", "14B"]
    monkeypatch.setattr(bench_pieces, "whole_step", killed)  # everything else is taken from the file
    monkeypatch.setattr(bench_pieces.Bench, "_time_transformer", killed)
    monkeypatch.setattr(bench_pieces.Bench, "_time_decoder", killed)
    with pytest.raises(KeyboardInterrupt):
        bench_step.run(WAN, quick=True, rows=rows, out=out)
    kept = json.loads(out.read_text())
    wanted = {row["row"]: row.get("pieces") for row in json.loads(json.dumps(found))["rows"]}
    assert {row["row"]: row.get("pieces") for row in kept["rows"]} == {k: v for k, v in wanted.items() if k != "whole"}


def test_where_the_compiler_fails_a_row_is_measured_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = dict.fromkeys(("rollout", "trained", "optimizer", "fused optimizer", "publish", "first calls"), 1.0)
    calls: list[bool] = []

    def failing(bench: Any, policy: Any, config: Any, found: dict[str, Any], *_: Any) -> None:
        calls.append(config.speed.compile)
        if config.speed.compile:
            raise RuntimeError("the compiler broke")
        found.update(pieces, checkpointed=0)

    monkeypatch.setattr(bench_pieces, "REPEATS", 1)
    monkeypatch.setattr(bench_step, "_fitting", lambda tree, quick: bench_pieces.merged(tree, SMALL))
    monkeypatch.setattr(bench_pieces.Bench, "_time_transformer", failing)
    found = bench_step.run(WAN, quick=True, rows=["sparse", "window"])
    assert calls == [True, False], "what failed for one row is not tried again for the next"
    assert all("failed: RuntimeError: the compiler broke" in row["note"] for row in found["rows"])
    assert all(row["seconds per video"]["total"] > 0 for row in found["rows"])


SMALL = {"speed": {"attention": {"block": 16, "density": 0.4, "backend": "reference"}}}


def test_the_bars_compare_a_row_of_each_side(found: dict[str, Any]) -> None:
    forward, update, decode, video, check = bench_step.bars(found)
    totals = {row["row"]: row["seconds per video"]["total"] for row in found["rows"]}
    assert float(check["default"]) == pytest.approx(totals["recommended"], rel=1e-2)
    assert float(check["ours"]) == pytest.approx(totals["whole"], rel=1e-2)
    pieces = {row["row"]: row.get("pieces", {}) for row in found["rows"]}
    assert float(forward["default"]) == pytest.approx(pieces["public"]["default forward"], rel=1e-2)
    assert float(forward["ours"]) == pytest.approx(pieces["sparse"]["rollout"] / 2, rel=1e-2)
    assert float(update["default"]) == pytest.approx(pieces["public"]["trained"] / 2, rel=1e-2)
    assert float(decode["ours"]) == pytest.approx(pieces["frames"]["decode"], rel=1e-2)
    assert video["ratio"].endswith("x")
    assert bench_step.bars({"rows": []})[0]["ratio"] == ""


def test_an_unknown_row_and_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="no row 'fast'; known: public"):
        bench_step.run(WAN, rows=["fast"])
    assert cli.run(["bench", "step", "--list"]) == 0
    assert "recommended" in capsys.readouterr().out


def test_every_row_is_a_valid_configuration() -> None:
    from world_r1.config import parse

    for model in (WAN, "zai-org/CogVideoX-5b"):
        for quick in (True, False):
            for _, tree in bench_step._trees(bench_step._base(model, quick)):
                parse(bench_step._fitting(tree, quick))


def test_the_page_is_current() -> None:
    assert (ROOT / performance.PAGE).read_text(encoding="utf-8") == performance.page(), "run: python -m world_r1.performance"


def test_the_page_shows_figures_and_their_machine(found: dict[str, Any]) -> None:
    empty, filled = performance.markdown(None), performance.markdown(found)
    assert "Not measured yet" in empty
    assert "| public |" in filled
    assert found["device"] in filled
    assert "random weights" in filled


def test_one_number_of_learners_is_compared_with_nothing() -> None:
    row = dict.fromkeys(("start (s)", "rollout (s)", "update (s)", "step (s)", "peak GiB", "videos an hour"), 1.0)
    found = {"model": "M", "device": "H", "torch": "2", "commit": "c", "video": [5, 8, 8], "recipe": "of this", "videos a step": 2}
    one = performance.scaled({**found, "rows": [{"learners": 2, **row}]}, "that")
    assert "2 videos a step (of this), on H, torch 2, commit c; that:" in one
    assert "against" not in one
    both = performance.scaled({**found, "rows": [{"learners": 1, **row}, {"learners": 2, **row}]}, "")
    assert "against" in both
    assert "1.00x" in both


def test_goals_name_their_source(found: dict[str, Any]) -> None:
    """What was measured comes from the benches' files, the rest stands as it was written down; a bench that has not run says so."""
    text = performance.goals(found, None)
    rows = {line.split(" | ")[0].lstrip("| "): line for line in text.splitlines()}
    assert bench_step.bars(found)[0]["ratio"] in rows["1.3B forward, sparse and compiled"]
    assert "run whole" in rows["GPU seconds a training video, recommended against public"]
    assert rows["two GPUs against one"] == "| two GPUs against one | 1.9x | - | bench scale, below |"
    assert all(" | ".join(row) in text for row in performance.ELSEWHERE)
    assert "-" in performance.goals({"rows": []}, None)


def test_the_steps_of_a_scaling_run_are_put_in_words() -> None:
    from world_r1 import bench_scale
    from world_r1.config import parse

    tree = {"flow": {"steps": 8, "window": {"size": 4}}, "model": {"guidance_scale": 5.0}}
    sparse = {"kind": "pyramid", "dense_above": 0.95}
    said = bench_scale._recipe(parse({**tree, "speed": {"compile": True, "attention": sparse}}))
    assert said == "8 denoising steps with guidance, 4 of them trained, sparse but for 25% of the steps, compiled"
    said = bench_scale._recipe(parse({**tree, "model": {"guidance_scale": 1.0}, "speed": {"checkpoint": 1.0}}))
    assert said == "8 denoising steps without guidance, 4 of them trained, dense, not compiled, every block checkpointed"
