"""The run's own judges: a pool of reward workers in the driver, fed with groups by reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import ray

from world_r1.config import RewardsConfig
from world_r1.serving.config import PoolConfig, ReplicasConfig
from world_r1.serving.items import Item, requests
from world_r1.serving.pool import Pool
from world_r1.serving.slot import first_line
from world_r1.serving.worker import Worker as Judge
from world_r1.types import Prompt, Verdict

__all__ = ["Judge", "Judges", "first_line"]


class Judges:
    """A crew of judges behind one thread-safe call; see `world_r1.serving.pool` for what happens when one dies or hangs.

    The clips of a batch are judged together, so that the numbers do not depend on how many judges there are.
    """

    def __init__(self, config: RewardsConfig, make: Callable[[], Any], patience: float) -> None:
        """`make` starts one judge actor; `patience` bounds the seconds until it answers `setup`."""
        self.config = config
        self.make = make
        self.patience = patience
        #: The first judges, before and after they have answered `setup`.
        self.crew: list[Any] = []
        self.pool: Pool | None = None
        self.names = requests()

    def employ(self, judges: Sequence[Any]) -> None:
        """Take judges that have answered `setup` into service."""
        self.crew = list(judges)
        replicas = ReplicasConfig(min=len(judges), max=len(judges))
        self.pool = Pool(PoolConfig(rewards=self.config, replicas=replicas, patience=self.patience), lambda: self.make())
        self.pool.employ(judges)

    @property
    def replaced(self) -> int:
        """Judges that had to be replaced."""
        return 0 if self.pool is None else sum(self.pool.stats.summary()["restarts"].values())

    def score(
        self, clips: ray.ObjectRef, ids: Sequence[str], prompt: Prompt, hashes: Sequence[str] = ()
    ) -> list[Future[list[Verdict]]]:
        """Start judging a group (`clips` refers to its list of `Clip`), in batches; the futures give verdicts in the order of `ids`.

        With `hashes` (`content_hash` of every clip) a verdict on other content is not accepted.
        """
        if self.pool is None:
            raise RuntimeError("no judges are employed")
        size = self.config.batch
        items = items_of(clips, ids, prompt, hashes, self.names)
        return [self.pool.submit(items[i : i + size], together=True) for i in range(0, len(items), size)]

    def close(self) -> None:
        """End all judges and the threads that wait for them."""
        if self.pool is not None:
            self.pool.close()
        elif ray.is_initialized():
            for judge in self.crew:
                ray.kill(judge)


def items_of(clips: Any, ids: Sequence[str], prompt: Prompt, hashes: Sequence[str], names: Any) -> list[Item]:
    """The items of a group whose clips lie behind one reference."""
    known = hashes or [""] * len(ids)
    return [Item(next(names), name, known[i], prompt.kind, clips, i) for i, name in enumerate(ids)]
