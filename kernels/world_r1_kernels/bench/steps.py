"""Steps of a measurement: each is printed with its time, may fail without stopping the rest, and is on disk when it is done."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


class Steps:
    """Runs steps until the time is up and keeps the result file current.

    `result["failed"]` holds what did not work, by step, with its message; `result["skipped"]` what the time did not allow.
    """

    def __init__(self, path: Path, result: dict[str, Any], seconds: float | None, say: Callable[[str], None]) -> None:
        self.path = path
        self.result = result
        self.begin = time.monotonic()
        self.seconds = seconds
        self._say = say
        result.setdefault("failed", {})
        result.setdefault("skipped", [])
        path.parent.mkdir(parents=True, exist_ok=True)

    @property
    def left(self) -> float:
        """Seconds until the limit; infinite without one."""
        return float("inf") if self.seconds is None else self.seconds - (time.monotonic() - self.begin)

    def say(self, text: str) -> None:
        """Print with the seconds since the start."""
        self._say(f"[{time.monotonic() - self.begin:6.1f} s] {text}")

    def save(self) -> None:
        """Write the result as it stands."""
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self.result, indent=1) + "\n", encoding="utf-8")
        partial.replace(self.path)

    def step(self, name: str, call: Callable[[], Any], needs: float = 0.0) -> Any:
        """What `call` returns; None if it failed or if fewer than `needs` seconds are left."""
        if self.left < needs:
            self.result["skipped"].append(name)
            self.say(f"{name}: skipped, {self.left:.0f} s left of {self.seconds:.0f}")
            return None
        try:
            value = call()
        except Exception as error:  # one baseline or shape that cannot run here is a finding, not the end of the measurement
            message = f"{type(error).__name__}: {error}".strip()
            self.result["failed"][name] = message[:2000]
            self.say(f"{name}: failed: {message.splitlines()[0][:300]}")
            value = None
            self.save()  # first: after an illegal instruction nothing works on the device any more, this included
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        self.save()
        return value
