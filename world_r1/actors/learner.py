"""The learner actor: scored rollouts in, weights out; and the colocated worker, which samples with the same weights."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ray

from world_r1.actors.sampler import Sampler, limit_threads
from world_r1.config import Config
from world_r1.types import Prompt, Rollout, Weights


class Learner:
    """Holds policy, optimizer and average. `rank` of `world` is its place among several learners; today there is one."""

    def __init__(self, config: Config, rank: int = 0, world: int = 1) -> None:
        if world != 1:
            raise ValueError(f"several learners need data-parallel training, which this version lacks; got world={world}")
        self.config = config
        self.rank = rank
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

    def update(self, advantages: dict[str, float | None], *groups: list[Rollout]) -> dict[str, float]:
        """Learn from the step's groups (references, resolved here); returns metrics."""
        from world_r1.memory import explained

        with explained(self.config, "updating the policy"):
            return self.trainer.update([rollout for group in groups for rollout in group], advantages)

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
        average = {name: value.cpu().numpy() for name, value in self.trainer.average.average.items()}
        state = average if what == "average" else None
        shared = ray.put(state)
        parts = [
            sampler.heldout.options(num_returns="streaming").remote(k, len(samplers) + 1, shared)
            for k, sampler in enumerate(samplers, 1)
        ]
        others = [map(ray.get, part) for part in parts]
        yield from progressing(
            lambda report: evaluation.evaluate(self.policy, self.config, state, directory, progress=report, others=others)
        )

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
