"""One policy update from scored rollouts: micro-batches, gradient accumulation over the whole batch, clipping, AdamW, average.

The trainer knows neither Ray nor rewards. It refuses rollouts of another policy version than staleness allows, and an update whose loss or
gradient is not finite leaves the weights alone and is counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from world_r1 import algorithms
from world_r1.camera import trajectory_for
from world_r1.checkpoint import Snapshot
from world_r1.config import Config, OptimizerConfig
from world_r1.ema import EMA
from world_r1.parallel import Team
from world_r1.policy import Policy, frames_ahead
from world_r1.rollout import latents
from world_r1.types import Rollout


class Trainer:
    """Optimizer, algorithm and average around one policy."""

    def __init__(self, config: Config, policy: Policy, team: Team | None = None) -> None:
        """`team`: the processes that learn together; all of them make the same calls.

        ValueError if the policy has nothing to train or the algorithm cannot honour the configuration.
        """
        self.config = config
        self.policy = policy
        self.team = team or Team()
        self.parameters = policy.named_parameters()
        if not self.parameters:
            raise ValueError("the policy has no trained parameters; set model.lora, or null for full fine-tuning")
        self.algorithm = algorithms.build(config)
        settings = config.optimizer
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=settings.learning_rate,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            fused=config.speed.fused_optimizer or None,  # None leaves the choice to torch
        )
        self.average = EMA(self.parameters, config.model.ema_decay, config.model.lora.keep if config.model.lora else None)
        #: Rollout batches learned from: the version of the present weights.
        self.version = 0
        #: Optimizer steps taken, and refused because something was not finite.
        self.updates = 0
        self.refused = 0

    def update(self, rollouts: Sequence[Rollout], advantages: Mapping[str, float | None]) -> dict[str, float]:
        """Take `algorithm.updates` optimizer steps on the rollouts that have an advantage; returns the mean metrics.

        Without any advantage nothing is trained; the version rises all the same, because the loop has moved on. Raises ValueError for a
        stale rollout.
        """
        order = [rollout.id for rollout in rollouts if advantages.get(rollout.id) is not None]
        return self.learn(order, {rollout.id: rollout for rollout in rollouts}, advantages)

    def own(self, order: Sequence[str]) -> list[str]:
        """Which of the batch's videos this process needs; `order` names all that have an advantage, in the same order everywhere."""
        return [name for _, part in self._own_batches(order) for name in part]

    def learn(
        self, order: Sequence[str], rollouts: Mapping[str, Rollout], advantages: Mapping[str, float | None]
    ) -> dict[str, float]:
        """`update` by a process of several, which has the rollouts that are its `own`."""
        refuse_stale(list(rollouts.values()), self.version, self.config.cluster.max_staleness)
        taken = [self._step(order, rollouts, advantages) for _ in range(self.config.algorithm.updates if order else 0)]
        self.version += 1
        metrics = mean_of([(1.0, metrics) for metrics in taken])
        return {**metrics, "updates_refused": float(self.refused), "optimizer_steps": float(self.updates)}

    def _own_batches(self, order: Sequence[str]) -> list[tuple[int, Sequence[str]]]:
        """Number and videos of this process's micro-batches.

        Processes that share a base must run it equally often: one that has a micro-batch less runs the first, of number -1, for nothing.
        """
        size = self.config.optimizer.micro_batch
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        own = self.team.mine(batches)
        if self.config.speed.fsdp and len(own) < math.ceil(len(batches) / self.team.size):
            own.append((-1, batches[0]))
        return own

    def _step(
        self, order: Sequence[str], rollouts: Mapping[str, Rollout], advantages: Mapping[str, float | None]
    ) -> dict[str, float]:
        """One optimizer step on the whole batch; with gradients and metrics of all processes, so that all of them take the same one."""
        self.optimizer.zero_grad(set_to_none=True)
        try:
            own = [True, list(self._accumulate(order, rollouts, advantages))]
        except NotFinite:
            own = [False, []]
        found = self.team.exchange(own)
        if not all(finite for finite, _ in found):
            return self._refuse()
        told = found[:: self.team.together]  # one of each band: the others say the same
        parts = sorted((entry for _, entries in told for entry in entries), key=lambda entry: entry[0])
        metrics = mean_of([(share, values) for _, share, values in parts])
        self.team.sum_gradients(self.parameters.values())
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.config.optimizer.grad_clip))
        if not math.isfinite(norm):
            return self._refuse()
        rate = learning_rate(self.updates, self.config.optimizer)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.updates += 1
        self.average.update()
        return {**metrics, "grad_norm": norm, "lr": rate, **self.algorithm.after_update(self.policy, metrics)}

    def _accumulate(
        self, order: Sequence[str], rollouts: Mapping[str, Rollout], advantages: Mapping[str, float | None]
    ) -> Iterator[tuple[int, float, dict[str, float]]]:
        """Backward of every loss of every own micro-batch as it is yielded; gives (its number, its share of the whole batch, metrics)."""
        finite = True
        # With a shared base or shared tokens the others wait for all of this process's passes.
        waited_for = self.config.speed.fsdp or self.team.together > 1
        for number, part in self._own_batches(order):
            values = torch.tensor([advantages[name] for name in part], dtype=torch.float32)
            batch = stack(self.policy, self.config, [rollouts[name] for name in part], values)
            share = len(part) / len(order) if number >= 0 else 0.0
            for loss in self.algorithm.losses(self.policy, batch):
                finite = finite and bool(torch.isfinite(loss.value))
                if not (finite or waited_for):
                    raise NotFinite
                (loss.value * share).backward()
                if number >= 0:
                    yield number, share, loss.metrics
        if not finite:
            raise NotFinite

    def _refuse(self) -> dict[str, float]:
        self.optimizer.zero_grad(set_to_none=True)
        self.refused += 1
        return {}

    def snapshot(self, step: int) -> Snapshot:
        """Everything that `restore` needs, after `step` loop steps."""
        return Snapshot(
            step,
            {
                "trained": {name: parameter.detach() for name, parameter in self.parameters.items()},
                "average": self.average.state_dict(),
                "optimizer": optimizer_state(self.optimizer, list(self.parameters)),
                "algorithm": self.algorithm.state_dict(),
                "trainer": {"version": self.version, "updates": self.updates, "refused": self.refused},
            },
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Inverse of `snapshot`; ValueError if the weights do not fit this policy."""
        sections = snapshot.sections
        self.policy.load_state({name: _numpy(value) for name, value in sections["trained"].items()})
        self.average.load_state_dict(sections["average"])
        load_optimizer_state(self.optimizer, list(self.parameters), sections["optimizer"])
        self.algorithm.load_state_dict({name: _numpy(value) for name, value in sections["algorithm"].items()})
        counters = sections["trainer"]
        self.version, self.updates, self.refused = (int(counters[key]) for key in ("version", "updates", "refused"))


class NotFinite(ArithmeticError):
    """A loss that cannot be learned from."""


def refuse_stale(rollouts: Sequence[Rollout], version: int, max_staleness: int) -> None:
    """ValueError unless every rollout was drawn with a version in [version - max_staleness, version]."""
    for rollout in rollouts:
        if not version - max_staleness <= rollout.version <= version:
            raise ValueError(
                f"rollout {rollout.id} was drawn with policy version {rollout.version}, the learner is at {version}; "
                f"cluster.max_staleness={max_staleness} allows {version - max_staleness} to {version}"
            )


def stack(policy: Policy, config: Config, rollouts: Sequence[Rollout], advantages: torch.Tensor) -> algorithms.Batch:
    """The micro-batch of some rollouts, on the policy's device. Every prompt is encoded on its own, as it was for sampling."""

    def tensor(name: str) -> torch.Tensor:
        return latents(np.stack([getattr(rollout, name) for rollout in rollouts])).to(policy.device)

    paths = {text: trajectory_for(text, config.video, config.camera) for text in {rollout.prompt.text for rollout in rollouts}}
    return algorithms.Batch(
        steps=tensor("steps"),
        latents=tensor("latents"),
        next_latents=tensor("next_latents"),
        log_probs=tensor("log_probs"),
        x0=tensor("x0"),
        advantages=advantages.to(policy.device),
        condition=torch.cat([policy.encode([rollout.prompt.text]) for rollout in rollouts]),
        seeds=tuple(rollout.seed for rollout in rollouts),
        plans=tuple(rollout.plans for rollout in rollouts),
        ahead=frames_ahead(policy, config.video),
        trajectories=tuple(paths[rollout.prompt.text] for rollout in rollouts),
    )


def learning_rate(updates: int, config: OptimizerConfig) -> float:
    """Rate of the optimizer step number `updates` (from 0): linear warm-up, then constant."""
    return config.learning_rate * min(1.0, (updates + 1) / max(1, config.warmup))


def mean_of(weighted: Sequence[tuple[float, Mapping[str, float]]]) -> dict[str, float]:
    """Weighted mean of each metric over the entries that have it."""
    sums: dict[str, float] = {}
    weights: dict[str, float] = {}
    for weight, metrics in weighted:
        for key, value in metrics.items():
            sums[key] = sums.get(key, 0.0) + weight * value
            weights[key] = weights.get(key, 0.0) + weight
    return {key: sums[key] / weights[key] for key in sums}


def optimizer_state(optimizer: torch.optim.Optimizer, names: Sequence[str]) -> dict[str, Any]:
    """State of an optimizer over named parameters as "name/entry" -> tensor; hyper-parameters stay in the configuration."""
    state = optimizer.state_dict()["state"]
    return {f"{names[index]}/{entry}": value for index, entries in state.items() for entry, value in entries.items()}


def load_optimizer_state(optimizer: torch.optim.Optimizer, names: Sequence[str], flat: Mapping[str, Any]) -> None:
    """Inverse of `optimizer_state`."""
    state: dict[int, dict[str, Any]] = {}
    positions = {name: index for index, name in enumerate(names)}
    for key, value in flat.items():
        name, _, entry = key.rpartition("/")
        if name not in positions:
            raise ValueError(f"the optimizer state belongs to another model: it has {name!r}")
        state.setdefault(positions[name], {})[entry] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _numpy(value: Any) -> Any:
    return value.cpu().numpy() if isinstance(value, torch.Tensor) else value
