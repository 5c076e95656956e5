"""How varied a prompt set is, measured so that two sets of different length can be compared: at the same number of words and prompts."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from world_r1_prompts import minhash


@dataclass(frozen=True)
class Diversity:
    """Measures of one set. `tokens` and `prompts` are what they were taken on."""

    prompts: int
    tokens: int
    #: Different word pairs over all word pairs, of the first `tokens` words in shuffled order.
    distinct_2: float
    #: Different first three words over all, of `prompts` prompts.
    opening_trigrams: float
    #: Mean cosine of each prompt's embedding to its nearest other, of `prompts` prompts; None without the embedding model.
    nearest: float | None


def diversity(texts: Sequence[str], tokens: int, prompts: int, *, embeddings: bool, seed: int = 0) -> Diversity:
    """Measure scene texts (without camera sentence). ValueError if there are fewer prompts or words than asked for."""
    texts = list(texts)
    random.Random(seed).shuffle(texts)
    split = [minhash.words(text) for text in texts]
    if sum(map(len, split)) < tokens or len(texts) < prompts:
        have = f"{len(texts)} prompts of {sum(map(len, split))} words"
        raise ValueError(f"the set has {have}, fewer than the {prompts} and {tokens} asked for")
    pairs: list[tuple[str, str]] = []
    for words in split:
        if len(pairs) >= tokens:
            break
        pairs += itertools.pairwise(words)
    openings = {tuple(words[:3]) for words in split[:prompts]}
    near = None
    if embeddings:
        from world_r1_prompts.embed import embed, nearest

        vectors = embed(texts[:prompts])
        near = float(nearest(vectors, vectors, same=True).mean())
    return Diversity(prompts, len(pairs), len(set(pairs)) / len(pairs), len(openings) / prompts, near)


def closest(texts: Sequence[str], others: Sequence[str]) -> tuple[float, int, int]:
    """Highest estimated Jaccard similarity of a text to any of `others`, and where: (similarity, index, other index)."""
    mine, theirs = minhash.signatures(texts), minhash.signatures(others)
    best = minhash.nearest(mine, theirs)
    at = int(best.argmax())
    return float(best[at]), at, int(np.argmax(minhash.similarity(mine[at], theirs)))
