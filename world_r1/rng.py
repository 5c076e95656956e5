"""Randomness is an argument: every generator follows from (run seed, step, prompt, sample) and a purpose, on the CPU.

CPU generators give the same numbers whatever device the model is on and however many processes share the work.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch


def seed_of(*key: int | str) -> int:
    """A 63-bit seed from a key; strings name the purpose ("x_T", "sde", ...). Different keys give independent streams."""
    words = [zlib.crc32(part.encode()) if isinstance(part, str) else int(part) for part in key]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)


def generator(*key: int | str) -> torch.Generator:
    """A CPU torch generator for a key."""
    return torch.Generator().manual_seed(seed_of(*key))
