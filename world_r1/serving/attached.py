"""A training run on running pools: which pool gives which reward, and one verdict of several pools' verdicts."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from world_r1.config import RewardConfig, RewardsConfig
from world_r1.serving.client import PoolClient
from world_r1.types import Kind, Score, Verdict

#: Batches that a run may have under way in one pool.
THREADS = 64


class Attached:
    """Running pools in the place of a run's own judges. Together they give the run's rewards; weights and phases are the run's."""

    def __init__(self, config: RewardsConfig, clients: Sequence[PoolClient]) -> None:
        """ValueError unless every reward of `config` comes from exactly one pool, with the same plug-in and options."""
        self.config = config
        self.clients = list(clients)
        self.givers = givers(config, {client.name: client.rewards() for client in clients})
        self.threads = ThreadPoolExecutor(THREADS * len(self.clients), thread_name_prefix="pools")

        #: Judges of the run's own: none, so none is replaced.
        self.crew: list[Any] = []
        self.replaced = 0

    def score(self, clips: Any, ids: Sequence[str], prompt: Any, hashes: Sequence[str] = ()) -> list[Future[list[Verdict]]]:
        """As `Judges.score`."""
        known, size = list(hashes or [""] * len(ids)), self.config.batch
        return [self._merged(clips, ids[i : i + size], prompt.kind, known[i : i + size], i) for i in range(0, len(ids), size)]

    def close(self) -> None:
        """Let go of the pools, which run on."""
        for client in self.clients:
            client.close()
        self.threads.shutdown(wait=True, cancel_futures=True)

    def _merged(self, clips: Any, ids: Sequence[str], kind: Kind, hashes: Sequence[str], start: int) -> Future[list[Verdict]]:
        """One batch's verdicts from all pools; complete with the last of them."""
        parts = [self.threads.submit(client.score_block, clips, ids, kind, hashes, start, together=True) for client in self.clients]
        merged: Future[list[Verdict]] = Future()
        lock = threading.Lock()

        def done(_: Any) -> None:
            with lock:
                if merged.done() or not all(part.done() for part in parts):
                    return
                try:
                    answers = [part.result() for part in parts]
                    merged.set_result([self._merge(name, [answer[i] for answer in answers], kind) for i, name in enumerate(ids)])
                except BaseException as error:  # handed on to whoever waits
                    merged.set_exception(error)

        for part in parts:
            part.add_done_callback(done)
        return merged

    def _merge(self, name: str, verdicts: Sequence[Verdict], kind: Kind) -> Verdict:
        return merge(name, self.config, kind, {c.name: v for c, v in zip(self.clients, verdicts, strict=True)}, self.givers)


def merge(name: str, config: RewardsConfig, kind: Kind, verdicts: Mapping[str, Verdict], givers: Mapping[str, str]) -> Verdict:
    """One verdict of several pools' verdicts on a clip, in the order and with the weights and phases of `config`.

    A reward that its pool left out has no say about the clip.
    """
    from world_r1.reward import weighted

    found: list[tuple[RewardConfig, Score]] = []
    for entry in config.rewards:
        if entry.weight > 0 and entry.phase in ("all", kind):
            found += [(entry, score) for score in verdicts[givers[entry.key]].scores if score.reward == entry.key]
    seconds = {probe: value for verdict in verdicts.values() for probe, value in verdict.seconds.items()}
    total = weighted([entry for entry, _ in found], [score for _, score in found])
    return Verdict(name, total, tuple(score for _, score in found), seconds)


def givers(config: RewardsConfig, pools: Mapping[str, RewardsConfig]) -> dict[str, str]:
    """Reward key -> the pool that gives it."""
    sources: dict[str, str] = {}
    for entry in config.rewards:
        having = {name: {e.key: e for e in pool.rewards} for name, pool in pools.items()}
        found = [name for name, entries in having.items() if entry.key in entries]
        if len(found) != 1:
            where = f"{len(found)} of the pools have it ({', '.join(found)})" if found else f"none of {', '.join(pools)} has it"
            raise ValueError(f"reward {entry.key!r} must come from one of rewards.pools, but {where}")
        theirs = having[found[0]][entry.key]
        if (theirs.name, theirs.options) != (entry.name, entry.options) or theirs.weight == 0:
            raise ValueError(
                f"reward {entry.key!r} is {entry.name} {entry.options} here and {theirs.name} {theirs.options} (weight "
                f"{theirs.weight:g}) in the pool {found[0]!r}; make them the same, or take it out of one"
            )
        if theirs.phase not in ("all", entry.phase):
            raise ValueError(
                f"reward {entry.key!r}: the pool {found[0]!r} scores {theirs.phase} prompts only, this run wants {entry.phase}"
            )
        sources[entry.key] = found[0]
    for probe, options in config.probes.items():
        for name, pool in pools.items():
            if probe in pool.probes and pool.probes[probe] != options:
                raise ValueError(f"probe {probe!r} has options {options} here and {pool.probes[probe]} in the pool {name!r}")
    return sources
