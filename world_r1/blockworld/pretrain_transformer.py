"""Stage 2: text encoder and transformer by flow matching on cached latents, with the same camera-warped noise that sampling uses.

x_sigma = (1 - sigma) x_0 + sigma n, target v = n - x_0 (rectified flow, Liu et al. 2022; logit-normal sigma, Esser et al. 2024). n is the
warped noise of the scene's command at a random degradation, and white noise for a share of the samples, so that the model
serves every setting of `NoiseConfig`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from world_r1 import camera, noise
from world_r1.blockworld import captions, data, model, scenes
from world_r1.blockworld.muon import Muon
from world_r1.blockworld.resume import load_state, save_state
from world_r1.blockworld.stage import Options, Pace, read_metrics, write_metrics
from world_r1.policies import wan_vae

LEARNING_RATE = 1e-3
TEXT_DROP = 0.1
WHITE_SHARE = 0.15
DEGRADATION = (0.15, 0.6)
SHIFT = 3.0
#: Captions kept per scene.
WORDINGS = 2
LATENT_GRID = (5, 12, 20)
#: Noise map resolution (as `NoiseConfig.fine`) and what is added to the diagonal of its covariance.
FINE = 8
RIDGE = 1e-4
#: Names of parameters that AdamW trains although they are matrices: embeddings, output and modulation layers.
NOT_MUON = ("embed_tokens", "shared", "proj_out", "relative_attention", "time_proj", "patch_embedding", "scale_shift")


@dataclass
class Cache:
    """Encoded training set on the device."""

    latents: torch.Tensor  #: [N, 24, 5, 12, 20] bf16, normalised
    ids: torch.Tensor  #: [N, WORDINGS, 64] int64 token ids
    command: torch.Tensor  #: [N] index into scenes.commands()
    #: First videos of the set for the critic's pool: uint8 [M, 3, T, H, W] with texts and labels.
    videos: torch.Tensor
    texts: list[str]
    facts: list[dict[str, Any]]


def train(options: Options, vae: nn.Module, cache: Cache) -> tuple[nn.Module, nn.Module]:
    """Train on a cache, write `transformer/` and `text_encoder/` (moving average); returns (transformer, text encoder)."""
    torch.manual_seed(options.seed + 1)
    torch.set_float32_matmul_precision("high")
    device = options.device
    tokenizer = model.build_tokenizer()
    transformer, encoder = model.build_transformer().to(device), model.build_text_encoder(len(tokenizer)).to(device)
    models = {"transformer": transformer, "text_encoder": encoder}
    if options.warm:
        _load_weights(options.out, models)
    parameters = [p for m in models.values() for p in m.parameters()]
    optimizers = _optimizers(models, device)
    ema = [p.detach().clone() for p in parameters]
    state = options.out / "transformer_state.safetensors"
    start = load_state(state, models, optimizers, ema) if options.resume else 0
    factors = noise_factors(device)
    sampler = _Sampler(cache, factors, options.batch, options.seed + start)
    forward = torch.compile(transformer, dynamic=False) if device.type == "cuda" else transformer
    _loss(forward, encoder, sampler.draw()).backward()  # compile before the clock starts
    _clear(optimizers)
    pace, running, curve = Pace(options, start, warmup=200), [], []
    for step in pace:
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * pace.factor(decay=0.5)
        loss = _loss(forward, encoder, sampler.draw())
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        for optimizer in optimizers:
            optimizer.step()
        _clear(optimizers)
        torch._foreach_lerp_(ema, parameters, 1 - min(0.9995, (1 + step) / (20 + step)))
        running.append(loss.detach())
        if pace.due("log", 10):
            curve.append((step, round(torch.stack(running).mean().item(), 5)))
            print(f"transformer {step} loss {curve[-1][1]} at {pace.elapsed:.0f} s", flush=True)
            running = []
        if pace.due("save", options.save_seconds):
            save_state(state, step + 1, models, optimizers, ema)
    with torch.no_grad():
        for parameter, average in zip(parameters, ema, strict=True):
            parameter.copy_(average)
    for m in models.values():
        m.eval().requires_grad_(False)
    model.save(options.out, transformer=transformer, text_encoder=encoder)
    held = build_cache(options, vae, _held_out(options), count=4 * options.batch)
    metrics = {
        "held_out_loss": _held_out_loss(transformer, encoder, held, factors, options),
        "curve": curve,
        "steps": pace.step,
        "earlier_steps": _earlier_steps(options.out) if options.warm else 0,
        "batch": options.batch,
    }
    write_metrics(options.out, "transformer", metrics | {"latents": len(cache.latents), "seconds": round(pace.elapsed, 1)})
    return transformer, encoder


def _load_weights(out: Path, models: dict[str, nn.Module]) -> None:
    """Start from the weights of an earlier, shorter training."""
    from diffusers import WanTransformer3DModel
    from transformers import UMT5EncoderModel

    for name, cls in (("transformer", WanTransformer3DModel), ("text_encoder", UMT5EncoderModel)):
        models[name].load_state_dict(cls.from_pretrained(out / name, torch_dtype=torch.float32).state_dict())


def _earlier_steps(out: Path) -> int:
    """Steps behind the weights that a warm start began with."""
    known = read_metrics(out).get("transformer", {})
    return int(known.get("steps", 0)) + int(known.get("earlier_steps", 0))


def _clear(optimizers: Iterable[torch.optim.Optimizer]) -> None:
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)


def _optimizers(models: dict[str, nn.Module], device: torch.device) -> list[torch.optim.Optimizer]:
    """Muon (scaled to AdamW's update size) for hidden matrices, AdamW for everything else."""
    muon: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for m in models.values():
        for name, parameter in m.named_parameters():
            hidden = parameter.ndim == 2 and min(parameter.shape) >= 64 and not any(word in name for word in NOT_MUON)
            (muon if hidden else rest).append(parameter)
    return [
        Muon(muon, lr=LEARNING_RATE, weight_decay=0.02),
        torch.optim.AdamW(rest, lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=device.type == "cuda"),
    ]


@dataclass(frozen=True)
class _Draw:
    x0: torch.Tensor
    noise: torch.Tensor
    sigma: torch.Tensor
    ids: torch.Tensor


class _Sampler:
    """Shuffled batches with noise and sigma, all on the device, from one generator."""

    def __init__(self, cache: Cache, factors: torch.Tensor, batch: int, seed: int) -> None:
        self.cache, self.batch, self.device = cache, batch, cache.latents.device
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.factors = factors
        self.order = torch.empty(0, dtype=torch.long, device=self.device)
        self.null = torch.zeros(model.TEXT_LENGTH, dtype=torch.long, device=self.device)
        self.null[0] = 1  # "</s>": the tokens of the empty prompt

    def draw(self) -> _Draw:
        if len(self.order) < self.batch:
            self.order = torch.randperm(len(self.cache.latents), device=self.device, generator=self.generator)
        index, self.order = self.order[: self.batch], self.order[self.batch :]
        x0 = self.cache.latents[index].float()
        wording = torch.randint(WORDINGS, (len(index),), device=self.device, generator=self.generator)
        ids = torch.where((self._uniform(len(index)) < TEXT_DROP)[:, None], self.null, self.cache.ids[index, wording])
        sigma = torch.sigmoid(torch.randn(len(index), device=self.device, generator=self.generator))
        sigma = torch.where(self._uniform(len(index)) < 0.15, self._uniform(len(index)), sigma)
        sigma = SHIFT * sigma / (1 + (SHIFT - 1) * sigma)
        return _Draw(x0, self.noise(self.cache.command[index], x0), sigma, ids)

    def noise(self, command: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Warped noise at random degradation for each command; white for a share of the samples."""
        fresh = torch.randn(like.shape, device=self.device, generator=self.generator)
        unit = torch.randn(len(command), like[0, 0].numel(), like.shape[1], device=self.device, generator=self.generator)
        warped = (self.factors[command] @ unit).mT.view(like.shape)
        low, high = DEGRADATION
        a = low + (high - low) * self._uniform(len(command))
        a = torch.where(self._uniform(len(command)) < WHITE_SHARE, 1.0, a).view(-1, 1, 1, 1, 1)
        return ((1 - a) * warped + a * fresh) / ((1 - a) ** 2 + a**2).sqrt()

    def _uniform(self, n: int) -> torch.Tensor:
        return torch.rand(n, device=self.device, generator=self.generator)


def noise_factors(device: torch.device) -> torch.Tensor:
    """[commands, t h w, t h w] float32 L with L L^T the covariance of each command's warped noise, one channel.

    The warped noise is jointly Gaussian, so a factor of its covariance draws from the same law as `noise.warp` with one small matrix
    product. Block (f, g) of the covariance is W_f W_g^T with W_f[L, c] = m_Lc / (fine sqrt(k_c)): m_Lc pixels of latent pixel L lie in
    cell c, which k_c pixels of the frame share. Within a frame the noise is white. The ridge keeps a static camera's matrix regular.
    """
    size = (scenes.HEIGHT, scenes.WIDTH)
    t, height, width = LATENT_GRID
    factors = []
    for command in scenes.commands()[0]:
        path = camera.trajectory(command, scenes.FRAMES, size, scenes.PRESET)
        where = noise.noise_map(path, LATENT_GRID, FINE, device=device)
        block = torch.arange(t * height * width, device=device).repeat_interleave(FINE * FINE)
        cell, weight = where.ids.flatten().long(), where.weight.flatten() / FINE
        shared = cell >= 0
        spread = torch.zeros(t * height * width, where.cells, device=device)
        spread.index_put_((block[shared], cell[shared]), weight[shared], accumulate=True)
        covariance = (spread @ spread.T).view(t, height * width, t, height * width)
        for frame in range(t):
            covariance[frame, :, frame] = torch.eye(height * width, device=device)
        matrix = covariance.view(t * height * width, -1).double()
        factors.append(torch.linalg.cholesky(matrix + RIDGE * torch.eye(len(matrix), device=device)).float() / (1 + RIDGE) ** 0.5)
    return torch.stack(factors)


def _loss(transformer: Any, encoder: nn.Module, draw: _Draw) -> torch.Tensor:
    sigma = draw.sigma.view(-1, 1, 1, 1, 1)
    with torch.autocast(draw.x0.device.type, torch.bfloat16, enabled=draw.x0.is_cuda):
        text = model.encode_text(encoder, draw.ids)
        velocity = transformer((1 - sigma) * draw.x0 + sigma * draw.noise, draw.sigma * 1000, text, return_dict=False)[0]
    return (velocity.float() - (draw.noise - draw.x0)).square().mean()


@torch.no_grad()
def _held_out_loss(transformer: Any, encoder: nn.Module, cache: Cache, factors: torch.Tensor, options: Options) -> float:
    sampler = _Sampler(cache, factors, options.batch, seed=4)
    return round(torch.stack([_loss(transformer, encoder, sampler.draw()) for _ in range(8)]).mean().item(), 5)


def _held_out(options: Options) -> Options:
    return Options(
        out=options.out, device=options.device, steps=1, batch=min(options.batch, 32), workers=0, seed=data.HELD_OUT + 1_000
    )


@torch.no_grad()
def build_cache(options: Options, vae: nn.Module, how: Options, count: int, pool: int = 0) -> Cache:
    """Render, encode and caption `count` scenes (fewer if `how.seconds` pass first); the first `pool` videos are kept as uint8."""
    import random
    import time

    tokenizer = model.build_tokenizer()
    render = data.Renderer(options.device)
    latents: list[torch.Tensor] = []
    tokens, command, videos, texts, facts = [], [], [], [], []
    render(data.draw(how.batch, 50_000 + how.seed).scenes)  # compile before the clock starts, and before workers take the cores
    stream = data.stream(how.batch, 50_000 + how.seed, how.workers)
    begin = time.monotonic()
    rng = random.Random(how.seed)
    while (done := len(latents) * how.batch) < count and (how.seconds is None or time.monotonic() - begin < how.seconds):
        batch = next(stream)
        x = render(batch.scenes)
        if done < pool:
            videos.append(((x + 1) * 127.5).round().clamp(0, 255).byte())
            texts += batch.texts
            facts += batch.facts
        with torch.autocast(options.device.type, torch.bfloat16, enabled=options.device.type == "cuda"):
            mean = wan_vae.encode(vae, x.contiguous(memory_format=torch.channels_last_3d))[0]
        latents.append(wan_vae.normalise(vae, mean.float()).to(torch.bfloat16).contiguous())
        wordings = [batch.texts] + [[captions.caption(fact, rng) for fact in batch.facts] for _ in range(WORDINGS - 1)]
        encoded = [
            tokenizer(w, padding="max_length", max_length=model.TEXT_LENGTH, truncation=True, return_tensors="pt").input_ids
            for w in wordings
        ]
        tokens.append(torch.stack(encoded, 1).to(options.device))
        command.append(batch.scenes.command.to(options.device))
    if len(latents) * how.batch < min(count, 16 * options.batch):
        raise RuntimeError(
            f"only {len(latents) * how.batch} clips were encoded in {how.seconds} s, too few to train on; give the cache more seconds"
        )
    print(f"cache of {len(latents) * how.batch} clips in {time.monotonic() - begin:.0f} s", flush=True)
    kept = torch.cat(videos) if videos else torch.empty(0, dtype=torch.uint8)
    return Cache(torch.cat(latents), torch.cat(tokens), torch.cat(command), kept, texts, facts)
