"""Progress of a run for the person watching: a live panel on a terminal, one line a step elsewhere."""

from __future__ import annotations

import statistics
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from world_r1.config import Config

#: Steps whose median duration predicts the rest.
RECENT = 20
#: Seconds of silence after which a log file gets a line about what is going on.
PATIENCE = 20.0


class Display(Protocol):
    """What `record.Record` tells."""

    def step(self, step: int, row: Mapping[str, Any]) -> None:
        """A finished step with its metrics."""

    def text(self, message: str) -> None:
        """A line to keep."""

    def status(self, doing: str) -> None:
        """What is going on now; replaced by the next one."""

    def close(self) -> None:
        """The run is over."""


def make_display(config: Config, done: int = 0, rows: Sequence[Mapping[str, Any]] = ()) -> Display:
    """The display that `record.progress` asks for, `done` steps into the run; `rows` are the metrics of those steps."""
    mode = config.record.progress
    if mode == "never":
        return Silent()
    if mode == "always" or sys.stdout.isatty():
        return Live(config, done, rows)
    return Plain(config, done)


class Silent:
    """Nothing but messages."""

    def step(self, step: int, row: Mapping[str, Any]) -> None:
        return None

    def text(self, message: str) -> None:
        print(message, flush=True)

    def status(self, doing: str) -> None:
        return None

    def close(self) -> None:
        return None


class Clock:
    """Durations of recent steps and the time that is left."""

    def __init__(self, total: int, done: int, max_minutes: float | None, now: float | None = None) -> None:
        self.total, self.done = total, done
        self.begin = self.last = time.monotonic() if now is None else now
        self.deadline = None if max_minutes is None else self.begin + 60 * max_minutes
        self.recent: deque[float] = deque(maxlen=RECENT)

    def tick(self, step: int, now: float | None = None, took: float | None = None) -> float:
        """Note a finished step; returns its seconds, which are `took` where the loop has measured them."""
        now = time.monotonic() if now is None else now
        seconds, self.last, self.done = now - self.last if took is None else took, now, step
        self.recent.append(seconds)
        return seconds

    def left(self, now: float | None = None) -> float | None:
        """Seconds until the last step or the deadline, whichever is first; None before the first step."""
        if not self.recent:
            return None
        now = time.monotonic() if now is None else now
        left = statistics.median(self.recent) * (self.total - self.done)
        return max(0.0, left if self.deadline is None else min(left, self.deadline - now))


class Plain:
    """One line a step, for files and pipes."""

    def __init__(self, config: Config, done: int) -> None:
        self.config = config
        self.clock = Clock(config.steps, done, config.max_minutes)
        self.said = time.monotonic()

    def step(self, step: int, row: Mapping[str, Any]) -> None:
        self.said = time.monotonic()
        seconds = self.clock.tick(step, took=row.get("time/total"))
        split = ", ".join(f"{name} {value:.1f}" for name, value in _split(row).items())
        parts = ", ".join(f"{name} {_number(value)}" for name, value in _under(row, "reward/").items())
        words = [f"step {step}/{self.config.steps}", str(row.get("phase", ""))]
        words += [f"reward {_number(row['reward'])}" + (f" ({parts})" if parts else "")] if "reward" in row else []
        words += [f"{name} {_number(row[name])}" for name in ("kl_nats", "clip_fraction", "grad_norm") if name in row]
        words += [_failures(row), f"{seconds:.1f} s" + (f" ({split})" if split else ""), f"left {_duration(self.clock.left())}"]
        print("  ".join(word for word in words if word), flush=True)

    def text(self, message: str) -> None:
        print(message, flush=True)

    def status(self, doing: str) -> None:
        if time.monotonic() - self.said >= PATIENCE:
            self.said = time.monotonic()
            print(doing, flush=True)

    def close(self) -> None:
        return None


class Live:
    """A panel that stays at the bottom of the terminal: bar, phase, reward parts with sparkline, failures, time split, time left."""

    def __init__(self, config: Config, done: int, rows: Sequence[Mapping[str, Any]] = ()) -> None:
        from rich.console import Console
        from rich.live import Live as RichLive

        self.config = config
        self.clock = Clock(config.steps, done, config.max_minutes)
        self.row: Mapping[str, Any] = rows[-1] if rows else {}
        self.rewards = [float(row["reward"]) for row in rows if isinstance(row.get("reward"), int | float)]
        self.failed = sum(int(row.get("failures") or 0) for row in rows)
        self.doing = "starting"
        self.live = RichLive(get_renderable=self._panel, console=Console(stderr=False), refresh_per_second=2, transient=False)
        self.live.start()

    def step(self, step: int, row: Mapping[str, Any]) -> None:
        self.clock.tick(step, took=row.get("time/total"))
        self.row, self.doing = row, ""
        self.failed += int(row.get("failures") or 0)
        if isinstance(row.get("reward"), int | float):
            self.rewards.append(float(row["reward"]))
        self.live.refresh()

    def text(self, message: str) -> None:
        self.live.console.print(message, markup=False, highlight=False)

    def status(self, doing: str) -> None:
        self.doing = doing

    def close(self) -> None:
        self.doing = ""
        self.live.stop()

    def _panel(self) -> Any:
        from rich.console import Group
        from rich.markup import escape
        from rich.panel import Panel
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        clock, row, now = self.clock, self.row, time.monotonic()
        head = Table.grid(expand=True)
        head.add_column()
        head.add_column(justify="right")
        phase = f"  {row['phase']} phase" if row.get("phase") else ""
        head.add_row(
            f"step [bold]{clock.done}[/]/{clock.total}{phase}",
            f"{_duration(now - clock.begin)} so far, {_duration(clock.left(now))} left",
        )
        body = Table.grid(padding=(0, 2))
        body.add_column(style="dim")
        body.add_column()
        for name, text in self._lines(row):
            body.add_row(name, text if name == "reward" else escape(text))
        return Panel(
            Group(head, ProgressBar(total=max(1, clock.total), completed=clock.done), body), title=escape(self.config.name)
        )

    def _lines(self, row: Mapping[str, Any]) -> list[tuple[str, str]]:
        lines = []
        if "reward" in row:
            lines.append(("reward", f"[bold]{_number(row['reward'])}[/]  {sparkline(self.rewards[-40:])}"))
        if parts := _under(row, "reward/"):
            lines.append(("", "  ".join(f"{name} {_number(value)}" for name, value in parts.items())))
        if numbers := [
            f"{name} {_number(row[name])}"
            for name in ("kl_nats", "beta", "ratio_std", "clip_fraction", "grad_norm", "lr")
            if name in row
        ]:
            lines.append(("update", "  ".join(numbers)))
        if failures := _failures(row):
            lines.append(("failures", f"{failures.removeprefix('failed ')} in this step, {self.failed} in all"))
        split = _split(row)
        if total := sum(split.values()):
            shares = "  ".join(f"{name} {value / total:.0%}" for name, value in split.items())
            lines.append(("time", f"{shares}  of {total:.1f} s a step"))
        if self.doing:
            lines.append(("now", self.doing))
        return lines


def sparkline(values: Sequence[float]) -> str:
    """Values as a row of eight-level bars between their least and largest; "" for fewer than two."""
    if len(values) < 2:
        return ""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    return "".join("▁▂▃▄▅▆▇█"[min(7, int(8 * (value - low) / span))] for value in values)


def _split(row: Mapping[str, Any]) -> dict[str, float]:
    """Seconds of each part of a step."""
    return {name: seconds for name, seconds in _under(row, "time/").items() if name != "total"}


def _under(row: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """Numbers directly under a prefix; deeper ones ("reward/trajectory/rotation") are left to TensorBoard and the report."""
    numbers = {
        key.removeprefix(prefix): value for key, value in row.items() if key.startswith(prefix) and isinstance(value, int | float)
    }
    return {name: value for name, value in numbers.items() if "/" not in name}


def _failures(row: Mapping[str, Any]) -> str:
    if "failures" not in row:
        return ""
    return f"failed {row['failures']:.0f}" + (f"/{row['videos']:.0f}" if "videos" in row else "")


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "-"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
