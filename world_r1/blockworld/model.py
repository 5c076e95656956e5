"""The embedded model's parts in diffusers classes: causal video VAE, text encoder, tokenizer, transformer; save and load."""

from __future__ import annotations

import copy
import json
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from world_r1.blockworld import captions, scenes
from world_r1.policies.wan_vae import channels_last

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan, WanTransformer3DModel
    from transformers import PreTrainedTokenizerFast, UMT5EncoderModel

TEXT_LENGTH = 64
LATENT_CHANNELS = 24
#: Sampling settings that `world-r1 sample` uses for these weights, and what the policy must know about them.
SETTINGS: dict[str, Any] = {
    "max_text_length": TEXT_LENGTH,
    "shift": 3.0,
    "steps": 8,
    "guidance_scale": 3.0,
    "video": {"frames": 17, "height": 96, "width": 160, "fps": 8.0},
    "camera": {"preset": "blockworld"},
}


def build_vae() -> AutoencoderKLWan:
    """Causal video VAE of 3.7 M parameters: 17x96x160 pixels <-> 24x5x12x20 latents."""
    from diffusers import AutoencoderKLWan

    z = LATENT_CHANNELS
    return AutoencoderKLWan(
        base_dim=32,
        decoder_base_dim=40,
        z_dim=z,
        dim_mult=[1, 2, 2],  # the residual down block needs two equal last entries
        num_res_blocks=1,
        temperal_downsample=[True, True],
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=8,
        scale_factor_temporal=4,
        latents_mean=[0.0] * z,
        latents_std=[1.0] * z,
    )


def build_transformer() -> WanTransformer3DModel:
    """Diffusion transformer of 12.9 M parameters over 5x6x10 = 300 tokens."""
    from diffusers import WanTransformer3DModel

    model = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=5,
        attention_head_dim=64,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        text_dim=256,
        freq_dim=256,
        ffn_dim=1024,
        num_layers=8,
        cross_attn_norm=True,
        rope_max_seq_len=64,
    )
    nn.init.zeros_(model.proj_out.weight)
    nn.init.zeros_(model.proj_out.bias)
    return model


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Word-level tokenizer over every word that captions can contain; lower-cased, punctuation split off, `</s>` at the end."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "</s>", "<unk>", *vocabulary()]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=TEXT_LENGTH
    )


@cache
def vocabulary() -> tuple[str, ...]:
    """Sorted words of 6,000 captions, which cover every attribute, movement and camera phrase many times."""
    words: set[str] = set()
    for seed in range(12):
        for text in captions.captions(scenes.sample(500, seed=700_000 + seed), seed):
            words.update(re.findall(r"\w+|[^\w\s]", text.lower()))
    return tuple(sorted(words))


def build_text_encoder(vocabulary_size: int) -> UMT5EncoderModel:
    """UMT5 encoder of 1.3 M parameters, trained together with the transformer."""
    from transformers import UMT5Config, UMT5EncoderModel

    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=(vocabulary_size + 31) // 32 * 32,
            d_model=256,
            d_kv=64,
            d_ff=512,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            pad_token_id=0,
            eos_token_id=1,
            decoder_start_token_id=0,
        )
    )


def encode_text(encoder: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """[B, L] token ids -> [B, L, 256] embeddings, zero at padded positions, as WanPipeline feeds them to the transformer."""
    mask = (ids != 0).long()
    hidden = encoder(ids, mask).last_hidden_state
    return hidden * mask[..., None].to(hidden.dtype)


def save(
    directory: Path, *, vae: nn.Module | None = None, transformer: nn.Module | None = None, text_encoder: nn.Module | None = None
) -> None:
    """Write the given parts in bf16, shards below 15 MB; other parts in the folder stay as they are."""
    parts = {"vae": vae, "transformer": transformer, "text_encoder": text_encoder}
    for name, part in parts.items():
        if part is not None:
            plain: Any = channels_last(copy.deepcopy(part).to("cpu", torch.bfloat16), on=False)
            plain.save_pretrained(directory / name, max_shard_size="15MB")


def save_index(directory: Path) -> None:
    """Write tokenizer, scheduler, model_index.json and world_r1.json, which make the folder a WanPipeline."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    build_tokenizer().save_pretrained(directory / "tokenizer")
    FlowMatchEulerDiscreteScheduler(shift=SETTINGS["shift"]).save_pretrained(directory / "scheduler")
    index = {
        "_class_name": "WanPipeline",
        "_diffusers_version": "0.42.1",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "transformer_2": [None, None],
        "vae": ["diffusers", "AutoencoderKLWan"],
        "boundary_ratio": None,
        "expand_timesteps": False,
    }
    (directory / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    (directory / "world_r1.json").write_text(json.dumps(SETTINGS, indent=2) + "\n")


def load_vae(directory: Path, device: torch.device | str) -> AutoencoderKLWan:
    """The trained VAE in float32, frozen, convolution weights in channels-last layout."""
    from diffusers import AutoencoderKLWan

    vae = AutoencoderKLWan.from_pretrained(directory / "vae", torch_dtype=torch.float32).to(device).eval().requires_grad_(False)
    return channels_last(vae)  # type: ignore[return-value]
