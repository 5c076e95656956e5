"""Both algorithms, through the interface the learner uses, on a two-dimensional flow where the right answer is known."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from world_r1 import flow, loss
from world_r1.advantage import group_relative
from world_r1.algorithms import ALGORITHMS, Batch, build
from world_r1.camera import trajectory_for
from world_r1.config import Config, parse
from world_r1.types import Group, Prompt, Score, Verdict

#: Base model: data N(0, 0.5^2) in two dimensions. The reward wants them here.
GOAL = torch.tensor([0.8, -0.6]).reshape(1, 2, 1, 1, 1)
SHAPE = (2, 1, 1, 1)


class ToyPolicy:
    """The exact velocity of N(0, 0.5^2 I), plus a trained shift per noise level; the reference is the former alone."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.shift = torch.nn.Parameter(torch.zeros(4, 2))
        self.is_reference = False
        self.reference_passes = 0

    def velocity(self, x: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        s = sigma.reshape(-1, 1, 1, 1, 1)
        variance = (1 - s) ** 2 * 0.25 + s**2
        base = (s - (1 - s) * 0.25) / variance * x
        if self.is_reference:
            self.reference_passes += 1
            return base
        return base + self.shift[(4 * sigma).long().clamp(max=3)].reshape(-1, 2, 1, 1, 1)

    @contextmanager
    def reference(self) -> Iterator[None]:
        self.is_reference = True
        try:
            yield
        finally:
            self.is_reference = False

    def named_parameters(self) -> dict[str, torch.nn.Parameter]:
        return {"shift": self.shift}

    def state(self) -> dict[str, np.ndarray]:
        return {"shift": self.shift.detach().numpy().copy()}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        with torch.no_grad():
            self.shift.copy_(torch.from_numpy(state["shift"]))


def configure(name: str, size: int = 3, **algorithm) -> Config:
    return parse({"flow": {"steps": 6, "window": {"size": size}}, "algorithm": {"name": name, "clip_low": 0.2, **algorithm}})


def rollouts(policy: ToyPolicy, config: Config, step: int, groups: int = 4, size: int = 12) -> tuple[Batch, float]:
    """A batch with advantages, and its mean reward -|x_0 - goal|^2."""
    seeds = [(config.seed, step, g, i) for g in range(groups) for i in range(size)]
    stochastic = ALGORITHMS[config.algorithm.name].stochastic
    steps = flow.window(config.flow, config.seed, step) if stochastic else torch.zeros(0, dtype=torch.int64)
    x_T = torch.stack([torch.randn(SHAPE, generator=g) for g in flow.generators([(9, *seed) for seed in seeds])])
    condition = torch.zeros(len(seeds), 1, 1)
    trace = flow.sample(
        lambda x, sigma: policy.velocity(x, sigma, condition),
        x_T,
        flow.schedule(config.flow.steps, config.flow.shift),
        config.flow,
        steps,
        flow.generators(seeds),
    )
    rewards = -(trace.x0 - GOAL).square().flatten(1).sum(1)
    advantages = relative(rewards.reshape(groups, size), config)
    batch = Batch(
        steps=steps.expand(len(seeds), -1),
        latents=trace.latents,
        next_latents=trace.next_latents,
        log_probs=trace.log_probs,
        x0=trace.x0,
        advantages=advantages,
        condition=condition,
        seeds=tuple(seeds),
    )
    return batch, float(rewards.mean())


def relative(rewards: torch.Tensor, config: Config) -> torch.Tensor:
    groups = []
    for g, row in enumerate(rewards.tolist()):
        ids = tuple(f"{g}-{i}" for i in range(len(row)))
        verdicts = tuple(Verdict(name, r, (Score("goal", "ok", r),)) for name, r in zip(ids, row, strict=True))
        groups.append(Group(Prompt(str(g), "dots"), ids, verdicts))
    values = group_relative(groups, {"goal": 1.0}, config.algorithm.advantage).values
    return torch.tensor([values[name] for group in groups for name in group.rollouts])


def train(policy: ToyPolicy, config: Config, steps: int, rate: float = 0.03, **sizes: int) -> list[dict[str, float]]:
    """What the learner does: losses, backward one by one, optimizer, after_update."""
    algorithm = build(config)
    optimizer = torch.optim.Adam(policy.named_parameters().values(), rate)
    history = []
    for step in range(steps):
        batch, reward = rollouts(policy, config, step, **sizes)
        for _ in range(config.algorithm.updates):
            optimizer.zero_grad()
            terms = []
            for term in algorithm.losses(policy, batch):
                term.value.backward()
                terms.append(term.metrics)
            optimizer.step()
            metrics = {name: float(np.mean([term[name] for term in terms])) for name in terms[0]}
            metrics |= algorithm.after_update(policy, metrics)
        history.append({"reward": reward, **metrics})
    return history


def mean(history: Sequence[dict[str, float]], name: str) -> float:
    return float(np.mean([row[name] for row in history]))


@pytest.mark.parametrize("extra", [{}, {"ratio_norm": True, "updates": 2}, {"kl": {"beta": 0.05}}])
def test_flow_grpo_raises_the_reward(extra: dict) -> None:
    history = train(ToyPolicy(), configure("flow_grpo", **{"kl": {"beta": 0.0}, **extra}), 60)
    before, after = mean(history[:3], "reward"), mean(history[-10:], "reward")
    assert before < -1.0  # about |goal|^2 + 2 * 0.5^2 = 1.5 at the start
    assert after > before + 0.6, (before, after)


def test_diffusion_nft_raises_the_reward() -> None:
    history = train(ToyPolicy(), configure("diffusion_nft", kl={"beta": 0.0}), 60)
    before, after = mean(history[:3], "reward"), mean(history[-10:], "reward")
    assert before < -1.0
    assert after > before + 0.6, (before, after)


def test_an_opposite_reward_moves_the_other_way() -> None:
    """Guards the sign: with advantages negated, the reward falls."""
    for name in ALGORITHMS:
        policy, config = ToyPolicy(), configure(name, kl={"beta": 0.0})
        algorithm, optimizer = build(config), torch.optim.Adam([policy.shift], 0.03)
        _, first = rollouts(policy, config, 15)
        for step in range(15):
            batch, _ = rollouts(policy, config, step)
            batch = Batch(**{**vars(batch), "advantages": -batch.advantages})
            optimizer.zero_grad()
            for term in algorithm.losses(policy, batch):
                term.value.backward()
            optimizer.step()
            algorithm.after_update(policy, term.metrics)
        _, last = rollouts(policy, config, 15)
        assert last < first - 0.2, name


@pytest.mark.parametrize("ratio_norm", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_before_the_first_update_every_ratio_is_one(ratio_norm: bool, reduction: str) -> None:
    config = configure("flow_grpo", ratio_norm=ratio_norm, kl={"beta": 0.1})
    config = config.model_copy(update={"flow": config.flow.model_copy(update={"log_prob": reduction})})
    policy = ToyPolicy()
    policy.shift.data.uniform_(-0.3, 0.3, generator=torch.Generator().manual_seed(0))
    batch, _ = rollouts(policy, config, 0)
    terms = list(build(config).losses(policy, batch))
    assert len(terms) == 3
    for term in terms:
        assert term.metrics["ratio_mean"] == 1.0
        assert term.metrics["ratio_std"] == 0.0
        assert term.metrics["clip_fraction"] == 0.0
        assert term.metrics["kl_nats"] > 0


def test_gradient_is_that_of_the_written_out_objective() -> None:
    config = configure("flow_grpo", kl={"beta": 0.3})
    policy = ToyPolicy()
    policy.shift.data.uniform_(-0.3, 0.3, generator=torch.Generator().manual_seed(1))
    batch, _ = rollouts(policy, config, 0)
    sum(term.value for term in build(config).losses(policy, batch)).backward()
    ours, policy.shift.grad = policy.shift.grad, None
    sigmas, total = flow.schedule(6, 3.0), torch.zeros(())
    for j in range(3):
        x, s, n = batch.latents[:, j], sigmas[j], sigmas[j + 1]
        step_mean = flow.step("flow_sde", x, policy.velocity(x, s.expand(48), batch.condition), s, n, 0.7)
        with torch.no_grad(), policy.reference():
            base = flow.step("flow_sde", x, policy.velocity(x, s.expand(48), batch.condition), s, n, 0.7)
        normal = torch.distributions.Normal(step_mean.mean, step_mean.std)
        log_prob = normal.log_prob(batch.next_latents[:, j]).flatten(1).mean(1)
        kl = torch.distributions.kl_divergence(normal, torch.distributions.Normal(base.mean, base.std)).mean()
        total = total + (-batch.advantages * log_prob).mean() / 3 + 0.3 * kl / 3
    total.backward()
    torch.testing.assert_close(ours, policy.shift.grad, rtol=1e-4, atol=1e-6)


def test_the_reference_pass_is_skipped_without_kl() -> None:
    for beta, passes in ((0.0, 0), (0.1, 3)):
        policy, config = ToyPolicy(), configure("flow_grpo", kl={"beta": beta})
        batch, _ = rollouts(policy, config, 0)
        terms = list(build(config).losses(policy, batch))
        assert policy.reference_passes == passes
        assert ("kl_nats" in terms[0].metrics) == (beta > 0)


@pytest.mark.parametrize(("target", "start"), [(0.02, 0.01), (0.02, 10.0), (0.1, 0.0)])
def test_adaptive_beta_holds_the_target_nats(target: float, start: float) -> None:
    config = configure("flow_grpo", kl={"beta": start, "target_nats": target, "rate": 1.3})
    history = train(ToyPolicy(), config, 120, rate=0.03, groups=3, size=8)
    reached, betas = mean(history[-20:], "kl_nats"), [row["beta"] for row in history[-40:]]
    assert target / 1.6 < reached < 1.6 * target, (reached, betas)
    assert max(betas) / min(betas) < 4, "beta must settle, not swing"
    assert max(row["kl_nats"] for row in history) < 4 * target
    assert mean(history[-10:], "reward") > mean(history[:5], "reward")


def test_beta_by_hand() -> None:
    beta = build(configure("flow_grpo", kl={"beta": 0.5, "target_nats": 4.0, "rate": 1.2})).beta
    factors = []
    for nats in (0.0, 0.1, 1.4, 3.0, 2.9, 4.0, 4.2, 40.0):
        before = beta.value
        beta.update(nats)
        factors.append(beta.value / before)
    assert factors[:3] == [1.0, 1.0, 1.0]  # far below the target and rising: held (1.4 is still beyond the limit of 1 / e)
    assert factors[3] == 1.2  # rises fast: the proportional term acts, by at most the rate
    assert factors[4] == pytest.approx((2.9 / 3.0) ** 2 * (2.9 / 4.0) ** 0.05)  # falling below the target: both terms
    assert factors[5] == 1.2
    assert factors[6] == pytest.approx((4.2 / 4.0) ** 2.05)
    assert factors[7] == 1.2
    assert build(configure("flow_grpo", kl={"beta": 0.0, "target_nats": 4.0})).beta.value == loss.beta_for_nats(4.0)
    stuck = build(configure("flow_grpo", kl={"beta": 0.5, "target_nats": 4.0})).beta
    for nats in (1.0, 1.0, 1.01):
        stuck.update(nats)
    assert stuck.value == pytest.approx(0.5 * math.exp(-3 * 0.05))  # level, or rising too slowly to arrive: lowered
    fixed = build(configure("flow_grpo", kl={"beta": 0.3})).beta
    fixed.update(1e6)
    assert fixed.value == 0.3


def test_ratio_norm_refuses_rollouts_of_other_noise() -> None:
    config = configure("flow_grpo", ratio_norm=True)
    batch, _ = rollouts(ToyPolicy(), config, 0)
    other = Batch(**{**vars(batch), "seeds": tuple((8, *seed[1:]) for seed in batch.seeds)})
    with pytest.raises(ValueError, match=r"sample with flow\.generators"):
        list(build(config).losses(ToyPolicy(), other))


def test_flow_grpo_refuses_rollouts_without_stochastic_steps() -> None:
    batch, _ = rollouts(ToyPolicy(), configure("diffusion_nft"), 0)
    with pytest.raises(ValueError, match="stochastic steps"):
        list(build(configure("flow_grpo")).losses(ToyPolicy(), batch))
    with pytest.raises(ValueError, match="cps adds no noise at the last step"):
        build(parse({"flow": {"steps": 3, "family": "cps", "window": {"size": 3}}}))


def test_nft_gradient_at_the_old_policy_is_advantage_weighted_flow_matching() -> None:
    """For any strength and clip; and the policy's own weights are untouched by the pass with the old ones."""
    gradients = []
    for strength, clip in ((1.0, 5.0), (0.3, 5.0), (2.0, 50.0)):
        config = configure("diffusion_nft", nft_beta=strength, advantage={"clip": clip}, kl={"beta": 0.0})
        policy = ToyPolicy()
        policy.shift.data.uniform_(-0.3, 0.3, generator=torch.Generator().manual_seed(1))
        before = policy.shift.detach().clone()
        batch, _ = rollouts(policy, config, 0)
        algorithm = build(config)
        for term in algorithm.losses(policy, batch):
            term.value.backward()
            assert term.metrics["drift"] == 0.0
        assert torch.equal(policy.shift.detach(), before)
        gradients.append(policy.shift.grad.clone())
        policy.shift.grad = None
        total = torch.zeros(())
        for sigma, noise in algorithm._noised(batch):
            level = sigma.reshape(-1, 1, 1, 1, 1)
            x = (1 - level) * batch.x0 + level * noise
            residual = x - level * policy.velocity(x, sigma, batch.condition) - batch.x0
            error = residual.square().flatten(1).mean(1) / residual.detach().abs().flatten(1).mean(1)
            total = total + (batch.advantages * error).mean() / config.algorithm.nft_sigmas
        total.backward()
        torch.testing.assert_close(gradients[-1], policy.shift.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


def test_nft_old_policy_is_a_slow_average() -> None:
    config = configure("diffusion_nft", nft_decay=0.5, kl={"beta": 0.2})
    policy = ToyPolicy()
    batch, _ = rollouts(policy, config, 0)
    algorithm = build(config)
    next(iter(algorithm.losses(policy, batch)))
    policy.shift.data.fill_(1.0)
    expected = 0.0
    for update in range(12):
        decay = min(0.5, (1 + update) / (10 + update))
        assert algorithm.after_update(policy, {}) == {"old_decay": decay}
        expected = decay * expected + (1 - decay)
        torch.testing.assert_close(algorithm.old["shift"], torch.full((4, 2), expected))
    terms = list(algorithm.losses(policy, batch))
    assert terms[0].metrics["kl_loss"] == pytest.approx(0.2)  # the squared shift of 1 from the base
    assert terms[0].metrics["drift"] == pytest.approx((1 - expected) ** 2, abs=1e-7)


def test_nft_refuses_a_target_in_nats() -> None:
    with pytest.raises(ValueError, match="target_nats to null"):
        build(configure("diffusion_nft", kl={"target_nats": 3.0}))
    with pytest.raises(ValueError, match="shared_in_group to false"):
        build(parse({"algorithm": {"name": "diffusion_nft"}, "noise": {"shared_in_group": True}}))


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_resume_is_exact(name: str) -> None:
    extra = {"kl": {"beta": 0.1, "target_nats": 0.05}} if name == "flow_grpo" else {}
    config = configure(name, **extra)

    def run(policy: ToyPolicy, algorithm, steps: range) -> None:
        for step in steps:
            batch, _ = rollouts(policy, config, step)
            for term in algorithm.losses(policy, batch):
                term.value.backward()
            with torch.no_grad():
                policy.shift -= 0.05 * policy.shift.grad
                policy.shift.grad = None
            algorithm.after_update(policy, term.metrics)

    whole, algorithm = ToyPolicy(), build(config)
    run(whole, algorithm, range(3))
    saved, weights = algorithm.state_dict(), whole.state()
    assert all(isinstance(value, (int, float, np.ndarray)) for value in saved.values())
    run(whole, algorithm, range(3, 6))
    resumed, again = ToyPolicy(), build(config)
    resumed.load_state(weights)
    again.load_state_dict(saved)
    run(resumed, again, range(3, 6))
    assert torch.equal(whole.shift, resumed.shift)
    for key, value in algorithm.state_dict().items():
        np.testing.assert_array_equal(value, again.state_dict()[key])


def test_nft_draws_one_noise_and_level_a_group_from_the_law_of_its_camera() -> None:
    """Common random numbers within a group, levels above nft_sigma_min, and noise that the commanded camera correlates over time."""
    config = configure("diffusion_nft", nft_sigma_min=0.4, nft_sigmas=2)
    seeds = [(0, 0, group, sample) for group in range(2) for sample in range(2)]
    path = trajectory_for("Camera push in.", config.video, config.camera)
    x0 = torch.zeros(4, 2, 5, 12, 20)
    batch, _ = rollouts(ToyPolicy(), config, 0, groups=2, size=2)
    batch = Batch(**{**vars(batch), "x0": x0, "seeds": tuple(seeds), "trajectories": (path, path, None, None)})
    drawn = list(build(config)._noised(batch))
    assert len(drawn) == 2
    for sigma, noise in drawn:
        assert sigma.min() > flow.shifted(torch.tensor(0.4), config.flow.shift)
        assert torch.equal(noise[0], noise[1])
        assert sigma[0] == sigma[1]
        assert not torch.equal(noise[1], noise[2])
        alike = [torch.corrcoef(torch.stack([n[:, 0].flatten(), n[:, 1].flatten()]))[0, 1] for n in (noise[0], noise[2])]
        assert alike[0] > 0.2 > abs(alike[1])
    assert drawn[0][0][0] < drawn[1][0][0]


def test_nft_without_memory_has_the_gradient_of_an_old_policy_that_is_the_present_one() -> None:
    gradients = []
    for decay in (0.0, 0.5):
        config, policy = configure("diffusion_nft", nft_decay=decay, kl={"beta": 0.0}), ToyPolicy()
        policy.shift.data.uniform_(-0.3, 0.3, generator=torch.Generator().manual_seed(1))
        batch, _ = rollouts(policy, config, 0)
        for term in build(config).losses(policy, batch):
            term.value.backward()
        gradients.append(policy.shift.grad.clone())
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(("decay", "beta"), [(0.0, 0.0), (0.5, 0.1)])
def test_nft_of_all_levels_together_is_the_sum_of_the_levels(decay: float, beta: float) -> None:
    found = []
    for together in (False, True):
        config = configure("diffusion_nft", nft_sigmas=3, nft_decay=decay, together=together, kl={"beta": beta})
        policy, algorithm = ToyPolicy(), build(config)
        policy.shift.data.uniform_(-0.3, 0.3, generator=torch.Generator().manual_seed(1))
        batch, _ = rollouts(policy, config, 0)
        algorithm._take_old(policy)
        policy.shift.data += 0.1
        terms = list(algorithm.losses(policy, batch))
        assert len(terms) == (1 if together else 3)
        for term in terms:
            term.value.backward()
        found.append((policy.shift.grad.clone(), sum(term.value.item() for term in terms), len(terms), terms))
    (apart, value, count, terms), (joined, total, _, [term]) = found
    assert apart.abs().max() > 0
    torch.testing.assert_close(joined, apart)
    assert total == pytest.approx(value)
    for name in terms[0].metrics:
        assert term.metrics[name] == pytest.approx(sum(one.metrics[name] for one in terms) / count)


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("ratio_norm", [False, True])
def test_grpo_of_all_window_steps_together_is_the_sum_of_the_steps(beta: float, ratio_norm: bool) -> None:
    found = []
    for together in (False, True):
        config = configure("flow_grpo", together=together, kl={"beta": beta}, ratio_norm=ratio_norm, clip_low=0.005)
        policy, algorithm = ToyPolicy(), build(config)
        policy.shift.data.uniform_(-0.3, 0.3, generator=torch.Generator().manual_seed(1))
        batch, _ = rollouts(policy, config, 0)
        policy.shift.data += 0.05  # so that ratios are not 1 and some are clipped
        terms = list(algorithm.losses(policy, batch))
        assert len(terms) == (1 if together else 3)
        for term in terms:
            term.value.backward()
        found.append((policy.shift.grad.clone(), sum(term.value.item() for term in terms), terms))
    (apart, value, terms), (joined, total, [term]) = found
    assert apart.abs().max() > 0
    torch.testing.assert_close(joined, apart)
    assert total == pytest.approx(value, rel=1e-4)  # losses of both signs add up to little
    assert 0 < term.metrics["clip_fraction"] < 1
    for name in set(terms[0].metrics) - {"ratio_std"}:  # of all steps at once it is not the mean of each step's
        assert term.metrics[name] == pytest.approx(sum(one.metrics[name] for one in terms) / 3, rel=1e-4)
