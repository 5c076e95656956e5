"""The part of the configuration that says how fast a run is: sparse attention, compilation, memory switches. See `world_r1.config`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator


class Strict(BaseModel):
    """Base of every section: unknown keys are refused, values are frozen after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class AttentionConfig(Strict):
    """Self-attention of the transformer, the same in rollout, update and evaluation: the sparse model is the policy."""

    #: "pyramid" is the block-sparse attention of `world_r1_kernels`; Wan transformers only.
    kind: Literal["dense", "pyramid"] = "dense"
    #: Share of the query-key pairs of dense attention.
    density: float = Field(0.15, gt=0, le=1)
    #: Resolutions of selected blocks, of 1, 2, 4, 8.
    levels: tuple[int, ...] = (1,)
    #: Tokens in a block; fewer than 64 for short sequences alone, with `backend: masked`.
    block: Literal[8, 16, 32, 64, 128] = 128
    #: Order of the tokens: which of them share a block.
    order: str = "tiles"
    #: Layers that stay dense; negative ones count from the end.
    dense_layers: tuple[int, ...] = ()
    #: All layers are dense at sigma above this.
    dense_above: float | None = Field(None, ge=0, le=1)
    #: "auto": kernels on a GPU, elsewhere the reference; "masked": plain PyTorch for short sequences, with blocks of any size.
    backend: Literal["auto", "triton", "masked", "reference"] = "auto"
    #: Keep the plans of trained steps with the rollout and take log-probs under them; false draws them anew in the update.
    replay: bool = True


class SpeedConfig(Strict):
    """Switches that change what a run costs. All but `attention`, `vae_dtype` and `latents` leave its results as they are."""

    #: torch.compile of every transformer block by itself: one compilation serves them all, and is cached on disk.
    compile: bool = False
    #: With guidance, one forward of both branches; false runs them one after the other, in half the activation memory.
    guidance_batch: bool = True
    #: The text encoder between uses: on the device, on the CPU, or freed and read again for a prompt that was not met before.
    text_encoder: Literal["keep", "offload", "free"] = "keep"
    #: Share of the transformer's blocks that recompute their activations; "auto" takes the smallest share that fits the memory left.
    #: null: all or none, by `model.gradient_checkpointing`.
    checkpoint: Literal["auto"] | float | None = None
    #: Decoding of latents: precision, memory layout, and whole videos ("full") or one latent frame at a time ("chunked").
    vae_dtype: Literal["fp32", "bf16"] = "fp32"
    vae_channels_last: bool = False
    vae_decode: Literal["auto", "full", "chunked"] = "auto"
    #: Latent frames that the chunked decoder of Wan takes at a time, after the first.
    vae_chunk: int = Field(1, ge=1)
    #: AdamW's fused kernel.
    fused_optimizer: bool = False
    #: Precision of stored latents. "bf16" halves them; the sampler then continues from the rounded latents, so that ratios stay exact.
    latents: Literal["fp32", "bf16"] = "fp32"
    #: Spread the frozen base over the learners (FSDP2): each keeps a part of every block and gathers a block when it runs.
    fsdp: bool = False
    #: Colocated learners that share one video's tokens (Ulysses): each has a part of them, and of the heads within self-attention. It
    #: divides `cluster.learners` and the model's heads. Wan transformers only.
    sequence_parallel: int = Field(1, ge=1)
    attention: AttentionConfig = AttentionConfig()

    @field_validator("checkpoint")
    @classmethod
    def _is_a_share(cls, value: Any) -> Any:
        if isinstance(value, float) and not 0.0 <= value <= 1.0:
            raise ValueError(f"checkpoint is a share of the blocks in 0..1, or auto; got {value}")
        return value
