"""A pool of workers behind a queue: batches, time-outs, replacement, second tries, scaling.

Every worker has a thread of its own here, which hands it one batch at a time and waits for the answer to its own reference; answers are
then matched by request, clip and content, so none can reach another caller. A worker that dies, hangs, runs out of memory or gives NaN is
replaced; its items are tried once more, each unit by itself, and then fail: a missing value, never a number.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import ray

from world_r1.serving.config import PoolConfig
from world_r1.serving.items import Busy, Item, missing
from world_r1.serving.queue import Submission, Unit, UnitQueue
from world_r1.serving.slot import Slot
from world_r1.serving.stats import Stats
from world_r1.serving.worker import Worker
from world_r1.types import Verdict

log = logging.getLogger(__name__)

#: Seconds between looks at the length of the queue.
TICK = 0.25
#: Seconds until a lost worker is tried for again: first, and at most (doubled each time).
PAUSE, LONGEST_PAUSE = 1.0, 60.0


class Closed(RuntimeError):
    """The pool was shut down while the caller waited."""


def start_worker(config: PoolConfig) -> Any:
    """One worker actor with the pool's share of the cluster; it has not loaded anything yet."""
    options: dict[str, Any] = {"num_cpus": config.cpus, "num_gpus": config.gpus}
    if config.memory_gib is not None:
        options["memory"] = int(config.memory_gib * 2**30)
    if config.resources:
        options["resources"] = dict(config.resources)
    if config.labels:
        options["label_selector"] = dict(config.labels)
    if config.runtime_env:
        options["runtime_env"] = dict(config.runtime_env)
    return ray.remote(Worker).options(**options).remote(config.rewards, config.threads)


class Pool:
    """Thread-safe. `start` or `employ` puts workers into service, `close` ends them."""

    def __init__(self, config: PoolConfig, make: Callable[[], Any] | None = None) -> None:
        """`make` starts one worker actor; None: as `config` says."""
        self.config = config
        self.make = make or (lambda: start_worker(config))
        self.queue = UnitQueue()
        self.stats = Stats()
        self.slots: list[Slot] = []
        self.lock = threading.RLock()
        self.closed = threading.Event()
        #: Why there are no workers any more; from then on every caller gets it.
        self.broken: Exception | None = None
        #: NaN verdicts that a fresh worker confirmed, less those that it did not: then the plug-in is to blame, and no worker.
        self.confirmed_nan = 0
        #: When a lost worker may be tried for again, and how long the next pause is.
        self.again_at, self.pause = 0.0, PAUSE
        self._tender = threading.Thread(target=self._tend, name="pool", daemon=True)

    # For callers.

    def submit(self, items: Sequence[Item], *, together: bool = False) -> Future[list[Verdict]]:
        """Queue items; the future gives their verdicts in order. With `together` they are judged in one call, whatever their number
        (so that the numbers do not depend on who else is served)."""
        return self._enter(items, together, None)

    def offer(self, items: Sequence[Item], *, together: bool = False) -> Future[list[Verdict]]:
        """`submit` with back-pressure: raises `Busy` if the queue is full (an empty one takes anything)."""
        return self._enter(items, together, self.config.queue)

    def _enter(self, items: Sequence[Item], together: bool, limit: int | None) -> Future[list[Verdict]]:
        submission = Submission(items)
        units = [Unit(submission, items, True)] if together else [Unit(submission, [item], False) for item in items]
        if not items:
            submission.future.set_result([])
        elif self.broken is not None or self.closed.is_set():
            submission.fail(self.broken or Closed("the reward workers were shut down"))
        elif not self.queue.put(units, limit if self.queue.waiting else None):
            self.stats.count(refused=len(items))
            rate = self.stats.summary()["rate"]
            after = min(10.0, max(0.05, self.queue.waiting / 4 / rate if rate > 0 else 1.0))
            raise Busy(f"{self.queue.waiting} items wait already (queue={self.config.queue}); try again in {after:.2g} s", after)
        elif self.queue.closed:  # closed between the look and the entry
            submission.fail(self.broken or Closed("the reward workers were shut down"))
        return submission.future

    def status(self) -> dict[str, Any]:
        """Replicas, queue, figures of `Stats.summary`, memory and versions: plain values, for tables and JSON."""
        with self.lock:
            workers = [slot.status() for slot in self.slots]
        return {
            "replicas": {
                "ready": sum(worker["state"] in ("idle", "busy") for worker in workers),
                "starting": sum(worker["state"] == "starting" for worker in workers),
                "min": self.config.replicas.min,
                "max": self.config.replicas.max,
            },
            "queue": self.queue.waiting,
            **self.stats.summary(),
            "error": str(self.broken or ""),
            "workers": workers,
        }

    def ready(self, timeout: float) -> None:
        """Wait until `replicas.min` workers serve; raises what broke the pool, or TimeoutError."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if self.broken is not None:
                raise self.broken
            if self.status()["replicas"]["ready"] >= self.config.replicas.min:
                return
            time.sleep(0.05)
        raise TimeoutError(f"no {self.config.replicas.min} reward workers after {timeout:g} s: {self.status()['workers']}")

    # Workers.

    def start(self) -> None:
        """Start `replicas.min` workers; returns at once."""
        self._open([None] * self.config.replicas.min)

    def employ(self, actors: Sequence[Any]) -> None:
        """Take workers that have answered `setup` into service."""
        self._open(actors)

    def close(self) -> None:
        """End all workers and threads; what was still waited for raises `Closed`."""
        self.closed.set()
        self._fail_all(Closed("the reward workers were shut down"))
        with self.lock:
            slots = list(self.slots)
        for slot in slots:
            slot.end()
        for thread in [*slots, self._tender]:
            if thread.is_alive() and thread is not threading.current_thread():
                thread.join(30.0)

    def _open(self, actors: Sequence[Any]) -> None:
        with self.lock:
            for actor in actors:
                self._add(actor)
        self._tender.start()

    def _add(self, actor: Any = None) -> None:
        slot = Slot(self, actor)
        self.slots.append(slot)
        slot.start()

    # What slots report.

    def again(self, units: Sequence[Unit], reason: str, cause: str) -> None:
        """Put units back for their second try, or fail those that had it."""
        for unit in units:
            unit.tries += 1
            if unit.tries == 1 and not self.closed.is_set() and self.broken is None:
                self.stats.count(retried=len(unit.items))
                self.back([unit])
            else:
                self.fail(unit, reason, cause)

    def back(self, units: Sequence[Unit]) -> None:
        """Put units back that no worker has looked at."""
        self.queue.put(units, front=True)
        if self.queue.closed:
            for unit in units:
                unit.submission.fail(self.broken or Closed("the reward workers were shut down"))

    def fail(self, unit: Unit, reason: str, cause: str) -> None:
        """Deliver missing values."""
        if not self.closed.is_set():  # then nobody waits for it, and what ended the run is the news
            log.warning("no verdict on %s: %s", ", ".join(item.id for item in unit.items), reason)
        self.deliver(
            unit, [missing(self.config.rewards, item.id, item.kind, reason) for item in unit.items], cause, len(unit.items)
        )

    def deliver(self, unit: Unit, verdicts: Sequence[Verdict], failure: str = "", failed: int = 0) -> None:
        """Hand verdicts to their caller; `failed` of them count as failures, for the cause `failure`."""
        self.stats.delivered([time.monotonic() - unit.since] * len(unit.items), failure, failed)
        unit.submission.deliver(unit.items, verdicts)

    def started(self) -> None:
        """A slot has a worker: the next loss is waited out briefly again."""
        self.pause = PAUSE

    def lost(self, slot: Slot, error: Exception) -> None:
        """A slot could not start its worker and has ended. Without any other the pool is broken: everyone who waits is told why."""
        with self.lock:
            self.slots = [other for other in self.slots if other is not slot]
            self.again_at = time.monotonic() + self.pause
            self.pause = min(LONGEST_PAUSE, 2 * self.pause)
            if not self.slots and not self.closed.is_set():
                self.broken = error
                self._fail_all(error)
            else:
                log.warning("%s; %d workers are left", error, len(self.slots))

    def _fail_all(self, error: Exception) -> None:
        for unit in self.queue.close():
            unit.submission.fail(error)
        with self.lock:
            for slot in self.slots:
                for unit in slot.units:
                    unit.submission.fail(error)

    # Scaling.

    def _tend(self) -> None:
        """Keep the number of workers between min and max, by the length of the queue."""
        full = empty = None
        while not self.closed.wait(TICK) and self.broken is None:
            replicas, now = self.config.replicas, time.monotonic()
            with self.lock:
                count, waiting = len(self.slots), self.queue.waiting
                full = (full or now) if waiting > replicas.queue * count else None
                empty = (empty or now) if not waiting and any(slot.state == "idle" for slot in self.slots) else None
                if count < replicas.min:
                    wanted = replicas.min
                elif full is not None and now - full >= replicas.up_after:
                    wanted, full = min(replicas.max, math.ceil(waiting / replicas.queue)), None
                elif empty is not None and now - empty >= replicas.down_after and count > replicas.min:
                    self._retire()
                    empty = None
                    continue
                else:
                    continue
                for _ in range(wanted - count if now >= self.again_at else 0):
                    self._add()

    def _retire(self) -> None:
        """End one worker that has nothing to do."""
        slot = next(slot for slot in reversed(self.slots) if slot.state == "idle")
        self.slots.remove(slot)
        slot.retire()
