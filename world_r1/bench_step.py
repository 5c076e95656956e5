"""`world-r1 bench step`: what a training video costs, by the public recipe and by ours, feature by feature, on one device in one run.

Per row the pieces are timed and multiplied by how often the recipe needs them: guided velocities of the rollout, trained ones (forward and
backward), reference ones, decoding, optimizer step, publishing. A whole step of the public recipe takes minutes a video, its pieces
seconds. The row "whole" runs whole: sampler, decoder and trainer as in training, to hold the sum against. Weights are random: speed and
memory do not depend on them, pictures do. Rewards are not part of it (their weights are not here), so no time is waited for them.

Rows are taken in the order of their importance, not of the table, and every piece is written to the file when it is timed: a run that is
cut short loses one piece, and the next one with the same file goes on from there.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from world_r1 import bench_pieces, planning
from world_r1.bench_pieces import Bench, merged
from world_r1.config import Config, parse

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """One line of the table: what it adds to the line above. `tree` is merged into the configuration of the rows so far."""

    name: str
    adds: str
    tree: Mapping[str, Any] = field(default_factory=dict)
    #: Run the step as it is in training instead of composing it.
    whole: bool = False
    #: Place in the order of measuring, and seconds that it takes on an H100, cold compiler included.
    order: int = 9
    seconds: float = 10.0
    #: Another model than the table's: nothing of the row is merged into the rows below.
    model: str | None = None


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
        order=0,
        seconds=50,
    ),
    Row("decoder", "decoder in bf16, channels last", {"speed": {"vae_dtype": "bf16", "vae_channels_last": True}}, order=1),
    Row("long chunks", "four latent frames at a time through the decoder instead of one", {"speed": {"vae_chunk": 4}}, order=1),
    Row(
        "frames",
        "the decoder on frames in memory: norm, activation and padding in one kernel, convolutions over planes",
        {"speed": {"vae_decode": "full"}},
        order=1,
    ),
    Row("compile", "torch.compile by block", {"speed": {"compile": True}}, order=6, seconds=70),
    Row("checkpoint", "as few blocks checkpointed as the memory allows", {"speed": {"checkpoint": "auto"}}, order=7, seconds=50),
    Row(
        "sparse",
        "pyramid sparse attention of density 0.15 in rollout and update",
        {"speed": {"attention": {"kind": "pyramid"}}},
        order=2,
        seconds=90,
    ),
    Row(
        "window",
        "the first 4 steps trained instead of 24, one x_T a group",
        {"flow": {"window": {"size": 4, "position": "first"}}, "noise": {"shared_in_group": True}},
        order=2,
        seconds=0,
    ),
    Row("few steps", "8 denoising steps instead of 50", {"flow": {"steps": 8}}, order=2, seconds=0),
    Row(
        "dense start",
        "dense attention at sigma above .95: the first two steps, of which both are trained",
        {"speed": {"attention": {"dense_above": 0.95}}},
        order=3,
        seconds=70,
    ),
    Row(
        "recommended",
        "fused optimizer, stored latents in bf16",
        {"speed": {"fused_optimizer": True, "latents": "bf16"}},
        order=3,
        seconds=0,
    ),
    Row("whole", "the recommended recipe run whole: two videos sampled, decoded and learned from", whole=True, order=4, seconds=60),
    Row(
        "14B",
        "Wan2.1-14B: one step of two videos, without guidance, 2 denoising steps of which 1 is trained, sparse, every block checkpointed",
        {
            "model": {"path": "Wan-AI/Wan2.1-T2V-14B-Diffusers", "guidance_scale": 1.0},
            "flow": {"steps": 2, "window": {"size": 1, "position": "first", "within": None}},
            "algorithm": {"kl": {"beta": 0.0}},
            "speed": {"compile": False, "checkpoint": 1.0, "attention": {"dense_above": None}},
        },
        whole=True,
        order=5,
        seconds=60,
        model="Wan-AI/Wan2.1-T2V-14B-Diffusers",
    ),
)
COLUMNS = ("rollout", "decode", "update", "publish", "total", "cheaper", "peak GiB", "busy", "videos / GPU h")


def run(
    model: str, *, quick: bool = False, rows: Sequence[str] | None = None, seconds: float = 420, out: Path | None = None
) -> dict[str, Any]:
    """Time the rows (all of them, or those named); the result is written to `out` after every piece.

    What `out` holds of the same model, machine and commit is not measured again. A row that fails, or for which too few of the
    `seconds` are left, says so instead of a number. ValueError for an unknown row.
    """
    known = [row.name for row in ROWS]
    if rows is not None and (unknown := [name for name in rows if name not in known]):
        raise ValueError(f"--rows: no row {unknown[0]!r}; known: {', '.join(known)}")
    end = time.perf_counter() + seconds
    found: dict[str, Any] = {"model": model, "quick": quick, "weights": "random", **_machine()}
    base = _base(model, quick)
    found["video"] = [base["video"][key] for key in ("frames", "height", "width")]
    earlier = _earlier(out, found)
    entries: dict[str, dict[str, Any]] = {entry["row"]: entry for entry in earlier.get("rows", ()) if "seconds per video" in entry}
    bench = Bench()
    bench.timed = earlier.get("timed", {})

    def save() -> None:
        found["rows"] = [entries[name] for name in known if name in entries]
        found["costs"] = costs_of(found)
        found["timed"] = bench.timed
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")

    bench.save = save
    wanted = [(row, tree) for row, tree in _trees(base) if (rows is None or row.name in rows) and row.name not in entries]
    for row, tree in sorted(wanted, key=lambda pair: pair[0].order):
        left = end - time.perf_counter()
        needed = 0.0 if quick else row.seconds
        begin = time.perf_counter()
        if left <= 0 or left < needed:
            entry = {"skipped": f"not begun: {max(left, 0):.0f} s of {seconds:g} s were left, it takes about {row.seconds:g} s"}
        else:
            entry = _row(row, _fitting(tree, quick), bench, end)
        entries[row.name] = {"row": row.name, "adds": row.adds, **entry, "took (s)": time.perf_counter() - begin}
        log.info("%s", json.dumps(entries[row.name]))
        print(f"{row.name}: {_said(entries[row.name])}", file=sys.stderr, flush=True)
        save()
    bench.put_away()
    save()
    return found


def table(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows for people: seconds a video by phase, memory, and how much cheaper than the first row."""
    lines = []
    first: float | None = None
    other = {row.name for row in ROWS if row.model}
    for entry in found["rows"]:
        line: dict[str, Any] = {"row": entry["row"]}
        video = entry.get("seconds per video")
        note = "; ".join(filter(None, (entry.get("note"), entry.get("skipped"), entry.get("error"))))
        if video is None:
            lines.append(line | dict.fromkeys(COLUMNS, "") | {"note": note})
            continue
        if entry["row"] == "public":
            first = video["total"]
        compared = first is not None and entry["row"] not in other
        numbers = {key: f"{video[key]:.3g}" for key in ("rollout", "decode", "update", "publish", "total")}
        memory = f"{entry['peak GiB']:.1f}" if entry.get("peak GiB") is not None else "-"
        busy = f"{entry['busy']:.0%}" if entry.get("busy") is not None else "-"
        cheaper = f"{first / video['total']:.2f}x" if compared and first is not None else "-"
        shown = {"cheaper": cheaper, "peak GiB": memory, "busy": busy}
        lines.append(line | numbers | {**shown, "videos / GPU h": f"{3600 / video['total']:.3g}", "note": note})
    return lines


def bars(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is compared with what, one line each: default, ours, ratio; empty cells where a side was not measured."""
    done = {entry["row"]: entry for entry in found["rows"]}
    pieces = {name: entry.get("pieces", {}) for name, entry in done.items()}
    public, ours = pieces.get("public", {}), pieces.get("sparse", {})
    both = 2.0  # rows of a guided velocity
    decode = next(
        (pieces[name]["decode"] for name in ("frames", "long chunks", "decoder") if pieces.get(name, {}).get("decode")), None
    )
    totals = [done.get(name, {}).get("seconds per video", {}).get("total") for name in ("public", "recommended", "whole")]
    lines = [
        ("forward, one row (s): diffusers default / sparse and compiled", public.get("default forward"), ours.get("rollout"), both),
        ("forward and backward, one row (s): checkpointed default / ours", _half(public.get("trained")), ours.get("trained"), both),
        ("VAE decode (s): stock, float32 / bf16, frames in memory", public.get("decode"), decode, 1.0),
        ("GPU seconds a training video: public recipe / recommended", totals[0], totals[1], 1.0),
        ("GPU seconds a training video, recommended: sum of its pieces / run whole", totals[1], totals[2], 1.0),
    ]
    shown = []
    for what, default, mine, rows in lines:
        mine = None if mine is None else mine / rows
        ratio = "" if default is None or mine is None else f"{default / mine:.2f}x"
        numbers = ["" if value is None else f"{value:.3g}" for value in (default, mine)]
        shown.append({"what": what, "default": numbers[0], "ours": numbers[1], "ratio": ratio})
    return shown


def costs_of(found: Mapping[str, Any]) -> dict[str, Any] | None:
    """The rows as constants for `world-r1 plan --costs`; None before the public recipe and one of ours are timed."""
    done = {entry["row"]: entry for entry in found["rows"] if "counts" in entry}
    if "public" not in done:
        return None
    public = done["public"]["pieces"]
    names = ("recommended", "few steps", "window", "sparse", "checkpoint", "compile")
    ours = next((done[name]["pieces"] for name in names if name in done), None)
    dense = next((done[name]["pieces"] for name in ("checkpoint", "compile") if name in done), None) or (ours or {}).get("dense")
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
            if dense is not None and kind != "decode":
                costs["switches"][kind]["dense factor"] = dense[piece] / public[piece]
    if ours is not None:
        costs["optimizer"] = {"seconds": ours["optimizer"], "source": source}
    return costs


# One row.


def _row(row: Row, tree: Mapping[str, Any], bench: Bench, end: float) -> dict[str, Any]:
    """The row's numbers; where compiling fails, the same without, and the reason. Whatever fails is a row that says so."""
    config = parse(dict(tree), source=f"row {row.name}")
    try:
        return _measured(row, config, bench, end)
    except Exception as error:
        log.warning("row %s failed", row.name, exc_info=error)
        said = _reason(config, error)
    bench.put_away()
    if not config.speed.compile or time.perf_counter() > end:
        return {"error": said}
    plain = parse(merged(tree, {"speed": {"compile": False}}), source=f"row {row.name}")
    try:
        return {**_measured(row, plain, bench, end), "note": f"without torch.compile, which failed: {said}"}
    except Exception as error:
        log.warning("row %s failed without torch.compile", row.name, exc_info=error)
        bench.put_away()
        return {"error": f"{said}; without torch.compile: {_reason(plain, error)}"}


def _measured(row: Row, config: Config, bench: Bench, end: float) -> dict[str, Any]:
    if row.whole:
        return bench_pieces.whole_step(bench.policy(config), config)

    def timed(attention: Mapping[str, Any]) -> dict[str, Any]:
        tree = merged(config.model_dump(mode="json"), {"speed": {"attention": attention}})
        return bench.pieces(parse(tree, source=f"row {row.name}"), spare=lambda: end - time.perf_counter() > 30)

    pieces = timed({"dense_above": None})
    mixed = config.speed.attention.kind != "dense" and max(planning.dense_shares(config)) > 0
    return _composed(config, pieces, timed({"kind": "dense", "dense_above": None}) if mixed else None)


def _reason(config: Config, error: Exception) -> str:
    import torch

    from world_r1 import memory

    if isinstance(error, torch.OutOfMemoryError | memory.OutOfMemory):
        return memory.advice(config, str(error))
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _composed(config: Config, pieces: Mapping[str, Any], dense: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Pieces times their counts; `dense`: of a dense model, for steps that attend densely.

    A reference pass that was not timed counts as one of the rollout.
    """
    counts = planning.passes(config)
    branches = 1 if config.model.guidance_scale == 1.0 else 2
    videos = config.prompts.groups * config.prompts.group_size
    optimizer = pieces["fused optimizer" if config.speed.fused_optimizer else "optimizer"]
    other = pieces if dense is None else dense
    rollouts, updates = planning.dense_shares(config)

    def mean(name: str, share: float) -> float:
        rest, part = (found.get(name, found["rollout"]) for found in (pieces, other))
        return float((1.0 - share) * rest + share * part)

    video = {
        "rollout": counts["rollout"] / branches * mean("rollout", rollouts),
        "decode": pieces["decode"],
        "update": counts["trained"] / branches * mean("trained", updates)
        + counts["without gradient"] / branches * mean("reference", updates)
        + optimizer / videos,
        "publish": pieces["publish"] / videos,
    }
    video["total"] = sum(video.values())
    names = ("default forward", "rollout", "trained", "reference", "decode", "publish")
    peaks = [found[name] for found in (pieces, other) for name in ("peak", "decode peak") if found.get(name) is not None]
    both = {} if dense is None else {"dense": {name: dense[name] for name in names if name in dense}}
    return {
        "counts": counts,
        "pieces": {name: pieces[name] for name in names if name in pieces} | {"optimizer": optimizer, **both},
        "first calls (s)": pieces["first calls"],
        "checkpointed blocks": pieces["checkpointed"],
        "seconds per video": video,
        "peak GiB": max(peaks) / 2**30 if peaks else None,
        "busy": pieces.get("busy"),
        **({} if "reference" in pieces and "reference" in other else {"note": "reference passes counted as those of the rollout"}),
    }


def _trees(base: Mapping[str, Any]) -> Iterator[tuple[Row, dict[str, Any]]]:
    """Every row with its configuration as a mapping."""
    tree = merged(PUBLIC, base)
    for row in ROWS:
        own = merged(tree, row.tree)
        if row.model is None:
            tree = own
        yield row, own


def _earlier(out: Path | None, found: Mapping[str, Any]) -> dict[str, Any]:
    """What the file holds of the same model, machine and commit; nothing where it is of another."""
    if out is None or not out.is_file():
        return {}
    try:
        earlier: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    except json.JSONDecodeError:
        return {}
    return earlier if all(earlier.get(key) == value for key, value in found.items()) else {}


def _half(value: float | None) -> float | None:
    return None if value is None else value / 2


def _said(entry: Mapping[str, Any]) -> str:
    video = entry.get("seconds per video")
    number = f"{video['total']:.3g} s a video" if video else entry.get("error") or entry.get("skipped")
    return f"{number} (took {entry['took (s)']:.0f} s)"


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
        tree = merged(tree, {"speed": {"attention": {"block": 16, "density": 0.4, "backend": "masked"}}})
    if quick:
        tree = merged(tree, {"speed": {"compile": False}})
    if tree["model"]["policy"] != "wan":  # its attention and its decoder have no such switches
        speed = {key: value for key, value in tree["speed"].items() if key not in ("attention", "vae_chunk")}
        tree = tree | {"speed": {**speed, "vae_decode": "auto"}}
    return tree


def _machine() -> dict[str, Any]:
    import torch
    from world_r1_kernels.bench.shapes import commit

    from world_r1.bench import machine

    device = machine("cuda" if torch.cuda.is_available() else "cpu")
    return {"device": device, "torch": torch.__version__, "commit": commit()}
