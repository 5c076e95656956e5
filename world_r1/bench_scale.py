"""`world-r1 bench scale`: videos an hour by the number of learners, through the cluster that training uses, in one run.

Every count takes the same steps with the same groups (colocated: each learner samples its share, decodes it and learns from its share of
the micro-batches). Weights are random and every video gets the same score, so advantages are made up: +1 and -1 in turn. The first step of
a count warms up and is not counted.
"""

from __future__ import annotations

import copy
import json
import logging
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from world_r1 import bench_step, planning
from world_r1.bench_pieces import PROMPT, merged
from world_r1.config import Config, override, parse

log = logging.getLogger(__name__)

#: What a step costs here: the recommended recipe, without the compiler unless asked for, whose start would take longer than the steps that
#: are timed.
RECIPE: dict[str, Any] = {
    "model": {"lora": {"rank": 32, "alpha": 64.0}, "guidance_scale": 5.0},
    "flow": {"steps": 8, "shift": 3.0, "family": "wan_sde", "noise_level": 1.0, "window": {"size": 4, "position": "first"}},
    "noise": {"shared_in_group": True},
    "algorithm": {"kl": {"beta": 0.0}},
    "optimizer": {"micro_batch": 1},
    "speed": {
        "attention": {"kind": "pyramid", "dense_above": 0.95},
        "checkpoint": "auto",
        "vae_dtype": "bf16",
        "vae_channels_last": True,
        "fused_optimizer": True,
        "latents": "bf16",
        "text_encoder": "free",
    },
    "cluster": {"timeout": 600},
}


def run(
    model: str,
    counts: Sequence[int],
    *,
    quick: bool = False,
    frames: int = 33,
    group_size: int = 2,
    steps: int = 1,
    compiled: bool = False,
    fsdp: bool = False,
    sequence_parallel: int = 1,
    overrides: Sequence[str] = (),
    costs: Path | None = None,
    out: Path | None = None,
) -> dict[str, Any]:
    """Time `steps` steps of every count of learners; the result is written to `out` after each. A count that fails says so.

    There are as many groups as the most learners, so that each of them has one at least. `fsdp` spreads the base over the learners;
    with `sequence_parallel` so many of them (all, where there are fewer) share a video's tokens, and a group is enough for as many.
    `overrides`, each key=value, come last. With `costs`, a file of `bench step` from this machine, every row says what `world-r1 plan`
    predicts of it, which knows no shared tokens. ValueError for counts that do not divide the largest, for one learner with `fsdp`, and
    for settings that do not fit together.
    """
    if not counts or min(counts) < 1 or any(max(counts) % count for count in counts):
        raise ValueError(f"--learners: counts are positive and divide the largest, for example 1,2,4; got {list(counts)}")
    if sequence_parallel > 1 and costs is not None:
        raise ValueError("the plan does not know shared tokens: leave out --costs or --sequence-parallel")
    groups = max(1, max(counts) // sequence_parallel)
    tree = merged(bench_step._fitting(merged(RECIPE, bench_step._base(model, quick)), quick), {"speed": {"compile": compiled}})
    video = {"video": {"frames": 9 if quick else frames}}
    prompts = {"prompts": {"groups": groups, "group_size": group_size}, "record": {"tensorboard": False}}
    tree = merged(merged(tree, video), prompts)
    if fsdp:
        share = {"speed": {"fsdp": True, "checkpoint": 1.0}, "evaluation": {"prompts": 2 * max(counts)}}
        tree = merged(tree, share)
        parse(merged(tree, {"cluster": {"learners": min(counts)}}), source="bench scale")
    if not quick:  # where there are too few GPUs a run would fall back to the CPU
        tree = merged(tree, {"model": {"device": "cuda"}})
    tree = copy.deepcopy(tree)  # overrides are written into it
    for text in overrides:
        override(tree, text)
    found: dict[str, Any] = {"model": model, "quick": quick, "weights": "random", **bench_step._machine(), "rows": []}
    found["video"] = [tree["video"][key] for key in ("frames", "height", "width")]
    found["fsdp"] = fsdp
    found["recipe"] = _recipe(parse(tree, source="bench scale"))
    found["videos a step"] = tree["prompts"]["groups"] * tree["prompts"]["group_size"]
    shared = {count: min(count, sequence_parallel) for count in counts}
    configs = {
        count: parse(
            merged(tree, {"cluster": {"learners": count}, "speed": {"sequence_parallel": shared[count]}}), source="bench scale"
        )
        for count in counts
    }
    for count, config in configs.items():
        row: dict[str, Any] = {"learners": count, "sequence parallel": shared[count]}
        try:
            row |= _timed(config, steps)
            if costs is not None:
                row |= _planned(config, planning.costs(costs), row["step (s)"])
        except Exception as error:
            log.warning("%d learners failed", count, exc_info=error)
            row["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        found["rows"].append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return found


def _recipe(config: Config) -> str:
    """What a step is made of, in words."""
    guided = "without" if config.model.guidance_scale == 1.0 else "with"
    dense, _ = planning.dense_shares(config)
    attention = {0.0: "sparse", 1.0: "dense"}.get(dense, f"sparse but for {dense:.0%} of the steps")
    blocks = ", every block checkpointed" if config.speed.checkpoint == 1.0 else ""
    compiled = "compiled" if config.speed.compile else "not compiled"
    steps = f"{config.flow.steps} denoising steps {guided} guidance, {config.flow.window.size} of them trained"
    return f"{steps}, {attention}, {compiled}{blocks}"


def table(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows for people; `against` is videos an hour over those of the first count."""
    lines = []
    first: float | None = None
    for row in found["rows"]:
        if "error" in row:
            lines.append({"learners": row["learners"], "note": row["error"]})
            continue
        first = first or row["videos an hour"]
        numbers = {
            key: f"{row[key]:.3g}" for key in ("start (s)", "rollout (s)", "update (s)", "step (s)", "peak GiB", "videos an hour")
        }
        if "planned (s)" in row:
            numbers["planned (s)"] = f"{row['planned (s)']:.3g} ({row['error of the plan']:+.0%})"
        shared = row.get("sequence parallel", 1)
        note = f"{shared} share a video's tokens" if shared > 1 else ""
        lines.append({"learners": row["learners"], **numbers, "against": f"{row['videos an hour'] / first:.2f}x", "note": note})
    return lines


def _planned(config: Config, constants: Mapping[str, Any], measured: float) -> dict[str, float]:
    """Seconds a step by the planner, whose judges take no time here and which knows no jitter in one step; and its error."""
    counted = planning.work(config, constants, reward_seconds=0.0)
    learners = config.cluster.learners
    predicted = planning.arithmetic(counted, planning.Split(learners, learners, 1, colocated=True))
    return {"planned (s)": predicted, "error of the plan": predicted / measured - 1.0}


def _timed(config: Config, steps: int) -> dict[str, Any]:
    """Start a cluster, take one step more than `steps`, and give the median of those after the first."""
    from world_r1.actors.cluster import Cluster
    from world_r1.types import Prompt

    prompts = [Prompt(f"bench {group}", PROMPT) for group in range(config.prompts.groups)]
    begin = time.perf_counter()
    taken: list[dict[str, float]] = []
    with Cluster(config) as cluster:
        started = time.perf_counter()
        for step in range(steps + 1):
            marks = [time.perf_counter()]
            scored = cluster.rollout(step, prompts)
            marks.append(time.perf_counter())
            names = [name for group in scored.groups for name in group.rollouts]
            metrics = cluster.update(scored, {name: (-1.0) ** i for i, name in enumerate(names)})
            cluster.publish()
            marks.append(time.perf_counter())
            if metrics["updates_refused"] or "grad_norm" not in metrics:
                raise RuntimeError(f"nothing was learned in step {step}: {metrics}")
            peak = max(cluster.learners.all("asking for memory", "memory")) if cluster.learners is not None else 0.0
            taken.append({"rollout": marks[1] - marks[0], "update": marks[2] - marks[1], "total": marks[2] - marks[0]})
    seconds = {name: statistics.median(one[name] for one in taken[1:]) for name in taken[0]}
    return {
        "start (s)": started - begin,
        "first step (s)": taken[0]["total"],
        "rollout (s)": seconds["rollout"],
        "update (s)": seconds["update"],
        "step (s)": seconds["total"],
        "videos an hour": 3600.0 * len(prompts) * config.prompts.group_size / seconds["total"],
        "peak GiB": peak,
        "grad_norm": metrics["grad_norm"],
    }
