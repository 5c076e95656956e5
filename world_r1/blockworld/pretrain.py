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
from typing import TYPE_CHECKING, Any

from world_r1.blockworld import manifest
from world_r1.blockworld.stage import Options

if TYPE_CHECKING:
    from torch import nn

    from world_r1.blockworld.pretrain_transformer import Cache

STAGES = ("vae", "transformer", "critic", "index")


def pretrain(stages: tuple[str, ...], options: Options, budget: dict[str, float] | None = None, cache: int = 100_000) -> Path:
    """Run `stages`; `budget` gives seconds by stage (and "cache") and overrides `options.steps`. Returns the weights folder."""
    if unknown := set(stages) - set(STAGES):
        raise ValueError(f"unknown stages {sorted(unknown)}; known: {', '.join(STAGES)}")
    from world_r1.blockworld import model, pretrain_vae

    options.out.mkdir(parents=True, exist_ok=True)
    if "index" in stages:
        model.save_index(options.out)
    if "vae" in stages:
        pretrain_vae.train(_with(options, budget, "vae", 16))
    if {"transformer", "critic"} & set(stages):
        _on_cache(stages, options, budget, cache)
    write_card(options.out)
    return options.out


def _on_cache(stages: tuple[str, ...], options: Options, budget: dict[str, float] | None, cache: int) -> None:
    """The stages that need the VAE's latents."""
    from world_r1.blockworld import model, pretrain_transformer

    vae = model.load_vae(options.out, options.device)
    how = dataclasses.replace(options, batch=32, steps=None, seconds=(budget or {}).get("cache"), seed=0)
    latents = pretrain_transformer.build_cache(options, vae, how, cache, pool=8_000 if "critic" in stages else 0)
    if "critic" in stages:
        _judges(options, budget, vae, latents)
    if "transformer" in stages:
        latents.videos = latents.videos[:0]
        pretrain_transformer.train(_with(options, budget, "transformer", 256), vae, latents)


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


def write_card(directory: Path) -> None:
    """README.md of a weights folder: what it is, how it was trained, what was measured."""
    figures = _read(directory / "metrics.json")
    vae, transformer = figures.get("vae", {}), figures.get("transformer", {})
    critic, evaluator = (_read(directory / name / "metrics.json") for name in ("critic", "evaluator"))
    lines = [
        "# blockworld: the embedded text-to-video model",
        "",
        "A Wan-architecture pipeline (diffusers `WanPipeline`) trained from scratch on procedural renders of rooms and outdoor scenes,",
        "17 frames of 96x160. Licence Apache-2.0. Made by `world-r1 blockworld pretrain`; no data but the project's own renders.",
        "",
        "| part | size | recipe | measured on held-out scenes |",
        "|---|---|---|---|",
        f"| vae | 3.6 M | {vae.get('steps')} steps of {vae.get('batch')} clips, {vae.get('seconds')} s | {vae.get('psnr_db')} dB PSNR, "
        f"10th percentile {vae.get('psnr_db_p10')} dB, {vae.get('clips')} clips |",
        f"| transformer, text_encoder | 12.9 M + 1.3 M | {transformer.get('earlier_steps', 0)} + {transformer.get('steps')} steps of "
        f"{transformer.get('batch')} clips on {transformer.get('latents')} encoded scenes, {transformer.get('seconds')} s "
        f"| flow-matching loss {transformer.get('held_out_loss')} |",
        f"| critic (reward) | {critic.get('parameters')} | {critic.get('steps')} steps, {critic.get('seconds')} s | mean AUC of quality "
        f"{_auc(critic, 'renders')} on renders, {_auc(critic, 'decoded')} decoded |",
        f"| evaluator (evaluation only) | {evaluator.get('parameters')} | {evaluator.get('steps')} steps, {evaluator.get('seconds')} s | "
        + ", ".join(
            f"{name} {evaluator.get('renders', {}).get(name)}" for name in ("floor", "wall", "object_colour", "camera_direction")
        )
        + " |",
        "",
        "Sampling settings are in `world_r1.json`. Limits: fixed field of view and size, one to three simple objects, the words of the",
        "captions only. Figures above come from `metrics.json`, `critic/metrics.json` and `evaluator/metrics.json`.",
    ]
    (directory / "README.md").write_text("\n".join(lines) + "\n")


def _auc(figures: dict[str, Any], where: str) -> float | None:
    return figures.get(where, {}).get("quality", {}).get("mean")


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def copy_weights(source: Path, target: Path) -> None:
    """Install a trained folder as the shipped weights (no training state, no sheets), with their card and checksums."""
    for part in ("vae", "transformer", "text_encoder", "tokenizer", "scheduler", "critic", "evaluator"):
        if (source / part).is_dir():
            shutil.rmtree(target / part, ignore_errors=True)
            shutil.copytree(source / part, target / part)
    for name in ("model_index.json", "world_r1.json"):
        if (source / name).exists():
            shutil.copy(source / name, target / name)
    merged = _read(target / "metrics.json") | _read(source / "metrics.json")
    (target / "metrics.json").write_text(json.dumps(merged, indent=2) + "\n")
    write_card(target)
    manifest.write(target)
