"""The record of a run: what is on disk after a step, a resume, a kill and a full disk."""

from __future__ import annotations

import json
import math
import resource
import signal
from pathlib import Path

import numpy as np
import pytest

from world_r1.config import Config, ConfigError, RecordConfig
from world_r1.display import Clock, Live, make_display, sparkline
from world_r1.record import Record, read_metrics, write_json
from world_r1.types import Clip, Prompt


def settings(tmp_path: Path, **record: object) -> Config:
    return Config(
        name="r", runs=str(tmp_path), steps=10, record=RecordConfig(**{"tensorboard": False, "progress": "never", **record})
    )


def test_rows_are_on_disk_when_step_returns_and_a_number_that_is_none_is_null(tmp_path: Path) -> None:
    with Record(settings(tmp_path)) as record:
        record.step(1, {"phase": "rigid", "reward": np.float32(0.5), "kl": math.nan, "failures": np.int64(2)})
        rows = read_metrics(tmp_path / "r")
    assert [{key: row[key] for key in ("step", "phase", "reward", "kl", "failures")} for row in rows] == [
        {"step": 1, "phase": "rigid", "reward": 0.5, "kl": None, "failures": 2}
    ]
    assert json.loads((tmp_path / "r/config.json").read_text())["steps"] == 10


def test_a_resumed_record_drops_the_steps_that_are_taken_again(tmp_path: Path) -> None:
    with Record(settings(tmp_path)) as record:
        for step in range(1, 6):
            record.step(step, {"reward": step})
    with Record(settings(tmp_path), resume_step=3) as record:
        record.step(4, {"reward": 40})
    assert [row["reward"] for row in read_metrics(tmp_path / "r")] == [1, 2, 3, 40]


def test_a_line_cut_short_by_a_kill_is_dropped_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    with Record(settings(tmp_path)) as record:
        record.step(1, {"reward": 1})
    path = tmp_path / "r/metrics.jsonl"
    path.write_bytes(path.read_bytes() + b'{"step": 2, "rew')
    with Record(settings(tmp_path), resume_step=2) as record:
        record.step(3, {})
    assert [row["step"] for row in read_metrics(tmp_path / "r")] == [1, 3]
    path.write_text('{"step": 1}\nnonsense\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl:2 is damaged"):
        read_metrics(tmp_path / "r")


def test_a_new_run_never_overwrites_an_old_one(tmp_path: Path) -> None:
    with Record(settings(tmp_path)) as record:
        record.step(1, {})
    with pytest.raises(ConfigError, match="already holds a run; continue it with --resume"):
        Record(settings(tmp_path))
    assert len(read_metrics(tmp_path / "r")) == 1


def test_a_full_disk_is_an_error_with_a_remedy_and_every_row_before_stays_whole(tmp_path: Path) -> None:
    """RLIMIT_FSIZE makes the kernel cut a write short exactly like a full disk does."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with Record(settings(tmp_path)) as record:
            record.step(1, {"reward": 1.0})
            size = (tmp_path / "r/metrics.jsonl").stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, before[1]))
            with pytest.raises(OSError, match=r"cannot write .*metrics.jsonl: .*; make room .* --resume"):
                record.step(2, {"reward": 2.0})
            assert [row["step"] for row in read_metrics(tmp_path / "r")] == [1]
            assert (tmp_path / "r/metrics.jsonl").read_bytes().endswith(b"}\n")
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            record.step(2, {"reward": 2.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert [row["step"] for row in read_metrics(tmp_path / "r")] == [1, 2]


def test_write_json_keeps_the_old_file_when_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError):
        write_json(path, {"a": math.nan})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def test_a_metric_that_is_no_number_is_refused(tmp_path: Path) -> None:
    with Record(settings(tmp_path)) as record, pytest.raises(TypeError, match="'reward' must be a number"):
        record.step(1, {"reward": [1.0]})


def test_tensorboard_holds_the_numbers_and_a_resume_hides_the_steps_after_it(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Record(settings(tmp_path, tensorboard=True)) as record:
        for step in range(1, 5):
            record.step(step, {"reward": float(step), "phase": "rigid", "kl": None})
    with Record(settings(tmp_path, tensorboard=True), resume_step=2) as record:
        record.step(3, {"reward": 30.0})
    events = EventAccumulator(str(tmp_path / "r/events"))
    events.Reload()
    assert events.Tags()["scalars"] == ["reward"]
    assert [(event.step, event.value) for event in events.Scalars("reward")] == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_videos_are_written_with_a_sheet_and_their_prompts(tmp_path: Path) -> None:
    from world_r1.video import read_mp4

    clip = Clip("s1-p0-k0", np.full((5, 32, 48, 3), 90, np.uint8), Prompt("p", "Camera push in. A red box."), None, fps=8.0)
    with Record(settings(tmp_path, video_every=5)) as record:
        assert [step for step in range(1, 11) if record.wants_videos(step)] == [5, 10]
        folder = record.videos(5, [clip], ["0.41"])
    assert (folder / "sheet.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((folder / "prompts.jsonl").read_text()) == {"id": "s1-p0-k0", "prompt": clip.prompt.text, "label": "0.41"}
    assert read_mp4(folder / "s1-p0-k0.mp4")[0].shape == (5, 32, 48, 3)


def test_a_step_is_one_plain_line_without_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Record(settings(tmp_path, progress="auto")) as record:
        record.step(
            3,
            {
                "phase": "rigid",
                "reward": 0.5,
                "reward/trajectory": 0.25,
                "videos": 16,
                "failures": 1,
                "time/rollout": 2.0,
                "kl_nats": 0.01,
            },
        )
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("step 3/10  rigid  reward 0.5 (trajectory 0.25)  kl_nats 0.01  failed 1/16  ")
    assert "(rollout 2.0)" in line


def test_the_live_panel_shows_parts_failures_split_and_time_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    display = make_display(settings(tmp_path, progress="always"), done=1, rows=[{"step": 1, "reward": 0.1, "failures": 2}])
    assert isinstance(display, Live)
    row = {"phase": "dynamic", "reward": 0.9, "reward/quality": 0.75, "videos": 16, "failures": 1}
    display.step(2, {**row, "time/rollout": 3.0, "time/update": 1.0, "time/total": 4.0, "reward/quality/sharp": 0.5})
    display.text("a message [kept as it is]")
    display.close()
    out = capsys.readouterr().out
    for part in (
        "2/10",
        "dynamic phase",
        "0.9",
        "▁█",
        "quality 0.75",
        "1/16 in this step, 3 in all",
        "rollout 75%",
        "a message [kept as it is]",
    ):
        assert part in out


def test_the_clock_predicts_from_the_median_and_stops_at_the_deadline() -> None:
    clock = Clock(total=10, done=2, max_minutes=None, now=100.0)
    assert clock.left(100.0) is None
    for step, now in ((3, 110.0), (4, 120.0), (5, 220.0)):  # one slow step among three
        clock.tick(step, now)
    assert clock.left(220.0) == 10.0 * 5
    short = Clock(total=10, done=0, max_minutes=0.5, now=0.0)
    short.tick(1, 10.0)
    assert short.left(10.0) == 20.0


def test_sparkline() -> None:
    assert sparkline([0, 1, 2, 7]) == "▁▂▃█"
    assert sparkline([3, 3]) == "▁▁"
    assert sparkline([1]) == ""
