"""What `world-r1 rewards up, status, down, score --pool` do."""

from __future__ import annotations

import logging
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ray

from world_r1.inspection import verdict_rows
from world_r1.serving import client
from world_r1.serving.client import PoolClient, PoolError
from world_r1.serving.config import ServingConfig
from world_r1.types import Clip, Verdict


def connect(address: str | None, *, start: float | None = None) -> None:
    """Join the Ray cluster at `address`, or the one that runs on this machine; with `start`, start a node here if there is none, with so
    many CPUs beyond those that the machine has (reservations are logical, and pools must leave room for a run).

    Raises PoolError if there is none to join.
    """
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    settings: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    try:
        ray.init(address=address or os.environ.get("RAY_ADDRESS") or "auto", **settings)
    except Exception as error:  # a bare Exception is what Ray raises when its own processes are slow to start
        if start is None or address:
            where = f"at {address}" if address else "on this machine (RAY_ADDRESS is not set)"
            raise PoolError(
                f"no Ray cluster {where}; start one with `ray start --head` or `rewards up --start-ray`, or give --address"
            ) from error
        _start_node(start)
        ray.init(address="auto", **settings)


def _start_node(extra: float) -> None:
    """A head node that outlives this process; `ray stop` ends it. Ray listens on every interface."""
    cpus = (os.cpu_count() or 1) + math.ceil(extra)
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--port=0", f"--num-cpus={cpus}"]
    command += ["--include-dashboard=false", "--disable-usage-stats"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise PoolError(f"cannot start a Ray node: {(result.stderr or result.stdout).strip().splitlines()[-1:]}")


def up(address: str | None, config: ServingConfig, start: bool = False) -> Iterator[str]:
    """Start every pool of a file; yields a line for each. Raises for the first that does not start; those before it run on."""
    connect(address, start=sum(pool.cpus * pool.replicas.max for pool in config.pools.values()) if start else None)
    for name, pool in config.pools.items():
        client.up(name, pool)
        rewards = ", ".join(entry.key for entry in pool.rewards.rewards)
        yield f"{name}: {pool.replicas.min} to {pool.replicas.max} workers for {rewards}"


def status(address: str | None) -> list[dict[str, Any]]:
    """`client.status` of every pool."""
    connect(address)
    return [client.status(name) for name in client.names()]


def down(address: str | None, names: Sequence[str]) -> Iterator[str]:
    """End the named pools, or all; yields their names."""
    connect(address)
    for name in names or client.names():
        client.down(name)
        yield name


def score(address: str | None, pools: Sequence[str], clip: Clip) -> list[dict[str, Any]]:
    """A clip's scores from running pools, as rows for a table."""
    connect(address)
    verdicts = [PoolClient(name).score([clip])[0] for name in pools]
    if len(verdicts) == 1:
        return verdict_rows(verdicts[0])
    totals = [verdict.total for verdict in verdicts]
    total = None if any(value is None for value in totals) else sum(value for value in totals if value is not None)
    return verdict_rows(Verdict(clip.id, total, tuple(score for verdict in verdicts for score in verdict.scores)))


def table(pools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row a pool, for people."""
    return [_row(pool) for pool in pools]


def _row(pool: Mapping[str, Any]) -> dict[str, Any]:
    if "workers" not in pool:
        return {**dict.fromkeys(COLUMNS, "-"), "pool": pool["name"], "state": pool["error"]}
    replicas, workers = pool["replicas"], pool["workers"]
    failures = ", ".join(f"{count} {cause}" for cause, count in sorted(pool["failures"].items())) or "0"
    restarts = ", ".join(f"{count} {cause}" for cause, count in sorted(pool["restarts"].items())) or "0"
    versions = {key: value for worker in workers for key, value in worker.get("versions", {}).items()}
    starting = f" (+{replicas['starting']} starting)" if replicas["starting"] else ""
    return {
        "pool": pool["name"],
        "replicas": f"{replicas['ready']}{starting} of {replicas['min']}-{replicas['max']}",
        "queue": str(pool["queue"]),
        "items": str(pool["items"]),
        "items/s": f"{pool['rate']:.1f}",
        "p50": _seconds(pool["p50"]),
        "p95": _seconds(pool["p95"]),
        "failed": failures,
        "restarts": restarts,
        "memory": ", ".join(_memory(worker) for worker in workers),
        "versions": ", ".join(f"{key} {value}" for key, value in versions.items()),
        "state": pool["error"] or "ok",
    }


COLUMNS = ("pool", "replicas", "queue", "items", "items/s", "p50", "p95", "failed", "restarts", "memory", "versions", "state")


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{1000 * value:.0f} ms" if value < 1 else f"{value:.1f} s"


def _memory(worker: Mapping[str, Any]) -> str:
    gpu = f" + {worker['gpu_memory'] / 2**30:.1f} GPU" if worker["gpu_memory"] else ""
    return f"{worker['memory'] / 2**30:.2f}{gpu} GiB"
