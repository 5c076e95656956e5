"""Units of work in the order of their arrival, taken in batches that are full or have waited long enough."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future

from world_r1.serving.items import Item
from world_r1.types import Verdict


class Submission:
    """What one caller handed in; its future gives the verdicts in the order of the items, or the error that broke the pool."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = tuple(items)
        self.future: Future[list[Verdict]] = Future()
        self._verdicts: dict[str, Verdict] = {}
        self._lock = threading.Lock()

    def deliver(self, items: Sequence[Item], verdicts: Sequence[Verdict]) -> None:
        """Take in the verdicts of some of the items; the last ones complete the future."""
        with self._lock:
            self._verdicts.update((item.request, verdict) for item, verdict in zip(items, verdicts, strict=True))
            if len(self._verdicts) == len(self.items) and not self.future.done():
                self.future.set_result([self._verdicts[item.request] for item in self.items])

    def fail(self, error: Exception) -> None:
        """Give up on all of it."""
        with self._lock:
            if not self.future.done():
                self.future.set_exception(error)


class Unit:
    """Items that are judged in one call: those that the caller wants together, or a single one. Tried at most twice."""

    def __init__(self, submission: Submission, items: Sequence[Item], together: bool) -> None:
        self.submission = submission
        self.items = tuple(items)
        self.together = together
        self.tries = 0
        #: Why the first try's answer was not believed: "nan", "memory" or "".
        self.doubt = ""
        self.since = time.monotonic()

    @property
    def alone(self) -> bool:
        """Whether it must not share a call: the caller's wish, or a second try (whose worker's fate is then its own doing)."""
        return self.together or self.tries > 0


class UnitQueue:
    """Thread-safe; `waiting` counts items."""

    def __init__(self) -> None:
        self.units: deque[Unit] = deque()
        self.waiting = 0
        self.closed = False
        self._changed = threading.Condition()

    def put(self, units: Sequence[Unit], limit: int | None = None, *, front: bool = False) -> bool:
        """Append all units, or none (and return False) if more than `limit` items would then wait."""
        count = sum(len(unit.items) for unit in units)
        with self._changed:
            if limit is not None and self.waiting + count > limit:
                return False
            if front:
                self.units.extendleft(reversed(units))
            else:
                self.units.extend(units)
            self.waiting += count
            self._changed.notify_all()
        return True

    def take(self, size: int, wait: float, timeout: float) -> list[Unit]:
        """The next batch, of at most `size` items unless one unit has more: [] after `timeout` seconds without any, or when closed.

        A batch that is not full waits until `wait` seconds after its first unit's arrival.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self.units or self.closed, timeout) or self.closed:
                return []
            batch = [self._pop()]
            while not batch[0].alone and len(batch) < size and not self.closed:
                rest = batch[0].since + wait - time.monotonic()
                if self.units and not self.units[0].alone:
                    batch.append(self._pop())
                elif self.units or rest <= 0 or not self._changed.wait(rest):
                    break
            return batch

    def close(self) -> list[Unit]:
        """Let nobody take any more; returns what was left."""
        with self._changed:
            self.closed = True
            left = list(self.units)
            self.units.clear()
            self.waiting = 0
            self._changed.notify_all()
            return left

    def _pop(self) -> Unit:
        unit = self.units.popleft()
        self.waiting -= len(unit.items)
        return unit
