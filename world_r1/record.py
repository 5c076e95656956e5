"""The record of a run: `runs/<name>/` with config.json, metrics.jsonl, TensorBoard events, samples/ and summary.json.

metrics.jsonl is the truth, one JSON object a loop step, flushed line by line; TensorBoard and wandb are copies for looking at. A row's
keys are flat. The names that the display knows: "phase", "reward" (mean total), "reward/<name>" (mean of one reward), "videos" and
"failures" (counts of the step), "time/rollout", "time/reward", "time/update" (seconds); any other number is recorded too.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from world_r1.config import Config, ConfigError
from world_r1.display import Display, make_display
from world_r1.types import Clip

log = logging.getLogger(__name__)


class Record:
    """Writer of one run directory and its progress display. A context manager; `close` may be called twice.

    Example: `with Record(config) as record: record.step(1, {"phase": "rigid", "reward": 0.41, "reward/trajectory": 0.3})`
    """

    def __init__(self, config: Config, resume_step: int | None = None) -> None:
        """Open `config.directory`. `resume_step` is the number of loop steps that the loaded checkpoint has behind it: rows of later steps,
        which will be taken again, are dropped. None starts a new record.

        Raises ConfigError if a new run would overwrite an old one or wandb is wanted and not installed, OSError if nothing can be written.
        """
        self.config = config
        self.directory = config.directory
        rows = [] if resume_step is None else [row for row in read_metrics(self.directory) if row["step"] <= resume_step]
        if resume_step is None and read_metrics(self.directory):
            raise ConfigError(
                f"{self.directory} already holds a run; continue it with --resume, give this one another name (name=...), "
                "or remove the folder"
            )
        with _writable(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            write_json(self.directory / "config.json", json.loads(config.model_dump_json()))
            _replace(self.directory / "metrics.jsonl", "".join(_line(row) for row in rows))
            self._file = open(self.directory / "metrics.jsonl", "ab", buffering=0)  # noqa: SIM115 (lives as long as the run)
        done = resume_step or 0
        self._mirrors: list[Mirror] = list(_mirrors(config, done))
        self.display: Display = make_display(config, done, rows)

    def step(self, step: int, row: Mapping[str, Any]) -> None:
        """Record the metrics of a loop step; `step` counts finished steps, so that the first one is 1.

        A number that is not finite is written as null. Raises OSError, with what to do, if the disk is full; earlier rows stay whole.
        """
        clean = {"step": int(step), "time": round(time.time(), 3), **{key: _plain(key, value) for key, value in row.items()}}
        self._append(_line(clean).encode())
        numbers = {key: float(v) for key, v in clean.items() if isinstance(v, int | float) and key not in ("step", "time")}
        for mirror in list(self._mirrors):
            try:
                mirror.add(step, numbers)
            except Exception as error:  # a broken copy must not end the run; metrics.jsonl has everything
                log.warning("%s stopped recording: %s: %s", type(mirror).__name__, type(error).__name__, error)
                self._mirrors.remove(mirror)
        self.display.step(step, clean)

    def text(self, message: str) -> None:
        """A line for the reader: above the display on a terminal, as it is elsewhere."""
        self.display.text(message)

    def status(self, doing: str) -> None:
        """What the run is doing at the moment; on a terminal always shown, elsewhere now and then."""
        self.display.status(doing)

    def wants_videos(self, step: int) -> bool:
        """Whether `record.video_every` asks for the videos of this step."""
        return self.config.record.video_every > 0 and step % self.config.record.video_every == 0

    def videos(self, step: int, clips: Sequence[Clip], labels: Sequence[str] = ()) -> Path:
        """Write clips as MP4 with one contact sheet to `samples/step-NNNNNN/`; returns that folder. `labels` has one line a clip."""
        from world_r1.video import contact_sheet, write_mp4, write_png

        folder = self.directory / "samples" / f"step-{step:06d}"
        with _writable(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for clip in clips:
                write_mp4(folder / f"{clip.id}.mp4", clip.video, clip.fps)
            names = list(labels) or [clip.id for clip in clips]
            write_png(folder / "sheet.png", contact_sheet([clip.video for clip in clips], labels=names))
            lines = [
                json.dumps({"id": clip.id, "prompt": clip.prompt.text, "label": name})
                for clip, name in zip(clips, names, strict=True)
            ]
            _replace(folder / "prompts.jsonl", "\n".join(lines) + "\n")
        return folder

    def summary(self, content: Mapping[str, Any]) -> Path:
        """Write `summary.json`, whole or not at all."""
        path = self.directory / "summary.json"
        with _writable(path):
            write_json(path, content)
        return path

    def close(self) -> None:
        """Stop the display and flush every writer."""
        self.display.close()
        for mirror in self._mirrors:
            try:
                mirror.close()
            except Exception as error:  # as in `step`
                log.warning("%s did not close: %s: %s", type(mirror).__name__, type(error).__name__, error)
        self._mirrors = []
        self._file.close()

    def __enter__(self) -> Record:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def _append(self, line: bytes) -> None:
        """One line, whole or not at all: a short write is taken back."""
        path = self.directory / "metrics.jsonl"
        with _writable(path):
            size = os.fstat(self._file.fileno()).st_size
            try:
                if self._file.write(line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                os.ftruncate(self._file.fileno(), size)
                raise


class Mirror(ABC):
    """A second place that numbers go to."""

    @abstractmethod
    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """Record finite numbers of one step."""

    @abstractmethod
    def close(self) -> None:
        """Flush and let go."""


class TensorBoard(Mirror):
    """Event files in `events/`; on resume, later steps are hidden with TensorBoard's own purge mark."""

    def __init__(self, config: Config, done: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(config.directory / "events"), purge_step=done + 1 if done else None)

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        for key, value in numbers.items():
            self.writer.add_scalar(key, value, step)

    def close(self) -> None:
        self.writer.close()


class Wandb(Mirror):
    """One wandb run, named and identified by the run's name, so that a resumed run goes on in it."""

    def __init__(self, config: Config, done: int) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ConfigError(
                "record.wandb needs wandb; install it with: pip install 'world-r1[wandb]', or set record.wandb=false"
            ) from error
        settings = {
            "project": config.record.wandb_project,
            "name": config.name,
            "dir": str(config.directory),
            "config": config.model_dump(),
        }
        self.run = wandb.init(**settings, id=config.name if done else None, resume="allow" if done else None)

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        self.run.log(dict(numbers), step=step)

    def close(self) -> None:
        self.run.finish()


def _mirrors(config: Config, done: int) -> list[Mirror]:
    wanted: list[Mirror] = []
    if config.record.wandb:  # first: it can refuse, and nothing is open yet
        wanted.append(Wandb(config, done))
    if config.record.tensorboard:
        wanted.append(TensorBoard(config, done))
    return wanted


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    """Rows of `metrics.jsonl` in `directory`, [] without one. A last line cut short by a killed writer is left out.

    Raises ValueError for any other line that is not a JSON object with a step.
    """
    path = directory / "metrics.jsonl"
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines[:-1], 1):  # what follows the last newline is empty or cut short
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or not isinstance(row.get("step"), int):
                raise ValueError("a row is a JSON object with an integer step")
        except ValueError as error:
            raise ValueError(f"{path}:{number} is damaged ({error}); remove that line") from error
        rows.append(row)
    return rows


def write_json(path: Path, content: Any) -> None:
    """Write JSON whole or not at all: to a file beside it, synced and renamed. Raises OSError, and ValueError for a NaN."""
    _replace(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def _replace(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(draft, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"


def _plain(key: str, value: Any) -> Any:
    """A JSON value; numpy and torch scalars become numbers, a number that is not finite becomes null."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, int):
        return value
    raise TypeError(f"metric {key!r} must be a number, a string or None, got {type(value).__name__}")


class _writable:
    """Turns an OSError inside into one that says what could not be written and what to do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if isinstance(error, OSError):
            cause = os.strerror(error.errno) if error.errno else str(error)
            raise OSError(
                error.errno or 0,
                f"cannot write {self.path}: {cause}; make room or set runs= to another disk, then continue with --resume",
            ) from error
