"""`world-r1 rewards bench`: the discrimination benchmark on any reward, as a user runs it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from world_r1_rewards import discrimination_run as run
from world_r1_rewards.discrimination import DAMAGES, auc

from world_r1 import cli
from world_r1.inspection import settings_to_measure

#: A reward of the user's own, which needs no geometry: how much neighbouring frames differ, and nothing to say about cameras that pan.
OWN = '''
from world_r1.reward import Degenerate, Reward

class Restless(Reward):
    """Mean difference of neighbouring frames, in [0, 1]."""
    name, needs = "restless", ("frames",)
    def applies(self, clip):
        return "pan" not in clip.trajectory.command
    def score(self, clip, evidence):
        frames = evidence["frames"].astype(float)
        if frames.std() < 1:
            raise Degenerate("one colour")
        return self.ok(abs(frames[1:] - frames[:-1]).mean() / 255, counter=1.0)
'''


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    (folder / "acme_bench.py").write_text(OWN, encoding="utf-8")
    return folder


def test_a_reward_of_ones_own_gets_a_table_a_picture_and_figures(
    own: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(own))
    out = own / "bench"
    line = ["rewards", "bench", "--reward", "acme_bench:Restless", "--scenes", "1", "--split", "tuning", "--out", str(out)]
    assert cli.run(line) == 0
    said = capsys.readouterr().out
    assert "tuning-0" in said
    assert re.search(r"static\s+0\.97\s+1\.000", said)  # nothing is less restless than a still
    assert re.search(r"noise\s+0\.97\s+0\.000\*", said)  # nothing more than noise: below its bar
    assert re.search(r"blank\s+0\.97\s+1\.000\s+1\.00\s+missing", said)
    found = json.loads((out / "bench.json").read_text(encoding="utf-8"))
    one = found["rewards"]["acme_bench:Restless"]
    assert set(one["damages"]) == set(DAMAGES)
    assert one["scenes"] == 1
    assert found["geometry"] == {}
    amplitudes = list(one["amplitudes"].values())
    assert amplitudes == sorted(amplitudes)
    drawn = ElementTree.fromstring((out / "bench.svg").read_text(encoding="utf-8"))
    assert sum(node.tag.endswith("circle") for node in drawn) == len(DAMAGES) + 1

    (kept,) = (out / "scenes").iterdir()
    row = json.loads(kept.read_text(encoding="utf-8"))
    row["clips"]["static"]["scores"]["acme_bench:Restless"] = 0.9
    kept.write_text(json.dumps(row), encoding="utf-8")
    assert cli.run([*line, "--resume", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rewards"]["acme_bench:Restless"]["damages"]["static"]["mean"] == 0.9


def test_accuracy_measures_the_cameras_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["rewards", "bench", "--accuracy", "--scenes", "1", "--split", "tuning", "--out", str(tmp_path), "--json"]
    assert cli.run([*line, "rewards.probes.flow_ba.frames=5", "rewards.probes.flow_ba.device=cpu"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["settings"]["probes"]["flow_ba"] == {"frames": 5, "device": "cpu"}
    assert found["geometry"]["clips"] == 3
    assert found["geometry"]["ate_median"] < 0.05
    assert not (tmp_path / "bench.svg").exists()


def test_mistakes_are_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for line, reason in (
        (["--split", "training"], "--split must be one of tuning, held_out, fresh"),
        (["--reward", "nothing"], "no plug-in 'nothing'"),
        (["--reward", "consistency", "--config", "configs/blockworld.yaml"], "not both"),
        (["rewards.probes.flow_ba.quality=best"], "quality must be one of"),
    ):
        assert cli.run(["rewards", "bench", "--out", str(tmp_path), *line]) == 2, line
        assert reason in capsys.readouterr().err


def test_every_reward_of_a_file_is_measured_with_weight_one() -> None:
    config = settings_to_measure(Path("configs/blockworld.yaml"), [], [])
    assert {entry.name for entry in config.rewards} == {"reconstruction", "trajectory", "meta_view", "quality", "guard"}
    assert {(entry.weight, entry.phase) for entry in config.rewards} == {(1.0, "all")}


def test_missing_values_rank_last_and_ties_count_half() -> None:
    assert auc(np.array([0.0, -1.0]), np.array([-np.inf, -1.0])) == (2 + 1 + 0.5) / 4
    assert auc(np.array([-np.inf]), np.array([-np.inf])) == 0.5


def test_the_picture_holds_negative_scores() -> None:
    damages = {name: {"auc": 0.5, "mean": None, "paired_wins": 0.5} for name in DAMAGES}
    found = {"rewards": {"a<b": {"damages": damages, "amplitudes": {"0.4": -3.0, "1": None, "2": -1.0}}}}
    text = run.picture(found)
    ElementTree.fromstring(text)
    assert "a&lt;b" in text
    ends = re.search(r'points="([^"]*)"', text)
    assert ends
    heights = [float(pair.split(",")[1]) for pair in ends[1].split()]
    assert heights[0] > heights[1]
