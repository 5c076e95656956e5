"""Held-out figures of critic and evaluator: areas under the ROC curve per damage, accuracies per attribute, on renders and round trips."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch

from world_r1.blockworld import captions
from world_r1.blockworld.critic import QualityCritic
from world_r1.blockworld.damage import CRITIC_DAMAGES, EVALUATOR_DAMAGES, Damage, changed
from world_r1.blockworld.evaluator import Evaluator
from world_r1.blockworld.judge_data import Pool, Roundtrip, to_float, to_uint8
from world_r1.blockworld.judge_text import wrong_by_kind

#: Damages are measured at strengths from here to 1.
LOW = 0.3
CHUNK = 16


def auc(better: torch.Tensor, worse: torch.Tensor) -> float | None:
    """Probability that a draw of `better` scores above one of `worse` (ties count half); None without draws."""
    if not len(better) or not len(worse):
        return None
    difference = better.float()[:, None] - worse.float()[None]
    return round(float(((difference > 0).float() + 0.5 * (difference == 0).float()).mean()), 4)


def _damaged(
    videos: torch.Tensor, damage: Damage, roundtrip: Roundtrip | None, g: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Damaged (and then round-tripped) uint8 videos and which of them changed."""
    out, did = [], []
    for i in range(0, len(videos), CHUNK):
        clean = to_float(videos[i : i + CHUNK])
        strength = torch.rand(len(clean), generator=g, device=clean.device) * (1 - LOW) + LOW
        bad = damage.apply(clean, strength, g)
        did.append(changed(clean, bad))
        out.append(to_uint8(bad if roundtrip is None else roundtrip(bad)))
    return torch.cat(out), torch.cat(did)


def quality_by_damage(
    score: Callable[[torch.Tensor], dict[str, torch.Tensor]],
    videos: torch.Tensor,
    damages: Sequence[Damage],
    roundtrip: Roundtrip | None,
    seed: int,
) -> dict[str, dict[str, float | None]]:
    """For every named score, the area under the curve of clean against damaged per family; `score` maps uint8 videos to [B] each."""
    g = torch.Generator(device=videos.device).manual_seed(seed)
    clean_videos = videos if roundtrip is None else torch.cat([to_uint8(roundtrip(to_float(v))) for v in videos.split(CHUNK)])
    clean = score(clean_videos)
    out: dict[str, dict[str, float | None]] = {name: {} for name in clean}
    for damage in damages:
        bad, did = _damaged(videos, damage, roundtrip, g)
        for name, values in score(bad).items():
            if name != "frame_quality" or damage.in_frame:
                out[name][damage.name] = auc(clean[name], values[did.to(values.device)])
    for values_by_name in out.values():
        known = [value for value in values_by_name.values() if value is not None]
        values_by_name["mean"] = round(sum(known) / len(known), 4) if known else None
    return out


def _critic_quality(critic: QualityCritic) -> Callable[[torch.Tensor], dict[str, torch.Tensor]]:
    @torch.inference_mode()
    def score(videos: torch.Tensor) -> dict[str, torch.Tensor]:
        quality, frame = [], []
        for part in videos.split(CHUNK):
            coarse, y = critic.watch(to_float(part))
            quality.append(critic.judge_quality(y))
            frame.append(critic.judge_frame(coarse[:, (3 * coarse.shape[1]) // 4]))
        return {"quality": torch.cat(quality), "frame_quality": torch.cat(frame)}

    return score


@torch.inference_mode()
def _answers(critic: QualityCritic, videos: torch.Tensor, texts: Sequence[str]) -> torch.Tensor:
    ids = critic.vocabulary.encode(texts).to(videos.device)
    parts = []
    for i in range(0, len(videos), CHUNK):
        out = critic(to_float(videos[i : i + CHUNK]), ids[i : i + CHUNK])
        parts.append(torch.stack([out["fidelity"], out["camera"]], 1))
    return torch.cat(parts)


def text_by_kind(
    critic: QualityCritic, videos: torch.Tensor, facts: list[dict[str, Any]], seed: int
) -> dict[str, dict[str, float | None]]:
    """Per kind of wrong caption: area under the curve over all clips, and the share of clips whose own right caption scores higher."""
    rng = random.Random(seed)
    right = _answers(critic, videos, [captions.caption(fact, rng) for fact in facts])
    out: dict[str, dict[str, float | None]] = {"auc": {}, "paired": {}}
    for kind, texts in wrong_by_kind(facts, seed).items():
        told = [i for i, text in enumerate(texts) if text is not None]
        if not told:
            continue
        column = 1 if kind == "camera" else 0
        wrong = _answers(critic, videos[told], [texts[i] or "" for i in told])[:, column]
        out["auc"][kind] = auc(right[:, column], wrong)
        out["paired"][kind] = round(float((right[told, column] > wrong).float().mean()), 4)
    return out


def critic_report(critic: QualityCritic, held: Pool, roundtrip: Roundtrip | None, seed: int) -> dict[str, Any]:
    """Quality on its own and on the evaluator's (never seen) damages, captions per kind; the same after the VAE if there is one."""
    score = _critic_quality(critic)
    report: dict[str, Any] = {
        "held_out": len(held.facts),
        "renders": quality_by_damage(score, held.videos, CRITIC_DAMAGES, None, seed),
        "renders_unseen_damages": quality_by_damage(score, held.videos, EVALUATOR_DAMAGES, None, seed)["quality"],
        "text": text_by_kind(critic, held.videos, held.facts, seed),
    }
    if roundtrip is not None:
        few = held.videos[:64]
        report["decoded"] = quality_by_damage(score, few, CRITIC_DAMAGES, roundtrip, seed)
        decoded = torch.cat([to_uint8(roundtrip(to_float(v))) for v in held.videos.split(CHUNK)])
        report["text_decoded"] = text_by_kind(critic, decoded, held.facts, seed)
        report["decoded_against_renders"] = auc(score(held.videos)["quality"], score(decoded)["quality"])
    return report


def evaluator_report(evaluator: Evaluator, held: Pool, roundtrip: Roundtrip | None, seed: int) -> dict[str, Any]:
    """Accuracy per attribute, quality on its own and on the critic's (never seen) damages; the same after the VAE if there is one."""

    @torch.inference_mode()
    def score(videos: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"quality": torch.cat([evaluator(to_float(part))["quality"] for part in videos.split(CHUNK)])}

    report: dict[str, Any] = {
        "held_out": len(held.facts),
        "renders": accuracies(evaluator, held.videos, held.facts),
        "quality": quality_by_damage(score, held.videos, EVALUATOR_DAMAGES, None, seed)["quality"],
        "quality_unseen_damages": quality_by_damage(score, held.videos, CRITIC_DAMAGES, None, seed)["quality"],
    }
    if roundtrip is not None:
        decoded = torch.cat([to_uint8(roundtrip(to_float(v))) for v in held.videos.split(CHUNK)])
        report["decoded"] = accuracies(evaluator, decoded, held.facts)
        report["quality_decoded"] = quality_by_damage(score, held.videos[:64], EVALUATOR_DAMAGES, roundtrip, seed)["quality"]
    return report


def accuracies(evaluator: Evaluator, videos: torch.Tensor, facts: list[dict[str, Any]]) -> dict[str, float | None]:
    """Mean accuracy per attribute; `object_colour_clear` counts only scenes whose largest object leads the next by a quarter."""
    right = evaluator.attribute_accuracy(videos.permute(0, 2, 3, 4, 1), facts)
    out = {name: _percent(values) for name, values in right.items()}
    ordered = [sorted(fact["areas"], reverse=True) for fact in facts]
    clear = torch.tensor([len(area) == 1 or area[0] >= 1.25 * area[1] for area in ordered])
    return out | {"object_colour_clear": _percent(right["object_colour"][clear])}


def _percent(values: torch.Tensor) -> float | None:
    mean = float(values.nanmean()) if len(values) else float("nan")
    return None if mean != mean else round(mean, 4)
