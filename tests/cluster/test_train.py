"""Whole runs in a driver of their own, which are killed and interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from world_r1 import loop
from world_r1.actors.cluster import Cluster
from world_r1.config import Config, parse
from world_r1.prompts import PromptStream
from world_r1.record import read_metrics

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
ROOT = Path(__file__).parents[2]


@contextmanager
def driver(file: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`world-r1 train` in a process group of its own, which is ended with the block."""
    command = [sys.executable, "-m", "world_r1.cli", "train", "--config", str(file), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("RAY_ADDRESS", None)
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, cwd=ROOT, env=environment, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def until(condition: Callable[[], Any], process: subprocess.Popen[str], seconds: float = 200.0) -> None:
    """Wait for a condition while the driver lives."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the driver did not get there"
        time.sleep(0.05)


def parents() -> dict[int, int]:
    """Process id -> parent's, of all processes that are not zombies."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] != "Z":
                found[int(entry.name)] = int(fields[1])
    return found


def descendants(root: int) -> set[int]:
    tree, found = parents(), {root}
    while more := {pid for pid, parent in tree.items() if parent in found} - found:
        found |= more
    return found - {root}


def wait_for_end(pids: set[int], seconds: float) -> None:
    """Until none of the processes is left."""
    deadline = time.monotonic() + seconds
    while (alive := pids & parents().keys()) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not alive, [command(pid) for pid in alive]


def command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0")
    except OSError:
        return b""


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


def uninterrupted(config: Config, folder: Path) -> dict[str, torch.Tensor]:
    """The final adapter of the same run without any interruption, without the command around it."""
    hooks = loop.Hooks(lambda step, row: None, lambda scored: None, lambda step: None, lambda: "")
    with Cluster(config) as cluster:
        loop.run(config, cluster, PromptStream.of(config), folder / "checkpoints", 0, hooks)
        cluster.export(folder / "adapter")
    return adapter(folder / "adapter")


@pytest.mark.usefixtures("ray_cluster")
def test_a_run_that_is_killed_and_interrupted_ends_with_the_weights_of_an_uninterrupted_one(
    tree: dict[str, Any], tmp_path: Path
) -> None:
    model = {**tree["model"], "lora": {**tree["model"]["lora"], "keep": 1}}
    tree = {**tree, "runs": str(tmp_path), "name": "killed", "steps": 7, "save_every": 2, "model": model}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    directory, checkpoints = tmp_path / "killed", tmp_path / "killed/checkpoints"

    with driver(tmp_path / "run.yaml") as process:  # in the middle of step 4, after the checkpoint of step 2
        until(lambda: len(read_metrics(directory)) >= 3, process)
        started = descendants(process.pid)
        assert started
        process.kill()
        process.communicate()
    agents = {pid for pid in started if b"Agent" in command(pid)}
    wait_for_end(started - agents, 20)  # actors and their memory; two idle agents of Ray look for their cluster for a minute
    assert (checkpoints / "step-000002").is_dir()
    killed_at = len(read_metrics(directory))

    with driver(tmp_path / "run.yaml", "--resume") as process:  # Ctrl-C reaches the whole process group, Ray's processes too
        until(lambda: (rows := read_metrics(directory)) and rows[-1]["step"] > killed_at, process)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 130, out + err
        assert "resumed from" in out
    steps = [row["step"] for row in read_metrics(directory)]
    assert steps == list(range(1, len(steps) + 1))
    assert (checkpoints / f"step-{len(steps):06d}").is_dir()  # saved where it stopped, on the schedule or not

    with driver(tmp_path / "run.yaml", "--resume") as process:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, out + err
    assert [row["step"] for row in read_metrics(directory)] == list(range(1, 8))
    assert (directory / "report.html").is_file()
    summary = json.loads((directory / "summary.json").read_text())
    assert all({"before", "after", "ci95", "n"} <= entry.keys() for entry in summary.values())
    wait_for_end(agents, 90)
    expected = uninterrupted(parse(tree), tmp_path / "straight")
    final = adapter(directory / "adapter")
    assert final.keys() == expected.keys()
    assert all(torch.equal(final[name], value) for name, value in expected.items())
    weakest = {name: value.norm(dim=0).min() for name, value in final.items() if "lora_B" in name}
    assert max(weakest.values()) == 0  # what is handed out has one direction of two,
    assert any(final[name].any() for name in weakest)
    average = load_file(checkpoints / "step-000007/average.safetensors")
    assert min(value.norm(dim=0).min() for name, value in average.items() if "lora_B" in name) > 0  # what is trained has both


def test_a_spent_time_budget_saves_evaluates_and_reports(tree: dict[str, Any], tmp_path: Path) -> None:
    tree = {**tree, "runs": str(tmp_path), "name": "brief", "steps": 100_000, "save_every": 100_000, "max_minutes": 0.02}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({**tree, "evaluation": {**tree["evaluation"], "every": 1}}), encoding="utf-8")
    with driver(tmp_path / "run.yaml") as process:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, out + err
    done = len(read_metrics(tmp_path / "brief"))
    assert done < 100
    assert (tmp_path / "brief/report.html").is_file()
    assert (tmp_path / "brief/summary.json").is_file()
