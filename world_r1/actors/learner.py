"""The learner actor: scored rollouts in, weights out; and the colocated worker, which samples with the same weights."""

from __future__ import annotations

import queue
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ray

from world_r1.actors.sampler import Sampler, limit_threads
from world_r1.config import Config
from world_r1.types import Prompt, Rollout, Weights


class Learner:
    """Holds policy, optimizer and average. `rank` of `world` is its place among several learners, which make the same calls."""

    def __init__(self, config: Config, rank: int = 0, world: int = 1) -> None:
        self.config = config
        self.rank, self.world = rank, world
        #: A store that `listen` opened and that is not met in yet; the one of the learners; the samplers' end of weights by broadcast.
        self._opened: Any = None
        self._store: Any = None
        self._channel: Any = None
        self.policy: Any = None
        self.trainer: Any = None

    def setup(self) -> str:
        """Load the model and build the optimizer; returns the device."""
        from world_r1.policy import load_policy
        from world_r1.update import Trainer

        limit_threads(self.config.cluster.threads)
        self.policy = load_policy(self.config)
        self.trainer = Trainer(self.config, self.policy)
        return str(self.policy.device)

    def where(self) -> str:
        """The machine's address, by which learners on one machine are told from others."""
        return str(ray.util.get_node_ip_address())

    def listen(self, size: int) -> tuple[str, int]:
        """Open a store in which `size` processes of several machines will meet; returns where it listens."""
        from world_r1 import parallel

        self._opened = parallel.listen(self.where(), size)
        return self.where(), int(self._opened.port)

    def join(self, place: dict[str, Any]) -> None:
        """Connect with the other learners through the store at `place`. ValueError if they do not hold the same weights."""
        from world_r1.parallel import Processes, meet

        self._store, self._opened = meet(place, self.world, self.where(), self._opened), None
        alone = self.policy.device.type == "cuda" and self.config.cluster.gpus_per_policy >= 1
        together = self.config.speed.sequence_parallel
        self.trainer.team = Processes(self.rank, self.world, self._store, "nccl" if alone else "gloo", together)
        sums = self.trainer.team.exchange([zlib.crc32(value.tobytes()) for value in self.policy.state().values()])
        if any(one != sums[0] for one in sums):
            raise ValueError(
                "the learners do not start from the same weights; model.path and model.init_lora must be the same everywhere"
            )
        if self.config.speed.fsdp:
            self.policy.shard(self.trainer.team.mesh(self.policy.device.type))
        if together > 1:
            self.policy.share_tokens(self.trainer.team.band())

    def update(
        self, advantages: dict[str, float | None], names: Sequence[Sequence[str]], groups: Sequence[ray.ObjectRef]
    ) -> dict[str, float]:
        """Learn from the step's groups; returns metrics. `names` are the ids of each group's videos, `groups` refer to their rollouts.

        One of several learners fetches the groups that hold videos of its own.
        """
        from world_r1.memory import explained

        order = [name for group in names for name in group if advantages.get(name) is not None]
        own = set(self.trainer.own(order))
        wanted = [group for ids, group in zip(names, groups, strict=True) if self.world == 1 or own & set(ids)]
        rollouts: dict[str, Rollout] = {rollout.id: rollout for group in ray.get(wanted) for rollout in group}
        with explained(self.config, "updating the policy"):
            return self.trainer.learn(order, rollouts, advantages)

    def memory(self) -> float:
        """Most GiB of GPU memory that were allocated at once in this process; 0 on a CPU."""
        import torch

        return torch.cuda.max_memory_allocated() / 2**30 if self.policy.device.type == "cuda" else 0.0

    def open_channel(self, place: dict[str, Any], size: int) -> None:
        """Meet the `size` - 1 samplers to which weights are broadcast, in the store at `place`. ValueError in those that hold others."""
        from world_r1.actors.publishing import channel

        self._channel, self._opened = channel(self.config, self.policy, place, 0, size, self._opened), None

    def send(self) -> int:
        """Broadcast the present weights; returns their version."""
        return int(self._channel.send(self.trainer.version))

    def publish(self) -> Weights:
        """The present weights as numpy arrays, for the samplers."""
        return Weights(self.trainer.version, self.policy.state())

    def save(self, directory: str, step: int) -> str:
        """Write a checkpoint of the state after `step` loop steps; returns its path. OSError if it cannot be written."""
        from world_r1 import checkpoint

        return str(checkpoint.save(Path(directory), self.trainer.snapshot(step), self.config))

    def restore(self, path: str) -> int:
        """Load a checkpoint; returns the number of loop steps that it is after."""
        from world_r1 import checkpoint

        snapshot = checkpoint.load(Path(path), self.config)
        self.trainer.restore(snapshot)
        return snapshot.step

    def evaluate(self, directory: str, what: str, samplers: Sequence[Any] = ()) -> Iterator[Any]:
        """Held-out evaluation of "base" (the weights as they are), "average" (the averaged ones) or "reference" (renders, round trips).

        `samplers`, actors with a policy of their own, sample their share of the clips. Yields (clips done, clips in all) while it
        works, then the result of the function in `world_r1.evaluation`.
        """
        from world_r1 import evaluation

        if what == "reference":
            yield from progressing(lambda report: evaluation.reference(self.policy, self.config, directory, progress=report))
            return
        state = self._state_for(what)
        shared = ray.put(state)
        parts = [
            sampler.heldout.options(num_returns="streaming").remote(k, len(samplers) + 1, shared)
            for k, sampler in enumerate(samplers, 1)
        ]
        others = [map(ray.get, part) for part in parts]
        yield from progressing(
            lambda report: evaluation.evaluate(self.policy, self.config, state, directory, progress=report, others=others)
        )

    def _state_for(self, what: str) -> dict[str, Any] | None:
        """The weights that an evaluation of "average" or "base" samples with; None: those that are there."""
        if what != "average":
            return None
        return {name: value.cpu().numpy() for name, value in self.trainer.average.weights().items()}

    def export(self, directory: str) -> str:
        """Write the averaged weights for inference (`--lora`), in diffusers layout."""
        with self.trainer.average.applied():
            self.policy.save(directory)
        return directory


def progressing(work: Callable[[Callable[[int, int], None]], Any]) -> Iterator[Any]:
    """Run `work(report)` in a thread of its own: yields what it reports, then its result; raises what it raises."""
    reports: queue.SimpleQueue[Any] = queue.SimpleQueue()
    done = object()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work, lambda *amounts: reports.put(amounts))
        future.add_done_callback(lambda _: reports.put(done))
        while (report := reports.get()) is not done:
            yield report
        yield future.result()


class PolicyWorker(Learner):
    """Sampler and learner in one process, on one copy of the weights."""

    def setup(self) -> str:
        """As the learner's; the sampler inside uses its policy."""
        device = super().setup()
        self.sampler = Sampler(self.config, self.policy)
        return device

    def sample(self, prompts: Sequence[Prompt], step: int, groups: Sequence[int]) -> tuple[Any, ...]:
        """Groups with the present weights; see `Sampler.sample`."""
        self.sampler.version = self.trainer.version
        return self.sampler.sample(prompts, step, groups)

    def heldout(self, part: int, parts: int, state: Mapping[str, Any] | None) -> Iterator[Any]:
        """This process's share of a held-out evaluation that another learner leads; see `Sampler.heldout`."""
        # Ray drives a generator by `send`, which `yield from` would hand down to an array.
        for clip in self.sampler.heldout(part, parts, state):  # noqa: UP028
            yield clip

    # With `speed.sequence_parallel` the first of a band answers for it; the others make the same calls, and give nothing back.

    def help_sample(self, prompts: Sequence[Prompt], step: int, groups: Sequence[int]) -> None:
        """This process's share of the tokens of groups that the first of its band samples."""
        from world_r1.memory import explained
        from world_r1.rollout import sample_groups

        with explained(self.config, "sampling"):
            sample_groups(self.policy, self.config, prompts, step, groups, self.trainer.version, leads=False)

    def help_evaluate(self, part: int, parts: int, what: str) -> None:
        """This process's share of the tokens of clips that the first of its band samples for an evaluation; see `evaluate`."""
        for _ in self.sampler.heldout(part, parts, self._state_for(what)):
            pass
