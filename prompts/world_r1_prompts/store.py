"""Finished work on disk. A file appears whole or not at all, and says by its key what it was made from.

Writing goes to a temporary name, is flushed to the disk and renamed, so that a process killed at any instant leaves either no file or
the finished one. A stage's key is a hash of its settings, its code version and the key of what it reads: other settings, other folder.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any


def write(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def key(*parts: Any) -> str:
    """A short name for settings: the same for equal ones."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


class Stage:
    """A folder of numbered blocks. `missing` are still to be made; `put` stores one, `get` reads it."""

    def __init__(self, work: Path, name: str, identity: str, blocks: int, suffix: str) -> None:
        self.folder = work / f"{name}-{identity}"
        self.identity, self.blocks, self.suffix = identity, blocks, suffix

    def path(self, block: int) -> Path:
        return self.folder / f"{block:05d}{self.suffix}"

    @property
    def missing(self) -> list[int]:
        """Blocks that have no finished file."""
        return [block for block in range(self.blocks) if not self.path(block).is_file()]

    def put(self, block: int, content: bytes) -> None:
        write(self.path(block), content)

    def get(self, block: int) -> bytes:
        return self.path(block).read_bytes()
