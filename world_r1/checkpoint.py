"""Checkpoints: everything that a resumed run needs, in safetensors and JSON, complete or absent.

A checkpoint is a folder `step-000040` with `state.json`, `config.json` and one safetensors file a section. It is written beside its final
place, synced to disk and renamed, so that a folder with that name is complete whenever the writer dies. There is no generator
state in it: all randomness follows from (run seed, step, prompt, sample).
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import world_r1
from world_r1.config import Config

FORMAT = 1
#: Keys in which a resumed run may differ: where it writes, how long it runs, what it reports, and on how many processes.
FREE = (
    "name",
    "runs",
    "steps",
    "save_every",
    "keep",
    "max_minutes",
    "evaluation",
    "record",
    "cluster",
    "rewards.timeout",
    "rewards.batch",
    "rewards.max_failure_rate",
    "rewards.pools",
    "speed.checkpoint",
    "speed.text_encoder",
    "speed.vae_decode",
    "speed.vae_chunk",
    "speed.fsdp",
    "speed.sequence_parallel",
)
#: Exceptions to `FREE`, because they change what is computed.
BOUND = ("cluster.max_staleness", "cluster.sample_batch")


@dataclass(frozen=True)
class Snapshot:
    """State after `step` loop steps: sections of named tensors and numbers.

    Example: `Snapshot(step=40, sections={"trained": {"blocks.0...": <32x320>}, "algorithm": {"beta": 0.31}, ...})`
    """

    step: int
    #: Section -> name -> tensor, array or JSON number.
    sections: Mapping[str, Mapping[str, Any]]


def save(directory: Path, snapshot: Snapshot, config: Config, keep: int | None = None) -> Path:
    """Write `directory/step-NNNNNN` and delete all but the `keep` newest (null: `config.keep`); returns its path.

    Raises OSError if it cannot be written (disk full, no permission); earlier checkpoints are then untouched.
    """
    final = directory / f"step-{snapshot.step:06d}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _sweep(directory)
        draft = Path(tempfile.mkdtemp(prefix=f".draft-{os.getpid()}-", dir=directory))
    except OSError as error:
        raise _unwritable(final, error) from error
    try:
        _write(draft, snapshot, config)
        if final.exists():
            os.rename(final, Path(tempfile.mkdtemp(prefix=f".draft-{os.getpid()}-old-", dir=directory)) / "old")
        os.rename(draft, final)
        _sync(directory)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise _unwritable(final, error) from error
    _sweep(directory, own=True)
    for old in _complete(directory)[: -(keep or config.keep)]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def latest(directory: Path) -> Path | None:
    """The newest complete checkpoint in `directory`, or None."""
    found = _complete(directory)
    return found[-1] if found else None


def check(path: Path, config: Config) -> dict[str, Any]:
    """`state.json` of a checkpoint that this configuration may resume from; reads no tensors. Raises as `load` does."""
    state = _read_json(path / "state.json")
    if state.get("format") != FORMAT:
        raise ValueError(
            f"{path} has checkpoint format {state.get('format')}, this version reads {FORMAT}; use the version that wrote it"
        )
    refuse_other_config(_read_json(path / "config.json"), config, str(path))
    return state


def load(path: Path, config: Config) -> Snapshot:
    """Read a checkpoint folder (tensors on the CPU).

    Raises ValueError if a file is unreadable, the format is another, or the run was configured differently; the message names the first key
    that differs.
    """
    state = check(path, config)
    sections: dict[str, dict[str, Any]] = {}
    for section, numbers in state["sections"].items():
        file = path / f"{section}.safetensors"
        try:
            sections[section] = {**numbers, **(load_file(file) if section in state["tensors"] else {})}
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{file} cannot be read ({error}); delete {path} to resume from the checkpoint before it") from error
    return Snapshot(int(state["step"]), sections)


def refuse_other_config(saved: Mapping[str, Any], config: Config, where: str) -> None:
    """ValueError naming the first key in which a saved configuration and this one differ, `FREE` keys aside."""
    old, new = _flat(saved), _flat(json.loads(config.model_dump_json()))
    defaults = _flat(json.loads(Config().model_dump_json()))
    for key in sorted(old.keys() | new.keys()):
        if key not in old and new[key] == defaults.get(key):
            continue  # a key that is younger than the checkpoint, at the value that it did not have to say
        if old.get(key) != new.get(key) and (_under(key, BOUND) or not _under(key, FREE)):
            raise ValueError(
                f"{where} was written by another configuration: {key} was {old.get(key)!r} and is now {new.get(key)!r}; "
                "set it back, or give the new run another name"
            )


def _under(key: str, prefixes: tuple[str, ...]) -> bool:
    return any(key == prefix or key.startswith(prefix + ".") for prefix in prefixes)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys -> leaves; lists are leaves."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return flat


def _write(draft: Path, snapshot: Snapshot, config: Config) -> None:
    tensors = {name: {k: _tensor(v) for k, v in section.items() if _is_array(v)} for name, section in snapshot.sections.items()}
    numbers = {name: {k: v for k, v in section.items() if not _is_array(v)} for name, section in snapshot.sections.items()}
    for name, content in tensors.items():
        if content:
            save_file(content, draft / f"{name}.safetensors")
    state = {
        "format": FORMAT,
        "step": snapshot.step,
        "versions": {"world_r1": world_r1.__version__, "torch": torch.__version__},
        "sections": numbers,
        "tensors": [name for name, content in tensors.items() if content],
    }
    (draft / "state.json").write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
    (draft / "config.json").write_text(config.model_dump_json(indent=1) + "\n", encoding="utf-8")
    for file in draft.iterdir():
        _sync(file)
    _sync(draft)


def _is_array(value: Any) -> bool:
    return isinstance(value, torch.Tensor | np.ndarray)


def _tensor(value: torch.Tensor | np.ndarray) -> torch.Tensor:
    """On the CPU, contiguous and with its own storage (safetensors refuses shared memory)."""
    tensor = torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value.detach().cpu()
    return tensor.contiguous().clone()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _complete(directory: Path) -> list[Path]:
    return sorted(path for path in directory.glob("step-*") if (path / "state.json").is_file()) if directory.is_dir() else []


def _sweep(directory: Path, *, own: bool = False) -> None:
    """Delete what dead writers left behind; with `own`, this process's leftovers too."""
    for draft in directory.glob(".draft-*"):
        pid = int(draft.name.split("-")[1])
        if (own and pid == os.getpid()) or not Path(f"/proc/{pid}").exists():
            shutil.rmtree(draft, ignore_errors=True)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); delete {path.parent} to resume from the checkpoint before it"
        ) from error
    if not isinstance(tree, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(tree).__name__}")
    return tree


def _unwritable(path: Path, error: Exception) -> OSError:
    number = getattr(error, "errno", None)
    return OSError(
        number or 0, f"cannot write the checkpoint {path}: {error}; earlier checkpoints are intact, free space and use --resume"
    )
