"""WanPolicy: Wan2.1 and Wan2.2 text-to-video models (and others in that diffusers layout) behind the policy contract.

Wan2.1 1.3B and 14B and Wan2.2 5B have one transformer, Wan2.2 A14B two: the first sees sigma >= `boundary_ratio` of the pipeline, the
second what is below; both have an adapter and both are trained. Wan2.2 5B is fed one timestep a video: its per-token timesteps differ only
where a first frame is given, which text-to-video has not.
"""

from __future__ import annotations

import html
import re
from typing import Any

import numpy as np
import torch

from world_r1.config import ModelConfig, VideoConfig
from world_r1.policies import wan_files, wan_vae
from world_r1.policies.base import DiffusersPolicy
from world_r1.policies.source import Source, choose_device, choose_dtype
from world_r1.policies.speed import free_bytes
from world_r1.policies.wan_vae_frames import GpuDecoder

__all__ = ["POLICY", "WanPolicy", "choose_device", "choose_dtype", "clean"]


class WanPolicy(DiffusersPolicy):
    """One Wan model with a trainable adapter (or fully trainable); see `world_r1.policy.Policy` for the contract."""

    pipeline = "WanPipeline"
    blocks = "blocks"

    @classmethod
    def open(cls, model: ModelConfig, device: torch.device) -> Source:
        """Files of a `WanPipeline`, or random weights of the architecture that `model.path` names."""
        if model.random_weights is not None:
            from world_r1.policies.random_weights import RandomWan

            return RandomWan(model.path, model.random_weights, device)
        return wan_files.WanFiles(model.path)

    def parts(self) -> tuple[str, ...]:
        """Both experts of a model with a boundary, else the one transformer."""
        return ("transformer", "transformer_2") if self.boundary is not None else ("transformer",)

    @property
    def boundary(self) -> float | None:
        """Sigma from which on the first expert predicts; None for a model with one transformer."""
        return self.source.index.get("boundary_ratio")

    def latent_shape(self, video: VideoConfig) -> tuple[int, int, int, int]:
        """(C, t, h, w) of the latents of one video; ValueError for a size that the model cannot make."""
        channels, time, space = (self.source.vae_config[k] for k in ("z_dim", "scale_factor_temporal", "scale_factor_spatial"))
        _, patch_h, patch_w = self.transformer.config.patch_size
        step_h, step_w = space * patch_h, space * patch_w
        if (video.frames - 1) % time or video.height % step_h or video.width % step_w:
            fit = (
                (video.frames - 1) // time * time + 1,
                max(round(video.height / step_h), 1) * step_h,
                max(round(video.width / step_w), 1) * step_w,
            )
            raise ValueError(
                f"this model makes 1 + {time}k frames with a height in steps of {step_h} and a width in steps of {step_w} pixels; "
                f"got {video.frames}x{video.height}x{video.width}; the nearest size is {fit[0]}x{fit[1]}x{fit[2]}"
            )
        return (channels, (video.frames - 1) // time + 1, video.height // space, video.width // space)

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> np.ndarray:
        """[B, C, t, h, w] normalised latents -> [B, T, H, W, 3] uint8; on a GPU as many at a time as `wan_vae.LARGE` allows."""
        one = wan_vae.decode_bytes(self.vae, latents[:1])
        together = 1 if self.device.type == "cpu" else max(1, wan_vae.LARGE // one)
        videos = [self._decode_some(z) for z in latents.split(together)]
        return videos[0] if len(videos) == 1 else np.concatenate(videos)

    def _decode_some(self, z: torch.Tensor) -> np.ndarray:
        z = wan_vae.denormalise(self.vae, z.float().to(self.device)).to(self.vae.dtype)
        how = self.config.speed.vae_decode
        if how == "full" or (how == "auto" and self._decodes_whole(z)):
            video = wan_vae.decode(self.vae, z, clamp=True)
        else:
            video = wan_vae.decode_chunked(self.vae, z, self.config.speed.vae_chunk)
        pixels = video.float().permute(0, 2, 3, 4, 1).add(1.0).mul(127.5).round_().clamp_(0, 255)
        # to pinned memory: a copy into fresh pages takes as long as the convolutions of a small model
        found = torch.empty(pixels.shape, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        return found.copy_(pixels.to(torch.uint8)).numpy()

    def _decodes_whole(self, z: torch.Tensor) -> bool:
        largest = wan_vae.decode_bytes(self.vae, z)
        if largest <= wan_vae.LARGE or self.device.type != "cuda":
            return largest <= wan_vae.LARGE
        return 1.1 * GpuDecoder.bytes(largest // 4, z.element_size()) < free_bytes(self.device)

    def _prepare(self, transformer: Any) -> Any:
        """To the device; the timestep embedding stays float32 under autocast, as diffusers keeps it in a bf16 model."""
        if self.dtype != torch.float32:
            embedder = transformer.condition_embedder.time_embedder.float()
            embedder.forward = torch.autocast(self.device.type, enabled=False)(embedder.forward)
        return transformer.to(self.device)

    def _expert(self, sigma: torch.Tensor) -> list[tuple[str, list[int] | None]]:
        if self.boundary is None:
            return [("transformer", None)]
        high = (sigma >= self.boundary).tolist()
        if all(high) or not any(high):
            return [("transformer" if all(high) else "transformer_2", None)]
        rows = {part: [i for i, one in enumerate(high) if one == wanted] for part, wanted in self._wanted}
        return [(part, rows[part]) for part, _ in self._wanted]

    _wanted = (("transformer", True), ("transformer_2", False))

    def _guidance(self, part: str) -> float:
        model = self.config.model
        second = part == "transformer_2" and model.guidance_scale_2 is not None
        return float(model.guidance_scale_2) if second and model.guidance_scale_2 else model.guidance_scale

    def _predict(self, transformer: Any, x: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        return transformer(x.to(self.dtype), self._timestep(sigma), condition.to(self.dtype), return_dict=False)[0].float()

    def _text_features(self, prompt: str) -> torch.Tensor:
        """[tokens, D] of one prompt, which the encoder sees padded and masked as `WanPipeline` does."""
        tokenizer, encoder = self.text
        tokens = tokenizer(
            [clean(prompt)],
            padding="max_length",
            max_length=self.max_text_length,
            truncation=True,
            add_special_tokens=True,
            return_attention_mask=True,
            return_tensors="pt",
        )
        mask = tokens.attention_mask.to(self.device)
        return encoder(tokens.input_ids.to(self.device), mask).last_hidden_state[0, : int(mask.sum())]


def clean(prompt: str) -> str:
    """Text as `WanPipeline` feeds it to the tokenizer: HTML entities resolved, white space collapsed, repaired by ftfy if installed."""
    try:
        import ftfy
    except ModuleNotFoundError:
        pass
    else:
        prompt = ftfy.fix_text(prompt)
    return re.sub(r"\s+", " ", html.unescape(html.unescape(prompt))).strip()


POLICY = WanPolicy
