"""Checksums of the shipped weights: `SHA256SUMS` beside them, in the format of sha256sum."""

from __future__ import annotations

import hashlib
from pathlib import Path

NAME = "SHA256SUMS"


def write(folder: Path) -> Path:
    """Write the checksums of every file under `folder`, sorted by path; returns the manifest."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != NAME)
    manifest = folder / NAME
    manifest.write_text("".join(f"{digest(path)}  {path.relative_to(folder).as_posix()}\n" for path in files), encoding="utf-8")
    return manifest


def verify(folder: Path) -> list[str]:
    """What is wrong, one line a file; [] if every listed file is there and unchanged. Raises OSError without a manifest."""
    problems = []
    for line in (folder / NAME).read_text(encoding="utf-8").splitlines():
        expected, _, name = line.partition("  ")
        path = folder / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif digest(path) != expected:
            problems.append(f"{name} is damaged: its checksum is not the one in {NAME}")
    return problems


def digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":  # after the shipped weights were replaced by hand
    from world_r1.blockworld import weights_path

    print(write(weights_path()))
