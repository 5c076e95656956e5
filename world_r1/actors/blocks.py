"""Numbered blocks of bytes through a function, as Ray tasks: what a slow stage of prompt curation runs on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import ray

Task = Callable[[int, bytes], bytes]


def map_blocks(
    task: Task, work: Iterable[tuple[int, bytes]], *, address: str = "auto", in_flight: int = 0
) -> Iterator[tuple[int, bytes]]:
    """Yield (block, result) as tasks finish, in any order. The driver holds `in_flight` blocks at a time (0: twice the cluster's CPUs).

    `address`: a running cluster, or "local" to start one here. A task that a lost node took with it is run again by Ray.
    """
    if not ray.is_initialized():
        ray.init(address=None if address == "local" else address, log_to_driver=False, include_dashboard=False)
    function = ray.put(task)
    limit = in_flight or 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting: dict[ray.ObjectRef, int] = {}
    for block, content in work:
        waiting[_run.remote(function, block, content)] = block
        if len(waiting) >= limit:
            yield from _one(waiting)
    while waiting:
        yield from _one(waiting)


@ray.remote(num_cpus=1, max_retries=3)
def _run(task: Task, block: int, content: bytes) -> bytes:
    return task(block, content)


def _one(waiting: dict[ray.ObjectRef, int]) -> Iterator[tuple[int, bytes]]:
    (done,), _ = ray.wait(list(waiting), num_returns=1)
    yield waiting.pop(done), ray.get(done)
