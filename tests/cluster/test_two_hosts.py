"""Two hosts with addresses of their own: weights and gradients cross between them, and a host may go and come back."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cluster.hosts import Hosts, lacking
from tests.cluster.runs import rewards, same, take, tensors
from world_r1.actors.cluster import Cluster
from world_r1.config import Config

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]
Make = Callable[..., Config]
#: A host has one CPU and a judge needs none, so that of two policies each host gets one.
EACH = {"cpus_per_policy": 1, "cpus_per_judge": 0, "timeout": 120}


def until(there: Path, program: Future[str]) -> None:
    while not there.exists():
        if program.done():
            program.result()
        time.sleep(0.1)


@pytest.fixture(scope="module")
def found(config: Make, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What tests/cluster/two_hosts.py says, with the folder of its checkpoints."""
    if reason := lacking():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("hosts")
    with ThreadPoolExecutor(1) as pool, Hosts(cpus=1) as hosts:  # hosts end first, and with them the program
        apart = {**EACH, "address": hosts.address}
        for name, settings in {"broadcast": whole(config, **apart), "learners": pair(config, learners=2, **apart)}.items():
            (folder / f"{name}.json").write_text(json.dumps(settings.model_dump(mode="json")), encoding="utf-8")
        program = pool.submit(hosts.run, 0, [sys.executable, str(Path(__file__).with_name("two_hosts.py")), str(folder)], 400)
        until(folder / "kill", program)
        hosts.kill(1)
        (folder / "gone").touch()
        until(folder / "start", program)
        hosts.start(1)
        (folder / "back").touch()
        said = program.result().strip().splitlines()[-1]
    return {**json.loads(said), "addresses": sorted(hosts.addresses), "folder": folder}


def whole(config: Make, **cluster: Any) -> Config:
    """A whole model is trained, and sampled from by a process of its own."""
    shape = {"mode": "disaggregated", "samplers": 1, **cluster}
    return config(steps=2, save_every=1, keep=9, model={"lora": None}, optimizer={"learning_rate": 1e-3}, cluster=shape)


def pair(config: Make, **cluster: Any) -> Config:
    return config(steps=2, save_every=1, keep=9, flow={"window": {"size": 1}}, cluster=cluster)


def here(settings: Config, folder: Path) -> tuple[dict[str, torch.Tensor], list[float]]:
    """The same run on one host: what the last checkpoint holds, and the rewards."""
    with Cluster(settings) as cluster:
        found = rewards(take(settings, cluster, folder))
    return tensors(folder, 2), found


def test_weights_are_broadcast_to_another_host(found: dict[str, Any], config: Make, tmp_path: Path) -> None:
    """Learner and sampler on a host each end with the weights of one host and Ray's object store, to the last bit."""
    assert sorted(found["broadcast"]["hosts"]) == found["addresses"]
    assert found["broadcast"]["broadcasts"]
    weights, gained = here(whole(config, weights="object_store"), tmp_path)
    assert found["broadcast"]["rewards"] == gained
    assert same(tensors(found["folder"] / "broadcast", 2), weights)


def test_learners_on_two_hosts_end_with_the_weights_of_one(found: dict[str, Any], config: Make, tmp_path: Path) -> None:
    """One trained step a video: the sum of two gradients, to the last bit."""
    assert sorted(found["learners"]["hosts"]) == found["addresses"]
    weights, gained = here(pair(config), tmp_path)
    assert found["learners"]["rewards"] == gained
    assert same(tensors(found["folder"] / "learners", 2), weights)


def test_a_host_that_goes_ends_the_run_which_resumes_when_it_is_back(found: dict[str, Any]) -> None:
    assert "died" in found["lost"]["error"]
    assert "--resume" in found["lost"]["error"]
    assert found["lost"]["seconds"] < 60
    assert found["resumed"]["rewards"] == found["broadcast"]["rewards"][1:]
    assert same(tensors(found["folder"] / "resumed", 2), tensors(found["folder"] / "broadcast", 2))
