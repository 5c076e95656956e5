"""A whole run: evaluate, train, evaluate again, report. What the loop is embedded in, none of it specific to an algorithm."""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from world_r1 import checkpoint, comparison, evaluation
from world_r1.config import Config
from world_r1.prompts import PromptStream
from world_r1.record import Record

log = logging.getLogger(__name__)


class Stopped(KeyboardInterrupt):
    """The run ended before its last step on request; the message says where it was saved and how to go on."""


class Stop:
    """Reasons to end early: an interrupt (Ctrl-C, SIGTERM) or the time budget. A context manager, on the main thread.

    The first interrupt asks the run to save and end; a second one ends it at once.
    """

    def __init__(self, minutes: float | None, say: Callable[[str], None]) -> None:
        self.deadline = None if minutes is None else time.monotonic() + 60 * minutes
        self.say = say
        self.interrupted = False
        self._before: dict[int, Any] = {}

    def reason(self) -> str:
        """ "interrupt", "time" or "" for none."""
        if self.interrupted:
            return "interrupt"
        return "time" if self.deadline is not None and time.monotonic() >= self.deadline else ""

    def __enter__(self) -> Stop:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
        self.say("stopping: the state is being saved (once more ends at once)")


@dataclass
class Run:
    """One run in its directory, between start-up and report."""

    config: Config
    cluster: Any
    record: Record
    stop: Stop
    #: Whether evaluations that an earlier part of the run has written still count.
    reuse: bool
    directory: Path = field(init=False)

    def __post_init__(self) -> None:
        self.directory = self.config.directory

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.directory / "checkpoints"

    def train(self, stream: PromptStream, start: int) -> str:
        """The loop from step `start`; returns why it ended early, "" if it did not."""
        from world_r1 import loop, loop_async

        module = loop_async if self.config.cluster.max_staleness else loop
        hooks = loop.Hooks(self.record.step, self._videos, self._evaluate_midway, self.stop.reason)
        self.record.status("training")
        outcome = module.run(self.config, self.cluster, stream, self.checkpoints, start, hooks)
        self.cluster.export(self.directory / "adapter")
        return outcome.reason

    def evaluate(self, folder: str, what: str) -> Any:
        """Held-out evaluation into `folder`, unless an earlier part of this run has done it (of what training does not change)."""
        file = self.directory / folder / ("reference.json" if what == "reference" else "eval.json")
        if self.reuse and what != "average" and file.is_file():
            return json.loads(file.read_text(encoding="utf-8"))
        named = {
            "base": "evaluating the base model",
            "average": "evaluating the trained model",
            "reference": "measuring real renders",
        }[what]
        begin = time.monotonic()
        result = self.cluster.evaluate(self.directory / folder, what, self._counted(named))
        self.record.text(f"{named} took {time.monotonic() - begin:.0f} s")
        return result

    def summarise(self, before: Any, after: Any, anchors: Any) -> None:
        """summary.json and report.html."""
        from world_r1 import report

        settings = self.config.evaluation
        compared = comparison.compare(before, after, reference=anchors, draws=settings.bootstrap, seed=settings.seed)
        self.record.summary(compared)
        self.record.text(f"report: {report.write_report(self.directory)}")

    def _counted(self, doing: str) -> Callable[[int, int], None]:
        return lambda n, total: self.record.status(f"{doing}: {n}/{total} clips")

    def _evaluate_midway(self, step: int) -> None:
        from world_r1.actors.cluster import Interrupted

        every = self.config.evaluation.every
        if every and step % every == 0 and step < self.config.steps:
            with contextlib.suppress(Interrupted):  # the loop asks for the reason to stop next, and saves
                self.cluster.evaluate(self.directory / f"eval_{step:06d}", "average", self._counted(f"evaluating step {step}"))

    def _videos(self, scored: Any) -> None:
        step = scored.step + 1
        if self.record.wants_videos(step):
            totals = [verdict.total for verdict in scored.groups[0].verdicts]
            labels = ["no score" if total is None else f"reward {total:.3f}" for total in totals]
            self.record.videos(step, self.cluster.clips(scored, 0), labels)


def train(config: Config, resume: bool = False) -> Path:
    """Run a configuration from its first (or, with `resume`, its last saved) step to the report; returns the run directory.

    Ctrl-C and SIGTERM save and raise `Stopped`; a spent `max_minutes` saves, evaluates and reports. Raises ValueError for a
    configuration, prompts, model or checkpoint that cannot be used, OSError if the disk is full, ClusterError if Ray or an actor
    failed, TooManyFailures if the rewards did; a checkpoint is then there unless nothing was trained.
    """
    from world_r1.actors.cluster import Cluster, Interrupted

    stream = PromptStream.of(config)
    evaluation.earlier_reference(config)
    saved = checkpoint.latest(config.directory / "checkpoints") if resume else None
    start = int(checkpoint.check(saved, config)["step"]) if saved else 0
    reuse = resume and _same_evaluation(config)
    with Record(config, resume_step=start if resume else None) as record:
        stop = Stop(config.max_minutes, record.text)
        with Cluster(config, stop=lambda: stop.interrupted, say=record.text) as cluster, stop:
            run = Run(config, cluster, record, stop, reuse)
            try:
                _phases(run, stream, saved, start)
            except Interrupted:
                latest = checkpoint.latest(run.checkpoints)
                message = f"stopped; {f'saved {latest}' if latest else 'nothing was trained yet'}; continue with --resume"
                record.text(message)
                raise Stopped(message) from None
    return config.directory


def _phases(run: Run, stream: PromptStream, saved: Path | None, start: int) -> None:
    """Evaluate, restore, train, evaluate, report."""
    from world_r1.actors.cluster import Interrupted

    before = run.evaluate("eval_before", "base")
    anchors = None
    if run.config.evaluation.reference:
        anchors = evaluation.take_reference(run.config, run.directory / "reference") or run.evaluate("reference", "reference")
    if saved:
        run.cluster.restore(saved)
        run.record.text(f"resumed from {saved}")
    if run.train(stream, start) == "interrupt":
        raise Interrupted
    run.summarise(before, run.evaluate("eval_after", "average"), anchors)


def _same_evaluation(config: Config) -> bool:
    """Whether the run in the directory was evaluated on the same prompts in the same way; raises ValueError if it is another run."""
    path = config.directory / "config.json"
    if not path.is_file():
        return False
    old, new = json.loads(path.read_text(encoding="utf-8")), json.loads(config.model_dump_json())
    checkpoint.refuse_other_config(old, config, str(config.directory))
    return old["evaluation"] == new["evaluation"] and old["prompts"]["test"] == new["prompts"]["test"]
