"""Causal pyramid attention inside a small Qwen2.5-VL: exact at density 1, sparse prompts, exact decoding, removed without trace."""

from __future__ import annotations

import pytest
import torch
from world_r1_kernels.pyramid_attention import PyramidConfig, apply_causal_pyramid_attention
from world_r1_kernels.pyramid_attention.language import exact

transformers = pytest.importorskip("transformers")

SPARSE = PyramidConfig(density=0.5, block=16)
IMAGE, START = 60, 61


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    text = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "rope_scaling": {"type": "default", "mrope_section": [1, 1, 2], "rope_type": "default"},
    }  # fmt: skip
    vision = {
        "depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": 32, "patch_size": 4,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 16, "fullatt_block_indexes": [0],
    }  # fmt: skip
    config = transformers.Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, image_token_id=IMAGE, vision_start_token_id=START, video_token_id=62
    )
    found = transformers.Qwen2_5_VLForConditionalGeneration(config).eval()
    for name, parameter in found.named_parameters():  # at its own scale the attention would be flat, and every plan right
        if "q_proj" in name or "k_proj" in name:
            torch.nn.init.normal_(parameter, std=0.4)
    return found


def prompt(text: int = 40) -> dict[str, torch.Tensor]:
    """A picture of 16 x 12 patches, 48 tokens after merging, then text."""
    generator = torch.Generator().manual_seed(0)
    grid = torch.tensor([[1, 16, 12]])
    words = torch.randint(0, 50, (text,), generator=generator)
    ids = torch.cat([torch.tensor([START]), torch.full((48,), IMAGE), words])[None]
    pixels = torch.randn(16 * 12, 3 * 2 * 4 * 4, generator=generator)
    kinds = (ids == IMAGE).int()
    return {"input_ids": ids, "pixel_values": pixels, "image_grid_thw": grid, "mm_token_type_ids": kinds}


def test_density_one_is_the_model(model: torch.nn.Module) -> None:
    with torch.no_grad():
        before = model(**prompt()).logits
        handle = apply_causal_pyramid_attention(model, PyramidConfig(density=1.0, block=16), least_tokens=16, backend="reference")
        torch.testing.assert_close(model(**prompt()).logits, before, atol=2e-5, rtol=1e-4)
        assert sorted(handle.plans) == [0, 1, 2]
        handle.remove()
        assert torch.equal(model(**prompt()).logits, before)


def test_sparse_prompts_stay_causal(model: torch.nn.Module) -> None:
    """What comes later changes nothing earlier; dense layers and short prompts keep exact attention."""
    with torch.no_grad():
        before = model(**prompt()).logits
        handle = apply_causal_pyramid_attention(model, SPARSE, dense_layers=(0,), least_tokens=50, backend="reference")
        out = model(**prompt()).logits
        assert sorted(handle.plans) == [1, 2]
        assert all(plan.check().causal and plan.attention_density < 0.75 for plan in handle.plans.values())
        assert (out - before).abs().max() > 1e-4
        assert (out[:, :16] - before[:, :16]).abs().max() < 1e-5, "the first block sees itself alone, in full"
        ids = torch.randint(0, 50, (1, 49), generator=torch.Generator().manual_seed(1))
        short = model(input_ids=ids).logits
        assert not handle.plans
        handle.remove()
        torch.testing.assert_close(short, model(input_ids=ids).logits, atol=2e-5, rtol=1e-4)


def test_decoding_after_a_sparse_prompt_is_exact(model: torch.nn.Module) -> None:
    """At density 1, greedy tokens with the cache are those of the model itself."""
    with torch.no_grad():
        settings = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
        before = model.generate(**prompt(), **settings)
        handle = apply_causal_pyramid_attention(model, PyramidConfig(density=1.0, block=16), least_tokens=16, backend="reference")
        assert torch.equal(model.generate(**prompt(), **settings), before)
        handle.remove()


def test_padded_batches(model: torch.nn.Module) -> None:
    with torch.no_grad():
        ids = torch.randint(0, 50, (2, 70), generator=torch.Generator().manual_seed(1))
        mask = torch.ones_like(ids)
        mask[1, 52:] = 0
        before = model(input_ids=ids, attention_mask=mask).logits
        handle = apply_causal_pyramid_attention(model, PyramidConfig(density=1.0, block=16), least_tokens=16, backend="reference")
        out = model(input_ids=ids, attention_mask=mask).logits
        torch.testing.assert_close(out[0], before[0], atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(out[1, :52], before[1, :52], atol=2e-5, rtol=1e-4)
        with pytest.raises(ValueError, match="padded on the right"):
            model(input_ids=ids, attention_mask=mask.flip(1))
        handle.least_tokens = 1000
        torch.testing.assert_close(model(input_ids=ids, attention_mask=mask.flip(1)).logits.isfinite().all(), torch.tensor(True))
        handle.remove()


def test_exact_attention_of_the_last_positions() -> None:
    q, k, v = (torch.randn(2, 4, 9, 8, generator=torch.Generator().manual_seed(i)) for i in range(3))
    whole = exact(q, k[:, :2], v[:, :2], None, 0.3)
    torch.testing.assert_close(exact(q[:, :, 6:], k[:, :2], v[:, :2], None, 0.3), whole[:, :, 6:])


def test_refusals(model: torch.nn.Module) -> None:
    with pytest.raises(ValueError, match="no causal attention layers in Linear"):
        apply_causal_pyramid_attention(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="within the 3 layers"):
        apply_causal_pyramid_attention(model, dense_layers=(3,))
    handle = apply_causal_pyramid_attention(model, SPARSE, backend="reference")
    with pytest.raises(ValueError, match="has pyramid attention already"):
        apply_causal_pyramid_attention(model, SPARSE)
    handle.remove()
