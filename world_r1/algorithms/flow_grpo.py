"""Flow-GRPO: the likelihood-ratio method (arXiv 2505.05470), trained on the steps of the SDE window only."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from world_r1 import flow, loss
from world_r1.algorithms.base import Batch, Loss, floats
from world_r1.config import Config, KLConfig
from world_r1.policy import Policy


class AdaptiveBeta:
    """The KL weight, steered towards a total KL of `target_nats` per trained step.

    A proportional-integral rule on the logarithmic error e = log(kl / target), limited to +-1:

        log beta += 2 (e - e_last) + 0.05 e,     by at most +-log(rate) in one update

    The KL answers to beta with the delay of the optimizer, so that an integral alone swings by orders of magnitude; the
    proportional term damps it (with a KL that relaxes at a rate a per update, gains p, i are critically damped at
    i = a (1 + 2 p)^2 / 8). The integral waits while the KL is below the target but rises fast enough to get there within
    1 / 0.05 updates: training starts at KL 0, and lowering the weight all the way up would overshoot.
    """

    proportional, integral = 2.0, 0.05

    def __init__(self, config: KLConfig) -> None:
        self.config = config
        self.value = config.beta
        self.last: float | None = None
        if config.target_nats is not None and config.beta == 0:
            self.value = loss.beta_for_nats(config.target_nats)

    def update(self, kl_nats: float) -> None:
        """One optimizer step's mean KL; without a target beta stays as it is."""
        if self.config.target_nats is None:
            return
        last = kl_nats if self.last is None else self.last
        error = self._error(kl_nats)
        change = self.proportional * (self._limited(error) - self._limited(self._error(last)))
        on_its_way = error < 0 and error + (error - self._error(last)) / self.integral > 0
        if not on_its_way and kl_nats > 0:
            change += self.integral * self._limited(error)
        limit = math.log(self.config.rate)
        self.value *= math.exp(min(max(change, -limit), limit))
        self.last = kl_nats

    def _error(self, kl_nats: float) -> float:
        assert self.config.target_nats is not None
        return math.log(max(kl_nats, 1e-30) / self.config.target_nats)

    @staticmethod
    def _limited(error: float) -> float:
        return min(max(error, -1.0), 1.0)


class FlowGRPO:
    """Clipped surrogate on the ratio of transition densities, plus the closed-form KL to the base model.

    Surrogate and KL are in the reduction of `flow.log_prob`, so that beta means the same in both (the balance in `loss` holds for
    either). Each window step is one loss: the graph of one velocity evaluation is alive at a time.

    Metrics of a step: `policy_loss`, `ratio_mean`, `ratio_std`, `clip_fraction`, `approx_kl`; with a KL term also `kl_loss`,
    `kl_nats` (total over the latent dimensions, mean over videos) and `beta`.
    """

    stochastic = True

    def __init__(self, config: Config) -> None:
        self.config = config
        self.sigmas = flow.schedule(config.flow.steps, config.flow.shift)
        flow.window(config.flow, 0)  # refuses a window without noise before anything is sampled
        self.beta = AdaptiveBeta(config.algorithm.kl)

    def losses(self, policy: Policy, batch: Batch) -> Iterator[Loss]:
        """One `Loss` per window step, weighted 1/k; with `together` a single one of all steps, their mean.

        ValueError for a batch without stochastic steps.
        """
        k = batch.steps.shape[1]
        if k == 0:
            raise ValueError("flow_grpo needs rollouts with stochastic steps; these have none (flow.window)")
        settings, noise = self.config.algorithm, self.replayed(batch)
        if settings.together:
            batch, noise, k = unfolded(batch), None if noise is None else noise.transpose(0, 1).flatten(0, 1)[:, None], 1
        for j in range(k):
            log_ratio, kl = self.terms(policy, batch, j, noise)
            value = loss.clipped_surrogate(log_ratio, batch.advantages, settings.clip_low, settings.clip_high).mean()
            metrics = {"policy_loss": value, **self.measured(log_ratio, kl, batch.x0[0].numel())}
            if kl is not None:
                value = value + self.beta.value * kl.mean()
            yield Loss(value / k, floats(metrics) | {"beta": self.beta.value})

    def replayed(self, batch: Batch) -> torch.Tensor | None:
        """[B, k, C, t, h, w] noise of the batch's transitions on the CPU, if the ratio normalisation needs it."""
        if not self.config.algorithm.ratio_norm:
            return None
        return flow.replay_noise(batch.seeds, batch.steps.shape[1], batch.x0.shape[1:])

    def terms(self, policy: Policy, batch: Batch, j: int, noise: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[B] log-ratios at window position j (normalised if configured) and, with a KL term, [B] KL to the base; with gradient."""
        x, x_next, steps = batch.latents[:, j], batch.next_latents[:, j], batch.steps[:, j]

        def velocity(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            return policy.velocity(x, sigma, batch.condition)

        base = None
        with batch.attending(policy, j):
            if self.beta.value > 0:  # before the policy's own pass, so that no graph is alive meanwhile
                with torch.no_grad(), policy.reference():
                    base = flow.evaluate_transition(velocity, x, steps, self.sigmas, self.config.flow)
            transition, log_prob = flow.evaluate(velocity, x, x_next, steps, self.sigmas, self.config.flow)
        log_ratio = log_prob - batch.log_probs[:, j]
        if noise is not None:
            log_ratio = self._normalised(log_ratio, transition, x_next, noise[:, j], steps, batch.log_probs[:, j])
        return log_ratio, None if base is None else transition.kl(base, self.config.flow.log_prob)

    def measured(self, log_ratio: torch.Tensor, kl: torch.Tensor | None, dimensions: int) -> dict[str, torch.Tensor]:
        """The metrics of one window step but its loss, as scalar tensors."""
        settings = self.config.algorithm
        metrics = loss.ratio_metrics(log_ratio, settings.clip_low, settings.clip_high)
        if kl is not None:
            mean = kl.mean()
            metrics["kl_loss"] = self.beta.value * mean
            metrics["kl_nats"] = mean * dimensions if self.config.flow.log_prob == "mean" else mean
        return metrics

    def _normalised(
        self,
        log_ratio: torch.Tensor,
        transition: flow.Transition,
        x_next: torch.Tensor,
        noise: torch.Tensor,
        steps: torch.Tensor,
        drawn_log_prob: torch.Tensor,
    ) -> torch.Tensor:
        """GRPO-Guard: centred by the KL to the sampling policy (its mean is the draw minus the replayed noise), scaled per step."""
        old = flow.Transition(
            x_next - transition.std.reshape(-1, *[1] * (x_next.dim() - 1)) * noise.to(x_next.device), transition.std
        )
        mismatch = (old.log_prob(x_next, "mean") - self._per_dimension(drawn_log_prob, x_next)).abs().max()
        if float(mismatch) > 5e-5:  # right noise differs by rounding, other noise by about 1 / sqrt(2 D)
            raise ValueError(
                "algorithm.ratio_norm replays the rollouts' noise from their seeds, and these rollouts were drawn with other noise "
                f"(log-prob differs by {float(mismatch):.3g} per dimension); sample with flow.generators(seeds)"
            )
        centred = loss.centred_log_ratio(log_ratio, transition, old.mean, self.config.flow.log_prob)
        index, c = steps.cpu(), self.config.flow
        trainable = torch.arange(self._trainable())
        chosen = flow.coefficients(c.family, self.sigmas[index], self.sigmas[index + 1], c.noise_level)
        trained = flow.coefficients(c.family, self.sigmas[trainable], self.sigmas[trainable + 1], c.noise_level)
        return centred * loss.step_scale(chosen, trained).to(centred.device)

    def _per_dimension(self, log_prob: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return log_prob if self.config.flow.log_prob == "mean" else log_prob / x[0].numel()

    def _trainable(self) -> int:
        """How many steps, from the first, the window can hold."""
        window, last = self.config.flow.window, self.config.flow.steps - 1
        return window.size if window.position == "first" else min(window.within or last, last)

    def after_update(self, policy: Policy, metrics: dict[str, float]) -> dict[str, float]:
        """Steers beta by `kl_nats`, the mean over the optimizer step."""
        if "kl_nats" in metrics:
            self.beta.update(metrics["kl_nats"])
        return {"beta": self.beta.value}

    def state_dict(self) -> dict[str, Any]:
        """`beta`, and `last_kl_nats` once there is one."""
        return {"beta": self.beta.value} | ({} if self.beta.last is None else {"last_kl_nats": self.beta.last})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.beta.value, self.beta.last = float(state["beta"]), state.get("last_kl_nats")


def unfolded(batch: Batch) -> Batch:
    """The window steps of B videos as B k videos with a step each: step 0 of all of them, then step 1, ..."""
    k = batch.steps.shape[1]

    def each(value: torch.Tensor) -> torch.Tensor:
        return value.transpose(0, 1).flatten(0, 1)[:, None]

    return replace(
        batch,
        steps=each(batch.steps),
        latents=each(batch.latents),
        next_latents=each(batch.next_latents),
        log_probs=each(batch.log_probs),
        x0=torch.cat([batch.x0] * k),
        advantages=batch.advantages.repeat(k),
        condition=torch.cat([batch.condition] * k),
        seeds=batch.seeds * k,
        trajectories=batch.trajectories * k,
        plans=tuple((plans[j],) for j in range(k) for plans in batch.plans if plans),
    )
