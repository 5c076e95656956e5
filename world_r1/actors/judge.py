"""The judge actor, and the crew of judges that outlives the death or the hanging of any of them."""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from world_r1.config import RewardsConfig
from world_r1.types import Clip, Prompt, Score, Verdict

log = logging.getLogger(__name__)


class Judge:
    """Runs the rubric on clips; holds no state between calls."""

    def __init__(self, config: RewardsConfig, threads: int = 1) -> None:
        self.config = config
        self.threads = threads
        self.rubric: Any = None

    def setup(self) -> list[str]:
        """Build the rubric; returns the names of its rewards. A judge without a share of a GPU does not see one."""
        if not ray.get_gpu_ids():
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        from world_r1.reward import Rubric

        self.rubric = Rubric(self.config)
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(self.threads)
        if "cv2" in sys.modules:
            sys.modules["cv2"].setNumThreads(self.threads)
        return [entry.key for entry, _ in self.rubric.rewards]

    def pid(self) -> int:
        """Id of this process."""
        return os.getpid()

    def judge(self, clips: Sequence[Clip], start: int, stop: int) -> list[Verdict]:
        """Verdicts on clips[start:stop] of a group."""
        return self.rubric.judge(clips[start:stop])


class Judges:
    """A crew of judges behind one thread-safe call.

    Every call holds one judge for itself and waits for the answer to its own reference, so no answer can reach another caller; verdicts are
    then matched by clip id. A judge that dies is replaced and its clips are tried once more; one that exceeds its time is
    replaced and its clips get no score.
    """

    def __init__(self, config: RewardsConfig, make: Callable[[], Any], patience: float) -> None:
        """`make` starts one judge actor; `patience` bounds the seconds until it answers `setup`."""
        self.config = config
        self.make = make
        self.patience = patience
        self.idle: queue.Queue[Any] = queue.Queue()
        self.crew: list[Any] = []
        self.threads: ThreadPoolExecutor | None = None
        self.closed = threading.Event()
        #: Why no replacement could be started; from then on every call raises it.
        self.broken: Exception | None = None
        self.replaced = 0

    def employ(self, judges: Sequence[Any]) -> None:
        """Take judges that have answered `setup` into service."""
        self.crew = list(judges)
        self.threads = ThreadPoolExecutor(len(judges), thread_name_prefix="judge")
        for judge in judges:
            self.idle.put(judge)

    def score(self, clips: ray.ObjectRef, ids: Sequence[str], prompt: Prompt) -> list[Future[list[Verdict]]]:
        """Start judging a group (`clips` refers to its list of `Clip`), in batches; the futures give verdicts in the order of `ids`."""
        if self.threads is None:
            raise RuntimeError("no judges are employed")
        size = self.config.batch
        return [self.threads.submit(self._score, clips, i, tuple(ids[i : i + size]), prompt) for i in range(0, len(ids), size)]

    def close(self) -> None:
        """End all judges and the threads that wait for them."""
        self.closed.set()
        for judge in self.crew:
            ray.kill(judge)
        if self.threads is not None:
            self.threads.shutdown(wait=True, cancel_futures=True)

    def _score(self, clips: ray.ObjectRef, start: int, ids: tuple[str, ...], prompt: Prompt) -> list[Verdict]:
        limit = self.config.timeout * len(ids)
        reason = ""
        for _ in range(2):
            judge = self._next()
            try:
                verdicts = ray.get(judge.judge.remote(clips, start, start + len(ids)), timeout=limit)
            except GetTimeoutError:
                self._replace(judge, f"no verdict within {limit:g} s (rewards.timeout={self.config.timeout:g} a video)")
                return missing(self.config, ids, prompt, f"no verdict within {limit:g} s")
            except RayTaskError as error:  # the rubric itself raised: another try would raise again
                self.idle.put(judge)
                log.warning("the rubric failed on %s: %s", ", ".join(ids), error.cause)
                return missing(self.config, ids, prompt, f"{type(error.cause).__name__}: {error.cause}")
            except RayError as error:
                reason = f"the judge died: {first_line(error)}"
                self._replace(judge, reason)
            else:
                self.idle.put(judge)
                return matched(verdicts, ids)
        return missing(self.config, ids, prompt, reason)

    def _next(self) -> Any:
        while not self.closed.is_set():
            if self.broken is not None:
                raise self.broken
            try:
                return self.idle.get(timeout=0.5)
            except queue.Empty:
                continue
        raise RuntimeError("the judges were closed")

    def _replace(self, judge: Any, reason: str) -> None:
        if self.closed.is_set():
            raise RuntimeError("the judges were closed")
        log.warning("replacing a judge: %s", reason)
        ray.kill(judge)
        new = self.make()
        self.crew[self.crew.index(judge)] = new
        self.replaced += 1
        try:
            ray.get(new.setup.remote(), timeout=self.patience)
        except RayError as error:
            self.broken = RuntimeError(f"a judge ended ({reason}) and its replacement did not start: {first_line(error)}")
            raise self.broken from error
        self.idle.put(new)


def matched(verdicts: Sequence[Verdict], ids: Sequence[str]) -> list[Verdict]:
    """Verdicts in the order of `ids`, found by clip id; ValueError if they are not exactly those clips' verdicts."""
    found = {verdict.clip: verdict for verdict in verdicts}
    if len(verdicts) != len(ids) or found.keys() != set(ids):
        raise ValueError(f"asked for verdicts on {list(ids)}, got {[verdict.clip for verdict in verdicts]}")
    return [found[name] for name in ids]


def missing(config: RewardsConfig, ids: Sequence[str], prompt: Prompt, reason: str) -> list[Verdict]:
    """Verdicts of clips that nobody could judge: every reward that counts has status "failed" and no value."""
    names = [entry.key for entry in config.rewards if entry.weight > 0 and entry.phase in ("all", prompt.kind)]
    return [Verdict(name, None, tuple(Score(reward, "failed", None, {}, reason) for reward in names)) for name in ids]


def first_line(error: BaseException) -> str:
    """The first line of an error's text, without the traceback that Ray appends."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
