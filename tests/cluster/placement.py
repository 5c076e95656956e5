"""A program of its own for test_placement: a cluster of two nodes on loopback, one of them with a label and a (pretended) GPU.

Prints what became of the pools as one line of JSON.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.cluster_utils import Cluster

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from world_r1.serving import client  # noqa: E402
from world_r1.serving.client import PoolClient, PoolError  # noqa: E402
from world_r1.serving.config import PoolConfig  # noqa: E402
from world_r1.types import Clip, Prompt  # noqa: E402


def pool(reward: str, options: dict[str, Any] | None = None, **changes: Any) -> PoolConfig:
    rewards = {"rewards": [{"name": f"tests.cluster.rewards:{reward}", "options": options or {}}], "batch": 1, "timeout": 60}
    return PoolConfig.model_validate({"rewards": rewards, "cpus": 0.1, "patience": 60, **changes})


def clips(count: int) -> list[Clip]:
    video = np.zeros((2, 4, 4, 3), np.uint8)
    return [Clip(f"k{i}", video, Prompt("p", "A red box."), None) for i in range(count)]


def where(name: str) -> list[dict[str, Any]]:
    return [{key: worker.get(key) for key in ("node", "gpus")} for worker in client.status(name)["workers"]]


def shares(node: str) -> dict[str, Any]:
    """Four workers on quarters of the one GPU, by label; a fifth quarter is not there."""
    four = pool("Visible", labels={"kind": "judge"}, gpus=0.25, replicas={"min": 4, "max": 4})
    client.up("quarters", four)
    try:
        found: dict[str, Any] = {"quarters": where("quarters"), "labelled": node}
        found["visible"] = [verdict.total for verdict in PoolClient("quarters").score(clips(12))]
        try:
            client.up("fifth", pool("Visible", labels={"kind": "judge"}, gpus=0.25, patience=4))
        except PoolError as error:
            found["fifth"] = str(error)
    finally:
        client.down("quarters")
    return found


def elsewhere() -> dict[str, Any]:
    """Without a share of the GPU a worker sees none, wherever it runs; a label that no node has starts nothing."""
    client.up("plain", pool("Visible", labels={"kind": "plain"}))
    found: dict[str, Any] = {"plain": where("plain"), "unseen": PoolClient("plain").score(clips(1))[0].total}
    client.down("plain")
    try:
        client.up("nowhere", pool("Visible", labels={"kind": "none-of-these"}, patience=4))
    except PoolError as error:
        found["nowhere"] = str(error)
    return found


def scaled() -> dict[str, Any]:
    """A long queue brings workers, up to the most and where the label is; an empty one ends them."""
    replicas = {"min": 1, "max": 3, "queue": 2, "up_after": 0.1, "down_after": 0.3}
    client.up("scaled", pool("Slow", {"suffix": "", "seconds": 0.25}, labels={"kind": "judge"}, gpus=0.25, replicas=replicas))
    most: list[dict[str, Any]] = []
    asked, end = 0, time.monotonic() + 90
    with ThreadPoolExecutor(4) as threads:
        calls = []
        while len(most) < replicas["max"] and time.monotonic() < end:  # a busy machine starts workers slowly
            if client.status("scaled")["queue"] < 20:
                calls.append(threads.submit(PoolClient("scaled").score, clips(10)))
                asked += 10
            most = max(most, [worker for worker in where("scaled") if worker["node"]], key=len)
            time.sleep(0.1)
        answered = sum(len(call.result()) for call in calls)
    end = time.monotonic() + 30
    while time.monotonic() < end and len(where("scaled")) > 1:
        time.sleep(0.1)
    found = {"most": most, "least": len(where("scaled")), "unanswered": asked - answered}
    client.down("scaled")
    return found


def main() -> None:
    quiet: dict[str, Any] = {"include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "num_gpus": 0, "labels": {"kind": "plain"}, **quiet})
    cluster.add_node(num_cpus=4, num_gpus=1, labels={"kind": "judge"}, **quiet)
    try:
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        (node,) = (found["NodeID"] for found in ray.nodes() if found["Labels"].get("kind") == "judge")
        print(json.dumps({**shares(node), **elsewhere(), **scaled()}))
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main()
