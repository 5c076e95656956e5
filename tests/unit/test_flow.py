"""The flow policy against closed forms: Gaussian data, for which velocity, marginals and densities are known exactly."""

from __future__ import annotations

import math

import pytest
import torch

from world_r1 import flow
from world_r1.config import FlowConfig, WindowConfig

FAMILIES = ("flow_sde", "wan_sde", "cps", "vp_ddim")
#: Data law N(MEAN, STD^2), the same for every dimension.
MEAN, STD = 1.5, 0.4
SHAPE = (3, 2, 5, 7)


def exact_velocity(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """E[eps - x_0 | x_t] for the data law."""
    s = sigma.reshape(-1, *[1] * (x.dim() - 1))
    variance = (1 - s) ** 2 * STD**2 + s**2
    centred = x - (1 - s) * MEAN
    return s / variance * centred - (MEAN + (1 - s) * STD**2 / variance * centred)


def config(family: str = "flow_sde", steps: int = 8, size: int = 3, **kwargs) -> FlowConfig:
    return FlowConfig(**{"family": family, "steps": steps, "window": WindowConfig(size=size), "shift": 1.0, **kwargs})


def draw(c: FlowConfig, batch: int = 4, shape: tuple[int, ...] = SHAPE, seed: int = 0, velocity=exact_velocity) -> flow.Trace:
    x = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(1000 * seed + i)) for i in range(batch)])
    seeds = [(seed, 0, 0, i) for i in range(batch)]
    return flow.sample(velocity, x, flow.schedule(c.steps, c.shift), c, flow.window(c, seed), flow.generators(seeds))


def test_schedule_by_hand() -> None:
    assert flow.schedule(4, 1.0).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    # 3 s / (1 + 2 s) at 0.75, 0.5, 0.25
    torch.testing.assert_close(flow.schedule(4, 3.0), torch.tensor([1.0, 0.9, 0.75, 0.5, 0.0]))
    assert flow.schedule(5, 2.7).dtype == torch.float32
    for steps in (1, 7, 50):
        sigmas = flow.schedule(steps, 5.0)
        assert sigmas[0] == 1.0
        assert sigmas[-1] == 0.0
        assert bool((sigmas.diff() < 0).all())


@pytest.mark.parametrize(("steps", "shift"), [(0, 1.0), (4, 0.0), (4, -1.0)])
def test_schedule_refuses(steps: int, shift: float) -> None:
    with pytest.raises(ValueError, match="steps >= 1 and shift > 0"):
        flow.schedule(steps, shift)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_log_prob_and_kl_equal_torch_distributions(reduction: str) -> None:
    torch.manual_seed(0)
    mean, other, x = torch.randn(3, 4, *SHAPE)
    std, other_std = torch.tensor([0.3, 1.0, 2.5, 0.07]), torch.tensor([0.5, 1.0, 0.9, 0.07])
    shaped = std.reshape(4, 1, 1, 1, 1), other_std.reshape(4, 1, 1, 1, 1)
    p, q = torch.distributions.Normal(mean, shaped[0]), torch.distributions.Normal(other, shaped[1])
    reduce = torch.mean if reduction == "mean" else torch.sum
    ours, theirs = flow.Transition(mean, std), flow.Transition(other, other_std)
    expected = reduce(p.log_prob(x).flatten(1).double(), 1)
    torch.testing.assert_close(ours.log_prob(x, reduction).double(), expected, rtol=2e-6, atol=2e-6)
    expected = reduce(torch.distributions.kl_divergence(p, q).flatten(1).double(), 1)
    torch.testing.assert_close(ours.kl(theirs, reduction).double(), expected, rtol=2e-5, atol=2e-6)
    assert ours.kl(ours, reduction).tolist() == [0.0] * 4


def test_a_deterministic_transition_has_no_density() -> None:
    x = torch.randn(2, *SHAPE)
    still = flow.Transition(x, torch.tensor([0.5, 0.0]))
    moving = flow.Transition(x, torch.tensor(0.5))
    with pytest.raises(ValueError, match="log_prob of a deterministic transition"):
        still.log_prob(x, "mean")
    with pytest.raises(ValueError, match="kl of a deterministic transition"):
        moving.kl(still, "mean")
    with pytest.raises(ValueError, match="kl of a deterministic transition"):
        still.kl(moving, "mean")
    assert torch.equal(flow.Transition(x, torch.tensor(0.0)).sample(torch.Generator().manual_seed(0)), x)
    with pytest.raises(ValueError, match="'mean' or 'sum'"):
        moving.log_prob(x, "median")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="std must be a scalar or"):
        flow.Transition(x, torch.ones(3))


def test_coefficients_by_hand() -> None:
    # flow_sde at sigma 0.5 -> 0.25, noise 0.6: s_t = 0.6, s_t^2 = 0.36, d = -0.25
    c = flow.coefficients("flow_sde", 0.5, 0.25, 0.6)
    assert float(c.x) == pytest.approx(1 - 0.36 * 0.25 / 1.0)
    assert float(c.velocity) == pytest.approx(-(1 + 0.36 * 0.5 / 1.0) * 0.25)
    assert float(c.std) == pytest.approx(0.6 * 0.5)
    # at sigma = 1 the pole 1 / (1 - sigma) is taken at sigma_next: s_t = 0.6 / sqrt(0.2)
    c = flow.coefficients("flow_sde", 1.0, 0.8, 0.6)
    assert float(c.std) == pytest.approx(0.6 / math.sqrt(0.2) * math.sqrt(0.2))
    assert float(c.velocity) == pytest.approx(-0.2)
    # wan_sde: s_t = noise sigma
    c = flow.coefficients("wan_sde", 0.5, 0.25, 0.6)
    assert float(c.std) == pytest.approx(0.3 * 0.5)
    # cps with full noise keeps nothing of the predicted noise: x' = (1 - s') x0_hat + s' z
    c = flow.coefficients("cps", 0.5, 0.25, 1.0)
    assert (float(c.x), float(c.velocity), float(c.std)) == pytest.approx((0.75, -0.75 * 0.5, 0.25), abs=1e-8)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_noise_a_stochastic_step_is_the_ode_step(family: str) -> None:
    x, v = torch.randn(2, 3, *SHAPE, dtype=torch.float64)
    for sigma, following in ((1.0, 0.8), (0.5, 0.2), (0.1, 0.0)):
        transition = flow.step(family, x, v, sigma, following, 1e-9)
        torch.testing.assert_close(transition.mean, flow.ode_step(x, v, sigma, following), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("sigma", "following"), [(0.5, 0.5), (0.2, 0.4), (1.1, 0.5), (0.5, -0.1)])
def test_steps_go_down(sigma: float, following: float) -> None:
    with pytest.raises(ValueError, match="0 <= sigma_next < sigma <= 1"):
        flow.coefficients("flow_sde", sigma, following, 0.7)


@pytest.mark.parametrize("family", FAMILIES)
def test_exploration_is_real(family: str) -> None:
    """The normalised residual of every stochastic step has rms 1 and does not repeat from step to step or sample to sample."""
    c = config(family, steps=8, size=6)
    trace = draw(c, batch=5, shape=(16, 3, 9, 11))
    sigmas, steps = flow.schedule(c.steps, c.shift), flow.window(c)
    residuals = []
    for j in range(6):
        transition, _ = flow.evaluate(exact_velocity, trace.latents[:, j], trace.next_latents[:, j], steps[j].expand(5), sigmas, c)
        residual = (trace.next_latents[:, j] - transition.mean) / transition.std.reshape(-1, 1, 1, 1, 1)
        count = residual[0].numel()
        rms = residual.square().flatten(1).mean(1).sqrt()
        assert bool(((rms - 1).abs() < 5 / math.sqrt(2 * count)).all()), rms
        assert bool((residual.flatten(1).mean(1).abs() < 5 / math.sqrt(count)).all())
        residuals += list(residual.flatten(1))
    correlation = torch.corrcoef(torch.stack(residuals)) - torch.eye(len(residuals))
    assert float(correlation.abs().max()) < 5 / math.sqrt(count)


def law(c: FlowConfig, key: int) -> tuple[float, float]:
    x0 = draw(c, batch=40, shape=(1, 1, 25, 40), seed=key).x0
    return float(x0.mean()), float(x0.std())


def test_ode_and_sde_end_in_the_same_law() -> None:
    """Exact velocity, Gaussian data: every family gives N(1.5, 0.4^2), within 5 standard errors + 1/steps."""
    steps, count = 200, 40_000
    error_mean, error_std = 5 * STD / math.sqrt(count) + 1 / steps, 5 * STD / math.sqrt(2 * count) + 1 / steps
    cases = {
        "ode": config(steps=steps, noise_level=1e-12, size=1),
        "flow_sde": config("flow_sde", steps, size=steps, noise_level=0.7),
        "wan_sde": config("wan_sde", steps, size=steps, noise_level=1.0),
        # cps injects a fixed share of noise per step, so its law converges only as the share falls with the step size
        "cps": config("cps", steps, size=steps - 1, noise_level=2.0 / math.sqrt(steps)),
    }
    for key, (name, c) in enumerate(cases.items()):
        mean, std = law(c, key)
        assert abs(mean - MEAN) < error_mean, (name, mean)
        assert abs(std - STD) < error_std, (name, std)


def test_cps_at_a_fixed_noise_share_narrows_the_law() -> None:
    """Documented property: the variance follows V' = A^2 V + std^2 with the linear coefficients, and ends below the data's."""
    steps, level = 60, 0.6
    variance = 1.0
    sigmas = flow.schedule(steps, 1.0).double()
    for i in range(steps):
        s, n = float(sigmas[i]), float(sigmas[i + 1])
        gain = (s - (1 - s) * STD**2) / ((1 - s) ** 2 * STD**2 + s**2)  # dv/dx of the exact velocity
        c = flow.coefficients("cps", s, n, level) if i < steps - 1 else flow.Coefficients(*torch.tensor([1.0, n - s, 0.0]))
        variance = float((c.x + c.velocity * gain) ** 2 * variance + c.std**2)
    mean, std = law(config("cps", steps, size=steps - 1, noise_level=level), 9)
    assert abs(std - math.sqrt(variance)) < 5 * STD / math.sqrt(80_000)
    assert abs(mean - MEAN) < 0.01
    assert math.sqrt(variance) < 0.9 * STD


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_log_probs_replay_to_the_last_bit(family: str, reduction: str) -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(7, 13), torch.nn.SiLU(), torch.nn.Linear(13, 7))

    def velocity(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return net(x) + sigma.reshape(-1, 1, 1, 1, 1) * x

    c = config(family, steps=6, log_prob=reduction, shift=3.0)
    trace, steps, sigmas = draw(c, velocity=velocity), flow.window(c), flow.schedule(6, 3.0)
    for j in range(3):
        _, log_prob = flow.evaluate(velocity, trace.latents[:, j], trace.next_latents[:, j], steps[j].expand(4), sigmas, c)
        assert log_prob.requires_grad
        assert torch.equal(log_prob, trace.log_probs[:, j])
    assert torch.equal(trace.next_latents[:, 0], trace.latents[:, 1])  # consecutive window steps share their state


def test_a_sample_does_not_depend_on_its_batch() -> None:
    c = config(steps=7, size=2, shift=3.0).model_copy(update={"window": WindowConfig(size=2, position="random")})
    sigmas = flow.schedule(7, 3.0)
    seeds = [(5, 1, prompt, sample) for prompt in range(3) for sample in range(2)]
    steps = torch.stack([flow.window(c, *seed[:3]) for seed in seeds])
    assert len({tuple(row) for row in steps.tolist()}) > 1, "the test needs windows that differ within the batch"
    x = torch.randn(6, *SHAPE, generator=torch.Generator().manual_seed(3))
    whole = flow.sample(exact_velocity, x, sigmas, c, steps, flow.generators(seeds))
    for i in (0, 3, 5):
        alone = flow.sample(exact_velocity, x[i : i + 1], sigmas, c, steps[i], flow.generators([seeds[i]]))
        for name in ("x0", "latents", "next_latents", "log_probs"):
            torch.testing.assert_close(getattr(alone, name)[0], getattr(whole, name)[i], rtol=1e-6, atol=1e-6)


def test_replayed_noise_is_the_noise_that_was_drawn() -> None:
    c = config(steps=6, size=3)
    trace, steps, sigmas = draw(c, seed=4), flow.window(c), flow.schedule(6, 1.0)
    noise = flow.replay_noise([(4, 0, 0, i) for i in range(4)], 3, SHAPE)
    for j in range(3):
        transition = flow.evaluate_transition(exact_velocity, trace.latents[:, j], steps[j].expand(4), sigmas, c)
        again = transition.mean + transition.std.reshape(-1, 1, 1, 1, 1) * noise[:, j]
        assert torch.equal(again, trace.next_latents[:, j])


def test_outside_the_window_sampling_is_the_ode() -> None:
    c = config(steps=5, size=1)
    sigmas, x = flow.schedule(5, 1.0), torch.randn(3, *SHAPE)
    trace = flow.sample(exact_velocity, x, sigmas, c, torch.zeros(0, dtype=torch.int64), [])
    by_hand = x
    for i in range(5):
        by_hand = by_hand + (sigmas[i + 1] - sigmas[i]) * exact_velocity(by_hand, sigmas[i].expand(3))
    torch.testing.assert_close(trace.x0, by_hand)
    assert trace.latents.shape == (3, 0, *SHAPE)
    assert trace.log_probs.shape == (3, 0)


def test_windows() -> None:
    assert flow.window(config(size=3)).tolist() == [0, 1, 2]
    c = FlowConfig(steps=9, window=WindowConfig(size=3, position="random", within=5))
    drawn = [tuple(flow.window(c, 7, step, 0).tolist()) for step in range(200)]
    assert all(list(w) == sorted(set(w)) and len(w) == 3 and w[-1] < 5 for w in drawn)
    assert len(set(drawn)) == math.comb(5, 3)
    assert drawn[3] == tuple(flow.window(c, 7, 3, 0).tolist())
    everything_but_the_last = FlowConfig(steps=4, window=WindowConfig(size=3, position="random"))
    assert flow.window(everything_but_the_last, 1).tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="cps adds no noise at the last step"):
        flow.window(config("cps", steps=4, size=4))
    with pytest.raises(ValueError, match="does not fit"):
        flow.window(config(steps=2, size=3))


@pytest.mark.parametrize("steps", [[0, 8], [2, 1], [-1, 0]])
def test_sampling_refuses_bad_windows(steps: list[int]) -> None:
    c = config(steps=8)
    with pytest.raises(ValueError, match="ascending indices below 8"):
        flow.sample(exact_velocity, torch.randn(1, *SHAPE), flow.schedule(8, 1.0), c, torch.tensor(steps), flow.generators([(0,)]))


def test_as_many_generators_as_samples() -> None:
    with pytest.raises(ValueError, match="as many generators"):
        flow.Transition(torch.zeros(3, 2), torch.tensor(1.0)).sample(flow.generators([(0,), (1,)]))
