"""Pyramid attention inside a small Wan transformer: exact at density 1, replayed bit for bit, removed without trace."""

from __future__ import annotations

import pytest
import torch
from world_r1_kernels.pyramid_attention import PyramidConfig, apply_pyramid_attention

diffusers = pytest.importorskip("diffusers")

SPARSE = PyramidConfig(density=0.4, block=16)


@pytest.fixture
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    transformer = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=8, freq_dim=16,
        ffn_dim=16, num_layers=3, rope_max_seq_len=32,
    )  # fmt: skip
    return transformer.eval()


def run(model: torch.nn.Module, sigma: float = 0.5, per_token: bool = False) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, 3, 10, 14, generator=generator)
    text = torch.randn(2, 5, 8, generator=generator)
    timestep = torch.full((2, 3 * 5 * 7) if per_token else (2,), 1000 * sigma)
    if per_token:
        timestep[:, :35] = 0  # a clean first frame
    return model(x, timestep, text, return_dict=False)[0]


@pytest.mark.parametrize("order", ["tiles", "hilbert"])
@pytest.mark.parametrize("per_token", [False, True])
def test_density_one_is_the_model(model: torch.nn.Module, order: str, per_token: bool) -> None:
    """Order hoisted, rotary tables and per-token modulation with it: no output may move."""
    with torch.no_grad():
        before = run(model, per_token=per_token)
        handle = apply_pyramid_attention(model, PyramidConfig(density=1.0, block=16), order=order, backend="reference")
        torch.testing.assert_close(run(model, per_token=per_token), before, atol=2e-5, rtol=1e-4)
        handle.remove()
        assert torch.equal(run(model, per_token=per_token), before)


def test_policies_choose_layers_and_sigmas(model: torch.nn.Module) -> None:
    with torch.no_grad():
        before = run(model)
        handle = apply_pyramid_attention(model, SPARSE, dense_above=0.4, backend="reference")
        with handle.recording() as plans:
            torch.testing.assert_close(run(model, 0.5), before, atol=2e-5, rtol=1e-4)
            run(model, 0.3)
        assert [sorted(one) for one in plans] == [[], [0, 1, 2]]
        handle.remove()
        handle = apply_pyramid_attention(model, SPARSE, dense_layers=(0, -1), backend="reference")
        with handle.recording() as plans:
            assert (run(model) - before).abs().max() > 1e-5
        assert sorted(plans[0]) == [1]


def test_replay_gives_the_same_bits(model: torch.nn.Module) -> None:
    handle = apply_pyramid_attention(model, SPARSE, backend="reference")
    with torch.no_grad(), handle.recording() as plans:
        first = run(model)
    weight = model.blocks[0].attn1.to_q.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.normal_()  # another model, which chooses other blocks
    with torch.no_grad(), handle.recording() as other:
        run(model)
    assert plans[0][0].hash != other[0][0].hash
    with torch.no_grad(), handle.replaying(plans), handle.recording() as again:
        run(model)
        assert again[0][0].hash == plans[0][0].hash
        with pytest.raises(ValueError, match="more forwards"):
            run(model)
    with torch.no_grad():
        weight.copy_(kept)
        with handle.replaying(plans):
            assert torch.equal(run(model), first)


def test_checkpointing_gives_the_same_gradients(model: torch.nn.Module) -> None:
    apply_pyramid_attention(model, SPARSE, backend="reference")
    model.train()
    gradients = []
    for _ in range(2):
        model.zero_grad()
        run(model).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        model.enable_gradient_checkpointing()
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_lora_learns_through_it(model: torch.nn.Module) -> None:
    from peft import LoraConfig

    model.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights=False))
    apply_pyramid_attention(model, SPARSE, backend="reference")
    run(model).square().sum().backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert any("attn1.to_k" in name for name in trained)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for name, p in trained.items() if "attn1" in name)


def test_other_models_are_refused(model: torch.nn.Module) -> None:
    with pytest.raises(ValueError, match=r"WanTransformer3DModel.*got Linear"):
        apply_pyramid_attention(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="within the 3 layers"):
        apply_pyramid_attention(model, dense_layers=(3,))
    with pytest.raises(ValueError, match="not causal"):
        apply_pyramid_attention(model, PyramidConfig(causal=True))
    apply_pyramid_attention(model)
    with pytest.raises(ValueError, match="already"):
        apply_pyramid_attention(model)
