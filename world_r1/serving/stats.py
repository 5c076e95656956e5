"""Figures of a pool: how many, how fast, what went wrong."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from typing import Any

#: Items that percentiles are taken over, and seconds that the rate is taken over.
WINDOW, SPAN = 4096, 60.0


class Stats:
    """Counters of one pool; thread-safe."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.begin = time.monotonic()
        self.done: deque[tuple[float, float]] = deque(maxlen=WINDOW)
        self.items = 0
        #: Items without a verdict from a healthy worker, by cause; workers replaced, by cause; items tried again.
        self.failures: Counter[str] = Counter()
        self.restarts: Counter[str] = Counter()
        self.retried = 0
        self.refused = 0

    def delivered(self, latencies: list[float], failure: str = "", failed: int = 0) -> None:
        """Count finished items with their seconds from arrival to delivery, `failed` of them for the cause `failure`."""
        now = time.monotonic()
        with self.lock:
            self.items += len(latencies)
            self.done.extend((now, latency) for latency in latencies)
            if failure:
                self.failures[failure] += failed

    def count(self, *, restart: str = "", retried: int = 0, refused: int = 0) -> None:
        """Count what happened besides."""
        with self.lock:
            if restart:
                self.restarts[restart] += 1
            self.retried += retried
            self.refused += refused

    def summary(self) -> dict[str, Any]:
        """items, rate (items/s over the last minute), p50 and p95 (seconds from arrival to delivery; None before the first), failures,
        failure_rate, restarts, retried, refused, uptime (s)."""
        now = time.monotonic()
        with self.lock:
            latencies = sorted(latency for _, latency in self.done)
            recent = [at for at, _ in self.done if now - at <= SPAN]
            full = len(self.done) == self.done.maxlen and len(recent) == len(self.done)
            span = now - recent[0] if full else min(SPAN, now - self.begin)
            return {
                "items": self.items,
                "rate": len(recent) / max(span, 1e-9),
                "p50": _percentile(latencies, 0.50),
                "p95": _percentile(latencies, 0.95),
                "failures": dict(self.failures),
                "failure_rate": sum(self.failures.values()) / max(1, self.items),
                "restarts": dict(self.restarts),
                "retried": self.retried,
                "refused": self.refused,
                "uptime": now - self.begin,
            }


def _percentile(ordered: list[float], share: float) -> float | None:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None
