"""`world-r1 blockworld pretrain`: the stages that make the shipped weights, in order, each resumable.

vae          causal video VAE on endless renders
transformer  text encoder and transformer on cached latents
critic       quality critic (reward) and evaluator (evaluation only) on renders, damaged renders and VAE round trips
index        tokenizer, scheduler, model_index.json, model card
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from world_r1.blockworld.stage import Options

if TYPE_CHECKING:
    from torch import nn

    from world_r1.blockworld.pretrain_transformer import Cache

STAGES = ("vae", "transformer", "critic", "index")


def pretrain(stages: tuple[str, ...], options: Options, budget: dict[str, float] | None = None, cache: int = 100_000) -> Path:
    """Run `stages`; `budget` gives seconds by stage (and "cache") and overrides `options.steps`. Returns the weights folder."""
    if unknown := set(stages) - set(STAGES):
        raise ValueError(f"unknown stages {sorted(unknown)}; known: {', '.join(STAGES)}")
    from world_r1.blockworld import model, pretrain_transformer, pretrain_vae

    options.out.mkdir(parents=True, exist_ok=True)
    if "index" in stages:
        model.save_index(options.out)
    if "vae" in stages:
        pretrain_vae.train(_with(options, budget, "vae", 16))
    if not {"transformer", "critic"} & set(stages):
        return options.out
    vae = model.load_vae(options.out, options.device)
    how = dataclasses.replace(options, batch=32, steps=None, seconds=(budget or {}).get("cache"), seed=0)
    latents = pretrain_transformer.build_cache(options, vae, how, cache, pool=8_000 if "critic" in stages else 0)
    if "critic" in stages:
        _judges(options, budget, vae, latents)
    if "transformer" in stages:
        latents.videos = latents.videos[:0]
        pretrain_transformer.train(_with(options, budget, "transformer", 256), vae, latents)
    return options.out


def _judges(options: Options, budget: dict[str, float] | None, vae: nn.Module, latents: Cache) -> None:
    """Critic and evaluator on the first videos of the latent cache."""
    from world_r1.blockworld import pretrain_critic
    from world_r1.blockworld.judge_data import Pool

    seconds = ((budget or {}).get("critic", 90.0), (budget or {}).get("evaluator", 90.0))
    roundtrip = pretrain_critic.vae_roundtrip(vae)
    pretrain_critic.train_judges(options.out, options.device, seconds, roundtrip, Pool(latents.videos, latents.facts), options.seed)


def _with(options: Options, budget: dict[str, float] | None, stage: str, batch: int) -> Options:
    seconds = (budget or {}).get(stage)
    return dataclasses.replace(
        options,
        batch=batch if options.device.type == "cuda" else min(batch, options.batch),
        seconds=seconds,
        steps=None if seconds else options.steps,
    )


def copy_weights(source: Path, target: Path) -> None:
    """Install a trained folder as the shipped weights (no training state, no sheets)."""
    for part in ("vae", "transformer", "text_encoder", "tokenizer", "scheduler", "critic", "evaluator"):
        if (source / part).is_dir():
            shutil.rmtree(target / part, ignore_errors=True)
            shutil.copytree(source / part, target / part)
    for name in ("model_index.json", "world_r1.json"):
        if (source / name).exists():
            shutil.copy(source / name, target / name)
    if (source / "metrics.json").exists():
        known = json.loads((target / "metrics.json").read_text()) if (target / "metrics.json").exists() else {}
        (target / "metrics.json").write_text(json.dumps(known | json.loads((source / "metrics.json").read_text()), indent=2) + "\n")
