"""The report of miniature run directories: what must be in it, from a complete run down to a crashed one."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from world_r1 import charts, comparison, report
from world_r1.video import write_mp4, write_png

IDS = [f"test-{i:06d}" for i in range(6)]


def rows(level: float, seed: int, missing: int = -1) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    path = [[0.1 * t, 0.0, 0.0, 0.0, 0.0, 1.0] for t in range(5)]
    found = []
    for i, key in enumerate(IDS):
        values: dict[str, float | None] = {
            "plane_sweep": level + 0.01 * i,
            "sampson": 1 - level,
            "motion": 2.0 + rng.normal() * 0.1,
        }
        values |= {"fidelity": 0.9, "reward": level, "reward/trajectory": level}
        row: dict[str, Any] = {
            "index": i,
            "id": key,
            "prompt": f'Push in <{i}> & "more"',
            "command": "push in",
            "values": values,
            "missing": {},
        }
        if i == missing:
            row["values"]["sampson"], row["missing"]["sampson"] = None, "frozen: nothing moves"
        if i < 2:
            cloud = {"points": [[0, 0, 1.0], [0.5, 0.1, 2.0]], "colours": [[255, 0, 0], [0, 255, 0]]}
            row["geometry"] = {"commanded": path, "estimated": path, "depth": 3.6, "turns_only": False, "why": "", **cloud}
        found.append(row)
    return found


@pytest.fixture(autouse=True)
def small_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """The miniature runs have six clips, five of them complete; let them have verdicts."""
    monkeypatch.setattr(comparison, "LEAST_PAIRS", 5)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    root = tmp_path / "mini"
    for name, level, seed, missing in (("eval_before", 0.4, 0, 3), ("eval_after", 0.5, 1, -1)):
        folder = root / name
        (folder / "clips").mkdir(parents=True)
        content = rows(level, seed, missing)
        (folder / "eval.json").write_text(json.dumps({"rows": content, "summary": comparison.summarise(content), "seconds": 1.0}))
        for i in range(2):
            video = np.random.default_rng(i).integers(0, 255, (5, 32, 48, 3), dtype=np.uint8)
            write_mp4(folder / "clips" / f"{i:03d}.mp4", video, 8.0)
        write_png(folder / "sheet.png", np.zeros((32, 48, 3), np.uint8))
    (root / "reference").mkdir()
    (root / "reference" / "reference.json").write_text(json.dumps({"render": rows(0.9, 2), "roundtrip": rows(0.8, 3)}))
    fixed = {"phase": "rigid", "reward/trajectory": 0.4, "failure_rate": 0.0, "ratio_std": 1e-4, "clip_fraction": 0.1}
    fixed |= {"time/rollout": 3.0, "time/reward": 1.0, "time/update": 2.0, "time/total": 6.5}
    steps = [{"step": t, "reward": 0.4 + 0.01 * t, "kl_nats": 0.1 * t, **fixed} for t in range(1, 16)]
    (root / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in steps))
    (root / "config.json").write_text(
        json.dumps({"name": "mini", "seed": 7, "algorithm": {"name": "flow_grpo", "kl": {"target_nats": 1.0}}})
    )
    return root


class Page(HTMLParser):
    """Collects tags and refuses a page whose tags do not close."""

    VOID = frozenset({"meta", "img", "br", "hr", "link", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag


def test_a_complete_run(run: Path) -> None:
    path = report.write_report(run)
    assert path == run / "report.html"
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    plain = re.sub(r"<style>.*?</style>|<[^>]+>", " ", text, flags=re.S)
    assert "2 of 2 held-out 3D metrics improved" in plain
    assert "No guard fell by more than 10 %" in plain
    assert "25%" in plain  # sampson and plane sweep both closed a quarter of the way from 0.4 to 0.8
    assert "frozen: nothing moves" in plain
    assert "1 missing" in plain
    images = [a for tag, a in page.tags if tag == "img" and (a["src"] or "").startswith("data:image/webp;base64,")]
    assert len(images) == 4 + 2  # two clips before and after, two contact sheets
    assert sum(tag == "canvas" for tag, _ in page.tags) == 2
    for title in ("Reward", "KL to the base", "Clipped ratios", "Failures", "Where the time went", "Camera paths"):
        assert title in plain
    assert "rollout 46%" in re.sub(r"\s+", " ", plain)


def test_the_page_is_self_contained_and_escapes_prompts(run: Path) -> None:
    text = report.write_report(run).read_text(encoding="utf-8")
    assert "Push in &lt;0&gt; &amp;" in text
    assert "Push in <0>" not in text
    for tag, attributes in Page(text).tags:
        for key in ("src", "href", "data", "poster"):
            value = attributes.get(key)
            assert value is None or value.startswith(("data:", "#")), f"{tag} {key} leaves the file: {value}"
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|https?://", text)


def test_a_broken_guard_is_said_aloud(run: Path) -> None:
    stored = json.loads((run / "eval_after" / "eval.json").read_text())
    for row in stored["rows"]:
        row["values"]["motion"] *= 0.7
    (run / "eval_after" / "eval.json").write_text(json.dumps(stored))
    assert "Guards broken: motion" in report.write_report(run).read_text()


def test_stored_summary_wins_over_a_new_comparison(run: Path) -> None:
    entry = {"before": 1.0, "after": 0.25, "delta": -0.75, "ci95": [-0.8, -0.7], "n": 48, "better": "lower", "verdict": "better"}
    (run / "summary.json").write_text(json.dumps({"sampson": entry}))
    plain = re.sub(r"<[^>]+>", " ", report.write_report(run).read_text())
    assert "1 of 1 held-out 3D metrics improved" in plain
    assert "48 prompts" in plain


def test_training_without_evaluation_and_a_cut_last_line(run: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    whole = (run / "metrics.jsonl").read_text()
    (bare / "metrics.jsonl").write_text(whole + '{"step": 16, "rew')
    text = report.write_report(bare).read_text()
    Page(text)
    assert "no held-out evaluation" in text
    assert "Held-out results" not in text


def test_a_single_evaluation(run: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    (run / "eval_before").rename(alone)
    text = report.write_report(alone).read_text()
    Page(text)
    assert "One evaluation of 6 held-out prompts" in text
    assert "standard deviation" in text


def test_what_is_no_run_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no run directory"):
        report.write_report(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="nothing to report"):
        report.write_report(tmp_path / "empty")
    (run / "eval_after" / "eval.json").write_text("{half")
    with pytest.raises(ValueError, match="damaged"):
        report.write_report(run)


def test_numbers_and_ticks() -> None:
    assert [charts.number(v) for v in (None, 0, 0.41234, 12.345, -0.5, 1234.0)] == [
        "n/a",
        "0",
        "0.412",
        "12.3",
        "\u22120.500",
        "1234",
    ]
    assert charts.number(3.2e-9) == "3.20e-09"
    for low, high in ((0.0, 1.0), (-3.2, 8.9), (1e-5, 3e-5), (100.0, 101.0)):
        found = charts.ticks(low, high)
        assert 2 <= len(found) <= 8
        assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in found)


def test_a_gap_in_a_curve_stays_a_gap() -> None:
    svg = charts.curves("x", [charts.Series("x", [0, 1, 2, 3], [1.0, None, float("nan"), 2.0])])
    path = re.search(r'class="line after" d="([^"]+)"', svg)
    assert path
    assert path.group(1).count("M") == 2
    assert charts.smooth([1.0, None, 3.0], 3) == [1.0, None, 3.0]
    assert "not recorded" in charts.curves("x", [charts.Series("x", [0], [None])])
