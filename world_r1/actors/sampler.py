"""The sampler actor: prompts in, groups of rollouts and clips out."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from world_r1.config import Config
from world_r1.serving.items import content_hash
from world_r1.types import Prompt, Weights


@dataclass(frozen=True)
class Receipt:
    """What the driver learns of a sampled group; the arrays stay in the object store.

    Example: `Receipt(group=1, ids=("s3-p1-k0", "s3-p1-k1"), hashes=("9f2c...", "07aa..."), version=3, seconds=2.1)`
    """

    group: int
    ids: tuple[str, ...]
    #: `content_hash` of the clips, which a verdict must name.
    hashes: tuple[str, ...]
    version: int
    seconds: float


class Sampler:
    """Holds a policy of its own (disaggregated), or shares the learner's (colocated, where it lives inside the learner's process)."""

    def __init__(self, config: Config, policy: Any = None) -> None:
        self.config = config
        self.policy = policy
        self.version = 0
        self._channel: Any = None

    def setup(self) -> str:
        """Load the model; a separate call, so that what goes wrong reaches the driver as the error it is. Returns the device."""
        from world_r1.policy import load_policy

        limit_threads(self.config.cluster.threads)
        self.policy = load_policy(self.config, trainable=False)
        return str(self.policy.device)

    def load(self, weights: Weights) -> int:
        """Take over a published version; returns it."""
        self.policy.load_state(weights.state)
        self.version = weights.version
        return self.version

    def where(self) -> str:
        """The machine's address."""
        return str(ray.util.get_node_ip_address())

    def open_channel(self, place: dict[str, Any], rank: int, size: int) -> None:
        """Meet the learner, whose weights come by broadcast; see `Learner.open_channel`."""
        from world_r1.actors.publishing import channel

        self._channel = channel(self.config, self.policy, place, rank, size)

    def receive(self) -> int:
        """Take over the weights that the learner sends; returns their version."""
        self.version = self._channel.receive()
        return self.version

    def sample(self, prompts: Sequence[Prompt], step: int, groups: Sequence[int]) -> tuple[Any, ...]:
        """Groups with the present weights: (receipt, rollouts, clips) of the first, then of the next, all as return values of their own.

        The driver fetches the receipts only.
        """
        from world_r1.memory import explained
        from world_r1.rollout import sample_groups

        start = time.perf_counter()
        with explained(self.config, "sampling"):
            found = sample_groups(self.policy, self.config, prompts, step, groups, self.version)
        seconds = time.perf_counter() - start
        values: list[Any] = []
        for group, sampled in zip(groups, found, strict=True):
            ids = tuple(rollout.id for rollout in sampled.rollouts)
            hashes = tuple(content_hash(clip) for clip in sampled.clips)
            values += [Receipt(group, ids, hashes, self.version, seconds), sampled.rollouts, sampled.clips]
        return tuple(values)

    def heldout(self, part: int, parts: int, state: Mapping[str, Any] | None) -> Iterator[Any]:
        """This process's share of a held-out evaluation, clip by clip (see `world_r1.evaluation.sampled`), with the weights `state`."""
        from world_r1 import evaluation

        before = self.policy.state() if state is not None else None
        if state is not None:
            self.policy.load_state(state)
        try:
            # Ray drives a generator by `send`, which `yield from` would hand down to an array.
            for clip in evaluation.sampled(self.policy, self.config, part, parts):  # noqa: UP028
                yield clip
        finally:
            if before is not None:
                self.policy.load_state(before)


def limit_threads(threads: int) -> None:
    """Threads of torch (and of BLAS in processes that start from here) in this process."""
    import torch

    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(threads)
    torch.set_num_threads(threads)
