"""`world-r1 bench step`: what a training video costs, by the public recipe and by ours, feature by feature, on one device in one run.

Per row the pieces are timed and multiplied by how often the recipe needs them: guided velocities of the rollout, trained ones (forward and
backward), reference ones, decoding, optimizer step, publishing. A whole step of the public recipe takes minutes a video, its pieces
seconds. The last row runs whole: sampler, decoder and trainer as in training, to hold the sum against. Weights are random: speed and memory
do not depend on them, pictures do. Rewards are not part of it (their weights are not here), so there is no time waited for them.
"""

from __future__ import annotations

import gc
import json
import logging
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from world_r1 import planning
from world_r1.config import Config, parse

log = logging.getLogger(__name__)

#: Timed repetitions after one that warms up, and seconds after which no further one begins.
REPEATS, ENOUGH = 3, 3.0
PROMPT = "Camera orbit left. A red box on grass under a blue sky."


@dataclass(frozen=True)
class Row:
    """One line of the table: what it adds to the line above. `tree` is merged into the configuration of the rows so far."""

    name: str
    adds: str
    tree: Mapping[str, Any] = field(default_factory=dict)
    #: Run the step as it is in training instead of composing it.
    whole: bool = False


#: The public release's configuration for Wan2.1, as far as it concerns cost; its base weights are float32 under autocast, ours bf16.
PUBLIC: dict[str, Any] = {
    "model": {"lora": {"rank": 32, "alpha": 64.0}, "guidance_scale": 5.0, "gradient_checkpointing": True},
    "flow": {"steps": 50, "shift": 3.0, "family": "wan_sde", "noise_level": 1.0, "window": {"size": 24}},
    "algorithm": {"kl": {"beta": 0.004}},
    "optimizer": {"micro_batch": 1},
    "speed": {"vae_decode": "chunked"},
}
ROWS = (
    Row(
        "public",
        "public recipe: 50 steps with guidance, 24 trained, reference passes, dense, all blocks checkpointed, stock decoder",
    ),
    Row("decoder", "decoder in bf16, channels last", {"speed": {"vae_dtype": "bf16", "vae_channels_last": True}}),
    Row(
        "full decoder",
        "whole videos through the decoder instead of latent frame by latent frame",
        {"speed": {"vae_decode": "full"}},
    ),
    Row("compile", "torch.compile by block", {"speed": {"compile": True}}),
    Row("checkpoint", "as few blocks checkpointed as the memory allows", {"speed": {"checkpoint": "auto"}}),
    Row("sparse", "pyramid sparse attention of density 0.15 in rollout and update", {"speed": {"attention": {"kind": "pyramid"}}}),
    Row(
        "window",
        "2 trained steps of the first half instead of 24",
        {"flow": {"window": {"size": 2, "position": "random", "within": 8}}},
    ),
    Row("few steps", "16 denoising steps instead of 50", {"flow": {"steps": 16}}),
    Row(
        "recommended",
        "fused optimizer, stored latents in bf16, two videos a forward",
        {"speed": {"fused_optimizer": True, "latents": "bf16"}, "optimizer": {"micro_batch": 2}},
    ),
    Row("whole", "the recommended recipe run whole: two videos sampled, decoded and learned from", whole=True),
)
#: Sections of the configuration that decide a piece's cost; pieces of equal settings are timed once.
PIECES = ("rollout", "trained", "reference", "decode")


def run(
    model: str, *, quick: bool = False, rows: Sequence[str] | None = None, seconds: float = 420, out: Path | None = None
) -> dict[str, Any]:
    """Time the rows (all of them, or those named); the result is also written to `out` after every row.

    A row that does not fit into memory, or whose turn comes after `seconds`, says so instead of a number. ValueError for an unknown row.
    """
    known = [row.name for row in ROWS]
    if rows is not None and (unknown := [name for name in rows if name not in known]):
        raise ValueError(f"--rows: no row {unknown[0]!r}; known: {', '.join(known)}")
    begin = time.perf_counter()
    found: dict[str, Any] = {"model": model, "quick": quick, "weights": "random", **_machine(), "rows": []}
    timed: dict[str, dict[str, Any]] = {}
    tree: dict[str, Any] = _merged(PUBLIC, _base(model, quick))
    found["video"] = [tree["video"][key] for key in ("frames", "height", "width")]
    for row in ROWS:
        tree = _merged(tree, row.tree)
        if rows is not None and row.name not in rows:
            continue
        entry: dict[str, Any] = {"row": row.name, "adds": row.adds}
        if time.perf_counter() - begin > seconds:
            entry["skipped"] = f"not begun: {seconds:g} s were over"
        else:
            entry |= _row(row, parse(_fitting(tree, quick), source=f"row {row.name}"), timed)
        found["rows"].append(entry)
        found["costs"] = costs_of(found)
        log.info("%s", json.dumps(entry))
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return found


def table(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows for people: seconds a video by phase, memory, and how much cheaper than the first row."""
    lines = []
    first: float | None = None
    for entry in found["rows"]:
        line: dict[str, Any] = {"row": entry["row"]}
        video = entry.get("seconds per video")
        if video is None:
            lines.append(line | dict.fromkeys(COLUMNS, "") | {"note": entry.get("skipped") or entry.get("error", "")})
            continue
        first = first or video["total"]
        numbers = {key: f"{video[key]:.3g}" for key in ("rollout", "decode", "update", "publish", "total")}
        memory = f"{entry['peak GiB']:.1f}" if entry.get("peak GiB") is not None else "-"
        busy = f"{entry['busy']:.0%}" if entry.get("busy") is not None else "-"
        shown = {"cheaper": f"{first / video['total']:.2f}x", "peak GiB": memory, "busy": busy}
        lines.append(line | numbers | {**shown, "videos / GPU h": f"{3600 / video['total']:.3g}", "note": entry.get("note", "")})
    return lines


COLUMNS = ("rollout", "decode", "update", "publish", "total", "cheaper", "peak GiB", "busy", "videos / GPU h")


def costs_of(found: Mapping[str, Any]) -> dict[str, Any] | None:
    """The rows as constants for `world-r1 plan --costs`; None before the public recipe and one of ours are timed."""
    done = {entry["row"]: entry for entry in found["rows"] if "pieces" in entry}
    if "public" not in done:
        return None
    public = done["public"]["pieces"]
    ours = next(
        (
            done[name]["pieces"]
            for name in ("recommended", "few steps", "window", "sparse", "checkpoint", "compile")
            if name in done
        ),
        None,
    )
    costs = planning.costs()
    source = f"measured by bench step on {found['device']}, random weights"
    frames, height, width = found["video"]
    costs["device"] = found["device"]
    costs["reference"] = {"model": found["model"], "frames": frames, "height": height, "width": width}
    for kind, piece in (("forward", "rollout"), ("forward_backward", "trained"), ("decode", "decode")):
        branches = 1 if kind == "decode" else 2
        costs["reference"][kind] = {"seconds": public[piece] / branches, "source": source}
        if ours is not None:
            costs["switches"][kind] = {"factor": ours[piece] / public[piece], "source": source}
    return costs


# One row.


def _row(row: Row, config: Config, timed: dict[str, dict[str, Any]]) -> dict[str, Any]:
    import torch

    from world_r1 import memory

    try:
        return _whole(config) if row.whole else _composed(config, timed)
    except torch.OutOfMemoryError as error:
        return {"error": memory.advice(config, str(error))}
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _composed(config: Config, timed: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Pieces timed here or in an earlier row with the same settings, times their counts."""
    key, decode_key = _keys(config)
    if key not in timed or decode_key not in timed:
        _time(config, timed, key, decode_key)
    pieces = {**timed[key], **timed[decode_key]}
    counts = planning.passes(config)
    branches = 1 if config.model.guidance_scale == 1.0 else 2
    videos = config.prompts.groups * config.prompts.group_size
    video = {
        "rollout": counts["rollout"] / branches * pieces["rollout"],
        "decode": pieces["decode"],
        "update": counts["trained"] / branches * pieces["trained"]
        + counts["without gradient"] / branches * pieces["reference"]
        + pieces["optimizer"] / videos,
        "publish": pieces["publish"] / videos,
    }
    video["total"] = sum(video.values())
    seconds = {name: pieces[name] for name in (*PIECES, "optimizer", "publish")}
    peaks = [pieces[name] for name in ("peak", "decode peak") if pieces[name] is not None]
    return {
        "counts": counts,
        "pieces": seconds,
        "first call (s)": pieces["first call"],
        "checkpointed blocks": pieces["checkpointed"],
        "seconds per video": video,
        "peak GiB": max(peaks) / 2**30 if peaks else None,
        "busy": pieces["busy"],
    }


def _time(config: Config, timed: dict[str, dict[str, Any]], key: str, decode_key: str) -> None:
    import torch

    from world_r1.policy import load_policy
    from world_r1.update import Trainer

    policy: Any = load_policy(config)
    shape = policy.latent_shape(config.video)
    batch = config.optimizer.micro_batch
    x = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(0)).to(policy.device)
    condition = policy.encode([PROMPT]).expand(batch, -1, -1)
    sigma = torch.full((batch,), 0.7, device=policy.device)  # below the sigmas where a policy may keep attention dense
    if key not in timed:
        trainer = Trainer(config, policy)

        def rollout() -> None:
            with torch.no_grad():
                policy.velocity(x, sigma, condition)

        def reference() -> None:
            with torch.no_grad(), policy.reference():
                policy.velocity(x, sigma, condition)

        def trained() -> None:
            policy.velocity(x, sigma, condition).square().mean().backward()

        found: dict[str, Any] = {}
        with _peak(policy.device) as peak:
            found["rollout"], first = _seconds(rollout, policy.device)
            found["reference"], second = _seconds(reference, policy.device)
            found["trained"], third = _seconds(trained, policy.device)
        found = {name: value / batch for name, value in found.items()}
        found["optimizer"], _ = _seconds(lambda: _optimize(trainer), policy.device)
        found["publish"], _ = _seconds(policy.state, policy.device)
        found["busy"] = _busy(trained, policy.device)
        found["first call"] = first + second + third
        found["peak"] = peak.get("bytes")
        found["checkpointed"] = _checkpointed(policy)
        timed[key] = found
        trainer.optimizer.zero_grad(set_to_none=True)
    if decode_key not in timed:
        with _peak(policy.device) as peak:
            seconds, _ = _seconds(lambda: policy.decode(x[:1]), policy.device)
        timed[decode_key] = {"decode": seconds, "decode peak": peak.get("bytes")}


def _whole(config: Config) -> dict[str, Any]:
    """One step as in training: a group of two sampled and decoded by `sample_group`, learned from by `Trainer`, after one that warms up."""
    from world_r1.policy import load_policy
    from world_r1.rollout import sample_group
    from world_r1.types import Prompt
    from world_r1.update import Trainer

    config = parse(_merged(config.model_dump(mode="json"), {"prompts": {"groups": 1, "group_size": 2}}))
    policy: Any = load_policy(config)
    trainer = Trainer(config, policy)
    times: list[dict[str, float]] = []
    with _peak(policy.device) as peak:
        for step in range(2):
            marks = [_now(policy.device)]
            sampled = sample_group(policy, config, Prompt("bench", PROMPT), step, 0, trainer.version)
            marks.append(_now(policy.device))
            metrics = trainer.update(sampled.rollouts, dict(zip((r.id for r in sampled.rollouts), (1.0, -1.0), strict=True)))
            marks.append(_now(policy.device))
            policy.state()
            marks.append(_now(policy.device))
            names = ("rollout", "update", "publish")
            times.append({name: (b - a) / 2 for name, a, b in zip(names, marks, marks[1:], strict=False)})
    video = {**times[1], "decode": 0.0}
    return {
        "seconds per video": {**video, "total": sum(video.values())},
        "note": "decode is inside rollout; the optimizer step is shared by two videos only",
        "ratio at the first update": metrics["ratio_mean"],
        "first step (s)": 2 * sum(times[0].values()),
        "peak GiB": peak["bytes"] / 2**30 if peak.get("bytes") else None,
        "stored MB a video": sum(
            a.nbytes for a in (sampled.rollouts[0].latents, sampled.rollouts[0].next_latents, sampled.rollouts[0].x0)
        )
        / 1e6,
        "plans MB a video": sum(plan.packed.nbytes for plan in sampled.rollouts[0].plans if plan is not None) / 1e6,
    }


def _optimize(trainer: Any) -> None:
    import torch

    for parameter in trainer.parameters.values():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    torch.nn.utils.clip_grad_norm_(trainer.parameters.values(), 1.0)
    trainer.optimizer.step()
    trainer.average.update()


def _checkpointed(policy: Any) -> int | None:
    chosen = getattr(policy.transformer, "_gradient_checkpointing_func", None)
    if not getattr(policy.transformer, "gradient_checkpointing", False):
        return 0
    return getattr(chosen, "checkpointed", len(getattr(policy.transformer, policy.blocks)))


def _seconds(call: Callable[[], Any], device: Any) -> tuple[float, float]:
    """Median of up to `REPEATS` calls, and the first call before them."""
    times: list[float] = []
    while len(times) < 2 or (len(times) <= REPEATS and sum(times[1:]) < ENOUGH):
        begin = _now(device)
        call()
        times.append(_now(device) - begin)
    return statistics.median(times[1:]), times[0]


def _now(device: Any) -> float:
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize()
    return time.perf_counter()


def _busy(call: Callable[[], Any], device: Any) -> float | None:
    """Share of the time in which the GPU computed something, by the profiler; None without a GPU."""
    if device.type != "cuda":
        return None
    from torch.profiler import ProfilerActivity, profile

    begin = _now(device)
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        call()
        wall = _now(device) - begin
    spans = sorted((e.time_range.start, e.time_range.end) for e in seen.events() if str(e.device_type).endswith("CUDA"))
    covered, end = 0.0, 0.0
    for start, stop in spans:
        covered += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return covered / 1e6 / wall if spans else None


@contextmanager
def _peak(device: Any) -> Iterator[dict[str, int]]:
    """Fills {"bytes": most GPU memory that was allocated inside}; nothing without a GPU."""
    import torch

    seen: dict[str, int] = {}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    yield seen
    if device.type == "cuda":
        seen["bytes"] = torch.cuda.max_memory_allocated()


def _keys(config: Config) -> tuple[str, str]:
    """What the transformer's pieces and what the decoder's depend on."""
    speed = config.speed.model_dump(mode="json")
    decoder = {name: speed.pop(name) for name in list(speed) if name.startswith("vae_")}
    speed.pop("latents")
    return json.dumps([speed, config.optimizer.micro_batch, config.model.gradient_checkpointing]), json.dumps(decoder)


def _base(model: str, quick: bool) -> dict[str, Any]:
    from world_r1.policies.architectures import architecture

    found = architecture(model)
    frames, height, width = (9, 64, 96) if quick else (81, 480, 832) if found.family == "wan" else found.video
    section: dict[str, Any] = {"path": model, "policy": found.family, "random_weights": "tiny" if quick else "full"}
    if quick:
        section |= {"device": "cpu", "dtype": "fp32"}
    video = {"frames": frames, "height": height, "width": width}
    return {"name": "bench", "model": section, "video": video, "prompts": {"groups": 4, "group_size": 8}}


def _fitting(tree: Mapping[str, Any], quick: bool) -> dict[str, Any]:
    """Small settings where the model is small: blocks of 16 tokens, and a compiler that starts no minute-long build."""
    tree = dict(tree)
    if quick and tree["speed"].get("attention"):
        tree = _merged(tree, {"speed": {"attention": {"block": 16, "density": 0.4, "backend": "reference"}}})
    if quick:
        tree = _merged(tree, {"speed": {"compile": False}})
    if tree["model"]["policy"] != "wan":  # its attention and its decoder have no such switches
        speed = {key: value for key, value in tree["speed"].items() if key != "attention"}
        tree = tree | {"speed": {**speed, "vae_decode": "auto"}}
    return tree


def _merged(tree: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    both = dict(tree)
    for key, value in more.items():
        old = both.get(key)
        both[key] = _merged(old, value) if isinstance(value, Mapping) and isinstance(old, Mapping) else value
    return both


def _machine() -> dict[str, Any]:
    import torch

    from world_r1.bench import machine

    return {"device": machine("cuda" if torch.cuda.is_available() else "cpu"), "torch": torch.__version__}
