"""Weights of quality models: safetensors, or PyTorch archives of tensors only; nothing in a file is ever run."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


def read(path: str | Path) -> dict[str, torch.Tensor]:
    """Tensors of a .safetensors file or of a .pt or .pth one (which may hold them under "state_dict" or "model").

    "owner/name:file" is a file of a hub repository. Raises ValueError for anything that is not a mapping of names to tensors.
    """
    file = locate(path)
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    try:
        tree: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler of weights refuses in many ways
        raise ValueError(f"{file} is no file of tensors ({type(error).__name__}: {str(error).partition(chr(10))[0]})") from error
    for key in ("state_dict", "model"):
        if isinstance(tree, Mapping) and isinstance(tree.get(key), Mapping):
            tree = tree[key]
    if not isinstance(tree, Mapping) or not all(isinstance(value, torch.Tensor) for value in tree.values()):
        raise ValueError(f"{file} holds no mapping of names to tensors")
    return dict(tree)


def locate(path: str | Path) -> Path:
    """A local path, or the cached copy of "owner/name:file" from the hub. FileNotFoundError for a path that is not there."""
    text = str(path)
    if Path(text).exists():
        return Path(text)
    repository, colon, name = text.partition(":")
    if colon and re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(repository, name))
    raise FileNotFoundError(f"no weights at {text}; give a path, or owner/name:file of a hub repository")


def fingerprint(state: Mapping[str, torch.Tensor]) -> str:
    """A short hash of names, shapes and a few numbers of every tensor, for the records; not a proof against tampering."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].reshape(-1)
        digest.update(
            f"{name}{tuple(state[name].shape)}".encode() + tensor[:: max(1, len(tensor) // 64)].float().cpu().numpy().tobytes()
        )
    return digest.hexdigest()[:16]


def fill(module: torch.nn.Module, state: Mapping[str, torch.Tensor], what: str) -> None:
    """Strict `load_state_dict` whose complaint fits into a line (ValueError)."""
    own = module.state_dict()
    missing, extra = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    shapes = [name for name in own if name in state and own[name].shape != state[name].shape]
    if missing or extra or shapes:
        listed = {"missing": missing, "unknown": extra, "of another shape": shapes}
        text = "; ".join(f"{len(names)} {kind} ({', '.join(names[:3])}...)" for kind, names in listed.items() if names)
        raise ValueError(f"the weights do not fit {what}: {text}")
    module.load_state_dict(dict(state))


def from_open_clip(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of an open_clip CLIP (separate towers of plain transformers) under the names of transformers' CLIPModel."""
    renamed: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        if name.endswith("attn_mask"):
            continue
        tower = "vision_model" if name.startswith("visual.") else "text_model"
        rest = name.removeprefix("visual.")
        if match := re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)", rest):
            _block(renamed, f"{tower}.encoder.layers.{match[1]}", match[2], value)
        elif rest in ("text_projection", "proj"):
            renamed["text_projection.weight" if rest == "text_projection" else "visual_projection.weight"] = value.T.contiguous()
        elif rest == "logit_scale":
            renamed[rest] = value.reshape(())
        else:
            renamed[f"{tower}.{_EMBEDDINGS.get(rest) or _NORMS[rest.rpartition('.')[0]] + '.' + rest.rpartition('.')[2]}"] = value
    return renamed


_EMBEDDINGS = {
    "class_embedding": "embeddings.class_embedding",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "token_embedding.weight": "embeddings.token_embedding.weight",
}
_NORMS = {"ln_pre": "pre_layrnorm", "ln_post": "post_layernorm", "ln_final": "final_layer_norm"}
_PARTS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}


def _block(renamed: dict[str, torch.Tensor], layer: str, rest: str, value: torch.Tensor) -> None:
    if match := re.fullmatch(r"attn\.in_proj_(weight|bias)", rest):
        for part, piece in zip("qkv", value.chunk(3), strict=True):
            renamed[f"{layer}.self_attn.{part}_proj.{match[1]}"] = piece.contiguous()
    else:
        part, _, kind = rest.rpartition(".")
        renamed[f"{layer}.{_PARTS[part]}.{kind}"] = value


def merge_lora(state: Mapping[str, torch.Tensor], scale: float) -> dict[str, torch.Tensor]:
    """A PEFT state as plain weights: W + scale * B A for every adapted layer (LoRA, arXiv 2106.09685 eq 3), saved modules as they are.

    `scale` is alpha / r, or alpha / sqrt(r) with rank stabilisation. A state without PEFT's names comes back unchanged.
    """
    merged: dict[str, torch.Tensor] = {}
    plain = {name.removeprefix("base_model.model."): value for name, value in state.items()}
    for name, value in plain.items():
        if ".lora_" in name or ".original_module." in name:
            continue
        if ".base_layer." in name:
            layer, _, kind = name.partition(".base_layer.")
            if kind == "weight" and f"{layer}.lora_A.default.weight" in plain:
                delta = plain[f"{layer}.lora_B.default.weight"].double() @ plain[f"{layer}.lora_A.default.weight"].double()
                value = (value.double() + scale * delta).to(value.dtype)
            name = f"{layer}.{kind}"
        merged[name.replace(".modules_to_save.default.", ".")] = value
    return merged


def to_backbone(state: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """(tensors of a transformers Qwen2VLModel, tensors of the reward head) from any of the three layouts that releases used."""
    backbone, head = {}, {}
    for name, value in state.items():
        if name.startswith("rm_head."):
            head[name.removeprefix("rm_head.")] = value
        elif not name.startswith("lm_head."):
            rest = name.removeprefix("model.")
            backbone[rest if rest.startswith(("visual.", "language_model.")) else f"language_model.{rest}"] = value
    return backbone, head
