"""One group of videos from the policy: encode once, draw x_T under the commanded camera, denoise, decode.

A group is a pure function of (configuration, weights, prompt, step, group index): which process makes it, and what else that process makes,
changes nothing.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from world_r1 import flow, noise
from world_r1.algorithms import ALGORITHMS
from world_r1.camera import trajectory_for
from world_r1.config import Config
from world_r1.policy import Policy, frames_ahead
from world_r1.types import Clip, Prompt, Rollout, Trajectory

Seed = tuple[int, int, int, int]


@dataclass(frozen=True)
class Sampled:
    """A group as it leaves the policy.

    Example: `Sampled(rollouts=[Rollout(id="s3-p1-k0", ...), ...], clips=[Clip(id="s3-p1-k0", ...), ...])`, in the order of the samples.
    """

    rollouts: list[Rollout]
    clips: list[Clip]


def rollout_ids(config: Config, step: int, group: int) -> tuple[str, ...]:
    """Ids of a group's videos."""
    return tuple(f"s{step}-p{group}-k{sample}" for sample in range(config.prompts.group_size))


def sample_group(policy: Policy, config: Config, prompt: Prompt, step: int, group: int, version: int) -> Sampled:
    """Sample and decode the `group_size` videos of one prompt with the policy's present weights, which are of `version`.

    ValueError if the latents are not finite, which would decode to a picture of nothing.
    """
    seeds: list[Seed] = [(config.seed, step, group, sample) for sample in range(config.prompts.group_size)]
    ids = rollout_ids(config, step, group)
    trajectory = trajectory_for(prompt.text, config.video, config.camera)
    window = trained_steps(config, step, group)
    condition = policy.encode([prompt.text])
    rollouts: list[Rollout] = []
    clips: list[Clip] = []
    keeps_plans = _keeps_plans(config)
    size = config.cluster.sample_batch or config.optimizer.micro_batch
    for start in range(0, len(seeds), size):
        part = slice(start, start + size)
        with policy.recording() if keeps_plans else nullcontext([]) as plans:
            trace = _denoise(policy, config, condition, trajectory, window, seeds[part])
        videos = policy.decode(trace.x0)
        for i, (name, seed) in enumerate(zip(ids[part], seeds[part], strict=True)):
            rollout = _rollout(trace, i, name, prompt, group, seed, version, window, config.speed.latents)
            kept = tuple(plans[step][i] for step in window.tolist()) if keeps_plans else ()
            rollouts.append(replace(rollout, plans=kept))
            # A copy of its own, so that a reference to one video does not keep the whole batch alive.
            clips.append(Clip(name, videos[i].copy(), prompt, trajectory, config.video.fps))
    return Sampled(rollouts, clips)


def trained_steps(config: Config, step: int, group: int) -> torch.Tensor:
    """[k] indices of the stochastic steps of a group; empty for an algorithm that samples the ODE."""
    if not samples_stochastically(config):
        return torch.zeros(0, dtype=torch.int64)
    return flow.window(config.flow, config.seed, step, group)


def samples_stochastically(config: Config) -> bool:
    """Whether the algorithm trains on stochastic steps; otherwise rollouts are ODE samples."""
    algorithm: Any = ALGORITHMS[config.algorithm.name]
    return algorithm.stochastic


def _keeps_plans(config: Config) -> bool:
    """Whether trained steps carry their sparse-attention plans. Without stochastic steps nothing is replayed."""
    attention = config.speed.attention
    return attention.kind != "dense" and attention.replay and samples_stochastically(config)


def initial_noise(policy: Policy, config: Config, trajectory: Trajectory | None, seed: Seed) -> torch.Tensor:
    """[C, t, h, w] x_T of one sample; the whole group's with `noise.shared_in_group`."""
    key = seed[:3] if config.noise.shared_in_group else seed
    shape, ahead = policy.latent_shape(config.video), frames_ahead(policy, config.video)
    return noise.initial_noise(trajectory, shape, config.noise, *key, device=policy.device, ahead=ahead)


def _denoise(
    policy: Policy, config: Config, condition: torch.Tensor, trajectory: Trajectory | None, window: torch.Tensor, seeds: list[Seed]
) -> flow.Trace:
    x = torch.stack([initial_noise(policy, config, trajectory, seed) for seed in seeds]).to(policy.device)
    repeated = condition.expand(len(seeds), *condition.shape[1:])
    sigmas = flow.schedule(config.flow.steps, config.flow.shift)
    generators = flow.generators(seeds)
    rounding = torch.bfloat16 if config.speed.latents == "bf16" else None
    trace = flow.sample(lambda x, sigma: policy.velocity(x, sigma, repeated), x, sigmas, config.flow, window, generators, rounding)
    if not bool(trace.x0.isfinite().all()):
        raise ValueError(
            f"sampling in step {seeds[0][1]} ended in latents that are not finite: the policy has diverged; "
            "lower optimizer.learning_rate or raise algorithm.kl.beta"
        )
    return trace


def _rollout(
    trace: flow.Trace,
    i: int,
    name: str,
    prompt: Prompt,
    group: int,
    seed: Seed,
    version: int,
    window: torch.Tensor,
    latents: str,
) -> Rollout:
    stored = bits if latents == "bf16" else _array
    return Rollout(
        id=name,
        prompt=prompt,
        group=group,
        seed=seed,
        version=version,
        steps=window.numpy().astype(np.int64),
        latents=stored(trace.latents[i]),
        next_latents=stored(trace.next_latents[i]),
        log_probs=_array(trace.log_probs[i]),
        x0=stored(trace.x0[i]),
    )


def bits(tensor: torch.Tensor) -> np.ndarray:
    """The bfloat16 bits of a tensor as uint16: numpy has no such type."""
    return tensor.to(torch.bfloat16).cpu().contiguous().view(torch.int16).numpy().view(np.uint16).copy()


def latents(array: np.ndarray) -> torch.Tensor:
    """float32 latents from what a `Rollout` holds: float32, or the bits of bfloat16."""
    if array.dtype == np.uint16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16).float()
    return torch.from_numpy(array)


def _array(tensor: torch.Tensor) -> np.ndarray:
    """A float32 copy of its own, so that a reference to one video does not keep the whole batch alive."""
    return tensor.float().cpu().numpy().copy()
