"""Training of the realism judge (a reward): three minutes of a GPU, half of them for making what it learns from.

    python -m world_r1.blockworld.pretrain_realism --config configs/blockworld_gpu.yaml --out weights/realism --seconds 200

The base model is sampled as the configuration samples it in training. Progress is printed and written every five seconds, weights every
half minute.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from world_r1.blockworld.damage import gaussian_blur
from world_r1.blockworld.judge_report import auc
from world_r1.blockworld.pretrain_critic import Budget, Loop
from world_r1.blockworld.realism import Realism
from world_r1.blockworld.realism_data import Drawing, Pairs, collect, sharpness

if TYPE_CHECKING:
    from world_r1.config import Config

RATE, DECAY, SMOOTHING = 1e-3, 0.05, 0.05
#: Share of the prompts that are held out, and the most of them.
HELD, MOST_HELD = 1 / 8, 256


class Task:
    """A loss of one batch: cross-entropy of the clips' logits and of every patch's.

    A patch in which nothing is wrong looks the same in both kinds, and its own loss keeps it near 0; so the mean over patches says how
    much of a clip is wrong instead of only that something is.
    """

    def __init__(self, judge: Realism, drawing: Drawing) -> None:
        self.judge, self.drawing = judge, drawing

    def __call__(self) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        x, what = self.drawing.draw()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=x.is_cuda):
            patches = self.judge.patches(x)
        clips, target = patches.mean((1, 2, 3)), what * (1 - SMOOTHING) + SMOOTHING / 2
        whole = F.binary_cross_entropy_with_logits(clips, target)
        local = F.binary_cross_entropy_with_logits(patches, target[:, None, None, None].expand_as(patches))
        right = ((clips > 0) == (what > 0.5)).float().mean()
        return 0.5 * (whole + local), {"clips": whole, "patches": local, "right": right}


def train(
    out_dir: str | Path, device: torch.device | str, seconds: float, pairs: Pairs, seed: int = 0, batch: int | None = None,
    held: int | None = None, least: int = 2, begin: float | None = None,
) -> tuple[Realism, dict[str, Any]]:  # fmt: skip
    """Train within `seconds` (counted from `begin`, monotonic; at least `least` steps) and calibrate on the last `held` prompts.

    Writes weights, `config.json`, `metrics.json` and `log.jsonl` into `out_dir`; returns judge and metrics. Raises RuntimeError if the
    loss is not finite.
    """
    if seconds <= 0:
        raise ValueError(f"seconds must be positive, got {seconds}")
    out, device = Path(out_dir), torch.device(device)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    budget = Budget(seconds, time.monotonic() if begin is None else begin, report=0.04)
    learned, exam = pairs.split(held or max(1, min(MOST_HELD, int(HELD * len(pairs)))))
    judge = Realism(notes={"seed": seed, "seconds": seconds, "prompts": len(learned), "samples": learned.base.shape[1]}).to(device)
    drawing = Drawing(learned, batch or (128 if device.type == "cuda" else 8), seed + 1)
    loop = Loop(judge.parameters(), out, budget, RATE, least=least)
    for group in loop.optimizer.param_groups:
        group["weight_decay"] = DECAY
    steps = loop.run(Task(judge, drawing), lambda: judge.save_pretrained(out))
    judge.eval().requires_grad_(False)
    report = examine(judge, exam)
    judge.notes["steps"] = steps
    judge.save_pretrained(out)
    parameters, spent = sum(p.numel() for p in judge.parameters()), round(time.monotonic() - budget.begin, 1)
    metrics = {"parameters": parameters, "steps": steps, "seconds": spent, **report}
    (out / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(metrics), flush=True)
    return judge, metrics


def examine(judge: Realism, exam: Pairs) -> dict[str, Any]:
    """Calibrate `judge` on held-out pairs and say how well it tells them apart: as they are, blurred, and within a prompt."""
    n, k = exam.base.shape[:2]
    samples = exam.base.flatten(0, 1)
    real, base = judge.logits(exam.real), judge.logits(samples)
    judge.calibrate(real, base)
    told = {
        "plain": _told(judge, real, base),
        "blurred": _told(judge, judge.logits(blurred(exam.real)), judge.logits(blurred(samples))),
    }
    within: dict[str, Any] = {}
    if k > 1:
        logits, scores = base.view(n, k), judge.scaled(base).view(n, k)
        sharp = torch.cat([sharpness(some) for some in samples.split(64)]).cpu().log2().view(n, k)
        within = {
            "logit_spread": _rounded(logits.std(1).mean()),
            "score_spread": _rounded(scores.std(1).mean()),
            "spread_between_prompts": _rounded(logits.mean(1).std()),
            "correlation_with_sharpness": _correlation(_centred(logits), _centred(sharp)),
        }
    return {"held_out_prompts": n, **told, "within_prompt": within, "scale": judge.scale}


def _told(judge: Realism, real: torch.Tensor, base: torch.Tensor) -> dict[str, float | None]:
    right = torch.cat([real > judge.scale["centre"], base <= judge.scale["centre"]]).float().mean()
    figures = {"accuracy": right, "real": real.mean(), "base": base.mean(), "real_spread": real.std(), "base_spread": base.std()}
    figures |= {"real_score": judge.scaled(real).mean(), "base_score": judge.scaled(base).mean()}
    return {"auc": auc(real, base), **{name: _rounded(value) for name, value in figures.items()}}


def blurred(videos: torch.Tensor, sigma: float = 1.0) -> torch.Tensor:
    """uint8 [N, T, H, W, 3], blurred."""
    out = []
    for some in videos.split(32):
        x = gaussian_blur(some.permute(0, 4, 1, 2, 3).float(), torch.full((len(some),), sigma, device=some.device), radius=4)
        out.append(x.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 4, 1))
    return torch.cat(out)


def _centred(x: torch.Tensor) -> torch.Tensor:
    return (x - x.mean(1, keepdim=True)).flatten()


def _correlation(a: torch.Tensor, b: torch.Tensor) -> float | None:
    length = a.norm() * b.norm()
    return _rounded((a * b).sum() / length) if length > 0 else None


def _rounded(value: torch.Tensor) -> float | None:
    """None for what too few clips do not give."""
    return round(float(value), 4) if bool(value.isfinite()) else None


def pretrain(
    out: str | Path, config: Config, seconds: float, prompts: int = 4000, noises: int = 2, seed: int = 0
) -> tuple[Realism, dict[str, Any], Any]:
    """Sample the base model of `config`, render the same prompts, train on both; at most half of the time makes them.

    Returns judge, metrics and the policy, which is at its base weights still.
    """
    from world_r1.blockworld import prompts as blockworld
    from world_r1.policy import load_policy
    from world_r1.sample import for_sampling

    begin = time.monotonic()
    config = for_sampling(config)
    asked = blockworld.prompts("train", prompts)
    policy = load_policy(config, trainable=False)
    pairs = collect(policy, config, asked, noises, seed, begin + 0.5 * seconds, config.cluster.sample_batch or 48)
    print(f"{len(pairs)} prompts with {noises} samples each, {time.monotonic() - begin:.1f} s", flush=True)
    judge, metrics = train(out, policy.device, seconds, pairs, seed, begin=begin)
    return judge, metrics, policy


def main(arguments: list[str] | None = None) -> None:
    """Command line of this module."""
    from world_r1.config import load

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--config", default="configs/blockworld_gpu.yaml", help="how the base model is sampled")
    parser.add_argument("--out", required=True, help="folder for weights and figures")
    parser.add_argument("--seconds", type=float, default=200.0)
    parser.add_argument("--prompts", type=int, default=4000)
    parser.add_argument("--samples", type=int, default=2, help="samples of each prompt")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    pretrain(options.out, load(options.config), options.seconds, options.prompts, options.samples, options.seed)


if __name__ == "__main__":
    main()
