"""blockworld: the embedded world. Procedural 3D scenes and a small Wan-architecture text-to-video model trained on them."""

from __future__ import annotations

from pathlib import Path


def weights_path() -> Path:
    """Folder of the shipped weights in diffusers layout (transformer, vae, text_encoder, tokenizer, scheduler), critic and evaluator."""
    return Path(__file__).parent / "weights"
