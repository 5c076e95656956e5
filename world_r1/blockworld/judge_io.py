"""What critic and evaluator share: checking and fitting uint8 videos, and weights on disk. No architecture is shared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

#: Height and width both models look at; other sizes are resampled to it.
SIZE = (96, 160)


def save_weights(module: nn.Module, folder: Path, name: str, config: dict[str, Any]) -> None:
    """`<name>.safetensors` with fp16 weights (integers as they are) and `config.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: (v.half() if v.is_floating_point() else v).detach().cpu().contiguous() for k, v in module.state_dict().items()}
    save_file(state, folder / f"{name}.safetensors")
    (folder / "config.json").write_text(json.dumps({"kind": name, **config}, indent=1) + "\n", encoding="utf-8")


def load_weights(folder: Path, name: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Configuration and fp32 weights that `save_weights` wrote; raises ValueError if they are not there or of another kind."""
    file, config_file = folder / f"{name}.safetensors", folder / "config.json"
    if not file.is_file() or not config_file.is_file():
        raise ValueError(
            f"no {name} in {folder}: {file.name} and config.json are needed; make them with world_r1.blockworld.pretrain_critic"
        )
    config = json.loads(config_file.read_text(encoding="utf-8"))
    if config.get("kind") != name:
        raise ValueError(f"{config_file} describes a {config.get('kind')!r}, not a {name}")
    return config, {k: v.float() if v.is_floating_point() else v for k, v in load_file(file).items()}


def as_uint8(x: np.ndarray | torch.Tensor, dims: int, what: str) -> torch.Tensor:
    y = torch.as_tensor(x)
    if y.ndim != dims or y.shape[-1] != 3 or y.dtype != torch.uint8:
        raise ValueError(f"expected {what} uint8, got {tuple(y.shape)} {y.dtype}")
    return y


def fit(clips: torch.Tensor, device: torch.device) -> torch.Tensor:
    """uint8 [B, T, H, W, 3] -> float [B, 3, T, 96, 160] in -1..1; other sizes are resampled."""
    x = clips.to(device).permute(0, 1, 4, 2, 3).float() / 127.5 - 1
    if x.shape[-2:] != SIZE:
        x = F.interpolate(x.flatten(0, 1), SIZE, mode="bilinear", antialias=True, align_corners=False).unflatten(0, x.shape[:2])
    return x.transpose(1, 2)
