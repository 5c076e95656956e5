"""The `world-r1` command. Heavy imports come after parsing, so that `--help` and usage errors answer at once."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from world_r1 import __version__, cli_scale
from world_r1.cli_prompts import prompts_app
from world_r1.cli_rewards import app as rewards_app

if TYPE_CHECKING:
    from world_r1.config import Config

#: Set before torch, ray and transformers are imported; the reader's own settings win.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}

PLAIN = {"no_args_is_help": True, "rich_markup_mode": None}
app = typer.Typer(
    name="world-r1",
    help="Reinforcement learning with 3D rewards for text-to-video models.",
    epilog="An error is one line; --debug or WORLD_R1_DEBUG=1 shows where it came from.",
    add_completion=False,
    pretty_exceptions_enable=False,
    **PLAIN,  # type: ignore[arg-type]
)
blockworld_app = typer.Typer(help="The embedded world and its model.", **PLAIN)  # type: ignore[arg-type]
bench_app = typer.Typer(help="Timings on this machine.", **PLAIN)  # type: ignore[arg-type]
app.add_typer(rewards_app, name="rewards")
app.add_typer(prompts_app, name="prompts")
app.add_typer(blockworld_app, name="blockworld")
app.add_typer(bench_app, name="bench")
cli_scale.register(app, bench_app)

ConfigFile = Annotated[Path | None, typer.Option("--config", "-c", metavar="FILE", help="Configuration (YAML).")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, for example flow.steps=8.")]
Lora = Annotated[Path | None, typer.Option("--lora", metavar="DIR", help="Adapter directory (safetensors).")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"world-r1 {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and more log lines.")] = False,
) -> None:
    return None


@app.command()
def train(
    overrides: Overrides = None,
    config: ConfigFile = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run from its newest checkpoint.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Build all parts tiny, sample, score and update once on the CPU, stop.")
    ] = False,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="The architecture without its weights, for timing.")
    ] = False,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the resolved configuration and stop.")] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of configurations and stop.")] = False,
) -> None:
    """Sample groups of videos, score them, update the policy.

    Evaluates before and after, and writes runs/NAME/report.html.
    """
    if schema:
        from world_r1 import config_docs

        print(config_docs.schema(), end="")
        return
    settings = _config(config, [*(overrides or ()), *(["model.random_weights=full"] if random_weights else ())], "train")
    if dry_run:
        cli_scale.dry_run(settings)
        return
    if print_config:
        import yaml

        print(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False), end="")
        return
    if settings.backend == "trl":
        if resume:
            raise ValueError("backend trl cannot resume; set backend=ray for a run that can, or start this one anew")
        from world_r1.trl_backend import train_with_trl

        train_with_trl(settings)
        return
    from world_r1.train import train as start

    start(settings, resume=resume)


@app.command()
def sample(
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="Scene, and camera command if any.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The video file.")] = Path("clip.mp4"),
    overrides: Overrides = None,
    config: ConfigFile = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Hub id, folder or blockworld, with its own settings.")] = None,
    lora: Lora = None,
    seed: Annotated[int, typer.Option(min=0, help="Same seed and prompt, same video.")] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps.")] = None,
    guidance: Annotated[float | None, typer.Option(min=1.0, help="Guidance scale.")] = None,
    sheet: Annotated[bool, typer.Option("--sheet", help="Also write a contact sheet (PNG).")] = False,
) -> None:
    """Sample one video from a prompt.

    From the embedded model, unless --model or --config names another. --lora takes runs/NAME/adapter.
    """
    if config is not None and model is not None:
        raise ValueError("give --config or --model, not both")
    if config is None and overrides:
        raise ValueError(f"overrides such as {overrides[0]} need --config; use --steps and --guidance without one")
    source = (model or "blockworld") if config is None else _config(config, overrides, "sample")
    from world_r1.sample import sample_to_file

    adapter = None if lora is None else str(lora)
    print(sample_to_file(source, prompt, seed, out, lora=adapter, steps=steps, guidance=guidance, sheet=sheet))


@app.command(name="eval")
def evaluate(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where eval.json, clips and report.html go.")],
    overrides: Overrides = None,
    config: ConfigFile = None,
    lora: Lora = None,
) -> None:
    """Evaluate a model on held-out prompts.

    With --lora the base and the adapted model are compared with paired noise.
    """
    settings = _config(config, overrides, "eval")
    from world_r1.evaluation import evaluate_command

    with _progress("clips") as progress:
        evaluate_command(settings, None if lora is None else str(lora), out, progress=progress)
    print(out / "report.html")


@app.command()
def report(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="A run directory, for example runs/blockworld.")],
) -> None:
    """Write RUN_DIR/report.html.

    Curves, reward parts, clips before and after and camera paths, in one self-contained file.
    """
    from world_r1.report import write_report

    print(write_report(run_dir))


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say what this machine can run, and why not."""
    from world_r1.doctor import main as examine

    raise typer.Exit(examine(as_json=as_json))


@blockworld_app.command("pretrain")
def blockworld_pretrain(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for weights, state and contact sheets.")],
    stages: Annotated[str, typer.Option(help="Comma-separated stages, in order.")] = "index,vae,transformer,critic",
    steps: Annotated[int | None, typer.Option(min=1, help="Optimizer steps a stage.")] = None,
    minutes: Annotated[float | None, typer.Option(min=0.01, help="Minutes a stage, instead of --steps.")] = None,
    cache: Annotated[int, typer.Option(min=1, help="Videos in the latent cache.")] = 100_000,
    batch: Annotated[int, typer.Option(min=1, help="Videos a step.")] = 16,
    workers: Annotated[int, typer.Option(min=0, help="Processes that draw scenes.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    seed: Annotated[int, typer.Option()] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the saved state.")] = False,
) -> None:
    """Train the embedded model from scratch: video VAE, text encoder and transformer, critic and evaluator."""
    if (steps is None) == (minutes is None):
        raise ValueError("give either --steps or --minutes")
    import torch

    from world_r1.blockworld.pretrain import pretrain
    from world_r1.blockworld.stage import Options

    names = tuple(name for name in stages.split(",") if name)
    where = torch.device(_device(device))
    options = Options(out, where, steps=steps, batch=batch, workers=workers, seed=seed, resume=resume)
    budget = None if minutes is None else dict.fromkeys((*names, "cache"), 60 * minutes)
    print(pretrain(names, options, budget, cache))


@bench_app.command("noise")
def bench_noise(
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    repeats: Annotated[int, typer.Option(min=1)] = 5,
    as_json: AsJson = False,
) -> None:
    """Time the camera-warped noise at blockworld's size and at 81x480x832."""
    from world_r1.bench import noise
    from world_r1.inspection import show

    show(noise(_device(device), repeats), as_json)


@bench_app.command("attention")
def bench_attention(
    quick: Annotated[bool, typer.Option("--quick", help="One shape, one density; without a GPU the check alone.")] = False,
    tune: Annotated[bool, typer.Option("--tune", help="First choose the kernels' tile shapes on this GPU.")] = False,
    out: Annotated[
        str | None, typer.Option(help="Folder for the JSON and the tile shapes found; default kernels/bench/results.")
    ] = None,
    seconds: Annotated[float | None, typer.Option(min=1, help="Begin no new step after so many seconds.")] = None,
    shapes: Annotated[str | None, typer.Option(help="Comma-separated names of shapes, such as CogVideoX-5B; default all.")] = None,
) -> None:
    """Check pyramid attention on this machine, then time it beside cuDNN, flash and FlexAttention; writes JSON."""
    from world_r1.bench import attention

    attention(quick, tune, out, seconds, shapes)


@bench_app.command("attention-quality")
def bench_attention_quality(
    quick: Annotated[bool, typer.Option("--quick", help="Smaller fields, fewer densities and layers.")] = False,
) -> None:
    """Error of sparse attentions against exact attention at equal density; writes JSON and a plot."""
    from world_r1.bench import attention_quality

    attention_quality(quick)


@bench_app.command("attention-table")
def bench_attention_table() -> None:
    """Put the attention benchmarks' results, kernels/bench/results/*.json, into the tables of kernels/README.md."""
    from world_r1.bench import attention_table

    attention_table()


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Parse and do; returns the exit code: 0, 1 (a check failed), 2 (the user's to mend), 130 (interrupted)."""
    rest = [argument for argument in arguments if argument != "--debug"]
    debug = len(rest) < len(arguments) or os.environ.get("WORLD_R1_DEBUG", "") not in ("", "0")
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # the model libraries' bars, which fill log files
    logging.basicConfig(level=logging.INFO if debug else logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        code = _guarded(rest, debug)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader of our output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _guarded(arguments: Sequence[str], debug: bool) -> int:
    try:
        code = app(arguments, prog_name="world-r1", standalone_mode=False)
        code = code if isinstance(code, int) else 0
        if code == 130:  # typer turned a KeyboardInterrupt into this; a run has already said what it saved
            raise KeyboardInterrupt
        return code
    except (KeyboardInterrupt, typer.Abort):
        print("world-r1: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error)
            return 2
        if debug or isinstance(error, BrokenPipeError):
            raise
        from world_r1 import errors

        return errors.report(error)


def _config(path: Path | None, overrides: Sequence[str] | None, command: str) -> Config:
    from world_r1.config import ConfigError, load

    if path is None:
        raise ConfigError(f"{command} needs a configuration, for example: world-r1 {command} --config configs/blockworld.yaml")
    return load(path, tuple(overrides or ()))


def _device(name: str) -> str:
    """cpu or cuda for "auto"; ValueError for a GPU that is not there."""
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"--device is auto, cpu or cuda, got {name!r}")
    if name == "cpu":
        return name
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if name == "cuda":
        raise ValueError("--device cuda: torch sees no CUDA device; run world-r1 doctor, or use --device cpu")
    return "cpu"


class _progress:
    """`with _progress("clips") as tell: tell(done, total)`: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, unit: str) -> None:
        self.unit = unit
        self.shown = 0.0

    def __enter__(self) -> _progress:
        return self

    def __call__(self, done: int, total: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{done}/{total} {self.unit}", end="\n" if done == total else "", file=sys.stderr, flush=True)
        elif done == total or done / total - self.shown >= 0.25:
            self.shown = 0.0 if done == total else done / total
            print(f"{done}/{total} {self.unit}", file=sys.stderr, flush=True)

    def __exit__(self, *_: object) -> None:
        return None


if __name__ == "__main__":
    main()
