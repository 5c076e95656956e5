"""`world-r1 rewards`: list and check rewards, score a video, run pools of reward workers. Heavy imports come after parsing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    help="List and check rewards, score a video, run pools of reward workers.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

ConfigFile = Annotated[Path | None, typer.Option("--config", "-c", metavar="FILE", help="Configuration (YAML).")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Address = Annotated[
    str | None, typer.Option("--address", metavar="HOST:PORT", help="Ray cluster; default: the one that runs here.")
]


@app.command("list")
def list_plugins(as_json: AsJson = False) -> None:
    """List rewards and probes: what they need and give, weights, licence, and whether they can run here."""
    from world_r1.inspection import COLUMNS, plugins, show

    rows = plugins()
    show(rows if as_json else [{column: row[column] for column in COLUMNS} for row in rows], as_json)


@app.command()
def check(
    name: Annotated[str, typer.Argument(help='A reward or probe by name, or "module:Class" from anywhere on the path.')],
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Hold a reward, or a probe below rewards that read it, against the contract.

    On eight built-in clips, a rigid room and swimming textures among them. Prints time, memory, versions and licences. With --config the
    reward gets the options and probes that the file gives it. Exit code 1 if a rule is broken.
    """
    from world_r1.config import load
    from world_r1.inspection import show
    from world_r1.reward_check import check as hold

    result = hold(name, None if config is None else load(config).rewards)
    if as_json:
        show(result, True)
    else:
        show(result["findings"], False)
        numbers = {key: f"{value:.3f} s" for key, value in result["seconds"].items()}
        facts = {"seconds a clip": numbers, "memory": f"{result['memory_mib']:.0f} MiB"}
        show({**facts, **{key: result[key] for key in ("versions", "licences", "weights") if result[key]}}, False)
    raise typer.Exit(int(not all(finding["ok"] for finding in result["findings"])))


@app.command()
def score(
    video: Annotated[Path, typer.Argument(help="A video file.")],
    prompt: Annotated[str, typer.Option(help="What the video was asked to show, camera command included.")] = "",
    reward: Annotated[
        list[str] | None, typer.Option(help="A reward by name; repeat for more. Default: what runs everywhere.")
    ] = None,
    config: ConfigFile = None,
    pool: Annotated[list[str] | None, typer.Option(help="A running pool by name; repeat for more.")] = None,
    address: Address = None,
    files: Annotated[bool, typer.Option(help="Write VIDEO.scores.json, and a picture of the reconstruction, next to it.")] = True,
    as_json: AsJson = False,
) -> None:
    """Score a video, every part shown; what cannot be measured says why."""
    from world_r1.config import CameraConfig, load
    from world_r1.inspection import read_clip, score_clip, settings_for, show, verdict_rows, write_findings

    evidence: dict[str, Any] = {}
    if pool:
        if reward:
            raise ValueError("give --reward or --pool, not both: a pool has its own rewards")
        from world_r1.serving import admin

        camera = CameraConfig() if config is None else load(config).camera
        rows = admin.score(address, pool, read_clip(video, prompt, camera))
    else:
        rewards, camera = settings_for(None if config is None else load(config), reward or [])
        clip = read_clip(video, prompt, camera)
        verdict, evidence = score_clip(clip, rewards)
        rows = verdict_rows(verdict)
    show(rows, as_json)
    if files:
        write_findings(video, rows, evidence)


@app.command()
def bench(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, for example rewards.probes.flow_ba.quality=fine."),
    ] = None,
    reward: Annotated[list[str] | None, typer.Option(help="A reward by name; repeat for more. Default: those of geometry.")] = None,
    config: ConfigFile = None,
    scenes: Annotated[int, typer.Option(min=1, help="Scenes; every camera command comes once in 18.")] = 24,
    split: Annotated[str, typer.Option(help="held_out, fresh or tuning: choose thresholds on the last only.")] = "held_out",
    accuracy: Annotated[bool, typer.Option(help="Only how exact the estimated cameras are, on clean clips.")] = False,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for bench.json and bench.svg.")] = Path("runs/rewards-bench"),
    resume: Annotated[bool, typer.Option("--resume", help="Keep the scenes that a stopped run has measured in DIR.")] = False,
    as_json: AsJson = False,
) -> None:
    """Which damage does a reward see, does it prefer small camera moves, how exact is the geometry below it?

    On rendered clips, clean and damaged in 18 ways. A scene takes some 10 CPU seconds with the rewards of geometry.
    """
    from importlib import import_module

    from world_r1.inspection import settings_to_measure, show

    run = import_module("world_r1_rewards.discrimination_run")
    rewards = settings_to_measure(config, reward or [], overrides or [])
    found = run.bench(rewards, split, scenes, out, accuracy_only=accuracy, resume=resume, say=None if as_json else print)
    if as_json:
        show(found, True)
        return
    show(run.table(found), False)
    show(run.facts(found), False)
    print(f"written to {out}")


@app.command()
def up(
    config: Annotated[Path, typer.Option("--config", "-c", metavar="FILE", help="Pools (YAML), for example configs/rewards.yaml.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, for example pools.geometry.gpus=0.25.")
    ] = None,
    address: Address = None,
    start_ray: Annotated[bool, typer.Option("--start-ray", help="Start a Ray node on this machine if none runs.")] = False,
) -> None:
    """Start the pools of a file. They run until `rewards down`, whoever uses them."""
    from world_r1.serving import admin
    from world_r1.serving.config import load_pools

    for line in admin.up(address, load_pools(config, tuple(overrides or ())), start_ray):
        print(line, flush=True)


@app.command()
def status(address: Address = None, as_json: AsJson = False) -> None:
    """Show the pools: replicas, queue, rate, latencies, failures, memory, versions. Exit code 1 if one is broken."""
    from world_r1.inspection import show
    from world_r1.serving import admin

    found = admin.status(address)
    show(found if as_json else admin.table(found), as_json)
    raise typer.Exit(int(any(pool["error"] for pool in found)))


@app.command()
def down(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Pools to end; default: all.")] = None,
    address: Address = None,
) -> None:
    """End pools and their workers."""
    from world_r1.serving import admin

    for name in admin.down(address, names or []):
        print(f"{name}: ended")


@app.command()
def serve(
    pool: Annotated[list[str], typer.Option(help="A running pool by name; repeat for more.")],
    host: Annotated[str, typer.Option(help="Address to listen on; any but loopback needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8765,
    token_file: Annotated[Path | None, typer.Option(metavar="FILE", help="File with the token that callers must present.")] = None,
    max_mib: Annotated[float, typer.Option(min=0.001, help="Largest body, MiB.")] = 256.0,
    address: Address = None,
) -> None:
    """Score over HTTP: bodies are npz, safetensors or MP4, the answer is JSON; /docs describes it."""
    from world_r1.serving import gateway

    gateway.serve(address, pool, host=host, port=port, token_file=token_file, max_bytes=int(max_mib * 2**20))
