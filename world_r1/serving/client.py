"""Reaching the pools that run on a cluster: starting, finding, asking and ending them."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from world_r1.config import RewardsConfig
from world_r1.serving.config import PoolConfig
from world_r1.serving.items import Busy, Crossed, content_hash, requests
from world_r1.serving.pool import Closed
from world_r1.serving.server import NAMESPACE, PREFIX, Ask, PoolServer, Replies
from world_r1.serving.slot import first_line
from world_r1.types import Clip, Kind, Verdict

#: Times that Ray restarts a pool's actor, and callers that may wait in it at once.
RESTARTS, CALLERS = 3, 2000
#: Bytes of a clip from which on it travels by itself, so that a node fetches what it scores and no more.
LARGE = 1 << 20
#: Seconds between looks at whether the caller still wants the answer.
TICK = 1.0


class PoolError(RuntimeError):
    """A pool that is not there, did not start or has died; the message says what to do."""


def up(name: str, config: PoolConfig) -> None:
    """Start a detached pool; it outlives this process.

    ValueError if the name is taken, PoolError if its workers do not start or fail the check of `config.check`.
    """
    if name in names():
        raise ValueError(f"a pool named {name!r} runs already; end it with: world-r1 rewards down {name}")
    actor = ray.remote(PoolServer).options(
        name=PREFIX + name,
        namespace=NAMESPACE,
        lifetime="detached",
        num_cpus=0,
        max_restarts=RESTARTS,
        max_concurrency=CALLERS,
    )
    server = actor.remote(name, config.model_dump(mode="json"))
    try:
        ray.get(server.ready.remote(config.patience + 10.0))  # a worker's own time-out says more
    except RayError as error:
        ray.kill(server)
        cause = error.cause if isinstance(error, RayTaskError) else error
        raise PoolError(f"the pool {name!r} did not start: {first_line(cause)}") from error
    if config.check and (broken := _broken_claims(name)):
        ray.kill(server)
        raise PoolError(
            f"the pool {name!r} gets no traffic: {'; '.join(broken)} (world-r1 rewards check says more; check: false skips this)"
        )


def _broken_claims(name: str) -> list[str]:
    """What the workers' rewards claim of a rigid room and swimming textures, and do not hold."""
    margins = {key: margin for worker in status(name).get("workers", ()) for key, margin in worker.get("claims", {}).items()}
    if not margins:
        return []
    from world_r1.blockworld import specimens
    from world_r1.reward_check import rigid_wins

    rigid, swim = PoolClient(name).score([specimens.rigid(), specimens.swim()], together=True)
    findings = rigid_wins(rigid, swim, margins)
    return [f"{finding['rule']} does not hold ({finding['detail']})" for finding in findings if not finding["ok"]]


def down(name: str) -> None:
    """End a pool and its workers. ValueError if there is none of that name."""
    server = _server(name)
    with contextlib.suppress(RayError):  # dead or stuck: killing it ends its workers too
        ray.get(server.close.remote(), timeout=60.0)
    ray.kill(server)


def names() -> list[str]:
    """Pools that run on this cluster."""
    actors = ray.util.list_named_actors(all_namespaces=True)
    return sorted(a["name"].removeprefix(PREFIX) for a in actors if a["namespace"] == NAMESPACE and a["name"].startswith(PREFIX))


def status(name: str, timeout: float = 10.0) -> dict[str, Any]:
    """See `Pool.status`; a pool that does not answer has only its name and the error."""
    try:
        return ray.get(_server(name).status.remote(), timeout=timeout)
    except RayError as error:
        return {
            "name": name,
            "error": f"no answer within {timeout:g} s" if isinstance(error, GetTimeoutError) else first_line(error),
        }


def _server(name: str) -> Any:
    try:
        return ray.get_actor(PREFIX + name, namespace=NAMESPACE)
    except ValueError:
        running = names()
        known = f"running: {', '.join(running)}" if running else "none runs"
        raise ValueError(
            f"no pool named {name!r} on this cluster ({known}); start it with: world-r1 rewards up --config FILE"
        ) from None


class PoolClient:
    """Asks one running pool; thread-safe. Every request has an id and its clip's hash, and an answer must have both."""

    def __init__(self, name: str) -> None:
        """ValueError if there is no such pool."""
        self.name = name
        self.server = _server(name)
        self.requests: Iterator[str] = requests()
        self.closed = threading.Event()

    def rewards(self) -> RewardsConfig:
        """What the pool scores, with what."""
        return self._get(self.server.rewards.remote())

    def score(self, clips: Sequence[Clip], *, together: bool = False) -> list[Verdict]:
        """Verdicts on clips from this process, in their order. Waits while the queue is full."""
        blocks, asks = [], []
        small = [clip for clip in clips if clip.video.nbytes < LARGE]
        groups = [small] if small else []
        groups += [[clip] for clip in clips if clip.video.nbytes >= LARGE]
        for number, group in enumerate(groups):
            blocks.append(ray.put(group))
            asks += [
                Ask(next(self.requests), clip.id, content_hash(clip), clip.prompt.kind, number, i) for i, clip in enumerate(group)
            ]
        order = [id(clip) for group in groups for clip in group]
        verdicts = dict(zip(order, self.ask(asks, blocks, together=together), strict=True))
        return [verdicts[id(clip)] for clip in clips]

    def score_block(
        self, clips: Any, ids: Sequence[str], kind: Kind, hashes: Sequence[str], start: int, *, together: bool
    ) -> list[Verdict]:
        """Verdicts on the clips number `start` and following behind one reference."""
        asks = [
            Ask(next(self.requests), name, known, kind, 0, start + i)
            for i, (name, known) in enumerate(zip(ids, hashes, strict=True))
        ]
        return self.ask(asks, [clips], together=together)

    def ask(self, asks: Sequence[Ask], blocks: Sequence[Any], *, together: bool) -> list[Verdict]:
        """Send a packet until the pool takes it; once more if the pool's actor died over it and comes back.

        Raises PoolError if it does not, Crossed for an answer that belongs to another request, and what broke the pool.
        """
        if not asks:
            return []
        deaths = 0
        while True:
            try:
                replies = self._get(self.server.score.remote(list(asks), list(blocks), together))
            except RayActorError as error:
                deaths += 1
                if deaths > 1:
                    raise PoolError(
                        f"the pool {self.name!r} died: {first_line(error)}; world-r1 rewards status shows it"
                    ) from error
                self._await_return()
            else:
                if not isinstance(replies, Busy):
                    return _matched(replies, asks)
                if self.closed.wait(replies.after):
                    raise Closed("the run ended")

    def close(self) -> None:
        """Let those who wait in other threads give up."""
        self.closed.set()

    def _await_return(self, patience: float = 120.0) -> None:
        end = time.monotonic() + patience
        while time.monotonic() < end and not self.closed.is_set():
            try:
                ray.get(self.server.ready.remote(patience), timeout=patience)
                return
            except RayActorError:
                time.sleep(TICK)
            except RayError:
                return

    def _get(self, call: Any) -> Any:
        while not self.closed.is_set():
            try:
                return ray.get(call, timeout=TICK)
            except GetTimeoutError:
                continue
            except RayTaskError as error:
                raise error.cause from None
        raise Closed("the run ended")


def _matched(replies: Replies, asks: Sequence[Ask]) -> list[Verdict]:
    if [(request, known, verdict.clip) for request, known, verdict in replies] != [(ask.request, ask.hash, ask.id) for ask in asks]:
        raise Crossed(f"asked for verdicts on {[ask.request for ask in asks]}, got {[request for request, _, _ in replies]}")
    return [verdict for _, _, verdict in replies]
