"""Several learner processes: placed, brought together, and called as one. The loop does not know how many there are."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ray

from world_r1.actors.learner import Learner, PolicyWorker
from world_r1.actors.publishing import ClusterError, Meeting, unconnected
from world_r1.config import Config
from world_r1.types import Prompt

#: Seconds in which the death of one learner is waited for after another has failed: its failure is then an echo of that death.
ECHO = 10.0


def shares(count: int, samplers: Sequence[Any], together: int) -> list[tuple[Any, list[int]]]:
    """Groups 0..count-1 dealt to the samplers in turn, at most `together` a call; the first calls of all samplers come first."""
    hands = [(sampler, list(range(k, count, len(samplers)))) for k, sampler in enumerate(samplers)]
    longest = max((len(groups) for _, groups in hands), default=0)
    return [
        (sampler, groups[start : start + together])
        for start in range(0, longest, together)
        for sampler, groups in hands
        if groups[start : start + together]
    ]


class Learners:
    """The learner actors of a run. `get(what, call, timeout)` waits for one call and raises what went wrong as the driver says it.

    `idle` is called now and then while learners are waited for, and raises what would make them wait for ever.
    """

    def __init__(
        self,
        config: Config,
        options: Mapping[str, Any],
        get: Callable[..., Any],
        tick: float,
        idle: Callable[[], None] = lambda: None,
    ) -> None:
        kind = PolicyWorker if config.cluster.mode == "colocated" else Learner
        count = config.cluster.learners
        self.get, self.tick, self.idle = get, tick, idle
        self.actors = [ray.remote(kind).options(**options).remote(config, rank, count) for rank in range(count)]
        self.band = config.speed.sequence_parallel
        self.meeting = Meeting()
        self.patience = config.cluster.timeout

    @property
    def names(self) -> dict[str, Any]:
        """The actors by what messages call them."""
        if len(self.actors) == 1:
            return {"learner": self.actors[0]}
        return {f"learner {rank}": actor for rank, actor in enumerate(self.actors)}

    @property
    def leaders(self) -> list[Any]:
        """The actors that sample: the first of every band of learners that share a video's tokens."""
        return self.actors[:: self.band]

    def help_sampling(self, leader: Any, prompts: Sequence[Prompt], step: int, groups: Sequence[int]) -> dict[ray.ObjectRef, str]:
        """Calls of the others of a leader's band that go with its `sample`, and the learners' names; none without bands."""
        found = self._helpers(self.leaders.index(leader)) if self.band > 1 else {}
        return {helper.help_sample.remote(prompts, step, groups): name for name, helper in found.items()}

    def evaluate(self, directory: str, what: str, samplers: Sequence[Any]) -> Iterator[Any]:
        """What the first learner's `evaluate` yields, as references; raises what goes wrong in a learner that helps with it."""
        stream = self.actors[0].evaluate.options(num_returns="streaming").remote(directory, what, samplers)
        parts = len(samplers) + 1
        numbers = range(parts if self.band > 1 and what != "reference" else 0)
        helping = {helper.help_evaluate.remote(k, parts, what): name for k in numbers for name, helper in self._helpers(k).items()}
        yield from self._beside(stream, helping)

    def _helpers(self, number: int) -> dict[str, Any]:
        return dict(list(self.names.items())[number * self.band + 1 : (number + 1) * self.band])

    def _beside(self, stream: Any, helping: dict[ray.ObjectRef, str]) -> Iterator[Any]:
        left = list(helping)
        while True:
            ready, _ = ray.wait([stream, *left], timeout=self.tick)
            if not ready:
                self.idle()
            for call in ready:
                if call is not stream:
                    left.remove(call)
                    self.fetch("evaluating", call, left, helping)
                    continue
                try:
                    item = next(stream)
                except StopIteration:
                    return
                yield item

    def join(self, others: Sequence[str] = ()) -> None:
        """Connect several learners, once they are set up: over loopback where all are on one machine, as are `others` they speak to."""
        if len(self.actors) == 1:
            return
        what = "connecting the learners"
        hosts = self.all("finding the learners", "where")
        place = self.meeting.place(hosts, lambda: self.get(what, self.actors[0].listen.remote(len(self.actors))), others)
        self.all(what, "join", place, patience=self.patience)

    def close(self) -> None:
        """Remove what `join` has left, once the learners have ended."""
        self.meeting.close()

    def all(self, what: str, method: str, *arguments: Any, patience: float | None = None) -> list[Any]:
        """Call `method` of every learner, and wait for all, at most for `patience` seconds; the results in the order of ranks.

        Where one has died, the others fail because it is gone: the death is what is raised.
        """
        calls = [getattr(actor, method).remote(*arguments) for actor in self.actors]
        labels = dict(zip(calls, self.names, strict=True))
        found: dict[ray.ObjectRef, Any] = {}
        begin = time.monotonic()
        while waiting := [call for call in calls if call not in found]:
            ready, _ = ray.wait(waiting, timeout=self.tick)  # in ticks, so that signals are handled
            for call in ready:
                found[call] = self.fetch(what, call, [other for other in waiting if other != call], labels)
            if not ready:
                self.idle()
                if patience is not None and time.monotonic() - begin > patience:
                    raise ClusterError(unconnected(what, patience))
        return [found[call] for call in calls]

    def fetch(self, what: str, call: ray.ObjectRef, others: Sequence[ray.ObjectRef], labels: Mapping[ray.ObjectRef, str]) -> Any:
        """What a finished call gave. Where it failed because a learner died in one of the `others`, that death is what is raised."""
        try:
            return self.get(self._named(what, labels.get(call)), call)
        except ClusterError:
            raise
        except Exception:
            self._raise_death(what, others, labels)
            raise

    def _raise_death(self, what: str, others: Sequence[ray.ObjectRef], labels: Mapping[ray.ObjectRef, str]) -> None:
        deadline = time.monotonic() + ECHO
        left = list(others)
        while left and time.monotonic() < deadline:
            ready, left = ray.wait(left, timeout=self.tick)
            for call in ready:
                try:
                    self.get(self._named(what, labels.get(call)), call)
                except ClusterError:
                    raise
                except Exception:  # an echo, or an error of its own: the first one is raised
                    continue

    def _named(self, what: str, name: str | None) -> str:
        return what if name is None or len(self.actors) == 1 else f"{what}, {name} of {len(self.actors)}"
