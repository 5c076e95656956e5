"""One place for a worker in a pool: the thread that serves it, replaces it, and judges its answers."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import ray
from ray.exceptions import GetTimeoutError, ObjectLostError, OutOfMemoryError, RayError, RayTaskError

from world_r1.serving.items import Answer, Crossed, matched
from world_r1.serving.queue import Unit

if TYPE_CHECKING:
    from world_r1.serving.pool import Pool

log = logging.getLogger(__name__)

#: Seconds between looks at whether to go on, and tries to start a worker that dies while it loads.
TICK, STARTS = 0.5, 3
#: Calls that a worker may have at once.
DEPTH = 2
#: Confirmed NaN verdicts from which on NaN is held against the plug-in and costs no worker.
BLAME = 3


class Slot(threading.Thread):
    """Runs until the pool closes, the slot is retired, or no worker can be started."""

    def __init__(self, pool: Pool, actor: Any = None) -> None:
        """`actor` has answered `setup`; None starts one."""
        super().__init__(name="worker", daemon=True)
        self.pool = pool
        self.actor = actor
        self.state: Literal["starting", "idle", "busy", "ended"] = "starting" if actor is None else "idle"
        #: Calls under way, the oldest first: the worker is at the first, the next one waits in its process.
        self.flight: deque[tuple[list[Unit], Any]] = deque()
        self.info: dict[str, Any] = {}
        self.memory = self.gpu_memory = 0.0
        self.served = 0
        self.retired = threading.Event()

    def status(self) -> dict[str, Any]:
        """State, items served, bytes held, and what the worker says of itself."""
        info = {**self.info, "memory": self.memory or self.info.get("memory", 0.0)}
        return {"state": self.state, "served": self.served, "gpu_memory": self.gpu_memory, **info}

    def retire(self) -> None:
        """End after the batch at hand."""
        self.retired.set()

    def end(self) -> None:
        """Kill the worker; the thread notices."""
        if self.actor is not None and ray.is_initialized():
            ray.kill(self.actor)

    @property
    def units(self) -> list[Unit]:
        """What was taken from the queue and has no answer yet."""
        return [unit for units, _ in list(self.flight) for unit in units]

    def run(self) -> None:
        """Serve."""
        try:
            if self.actor is None and not self._start(""):
                return
            while not self.pool.closed.is_set() and (self.flight or not self.retired.is_set()):
                self._fill()
                if self.flight and not self._serve():
                    return
        except Exception as error:  # a defect of ours must not leave callers waiting
            log.exception("a reward worker's thread failed")
            for unit in self.units:
                unit.submission.fail(error)
            self.pool.lost(self, error)
        finally:
            self.state = "ended"
            self.end()

    def _fill(self) -> None:
        """Hand the worker a batch; and the next one too while the queue is long, so that it need not wait for us in between."""
        size = self.pool.config.rewards.batch
        if not self.flight:
            self.state = "idle"
            self._hand(self.pool.queue.take(size, self.pool.config.batch_wait, TICK))
        # Fewer items than fill a batch for everyone are left to workers that have nothing to do.
        if self.flight and not self.retired.is_set() and self.pool.queue.waiting >= size * len(self.pool.slots):
            while len(self.flight) < DEPTH and (units := self.pool.queue.take(size, 0.0, 0.0)):
                self._hand(units)

    def _hand(self, units: list[Unit]) -> None:
        if units:
            self.state = "busy"
            self.flight.append((units, self._ask(units)))

    def _serve(self) -> bool:
        """The oldest call; False if its worker is gone and cannot be replaced."""
        units, call = self.flight[0]
        going_on = self._answer(units, call)
        if self.flight and self.flight[0][0] is units:
            self.flight.popleft()
        return going_on

    def _answer(self, units: list[Unit], call: Any) -> bool:
        """Wait for one call's answer and deal with it."""
        items = [item for unit in units for item in unit.items]
        patience = self.pool.config.rewards.timeout
        limit, cause, reason = patience * len(items), "", ""
        try:
            report = ray.get(call, timeout=limit)
            answers = matched(report.answers, items)
        except GetTimeoutError:
            cause, reason = "hung", f"no verdict within {limit:g} s (rewards.timeout={patience:g} a video)"
        except ObjectLostError as error:  # the sender is gone, or its node; the worker is well
            for unit in units:
                self.pool.fail(unit, f"the videos are gone: {first_line(error)}", "lost")
        except RayTaskError as error:
            return self._raised(units, error)
        except Crossed as error:
            cause, reason = "crossed", str(error)
        except RayError as error:
            cause, reason = ("memory" if isinstance(error, OutOfMemoryError) else "died"), f"the judge died: {first_line(error)}"
        else:
            self.memory, self.gpu_memory = report.memory, report.gpu_memory
            self.served += len(items)
            return self._settle(units, answers)
        if cause:
            self.pool.stats.count(restart=cause)  # before a caller can hear of it
            self.pool.again(units, reason, cause)
            return self._restart(reason, cause)
        return True

    def _ask(self, units: Sequence[Unit]) -> Any:
        """Start the call; every block is handed over once."""
        blocks: dict[int, tuple[int, Any]] = {}
        asks = []
        for item in (item for unit in units for item in unit.items):
            number, _ = blocks.setdefault(id(item.block), (len(blocks), item.block))
            asks.append((item.request, item.id, item.hash, number, item.index))
        return self.actor.judge.remote(asks, *(block for _, block in blocks.values()))

    def _raised(self, units: Sequence[Unit], error: RayTaskError) -> bool:
        """The rubric itself raised. A batch of several units is taken apart; a single one would raise again, unless memory ran out."""
        inner = error.cause
        text = f"{type(inner).__name__}: {inner}"
        memory = isinstance(inner, MemoryError) or type(inner).__name__ == "OutOfMemoryError"
        if memory:
            self.pool.stats.count(restart="memory")
        if memory or len(units) > 1:
            self.pool.again(units, text, "memory" if memory else "raised")
        else:
            self.pool.fail(units[0], text, "raised")
        return self._restart(text, "memory") if memory else True

    def _settle(self, units: Sequence[Unit], answers: Sequence[Answer]) -> bool:
        """Deliver the verdicts; those that cast doubt on the worker are tried again on another one."""
        cause, at = "", 0
        for unit in units:
            mine = answers[at : at + len(unit.items)]
            at += len(unit.items)
            doubts = {answer.trouble for answer in mine} & {"memory", "nan"}
            if doubts and unit.tries == 0:
                blame = doubts == {"nan"} and self.pool.confirmed_nan >= BLAME
                if not cause and not blame:
                    cause = sorted(doubts)[0]
                    self.pool.stats.count(restart=cause)
                unit.doubt = sorted(doubts)[0]
                self.pool.again([unit], f"{unit.doubt}, and the pool was closed", unit.doubt)
                continue
            if unit.doubt == "nan":
                self.pool.confirmed_nan += 1 if "nan" in doubts else -1
            troubles = [answer.trouble for answer in mine]
            failure = next((trouble for trouble in troubles if trouble), "")
            self.pool.deliver(unit, [answer.verdict for answer in mine], failure, sum(map(bool, troubles)))
        limit = self.pool.config.recycle_gib
        if not cause and limit is not None and self.memory > limit * 2**30:
            cause = "recycled"
            self.pool.stats.count(restart=cause)
        return self._restart(f"its process held {self.memory / 2**30:.2g} GiB", cause) if cause else True

    def _restart(self, reason: str, cause: str) -> bool:
        """Another worker in this one's place; False if there is none."""
        if self.pool.closed.is_set():
            return False
        log.warning("replacing a reward worker (%s): %s", cause, reason)
        self.state = "starting"
        self.end()
        waiting = list(self.flight)[1:]  # the worker had not come to these: nothing is held against them
        self.flight.clear()
        self.pool.back([unit for units, _ in waiting for unit in units])
        return self._start(reason)

    def _start(self, reason: str) -> bool:
        """Start a worker and wait until it has loaded; False (and the pool knows) if that fails."""
        error: Exception = RuntimeError("the pool was closed")
        for attempt in range(STARTS):
            if self.pool.closed.wait(attempt * 1.0):
                return False
            try:
                self.actor = self.pool.make()
                self.info = ray.get(self.actor.setup.remote(), timeout=self.pool.config.patience)
            except (RayTaskError, GetTimeoutError) as caught:  # it would be the same again
                error = caught
                break
            except Exception as caught:  # a worker that died, or a Ray that did not answer
                error = caught
                with contextlib.suppress(Exception):
                    self.end()
            else:
                self.memory, self.state = 0.0, "idle"
                self.pool.started()
                return True
        before = f"a judge ended ({reason}) and its replacement" if reason else "a reward worker"
        cause = getattr(error, "cause", None) or error
        waited = f"nothing after {self.pool.config.patience:g} s" if isinstance(error, GetTimeoutError) else first_line(cause)
        self.pool.lost(self, RuntimeError(f"{before} did not start: {waited}"))
        return False


def first_line(error: BaseException) -> str:
    """The first line of an error's text, without the traceback that Ray appends."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
