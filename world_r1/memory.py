"""What a policy's parts weigh in memory, estimated from the architecture, and which switch to turn when it is full.

Activations per token and block were measured on Wan's block with an adapter (`policies.speed.kept_bytes`): 66 d + 2 f bytes in bf16 and
78 d + 4 f in float32, d the width and f that of the feed-forward layer; a checkpointed block keeps its input alone. The estimate is for
choosing between switches, not for sizing a machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from world_r1.config import Config

#: (bytes of width, bytes of feed-forward) that a block keeps per token, by base dtype.
KEPT = {"bf16": (66.0, 2.0), "fp32": (78.0, 4.0)}
#: bf16 bytes of the text encoders: UMT5-XXL and T5-v1.1-XXL, 5.7 and 4.8 billion weights.
TEXT = {"wan": 11.4e9, "cogvideox": 9.5e9}


class OutOfMemory(RuntimeError):
    """The memory is full; the message says which switches to turn and what each saves."""


@dataclass(frozen=True)
class Advice:
    """One switch. Example: `Advice("speed.guidance_batch=false", 58.2, "the branches one after the other")`"""

    switch: str
    #: GiB that it saves, estimated.
    saves: float
    about: str


@contextmanager
def explained(config: Config, doing: str) -> Iterator[None]:
    """Turns running out of memory inside into `OutOfMemory` with advice for this configuration."""
    try:
        yield
    except Exception as error:
        if type(error).__name__ != "OutOfMemoryError" and not isinstance(error, MemoryError):
            raise
        raise OutOfMemory(f"memory is full while {doing}: {advice(config, str(error))}") from error


def advice(config: Config, message: str = "") -> str:
    """One line: what was asked for, and the switches that are not turned yet, those that save most first."""
    found = [item for item in switches(config) if item.saves >= 0.05]
    asked = " ".join(message.split()).partition(". ")[0][:120]
    listed = "; ".join(f"{item.switch} saves about {item.saves:.1f} GiB ({item.about})" for item in found[:4])
    if not listed:
        listed = "every switch is turned already; lower video.frames, video.height or video.width, or use a GPU with more memory"
    return f"{asked + '; ' if asked else ''}{listed}"


def switches(config: Config) -> list[Advice]:
    """What could still be turned, best first. For a model of unknown architecture only the decoder's switches are listed."""
    found: list[Advice] = []
    speed, batch = config.speed, config.optimizer.micro_batch
    sizes = activations(config)
    if sizes is not None:
        now = _used(config, *sizes)
        if batch > 1:
            found.append(
                Advice(f"optimizer.micro_batch={batch // 2}", now * (1 - (batch // 2) / batch), "fewer videos at once, same result")
            )
        if config.algorithm.together and passes(config) > 1:
            saves = now * (1 - 1 / passes(config))
            found.append(Advice("algorithm.together=false", saves, "one window step or noise level at a time, same result"))
        if config.model.guidance_scale > 1 and speed.guidance_batch:
            # With gradients both branches' activations live until the backward pass all the same, unless blocks are checkpointed.
            whole, _, blocks = sizes
            found.append(Advice("speed.guidance_batch=false", whole / blocks / 2 / 2**30, "guidance branches one after the other"))
        if speed.checkpoint is None and not config.model.gradient_checkpointing:
            found.append(
                Advice("speed.checkpoint=auto", now - sizes[1] / 2**30, "recompute as many blocks as needed; all, at most")
            )
        elif speed.checkpoint is not None and speed.checkpoint not in ("auto", 1.0):
            found.append(Advice("speed.checkpoint=1.0", now - sizes[1] / 2**30, "recompute every block"))
        found += _shared_tokens(config, now)
        found += _smaller_video(config, now)
        found += _weights(config)
    found += _decoder(config)
    return sorted(found, key=lambda item: -item.saves)


def activations(config: Config) -> tuple[float, float, int] | None:
    """Bytes of all blocks' activations in an update of one process, of the same with every block checkpointed, and the number of blocks."""
    from world_r1.policies.architectures import architecture

    try:
        found = architecture(config.model.path)
    except ValueError:
        return None
    model = found.transformer
    width, blocks = model["num_attention_heads"] * model["attention_head_dim"], int(model["num_layers"])
    forward = int(model.get("ffn_dim", 4 * width))
    rows = config.optimizer.micro_batch * (2 if config.model.guidance_scale > 1 else 1)
    rows *= passes(config) if config.algorithm.together else 1
    per_token = sum(a * b for a, b in zip(KEPT["fp32" if config.model.dtype == "fp32" else "bf16"], (width, forward), strict=True))
    tokens = rows * token_count(config) / config.speed.sequence_parallel
    item = 4 if config.model.dtype == "fp32" else 2
    return tokens * per_token * blocks, tokens * (item * width * blocks + per_token), blocks


def passes(config: Config) -> int:
    """How often an update looks at a video: window steps (Flow-GRPO) or noise levels (DiffusionNFT)."""
    return config.flow.window.size if config.algorithm.name == "flow_grpo" else config.algorithm.nft_sigmas


def token_count(config: Config) -> int:
    """Video tokens of one row."""
    from world_r1.policies.architectures import architecture

    found = architecture(config.model.path)
    model, video = found.transformer, config.video
    patch = model["patch_size"][1] if isinstance(model["patch_size"], tuple) else model["patch_size"]
    side = int(found.vae.get("scale_factor_spatial", 8)) * patch
    frames = math.ceil(((video.frames - 1) // 4 + 1) / (model.get("patch_size_t") or 1))
    return frames * (video.height // side) * (video.width // side)


def _used(config: Config, whole: float, checkpointed: float, blocks: int) -> float:
    """GiB of activations with the switches as they are; "auto" counts as everything checkpointed, which it falls back to."""
    share = config.speed.checkpoint
    if share is None:
        share = 1.0 if config.model.gradient_checkpointing else 0.0
    part = 1.0 if share == "auto" else float(share)
    return (part * checkpointed + (1 - part) * whole) / 2**30


def _shared_tokens(config: Config, now: float) -> list[Advice]:
    from world_r1.policies.architectures import architecture

    found, cluster, speed = architecture(config.model.path), config.cluster, config.speed
    count = math.gcd(cluster.learners, found.transformer["num_attention_heads"])
    if count == 1 or found.family != "wan" or speed.sequence_parallel > 1 or speed.fsdp or cluster.mode != "colocated":
        return []
    return [Advice(f"speed.sequence_parallel={count}", now * (1 - 1 / count), "learners share each video's tokens")]


def _smaller_video(config: Config, now: float) -> list[Advice]:
    video = config.video
    if video.frames < 17:
        return []
    half = (video.frames - 1) // 2 // 8 * 8 + 1
    return [Advice(f"video.frames={half}", now * (1 - half / video.frames), "a shorter video: another task")]


def _weights(config: Config) -> list[Advice]:
    from world_r1.policies.architectures import architecture

    found = architecture(config.model.path)
    weights = 1e6 * found.parameters * (2 if found.index.get("boundary_ratio") else 1)
    items: list[Advice] = []
    if config.model.dtype == "fp32":
        items.append(Advice("model.dtype=bf16", 2 * weights / 2**30, "base weights in half the bytes"))
    if config.model.lora is None:
        items.append(Advice("model.lora={}", 14 * weights / 2**30, "an adapter: no gradients, moments and averages of the base"))
    if config.speed.text_encoder == "keep" and config.model.random_weights is None:
        items.append(Advice("speed.text_encoder=free", TEXT[found.family] / 2**30, "the text encoder leaves the device after use"))
    return items


def _decoder(config: Config) -> list[Advice]:
    speed, video = config.speed, config.video
    item = 2 if speed.vae_dtype == "bf16" else 4
    largest = 3 * item * 96.0 * video.frames * video.height * video.width  # three of the widest activations at full resolution
    items: list[Advice] = []
    if speed.vae_decode == "full":
        items.append(Advice("speed.vae_decode=chunked", largest / 2**30, "decoding one latent frame at a time, same result"))
        if speed.vae_dtype == "fp32":
            items.append(Advice("speed.vae_dtype=bf16", largest / 2 / 2**30, "decoder in half the bytes"))
    return items
