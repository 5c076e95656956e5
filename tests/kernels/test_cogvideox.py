"""Pyramid attention inside a small CogVideoX transformer: exact at density 1, replayed bit for bit, removed without trace."""

from __future__ import annotations

import pytest
import torch
from world_r1_kernels.pyramid_attention import PyramidConfig, apply_pyramid_attention

diffusers = pytest.importorskip("diffusers")

SPARSE = PyramidConfig(density=0.4, block=16)
FRAMES, HEIGHT, WIDTH, TEXT = 3, 10, 14, 9


@pytest.fixture(params=["rotary", "learned"])
def model(request: pytest.FixtureRequest) -> torch.nn.Module:
    torch.manual_seed(0)
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=8, text_embed_dim=8, num_layers=3,
        sample_width=WIDTH, sample_height=HEIGHT, sample_frames=9, max_text_seq_length=TEXT,
        use_rotary_positional_embeddings=request.param == "rotary",
    )  # fmt: skip
    for parameter in transformer.parameters():  # gates and biases start at values that hide the attention
        torch.nn.init.normal_(parameter, std=0.2)
    return transformer.eval()


def run(model: torch.nn.Module, sigma: float = 0.5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, FRAMES, 4, HEIGHT, WIDTH, generator=generator)
    text = torch.randn(2, TEXT, 8, generator=generator)
    tables = None
    if model.config.use_rotary_positional_embeddings:
        angle = torch.randn(FRAMES * (HEIGHT // 2) * (WIDTH // 2), 8, generator=generator).repeat_interleave(2, -1)
        tables = (angle.cos(), angle.sin())
    timestep = torch.full((2,), 1000 * sigma)
    return model(x, text, timestep, image_rotary_emb=tables, return_dict=False)[0]


def test_density_one_is_the_model(model: torch.nn.Module) -> None:
    with torch.no_grad():
        before = run(model)
        for order in ("tiles", "hilbert"):
            handle = apply_pyramid_attention(model, PyramidConfig(density=1.0, block=16), order=order, backend="reference")
            torch.testing.assert_close(run(model), before, atol=2e-4, rtol=1e-3)
            handle.remove()
        assert torch.equal(run(model), before)


def test_sparse_with_the_text_in_full(model: torch.nn.Module) -> None:
    """Recorded plans replay to the bit, text blocks are dense, and the policies keep layers and sigmas dense."""
    with torch.no_grad():
        before = run(model)
        handle = apply_pyramid_attention(model, SPARSE, dense_layers=(0,), dense_above=0.7, backend="reference")
        with handle.recording() as plans:
            out = run(model)
        with handle.replaying(plans):
            assert torch.equal(run(model), out)
        assert (out - before).abs().max() > 1e-4
        torch.testing.assert_close(run(model, 0.8), _dense(handle, model, 0.8), atol=2e-4, rtol=1e-3)
    assert sorted(plans[0]) == [1, 2]
    first = FRAMES * (HEIGHT // 2) * (WIDTH // 2) // 16
    for plan in plans[0].values():
        assert (plan.levels[:, :, first:] == 1).all()
        assert (plan.levels[..., first:] == 1).all()
        assert (plan.levels == 16).any()


def _dense(handle: object, model: torch.nn.Module, sigma: float) -> torch.Tensor:
    handle.remove()  # type: ignore[attr-defined]
    return run(model, sigma)


def test_gradients_with_checkpointing(model: torch.nn.Module) -> None:
    """A checkpointed run, which repeats every layer, has the same gradients."""
    handle = apply_pyramid_attention(model, SPARSE, backend="reference")
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.enable_gradient_checkpointing()
            model.train()
        model.zero_grad()
        run(model).square().mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, plain, atol=1e-6, rtol=1e-4)
    handle.remove()


def test_other_models_and_second_helpings_are_refused(model: torch.nn.Module) -> None:
    with pytest.raises(ValueError, match="CogVideoXTransformer3DModel, got Linear"):
        apply_pyramid_attention(torch.nn.Linear(2, 2))
    handle = apply_pyramid_attention(model, SPARSE)
    with pytest.raises(ValueError, match="has pyramid attention already"):
        apply_pyramid_attention(model, SPARSE)
    handle.remove()
    with pytest.raises(ValueError, match="found by itself"):
        apply_pyramid_attention(model, PyramidConfig(dense=((0, 4),)))
