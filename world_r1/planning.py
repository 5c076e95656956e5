"""`world-r1 plan`: what a configuration costs on N GPUs, and how to divide them into samplers, learners and reward workers.

Two parts. The analytic one turns a configuration into GPU seconds a video: numbers of forwards from the algorithm, seconds from measured
constants (`assets/costs.json`), other models and sizes scaled by floating-point operations. The simulator then plays the loop, task by
task: groups on samplers in the order of `actors.cluster`, videos on the first free reward worker, the update when the last verdict is in,
publication, the next rollout as early as the staleness allows; with jitter and failures. It predicts; it has been checked against its own
limits (tests), and against no cluster yet.
"""

from __future__ import annotations

import heapq
import json
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from world_r1.config import Config

#: Steps that are played, and of them those that fill the pipeline and are not counted.
STEPS, WARM = 60, 5
#: Splits that are simulated, the best by arithmetic.
CANDIDATES = 12


@dataclass(frozen=True)
class Work:
    """One step of a configuration in seconds on one GPU. Example: `Work(videos=32, groups=4, sample=12.1, decode=1.8, ...)`"""

    videos: int
    groups: int
    #: Per video: denoising; decoding; judging; the update.
    sample: float
    decode: float
    judge: float
    update: float
    #: Per step: optimizer, and from learner to samplers.
    optimizer: float
    publish: float
    #: Per step with several learners.
    gradients: float
    #: Rollouts may start so many updates ahead.
    staleness: int
    batch: int
    jitter: float = 0.0
    failures: float = 0.0
    restart: float = 0.0
    #: What was counted, for people.
    counts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Split:
    """GPUs by role; colocated ones sample and learn in turn. Example: `Split(samplers=64, learners=16, judges=16)`"""

    samplers: int
    learners: int
    judges: int
    colocated: bool = False

    @property
    def gpus(self) -> int:
        """All of them."""
        return self.judges + (self.samplers if self.colocated else self.samplers + self.learners)


@dataclass(frozen=True)
class Prediction:
    """What a split gives. Shares are of GPU time; staleness is in updates, mean over videos."""

    split: Split
    seconds: float
    videos_per_hour: float
    busy: float
    idle: Mapping[str, float]
    staleness: float

    def row(self) -> dict[str, Any]:
        """For a table or JSON."""
        s = self.split
        roles = f"{s.samplers} both" if s.colocated else f"{s.samplers} / {s.learners}"
        return {
            "samplers / learners": roles,
            "reward": s.judges,
            "s / step": round(self.seconds, 1),
            "videos / h": round(self.videos_per_hour, 1),
            "videos / GPU h": round(self.videos_per_hour / s.gpus, 2),
            "busy": f"{self.busy:.0%}",
            "idle": ", ".join(f"{role} {share:.0%}" for role, share in self.idle.items()),
            "staleness": round(self.staleness, 2),
        }


def costs(path: Path | None = None) -> dict[str, Any]:
    """The shipped constants, or those of a file, which may be one that `bench step` wrote; ValueError for a file without them."""
    file = Path(__file__).parent / "assets" / "costs.json" if path is None else path
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        found = found.get("costs", found)
        for key in ("forward", "forward_backward", "decode"):
            float(found["reference"][key]["seconds"]), float(found["switches"][key]["factor"])
        for section, key in (
            ("reward", "seconds"),
            ("optimizer", "seconds"),
            ("sync", "bytes_per_second"),
            ("gradients", "seconds"),
        ):
            float(found[section][key])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file} holds no constants for planning ({type(error).__name__}: {error}); begin with a copy of world_r1/assets/costs.json"
        ) from error
    return found


def work(config: Config, constants: Mapping[str, Any], reward_seconds: float | None = None) -> Work:
    """Count a step of `config`. ValueError for a model whose architecture is not known."""
    counted = passes(config)
    rollout, trained = dense_shares(config)
    seconds = {
        "forward": _seconds(config, constants, "forward", rollout),
        "forward_backward": _seconds(config, constants, "forward_backward", trained),
        "decode": _seconds(config, constants, "decode"),
    }
    without = _seconds(config, constants, "forward", trained)
    bytes_ = adapter_bytes(config)
    sync, failures = constants["sync"], constants.get("failures", {})
    return Work(
        videos=config.prompts.groups * config.prompts.group_size,
        groups=config.prompts.groups,
        sample=counted["rollout"] * seconds["forward"],
        decode=seconds["decode"],
        judge=float(constants["reward"]["seconds"]) if reward_seconds is None else reward_seconds,
        update=counted["trained"] * seconds["forward_backward"] + counted["without gradient"] * without,
        optimizer=config.algorithm.updates * float(constants["optimizer"]["seconds"]),
        publish=float(sync["seconds"]) + bytes_ / float(sync["bytes_per_second"]),
        gradients=config.algorithm.updates * float(constants["gradients"]["seconds"]),
        staleness=config.cluster.max_staleness,
        batch=config.rewards.batch,
        jitter=float(constants.get("jitter", {}).get("share", 0.0)),
        failures=float(failures.get("per_gpu_hour", 0.0)) / 3600.0,
        restart=float(failures.get("restart_seconds", 0.0)),
        counts={**counted, **{f"{kind} (s)": value for kind, value in seconds.items()}, "adapter (MB)": bytes_ / 1e6},
    )


def passes(config: Config) -> dict[str, float]:
    """Transformer rows a video: in the rollout, trained (forward and backward), and in the update without gradient."""
    branches = 1 if config.model.guidance_scale == 1.0 else 2
    settings = config.algorithm
    if settings.name == "diffusion_nft":
        trained = settings.nft_sigmas
        others = (1 if settings.nft_decay > 0 else 0) + (1 if settings.kl.beta > 0 else 0)
    else:
        trained = config.flow.window.size
        others = 1 if settings.kl.beta > 0 or settings.kl.target_nats is not None else 0
    per_update = branches * trained * settings.updates
    return {"rollout": branches * config.flow.steps, "trained": per_update, "without gradient": per_update * others}


def dense_shares(config: Config) -> tuple[float, float]:
    """Shares of the rollout's steps, and of those that an update looks at, whose attention is dense; expected ones where steps are drawn.

    1 and 1 without sparse attention, else the steps with sigma above `speed.attention.dense_above`.
    """
    import torch

    from world_r1 import flow

    attention, settings = config.speed.attention, config.flow
    if attention.kind == "dense":
        return 1.0, 1.0
    if attention.dense_above is None:
        return 0.0, 0.0
    dense = flow.schedule(settings.steps, settings.shift)[:-1] > attention.dense_above
    if config.algorithm.name == "diffusion_nft":
        levels = torch.linspace(config.algorithm.nft_sigma_min, 1.0, 1001)
        trained = flow.shifted(levels, settings.shift) > attention.dense_above
    elif settings.window.position == "first":
        trained = dense[: settings.window.size]
    else:
        trained = dense[: min(settings.window.within or settings.steps - 1, settings.steps - 1)]
    return float(dense.float().mean()), float(trained.float().mean())


def flops(path: str, frames: int, height: int, width: int) -> float:
    """Floating-point operations of one forward of one row: 2 a weight and token, 4 N^2 d a layer of attention."""
    from world_r1.policies.architectures import architecture

    found = architecture(path)
    model = found.transformer
    time, space = 4, int(found.vae.get("scale_factor_spatial", 8))
    patch = model["patch_size"][1] if isinstance(model["patch_size"], tuple) else model["patch_size"]
    latent_frames = math.ceil(((frames - 1) // time + 1) / (model.get("patch_size_t") or 1))
    tokens = latent_frames * (height // (space * patch)) * (width // (space * patch))
    tokens += 0 if found.family == "wan" else int(model["max_text_seq_length"])
    width_ = model["num_attention_heads"] * model["attention_head_dim"]
    return 2e6 * found.parameters * tokens + 4.0 * tokens**2 * width_ * model["num_layers"]


def adapter_bytes(config: Config) -> float:
    """float32 bytes of what a learner publishes: adapters on the attention's linear layers, or all weights."""
    from world_r1.policies.architectures import architecture

    found = architecture(config.model.path)
    experts = 2 if found.index.get("boundary_ratio") else 1
    if config.model.lora is None:
        return 4e6 * found.parameters * experts
    model = found.transformer
    width = model["num_attention_heads"] * model["attention_head_dim"]
    attentions = 2 if found.family == "wan" else 1
    layers = len(config.model.lora.targets) * attentions * model["num_layers"] * experts
    return 4.0 * layers * 2 * width * config.model.lora.rank


def _seconds(config: Config, constants: Mapping[str, Any], kind: str, dense: float = 0.0) -> float:
    """Seconds a row, or of decoding a video; `dense` is the share of rows whose attention is dense."""
    reference = constants["reference"]
    video = config.video
    size = (video.frames, video.height, video.width)
    known = tuple(int(reference[key]) for key in ("frames", "height", "width"))
    if kind == "decode":
        scale = math.prod(size) / math.prod(known)
    else:
        scale = flops(config.model.path, *size) / flops(reference["model"], *known)
    speed, switches = config.speed, constants["switches"][kind]
    if kind == "decode":
        factor = float(switches["factor"]) if speed.vae_dtype == "bf16" else 1.0
    else:
        # Not compiled, sparse attention is taken to save the share that it saves of compiled steps.
        compiled = float(switches.get("dense factor", 1.0))
        factor = dense * compiled + (1.0 - dense) * float(switches["factor"])
        factor /= 1.0 if speed.compile else compiled
    return float(reference[kind]["seconds"]) * scale * factor


# The simulator.


def arithmetic(work: Work, split: Split) -> float:
    """Seconds a step if nothing ever waited within a phase: the slowest role when rollouts run ahead, else the sum."""
    rounds = math.ceil(work.groups / split.samplers)
    sample = rounds * work.videos / work.groups * (work.sample + work.decode)
    judge = work.videos * work.judge / split.judges
    update = work.videos * work.update / split.learners + work.optimizer + (work.gradients if split.learners > 1 else 0.0)
    last = work.judge * min(work.batch, work.videos)
    if split.colocated:
        return max(sample + update, judge) if work.staleness else sample + max(last, judge - sample) + update
    if work.staleness:
        return max(sample, judge, update + work.publish)
    return sample + max(last, judge - sample) + update + work.publish


def simulate(work: Work, split: Split, steps: int = STEPS, seed: int = 0) -> Prediction:
    """Play `steps` steps of the loop on a split."""
    draw = random.Random(seed)
    busy = {"samplers": 0.0, "learners": 0.0, "judges": 0.0}
    samplers, judges = [0.0] * split.samplers, [0.0] * split.judges
    learner = 0.0
    published = [0.0] * (steps + 1)  # when the weights after so many updates are with the samplers
    finished: list[float] = []
    ages: list[float] = []
    size = work.videos // work.groups

    def lasting(seconds: float, gpus: int = 1) -> float:
        seconds *= max(0.2, draw.gauss(1.0, work.jitter))
        lost = 0.0
        while work.failures > 0 and (until := draw.expovariate(work.failures * gpus)) < seconds:
            lost += until + work.restart
        return seconds + lost

    marks: dict[str, float] = dict(busy)
    for step in range(steps):
        if step == WARM:
            marks = dict(busy)
        gate = published[max(0, step - work.staleness)]
        arrivals: list[tuple[float, int]] = []
        for group in range(work.groups):
            at = group % split.samplers
            begin = max(samplers[at], gate)
            version = sum(1 for when in published[1 : step + 1] if when <= begin)
            ages.append(step - version)
            duration = lasting(size * (work.sample + work.decode))
            samplers[at] = begin + duration
            busy["samplers"] += duration
            arrivals.append((samplers[at], size))
        judged = 0.0
        for when, clips in sorted(arrivals):
            for first in range(0, clips, work.batch):
                free = heapq.heappop(judges)
                duration = lasting(min(work.batch, clips - first) * work.judge)
                heapq.heappush(judges, max(free, when) + duration)
                judged = max(judged, max(free, when) + duration)
                busy["judges"] += duration
        begin = max(judged, learner)
        if split.colocated:  # the update takes the same GPUs, after what they are sampling
            begin = max(begin, *samplers)
        shared = work.gradients if split.learners > 1 else 0.0
        duration = lasting(work.videos * work.update / split.learners + work.optimizer + shared, split.learners)
        learner = begin + duration
        busy["learners"] += duration * split.learners
        published[step + 1] = learner + (0.0 if split.colocated else work.publish)
        if split.colocated:
            samplers = [max(free, learner) for free in samplers]
        finished.append(learner)
    warm = min(WARM, steps - 2)
    span = finished[-1] - finished[warm - 1] if warm else finished[-1]
    counted = steps - warm
    return _prediction(work, split, span / counted, {role: busy[role] - marks[role] for role in busy}, span, ages)


def _prediction(work: Work, split: Split, seconds: float, busy: Mapping[str, float], span: float, ages: list[float]) -> Prediction:
    counts = {"samplers": split.samplers, "learners": split.learners, "judges": split.judges}
    if split.colocated:
        both = busy["samplers"] + busy["learners"]
        idle = {"policy": 1 - both / (split.samplers * span), "reward": 1 - busy["judges"] / (split.judges * span)}
    else:
        names = {"samplers": "sampler", "learners": "learner", "judges": "reward"}
        idle = {names[role]: 1 - busy[role] / (counts[role] * span) for role in names}
    share = sum(busy.values()) / (split.gpus * span)
    shown = {role: max(0.0, value) for role, value in idle.items()}
    return Prediction(split, seconds, 3600 * work.videos / seconds, min(1.0, share), shown, sum(ages) / max(1, len(ages)))


def best(work: Work, gpus: int) -> list[Prediction]:
    """Splits of `gpus`, best throughput first, simulated. ValueError for fewer than two GPUs: rewards need one of their own."""
    if gpus < 2:
        raise ValueError(f"planning divides GPUs between policy and rewards and needs at least 2, got {gpus}")
    splits = [Split(gpus - judges, gpus - judges, judges, True) for judges in range(1, gpus)]
    splits += [Split(s, gpus - s - judges, judges) for judges in range(1, gpus - 1) for s in range(1, gpus - judges)]
    splits.sort(key=lambda split: (arithmetic(work, split), split.colocated))
    kept = splits[:CANDIDATES]
    predictions = [simulate(work, split) for split in kept]
    return sorted(predictions, key=lambda p: -p.videos_per_hour)


def plan(config: Config, gpus: int, constants: Mapping[str, Any], reward_seconds: float | None = None) -> dict[str, Any]:
    """Everything `world-r1 plan` says: counts, the best splits, and what stands in the way of better ones."""
    counted = work(config, constants, reward_seconds)
    filling = filled(counted, gpus)
    found = best(filling, gpus)[:4]
    as_it_is = best(counted, gpus)[:1]
    top = found[0].split
    total = counted.sample + counted.decode + counted.update
    return {
        "model": config.model.path,
        "gpus": gpus,
        "videos a step": counted.videos,
        "counts a video": dict(counted.counts),
        "GPU seconds a video": {
            "rollout": counted.sample,
            "decode": counted.decode,
            "update": counted.update,
            "policy": total,
            "reward": counted.judge,
        },
        "splits": [
            {"groups": groups, **prediction.row()}
            for groups, rows in ((counted.groups, as_it_is), (filling.groups, found))
            for prediction in rows
        ],
        "notes": notes(config, filling, top, constants),
    }


def filled(counted: Work, gpus: int) -> Work:
    """The work with as few more groups a step as give 95 % of the throughput that more groups could: a sampler takes whole groups."""
    size = counted.videos // counted.groups
    tried = []
    groups = counted.groups
    while groups <= max(2 * gpus, counted.groups):
        work = replace(counted, groups=groups, videos=groups * size)
        tried.append((work, best(work, gpus)[0].videos_per_hour))
        groups *= 2
    most = max(rate for _, rate in tried)
    return next(work for work, rate in tried if rate >= 0.95 * most)


def notes(config: Config, counted: Work, split: Split, constants: Mapping[str, Any]) -> list[str]:
    """What a reader must know to believe the numbers."""
    said = [f"{name}: {constants[name]['source']}" for name in ("reward", "sync", "failures") if name in constants]
    said += [f"{kind}: {constants['reference'][kind]['source']}" for kind in ("forward", "forward_backward", "decode")]
    if config.speed.compile or config.speed.attention.kind != "dense":
        said.append(f"compile and sparse attention: {constants['switches']['forward']['source']}")
    if config.model.path != constants["reference"]["model"]:
        said.append(f"{config.model.path} is scaled from {constants['reference']['model']} by floating-point operations")
    if counted.groups != config.prompts.groups:
        said.append(
            f"a sampler takes whole groups: prompts.groups={config.prompts.groups} cannot fill these GPUs, "
            f"prompts.groups={counted.groups} can"
        )
    if config.speed.attention.kind != "dense" and not config.speed.compile:
        said.append("sparse attention was measured on compiled blocks: without speed.compile a step of 1.3B took 1.6 times as long")
    if split.learners > 1:
        said.append(
            "several learners (cluster.learners) each hold all weights; two made 1.95 times the videos of one, more have not run"
        )
    return said
