"""CogVideoXPolicy: CogVideoX-5B and CogVideoX1.5-5B behind the policy contract, through the mapping of `world_r1.policies.vp`.

What differs from Wan: the variance-preserving process and its prediction; one sequence of text and video tokens; 1.5 folds two latent
frames into a token while its decoder needs an odd number of them, so that, as in its pipeline, one more is sampled ahead and dropped.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch

from world_r1.config import ModelConfig, VideoConfig
from world_r1.policies import vp, wan_files
from world_r1.policies.base import DiffusersPolicy
from world_r1.policies.source import Source


class CogVideoXPolicy(DiffusersPolicy):
    """One CogVideoX model with a trainable adapter (or fully trainable); see `world_r1.policy.Policy` for the contract."""

    pipeline = "CogVideoXPipeline"
    blocks = "transformer_blocks"

    @classmethod
    def open(cls, model: ModelConfig, device: torch.device) -> Source:
        """Files of a `CogVideoXPipeline`, or random weights of the architecture that `model.path` names."""
        if model.random_weights is not None:
            from world_r1.policies.random_weights import RandomCogVideoX

            return RandomCogVideoX(model.path, model.random_weights, device)
        return CogVideoXFiles(model.path)

    def latent_shape(self, video: VideoConfig) -> tuple[int, int, int, int]:
        """(C, t, h, w) of the latents of one video; ValueError for a size that the model cannot make."""
        settings = self.transformer.config
        space, time = 2 ** (len(self._channels) - 1), 4
        step = space * settings.patch_size
        fold = settings.patch_size_t or 1
        latents = (video.frames - 1) // time + 1
        if (video.frames - 1) % (2 * time) or video.height % step or video.width % step:
            fit = (
                (video.frames - 1) // (2 * time) * 2 * time + 1,
                max(round(video.height / step), 1) * step,
                max(round(video.width / step), 1) * step,
            )
            raise ValueError(
                f"this model makes 1 + {2 * time}k frames, with sides in steps of {step} pixels; "
                f"got {video.frames}x{video.height}x{video.width}; the nearest size is {fit[0]}x{fit[1]}x{fit[2]}"
            )
        return (settings.in_channels, -(-latents // fold) * fold, video.height // space, video.width // space)

    def frames_ahead(self, video: VideoConfig) -> int:
        """One where the video's latent frames do not fill the model's tokens."""
        return self.latent_shape(video)[1] - ((video.frames - 1) // 4 + 1)

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> np.ndarray:
        """[B, C, t, h, w] normalised latents -> [B, T, H, W, 3] uint8, one video at a time, by the stock decoder.

        Its group norms see the frames of a chunk together, so that chunks of another length would give other pictures.
        """
        ahead = 1 - latents.shape[2] % 2  # the decoder takes an odd number
        return np.concatenate([self._decode_some(z) for z in latents[:, :, ahead:].split(1)])

    def _decode_some(self, z: torch.Tensor) -> np.ndarray:
        if self.config.speed.vae_decode == "full":
            raise ValueError(
                "CogVideoX's autoencoder is defined on chunks of two latent frames; set speed.vae_decode to auto or chunked"
            )
        scale = float(self.vae.config.scaling_factor)
        video = self.vae.decode((z.float() / scale).to(self.device, self.vae.dtype), return_dict=False)[0].float()
        pixels = video.permute(0, 2, 3, 4, 1).add(1.0).mul(127.5).round_().clamp_(0, 255)
        return pixels.to(torch.uint8).contiguous().cpu().numpy()

    @cached_property
    def levels(self) -> torch.Tensor:
        """float64 [T] sigma of each training timestep."""
        return vp.noise_levels(self.source.scheduler)

    @property
    def _channels(self) -> tuple[int, ...]:
        return tuple(self.source.vae_config.get("block_out_channels", (128, 256, 256, 512)))

    def _predict(self, transformer: Any, x: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        y = vp.to_process(x.float(), sigma)
        video_first = y.transpose(1, 2).to(self.dtype)  # [B, t, C, h, w]
        out = transformer(
            hidden_states=video_first,
            encoder_hidden_states=condition.to(self.dtype),
            timestep=self._timestep(sigma),
            image_rotary_emb=self._rotary(tuple(video_first.shape[1:])),
            return_dict=False,
        )[0]
        return vp.to_velocity(y, out.float().transpose(1, 2), sigma)

    def _timestep(self, sigma: torch.Tensor) -> torch.Tensor:
        return vp.timestep(self.levels, sigma)

    def _rotary(self, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotary tables of latents (t, C, h, w), kept."""
        if shape not in self._tables:
            self._tables = {shape: self._make_rotary(shape)}
        return self._tables[shape]

    @cached_property
    def _tables(self) -> dict[tuple[int, ...], tuple[torch.Tensor, torch.Tensor]]:
        return {}

    def _make_rotary(self, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        """CogVideoX 1.5 counts positions; CogVideoX 1.0 stretches its trained grid over the picture, cropped to the picture's aspect."""
        from diffusers.models.embeddings import get_3d_rotary_pos_embed
        from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid

        settings = self.transformer.config
        frames, _, height, width = shape
        grid = (height // settings.patch_size, width // settings.patch_size)
        base = (settings.sample_height // settings.patch_size, settings.sample_width // settings.patch_size)
        common = {"embed_dim": settings.attention_head_dim, "grid_size": grid, "device": self.device}
        if settings.patch_size_t is None:
            crop = get_resize_crop_region_for_grid(grid, base[1], base[0])
            return get_3d_rotary_pos_embed(crops_coords=crop, temporal_size=frames, **common)
        folded = frames // settings.patch_size_t
        return get_3d_rotary_pos_embed(crops_coords=None, temporal_size=folded, grid_type="slice", max_size=base, **common)

    def _text_features(self, prompt: str) -> torch.Tensor:
        """[L, D] of one prompt, padding included and unmasked, as `CogVideoXPipeline` gives it."""
        tokenizer, encoder = self.text
        tokens = tokenizer(
            [prompt],
            padding="max_length",
            max_length=self.max_text_length,
            truncation=True,
            add_special_tokens=True,
            return_tensors="pt",
        )
        return encoder(tokens.input_ids.to(self.device))[0][0]


class CogVideoXFiles:
    """The parts of a CogVideoX model on disk or on the Hub, as `world_r1.policies.source.Source` asks for them."""

    def __init__(self, path: str) -> None:
        """ValueError for a model that is unreadable or of another kind."""
        self.path = str(path)
        self.index = wan_files.read_json(self.path, "model_index.json", required=True)
        kind = self.index.get("_class_name")
        if kind != "CogVideoXPipeline":
            raise ValueError(
                f"model {path!r} is a {kind}, not a text-to-video CogVideoXPipeline; choose CogVideoX-5b or CogVideoX1.5-5B"
            )
        config = wan_files.read_json(self.path, "transformer/config.json", required=True)
        self.settings = {"max_text_length": config.get("max_text_seq_length", 226), **wan_files.settings(self.path)}

    @property
    def vae_config(self) -> dict[str, Any]:
        """Configuration of the autoencoder."""
        return wan_files.read_json(self.path, "vae/config.json", required=True)

    @property
    def scheduler(self) -> dict[str, Any]:
        """Configuration of the scheduler, which says what a timestep means."""
        return wan_files.read_json(self.path, "scheduler/scheduler_config.json", required=True)

    def transformer(self, dtype: torch.dtype, part: str) -> Any:
        """The transformer, from the model or from a folder that holds one."""
        from diffusers import CogVideoXTransformer3DModel

        path, subfolder = (self.path, part) if part == "transformer" else (part, None)
        read = lambda: CogVideoXTransformer3DModel.from_pretrained(  # noqa: E731
            path, subfolder=subfolder, torch_dtype=dtype, use_safetensors=True
        )
        return wan_files.read_part(self.path, "transformer", read).eval()

    def vae(self) -> Any:
        """The autoencoder, float32, frozen."""
        from diffusers import AutoencoderKLCogVideoX

        read = lambda: AutoencoderKLCogVideoX.from_pretrained(  # noqa: E731
            self.path, subfolder="vae", torch_dtype=torch.float32, use_safetensors=True
        )
        return wan_files.read_part(self.path, "vae", read).eval().requires_grad_(False)

    def text(self, dtype: torch.dtype) -> tuple[Any, Any]:
        """Tokenizer and T5 encoder."""
        from transformers import AutoTokenizer, T5EncoderModel

        tokenizer = wan_files.read_part(
            self.path, "tokenizer", lambda: AutoTokenizer.from_pretrained(self.path, subfolder="tokenizer")
        )
        read = lambda: T5EncoderModel.from_pretrained(  # noqa: E731
            self.path, subfolder="text_encoder", dtype=dtype, use_safetensors=True
        )
        return tokenizer, wan_files.read_part(self.path, "text_encoder", read).eval().requires_grad_(False)


POLICY = CogVideoXPolicy
