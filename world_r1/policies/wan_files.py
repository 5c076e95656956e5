"""The parts of a Wan model on disk or on the Hugging Face Hub: where they are, what they may be, and how they are read.

Only safetensors are read. Whatever goes wrong ends in a `ValueError` of one line that names the model and the remedy.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from world_r1 import blockworld

T = TypeVar("T")

#: What `world_r1.json` beside `model_index.json` may say about a model: how it was trained and how it is best sampled.
#: The last three are sections of the configuration.
SETTINGS = {
    "max_text_length": int,
    "guidance_scale": float,
    "negative_prompt": str,
    "steps": int,
    "shift": float,
    "noise": dict,
    "video": dict,
    "camera": dict,
}


def resolve(path: str) -> str:
    """ "blockworld" -> the folder of the embedded model; a local folder or a Hub id stays as it is."""
    if path != "blockworld":
        return str(path)
    folder = blockworld.weights_path()
    if not (folder / "model_index.json").is_file():
        raise ValueError(
            f"the weights of the embedded model are not installed ({folder} has no model_index.json); "
            "reinstall the package from a full checkout or set model.path to another model"
        )
    return str(folder)


def index(path: str) -> dict[str, Any]:
    """`model_index.json` of a text-to-video Wan pipeline. ValueError for a model that is unreadable or of another kind."""
    found = read_json(path, "model_index.json", required=True)
    kind = found.get("_class_name")
    if kind != "WanPipeline":
        raise ValueError(f"model {path!r} is a {kind}, not a text-to-video WanPipeline; choose a Wan T2V model in diffusers layout")
    if (found.get("boundary_ratio") is not None) != any(found.get("transformer_2") or ()):
        raise ValueError(
            f"model {path!r}: model_index.json names a second transformer or a boundary_ratio, but not both; "
            "download the model again (Wan2.2 A14B has both, all others have neither)"
        )
    return found


class WanFiles:
    """The parts of a Wan model on disk or on the Hub, as `world_r1.policies.source.Source` asks for them."""

    def __init__(self, path: str) -> None:
        """ValueError for a model that is unreadable or of another kind."""
        self.path = resolve(path)
        self.index = index(self.path)
        self.settings = settings(self.path)

    @property
    def vae_config(self) -> dict[str, Any]:
        """Configuration of the autoencoder."""
        return vae_config(self.path)

    @property
    def scheduler(self) -> dict[str, Any]:
        """Configuration of the scheduler, empty where there is none."""
        return read_json(self.path, "scheduler/scheduler_config.json", required=False)

    def transformer(self, dtype: torch.dtype, part: str) -> nn.Module:
        """A transformer by its name, or from a folder that holds one."""
        inside = part in ("transformer", "transformer_2")
        return load_transformer(self.path if inside else part, dtype, part if inside else None)

    def vae(self) -> nn.Module:
        """The autoencoder, float32, frozen."""
        return load_vae(self.path)

    def text(self, dtype: torch.dtype) -> tuple[Any, nn.Module]:
        """Tokenizer and text encoder."""
        return load_text(self.path, dtype)


def settings(path: str) -> dict[str, Any]:
    """The optional `world_r1.json` of a model; keys and types are those of `SETTINGS`. ValueError for anything else in it."""
    found = read_json(path, "world_r1.json", required=False)
    for key, value in found.items():
        kind = SETTINGS.get(key)
        if kind is None:
            raise ValueError(f"world_r1.json of model {path!r} has the unknown key {key!r}; known keys are {', '.join(SETTINGS)}")
        if not isinstance(value, (int, float) if kind is float else kind) or isinstance(value, bool):
            raise ValueError(f"world_r1.json of model {path!r}: {key} must be of type {kind.__name__}, got {value!r}")
    return found


def load_transformer(path: str, dtype: torch.dtype, subfolder: str | None = "transformer") -> nn.Module:
    """`WanTransformer3DModel` in evaluation mode, linear and convolution weights in `dtype`, the rest as diffusers keeps it."""
    from diffusers import WanTransformer3DModel

    def read() -> nn.Module:
        return WanTransformer3DModel.from_pretrained(path, subfolder=subfolder, torch_dtype=dtype, use_safetensors=True)

    return read_part(path, "transformer", read).eval()


def load_vae(path: str) -> nn.Module:
    """`AutoencoderKLWan` in float32 and evaluation mode, frozen."""
    from diffusers import AutoencoderKLWan

    def read() -> nn.Module:
        return AutoencoderKLWan.from_pretrained(path, subfolder="vae", torch_dtype=torch.float32, use_safetensors=True)

    return read_part(path, "vae", read).eval().requires_grad_(False)


def vae_config(path: str) -> dict[str, Any]:
    """Configuration of the autoencoder, without its weights, with the defaults that diffusers gives to absent keys."""
    found = read_json(path, "vae/config.json", required=True)
    return {"z_dim": 16, "scale_factor_temporal": 4, "scale_factor_spatial": 8, **{k: v for k, v in found.items() if v is not None}}


def load_text(path: str, dtype: torch.dtype) -> tuple[Any, nn.Module]:
    """Tokenizer and `UMT5EncoderModel` in `dtype`, in evaluation mode, frozen."""
    from transformers import AutoTokenizer, UMT5EncoderModel

    def read() -> nn.Module:
        return UMT5EncoderModel.from_pretrained(path, subfolder="text_encoder", dtype=dtype, use_safetensors=True)

    tokenizer = read_part(path, "tokenizer", lambda: AutoTokenizer.from_pretrained(path, subfolder="tokenizer"))
    return tokenizer, read_part(path, "text_encoder", read).eval().requires_grad_(False)


def read_part(path: str, part: str, read: Callable[[], T]) -> T:
    try:
        with _quiet():
            return read()
    except Exception as error:  # the readers raise OSError, ValueError, KeyError, SafetensorError, JSONDecodeError, ...
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"cannot read the {part} of model {path!r} ({type(error).__name__}: {reason}); "
            "download the model again, or set model.path to a folder in diffusers layout with safetensors"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar for each part that is read from disk."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def read_json(path: str, name: str, *, required: bool) -> dict[str, Any]:
    file = _locate(path, name, required=required)
    if file is None:
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{name} of model {path!r} is not readable JSON ({error}); download the model again") from error
    if not isinstance(found, dict):
        raise ValueError(f"{name} of model {path!r} must hold a JSON object, got {type(found).__name__}; download the model again")
    return found


def _locate(path: str, name: str, *, required: bool) -> Path | None:
    folder = Path(path)
    if folder.is_dir():
        if (folder / name).is_file():
            return folder / name
        if required:
            raise ValueError(f"{folder} is not a model in diffusers layout (no {name}); give the folder that holds it, or a Hub id")
        return None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(path, name))
    except Exception as error:
        absent = isinstance(error, EntryNotFoundError)  # offline without a cached copy counts as absent for an optional file
        if not required and (absent or isinstance(error, LocalEntryNotFoundError)):
            return None
        raise ValueError(
            f"cannot read model {path!r}: there is no such folder, and the Hub gives {type(error).__name__}; "
            "check the spelling and the network, or give a local folder in diffusers layout"
        ) from error
