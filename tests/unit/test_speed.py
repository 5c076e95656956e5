"""Every speed switch against the plain path on the embedded model in float32: same rollouts, same update, exact ratios."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from world_r1.config import Config, parse
from world_r1.policies import speed
from world_r1.policies.sparse import pack, unpack
from world_r1.policies.tiny import tiny_wan_pipeline
from world_r1.policy import load_policy
from world_r1.rollout import sample_group
from world_r1.types import Prompt, Rollout
from world_r1.update import Trainer, stack

PROMPT = Prompt("a", "Camera orbit left. A red box on grass.")
SPARSE = {"kind": "pyramid", "density": 0.4, "block": 16, "backend": "reference"}


def configured(switches: dict[str, Any] | None = None, **sections: Any) -> Config:
    tree: dict[str, Any] = {
        "seed": 7,
        "model": {"path": "blockworld", "device": "cpu", "lora": {"rank": 4, "alpha": 8.0}, "guidance_scale": 2.0},
        "video": {"frames": 5, "height": 32, "width": 48},
        "flow": {"steps": 2, "window": {"size": 1}},
        "algorithm": {"kl": {"beta": 0.1}},
        "optimizer": {"learning_rate": 1e-3, "micro_batch": 2},
        "prompts": {"groups": 1, "group_size": 2},
        "speed": switches or {},
    }
    return parse(
        {key: {**tree.get(key, {}), **sections.get(key, {})} if isinstance(tree.get(key), dict) else tree[key] for key in tree}
    )


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Config]:
    """`configured`, with a tiny random model and two trained steps: for what need not be seen on the embedded model."""
    path = str(tiny_wan_pipeline(tmp_path_factory.mktemp("tiny")))

    def make(switches: dict[str, Any] | None = None, **sections: Any) -> Config:
        model = {"path": path, **sections.pop("model", {})}
        flow = {"steps": 3, "window": {"size": 2}}
        return configured(switches, model=model, video={"frames": 9, "height": 64, "width": 96}, flow=flow, **sections)

    return make


def one_step(config: Config) -> tuple[list[Rollout], dict[str, float], dict[str, np.ndarray], Any]:
    """Sample a group with an adapter that does something, update once; rollouts, metrics, trained weights, policy."""
    policy = load_policy(config)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in policy.named_parameters().values():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    rollouts = sample_group(policy, config, PROMPT, 0, 0, 0).rollouts
    trainer = Trainer(config, policy)
    metrics = trainer.update(rollouts, {rollout.id: value for rollout, value in zip(rollouts, (1.0, -1.0), strict=True)})
    return rollouts, metrics, policy.state(), policy


@pytest.fixture(scope="module")
def plain() -> tuple[list[Rollout], dict[str, float], dict[str, np.ndarray], Any]:
    return one_step(configured())


@pytest.mark.parametrize(
    ("switches", "tolerance"),
    [
        ({"guidance_batch": False}, 2e-5),
        ({"text_encoder": "free", "checkpoint": 0.5, "vae_decode": "chunked", "fused_optimizer": True}, 0.0),
        ({"text_encoder": "offload", "checkpoint": "auto", "vae_decode": "full", "vae_channels_last": True}, 0.0),
        ({"attention": {**SPARSE, "density": 1.0}}, 1e-4),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_switch_changes_no_result(plain: Any, switches: dict[str, Any], tolerance: float) -> None:
    rollouts, metrics, state, policy = one_step(configured(switches))
    for ours, theirs in zip(rollouts, plain[0], strict=True):
        for name in ("latents", "next_latents", "x0", "log_probs"):
            np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), atol=tolerance, rtol=0)
    assert metrics["ratio_mean"] == 1.0
    assert metrics["grad_norm"] == pytest.approx(plain[1]["grad_norm"], rel=1e-3 if tolerance else 1e-6)
    for name, value in state.items():
        # A first step of AdamW moves every weight by about the learning rate, in the direction of a gradient's sign.
        np.testing.assert_allclose(value, plain[2][name], atol=2e-6 if not tolerance else 2.1e-3, rtol=0)
    if switches.get("text_encoder") == "free":
        assert policy._text is None


def test_the_embedded_models_sparse_rollout_and_update_have_ratio_exactly_one() -> None:
    _, metrics, _, policy = one_step(configured({"attention": SPARSE}, video={"frames": 9, "height": 48, "width": 80}))
    assert (metrics["ratio_mean"], metrics["ratio_std"]) == (1.0, 0.0)
    assert len(policy.transformer.blocks) > 4


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("switches", [{}, {"guidance_batch": False}, {"checkpoint": 1.0}, {"latents": "bf16"}])
def test_sparse_rollout_and_sparse_update_have_ratio_exactly_one(
    tiny: Callable[..., Config], switches: dict[str, Any], together: bool
) -> None:
    """With the plans of the rollout replayed, to the last bit; the reference and the policy see the same blocks."""
    rollouts, metrics, _, policy = one_step(tiny({**switches, "attention": SPARSE}, algorithm={"together": together}))
    assert metrics["ratio_mean"] == 1.0
    assert metrics["ratio_std"] == 0.0
    assert metrics["kl_nats"] > 0
    plans = rollouts[0].plans
    assert len(plans) == 2
    assert plans[0].shape[:2] == (2, len(policy.transformer.blocks))
    assert np.unique(plans[0].packed).size > 1


def test_sparse_attention_is_not_dense_and_plans_matter(tiny: Callable[..., Config]) -> None:
    """Negative control: another video's plans, or none, move the log-prob; a missing video is an error."""
    config = tiny({"attention": SPARSE})
    policy = load_policy(config)
    rollouts = sample_group(policy, config, PROMPT, 0, 0, 0).rollouts
    dense = load_policy(tiny())
    batch = stack(policy, config, rollouts, torch.ones(2))
    x, sigma = batch.latents[:, 1], 0.6
    with torch.no_grad():
        with batch.attending(policy, 1):
            kept = policy.velocity(x, sigma, batch.condition)
        with policy.replaying([rollout.plans[1] for rollout in reversed(rollouts)]):
            swapped = policy.velocity(x, sigma, batch.condition)
        assert (kept - swapped).abs().max() > 1e-5
        assert (kept - dense.velocity(x, sigma, batch.condition)).abs().max() > 1e-5
    with pytest.raises(ValueError, match="1 videos' attention plans are replayed"), policy.replaying([rollouts[0].plans[1]]):
        policy.velocity(x, sigma, batch.condition)


def test_plans_are_kept_of_the_wanted_calls_only(tiny: Callable[..., Config]) -> None:
    policy = load_policy(tiny({"attention": SPARSE}))
    x = torch.randn(1, *policy.latent_shape(policy.config.video))
    condition = policy.encode(["A red box."])
    with torch.no_grad(), policy.recording({1}) as plans:
        for sigma in (0.9, 0.6, 0.3):
            policy.velocity(x, sigma, condition)
    assert [calls[0] is not None for calls in plans] == [False, True, False]


def test_compiled_blocks_are_one_program_for_every_batch(tiny: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    """A step trains the videos that have a score, so its size changes; a program of its own for each would be eight, then none."""
    monkeypatch.setattr(speed, "COMPILER", "eager")
    torch._dynamo.reset()
    policy = load_policy(tiny({"compile": True}))
    condition = policy.encode(["Camera orbit left. A red box on a grey floor."])
    shape = policy.latent_shape(tiny({}).video)
    torch._dynamo.utils.counters.clear()
    for size in (4, 3, 2, 5):
        x, sigma = torch.randn(size, *shape), torch.full((size,), 0.5)
        with torch.no_grad():
            together = policy._guided(x, sigma, condition.expand(size, -1, -1), range(size))
            first = policy._guided(x[:1], sigma[:1], condition, range(1))
        torch.testing.assert_close(together[:1], first, atol=1e-4, rtol=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2  # one for any batch, and perhaps one for a single video


def test_compiled_sparse_blocks_are_one_program(tiny: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    """Sparse attention runs between compiled parts; neither the layer's number nor its plan makes a program of its own.

    The tracer runs, its code generator does not: that is minutes of a C++ compiler here, and is tested on a GPU (tests/gpu).
    """
    monkeypatch.setattr(speed, "COMPILER", "aot_eager")
    plain, quick = (load_policy(tiny(switches)) for switches in ({"attention": SPARSE}, {"attention": SPARSE, "compile": True}))
    x = torch.randn(1, *plain.latent_shape(plain.config.video), generator=torch.Generator().manual_seed(0))
    condition = plain.encode(["A red box."])
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with torch.no_grad(), plain.recording() as wanted, quick.recording() as found:
        for sigma in (0.9, 0.4):
            torch.testing.assert_close(
                quick.velocity(x, sigma, condition), plain.velocity(x, sigma, condition), atol=1e-4, rtol=1e-3
            )
    assert np.array_equal(found[0][0].packed, wanted[0][0].packed)  # type: ignore[union-attr]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 4  # the parts of one block, for two blocks and two calls
    assert not torch._dynamo.utils.counters["recompile_limit"]


def test_a_compiled_update_with_selective_checkpoints_is_the_plain_one(
    tiny: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rollout, reference, and update with and without checkpointing are few programs, far from the number at which the tracer gives up."""
    monkeypatch.setattr(speed, "COMPILER", "aot_eager")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    _, plain, expected, _ = one_step(tiny({"attention": SPARSE}))
    _, metrics, state, policy = one_step(tiny({"attention": SPARSE, "compile": True, "checkpoint": "auto"}))
    assert policy.transformer._gradient_checkpointing_func.seen[0] > 0
    assert metrics["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-4)
    assert metrics["ratio_mean"] == pytest.approx(1.0, abs=1e-6)
    for name, value in state.items():
        np.testing.assert_allclose(value, expected[name], atol=2.1e-3, rtol=0)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 16
    assert not torch._dynamo.utils.counters["recompile_limit"]


def test_sparse_attention_gets_one_dtype_whatever_the_norms_give(tiny: Callable[..., Config]) -> None:
    """On a GPU autocast computes the norms of queries and keys in float32; the kernels refuse mixed types."""
    policy = load_policy(tiny({"attention": SPARSE}, model={"dtype": "bf16"}))
    seen: list[set[torch.dtype]] = []
    attend = policy._sparse["transformer"].handle.attend
    for block in policy.transformer.blocks:
        for norm in (block.attn1.norm_q, block.attn1.norm_k):
            norm.register_forward_hook(lambda _, args, out: out.float())

    def watched(call: Any, layer: int, *qkv: torch.Tensor) -> torch.Tensor:
        seen.append({x.dtype for x in qkv})
        return attend(call, layer, *qkv)

    policy._sparse["transformer"].handle.attend = watched
    with torch.no_grad():
        policy.velocity(torch.randn(1, *policy.latent_shape(policy.config.video)), 0.5, policy.encode(["A red box."]))
    assert seen == [{torch.bfloat16}] * len(policy.transformer.blocks)


def test_plans_do_not_depend_on_the_batch_they_were_drawn_in(tiny: Callable[..., Config]) -> None:
    """Recorded in one forward of four rows (as on a GPU) or video by video; replayed either way."""
    config = tiny({"attention": SPARSE})
    policy = load_policy(config)
    x = torch.randn(2, *policy.latent_shape(config.video), generator=torch.Generator().manual_seed(0))
    sigma, condition = torch.full((2,), 0.7), policy.encode(["A red box.", "Camera push in. A cone."])
    with torch.no_grad():
        with policy.recording() as single:
            velocity = policy.velocity(x, sigma, condition)
        with policy.recording() as batched, policy._session.call(2):  # type: ignore[union-attr]
            policy._guided(x, sigma, condition, range(2))
        for one, two in zip(single[0], batched[0], strict=True):
            assert one is not None
            assert two is not None
            assert one.settings == two.settings
            assert np.mean(one.packed == two.packed) > 0.99  # rounding may tip a tie
        with policy.replaying(single[0]), policy._session.call(2):  # type: ignore[union-attr]
            torch.testing.assert_close(policy._guided(x, sigma, condition, range(2)), velocity, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_batch_on_both_sides_of_dense_above_gives_what_its_videos_give_alone(
    tiny: Callable[..., Config], guidance: float
) -> None:
    """Groups draw their own window steps, so a micro-batch may hold videos whose attention was dense beside such where it was sparse."""
    config = tiny({"attention": {**SPARSE, "dense_above": 0.8}}, model={"guidance_scale": guidance})
    policy = load_policy(config)
    x = torch.randn(3, *policy.latent_shape(config.video), generator=torch.Generator().manual_seed(0))
    sigma, condition = torch.tensor([0.9, 0.6, 0.85]), policy.encode(["A red box.", "Camera push in. A cone.", "A blue sphere."])
    with torch.no_grad(), policy.recording() as taken:
        alone = policy.velocity(x, sigma, condition)  # on a CPU video by video
        assert [plan is None for plan in taken[0]] == [True, False, True]
        with policy._session.call(3):  # type: ignore[union-attr]
            torch.testing.assert_close(policy._guided(x, sigma, condition, range(3)), alone, atol=1e-5, rtol=1e-4)
        assert [plan is None for plan in taken[1]] == [True, False, True]
    with torch.no_grad():  # drawn anew, as a forward-process algorithm does it
        torch.testing.assert_close(policy._guided(x, sigma, condition, range(3)), alone, atol=1e-5, rtol=1e-4)
    x.requires_grad_()
    with policy.replaying(taken[0]), policy._session.call(3):  # type: ignore[union-attr]
        replayed = policy._guided(x, sigma, condition, range(3))
    torch.testing.assert_close(replayed, alone, atol=1e-5, rtol=1e-4)
    (gradient,) = torch.autograd.grad(replayed.square().sum(), x)
    assert bool((gradient.flatten(1).abs().amax(1) > 0).all())


def test_stored_plans_come_back() -> None:
    """Packed row by row and unpacked in any order of rows, branches of several videos mixed; odd counts fill their last byte."""
    from world_r1_kernels.pyramid_attention import PyramidConfig, make_plan

    from world_r1.policies.sparse import _joined

    q, k = (torch.randn(4, 3, 70, 16, generator=torch.Generator().manual_seed(i)) for i in range(2))
    for levels in ((1,), (1, 2, 8)):
        plans = {layer: make_plan(q + layer, k, PyramidConfig(density=0.4, block=16, levels=levels)) for layer in (0, 3)}
        rows = pack(plans)
        videos = [_joined(rows[:2]), _joined(rows[2:])]
        assert all(one.packed.nbytes <= 2 * 2 * (-(-3 * 25 // (4 if levels == (1,) else 2))) for one in videos)
        found = unpack([(videos[1], 0), (videos[0], 1), (videos[1], 1), (videos[0], 0)])
        for layer, wanted in plans.items():
            assert torch.equal(found[layer].levels, wanted.levels[[2, 1, 3, 0]])
            assert (found[layer].rest, found[layer].has_rest) == (wanted.rest, wanted.has_rest)
        with pytest.raises(ValueError, match="without guidance"):
            unpack([(rows[0], 1)])
    other = pack({layer: make_plan(q, k, PyramidConfig(density=0.4, block=32)) for layer in (0, 3)})
    with pytest.raises(ValueError, match="different models or settings"):
        unpack([(rows[0], 0), (other[0], 0)])


def test_checkpointing_takes_as_many_blocks_as_the_memory_asks_for() -> None:
    blocks = [torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.SiLU(), torch.nn.Linear(64, 8)) for _ in range(4)]
    x = torch.randn(100, 8, requires_grad=True)
    each = speed.kept_bytes(blocks[0], (x,))
    assert each == 2 * 4 * 100 * 64  # before and after the activation; the input and the weights are there anyway
    for room, expected in ((0.0, 4), (1.5, 3), (2.5, 2), (9.0, 0)):
        chosen = speed.Chosen(blocks, "auto", memory=lambda room=room: int(room * each / speed.USABLE) + 1)
        y = x
        for block in blocks:
            y = chosen(block, y)
        assert chosen.checkpointed == expected
    assert speed.free_bytes(torch.device("cpu")) > 2**20


def test_bf16_latents_are_half_the_size_and_come_back(tiny: Callable[..., Config]) -> None:
    rollouts, metrics, _, _ = one_step(tiny({"latents": "bf16"}))
    assert (metrics["ratio_mean"], metrics["ratio_std"]) == (1.0, 0.0)
    whole = one_step(tiny())[0]
    assert rollouts[0].latents.nbytes * 2 == whole[0].latents.nbytes
    assert rollouts[0].latents.dtype == np.uint16
    with pytest.raises(ValueError, match="ratio_norm"):
        configured({"latents": "bf16"}, algorithm={"ratio_norm": True})


def test_a_bf16_decoder_shows_the_same_picture(tiny: Callable[..., Config]) -> None:
    config, other = tiny(), tiny({"vae_dtype": "bf16", "vae_channels_last": True})
    policy, quick = load_policy(config, trainable=False), load_policy(other, trainable=False)
    z = torch.randn(1, *policy.latent_shape(config.video), generator=torch.Generator().manual_seed(0))
    difference = np.abs(policy.decode(z).astype(int) - quick.decode(z))
    assert 0 < difference.mean() < 2.0
