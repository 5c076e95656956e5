"""A tiny random Wan model on disk: every part of a text-to-video pipeline at about 30 thousand weights a part.

It goes through the same loaders, tokenizer, text encoder, guidance and VAE as Wan2.1 and shows noise; tests of the loop run on it
in seconds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

#: Words with a token of their own; other words share `<unk>`.
VOCABULARY = """
    camera push pull move pan tilt orbit in out left right up down then and at slow fast speed fixed a an the of on under with over
    near behind small large red green blue yellow orange purple cyan magenta white black gray pink brown checkered striped plain
    dotted box sphere cylinder cone pyramid torus cube ball floor grass wooden sand stone tiles sky sunset night clear moving
    rolling spinning bouncing still scene two three one . ,
"""


def tiny_wan_pipeline(directory: str | Path, seed: int = 0, settings: dict[str, Any] | None = None) -> Path:
    """Write a random Wan pipeline in diffusers layout to `directory` and return the path; the same seed writes the same weights.

    Latents have 4 channels, 1/8 of the height and width and 1/4 of the frames (sides must be multiples of 16, frames 1 + 4k). The
    text length is 24 tokens. `settings` is merged into `world_r1.json` (see `world_r1.policies.wan_files.settings`).
    """
    from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

    directory = Path(directory)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = AutoencoderKLWan(
            base_dim=4,
            decoder_base_dim=4,
            z_dim=4,
            dim_mult=[1, 2, 2],
            num_res_blocks=1,
            temperal_downsample=[True, True],
            is_residual=True,
            in_channels=12,
            out_channels=12,
            patch_size=2,
            scale_factor_spatial=8,
            scale_factor_temporal=4,
            latents_mean=[0.0, 0.1, -0.1, 0.0],
            latents_std=[1.0, 0.5, 1.0, 2.0],
        )
        transformer = WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=16,
            freq_dim=32,
            ffn_dim=48,
            num_layers=2,
            rope_max_seq_len=64,
        )
        text_encoder = UMT5EncoderModel(
            UMT5Config(vocab_size=128, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, dropout_rate=0.0, pad_token_id=0)
        )
    pipeline = WanPipeline(
        tokenizer=word_tokenizer(VOCABULARY.split(), 24),
        text_encoder=text_encoder,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        transformer=transformer,
    )
    pipeline.save_pretrained(directory)
    (directory / "world_r1.json").write_text(
        json.dumps({"max_text_length": 24, **(settings or {})}, indent=2) + "\n", encoding="utf-8"
    )
    return directory


def tiny_cogvideox_pipeline(directory: str | Path, seed: int = 0, patch_size_t: int | None = None) -> Path:
    """Write a random CogVideoX pipeline (1.5 with `patch_size_t` 2) in diffusers layout to `directory` and return the path.

    Latents have 4 channels, 1/8 of the height and width and 1/4 of the frames; the text length is 24 tokens.
    """
    from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXPipeline, CogVideoXTransformer3DModel
    from transformers import T5Config, T5EncoderModel

    from world_r1.policies.architectures import architecture

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = AutoencoderKLCogVideoX(
            block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2, scaling_factor=0.7
        )
        transformer = CogVideoXTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            out_channels=4,
            time_embed_dim=8,
            text_embed_dim=16,
            num_layers=2,
            sample_width=12,
            sample_height=8,
            patch_size_t=patch_size_t,
            patch_bias=patch_size_t is None,
            max_text_seq_length=24,
            use_rotary_positional_embeddings=True,
        )
        text_encoder = T5EncoderModel(
            T5Config(vocab_size=128, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, dropout_rate=0.0, pad_token_id=0)
        )
    pipeline = CogVideoXPipeline(
        tokenizer=word_tokenizer(VOCABULARY.split(), 24),
        text_encoder=text_encoder,
        vae=vae,
        transformer=transformer,
        scheduler=CogVideoXDDIMScheduler.from_config(dict(architecture("zai-org/CogVideoX-5b").scheduler)),
    )
    pipeline.save_pretrained(directory)
    return Path(directory)


def word_tokenizer(words: Sequence[str], length: int) -> Any:
    """A lower-casing word-level tokenizer (`PreTrainedTokenizerFast`): <pad> 0, </s> 1, <unk> 2, then `words`; ends with </s>."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate(["<pad>", "</s>", "<unk>", *dict.fromkeys(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=length
    )
