"""Training state of a pretraining stage as one safetensors file: models, moving average, optimizers, step. Nothing is pickled."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.optim import Optimizer


def save_state(
    path: Path, step: int, models: Mapping[str, nn.Module], optimizers: Sequence[Optimizer], ema: Sequence[torch.Tensor] = ()
) -> None:
    """Write atomically: a crash leaves the previous file."""
    tensors = {f"model.{name}.{key}": value for name, model in models.items() for key, value in model.state_dict().items()}
    tensors |= {f"ema.{i}": value for i, value in enumerate(ema)}
    for i, optimizer in enumerate(optimizers):
        for j, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{j}.{key}": torch.as_tensor(value) for key, value in state.items()}
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    temporary = path.with_suffix(".tmp")
    save_file(tensors, temporary, metadata={"step": str(step)})
    os.replace(temporary, path)


def load_state(
    path: Path, models: Mapping[str, nn.Module], optimizers: Sequence[Optimizer], ema: Sequence[torch.Tensor] = ()
) -> int:
    """Restore in place and return the step; 0 if there is no file."""
    if not path.exists():
        return 0
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
        step = int(file.metadata()["step"])
    for name, model in models.items():
        prefix = f"model.{name}."
        model.load_state_dict({key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)})
    for i, average in enumerate(ema):
        average.copy_(tensors[f"ema.{i}"])
    for i, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith(f"optimizer.{i}."):
                _, _, j, name = key.split(".", 3)
                state.setdefault(int(j), {})[name] = value
        optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    return step
