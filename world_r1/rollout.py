"""Groups of videos from the policy: encode once, draw x_T under the commanded camera, denoise, decode.

A group is a pure function of (configuration, weights, prompt, step, group index): which process makes it, and what else that process makes,
changes nothing (but the last bits, where groups share a forward on a GPU).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import groupby
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
    """`sample_groups` of one prompt."""
    return sample_groups(policy, config, [prompt], step, [group], version)[0]


def sample_groups(
    policy: Policy,
    config: Config,
    prompts: Sequence[Prompt],
    step: int,
    groups: Sequence[int],
    version: int,
    leads: bool = True,
) -> list[Sampled]:
    """Sample and decode the `group_size` videos of every prompt with the policy's present weights, which are of `version`.

    Videos of several groups share forwards of up to `cluster.sample_batch`. A process that does not lead helps another with the tokens of
    its videos (`speed.sequence_parallel`): it runs the same forwards, decodes nothing and gives empty groups. ValueError if latents are
    not finite, which would decode to a picture of nothing.
    """
    asked = [_asked(policy, config, prompt, step, group) for prompt, group in zip(prompts, groups, strict=True)]
    found = [Sampled([], []) for _ in asked]
    videos = [(a, sample) for a in range(len(asked)) for sample in range(config.prompts.group_size)]
    keeps_plans = _keeps_plans(config)
    size = config.cluster.sample_batch or config.optimizer.micro_batch
    for start in range(0, len(videos), size):
        part = videos[start : start + size]
        trained = {k for a, _ in part for k in asked[a].window.tolist()}
        with policy.recording(trained) if keeps_plans else nullcontext([]) as plans:
            trace = _denoise(policy, config, [(asked[a], _seed(config, step, asked[a].group, sample)) for a, sample in part])
        if not leads:
            continue
        pictures = policy.decode(trace.x0)
        kept = _kept(trace, config.speed.latents)
        for i, (a, sample) in enumerate(part):
            one = asked[a]
            name, seed = one.ids[sample], _seed(config, step, one.group, sample)
            rollout = _rollout(kept, i, name, one.prompt, one.group, seed, version, one.window)
            seen = tuple(plans[k][i] for k in one.window.tolist()) if keeps_plans else ()
            found[a].rollouts.append(replace(rollout, plans=seen))
            # A copy of its own, so that a reference to one video does not keep the whole batch alive.
            found[a].clips.append(Clip(name, pictures[i].copy(), one.prompt, one.trajectory, config.video.fps))
    return found


@dataclass(frozen=True)
class _Asked:
    """What the videos of a group have in common."""

    prompt: Prompt
    group: int
    ids: tuple[str, ...]
    trajectory: Trajectory | None
    window: torch.Tensor
    condition: torch.Tensor


def _asked(policy: Policy, config: Config, prompt: Prompt, step: int, group: int) -> _Asked:
    trajectory = trajectory_for(prompt.text, config.video, config.camera)
    window, condition = trained_steps(config, step, group), policy.encode([prompt.text])
    return _Asked(prompt, group, rollout_ids(config, step, group), trajectory, window, condition)


def _seed(config: Config, step: int, group: int, sample: int) -> Seed:
    return (config.seed, step, group, sample)


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


def initial_noise(policy: Policy, config: Config, trajectory: Trajectory | None, seeds: Sequence[Seed]) -> torch.Tensor:
    """[B, C, t, h, w] x_T of samples of one trajectory; the whole group's is one with `noise.shared_in_group`."""
    keys = [seed[:3] if config.noise.shared_in_group else seed for seed in seeds]
    shape, ahead = policy.latent_shape(config.video), frames_ahead(policy, config.video)
    return noise.initial_noises(trajectory, shape, config.noise, keys, device=policy.device, ahead=ahead)


def _denoise(policy: Policy, config: Config, videos: Sequence[tuple[_Asked, Seed]]) -> flow.Trace:
    runs = [list(same) for _, same in groupby(videos, key=lambda video: id(video[0]))]
    drawn = [initial_noise(policy, config, same[0][0].trajectory, [seed for _, seed in same]) for same in runs]
    x = torch.cat(drawn).to(policy.device)
    condition = torch.cat([one.condition for one, _ in videos])
    window = torch.stack([one.window for one, _ in videos])
    seeds = [seed for _, seed in videos]
    sigmas = flow.schedule(config.flow.steps, config.flow.shift)
    generators = flow.generators(seeds)
    rounding = torch.bfloat16 if config.speed.latents == "bf16" else None
    trace = flow.sample(lambda x, sigma: policy.velocity(x, sigma, condition), x, sigmas, config.flow, window, generators, rounding)
    if not bool(trace.x0.isfinite().all()):
        raise ValueError(
            f"sampling in step {seeds[0][1]} ended in latents that are not finite: the policy has diverged; "
            "lower optimizer.learning_rate or raise algorithm.kl.beta"
        )
    return trace


def _kept(trace: flow.Trace, latents: str) -> dict[str, np.ndarray]:
    """What rollouts hold of a trace, fetched from the device in one transfer each instead of one a video."""
    stored = bits if latents == "bf16" else _array
    videos = {name: stored(getattr(trace, name)) for name in ("latents", "next_latents", "x0")}
    return {**videos, "log_probs": _array(trace.log_probs)}


def _rollout(
    kept: dict[str, np.ndarray], i: int, name: str, prompt: Prompt, group: int, seed: Seed, version: int, window: torch.Tensor
) -> Rollout:
    return Rollout(
        id=name,
        prompt=prompt,
        group=group,
        seed=seed,
        version=version,
        steps=window.numpy().astype(np.int64),
        # Copies of its own, so that a reference to one video does not keep the whole batch alive.
        **{what: values[i].copy() for what, values in kept.items()},
    )


def bits(tensor: torch.Tensor) -> np.ndarray:
    """The bfloat16 bits of a tensor as uint16: numpy has no such type."""
    return tensor.to(torch.bfloat16).cpu().contiguous().view(torch.int16).numpy().view(np.uint16)


def latents(array: np.ndarray) -> torch.Tensor:
    """float32 latents from what a `Rollout` holds: float32, or the bits of bfloat16."""
    if array.dtype == np.uint16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16).float()
    return torch.from_numpy(array)


def _array(tensor: torch.Tensor) -> np.ndarray:
    """float32; not a copy where it is on the CPU already."""
    return tensor.float().cpu().numpy()
