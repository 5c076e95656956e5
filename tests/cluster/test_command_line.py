"""Mistakes that show only when a model or a run is opened: unreadable weights, no GPU, a checkpoint that cannot be written."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from world_r1 import cli
from world_r1.record import read_metrics

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from world_r1.policies.tiny import tiny_wan_pipeline

    return tiny_wan_pipeline(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def run(tmp_path: Path, model: Path) -> Path:
    """A configuration file of a run that takes seconds."""
    (tmp_path / "prompts.txt").write_text("Camera push in. A red box on grass.\nA blue sphere.\n", encoding="utf-8")
    tree = {
        "name": "tiny",
        "runs": str(tmp_path / "runs"),
        "steps": 3,
        "save_every": 1,
        "model": {"path": str(model), "device": "cpu", "lora": {"rank": 2, "alpha": 4}},
        "video": {"frames": 5, "height": 32, "width": 48},
        "flow": {"steps": 2, "window": {"size": 1}},
        "optimizer": {"micro_batch": 2},
        "rewards": {"rewards": [{"name": "tests.cluster.rewards:Brightness"}]},
        "prompts": {
            "train": str(tmp_path / "prompts.txt"),
            "dynamic": None,
            "test": str(tmp_path / "prompts.txt"),
            "groups": 1,
            "group_size": 2,
        },
        "evaluation": {"prompts": 2, "keep": 1, "bootstrap": 100, "reference": False},
        "record": {"tensorboard": False, "video_every": 0},
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def start(*arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "world_r1.cli", *arguments]
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment
    )


def one_line(text: str) -> str:
    (line,) = [line for line in text.splitlines() if line.startswith("world-r1: ")]
    assert "Traceback" not in text, text
    return line


def test_unreadable_weights_are_one_line(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "model"
    shutil.copytree(model, broken)
    (weights,) = (broken / "transformer").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])
    assert cli.run(["sample", "--model", str(broken), "--prompt", "A box.", "--out", str(tmp_path / "a.mp4")]) == 2
    line = one_line(capsys.readouterr().err)
    assert "transformer" in line
    assert not (tmp_path / "a.mp4").exists()


@pytest.mark.parametrize("target", ["nowhere/model", "not a model id"])
def test_a_model_that_is_not_there_is_one_line(target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["sample", "--model", target, "--prompt", "A box.", "--out", str(tmp_path / "a.mp4")]) == 2
    assert target in one_line(capsys.readouterr().err)


def test_an_adapter_that_is_not_there_is_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "sample",
        "--config",
        str(run),
        "--prompt",
        "A box.",
        "--lora",
        str(tmp_path / "none"),
        "--out",
        str(tmp_path / "a.mp4"),
    ]
    assert cli.run(arguments) == 2
    assert "none" in one_line(capsys.readouterr().err)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["sample", "--config", str(run), "model.device=cuda", "--prompt", "A box.", "--out", str(tmp_path / "a.mp4")]
    assert cli.run(arguments) == 2
    assert "model.device=cuda, but torch sees no CUDA device" in one_line(capsys.readouterr().err)


@pytest.mark.cluster
@pytest.mark.slow
class TestTraining:
    """Whole runs in a process of their own."""

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
    def test_a_gpu_that_is_not_there_ends_training_with_one_line(self, run: Path) -> None:
        process = start("train", "--config", str(run), "model.device=cuda")
        _, err = process.communicate(timeout=200)
        assert process.returncode == 2, err
        assert "set model.device=cpu" in one_line(err)

    def test_a_checkpoint_that_cannot_be_written_loses_nothing(self, run: Path, tmp_path: Path) -> None:
        """The folder of checkpoints is a file system without room: a tmpfs of a few pages where we may mount one, else a plain file."""
        folder = tmp_path / "runs/tiny/checkpoints"
        folder.mkdir(parents=True)
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, check=False)
        if mounted.returncode != 0:
            folder.rmdir()
            folder.write_text("in the way")
        try:
            process = start("train", "--config", str(run))
            out, err = process.communicate(timeout=280)
            assert process.returncode == 2, out + err
            line = one_line(err)
            assert "cannot write the checkpoint" in line
            assert "--resume" in line
            rows = read_metrics(tmp_path / "runs/tiny")
            assert [row["step"] for row in rows] in ([1], [1, 2])  # the first checkpoint may just fit
            assert (tmp_path / "runs/tiny/eval_before/eval.json").is_file()
            if mounted.returncode == 0:
                subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)
                assert len(list(folder.glob("step-*"))) == len(rows) - 1
            else:
                folder.unlink()
            process = start("train", "--config", str(run), "--resume")
            out, err = process.communicate(timeout=280)
            assert process.returncode == 0, out + err
        finally:
            if mounted.returncode == 0:
                subprocess.run(["umount", str(folder)], check=True)
        after = read_metrics(tmp_path / "runs/tiny")
        assert [row["step"] for row in after] == [1, 2, 3]
        assert after[: len(rows) - 1] == rows[:-1]
        assert (tmp_path / "runs/tiny/report.html").is_file()

    def test_an_interrupt_saves_and_the_run_goes_on(self, run: Path, tmp_path: Path) -> None:
        process = start("train", "--config", str(run), "steps=200", "save_every=100")
        deadline = time.monotonic() + 250
        while time.monotonic() < deadline and process.poll() is None and not read_metrics(tmp_path / "runs/tiny"):
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 130, out + err
        assert one_line(err) == "world-r1: interrupted"
        assert "continue with --resume" in out
        done = [row["step"] for row in read_metrics(tmp_path / "runs/tiny")]
        assert done == list(range(1, len(done) + 1))
        process = start("train", "--config", str(run), f"steps={len(done) + 1}", "save_every=100", "--resume")
        out, err = process.communicate(timeout=280)
        assert process.returncode == 0, out + err
        assert [row["step"] for row in read_metrics(tmp_path / "runs/tiny")] == [*done, len(done) + 1]
