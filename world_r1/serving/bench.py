"""What serving costs: python -m world_r1.serving.bench [--items 20000] [--rounds 7] [--seconds 4] [--reward guard] [--json FILE]

1. Items a second with ids only (clips of one pixel, a constant reward): 64 callers, packets of 16, one detached pool with 2 workers.
2. For 17x96x160 clips and a real reward, a worker behind the pool against the same worker that scores what lies in its own memory. The two
   take turns in short rounds, each first in every other one, so that whatever else the machine does meets both; the figure is the median of
   the rounds' ratios, with the quartiles. Beside it CPU time an item of every process that takes part (worker, pool, caller), which other
   programs hardly disturb (Linux).
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray

from world_r1.inspection import rewards_config
from world_r1.serving import client
from world_r1.serving.client import PoolClient
from world_r1.serving.config import PoolConfig
from world_r1.serving.worker import Worker
from world_r1.types import Clip, Prompt

#: Callers and items a packet.
CALLERS, PACKET = 64, 16


class Alone(Worker):
    """A worker that scores what it holds, without ids, hashes, queue or transport."""

    def keep(self, clips: Sequence[Clip]) -> None:
        """Hold clips in memory of its own."""
        self.clips = [replace(clip, video=clip.video.copy()) for clip in clips]

    def loop(self, seconds: float) -> tuple[float, int]:
        """Items a second over at least so many seconds, in batches of `rewards.batch`; and items."""
        begin, done, size = time.perf_counter(), 0, self.config.batch
        while time.perf_counter() - begin < seconds:
            start = done % len(self.clips)
            self.rubric.judge(self.clips[start : start + size])
            done += size
        return done / (time.perf_counter() - begin), done


def _cpu(pid: int) -> float:
    """CPU seconds of a process so far (Linux; NaN elsewhere)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    except OSError:
        return float("nan")
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def ids_only(items: int) -> dict[str, Any]:
    """Throughput of the service itself."""
    config = PoolConfig.model_validate(
        {
            "rewards": {"rewards": [{"name": "constant"}], "batch": 64},
            "replicas": {"min": 2, "max": 2},
            "cpus": 0.5,
            "batch_wait": 0.002,
            "queue": 4096,
        }
    )
    client.up("bench-ids", config)
    try:
        pool = PoolClient("bench-ids")
        prompt, pixel = Prompt("p", "A red box."), np.zeros((1, 1, 1, 3), np.uint8)
        packets = [[Clip(f"{i}-{k}", pixel, prompt, None) for k in range(PACKET)] for i in range(items // PACKET)]
        with ThreadPoolExecutor(CALLERS) as threads:
            list(threads.map(pool.score, packets[:CALLERS]))  # everything is imported and connected
            begin = time.perf_counter()
            answers = list(threads.map(pool.score, packets))
            seconds = time.perf_counter() - begin
        wrong = sum([v.clip for v in a] != [c.id for c in p] for a, p in zip(answers, packets, strict=True))
        status = client.status("bench-ids")
    finally:
        client.down("bench-ids")
    done = len(packets) * PACKET
    return {
        "items": done,
        "items_per_s": done / seconds,
        "wrong": wrong,
        "p50_ms": 1e3 * status["p50"],
        "p95_ms": 1e3 * status["p95"],
    }


def against_standalone(reward: str, rounds: int, seconds: float) -> dict[str, Any]:
    """Throughput of one worker behind a pool over that of one alone."""
    from world_r1.blockworld.specimens import rigid

    clip = rigid()
    clips = [replace(clip, id=f"clip-{k}") for k in range(8)]
    rewards = rewards_config([reward]).model_copy(update={"batch": 8})
    config = PoolConfig(rewards=rewards, batch_wait=0.05, check=False)
    alone = ray.remote(Alone).options(num_cpus=1).remote(rewards)
    ray.get([alone.setup.remote(), alone.keep.remote(clips)])
    client.up("bench-clips", config)
    try:
        pool = PoolClient("bench-clips")
        status = client.status("bench-clips")
        pids = {
            "standalone": ray.get(alone.pid.remote()),
            "worker": status["workers"][0]["pid"],
            "pool": status["server"]["pid"],
            "caller": os.getpid(),
        }
        pairs: list[tuple[float, float]] = []
        cpu: list[dict[str, float]] = []
        with ThreadPoolExecutor(2) as threads:
            sides = {
                "standalone": lambda: ray.get(alone.loop.remote(seconds)),
                "served": lambda: _served(pool, clips, seconds, threads),
            }
            for number in range(rounds + 1):
                found = {side: _used(sides[side], pids) for side in sorted(sides, reverse=number % 2 == 1)}
                if number:  # the first round warms up
                    pairs.append((found["standalone"][0], found["served"][0]))
                    own = {"standalone": found["standalone"][1]["standalone"]}
                    cpu.append(own | {name: used for name, used in found["served"][1].items() if name != "standalone"})
    finally:
        client.down("bench-clips")
        ray.kill(alone)
    ratios = sorted(served / direct for direct, served in pairs)
    spent = {name: statistics.median(row[name] for row in cpu) for name in pids}
    served = statistics.median(served for _, served in pairs)
    return {
        "reward": reward,
        "rounds": len(pairs),
        "standalone_per_s": statistics.median(direct for direct, _ in pairs),
        "served_per_s": served,
        "share": statistics.median(ratios),
        "share_quartiles": [round(ratios[len(ratios) // 4], 3), round(ratios[(3 * len(ratios)) // 4], 3)],
        "cpu_share": statistics.median(row["standalone"] / row["worker"] for row in cpu),
        "cpu_ms_an_item": {name: round(1e3 * used, 3) for name, used in spent.items()},
        "shares": [round(ratio, 3) for ratio in ratios],
    }


def _used(side: Callable[[], tuple[float, int]], pids: Mapping[str, int]) -> tuple[float, dict[str, float]]:
    """Items a second of one side, and CPU seconds an item of every process meanwhile."""
    before = {name: _cpu(pid) for name, pid in pids.items()}
    rate, items = side()
    return rate, {name: (_cpu(pid) - before[name]) / items for name, pid in pids.items()}


def _served(pool: PoolClient, clips: list[Clip], seconds: float, threads: ThreadPoolExecutor) -> tuple[float, int]:
    """Items a second of two callers that each keep a batch under way; and items."""
    begin = time.perf_counter()

    def call(_: int) -> int:
        done = 0
        while time.perf_counter() - begin < seconds:
            pool.score(clips, together=True)
            done += len(clips)
        return done

    done = sum(threads.map(call, range(2)))
    return done / (time.perf_counter() - begin), done


def main() -> None:
    """Parse, measure, print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--reward", action="append", default=[])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    found = {
        "ids_only": ids_only(options.items),
        "clips_17x96x160": [
            against_standalone(name, options.rounds, options.seconds) for name in options.reward or ["guard", "reconstruction"]
        ],
    }
    text = json.dumps(found, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
