"""Commands of large models: `world-r1 plan`, `world-r1 bench step`, and the dry run of `world-r1 train`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from world_r1.config import Config

Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, for example prompts.groups=64.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer, bench_app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command("plan")(plan)
    bench_app.command("step")(bench_step)
    bench_app.command("scale")(bench_scale)


def plan(
    overrides: Overrides = None,
    config: Annotated[Path | None, typer.Option("--config", "-c", metavar="FILE", help="Configuration (YAML).")] = None,
    gpus: Annotated[int, typer.Option("--gpus", min=2, help="GPUs to divide.")] = 8,
    costs: Annotated[
        Path | None, typer.Option("--costs", metavar="FILE", help="Constants (JSON) instead of the shipped ones.")
    ] = None,
    reward_seconds: Annotated[float | None, typer.Option("--reward-seconds", min=0, help="Judging one video on one GPU.")] = None,
    as_json: AsJson = False,
) -> None:
    """Predict throughput, idle time and the best division of GPUs into samplers, learner and reward workers."""
    from world_r1 import planning
    from world_r1.config import ConfigError, load
    from world_r1.inspection import show

    if config is None:
        raise ConfigError("plan needs a configuration, for example: world-r1 plan --config configs/wan2.1_1.3b.yaml --gpus 96")
    found = planning.plan(load(config, tuple(overrides or ())), gpus, planning.costs(costs), reward_seconds)
    if as_json:
        show(found, True)
        return
    splits, notes = found.pop("splits"), found.pop("notes")
    show(_rounded(found), False)
    show(splits, False)
    for note in notes:
        print(f"- {note}")


def bench_step(
    model: Annotated[str, typer.Option("--model", "-m", help="Hub id of a known architecture; its weights are random.")] = (
        "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
    ),
    quick: Annotated[bool, typer.Option("--quick", help="Tiny model and video: shows that it runs, on a CPU in a minute.")] = False,
    rows: Annotated[str | None, typer.Option("--rows", help="Comma-separated rows; default all, see --list.")] = None,
    list_rows: Annotated[bool, typer.Option("--list", help="Print the rows and what each adds, and stop.")] = False,
    seconds: Annotated[float, typer.Option("--seconds", min=1, help="Begin no row that does not fit into so many seconds.")] = 420,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="JSON, rewritten after every piece; a later run goes on.")
    ] = Path("bench_step.json"),
    as_json: AsJson = False,
) -> None:
    """Time one training step of the public recipe and of ours, feature by feature, on this machine; figures are of random weights."""
    from world_r1 import bench_step as bench
    from world_r1.inspection import show

    if list_rows:
        show([{"row": row.name, "adds": row.adds} for row in bench.ROWS], as_json)
        return
    found = bench.run(model, quick=quick, rows=rows.split(",") if rows else None, seconds=seconds, out=out)
    show(found if as_json else bench.table(found), as_json)
    if not as_json:
        show(bench.bars(found), False)


def bench_scale(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, for example video.height=720.")
    ] = None,
    model: Annotated[str, typer.Option("--model", "-m", help="Hub id of a known architecture; its weights are random.")] = (
        "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
    ),
    learners: Annotated[str, typer.Option("--learners", help="Comma-separated numbers of learners, one GPU each.")] = "1,2",
    quick: Annotated[bool, typer.Option("--quick", help="Tiny model and video: shows that it runs, on a CPU.")] = False,
    frames: Annotated[int, typer.Option("--frames", min=5, help="Frames of a 480x832 video (1 + 4k).")] = 33,
    group_size: Annotated[int, typer.Option("--group-size", min=2, help="Videos in a group; as many groups as most learners.")] = 2,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Timed steps, after one that warms up.")] = 1,
    compiled: Annotated[bool, typer.Option("--compile/--no-compile", help="Compile the blocks (a minute at the start).")] = False,
    costs: Annotated[
        Path | None, typer.Option("--costs", metavar="FILE", help="What bench step wrote here: compare with the plan.")
    ] = None,
    fsdp: Annotated[bool, typer.Option("--fsdp", help="Spread the base over the learners; two at least.")] = False,
    sequence_parallel: Annotated[
        int, typer.Option("--sequence-parallel", min=1, help="Learners that share one video's tokens, where there are as many.")
    ] = 1,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="JSON, rewritten after every number.")] = Path(
        "bench_scale.json"
    ),
    as_json: AsJson = False,
) -> None:
    """Videos an hour by the number of learners, through the cluster that training uses; figures are of random weights."""
    from world_r1 import bench_scale as bench
    from world_r1.inspection import show

    if not all(part.strip().isdigit() for part in learners.split(",")):
        raise ValueError(f"--learners is a comma-separated list of numbers such as 1,2; got {learners!r}")
    counts = [int(part) for part in learners.split(",")]
    found = bench.run(
        model,
        counts,
        quick=quick,
        frames=frames,
        group_size=group_size,
        steps=steps,
        compiled=compiled,
        fsdp=fsdp,
        sequence_parallel=sequence_parallel,
        overrides=overrides or (),
        costs=costs,
        out=out,
    )
    show(found if as_json else bench.table(found), as_json)


def dry_run(config: Config) -> None:
    """Print what `world-r1 train --dry-run` found."""
    from world_r1.dry_run import dry_run as start
    from world_r1.inspection import show

    rows = start(config)
    show(rows, False)
    lacking = [row["part"] for row in rows if row["status"] != "ok"]
    print(f"left out on this machine: {', '.join(lacking)}" if lacking else "nothing was left out")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    return {key: _rounded(item) for key, item in value.items()} if isinstance(value, dict) else value
