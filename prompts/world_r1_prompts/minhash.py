"""MinHash: estimated Jaccard similarity of texts' word shingles, and the pairs above a threshold without comparing all of them.

Broder 1997 for the signatures, Indyk and Motwani 1998 for the bands. Hashes are CRC-32 and fixed linear permutations, so that
signatures are the same on every machine.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence

import numpy as np

_PRIME = np.uint64((1 << 61) - 1)
_WORD = re.compile(r"[a-z0-9]+(?:['\u2019-][a-z0-9]+)*")


def words(text: str) -> list[str]:
    """Lower-case words of a text."""
    return _WORD.findall(text.lower())


def _shingles(text: str, width: int) -> np.ndarray:
    """[n] uint64: a hash of each run of `width` words; the whole text if it is shorter."""
    parts = [word.encode() for word in words(text)]
    last = max(1, len(parts) - width + 1)
    return np.fromiter((zlib.crc32(b" ".join(parts[i : i + width])) for i in range(last)), np.uint64, last)


def _permutations(count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(20260501)
    return rng.integers(1, 1 << 29, count, np.uint64), rng.integers(0, 1 << 60, count, np.uint64)


def signatures(texts: Sequence[str], permutations: int = 128, shingle: int = 3) -> np.ndarray:
    """[n, permutations] uint32 MinHash signatures. The share of equal entries in two rows estimates the Jaccard similarity."""
    a, b = _permutations(permutations)
    out = np.empty((len(texts), permutations), np.uint32)
    for row, text in enumerate(texts):
        hashed = np.unique(_shingles(text, shingle))
        # 32-bit hash times 29-bit factor plus 60-bit offset stays below 2^64.
        out[row] = (((hashed[:, None] * a + b) % _PRIME) & np.uint64(0xFFFFFFFF)).min(0).astype(np.uint32)
    return out


def similarity(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Estimated Jaccard similarity of signatures along the last axis, broadcast over the others."""
    return np.asarray((one == other).mean(-1))


def close_pairs(marks: np.ndarray, threshold: float) -> Iterator[tuple[int, int, float]]:
    """Pairs (i, j, similarity) with i < j and at least `threshold`, found through bands of four entries; may repeat a pair.

    A pair at similarity s shares one of B = n/4 bands with probability 1 - (1 - s^4)^B: 0.87 at 0.5 and 0.999 at 0.7 for 128 entries.
    Within a bucket, every member is compared with the first and with its neighbour, so time stays linear for large buckets.
    """
    for band in range(marks.shape[1] // 4):
        part = np.ascontiguousarray(marks[:, 4 * band : 4 * band + 4]).astype(np.uint64)
        keys = part[:, 0] * np.uint64(0x9E3779B97F4A7C15)
        for column in (1, 2, 3):
            keys = (keys ^ part[:, column]) * np.uint64(0x100000001B3)
        order = np.argsort(keys, kind="stable")
        same = keys[order][1:] == keys[order][:-1]
        starts = np.flatnonzero(np.concatenate([[True], ~same]))
        firsts = np.repeat(order[starts], np.diff(np.append(starts, len(order))))
        later = np.flatnonzero(np.concatenate([[False], same]))
        for other in (firsts[later], order[later - 1]):
            scores = similarity(marks[other], marks[order[later]])
            for k in np.flatnonzero(scores >= threshold):
                i, j = int(other[k]), int(order[later[k]])
                if i != j:
                    yield (i, j, float(scores[k])) if i < j else (j, i, float(scores[k]))


def duplicates(marks: np.ndarray, threshold: float) -> dict[int, int]:
    """Row -> earlier row that it repeats. The earliest of a chain of near-duplicates stays."""
    found: dict[int, int] = {}
    for i, j in sorted({(i, j) for i, j, _ in close_pairs(marks, threshold)}):
        if i not in found:
            found.setdefault(j, i)
    return found


def nearest(rows: np.ndarray, others: np.ndarray, block: int = 64) -> np.ndarray:
    """[n] highest estimated similarity of each row to any of `others`, compared with all of them."""
    best = np.zeros(len(rows))
    for start in range(0, len(rows), block):
        part = rows[start : start + block]
        for other in range(0, len(others), 512):
            scores = similarity(part[:, None], others[None, other : other + 512])
            best[start : start + block] = np.maximum(best[start : start + block], scores.max(1))
    return best
