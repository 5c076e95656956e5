"""How the samplers get the learner's weights: through Ray's object store, or by broadcast (`cluster.weights`).

And where actors meet that are to talk without Ray: in a file on one machine, else in a store that one of them opens.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from world_r1.config import Config

if TYPE_CHECKING:
    from world_r1.policy import Policy
    from world_r1.weight_sync import Channel

FINDING, CONNECTING = "finding the samplers", "connecting learner and samplers"
#: Seconds between looks at signals while waiting.
TICK = 0.25


class ClusterError(RuntimeError):
    """Ray or an actor could not be started, or died; the message says which, and what to do."""


def unconnected(what: str, patience: float) -> str:
    """What to say of processes that do not reach each other."""
    return (
        f"{what}: not connected after {patience:g} s; on several machines they must reach each other's --node-ip-address on any port, by "
        "the network interface that has it or the one that GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name (docs/cluster.md); raise "
        "cluster.timeout if they are only slow"
    )


class Meeting:
    """Where processes of a run find each other; `close` once they have ended. `here` is this machine's address, null that of Ray's node."""

    def __init__(self, here: str | None = None) -> None:
        self.here = here or str(ray.util.get_node_ip_address())
        self.folder = ""

    def place(self, hosts: Sequence[str], listen: Callable[[], tuple[str, int]], others: Sequence[str] = ()) -> dict[str, Any]:
        """For processes on `hosts`: a file where all are on this machine, else what `listen` opens on that of the first.

        They speak by loopback unless they are on several machines, or will speak to processes on `others` as well ("apart").
        """
        apart = len({*hosts, *others}) > 1
        if set(hosts) != {self.here}:
            host, port = listen()
            return {"host": host, "port": port, "apart": apart}
        # It stays as long as the processes do: NCCL meets in the store at the first call of each of its groups.
        self.folder = tempfile.mkdtemp(prefix="world-r1-meeting-")
        return {"file": str(Path(self.folder) / "store"), "apart": apart}

    def close(self) -> None:
        """Remove what `place` has left."""
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)


class Publishing:
    """From the first learner to samplers of their own.

    `get(what, call)` waits and raises what went wrong as the driver says it; `fetch(what, call, others, {})` does so for a finished call,
    and prefers the death of an actor in one of the `others`.
    """

    def __init__(
        self, config: Config, learner: Any, samplers: Sequence[Any], get: Callable[..., Any], fetch: Callable[..., Any]
    ) -> None:
        self.learner, self.samplers, self.get, self.fetch = learner, samplers, get, fetch
        chosen = config.cluster.weights
        self.broadcasts = chosen == "broadcast" or (chosen == "auto" and config.model.lora is None)
        self.meeting, self.patience = Meeting(), config.cluster.timeout

    def hosts(self) -> list[str]:
        """The samplers' machines, if weights are broadcast to them."""
        return [self.get(FINDING, sampler.where.remote()) for sampler in self.samplers] if self.broadcasts else []

    def connect(self) -> None:
        """Found the channel, once all are set up; nothing to do without one."""
        if not self.broadcasts:
            return
        size = 1 + len(self.samplers)
        hosts = [self.get(FINDING, self.learner.where.remote()), *self.hosts()]
        place = self.meeting.place(hosts, lambda: self.get(CONNECTING, self.learner.listen.remote(size)))
        calls = [sampler.open_channel.remote(place, rank, size) for rank, sampler in enumerate(self.samplers, 1)]
        waiting = [*calls, self.learner.open_channel.remote(place, size)]
        begin = time.monotonic()
        while waiting:  # whichever fails first: the others would wait for it; in ticks, so that signals are handled
            ready, waiting = ray.wait(waiting, timeout=TICK)
            if not ready and time.monotonic() - begin > self.patience:
                raise ClusterError(unconnected(CONNECTING, self.patience))
            for call in ready:
                self.fetch(CONNECTING, call, waiting, {})

    def publish(self) -> list[ray.ObjectRef]:
        """Start giving the present weights to the samplers; the calls that end when they are there.

        An actor answers in the order of the calls, so a rollout that was started before still has the weights of before.
        """
        if self.broadcasts:
            return [self.learner.send.remote(), *(sampler.receive.remote() for sampler in self.samplers)]
        weights = self.learner.publish.remote()  # a reference: the arrays never come to the driver
        return [sampler.load.remote(weights) for sampler in self.samplers]

    def close(self) -> None:
        """Remove what `connect` has left, once the actors have ended."""
        self.meeting.close()


def channel(config: Config, policy: Policy, place: dict[str, Any], rank: int, size: int, opened: Any = None) -> Channel:
    """This actor's end of a channel of `size` processes that meet at `place`; `opened` is the store there if this one opened it."""
    from world_r1.parallel import meet
    from world_r1.weight_sync import Channel

    alone = policy.device.type == "cuda" and config.cluster.gpus_per_policy >= 1
    store = meet(place, size, str(ray.util.get_node_ip_address()), opened)
    return Channel(rank, size, store, policy.named_parameters(), "nccl" if alone else "gloo")
