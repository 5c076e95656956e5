from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from world_r1.config import Config, VideoConfig, parse
from world_r1.rollout import rollout_ids, sample_group, sample_groups, trained_steps
from world_r1.types import Prompt, Rollout
from world_r1.update import Trainer, learning_rate, mean_of, refuse_stale

SHAPE = (2, 2, 3, 4)


class Toy:
    """A policy whose velocity is a trained mixture of the channels plus a text-dependent offset."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.weight = torch.nn.Parameter(0.1 * torch.eye(2))
        self.bias = torch.nn.Parameter(torch.zeros(2))
        self.on = True
        self.encoded: list[str] = []

    def latent_shape(self, video: VideoConfig) -> tuple[int, int, int, int]:
        return SHAPE

    def encode(self, prompts: Sequence[str]) -> torch.Tensor:
        self.encoded += prompts
        return torch.tensor([[[float(len(prompt))]] for prompt in prompts])

    def velocity(self, x: torch.Tensor, sigma: torch.Tensor | float, condition: torch.Tensor) -> torch.Tensor:
        scale = 1.0 if self.on else 0.0
        mixed = torch.einsum("bcthw,dc->bdthw", x, scale * self.weight) + scale * self.bias[None, :, None, None, None]
        return mixed + 0.01 * condition.reshape(-1, 1, 1, 1, 1)

    def decode(self, latents: torch.Tensor) -> np.ndarray:
        return (latents[:, :1].clamp(0, 1) * 255).to(torch.uint8).permute(0, 2, 3, 4, 1).repeat(1, 1, 1, 1, 3).numpy()

    @contextmanager
    def reference(self) -> Iterator[None]:
        self.on = False
        try:
            yield
        finally:
            self.on = True

    def named_parameters(self) -> dict[str, torch.nn.Parameter]:
        return {"weight": self.weight, "bias": self.bias}

    def state(self) -> dict[str, np.ndarray]:
        return {name: value.detach().numpy().copy() for name, value in self.named_parameters().items()}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        for name, value in self.named_parameters().items():
            value.copy_(torch.from_numpy(np.array(state[name])))

    def save(self, directory: str) -> None:
        raise AssertionError("an update writes no adapter")


def _config(**sections: Any) -> Config:
    tree: dict[str, Any] = {
        "seed": 7,
        "flow": {"steps": 4, "window": {"size": 2}},
        "optimizer": {"learning_rate": 0.01, "micro_batch": 4},
        "prompts": {"groups": 2, "group_size": 4},
        "noise": {"warp": False},
    }
    for name, section in sections.items():
        tree[name] = {**tree.get(name, {}), **section}
    return parse(tree)


PROMPTS = (Prompt("a", "A red box."), Prompt("b", "A blue sphere on grass."))


def _step(config: Config, policy: Any, step: int = 0, version: int = 0) -> list[Rollout]:
    return [r for g, prompt in enumerate(PROMPTS) for r in sample_group(policy, config, prompt, step, g, version).rollouts]


def _advantages(rollouts: Sequence[Rollout]) -> dict[str, float | None]:
    return {rollout.id: float(np.sin(i + 1)) for i, rollout in enumerate(rollouts)}


def _equal(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_a_group_follows_from_its_key_alone() -> None:
    config = _config(flow={"steps": 6, "window": {"size": 2, "position": "random"}})
    policy: Any = Toy()
    sampled = sample_group(policy, config, PROMPTS[1], 3, 1, version=9)
    sample_group(policy, config, PROMPTS[0], 0, 0, version=9)
    again = sample_group(policy, config, PROMPTS[1], 3, 1, version=9)
    assert [r.id for r in sampled.rollouts] == [c.id for c in sampled.clips] == list(rollout_ids(config, 3, 1))
    for first, second in zip(sampled.rollouts, again.rollouts, strict=True):
        assert (first.seed[:3], first.version, first.group) == ((7, 3, 1), 9, 1)
        for name in ("steps", "latents", "next_latents", "log_probs", "x0"):
            assert np.array_equal(getattr(first, name), getattr(second, name))
    assert sampled.rollouts[0].latents.shape == (2, *SHAPE)
    assert not np.array_equal(sampled.rollouts[0].x0, sampled.rollouts[1].x0)
    windows = {tuple(trained_steps(config, step, group).tolist()) for step in range(4) for group in range(4)}
    assert len(windows) > 1


def test_a_group_is_encoded_once_and_does_not_depend_on_the_sampling_batch() -> None:
    policy: Any = Toy()
    whole = sample_group(policy, _config(cluster={"sample_batch": 4}), PROMPTS[0], 0, 0, 0)
    assert policy.encoded == ["A red box."]
    parts = sample_group(policy, _config(cluster={"sample_batch": 3}), PROMPTS[0], 0, 0, 0)
    for a, b in zip(whole.rollouts, parts.rollouts, strict=True):
        np.testing.assert_allclose(a.x0, b.x0, atol=1e-6)


def test_groups_that_share_forwards_are_the_groups_sampled_alone() -> None:
    config = _config(flow={"steps": 6, "window": {"size": 2, "position": "random"}}, cluster={"sample_batch": 5})
    together = sample_groups(Toy(), config, PROMPTS, 3, [0, 1], version=2)
    for g, (prompt, group) in enumerate(zip(PROMPTS, together, strict=True)):
        alone = sample_group(Toy(), config, prompt, 3, g, version=2)
        assert [clip.id for clip in group.clips] == list(rollout_ids(config, 3, g))
        for a, b in zip(alone.rollouts, group.rollouts, strict=True):
            assert (a.seed, a.group, a.prompt) == (b.seed, b.group, b.prompt)
            assert np.array_equal(a.steps, b.steps)
            np.testing.assert_allclose(a.x0, b.x0, atol=1e-6)
            np.testing.assert_allclose(a.log_probs, b.log_probs, atol=1e-5)


def test_a_forward_process_algorithm_gets_ode_samples_without_stochastic_steps() -> None:
    config = _config(algorithm={"name": "diffusion_nft"})
    rollout = sample_group(Toy(), config, PROMPTS[0], 0, 0, 0).rollouts[0]
    assert rollout.steps.shape == (0,)
    assert rollout.latents.shape == (0, *SHAPE)


def test_a_group_may_share_its_first_noise() -> None:
    shared = _config(noise={"warp": False, "shared_in_group": True})
    rollouts = sample_group(Toy(), shared, PROMPTS[0], 0, 0, 0).rollouts
    assert all(np.array_equal(r.latents[0], rollouts[0].latents[0]) for r in rollouts)
    assert not np.array_equal(rollouts[0].next_latents[0], rollouts[1].next_latents[0])


def test_before_the_first_update_every_ratio_is_one() -> None:
    config = _config()
    policy: Any = Toy()
    rollouts = _step(config, policy)
    metrics = Trainer(config, policy).update(rollouts, _advantages(rollouts))
    assert (metrics["ratio_mean"], metrics["ratio_std"], metrics["clip_fraction"]) == (1.0, 0.0, 0.0)


@pytest.mark.parametrize("micro_batch", [1, 3, 8])
def test_micro_batches_accumulate_to_the_gradient_of_the_whole_batch(micro_batch: int) -> None:
    rollouts = _step(_config(), Toy())
    states = []
    for size in (8, micro_batch):
        policy: Any = Toy()
        trainer = Trainer(_config(optimizer={"micro_batch": size, "learning_rate": 0.01, "grad_clip": 1e9}), policy)
        trainer.optimizer = torch.optim.SGD(policy.named_parameters().values(), lr=0.01)
        trainer.update(rollouts, _advantages(rollouts))
        states.append(policy.state())
    np.testing.assert_allclose(states[0]["weight"], states[1]["weight"], rtol=1e-4, atol=1e-7)
    assert not _equal(states[0], Toy().state())


def test_videos_without_an_advantage_do_not_touch_the_update() -> None:
    rollouts = _step(_config(), Toy())
    values = {**_advantages(rollouts), rollouts[2].id: None}
    policies: list[Any] = [Toy(), Toy()]
    Trainer(_config(), policies[0]).update(rollouts, values)
    Trainer(_config(), policies[1]).update([r for r in rollouts if r is not rollouts[2]], values)
    assert _equal(policies[0].state(), policies[1].state())


def test_without_any_advantage_nothing_is_trained_but_the_version_rises() -> None:
    policy: Any = Toy()
    trainer = Trainer(_config(), policy)
    rollouts = _step(_config(), policy)
    metrics = trainer.update(rollouts, dict.fromkeys((r.id for r in rollouts), None))
    assert (trainer.version, trainer.updates, metrics["optimizer_steps"]) == (1, 0, 0.0)
    assert "policy_loss" not in metrics
    assert _equal(policy.state(), Toy().state())


@pytest.mark.parametrize(
    ("version", "staleness", "refused"), [(0, 0, False), (1, 0, True), (1, 1, False), (2, 1, True), (-1, 1, True)]
)
def test_rollouts_of_another_version_are_refused_unless_staleness_allows_them(version: int, staleness: int, refused: bool) -> None:
    rollout = replace(_step(_config(), Toy())[0], version=0)
    if not refused:
        refuse_stale([rollout], version, staleness)
        return
    with pytest.raises(ValueError, match=f"version 0, the learner is at {version}"):
        refuse_stale([rollout], version, staleness)


@pytest.mark.parametrize("broken", ["log_probs", "latents"])
def test_an_update_that_is_not_finite_is_refused_and_counted(broken: str) -> None:
    policy: Any = Toy()
    trainer = Trainer(_config(), policy)
    rollouts = _step(_config(), policy)
    bad = replace(rollouts[5], **{broken: np.full_like(getattr(rollouts[5], broken), np.nan)})
    metrics = trainer.update([*rollouts[:5], bad, *rollouts[6:]], _advantages(rollouts))
    assert (metrics["updates_refused"], metrics["optimizer_steps"], trainer.version) == (1.0, 0.0, 1)
    assert _equal(policy.state(), Toy().state())
    assert all(parameter.grad is None for parameter in policy.named_parameters().values())
    trainer.update(_step(_config(), policy, step=1, version=1), _advantages(_step(_config(), policy, step=1)))
    assert not _equal(policy.state(), Toy().state())  # the next one goes on


def test_gradients_are_clipped_to_the_configured_norm() -> None:
    policy: Any = Toy()
    config = _config(optimizer={"learning_rate": 1.0, "grad_clip": 1e-3})
    trainer = Trainer(config, policy)
    trainer.optimizer = torch.optim.SGD(policy.named_parameters().values(), lr=1.0)
    rollouts = _step(config, policy)
    metrics = trainer.update(rollouts, _advantages(rollouts))
    moved = np.sqrt(sum(((policy.state()[k] - v) ** 2).sum() for k, v in Toy().state().items()))
    assert metrics["grad_norm"] > 1e-3
    np.testing.assert_allclose(moved, 1e-3, rtol=1e-3)


def test_a_second_optimizer_step_on_the_same_rollouts_sees_other_ratios() -> None:
    policy: Any = Toy()
    config = _config(algorithm={"updates": 3})
    rollouts = _step(config, policy)
    trainer = Trainer(config, policy)
    metrics = trainer.update(rollouts, _advantages(rollouts))
    assert (trainer.updates, trainer.version, trainer.average.updates) == (3, 1, 3)
    assert metrics["ratio_std"] > 0


@pytest.mark.parametrize("algorithm", ["flow_grpo", "diffusion_nft"])
def test_a_restored_trainer_goes_on_bit_for_bit(algorithm: str) -> None:
    kl = {"beta": 0.3, "target_nats": None if algorithm == "diffusion_nft" else 0.05}
    config = _config(algorithm={"name": algorithm, "kl": kl}, optimizer={"warmup": 5, "micro_batch": 3})

    def run(trainer: Trainer, steps: range) -> None:
        for step in steps:
            rollouts = _step(config, trainer.policy, step, trainer.version)
            trainer.update(rollouts, _advantages(rollouts))

    straight = Trainer(config, Toy())
    run(straight, range(5))
    first = Trainer(config, Toy())
    run(first, range(3))
    snapshot = first.snapshot(3)
    copied = {
        name: {k: v.clone() if hasattr(v, "clone") else v for k, v in section.items()}
        for name, section in snapshot.sections.items()
    }
    second = Trainer(config, Toy())
    second.restore(replace(snapshot, sections=copied))
    run(second, range(3, 5))
    assert _equal(second.policy.state(), straight.policy.state())
    for name, section in straight.snapshot(5).sections.items():
        for key, value in section.items():
            assert np.array_equal(np.asarray(second.snapshot(5).sections[name][key]), np.asarray(value)), (name, key)


def test_a_policy_without_trained_parameters_is_refused() -> None:
    policy: Any = Toy()
    policy.named_parameters = dict
    with pytest.raises(ValueError, match="no trained parameters"):
        Trainer(_config(), policy)


def test_the_optimizer_state_of_another_model_is_refused() -> None:
    config, policy = _config(), Toy()
    trainer = Trainer(config, policy)
    rollouts = _step(config, policy)
    trainer.update(rollouts, _advantages(rollouts))
    snapshot = trainer.snapshot(1)
    other = {key.replace("weight", "kernel"): value for key, value in snapshot.sections["optimizer"].items()}
    with pytest.raises(ValueError, match="belongs to another model: it has 'kernel'"):
        Trainer(config, Toy()).restore(replace(snapshot, sections={**snapshot.sections, "optimizer": other}))


def test_the_learning_rate_warms_up_linearly() -> None:
    settings = _config(optimizer={"learning_rate": 0.4, "warmup": 4}).optimizer
    assert [learning_rate(n, settings) for n in range(6)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])
    assert learning_rate(0, _config().optimizer) == 0.01


def test_means_are_weighted_and_skip_entries_without_the_metric() -> None:
    assert mean_of([(0.75, {"a": 1.0}), (0.25, {"a": 5.0, "b": 2.0})]) == {"a": 2.0, "b": 2.0}
    assert mean_of([]) == {}


def test_a_policy_that_has_diverged_is_an_error_and_not_a_video() -> None:
    policy: Any = Toy()
    with torch.no_grad():
        policy.weight[0, 0] = float("inf")
    with pytest.raises(ValueError, match="not finite: the policy has diverged"):
        sample_group(policy, _config(), PROMPTS[0], 0, 0, 0)
