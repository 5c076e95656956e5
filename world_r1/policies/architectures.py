"""The published architectures by Hub id, as hyper-parameters: what random weights are built from, and what plans and benchmarks count with.

Transformers and autoencoders are arguments of diffusers' classes. Sources: the models' `config.json` as repeated in diffusers' conversion
scripts (`convert_wan_to_diffusers.py`, `convert_cogvideox_to_diffusers.py`); arXiv 2503.20314 (Wan) and 2408.06072 (CogVideoX) for
sizes. `parameters` are what the classes count, checked by a test.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_WAN: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "attention_head_dim": 128,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 4096,
    "freq_dim": 256,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "eps": 1e-6,
    "rope_max_seq_len": 1024,
}
_COGVIDEOX: dict[str, Any] = {
    "num_attention_heads": 48,
    "attention_head_dim": 64,
    "in_channels": 16,
    "out_channels": 16,
    "time_embed_dim": 512,
    "text_embed_dim": 4096,
    "num_layers": 42,
    "patch_size": 2,
    "max_text_seq_length": 226,
    "use_rotary_positional_embeddings": True,
}
#: Wan2.1's autoencoder is the class's default; Wan2.2 5B's compresses 16x16 in space and has 48 channels.
_WAN_VAE: dict[str, Any] = {"z_dim": 16, "scale_factor_temporal": 4, "scale_factor_spatial": 8}
_WAN22_VAE: dict[str, Any] = {
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_temporal": 4,
    "scale_factor_spatial": 16,
    "latents_mean": [0.0] * 48,  # the published statistics are of the trained weights; these are for random ones
    "latents_std": [1.0] * 48,
}
#: CogVideoX-5B: zero terminal SNR, no shift of the SNR (2B has 3.0).
_COGVIDEOX_SCHEDULER: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "snr_shift_scale": 1.0,
    "timestep_spacing": "trailing",
}


@dataclass(frozen=True)
class Architecture:
    """One published model. Example: `architecture("Wan-AI/Wan2.1-T2V-1.3B-Diffusers").transformer["num_layers"]` is 30."""

    family: str
    transformer: Mapping[str, Any]
    vae: Mapping[str, Any]
    #: (frames, height, width) that the model card samples at.
    video: tuple[int, int, int]
    #: Millions of weights in one transformer.
    parameters: int
    index: Mapping[str, Any] = field(default_factory=dict)
    scheduler: Mapping[str, Any] = field(default_factory=dict)


def _wan(
    layers: int, heads: int, ffn: int, parameters: int, video: tuple[int, int, int] = (81, 480, 832), **more: Any
) -> Architecture:
    transformer = {**_WAN, "num_layers": layers, "num_attention_heads": heads, "ffn_dim": ffn, **more.pop("transformer", {})}
    return Architecture("wan", transformer, more.pop("vae", _WAN_VAE), video, parameters, **more)


_14B: dict[str, Any] = {"layers": 40, "heads": 40, "ffn": 13824, "parameters": 14289}
ARCHITECTURES: dict[str, Architecture] = {
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": _wan(30, 12, 8960, 1419),
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": _wan(**_14B),
    "Wan-AI/Wan2.2-T2V-A14B-Diffusers": _wan(**_14B, index={"boundary_ratio": 0.875}),
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": _wan(
        30, 24, 14336, 5000, (121, 704, 1280), transformer={"in_channels": 48, "out_channels": 48}, vae=_WAN22_VAE
    ),
    "zai-org/CogVideoX-5b": Architecture(
        "cogvideox",
        {**_COGVIDEOX, "sample_width": 90, "sample_height": 60, "sample_frames": 49},
        {"scaling_factor": 0.7},
        (49, 480, 720),
        5570,
        scheduler=_COGVIDEOX_SCHEDULER,
    ),
    "zai-org/CogVideoX1.5-5B": Architecture(
        "cogvideox",
        {
            **_COGVIDEOX,
            "sample_width": 300,
            "sample_height": 300,
            "sample_frames": 81,
            "patch_size_t": 2,
            "patch_bias": False,
        },
        {"scaling_factor": 0.7},
        (81, 768, 1360),
        5570,
        scheduler=_COGVIDEOX_SCHEDULER,
    ),
}


def architecture(path: str) -> Architecture:
    """By Hub id, in any capitalisation and under the former owner THUDM too; ValueError names those that are known."""
    wanted = path.lower().replace("thudm/", "zai-org/")
    for name, found in ARCHITECTURES.items():
        if wanted == name.lower():
            return found
    raise ValueError(f"no architecture is known for {path!r}, so it has no random weights; known: {', '.join(ARCHITECTURES)}")


def tiny(found: Architecture) -> Architecture:
    """The same geometry of latents, patches and experts with two layers, two heads and a few channels a layer."""
    transformer, vae = dict(found.transformer), dict(found.vae)
    if found.family == "wan":
        transformer |= {
            "num_layers": 2,
            "num_attention_heads": 2,
            "attention_head_dim": 24,
            "ffn_dim": 48,
            "text_dim": 16,
            "freq_dim": 32,
        }
        transformer["rope_max_seq_len"] = 64
        vae |= {"base_dim": 4, "num_res_blocks": 1}
        if "decoder_base_dim" in vae:
            vae["decoder_base_dim"] = 4
    else:
        transformer |= {
            "num_layers": 2,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "text_embed_dim": 16,
            "time_embed_dim": 16,
        }
        vae |= {"block_out_channels": (8, 8, 8, 8), "norm_num_groups": 2, "layers_per_block": 1}
    return Architecture(found.family, transformer, vae, found.video, 0, found.index, found.scheduler)
