"""Doctor: what it finds follows from the machine, and a job is possible exactly when nothing it needs is bad."""

from __future__ import annotations

import builtins
import importlib.metadata
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from world_r1 import doctor
from world_r1.blockworld import manifest


def test_a_job_needs_each_of_its_checks() -> None:
    found = [doctor.Check(name, "ok", "") for name in {name for needs in doctor.JOBS.values() for name in needs}]
    assert all(not why for why in doctor.jobs(found).values())
    for job, needs in doctor.JOBS.items():
        for name in needs:
            broken = [doctor.Check(name, "bad", "") if check.name == name else check for check in found]
            assert doctor.jobs(broken)[job] == [name]


def test_a_machine_without_gpu_can_train_on_its_cpu_only() -> None:
    needs = {name for needs in doctor.JOBS.values() for name in needs}
    found = [doctor.Check(name, "note" if name == "gpu" else "ok", "none") for name in needs]
    possible = doctor.jobs(found)
    assert possible["world-r1 train on a GPU"] == ["gpu"]
    assert possible["world-r1 train on this CPU"] == []


def test_every_need_of_a_job_is_checked() -> None:
    """A need without a check could never stand in the way."""
    names = {check.name for check in doctor.checks()}
    assert {name for needs in doctor.JOBS.values() for name in needs} <= names


def test_the_exit_code_is_whether_the_main_jobs_run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    good = [doctor.Check(name, "ok", "there") for name in {name for needs in doctor.JOBS.values() for name in needs}]
    monkeypatch.setattr(doctor, "checks", lambda directory: good)
    assert doctor.main(as_json=True) == 0
    assert all(json.loads(capsys.readouterr().out)["jobs"].values())
    bad = [
        doctor.Check("weights", "bad", "x.safetensors is damaged", "reinstall") if check.name == "weights" else check
        for check in good
    ]
    monkeypatch.setattr(doctor, "checks", lambda directory: bad)
    assert doctor.main() == 1
    out = capsys.readouterr().out
    assert "x.safetensors is damaged" in out
    assert "world-r1 sample: no: weights" in out


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Exception], None]:
    """`missing(module, error)`: importing that module raises."""

    def refuse(name: str, error: Exception) -> None:
        real = builtins.__import__

        def importer(wanted: str, *rest: Any, **options: Any) -> Any:
            if wanted.partition(".")[0] == name:
                raise error
            return real(wanted, *rest, **options)

        monkeypatch.setattr(builtins, "__import__", importer)
        monkeypatch.setattr(doctor.importlib, "import_module", lambda wanted: importer(wanted))

    return refuse


def test_a_missing_system_library_names_its_package(
    missing: Callable[[str, Exception], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: object())
    missing("open3d", ImportError("libusb-1.0.so.0: cannot open shared object file: No such file or directory"))
    check = doctor.open3d()
    assert check.status == "note"  # it is optional
    assert "apt-get install -y libusb-1.0-0" in check.remedy
    missing("cv2", ImportError("libGL.so.1: cannot open shared object file"))
    check = doctor.module("opencv", "cv2", "opencv-python-headless", load=True)
    assert check.status == "bad"
    assert "apt-get install -y libgl1" in check.remedy


def test_a_package_that_is_not_there_is_bad_with_our_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    check = doctor.module("ray", "ray", "ray", load=False)
    assert check.status == "bad"
    assert "'ray<2.61,>=2.60'" in check.remedy


def test_a_version_outside_the_bounds_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.30.0" if name == "diffusers" else real(name))
    check = doctor.module("diffusers", "diffusers", "diffusers", load=False)
    assert (check.status, check.found) == ("note", "0.30.0")
    assert "diffusers<0.43,>=0.42" in check.remedy


def test_memory_and_disk_have_floors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.memory(lambda: (2 * doctor.GIB, 8 * doctor.GIB)).status == "bad"
    assert doctor.memory(lambda: (6 * doctor.GIB, 8 * doctor.GIB)).status == "ok"
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1000))  # type: ignore[attr-defined]
    assert doctor.disk(tmp_path).status == "bad"
    assert doctor.shared_memory(tmp_path).status == "note"  # type: ignore[union-attr]
    assert doctor.shared_memory(tmp_path / "none") is None


def test_more_threads_than_one_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert doctor.cores().status == "note"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert doctor.cores().status == "ok"


def test_weights_are_checked_file_by_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from world_r1 import blockworld

    monkeypatch.setattr(blockworld, "weights_path", lambda: tmp_path)
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae/model.safetensors").write_bytes(b"abc")
    (tmp_path / "config.json").write_text("{}")
    assert doctor.weights().status == "bad"  # no manifest
    manifest.write(tmp_path)
    assert doctor.weights().status == "ok"
    (tmp_path / "vae/model.safetensors").write_bytes(b"abd")
    assert manifest.verify(tmp_path) == ["vae/model.safetensors is damaged: its checksum is not the one in SHA256SUMS"]
    (tmp_path / "vae/model.safetensors").unlink()
    assert "vae/model.safetensors is missing" in doctor.weights().found
