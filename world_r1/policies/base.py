"""What the policies share: adapter, state, reference, guidance, text cache, speed switches. A model family adds a file of its own.

The guided field v = v_u + g (v_c - v_u) is the policy, in sampling, in training and under `reference()` alike. Weights may be bf16;
trained parameters are float32 masters, and velocities come back as float32.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from world_r1.config import Config, ModelConfig, VideoConfig
from world_r1.policies import speed
from world_r1.policies.sequence import Band, SequenceParallel, Sharing
from world_r1.policies.source import Source, choose_device, choose_dtype
from world_r1.policies.sparse import Session, SparseAttention, apart
from world_r1.types import AttentionPlans

#: Prompts whose text features are kept, on the CPU; a training step meets each prompt several times.
TEXT_CACHE = 1024


class DiffusersPolicy(ABC):
    """One diffusers video model with a trainable adapter (or fully trainable); see `world_r1.policy.Policy` for the contract.

    A family defines `open`, `latent_shape`, `_predict` (velocity of one forward), `_text_features` and `_decode_some`; it may define
    `_prepare`. On a CPU every video goes through the transformer on its own: there batching gains nothing, and a video's numbers do not
    depend on which others share its batch. On a GPU the same batch gives the same numbers.
    """

    #: Name of the diffusers pipeline whose adapter files are read and written.
    pipeline: ClassVar[str]
    #: Attribute of the transformer that lists its blocks.
    blocks: ClassVar[str]

    def __init__(self, config: Config, trainable: bool = True) -> None:
        """Load the parts that `config.model` names. ValueError for an unreadable or unsupported model, in one line."""
        model = config.model
        self.config = config
        self.trainable = trainable
        self.device = choose_device(model.device)
        self.dtype = choose_dtype(model.dtype, self.device)
        if model.tf32 and self.device.type == "cuda":
            torch.set_float32_matmul_precision("high")
        self.source = self.open(model, self.device)
        self.index, self.settings = self.source.index, self.source.settings
        self.max_text_length = min(model.max_text_length, self.settings.get("max_text_length", model.max_text_length))
        #: By part name; a second expert is "transformer_2".
        self.experts: dict[str, Any] = {part: self._trained(model, part) for part in self.parts()}
        self.transformer: Any = self.experts["transformer"]
        self._adapted = any(True for _ in self._adapter_parameters())
        self._named: dict[str, nn.Parameter] | None = None
        self._in_reference = False
        #: Whether the base is spread over several processes, which must all run the transformer equally often.
        self.sharded = False
        self._sharing = Sharing()
        self._text_cache: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._session: Session | None = None
        self._sparse: dict[str, SparseAttention] = {}
        self._apply_speed()

    @classmethod
    @abstractmethod
    def open(cls, model: ModelConfig, device: torch.device) -> Source:
        """The parts of `model`; ValueError for a model of another family."""

    def parts(self) -> tuple[str, ...]:
        """Names of the trained transformers."""
        return ("transformer",)

    # The parts that only some processes need are read at first use: a learner decodes nothing, a judge samples nothing.

    @cached_property
    def vae(self) -> Any:
        """The video autoencoder."""
        switches = self.config.speed
        dtype = torch.bfloat16 if switches.vae_dtype == "bf16" else torch.float32
        vae: Any = nn.Module.to(self.source.vae(), self.device, dtype)
        return speed.channels_last(vae) if switches.vae_channels_last or self.device.type == "cpu" else vae

    @property
    def text(self) -> tuple[Any, Any]:
        """Tokenizer and text encoder, on the device; see `speed.text_encoder` for how long they stay."""
        if self._text is None:
            self._text = self.source.text(self.dtype)
        return self._text[0], self._text[1].to(self.device)

    _text: tuple[Any, Any] | None = None

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> torch.Tensor:
        """[B, L, D] text features in the weights' dtype, as the family's pipeline makes them."""
        encoded = [self._encode_one(prompt) for prompt in prompts]
        if self._text is not None and self.config.speed.text_encoder != "keep":
            self._put_text_away()
        return torch.stack(encoded)

    def velocity(self, x: torch.Tensor, sigma: torch.Tensor | float, condition: torch.Tensor) -> torch.Tensor:
        """[B, C, t, h, w] float32 guided velocity at x_t [B, C, t, h, w]; sigma is a scalar or [B]; condition is from `encode`."""
        sigma = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).expand(len(x))
        with nullcontext() if self._session is None else self._session.call(len(x)):
            if self.device.type != "cpu" or len(x) == 1 or self.sharded:
                return self._guided(x, sigma, condition, range(len(x)))
            return torch.cat([self._guided(x[i : i + 1], sigma[i : i + 1], condition[i : i + 1], [i]) for i in range(len(x))])

    def shard(self, mesh: Any) -> None:
        """Keep a part of the frozen base only, as one of the processes of a device mesh (FSDP2).

        ValueError for a model with two experts, of which the processes would not run the same one, or without an adapter.
        """
        from world_r1.policies import sharding

        if len(self.experts) > 1:
            raise ValueError("speed.fsdp needs a model with one transformer; this one has two experts, set speed.fsdp to false")
        sharding.shard_blocks(self.transformer, getattr(self.transformer, self.blocks), mesh)
        self.sharded = True

    def share_tokens(self, band: Band) -> None:
        """From now on run every forward together with the processes of `band` (`speed.sequence_parallel`); velocities are those of one.

        A parameter's gradients are then parts, which `Team.sum_gradients` adds up.
        """
        self._sharing.band = band

    @abstractmethod
    def decode(self, latents: torch.Tensor) -> np.ndarray:
        """[B, C, t, h, w] normalised latents -> [B, T, H, W, 3] uint8."""

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, `velocity` is the frozen base model's: adapter off, or the model read anew in full fine-tuning."""
        if self._adapted:
            with self._adapter_off():
                yield
            return
        previous, self._in_reference = self._in_reference, True
        try:
            yield
        finally:
            self._in_reference = previous

    @contextmanager
    def recording(self, wanted: Collection[int] | None = None) -> Iterator[list[list[AttentionPlans | None]]]:
        """Inside, every `velocity` appends its videos' sparse-attention plans to the list that this yields; None for a dense one, and
        for calls whose number, from 0, is not among the `wanted`."""
        with self._in_session(Session(self._sparse, None, None if wanted is None else frozenset(wanted))) as session:
            yield session.taken

    @contextmanager
    def replaying(self, plans: Sequence[AttentionPlans | None]) -> Iterator[None]:
        """Inside, every `velocity` attends by these plans, one a video."""
        with self._in_session(Session(self._sparse, tuple(plans))):
            yield

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """The trained parameters by stable name, float32; those of a second expert begin with its name."""
        if self._named is None:  # walking through a large model takes milliseconds, and some callers ask for it in every pass
            self._named = dict(self._adapter_parameters() if self._adapted else self._all_parameters())
        return dict(self._named)

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
        """Write the adapter (readable by the pipeline's `load_lora_weights`) or the full transformer, as safetensors.

        A second expert goes into the folder `transformer_2` inside.
        """
        for part, transformer in self.experts.items():
            folder = directory if part == "transformer" else str(Path(directory) / part)
            if self._adapted:
                from world_r1.policies import adapter

                adapter.save(transformer, str(folder), self.pipeline)
            else:
                transformer.save_pretrained(folder, safe_serialization=True)

    # What a family defines.

    @abstractmethod
    def latent_shape(self, video: VideoConfig) -> tuple[int, int, int, int]:
        """(C, t, h, w) of the latents of one video; ValueError for a size that the model cannot make."""

    def frames_ahead(self, video: VideoConfig) -> int:
        """Latent frames that are sampled before the video's first and dropped by `decode`."""
        return 0

    @abstractmethod
    def _predict(self, transformer: Any, x: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """[B, C, t, h, w] float32 unguided velocity of one forward pass."""

    @abstractmethod
    def _text_features(self, prompt: str) -> torch.Tensor:
        """[tokens, D] of one prompt, without padding."""

    def _prepare(self, transformer: Any) -> Any:
        """To the device, with what must stay float32 kept so."""
        return transformer.to(self.device)

    def _expert(self, sigma: torch.Tensor) -> list[tuple[str, list[int] | None]]:
        """Which transformer sees which rows of sigma [B]; None: all of them."""
        return [("transformer", None)]

    def _timestep(self, sigma: torch.Tensor) -> torch.Tensor:
        """[B] what the transformers are told of sigma [B]."""
        return 1000.0 * sigma

    def _guidance(self, part: str) -> float:
        return self.config.model.guidance_scale

    # Loading.

    def _trained(self, model: ModelConfig, part: str) -> Any:
        """Base, then adapter. The base is float32 where it is trained itself, and then computes in `self.dtype` by autocast."""
        start = None if model.init_lora is None else str(model.init_lora if part == "transformer" else Path(model.init_lora) / part)
        full = start is not None and (Path(start) / "config.json").is_file()
        if full and model.lora is not None:
            raise ValueError(f"model.init_lora={start!r} holds a whole transformer, not an adapter; set model.lora to null")
        masters = torch.float32 if full or not (model.lora or model.init_lora) else self.dtype
        transformer: Any = self._prepare(self.source.transformer(masters, start if full and start else part))
        transformer.requires_grad_(False)
        if start is not None and not full:
            from world_r1.policies import adapter

            adapter.load(transformer, start, self.pipeline)
        elif model.lora is not None:
            from world_r1.policies import adapter

            adapter.add(transformer, model.lora, self.config.seed, "" if part == "transformer" else f"{part}.")
        transformer = transformer.to(self.device)
        self._set_trainable(transformer)
        return transformer

    def _apply_speed(self) -> None:
        switches, model = self.config.speed, self.config.model
        share = (1.0 if model.gradient_checkpointing else 0.0) if switches.checkpoint is None else switches.checkpoint
        for part, transformer in self.experts.items():
            if share != 0.0:
                speed.checkpoint_blocks(transformer, getattr(transformer, self.blocks), share, self._sharing.largest)
            self._accelerate(part, transformer)

    def _accelerate(self, name: str, transformer: Any) -> None:
        switches = self.config.speed
        if switches.attention.kind == "pyramid":
            self._sparse[name] = SparseAttention(transformer, switches.attention)
        shared = switches.sequence_parallel > 1
        if shared:
            SequenceParallel(transformer, self._sharing, switches.sequence_parallel, self._sparse.get(name))
        if switches.compile:
            speed.compile_blocks(getattr(transformer, self.blocks), self._sparse.get(name), hooked=shared)

    @cached_property
    def _base(self) -> dict[str, Any]:
        """The base model for full fine-tuning. Read when first asked for, so that a run without a KL term never holds it."""
        bases = {part: self._prepare(self.source.transformer(torch.float32, part)).requires_grad_(False) for part in self.experts}
        for part, transformer in bases.items():
            self._accelerate(f"base {part}", transformer)
        return bases

    @cached_property
    def _negative(self) -> torch.Tensor:
        return self.encode([self.config.model.negative_prompt])

    def _set_trainable(self, transformer: nn.Module) -> None:
        adapted = [p for name, p in transformer.named_parameters() if ".lora_" in name]
        for parameter in adapted or transformer.parameters():
            parameter.requires_grad_(self.trainable)

    def _all_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for part, transformer in self.experts.items():
            prefix = "" if part == "transformer" else f"{part}."
            yield from ((prefix + name, p) for name, p in transformer.named_parameters())

    def _adapter_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in self._all_parameters() if ".lora_" in name)

    @contextmanager
    def _adapter_off(self) -> Iterator[None]:
        from world_r1.policies import adapter

        layers = [
            layer for expert in self.experts.values() for layer in adapter.layers(expert) if not layer.disable_adapters
        ]  # none when nested
        for layer in layers:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in layers:
                layer.enable_adapters(True)
            if layers:
                for expert in self.experts.values():
                    self._set_trainable(expert)  # enabling makes every adapter trainable, a sampler's too

    # Text.

    def _encode_one(self, prompt: str) -> torch.Tensor:
        features = self._text_cache.get(prompt)
        if features is None:
            features = self._text_cache[prompt] = self._text_features(prompt).cpu()
            if len(self._text_cache) > TEXT_CACHE:
                self._text_cache.popitem(last=False)
        self._text_cache.move_to_end(prompt)
        padding = self.max_text_length - len(features)
        return nn.functional.pad(features, (0, 0, 0, padding)).to(self.device)

    def _put_text_away(self) -> None:
        """After `encode`: the cached features stay, the encoder leaves the device."""
        assert self._text is not None
        if self.config.speed.text_encoder == "free":
            self._text = None
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        else:
            self._text[1].to("cpu")

    # Velocity.

    def _guided(self, x: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor, videos: Sequence[int]) -> torch.Tensor:
        chosen = apart(self._expert(sigma), self.config.speed.attention, self._timestep(sigma))
        if len(chosen) == 1:
            return self._guided_by(chosen[0][0], x, sigma, condition, videos)
        out = torch.empty_like(x, dtype=torch.float32)
        for part, rows in chosen:
            index = torch.tensor(rows, device=x.device)
            chosen_videos = [videos[row] for row in rows or ()]
            out = out.index_copy(0, index, self._guided_by(part, x[index], sigma[index], condition[index], chosen_videos))
        return out

    def _guided_by(
        self, part: str, x: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor, videos: Sequence[int]
    ) -> torch.Tensor:
        scale = self._guidance(part)
        if scale == 1.0:
            return self._forward(part, x, sigma, condition, [(video, 0) for video in videos])
        negative = self._negative.expand(len(x), -1, -1).to(condition)
        rows = [[(video, branch) for video in videos] for branch in (1, 0)]
        if self.config.speed.guidance_batch:
            both = self._forward(part, torch.cat([x, x]), sigma.repeat(2), torch.cat([negative, condition]), rows[0] + rows[1])
            unconditional, conditional = both.chunk(2)
        else:
            unconditional = self._forward(part, x, sigma, negative, rows[0])
            conditional = self._forward(part, x, sigma, condition, rows[1])
        return unconditional + scale * (conditional - unconditional)

    def _forward(
        self, part: str, x: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor, rows: list[tuple[int, int]]
    ) -> torch.Tensor:
        """One pass of one transformer. `rows` are (video, branch) of each row; branch 1 is the unconditional one."""
        transformer = self._base[part] if self._in_reference else self.experts[part]
        name = f"base {part}" if self._in_reference else part
        around = nullcontext() if self._session is None else self._session.around(name, rows)
        if self.config.speed.compile and torch.is_grad_enabled() and not x.requires_grad:
            x = x.detach().requires_grad_()  # so that the first block is the same program as the others
        with around, self._precision():
            return self._predict(transformer, x, sigma, condition)

    @contextmanager
    def _in_session(self, session: Session) -> Iterator[Session]:
        before, self._session = self._session, session
        try:
            yield session
        finally:
            self._session = before

    def _precision(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.dtype == torch.float32 else torch.autocast(self.device.type, self.dtype)
