"""The detached, named actor that a shared pool lives in: callers hand it references, it never sees a video."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from world_r1.config import RewardsConfig
from world_r1.serving.config import PoolConfig
from world_r1.serving.items import Busy, Item
from world_r1.serving.pool import Pool
from world_r1.serving.worker import resident, versions
from world_r1.types import Kind, Verdict

#: Ray namespace of all pools, and how an actor is named in it.
NAMESPACE = "world_r1_rewards"
PREFIX = "pool:"


@dataclass(frozen=True)
class Ask:
    """One item of a packet: its clip is number `index` of block number `block`.

    Example: `Ask(request="5d1e0c-17", id="s3-p1-k0", hash="9f2c...", kind="rigid", block=0, index=4)`
    """

    request: str
    id: str
    hash: str
    kind: Kind
    block: int
    index: int


#: (request, hash, verdict) of every item of a packet, in its order.
Replies = list[tuple[str, str, Verdict]]


class PoolServer:
    """Asynchronous actor: any number of callers wait in it at once. Its workers end with it; Ray restarts it if it dies."""

    def __init__(self, name: str, tree: dict[str, Any]) -> None:
        """`tree` is the pool's configuration as a mapping."""
        self.name = name
        self.config = PoolConfig.model_validate(tree)
        self.pool = Pool(self.config)
        self.pool.start()

    async def ready(self, timeout: float) -> None:
        """Wait until `replicas.min` workers serve; raises what kept them from it."""
        await asyncio.to_thread(self.pool.ready, timeout)

    async def score(self, packet: Sequence[Ask], blocks: Sequence[Any], together: bool) -> Replies | Busy:
        """Verdicts on a packet, or `Busy` (returned, not raised: it is an answer) if the queue is full.

        `blocks` are references to lists of clips, inside a list so that Ray does not fetch them here.
        """
        items = [Item(ask.request, ask.id, ask.hash, ask.kind, blocks[ask.block], ask.index) for ask in packet]
        try:
            future = self.pool.offer(items, together=together)
        except Busy as busy:
            return busy
        verdicts = await asyncio.wrap_future(future)
        return [(ask.request, ask.hash, verdict) for ask, verdict in zip(packet, verdicts, strict=True)]

    async def rewards(self) -> RewardsConfig:
        """What this pool scores, with what."""
        return self.config.rewards

    async def status(self) -> dict[str, Any]:
        """`Pool.status` with name, process and versions."""
        server = {"pid": os.getpid(), "memory": resident(), "versions": versions()}
        return {"name": self.name, **await asyncio.to_thread(self.pool.status), "server": server}

    async def close(self) -> None:
        """End the workers; what was waited for raises."""
        await asyncio.to_thread(self.pool.close)
