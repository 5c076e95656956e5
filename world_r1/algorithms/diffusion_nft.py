"""DiffusionNFT: policy optimisation on the forward process (arXiv 2509.16117), without likelihoods and with any solver."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from world_r1 import flow, rng
from world_r1.algorithms.base import Batch, Loss, floats
from world_r1.config import Config
from world_r1.noise import initial_noise
from world_r1.policy import Policy


class DiffusionNFT:
    """Contrast of an implicit positive and negative policy on freshly noised results.

    With v_old a slow average of the trained weights and strength b (`nft_beta`), v+ = v_old + b (v - v_old) and v- = v_old - b
    (v - v_old). A video of optimality r in [0, 1] pulls v+ towards its own velocity with weight r and v- with weight 1 - r:

        loss = (r |x0+ - x_0|^2 / w+  +  (1 - r) |x0- - x_0|^2 / w-) clip / b,     x0+- = x_t - sigma v+-

    where w = mean |x0_hat - x_0| is a constant to the gradient (self-normalisation over noise levels). r = 1/2 + A / (2 clip)
    for an advantage A in [-clip, clip]: at v = v_old the gradient is A times that of plain flow matching, whatever b and clip
    are, which is why the loss carries clip / b. Rollouts come from the current weights, which v_old follows with decay
    min(nft_decay, (1 + n) / (10 + n)) after n updates; with decay 0 it is the present policy and costs no forward pass of its own.

    KL option: `kl.beta` times the squared velocity difference to the base model, averaged over dimensions. There is no transition
    density and hence no total in nats: `kl.target_nats` is refused.

    Metrics: `policy_loss`, `drift` (mean squared v - v_old), and with KL `kl_loss`.
    """

    stochastic = False

    def __init__(self, config: Config) -> None:
        if config.algorithm.kl.target_nats is not None:
            raise ValueError(
                "diffusion_nft has no transition density, so no KL in nats; set algorithm.kl.target_nats to null and kl.beta"
            )
        if config.noise.shared_in_group:
            raise ValueError(
                "diffusion_nft samples without noise along the way, so a group that shares x_T would be one video over and over; "
                "set noise.shared_in_group to false"
            )
        self.config = config
        self.updates = 0
        #: The old policy's trained parameters by name, on the policy's device; empty before the first losses.
        self.old: dict[str, torch.Tensor] = {}

    def losses(self, policy: Policy, batch: Batch) -> Iterator[Loss]:
        """One `Loss` per drawn noise level, weighted 1/nft_sigmas; with `together` a single one of all levels, their mean."""
        self._take_old(policy)
        count = self.config.algorithm.nft_sigmas
        if self.config.algorithm.together:
            sigmas, noises = zip(*self._noised(batch), strict=True)
            yield self._one(policy, repeated(batch, count), torch.cat(sigmas), torch.cat(noises), 1)
            return
        for sigma, noise in self._noised(batch):
            yield self._one(policy, batch, sigma, noise, count)

    def _take_old(self, policy: Policy) -> None:
        """The old policy starts from the weights that the first losses see; after a resume it moves to the policy's device."""
        parameters = policy.named_parameters()
        if not self.old:
            self.old = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        elif self.old.keys() != parameters.keys():
            raise ValueError(
                f"the old policy and the model differ in parameters: {sorted(self.old.keys() ^ parameters.keys())[:4]}"
            )
        else:
            self.old = {name: self.old[name].to(parameter.device) for name, parameter in parameters.items()}

    def _noised(self, batch: Batch) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Per noise level: sigma [B] (one stratum of (nft_sigma_min, 1] each, shifted as the schedule is) and noise [B, C, t, h, w].

        The noise has the law of x_T, warped by the commanded camera: the forward process must end where sampling starts. The videos
        of a group share noise and level (common random numbers): their advantages sum to zero, so what the videos have in common
        cancels in the gradient, and only what tells them apart is left.
        """
        count, device = self.config.algorithm.nft_sigmas, batch.x0.device
        cameras = batch.trajectories or (None,) * len(batch.seeds)
        shape = tuple(batch.x0.shape[1:])
        lowest = self.config.algorithm.nft_sigma_min
        for j in range(count):
            keys = [(*seed[:3], "nft", self.updates, j) for seed in batch.seeds]
            uniform = torch.stack([torch.rand((), generator=rng.generator(*key), dtype=torch.float64) for key in keys])
            position = lowest + (1.0 - lowest) * (j + 1.0 - uniform) / count
            sigma = flow.shifted(position, self.config.flow.shift).float()
            drawn = {
                key: initial_noise(camera, shape, self.config.noise, *key, device=device, ahead=batch.ahead)  # type: ignore[arg-type]
                for key, camera in dict(zip(keys, cameras, strict=True)).items()
            }
            yield sigma.to(device), torch.stack([drawn[key] for key in keys]).to(device)

    def _one(self, policy: Policy, batch: Batch, sigma: torch.Tensor, noise: torch.Tensor, count: int) -> Loss:
        settings = self.config.algorithm
        level = sigma.reshape(-1, *[1] * (noise.dim() - 1))
        x = torch.lerp(batch.x0, noise, level)
        old = base = None
        if settings.nft_decay > 0:
            with torch.no_grad(), self._old_weights(policy):
                old = policy.velocity(x, sigma, batch.condition)
        if settings.kl.beta > 0:
            with torch.no_grad(), policy.reference():
                base = policy.velocity(x, sigma, batch.condition)
        velocity = policy.velocity(x, sigma, batch.condition)
        if old is None:
            old = velocity.detach()
        change = velocity - old
        residual = x - level * old - batch.x0  # of the old policy's x_0 prediction
        move = level * settings.nft_beta * change
        clip = settings.advantage.clip
        optimality = 0.5 + batch.advantages.clamp(-clip, clip) / (2.0 * clip)
        positive, negative = _normalised_square(residual - move), _normalised_square(residual + move)
        value = ((optimality * positive + (1.0 - optimality) * negative) * (clip / settings.nft_beta)).mean()
        metrics = {"policy_loss": value, "drift": change.square().mean()}
        if base is not None:
            metrics["kl_loss"] = settings.kl.beta * (change + (old - base)).square().mean()
            value = value + metrics["kl_loss"]
        return Loss(value / count, floats(metrics))

    @contextmanager
    def _old_weights(self, policy: Policy) -> Iterator[None]:
        """Inside, the policy is v_old: storages are swapped, nothing is copied. Only for passes without gradient."""
        parameters = policy.named_parameters()
        self._swap(parameters)
        try:
            yield
        finally:
            self._swap(parameters)

    def _swap(self, parameters: dict[str, torch.nn.Parameter]) -> None:
        for name, parameter in parameters.items():
            parameter.data, self.old[name] = self.old[name], parameter.data

    @torch.no_grad()
    def after_update(self, policy: Policy, metrics: dict[str, float]) -> dict[str, float]:
        """Moves the old policy towards the new weights."""
        self._take_old(policy)
        decay = min(self.config.algorithm.nft_decay, (1.0 + self.updates) / (10.0 + self.updates))
        for name, parameter in policy.named_parameters().items():
            self.old[name].lerp_(parameter, 1.0 - decay)
        self.updates += 1
        return {"old_decay": decay}

    def state_dict(self) -> dict[str, Any]:
        """`updates`, and the old policy's weights as float32 arrays under "old.<parameter>" (none before the first losses)."""
        return {"updates": self.updates, **{f"old.{name}": value.cpu().numpy().copy() for name, value in self.old.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.updates = int(state["updates"])
        weights = {name.removeprefix("old."): value for name, value in state.items() if name.startswith("old.")}
        self.old = {name: torch.from_numpy(np.array(value, dtype=np.float32)) for name, value in weights.items()}


def repeated(batch: Batch, count: int) -> Batch:
    """The videos of a batch `count` times over, as far as this algorithm looks at them."""
    x0, condition, advantages = (torch.cat([value] * count) for value in (batch.x0, batch.condition, batch.advantages))
    return replace(batch, x0=x0, condition=condition, advantages=advantages)


def _normalised_square(residual: torch.Tensor) -> torch.Tensor:
    """[B] mean square over the mean absolute value, the latter without gradient and at least 1e-5."""
    weight = residual.detach().abs().flatten(1).mean(1).clamp(min=1e-5)
    return residual.square().flatten(1).mean(1) / weight
