"""`world-r1 rewards up, status, score, serve, down` on a real cluster, and a run that trains on pools that somebody else started."""

from __future__ import annotations

import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from world_r1 import cli
from world_r1.actors.cluster import Cluster
from world_r1.config import Config
from world_r1.prompts import PromptStream
from world_r1.serving import client
from world_r1.video import write_mp4

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_cluster")]

REWARDS = "tests.cluster.rewards"
POOLS = f"""
pools:
  bright: {{cpus: 0.1, rewards: {{rewards: [{{name: "{REWARDS}:Brightness"}}]}}}}
  marks: {{cpus: 0.1, replicas: {{max: 2}}, rewards: {{rewards: [{{name: "{REWARDS}:Jittered"}}]}}}}
"""


@pytest.fixture(scope="module")
def pools(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("pools") / "pools.yaml"
    path.write_text(POOLS, encoding="utf-8")
    assert cli.run(["rewards", "up", "--config", str(path), "pools.marks.replicas.min=2"]) == 0
    yield path
    assert cli.run(["rewards", "down"]) == 0
    assert client.names() == []


@pytest.fixture
def video(tmp_path: Path) -> Path:
    frames = np.random.default_rng(0).integers(0, 256, (5, 32, 48, 3), dtype=np.uint8)
    return write_mp4(tmp_path / "clip.mp4", frames)


def test_status_and_score_from_the_command_line(pools: Path, video: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["rewards", "score", str(video), "--pool", "bright", "--pool", "marks", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["reward"] for row in rows] == [f"{REWARDS}:Brightness", f"{REWARDS}:Jittered", "total"]
    assert rows[2]["value"] == pytest.approx(rows[0]["value"] + rows[1]["value"])
    assert json.loads(video.with_suffix(".scores.json").read_text(encoding="utf-8")) == rows
    assert cli.run(["rewards", "status"]) == 0
    table = capsys.readouterr().out
    for word in ("bright", "marks", "1 of 1-1", "2 of 2-2", "world-r1", "GiB", "ok"):
        assert word in table.replace("\n", " "), table
    assert cli.run(["rewards", "status", "--json"]) == 0
    assert [pool["items"] >= 1 for pool in json.loads(capsys.readouterr().out)] == [True, True]
    assert cli.run(["rewards", "up", "--config", str(pools)]) == 2
    assert "a pool named 'bright' runs already" in capsys.readouterr().err
    assert cli.run(["rewards", "down", "nobody"]) == 2
    assert "no pool named 'nobody' on this cluster (running: bright, marks)" in capsys.readouterr().err


def test_a_pool_whose_reward_cannot_keep_its_claim_gets_no_traffic(
    pools: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "boasts.yaml"
    path.write_text(f'pools: {{boasts: {{cpus: 0.1, rewards: {{rewards: [{{name: "{REWARDS}:Boasts"}}]}}}}}}', encoding="utf-8")
    assert cli.run(["rewards", "up", "--config", str(path)]) == 2
    assert "gets no traffic: tests.cluster.rewards:Boasts: a rigid room wins over swimming textures by 0.1 does not hold" in (
        capsys.readouterr().err
    )
    assert "boasts" not in client.names()


def test_a_run_on_pools_has_the_rewards_of_a_run_with_its_own_judges(pools: Path, config: Callable[..., Config]) -> None:
    def totals(**rewards: Any) -> list[float | None]:
        settings = config(rewards={"rewards": [{"name": f"{REWARDS}:Brightness", "weight": 3.0}], **rewards})
        with Cluster(settings) as cluster:
            scored = cluster.rollout(0, PromptStream.of(settings).at(0))
            assert len(cluster.judges.crew) == (0 if rewards else 1)
            return [verdict.total for group in scored.groups for verdict in group.verdicts]

    before = client.status("bright")["items"]
    own, attached = totals(), totals(pools=["bright"])
    assert attached == own
    assert None not in own
    assert client.status("bright")["items"] == before + len(own)
    with pytest.raises(ValueError, match=r"must come from one of rewards\.pools, but none of marks has it"):
        totals(pools=["marks"])


def test_over_http(pools: Path, video: Path) -> None:
    uvicorn = pytest.importorskip("uvicorn", reason="needs the extra gateway")
    pytest.importorskip("fastapi", reason="needs the extra gateway")
    from world_r1.serving.bodies import Limits
    from world_r1.serving.gateway_app import make_app

    app = make_app([client.PoolClient("bright")], token="correct horse battery", limits=Limits(1 << 20))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1/score?prompt=A+red+box.&id=mine"
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.05)
        headers = {"Content-Type": "video/mp4", "Authorization": "Bearer correct horse battery"}
        request = urllib.request.Request(url, video.read_bytes(), headers)
        answer = json.load(urllib.request.urlopen(request, timeout=60))
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(urllib.request.Request(url, video.read_bytes(), {**headers, "Authorization": "Bearer x"}))
        server.should_exit = True
        thread.join(30)
    assert answer["id"] == "mine"
    assert 0 < answer["total"] < 1
    assert answer["scores"][0]["parts"].keys() == {"red"}
