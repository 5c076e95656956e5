"""`world-r1 rewards list, check, score` without a cluster."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import itertools
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest

from world_r1 import cli
from world_r1.blockworld import specimens
from world_r1.reward import Reward
from world_r1.types import Clip, Score
from world_r1.video import write_mp4

ACME = "acme_command_of_the_test"


class Careful(Reward):
    """Mean brightness, in [0, 1]."""

    name, needs, parts = "careful", ("frames",), ("mean",)

    def score(self, clip: Clip, evidence: Mapping[str, Any]) -> Score:
        mean = float(evidence["frames"].mean()) / 255
        return self.ok(mean, mean=mean)


class Careless(Reward):
    """Claims that a rigid room wins, counts its calls, and fails on a grey clip."""

    name, needs, rigid_wins = "careless", ("frames",), 5.0
    calls = itertools.count()

    def score(self, clip: Clip, evidence: Mapping[str, Any]) -> Score:
        assert evidence["frames"].std() > 0
        return self.ok(next(self.calls))


class Elsewhere(Careful):
    """Needs a package that is not here."""

    packages, extra = ("a_package_that_is_not_there",), "vlm"


@pytest.fixture(autouse=True)
def acme(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType(ACME)
    for found in (Careful, Careless, Elsewhere):
        setattr(module, found.__name__, found)
    monkeypatch.setitem(sys.modules, ACME, module)


def test_list_says_what_each_needs_and_whether_it_can_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.metadata.entry_points
    points = [
        importlib.metadata.EntryPoint("elsewhere", f"{ACME}:Elsewhere", "world_r1.rewards"),
        importlib.metadata.EntryPoint("broken", "a_module_that_is_not_there:Mine", "world_r1.rewards"),
    ]
    monkeypatch.setattr(
        importlib.metadata, "entry_points", lambda group: points if group == "world_r1.rewards" else real(group=group)
    )
    assert cli.run(["rewards", "list", "--json"]) == 0
    rows = {(row["kind"], row["name"]): row for row in json.loads(capsys.readouterr().out)}
    assert (
        rows["reward", "reconstruction"].items()
        >= {
            "needs": "geometry",
            "gives": "appearance, rigidity, photometric, link, order, motion",
            "licence": "Apache-2.0",
            "state": "ready",
        }.items()
    )
    assert rows["probe", "flow_ba"]["state"] == "ready"
    assert "geometry" in rows["probe", "flow_ba"]["gives"]
    assert rows["reward", "elsewhere"]["state"] == "needs a_package_that_is_not_there: pip install 'world-r1[vlm]'"
    assert "cannot be loaded: ModuleNotFoundError" in rows["reward", "broken"]["state"]
    assert rows["probe", "judge.openai"]["state"].startswith("needs the options base_url")
    assert rows["probe", "aesthetic"]["state"] != "ready"  # weights of two places, neither of them here
    assert rows["reward", "judge.checklist"]["state"].startswith("by judge.vqascore, which: needs the options")
    assert rows["reward", "hpsv2"]["state"] in ("ready", "by hpsv2, which: weights not here yet: fetched at first use")
    assert rows["reward", "constant"]["state"] == rows["reward", "meta_view"]["state"] == "ready"
    assert cli.run(["rewards", "list"]) == 0
    table = capsys.readouterr().out
    assert all(column in table for column in ("kind", "needs", "extra", "weights", "licence", "state"))


def test_check_passes_a_reward_that_keeps_the_rules(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["rewards", "check", f"{ACME}:Careful", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert all(finding["ok"] for finding in found["findings"])
    assert found["scores"]["rigid"][f"{ACME}:Careful"] == pytest.approx(specimens.rigid().video.mean() / 255, abs=1e-4)
    assert found["seconds"]["all"] > 0
    assert found["memory_mib"] > 50
    assert {"world-r1", "torch", "numpy"} <= found["versions"].keys()
    assert found["licences"] == {f"{ACME}:Careful": "Apache-2.0"}


def test_a_mistyped_name_and_a_package_that_is_no_extra_are_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["rewards", "check", "flow_bb"]) == 2
    assert "no reward or probe 'flow_bb'; did you mean 'flow_ba'?" in capsys.readouterr().err
    if importlib.util.find_spec("vggt") is None:
        assert cli.run(["rewards", "check", "vggt"]) == 2
        assert "vggt cannot run here: it needs vggt: pip install git+https" in capsys.readouterr().err


def test_check_names_the_rules_that_a_reward_breaks(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["rewards", "check", f"{ACME}:Careless", "--json"]) == 1
    broken = [finding["rule"] for finding in json.loads(capsys.readouterr().out)["findings"] if not finding["ok"]]
    assert broken == [
        "no input makes it fail",
        "the same input has the same score",
        "a score does not depend on the batch",
        "a rigid room wins over swimming textures by 5",
    ]


def test_check_takes_a_probe_and_prints_the_facts(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["rewards", "check", "statistics"]) == 0
    said = capsys.readouterr().out
    for word in ("seconds a clip:", "statistics", "memory:", "versions:", "licences:"):
        assert word in said


def test_check_of_what_cannot_run_here_says_how_it_could(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["rewards", "check", f"{ACME}:Elsewhere"]) == 2
    assert "cannot run here: it needs a_package_that_is_not_there: pip install 'world-r1[vlm]'" in capsys.readouterr().err


def test_score_writes_numbers_and_a_picture_of_the_reconstruction_beside_the_video(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = specimens.rigid()
    path = write_mp4(tmp_path / "room.mp4", clip.video)
    command = ["rewards", "score", str(path), "--prompt", clip.prompt.text, "--reward", "reconstruction", "--json"]
    assert cli.run([*command, "--no-files"]) == 0
    assert sorted(tmp_path.iterdir()) == [path]
    capsys.readouterr()
    assert cli.run(command) == 0
    rows = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "room.scores.json").read_text(encoding="utf-8")) == rows
    assert rows[0]["value"] > 0.7
    picture = cv2.imread(str(tmp_path / "room.reconstruction.png"))[..., ::-1]
    filmed, points = picture[:192, :320].astype(int), picture[196:388, :320].astype(int)
    seen = (points != 128).any(-1)
    assert seen.mean() > 0.5
    right = np.abs(filmed - points)[seen].mean()
    wrong = np.abs(filmed[::-1] - points)[seen].mean()
    assert right < 0.5 * wrong, "the points, seen from the keyframe's camera, look like the keyframe"
