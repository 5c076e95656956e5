"""Loading a critic by name, so that any class with the same two methods can take its place."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch

DEFAULT = "world_r1.blockworld.critic:QualityCritic"


def load_critic(model: str, path: str, device: str) -> Any:
    """The critic "module:Class" from a folder; "blockworld" is the shipped one. ValueError when the name or the folder is wrong."""
    module, _, name = model.partition(":")
    try:
        critic = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f'no critic {model!r} (write "module:Class"): {error}') from error
    folder = Path(path)
    if path == "blockworld":
        from world_r1.blockworld import weights_path

        folder = weights_path() / "critic"
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return critic.from_pretrained(folder, device=device)
