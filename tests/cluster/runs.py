"""A run of the loop without a driver around it, and what its checkpoints hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from world_r1 import loop, loop_async
from world_r1.actors.cluster import Cluster
from world_r1.config import Config
from world_r1.prompts import PromptStream


def take(config: Config, cluster: Cluster, folder: Path, start: int = 0) -> dict[int, dict[str, Any]]:
    """Run the loop; rows by finished steps, without what a clock says."""
    rows: dict[int, dict[str, Any]] = {}
    hooks = loop.Hooks(rows.__setitem__, lambda scored: None, lambda step: None, lambda: "")
    run = loop_async.run if config.cluster.max_staleness else loop.run
    run(config, cluster, PromptStream.of(config), folder, start, hooks)
    return {step: {k: v for k, v in row.items() if not k.startswith("time/")} for step, row in rows.items()}


def rewards(rows: dict[int, dict[str, Any]]) -> list[float]:
    """Of the steps, in their order."""
    return [row["reward"] for _, row in sorted(rows.items())]


def tensors(folder: Path, step: int) -> dict[str, torch.Tensor]:
    """Everything that a checkpoint holds, by "section/name"."""
    files = sorted((folder / f"step-{step:06d}").glob("*.safetensors"))
    return {f"{file.stem}/{name}": value for file in files for name, value in load_file(file).items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two checkpoints are the same to the last bit; not, if they are empty."""
    return a.keys() == b.keys() and len(a) > 0 and all(torch.equal(a[name], b[name]) for name in a)
