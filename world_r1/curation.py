"""The camera language that prompt curation uses, and the curation commands of `world-r1 prompts`.

`world_r1_prompts` knows cameras only through the protocol `CameraLanguage`; this is where the two meet. It is imported by name inside
functions, so that the core never needs it.
"""

from __future__ import annotations

import multiprocessing
import random
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from world_r1.command import CameraPlan, describe_plan, parse_plan
from world_r1.command.plan import KINDS

if TYPE_CHECKING:
    from world_r1_prompts.checks import Finding
    from world_r1_prompts.record import Record

#: Prepositions that lead from a single move to what it is about.
_TOWARD = {
    "push in": ("toward {}", "towards {}"),
    "pull out": ("from {}", "away from {}"),
    "zoom in": ("on {}",),
    "orbit left": ("around {}",),
    "orbit right": ("around {}",),
    "arc up": ("over {}",),
}


@dataclass(frozen=True)
class Camera:
    """The project's camera language, as `world_r1_prompts.grammar.compose.CameraLanguage` asks for it."""

    motions: tuple[str, ...] = tuple(KINDS)

    def read(self, text: str) -> dict[str, Any] | None:
        """JSON form of the plan that a text commands, or None; CameraTextError (a ValueError) if it is ambiguous or contradictory."""
        plan = parse_plan(text)
        return None if plan is None else plan.to_dict()

    def write(self, plan: Mapping[str, Any], rng: random.Random, target: str) -> str:
        """A sentence with its full stop. A single move may name its target, as in "The camera orbits left around the lighthouse."

        The sentence is read back before it is used; wordings that do not come back as the same plan fall back to the plain one.
        """
        wanted = CameraPlan.from_dict(dict(plan))
        said = describe_plan(wanted, rng)
        said = re.sub(r"^Camera (?!fixed|static)(\w)", lambda found: f"Camera: {found[1]}", said)
        options = [f"{said}.", f"{wanted.text[0].upper()}{wanted.text[1:]}."]
        toward = _TOWARD.get(wanted.names[0], ()) if len(wanted.names) == 1 else ()
        places = [place for place in toward if place.split()[0] not in said.split()]  # not "pulls away away from"
        if places and rng.random() < 0.45:
            options.insert(0, f"{said} {rng.choice(places).format(target)}.")
        return next(text for text in options if _same(text, wanted))


def _same(text: str, wanted: CameraPlan) -> bool:
    try:
        return parse_plan(text) == wanted
    except ValueError:
        return False


def build(config: Path, *, workers: int = 1, ray: str | None = None, candidates: int | None = None) -> list[Path]:
    """Build a prompt set and write it; returns the written files. Says on stderr how far it is.

    `ray`: address of a cluster whose tasks run the slow stages ("local" starts one); else `workers` processes. ValueError if the
    configuration is wrong or its quotas cannot be met.
    """
    from world_r1_prompts import config as settings
    from world_r1_prompts.export import export
    from world_r1_prompts.pipeline import Mapper, serially
    from world_r1_prompts.pipeline import build as run

    wanted = settings.load(config)
    if candidates is not None:
        wanted = wanted.model_copy(update={"candidates": candidates})
    mapper: Mapper = serially
    if ray is not None:
        from world_r1.actors.blocks import map_blocks

        mapper = partial(map_blocks, address=ray)
    elif workers > 1:
        mapper = partial(_in_processes, workers=workers)
    built = run(wanted, Camera(), mapper, lambda line: print(line, file=sys.stderr, flush=True))
    return export(wanted.out, wanted, built.splits, built.report)


def _in_processes(
    task: Callable[[int, bytes], bytes], work: Iterable[tuple[int, bytes]], *, workers: int
) -> Iterator[tuple[int, bytes]]:
    """Blocks in `workers` fresh processes, a few in flight at a time so that memory does not grow with the number of blocks."""
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting: dict[Future[bytes], int] = {}
        for block, content in work:
            waiting[pool.submit(task, block, content)] = block
            if len(waiting) >= 2 * workers:
                yield from _finished(waiting)
        while waiting:
            yield from _finished(waiting)


def _finished(waiting: dict[Future[bytes], int]) -> Iterator[tuple[int, bytes]]:
    for future in futures.wait(waiting, return_when=futures.FIRST_COMPLETED).done:
        yield waiting.pop(future), future.result()


def check(files: Sequence[Path], least: int, most: int, jaccard: float) -> list[Finding]:
    """All defects of files of records; OSError for one that cannot be read."""
    from world_r1_prompts import checks
    from world_r1_prompts.config import Words

    return list(checks.check(files, Camera(), Words(least=least, most=most), jaccard))


def enhance(source: Path, out: Path, *, model: str, endpoint: str, least: int, most: int, writer: Any = None) -> tuple[int, int]:
    """Rewrite the records of a file; returns (kept, rewritten). Every finished record is appended at once, so a second call continues.

    ValueError if `out` holds records that are not the beginning of `source`.
    """
    from world_r1_prompts import record as records
    from world_r1_prompts.config import Enhance, Words
    from world_r1_prompts.enhance import Writer
    from world_r1_prompts.enhance import enhance as rewrite

    how = Enhance(endpoint=endpoint, model=model, least=least, most=most)
    todo = records.read(source)
    if out.is_file():  # a line that a kill cut short is written again
        whole = out.read_bytes()
        out.write_bytes(whole[: whole.rfind(b"\n") + 1])
    done = records.read(out) if out.is_file() else []
    if [entry.id for entry in done] != [entry.id for entry in todo[: len(done)]]:
        raise ValueError(f"{out} holds other records than the beginning of {source}; remove it or choose another --out")
    writer = writer or Writer(how)
    with out.open("a", encoding="utf-8") as file:
        for entry in todo[len(done) :]:
            done.append(rewrite(entry, writer, how, Words(), Camera()))
            file.write(done[-1].to_json() + "\n")
            file.flush()
    changed = sum(bool(entry.quality.get("enhanced")) for entry in done)
    return len(done) - changed, changed


def compare(ours: Sequence[Record], theirs: Sequence[Record], *, embeddings: bool) -> list[dict[str, Any]]:
    """Diversity of two sets on as many words and prompts as the smaller one has, and the closest pair between them."""
    from world_r1_prompts import compare as measures
    from world_r1_prompts import minhash

    texts = [[record.base for record in records] for records in (ours, theirs)]
    tokens = min(sum(max(0, len(minhash.words(text)) - 1) for text in part) for part in texts)
    prompts = min(map(len, texts))
    rows = []
    for name, part in zip(("first", "other"), texts, strict=True):
        rows.append({"set": name} | asdict(measures.diversity(part, tokens, prompts, embeddings=embeddings)))
    similarity, mine, other = measures.closest(*texts)
    return [*rows, {"set": "closest pair", "jaccard": round(similarity, 3), "first": ours[mine].id, "other": theirs[other].id}]


def export_blockworld(folder: Path, counts: Mapping[str, int]) -> list[Path]:
    """Write `blockworld_<split>.jsonl` with the first prompts of each split and the attributes of their scenes; returns the files.

    The records are those of `load_prompts("blockworld:SPLIT:COUNT")`, so a file and the generated set are the same prompts.
    """
    import json

    from world_r1_prompts import store

    from world_r1.prompts import load_prompts

    written = []
    for split, count in counts.items():
        prompts = load_prompts(f"blockworld:{split}:{count}")
        lines = [
            json.dumps({"id": p.id, "text": p.text, "kind": p.kind, "attributes": p.attributes}, separators=(",", ":"))
            for p in prompts
        ]
        written.append(folder / f"blockworld_{split}.jsonl")
        store.write(written[-1], "".join(line + "\n" for line in lines).encode())
    return written
