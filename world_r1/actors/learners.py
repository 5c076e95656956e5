"""Several learner processes: placed, brought together, and called as one. The loop does not know how many there are."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray

from world_r1.actors.learner import Learner, PolicyWorker
from world_r1.config import Config

#: Seconds in which the death of one learner is waited for after another has failed: its failure is then an echo of that death.
ECHO = 10.0


class ClusterError(RuntimeError):
    """Ray or an actor could not be started, or died; the message says which, and what to do."""


class Learners:
    """The learner actors of a run. `get(what, call, timeout)` waits for one call and raises what went wrong as the driver says it."""

    def __init__(self, config: Config, options: Mapping[str, Any], get: Callable[..., Any], tick: float) -> None:
        kind = PolicyWorker if config.cluster.mode == "colocated" else Learner
        count = config.cluster.learners
        self.get, self.tick = get, tick
        self.actors = [ray.remote(kind).options(**options).remote(config, rank, count) for rank in range(count)]

    @property
    def names(self) -> dict[str, Any]:
        """The actors by what messages call them."""
        if len(self.actors) == 1:
            return {"learner": self.actors[0]}
        return {f"learner {rank}": actor for rank, actor in enumerate(self.actors)}

    def join(self) -> None:
        """Connect several learners, once they are set up: over loopback where all are on one machine."""
        if len(self.actors) == 1:
            return
        hosts = self.all("finding the learners", "where")
        if len(set(hosts)) == 1:
            folder = tempfile.mkdtemp(prefix="world-r1-learners-")
            try:
                self.all("connecting the learners", "join", {"file": str(Path(folder) / "store")})
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        else:
            host, port = self.get("connecting the learners", self.actors[0].listen.remote())
            self.all("connecting the learners", "join", {"host": host, "port": port})

    def all(self, what: str, method: str, *arguments: Any) -> list[Any]:
        """Call `method` of every learner, and wait for all; the results in the order of ranks.

        Where one has died, the others fail because it is gone: the death is what is raised.
        """
        calls = [getattr(actor, method).remote(*arguments) for actor in self.actors]
        labels = dict(zip(calls, self.names, strict=True))
        found: dict[ray.ObjectRef, Any] = {}
        while waiting := [call for call in calls if call not in found]:
            ready, _ = ray.wait(waiting, timeout=self.tick)  # in ticks, so that signals are handled
            for call in ready:
                try:
                    found[call] = self.get(self._named(what, labels[call]), call)
                except ClusterError:
                    raise
                except Exception:
                    self._raise_death(what, [other for other in waiting if other != call], labels)
                    raise
        return [found[call] for call in calls]

    def _raise_death(self, what: str, others: Sequence[ray.ObjectRef], labels: Mapping[ray.ObjectRef, str]) -> None:
        deadline = time.monotonic() + ECHO
        left = list(others)
        while left and time.monotonic() < deadline:
            ready, left = ray.wait(left, timeout=self.tick)
            for call in ready:
                try:
                    self.get(self._named(what, labels[call]), call)
                except ClusterError:
                    raise
                except Exception:  # an echo, or an error of its own: the first one is raised
                    continue

    def _named(self, what: str, name: str) -> str:
        return what if len(self.actors) == 1 else f"{what}, {name} of {len(self.actors)}"
