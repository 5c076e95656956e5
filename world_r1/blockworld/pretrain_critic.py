"""Training of blockworld's judges: the quality critic (a reward) and the evaluator (evaluation only), 90 seconds of GPU each.

Both run in a fixed number of seconds: pool and round trips first (a share of the time), then steps on batches damaged on the fly with a
cosine schedule over the time that is left, then held-out figures. Progress is printed and written every five seconds, weights every
half minute, so that an interrupted run leaves a usable result.

    python -m world_r1.blockworld.pretrain_critic critic --out weights/critic --weights weights --device cuda --seconds 90
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from world_r1.blockworld import data, judge_report
from world_r1.blockworld.critic import QualityCritic
from world_r1.blockworld.damage import CRITIC_DAMAGES, EVALUATOR_DAMAGES, Damage
from world_r1.blockworld.evaluator import Evaluator
from world_r1.blockworld.judge_data import Batches, Damaged, Pool, Roundtrip, build_pool, damage_pool, surveyed, through
from world_r1.blockworld.judge_labels import labels
from world_r1.blockworld.judge_losses import CriticTask, EvaluatorTask, Loss
from world_r1.blockworld.judge_text import build_table, build_vocabulary

LOG_SECONDS, SAVE_SECONDS = 5.0, 30.0
#: First scene seeds of the pools that the trainers render themselves, and of the held-out clips.
SEEDS = {"critic": 5_000_000, "evaluator": 6_000_000}
HELD_OUT = data.HELD_OUT + 500_000


@dataclass(frozen=True)
class Budget:
    """Wall-clock plan of one training: shares of `seconds` for the pool and for each of the two round-trip pools; the rest trains."""

    seconds: float
    begin: float
    pool: float = 0.3
    roundtrip: float = 0.1
    report: float = 0.1

    def at(self, share: float) -> float:
        """Monotonic time at which a share of the budget is spent."""
        return self.begin + share * self.seconds

    @property
    def deadline(self) -> float:
        """When training must end so that the held-out figures still fit."""
        return self.at(1 - self.report)


@dataclass
class Material:
    """All that training needs, on the device."""

    pool: Pool
    decoded: torch.Tensor
    ready: Damaged | None
    held: Pool


def prepare(
    budget: Budget, device: torch.device, roundtrip: Roundtrip | None, seed: int, damages: tuple[Damage, ...],
    pool: Pool | None, held: Pool | None, scene_seed: int,
) -> Material:  # fmt: skip
    """Pool (unless given), held-out clips (unless given), round trips of clean and of damaged clips. Facts get areas."""
    cuda = device.type == "cuda"
    if held is None:
        held = build_pool(256 if cuda else 4, device, HELD_OUT)
    start = time.monotonic()
    if pool is None:
        seconds = max(0.0, budget.at(budget.pool) - start)
        pool = build_pool(10_000 if cuda else 64, device, scene_seed + 10_000 * seed, seconds, 32 if cuda else 2)
    pool, held = surveyed(pool, device), surveyed(held, device)
    decoded, ready = pool.videos[:0], None
    if roundtrip is not None:
        g = torch.Generator(device=device).manual_seed(seed + 1)
        share, size = budget.roundtrip * budget.seconds, 16 if cuda else 2
        decoded = pool.decoded if pool.decoded is not None else through(roundtrip, pool.videos, size, time.monotonic() + share)
        ready = damage_pool(pool.videos, damages, roundtrip, g, time.monotonic() + share, size)
    print(
        f"{len(pool.facts)} clips, {len(decoded)} decoded, {0 if ready is None else len(ready.videos)} damaged before decoding, "
        f"{len(held.facts)} held out, {time.monotonic() - budget.begin:.1f} s",
        flush=True,
    )
    return Material(pool, decoded, ready, held)


class Loop:
    """Steps until a deadline (at least `least`) with a cosine over time; logs, saves, and stops on a loss that is not finite."""

    def __init__(
        self, parameters: Iterable[nn.Parameter], out: Path, budget: Budget, rate: float, warmup: int = 60, least: int = 2
    ) -> None:
        self.parameters = list(parameters)
        self.out, self.budget, self.rate, self.warmup, self.least = out, budget, rate, warmup, least
        fused = self.parameters[0].is_cuda
        self.optimizer = torch.optim.AdamW(self.parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.02, fused=fused)

    def run(self, loss_of: Callable[[], Loss], save: Callable[[], None]) -> int:
        """Returns the number of steps."""
        start = logged = saved = time.monotonic()
        step, running = 0, []
        log = (self.out / "log.jsonl").open("w", encoding="utf-8")
        with log:
            while (now := time.monotonic()) < self.budget.deadline or step < self.least:
                progress = min(1.0, (now - start) / max(1e-3, self.budget.deadline - start))
                factor = min(1.0, (step + 1) / self.warmup) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))
                running.append(self._step(loss_of, self.rate * factor))
                step += 1
                if now - logged >= LOG_SECONDS:
                    logged = now
                    self._log(log, step, now - self.budget.begin, running)
                    running = []
                if now - saved >= SAVE_SECONDS:
                    saved = now
                    save()
            if running:
                self._log(log, step, time.monotonic() - self.budget.begin, running)
        save()
        return step

    def _step(self, loss_of: Callable[[], Loss], rate: float) -> dict[str, torch.Tensor]:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss, parts = loss_of()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0, foreach=True)
        self.optimizer.step()
        return {"loss": loss.detach(), **{k: v.detach() for k, v in parts.items()}}

    def _log(self, log: Any, step: int, seconds: float, running: list[dict[str, torch.Tensor]]) -> None:
        means = {key: round(float(torch.stack([r[key] for r in running]).mean()), 4) for key in running[0]}
        line = json.dumps({"step": step, "seconds": round(seconds, 1), **means})
        log.write(line + "\n")
        log.flush()
        print(line, flush=True)
        if not math.isfinite(means["loss"]):
            raise RuntimeError(
                f"the loss is {means['loss']} at step {step}; lower the learning rate (weights of the last save are in {self.out})"
            )


def _start(out_dir: str | Path, device: torch.device | str, seconds: float, seed: int) -> tuple[Path, torch.device, Budget]:
    if seconds <= 0:
        raise ValueError(f"seconds must be positive, got {seconds}")
    out, device = Path(out_dir), torch.device(device)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    return out, device, Budget(seconds, time.monotonic())


def train_critic(
    out_dir: str | Path, device: torch.device | str, seconds: float, roundtrip: Roundtrip | None = None, seed: int = 0,
    pool: Pool | None = None, held_out: Pool | None = None, batch: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train the quality critic within `seconds` and write weights, `config.json`, `metrics.json` and `log.jsonl` into `out_dir`.

    `roundtrip` encodes and decodes videos [B, 3, T, H, W] in -1..1 (chunks of at most 16); without it the critic sees sharp renders only.
    `pool` and `held_out` replace what is rendered otherwise; their facts must be whole batches of `scenes.sample` (see `add_areas`).
    Returns the metrics. Raises RuntimeError if the loss is not finite.
    """
    out, device, budget = _start(out_dir, device, seconds, seed)
    stuff = prepare(budget, device, roundtrip, seed, CRITIC_DAMAGES, pool, held_out, SEEDS["critic"])
    vocabulary = build_vocabulary(stuff.pool.facts, seed)
    table = build_table(stuff.pool.facts, vocabulary, device, seed)
    critic = QualityCritic(vocabulary).to(device=device, memory_format=torch.channels_last)
    batches = Batches(stuff.pool.videos, stuff.decoded, stuff.ready, CRITIC_DAMAGES, batch or _batch(device), seed + 2)
    truth = {name: value.to(device) for name, value in labels(stuff.pool.facts).items()}
    critic.notes = {"seed": seed, "seconds": seconds, "damages": [d.name for d in CRITIC_DAMAGES], "clips": len(table.ids)}
    task = CriticTask(critic, batches, table, truth)
    loop = Loop(critic.parameters(), out, budget, 2e-3)
    steps = loop.run(task, lambda: critic.save_pretrained(out))
    critic.eval()
    critic.notes["steps"] = steps
    critic.save_pretrained(out)
    report = judge_report.critic_report(critic, stuff.held, roundtrip, seed)
    return _finish(out, budget, critic, steps, report)


def train_evaluator(
    out_dir: str | Path, device: torch.device | str, seconds: float, roundtrip: Roundtrip | None = None, seed: int = 1,
    pool: Pool | None = None, held_out: Pool | None = None, batch: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train the evaluator; arguments, files and result as `train_critic`. Give it another seed than the critic."""
    out, device, budget = _start(out_dir, device, seconds, seed)
    stuff = prepare(budget, device, roundtrip, seed, EVALUATOR_DAMAGES, pool, held_out, SEEDS["evaluator"])
    evaluator = Evaluator().to(device=device, memory_format=torch.channels_last)
    batches = Batches(
        stuff.pool.videos,
        stuff.decoded,
        stuff.ready,
        EVALUATOR_DAMAGES,
        batch or _batch(device),
        seed + 2,
        clean=0.6,
        ready_share=0.15,
    )
    truth = {name: value.to(device) for name, value in labels(stuff.pool.facts).items()}
    evaluator.notes = {
        "seed": seed,
        "seconds": seconds,
        "damages": [d.name for d in EVALUATOR_DAMAGES],
        "clips": len(stuff.pool.facts),
    }
    loop = Loop(evaluator.parameters(), out, budget, 2e-3)
    steps = loop.run(EvaluatorTask(evaluator, batches, truth, stuff.pool.surfaces), lambda: evaluator.save_pretrained(out))
    evaluator.eval()
    evaluator.notes["steps"] = steps
    evaluator.save_pretrained(out)
    report = judge_report.evaluator_report(evaluator, stuff.held, roundtrip, seed)
    return _finish(out, budget, evaluator, steps, report)


def _batch(device: torch.device) -> int:
    return 128 if device.type == "cuda" else 8


def _finish(out: Path, budget: Budget, model: nn.Module, steps: int, report: dict[str, Any]) -> dict[str, Any]:
    parameters = sum(p.numel() for p in model.parameters())
    metrics = {"parameters": parameters, "steps": steps, "seconds": round(time.monotonic() - budget.begin, 1), **report}
    (out / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(metrics), flush=True)
    return metrics


def train_judges(
    out_dir: str | Path,
    device: torch.device | str,
    seconds: tuple[float, float],
    roundtrip: Roundtrip | None,
    pool: Pool,
    seed: int = 0,
) -> dict[str, Any]:
    """Critic and evaluator, one after the other, on one pool; `seconds` for (critic, evaluator). Writes `critic/` and `evaluator/`.

    Areas, round trips of clean clips and held-out clips are made once, inside the critic's time. The facts of the pool must be whole
    batches of `scenes.sample`. Returns {"critic": metrics, "evaluator": metrics}.
    """
    device, begin = torch.device(device), time.monotonic()
    shared = surveyed(pool, device)
    if roundtrip is not None and shared.decoded is None:
        deadline = time.monotonic() + 0.1 * sum(seconds)
        shared.decoded = through(roundtrip, shared.videos, 16 if device.type == "cuda" else 2, deadline)
    held = build_pool(256 if device.type == "cuda" else 4, device, HELD_OUT)
    spent = time.monotonic() - begin
    left = max(1.0, seconds[0] - spent)
    metrics = {"critic": train_critic(Path(out_dir) / "critic", device, left, roundtrip, seed, shared, held)}
    return metrics | {
        "evaluator": train_evaluator(Path(out_dir) / "evaluator", device, seconds[1], roundtrip, seed + 1, shared, held)
    }


def vae_roundtrip(vae: nn.Module) -> Roundtrip:
    """Encode to the mean and decode again with a Wan VAE, bf16 on a GPU."""
    from world_r1.policies import wan_vae

    @torch.no_grad()
    def roundtrip(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=x.is_cuda):
            mean = wan_vae.encode(vae, x.contiguous(memory_format=torch.channels_last_3d))[0]
            return wan_vae.decode(vae, mean).float().clamp(-1, 1)

    return roundtrip


def main(arguments: list[str] | None = None) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", choices=("critic", "evaluator"))
    parser.add_argument("--out", required=True, help="folder for weights and figures")
    parser.add_argument("--weights", help="folder with vae/ for the round trips; without it the judge sees sharp renders only")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args(arguments)
    roundtrip = None
    if options.weights:
        from world_r1.blockworld import model

        roundtrip = vae_roundtrip(model.load_vae(Path(options.weights), torch.device(options.device)))
    train = train_critic if options.what == "critic" else train_evaluator
    seed = {} if options.seed is None else {"seed": options.seed}
    train(options.out, options.device, options.seconds, roundtrip, **seed)


if __name__ == "__main__":
    main()
