from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from world_r1 import checkpoint
from world_r1.checkpoint import Snapshot
from world_r1.config import Config, parse


def _snapshot(step: int, value: float = 0.5) -> Snapshot:
    return Snapshot(
        step,
        {
            "trained": {"a.weight": torch.full((3, 2), value), "b": torch.tensor([1e-45, float(np.float32(0.1))])},
            "optimizer": {"a.weight/step": torch.tensor(3.0), "a.weight/exp_avg": torch.arange(6.0).reshape(3, 2).T},
            "algorithm": {"beta": 0.1 + 0.2, "last": None, "old.a": np.arange(3, dtype=np.float32)},
            "empty": {},
        },
    )


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, _snapshot(40), Config())
    assert path == tmp_path / "step-000040" == checkpoint.latest(tmp_path)
    loaded = checkpoint.load(path, Config())
    expected = _snapshot(40)
    assert loaded.step == 40
    assert loaded.sections.keys() == expected.sections.keys()
    for name in ("trained", "optimizer"):
        assert loaded.sections[name].keys() == expected.sections[name].keys()
        assert all(torch.equal(loaded.sections[name][key], value) for key, value in expected.sections[name].items())
    algorithm = loaded.sections["algorithm"]
    assert algorithm["beta"] == 0.1 + 0.2
    assert algorithm["last"] is None
    assert algorithm["old.a"].tolist() == [0, 1, 2]
    assert not loaded.sections["empty"]


def test_only_safetensors_and_json_are_written_and_no_draft_is_left(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, _snapshot(1), Config())
    assert {file.suffix for file in tmp_path.rglob("*") if file.is_file()} == {".safetensors", ".json"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-000001"]


def test_the_newest_are_kept_and_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    config = parse({"keep": 2})
    for step in (2, 10, 9, 100):
        checkpoint.save(tmp_path, _snapshot(step), config)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000010", "step-000100"]
    checkpoint.save(tmp_path, _snapshot(100, value=7.0), config)
    assert checkpoint.load(tmp_path / "step-000100", config).sections["trained"]["a.weight"][0, 0] == 7.0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000010", "step-000100"]


def test_what_a_dead_writer_left_is_no_checkpoint_and_is_swept(tmp_path: Path) -> None:
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True)
    draft = tmp_path / f".draft-{dead.stdout.strip()}-x"
    draft.mkdir()
    (draft / "state.json").write_text("{}")
    alive = tmp_path / f".draft-{os.getppid()}-y"
    alive.mkdir()
    assert checkpoint.latest(tmp_path) is None
    checkpoint.save(tmp_path, _snapshot(1), Config())
    assert not draft.exists()
    assert alive.exists()  # another living writer's


def test_latest_of_nothing_is_none(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path / "never") is None


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"seed": 1}, "seed was 0 and is now 1"),
        ({"model": {"lora": {"rank": 8}}}, "model.lora.rank was 32 and is now 8"),
        ({"model": {"lora": None}}, "model.lora"),
        ({"optimizer": {"learning_rate": 1e-3}}, "optimizer.learning_rate was 0.0001 and is now 0.001"),
        ({"cluster": {"max_staleness": 1}}, "cluster.max_staleness"),
        ({"rewards": {"rewards": [{"name": "constant", "weight": 2}]}}, "rewards.rewards"),
    ],
)
def test_a_checkpoint_of_another_configuration_is_refused_by_key(tmp_path: Path, change: dict, key: str) -> None:
    path = checkpoint.save(tmp_path, _snapshot(1), Config())
    with pytest.raises(ValueError, match=f"another configuration: {key}"):
        checkpoint.load(path, parse(change))


def test_a_resumed_run_may_be_longer_and_on_more_processes(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, _snapshot(1), Config())
    free = {"steps": 500, "name": "b", "cluster": {"samplers": 4, "judges": 3, "mode": "disaggregated"}, "rewards": {"timeout": 5}}
    assert checkpoint.load(path, parse(free)).step == 1


@pytest.mark.parametrize("file", ["state.json", "trained.safetensors", "config.json"])
def test_a_damaged_file_is_an_error_that_names_it(tmp_path: Path, file: str) -> None:
    path = checkpoint.save(tmp_path, _snapshot(1), Config())
    with open(path / file, "r+b") as handle:
        handle.truncate(7)
    with pytest.raises(ValueError, match=rf"{file}.* cannot be read"):
        checkpoint.load(path, Config())


def test_keys_younger_than_a_checkpoint_count_as_their_defaults() -> None:
    """A checkpoint from before a key existed resumes unless the key is set to something else now."""
    saved = Config().model_dump(mode="json")
    del saved["speed"], saved["model"]["guidance_scale_2"]
    checkpoint.refuse_other_config(saved, Config(), "old")
    checkpoint.refuse_other_config(saved, parse({"speed": {"checkpoint": "auto"}}), "old")  # changes no result
    with pytest.raises(ValueError, match=r"speed\.latents was None and is now 'bf16'"):
        checkpoint.refuse_other_config(saved, parse({"speed": {"latents": "bf16"}}), "old")


def test_another_format_is_refused(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, _snapshot(1), Config())
    text = (path / "state.json").read_text().replace('"format": 1', '"format": 99')
    (path / "state.json").write_text(text)
    with pytest.raises(ValueError, match="format 99"):
        checkpoint.load(path, Config())


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import torch
from world_r1 import checkpoint
from world_r1.config import Config

directory = Path(sys.argv[1])
small = checkpoint.Snapshot(1, {"trained": {"a": torch.zeros(10)}})
checkpoint.save(directory, small, Config())
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    checkpoint.save(directory, checkpoint.Snapshot(2, {"trained": {"a": torch.zeros(100_000)}}), Config())
except OSError as error:
    print(error)
assert checkpoint.latest(directory).name == "step-000001"
assert checkpoint.load(directory / "step-000001", Config()).step == 1
assert [entry.name for entry in directory.iterdir()] == ["step-000001"]
"""


def test_a_write_that_fails_is_one_clear_error_and_the_checkpoint_before_it_stays(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "cannot write the checkpoint" in done.stdout
    assert "earlier checkpoints are intact" in done.stdout
    assert len(done.stdout.strip().splitlines()) == 1
