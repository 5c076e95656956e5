"""WanPolicy: Wan2.1 text-to-video models (and others in that diffusers layout) behind the policy contract.

The guided field v = v_u + g (v_c - v_u) is the policy, in sampling, in training and under `reference()` alike. Weights may be bf16;
trained parameters are float32 masters, timesteps are float32 and velocities come back as float32.
"""

from __future__ import annotations

import html
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from world_r1.config import Config, ModelConfig, VideoConfig
from world_r1.policies import wan_files, wan_vae

#: Prompts whose text features are kept, on the CPU; a training step meets each prompt several times.
TEXT_CACHE = 1024
#: Largest activation of the full-sequence decoder in bytes; above it the stock chunked decoder bounds the memory.
DECODE_LIMIT = 2**30


class WanPolicy:
    """One Wan model with a trainable adapter (or fully trainable); see `world_r1.policy.Policy` for the contract.

    On a CPU every video goes through the transformer on its own: there batching gains nothing, and a video's numbers do not depend
    on which others share its batch. On a GPU the same batch gives the same numbers.
    """

    def __init__(self, config: Config, trainable: bool = True) -> None:
        """Load the parts that `config.model` names. ValueError for an unreadable or unsupported model, in one line."""
        model = config.model
        self.config = config
        self.trainable = trainable
        self.device = choose_device(model.device)
        self.dtype = choose_dtype(model.dtype, self.device)
        if model.tf32 and self.device.type == "cuda":
            torch.set_float32_matmul_precision("high")
        self.path = wan_files.resolve(model.path)
        self.index = wan_files.index(self.path)
        self.settings = wan_files.settings(self.path)
        self.max_text_length = min(model.max_text_length, self.settings.get("max_text_length", model.max_text_length))
        self.transformer: Any = self._trained_transformer(model)
        self._active: Any = self.transformer
        self._adapted = any(True for _ in self._adapter_parameters())
        self._text_cache: OrderedDict[str, torch.Tensor] = OrderedDict()

    # The parts that only some processes need are read at first use: a learner decodes nothing, a judge samples nothing.

    @cached_property
    def vae(self) -> Any:
        """The video autoencoder, float32."""
        vae = wan_files.load_vae(self.path).to(self.device)
        return wan_vae.channels_last(vae) if self.device.type == "cpu" else vae

    @cached_property
    def text(self) -> tuple[Any, Any]:
        """Tokenizer and text encoder."""
        tokenizer, encoder = wan_files.load_text(self.path, self.dtype)
        return tokenizer, encoder.to(self.device)

    def latent_shape(self, video: VideoConfig) -> tuple[int, int, int, int]:
        """(C, t, h, w) of the latents of one video; ValueError for a size that the model cannot make."""
        channels, time, space = (self._vae_config[k] for k in ("z_dim", "scale_factor_temporal", "scale_factor_spatial"))
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
    def encode(self, prompts: Sequence[str]) -> torch.Tensor:
        """[B, L, D] text features in the weights' dtype, zero beyond each prompt's last token, as `WanPipeline` makes them."""
        return torch.stack([self._encode_one(prompt) for prompt in prompts])

    def velocity(self, x: torch.Tensor, sigma: torch.Tensor | float, condition: torch.Tensor) -> torch.Tensor:
        """[B, C, t, h, w] float32 guided velocity at x_t [B, C, t, h, w]; sigma is a scalar or [B]; condition is from `encode`."""
        sigma = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).expand(len(x))
        if self.device.type != "cpu" or len(x) == 1:
            return self._guided(x, sigma, condition)
        return torch.cat([self._guided(x[i : i + 1], sigma[i : i + 1], condition[i : i + 1]) for i in range(len(x))])

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> np.ndarray:
        """[B, C, t, h, w] normalised latents -> [B, T, H, W, 3] uint8; on a GPU as many at a time as `DECODE_LIMIT` allows."""
        one = wan_vae.decode_bytes(self.vae, latents[:1])
        together = 1 if self.device.type == "cpu" else max(1, DECODE_LIMIT // one)
        return np.concatenate([self._decode_some(z) for z in latents.split(together)])

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, `velocity` is the frozen base model's: adapter off, or `model.path` read anew in full fine-tuning."""
        if self._adapted:
            with self._adapter_off():
                yield
            return
        previous, self._active = self._active, self._base
        try:
            yield
        finally:
            self._active = previous

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """The trained parameters by stable name, float32."""
        return dict(self._adapter_parameters() if self._adapted else self.transformer.named_parameters())

    def state(self) -> dict[str, np.ndarray]:
        """Copies of the trained parameters as float32 numpy arrays."""
        return {name: p.detach().float().cpu().numpy().copy() for name, p in self.named_parameters().items()}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Inverse of `state`; ValueError names missing, unexpected and misshapen entries, and then nothing is changed."""
        parameters = self.named_parameters()
        missing, unexpected = sorted(set(parameters) - set(state)), sorted(set(state) - set(parameters))
        if missing or unexpected:
            raise ValueError(
                f"the weights do not fit this policy: {len(missing)} missing {missing[:2]}, "
                f"{len(unexpected)} unexpected {unexpected[:2]}; "
                "model.path and model.lora must be those that the weights were trained with"
            )
        for name, parameter in parameters.items():
            if tuple(state[name].shape) != tuple(parameter.shape):
                raise ValueError(
                    f"{name} has shape {tuple(state[name].shape)}, expected {tuple(parameter.shape)}; is model.lora.rank right?"
                )
        for name, parameter in parameters.items():
            parameter.copy_(torch.from_numpy(np.array(state[name], np.float32)))

    def save(self, directory: str) -> None:
        """Write the adapter (readable by `WanPipeline.load_lora_weights`) or the full transformer, as safetensors."""
        if self._adapted:
            from world_r1.policies import adapter

            adapter.save(self.transformer, str(directory))
        else:
            self.transformer.save_pretrained(directory, safe_serialization=True)

    @cached_property
    def _vae_config(self) -> dict[str, Any]:
        return wan_files.vae_config(self.path)

    @cached_property
    def _base(self) -> Any:
        """The base model for full fine-tuning. Read when first asked for, so that a run without a KL term never holds it."""
        return self._prepare(wan_files.load_transformer(self.path, torch.float32)).requires_grad_(False)

    @cached_property
    def _negative(self) -> torch.Tensor:
        return self.encode([self.config.model.negative_prompt])

    def _trained_transformer(self, model: ModelConfig) -> Any:
        """Base, then adapter. The base is float32 where it is trained itself, and then computes in `self.dtype` by autocast."""
        full = bool(model.init_lora) and (Path(str(model.init_lora)) / "config.json").is_file()
        if full and model.lora is not None:
            raise ValueError(
                f"model.init_lora={model.init_lora!r} holds a whole transformer, not an adapter; set model.lora to null"
            )
        masters = torch.float32 if full or not (model.lora or model.init_lora) else self.dtype
        source, subfolder = (str(model.init_lora), None) if full else (self.path, "transformer")
        transformer: Any = self._prepare(wan_files.load_transformer(source, masters, subfolder))
        transformer.requires_grad_(False)
        if model.init_lora and not full:
            from world_r1.policies import adapter

            adapter.load(transformer, model.init_lora)
        elif model.lora is not None:
            from world_r1.policies import adapter

            adapter.add(transformer, model.lora, self.config.seed)
        transformer = transformer.to(self.device)
        if model.gradient_checkpointing:
            transformer.enable_gradient_checkpointing()
        self._set_trainable(transformer)
        return transformer

    def _prepare(self, transformer: Any) -> Any:
        """To the device; the timestep embedding stays float32 under autocast, as diffusers keeps it in a bf16 model."""
        if self.dtype != torch.float32:
            embedder = transformer.condition_embedder.time_embedder.float()
            embedder.forward = torch.autocast(self.device.type, enabled=False)(embedder.forward)
        return transformer.to(self.device)

    def _set_trainable(self, transformer: nn.Module) -> None:
        adapted = [p for name, p in transformer.named_parameters() if ".lora_" in name]
        for parameter in adapted or transformer.parameters():
            parameter.requires_grad_(self.trainable)

    def _adapter_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in self.transformer.named_parameters() if ".lora_" in name)

    @contextmanager
    def _adapter_off(self) -> Iterator[None]:
        from world_r1.policies import adapter

        layers = [layer for layer in adapter.layers(self.transformer) if not layer.disable_adapters]  # none when nested
        for layer in layers:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in layers:
                layer.enable_adapters(True)
            if layers:
                self._set_trainable(self.transformer)  # enabling makes every adapter trainable, a sampler's too

    def _encode_one(self, prompt: str) -> torch.Tensor:
        features = self._text_cache.get(prompt)
        if features is None:
            features = self._text_cache[prompt] = self._text_features(prompt).cpu()
            if len(self._text_cache) > TEXT_CACHE:
                self._text_cache.popitem(last=False)
        self._text_cache.move_to_end(prompt)
        padding = self.max_text_length - len(features)
        return nn.functional.pad(features, (0, 0, 0, padding)).to(self.device)

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

    def _guided(self, x: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        scale = self.config.model.guidance_scale
        if scale == 1.0:
            return self._forward(x, sigma, condition)
        negative = self._negative.expand(len(x), -1, -1).to(condition)
        both = self._forward(torch.cat([x, x]), sigma.repeat(2), torch.cat([negative, condition]))
        unconditional, conditional = both.chunk(2)
        return unconditional + scale * (conditional - unconditional)

    def _forward(self, x: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        with self._precision():
            return self._active(x.to(self.dtype), 1000.0 * sigma, condition.to(self.dtype), return_dict=False)[0].float()

    def _precision(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.dtype == torch.float32 else torch.autocast(self.device.type, self.dtype)

    def _decode_some(self, z: torch.Tensor) -> np.ndarray:
        z = wan_vae.denormalise(self.vae, z.float().to(self.device))
        if wan_vae.decode_bytes(self.vae, z) <= DECODE_LIMIT:
            video = wan_vae.decode(self.vae, z, clamp=True)
        else:
            video = self.vae.decode(z, return_dict=False)[0]
        pixels = video.permute(0, 2, 3, 4, 1).add(1.0).mul(127.5).round_().clamp_(0, 255)
        return pixels.to(torch.uint8).contiguous().cpu().numpy()


def clean(prompt: str) -> str:
    """Text as `WanPipeline` feeds it to the tokenizer: HTML entities resolved, white space collapsed, repaired by ftfy if installed."""
    try:
        import ftfy
    except ModuleNotFoundError:
        pass
    else:
        prompt = ftfy.fix_text(prompt)
    return re.sub(r"\s+", " ", html.unescape(html.unescape(prompt))).strip()


def choose_device(name: str) -> torch.device:
    """ "auto" is the GPU where there is one. ValueError for a GPU that is asked for and absent."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("model.device=cuda, but torch sees no CUDA device; install a CUDA build of torch or set model.device=cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """ "auto" is bf16 on a GPU and fp32 on a CPU."""
    if name == "auto":
        name = "bf16" if device.type == "cuda" else "fp32"
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[name]


POLICY = WanPolicy
