"""`world-r1 prompts`: build, check, look at and convert prompt sets. Heavy imports come after parsing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from world_r1_prompts.record import Record

prompts_app = typer.Typer(help="Prompt sets.", no_args_is_help=True, rich_markup_mode=None)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ConfigFile = Annotated[Path, typer.Option("--config", "-c", metavar="FILE", help="Build configuration (YAML).")]
Files = Annotated[list[Path], typer.Argument(metavar="FILE...", help="JSONL files of records.")]


@prompts_app.command("build")
def build(
    config: ConfigFile,
    workers: Annotated[int, typer.Option(min=1, help="Processes on this machine.")] = 1,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Run the slow stages as Ray tasks; local starts a cluster.")
    ] = None,
    candidates: Annotated[int | None, typer.Option(min=1, help="Instead of the configuration's.")] = None,
) -> None:
    """Compose, check, deduplicate, balance and split a prompt set; an interrupted build continues."""
    from world_r1.curation import build as start

    for path in start(config, workers=workers, ray=ray, candidates=candidates):
        print(path)


@prompts_app.command("stats")
def stats(
    source: Annotated[str, typer.Argument(help="A text or JSONL file, blockworld:SPLIT:COUNT or world:SPLIT:COUNT.")],
    plots: Annotated[Path | None, typer.Option(metavar="DIR", help="Also draw PNG plots; needs a JSONL file of records.")] = None,
    as_json: AsJson = False,
) -> None:
    """Count prompts, kinds, words and camera commands of a set; a malformed one is an error with its line."""
    from world_r1 import inspection

    inspection.show(inspection.prompt_stats(source), as_json)
    if plots is not None:
        from world_r1_prompts import record, summary

        plots.mkdir(parents=True, exist_ok=True)
        splits: dict[str, list[Record]] = {}
        for entry in record.read(Path(source)):
            splits.setdefault(entry.split, []).append(entry)
        for name in summary.plots(plots, splits):
            print(plots / name)


@prompts_app.command("check")
def check(
    files: Files,
    least: Annotated[int, typer.Option(min=1, help="Fewest words.")] = 18,
    most: Annotated[int, typer.Option(min=1, help="Most words.")] = 160,
    jaccard: Annotated[float, typer.Option(min=0.1, max=0.99, help="Similarity from which two scenes are the same.")] = 0.7,
) -> None:
    """Check files of prompts: a line per defect, with what to do; exit code 1 if there is one."""
    from world_r1.curation import check as examine

    found = examine(files, least, most, jaccard)
    for finding in found:
        print(finding)
    print(f"{len(found)} defects" if found else "no defects")
    raise typer.Exit(int(bool(found)))


@prompts_app.command("sample")
def sample(
    files: Files,
    count: Annotated[int, typer.Option("--n", "--count", min=1, help="How many.")] = 100,
    seed: Annotated[int, typer.Option(help="Another seed, other prompts: a reading after a repair needs new ones.")] = 100,
    as_json: AsJson = False,
) -> None:
    """Print random prompts for a reader to rate: the same for the same files and seed."""
    from world_r1_prompts import summary

    for number, record in enumerate(summary.reading_list(_records(files), count, seed), 1):
        print(record.to_json() if as_json else f"{number}. [{record.id}, {record.category}/{record.subcategory}] {record.text}\n")


@prompts_app.command("enhance")
def enhance(
    source: Annotated[Path, typer.Argument(help="A JSONL file of records.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The rewritten records (JSONL).")],
    model: Annotated[str, typer.Option(help="Model name at the endpoint, or a folder or hub id for transformers.")],
    endpoint: Annotated[
        str, typer.Option(help="OpenAI-compatible address, such as http://127.0.0.1:8000/v1; none: transformers.")
    ] = "",
    least: Annotated[int, typer.Option(min=1, help="Fewest words of a scene.")] = 80,
    most: Annotated[int, typer.Option(min=1, help="Most words of a scene.")] = 120,
) -> None:
    """Rewrite scenes with a language model; what breaks a rule stays as it was. Continues where it stopped."""
    from world_r1.curation import enhance as rewrite

    kept, changed = rewrite(source, out, model=model, endpoint=endpoint, least=least, most=most)
    print(f"{out}: {changed} rewritten, {kept} kept")


@prompts_app.command("preview")
def preview(
    source: Annotated[str, typer.Argument(metavar="PROMPT", help="A prompt; with --id, the file or set that holds it.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The picture (PNG).")] = Path("preview.png"),
    name: Annotated[str | None, typer.Option("--id", help="Id of a prompt of the file or set PROMPT.")] = None,
    preset: Annotated[str, typer.Option(help="Amplitudes: blockworld or world_r1.")] = "blockworld",
    frames: Annotated[int, typer.Option(min=2, help="Frames of the clip.")] = 49,
    fps: Annotated[float, typer.Option(min=0.1, help="Frames a second.")] = 16.0,
) -> None:
    """Draw the camera path of a prompt, from above and from the side; an ambiguous command is an error with its place."""
    from world_r1 import camera_preview
    from world_r1.config import VideoConfig

    text = camera_preview.prompt_of(source, name)
    print(camera_preview.preview(text, out, preset, VideoConfig(frames=frames, fps=fps)))
    print(out)


@prompts_app.command("import-world-r1")
def import_world_r1(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A local copy of the public text files.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The records (JSONL).")],
) -> None:
    """Read World-R1's public text files into records."""
    from world_r1_prompts import public, record, store

    from world_r1.curation import Camera

    records = list(public.read(folder, Camera()))
    store.write(out, record.to_lines(records).encode())
    print(f"{out}: {len(records)} records, {sum(r.camera is not None for r in records)} with a camera plan")


@prompts_app.command("blockworld")
def blockworld(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where blockworld_SPLIT.jsonl go.")],
    train: Annotated[int, typer.Option(min=1)] = 1200,
    dynamic: Annotated[int, typer.Option(min=1)] = 300,
    test: Annotated[int, typer.Option(min=1)] = 128,
) -> None:
    """Write prompts of the embedded world, each with the attributes of its scene."""
    from world_r1.curation import export_blockworld

    for path in export_blockworld(out, {"train": train, "dynamic": dynamic, "test": test}):
        print(path)


@prompts_app.command("compare")
def compare(
    files: Files,
    other: Annotated[list[Path], typer.Option("--with", metavar="FILE", help="Records to compare with; repeat for more.")],
    embeddings: Annotated[bool, typer.Option(help="Also compare meanings (extra prompts; slow on a CPU).")] = False,
    as_json: AsJson = False,
) -> None:
    """Compare how varied two sets are, at the same number of words and prompts, and how close they come to each other."""
    from world_r1.curation import compare as measure
    from world_r1.inspection import show

    show(measure(_records(files), _records(other), embeddings=embeddings), as_json)


def _records(files: list[Path]) -> list[Record]:
    from world_r1_prompts import record

    return [entry for file in files for entry in record.read(file)]
