"""Answers by the content of the question, so that no picture is paid for twice."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any


def key_of(*content: bytes | str) -> str:
    """SHA-256 over the parts, each with its length before it, so that no two splits of the same bytes agree."""
    digest = hashlib.sha256()
    for part in content:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


class Cache:
    """JSON objects by key: the `entries` most recently used ones in memory, all of them in `folder` if there is one.

    Failures are not kept. Callers that ask for the same key at the same time share one computation. 0 entries switches it off.
    """

    def __init__(self, entries: int = 4096, folder: str | None = None) -> None:
        if entries < 0:
            raise ValueError(f"a judge's cache holds 0 or more entries, got {entries}")
        self.entries, self.folder = entries, Path(folder) if folder and entries else None
        if self.folder:
            self.folder.mkdir(parents=True, exist_ok=True)
        self.hits = 0
        self._known: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._busy: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def get(self, key: str, make: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], bool]:
        """(value, whether it was known); `make` runs if it was not, and its exception goes through."""
        if not self.entries:
            return make(), False
        with self._lock:
            turn = self._busy.setdefault(key, threading.Lock())
        with turn:
            value = self._find(key)
            known = value is not None
            try:
                if value is None:
                    value = make()
                    self._keep(key, value)
                return value, known
            finally:
                with self._lock:
                    self._busy.pop(key, None)
                    self.hits += known

    def _find(self, key: str) -> dict[str, Any] | None:
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
        if self.folder:
            try:
                value = json.loads((self.folder / f"{key}.json").read_text(encoding="utf-8"))
            except (OSError, ValueError):  # not there, or damaged: asking again mends it
                return None
            if isinstance(value, dict):
                self._remember(key, value)
                return value
        return None

    def _keep(self, key: str, value: dict[str, Any]) -> None:
        self._remember(key, value)
        if self.folder:
            descriptor, partial = tempfile.mkstemp(dir=self.folder, suffix=".partial")
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(value, file)
            os.replace(partial, self.folder / f"{key}.json")  # a reader sees the whole file or none

    def _remember(self, key: str, value: dict[str, Any]) -> None:
        with self._lock:
            self._known[key] = value
            self._known.move_to_end(key)
            while len(self._known) > self.entries:
                self._known.popitem(last=False)
