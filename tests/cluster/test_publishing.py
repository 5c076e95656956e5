"""Weights by broadcast against weights through the object store: the same run, and a clear end when a sampler dies."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray

from tests.cluster.runs import rewards, same, take, tensors
from world_r1.actors.cluster import Cluster, ClusterError
from world_r1.actors.learners import Learners
from world_r1.actors.publishing import Publishing
from world_r1.config import Config
from world_r1.prompts import PromptStream

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_cluster")]
Make = Callable[..., Config]
APART = {"mode": "disaggregated", "samplers": 2}


@pytest.mark.slow
def test_whole_models_are_broadcast_and_learn_the_same(config: Make, tmp_path: Path) -> None:
    """To the last bit, where samplers are a version behind and take the new one between two rollouts (in step: test_two_hosts)."""
    checkpoints, found = [], []
    for way, broadcasts in (("auto", True), ("object_store", False)):  # auto: adapters through the store, all weights by broadcast
        cluster_ = {**APART, "weights": way, "max_staleness": 1}
        settings = config(steps=3, save_every=3, keep=9, model={"lora": None}, optimizer={"learning_rate": 1e-3}, cluster=cluster_)
        with Cluster(settings) as cluster:
            found.append(rewards(take(settings, cluster, tmp_path / way)))
            assert cluster.publishing is not None
            assert cluster.publishing.broadcasts == broadcasts
            meeting = Path(cluster.publishing.meeting.folder)
        assert not broadcasts or not meeting.exists(), "nothing is left behind"
        checkpoints.append(tensors(tmp_path / way, 3))
    assert found[0] == found[1]
    assert len(set(found[0])) == 3
    assert same(*checkpoints)


@pytest.mark.parametrize("doing", ["save", "evaluate"])
def test_a_sampler_that_dies_ends_the_run(config: Make, tmp_path: Path, doing: str) -> None:
    """The learner then waits for it in a broadcast, and the other sampler for the learner, and what was asked of either for both.

    Whether the learner is told of the death first, and then saves, or the driver, is a matter of luck.
    """
    settings = config(cluster={**APART, "weights": "broadcast"})
    with Cluster(settings) as cluster:
        stream = PromptStream.of(settings)
        cluster.rollout(0, stream.at(0))
        cluster.samplers[1].__ray_call__.remote(lambda _: time.sleep(600))  # it is not gone, but will never receive
        cluster.publish()

        def go_on() -> None:
            if doing == "save":
                cluster.save(tmp_path, 1)
            else:
                cluster.evaluate(tmp_path, "average", lambda *_: None)
            cluster.rollout(1, stream.at(1))

        threading.Timer(2.0, ray.kill, [cluster.samplers[1]]).start()
        with pytest.raises(ClusterError, match=r"(publishing weights|sampling|evaluating): the process that holds the policy died"):
            go_on()


@ray.remote(num_cpus=0)
class Deaf:
    """An actor whose channel never opens."""

    def where(self) -> str:
        return str(ray.util.get_node_ip_address())

    def open_channel(self, *_: Any) -> None:
        time.sleep(60)


def test_the_death_is_what_is_said_where_its_echo_is_seen_at_the_same_time(config: Make) -> None:
    """Both calls have failed when the driver looks, and the echo comes first in the list."""
    cluster = Cluster(config())
    cluster.learners = Learners(cluster.config, {"num_cpus": 0}, cluster._get, 0.1)
    living, dead = Deaf.remote(), Deaf.remote()  # type: ignore[attr-defined]
    ray.get([living.where.remote(), dead.where.remote()])
    cluster.loads = [living.__ray_call__.remote(lambda _: 1 / 0), dead.open_channel.remote()]
    ray.kill(dead)
    ray.wait(cluster.loads, num_returns=2)
    with pytest.raises(ClusterError, match="publishing weights: the process that holds the policy died"):
        cluster._check_published()
    for actor in (living, *cluster.learners.actors):
        ray.kill(actor)


def test_processes_that_do_not_reach_each_other_are_not_waited_for_without_end(config: Make) -> None:
    """As when a firewall, or the wrong network interface, is between them: the message says where to look."""
    settings = config(cluster={**APART, "weights": "broadcast", "timeout": 0.5})
    ends = [Deaf.remote() for _ in range(3)]  # type: ignore[attr-defined]
    publishing = Publishing(settings, ends[0], ends[1:], lambda _, call: ray.get(call), lambda _, call, *__: ray.get(call))
    with pytest.raises(ClusterError, match=r"connecting learner and samplers: not connected after 0.5 s; .* GLOO_SOCKET_IFNAME"):
        publishing.connect()
    publishing.close()
    learners = Learners(config(cluster={"timeout": 300}), {"num_cpus": 0}, lambda _, call: ray.get(call), 0.1)
    with pytest.raises(ClusterError, match=r"joining: not connected after 0.5 s"):
        learners.all("joining", "__ray_call__", lambda _: time.sleep(60), patience=0.5)
    for actor in (*ends, *learners.actors):
        ray.kill(actor)
