"""LoRA on a diffusers transformer: add, load and save, with float32 master weights whatever the dtype of the base.

The files are what `load_lora_weights` of the model's pipeline reads: `pytorch_lora_weights.safetensors` with keys under `transformer.` and
the LoRA settings (rank, alpha, targets) in the metadata. Without the metadata a reader would take alpha = rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from world_r1 import rng
from world_r1.config import LoraConfig

NAME = "default"
FILE = "pytorch_lora_weights.safetensors"


def add(transformer: Any, lora: LoraConfig, seed: int, prefix: str = "") -> None:
    """Add a zero-initialised adapter (B = 0, A drawn from `seed` and prefixed names). ValueError when a target names no linear layer."""
    import peft

    names = [name for name, module in transformer.named_modules() if isinstance(module, nn.Linear)]
    for target in lora.targets:
        if not any(name == target or name.endswith("." + target) for name in names):
            raise ValueError(f"model.lora.targets: {target!r} names no linear layer; an example of one is {names[-2]!r}")
    config = peft.LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.targets), init_lora_weights=True)
    with torch.random.fork_rng(
        devices=[]
    ):  # peft draws A from the global generator; redrawn below, and the global one is left alone
        transformer.add_adapter(config, NAME)
    _to_float32(transformer)
    for name, parameter in parameters(transformer):
        if ".lora_A." in name:
            drawn = nn.init.kaiming_uniform_(
                torch.empty(parameter.shape), a=math.sqrt(5), generator=rng.generator(seed, "lora", prefix + name)
            )
            parameter.data.copy_(drawn)


def load(transformer: Any, directory: str, pipeline: str = "WanPipeline") -> None:
    """Add the adapter saved in `directory` (or in that .safetensors file); rank, alpha and targets come from the file.

    Reads this project's and diffusers' files, and the two common formats of other trainers that diffusers converts. ValueError for
    what is not an adapter of this transformer.
    """
    from peft import set_peft_model_state_dict

    path = Path(directory)
    file = path if path.is_file() else path / FILE
    if not file.is_file():
        found = sorted(p.name for p in path.glob("*.safetensors")) if path.is_dir() else []
        raise ValueError(
            f"no adapter in {directory!r}: expected {FILE}" + (f", found {', '.join(found)}; name the file" if found else "")
        )
    try:
        state, metadata = _pipeline(pipeline).lora_state_dict(
            str(file.parent), weight_name=file.name, use_safetensors=True, local_files_only=True, return_lora_metadata=True
        )
        prefix = "transformer" if any(key.startswith("transformer.") for key in state) else None
        transformer.load_lora_adapter(state, prefix=prefix, metadata=metadata, adapter_name=NAME)
        _to_float32(transformer)  # the base may be bf16: widen first, then copy the values once more without rounding
        state = {key.removeprefix("transformer."): value for key, value in state.items()}
        unmatched = set_peft_model_state_dict(transformer, state, NAME).unexpected_keys
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{file} is not an adapter of this model ({type(error).__name__}: {reason}); check model.path") from error
    if unmatched or not any(True for _ in parameters(transformer)):
        raise ValueError(
            f"{file} is not an adapter of this model (no layer called {next(iter(unmatched), 'lora')!r}); check model.path"
        )


def save(transformer: Any, directory: str, pipeline: str = "WanPipeline") -> None:
    """Write the adapter and its settings to `directory`, in float32."""
    from peft import get_peft_model_state_dict

    layers = {
        key: value.detach().cpu().contiguous() for key, value in get_peft_model_state_dict(transformer, adapter_name=NAME).items()
    }
    settings = {k: sorted(v) if isinstance(v, set) else v for k, v in transformer.peft_config[NAME].to_dict().items()}
    _pipeline(pipeline).save_lora_weights(
        directory,
        transformer_lora_layers=layers,
        transformer_lora_adapter_metadata=settings,
        weight_name=FILE,
        safe_serialization=True,
    )


def parameters(transformer: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The adapter's parameters by name."""
    return ((name, parameter) for name, parameter in transformer.named_parameters() if ".lora_" in name)


def layers(transformer: nn.Module) -> list[Any]:
    """The modules that carry an adapter."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in transformer.modules() if isinstance(module, BaseTunerLayer)]


def _pipeline(name: str) -> Any:
    """The diffusers pipeline class that reads and writes the files."""
    import diffusers

    return getattr(diffusers, name)


def _to_float32(transformer: nn.Module) -> None:
    for _, parameter in parameters(transformer):
        parameter.data = parameter.data.float()
