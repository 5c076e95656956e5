"""A program of its own for test_two_hosts: runs on the first of two hosts, and prints what became of its runs as one line of JSON.

Arguments: a folder with the configurations broadcast.json and learners.json; checkpoints go there.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import ray

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.cluster.runs import rewards, take  # noqa: E402
from world_r1.actors.cluster import Cluster, ClusterError  # noqa: E402
from world_r1.config import Config, parse  # noqa: E402


def where(cluster: Cluster) -> list[str]:
    """The hosts of the processes that hold a policy."""
    assert cluster.learners is not None
    actors = {id(actor): actor for actor in (*cluster.learners.actors, *cluster.samplers)}
    return ray.get([actor.where.remote() for actor in actors.values()])  # type: ignore[no-any-return]


def waiting_for(go: Path, ready: Path) -> None:
    """Tell the test that it is its turn, and wait for its word."""
    ready.touch()
    while not go.exists():
        time.sleep(0.1)


def known_to_be_back(config: Config) -> None:
    """Wait until Ray has noticed both that the host went and that it is back: before, it may still place actors on what is gone."""
    ray.init(address=config.cluster.address, logging_level="ERROR")
    while True:
        alive = [node["Alive"] for node in ray.nodes()]
        if sorted(alive) == [False, True, True]:
            break
        time.sleep(0.5)
    ray.shutdown()


def main(folder: Path) -> dict[str, Any]:
    """Two learners; weights by broadcast; a host that goes in the middle of that run, and comes back for its resumption."""
    broadcast, learners = (parse(json.loads((folder / f"{name}.json").read_text())) for name in ("broadcast", "learners"))
    found: dict[str, Any] = {}
    with Cluster(learners) as cluster:
        found["learners"] = {"hosts": where(cluster), "rewards": rewards(take(learners, cluster, folder / "learners"))}
    with Cluster(broadcast) as cluster:
        assert cluster.publishing is not None
        found["broadcast"] = {"hosts": where(cluster), "broadcasts": cluster.publishing.broadcasts}
        found["broadcast"]["rewards"] = rewards(take(broadcast, cluster, folder / "broadcast"))
        cluster.restore(folder / "broadcast" / "step-000001")
        waiting_for(folder / "gone", folder / "kill")
        start = time.monotonic()
        try:
            take(broadcast, cluster, folder / "lost", start=1)
        except ClusterError as error:
            found["lost"] = {"error": str(error), "seconds": time.monotonic() - start}
    waiting_for(folder / "back", folder / "start")
    known_to_be_back(broadcast)
    with Cluster(broadcast) as cluster:
        start_step = cluster.restore(folder / "broadcast" / "step-000001")
        found["resumed"] = {"rewards": rewards(take(broadcast, cluster, folder / "resumed", start=start_step))}
    return found


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
