"""The build: compose or read, enhance, validate, deduplicate, balance, embed, split. Every stage writes what it finished.

Stages over blocks of candidates are functions bytes -> bytes of (block, input), run by a `Mapper`: one after the other, in processes,
or as Ray tasks (`world_r1.actors.blocks`); the driver writes the results, so workers need no shared disk. Killed at any instant and
started again, a build ends in the same files, bit for bit.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from world_r1_prompts import balance, minhash, store, written
from world_r1_prompts.config import BuildConfig, Dedup, Enhance, Words
from world_r1_prompts.grammar import scenes
from world_r1_prompts.grammar.compose import GENERATOR, CameraLanguage, compose
from world_r1_prompts.grammar.shots import moves_of
from world_r1_prompts.record import Record, from_json, to_lines
from world_r1_prompts.validate import RULES, defects

Task = Callable[[int, bytes], bytes]
Mapper = Callable[[Task, Iterable[tuple[int, bytes]]], Iterator[tuple[int, bytes]]]
Say = Callable[[str], None]
#: Share of prompts chosen beyond the quota, to replace those that embeddings find to be repeats.
_RESERVE = 0.2


def serially(task: Task, work: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """The mapper that does one block after the other, here."""
    for block, content in work:
        yield block, task(block, content)


@dataclass(frozen=True)
class Compose:
    """Block -> JSONL of candidates."""

    seed: int
    candidates: int
    block: int
    categories: dict[str, float]
    camera: CameraLanguage

    def __call__(self, block: int, _: bytes) -> bytes:
        library = scenes.load()
        span = range(block * self.block, min(self.candidates, (block + 1) * self.block))
        return to_lines(compose(library, self.camera, self.seed, index, self.categories) for index in span).encode()


@dataclass(frozen=True)
class Written:
    """Block -> JSONL of candidates, of the scenes that were written whole."""

    block: int
    camera: CameraLanguage

    def __call__(self, block: int, _: bytes) -> bytes:
        entries = written.load()
        span = range(block * self.block, min(len(entries), (block + 1) * self.block))
        return to_lines(entries[index].record(index, self.camera) for index in span).encode()


@dataclass(frozen=True)
class Rewrite:
    """JSONL of candidates -> the same with scenes rewritten by a language model."""

    how: Enhance
    limits: Words
    camera: CameraLanguage

    def __call__(self, block: int, content: bytes) -> bytes:
        from world_r1_prompts.enhance import Writer, enhance

        writer = Writer(self.how)
        return to_lines(enhance(record, writer, self.how, self.limits, self.camera) for record in _records(content)).encode()


@dataclass(frozen=True)
class Validate:
    """JSONL of candidates -> uint32 array [n, 1 + permutations]: number of the first broken rule (0: none), then the MinHash signature."""

    limits: Words
    dedup: Dedup
    camera: CameraLanguage

    def __call__(self, block: int, content: bytes) -> bytes:
        records = _records(content)
        marks = minhash.signatures([record.base for record in records], self.dedup.permutations, self.dedup.shingle)
        found = [next(iter(defects(record, self.camera, self.limits)), None) for record in records]
        codes = np.array([0 if defect is None else 1 + RULES.index(defect.rule) for defect in found], np.uint32)
        return _to_bytes(np.concatenate([codes[:, None], marks], 1))


@dataclass(frozen=True)
class Embed:
    """JSON list of texts -> float32 array [n, 384]."""

    def __call__(self, block: int, content: bytes) -> bytes:
        from world_r1_prompts.embed import embed

        return _to_bytes(embed(json.loads(content)))


@dataclass(frozen=True)
class Built:
    """What a build made: the splits, and counts of what happened on the way."""

    splits: dict[str, list[Record]]
    report: dict[str, Any]


def build(config: BuildConfig, camera: CameraLanguage, mapper: Mapper = serially, say: Say = lambda _: None) -> Built:
    """Run all stages that are not yet finished in `config.work`.

    ValueError if a split comes out short or a move is off its quota by more than the tolerance: more candidates or other weights are
    needed, and the message says which.
    """
    first: Task
    if config.source == "written":
        candidates = len(written.load())
        identity = store.key(written.GENERATOR, _code("written", "grammar"), config.block)
        first = Written(config.block, camera)
    else:
        candidates = config.candidates
        identity = store.key(GENERATOR, _code("grammar", "scenes"), config.seed, candidates, config.block, config.categories)
        first = Compose(config.seed, candidates, config.block, config.categories, camera)
    blocks = -(-candidates // config.block)
    texts = store.Stage(config.work, "1-compose", identity, blocks, ".jsonl")
    _run(texts, first, None, mapper, say)
    if config.enhance is not None:
        identity = store.key(identity, config.enhance.model_dump(), config.words.model_dump())
        rewritten = store.Stage(config.work, "2-enhance", identity, blocks, ".jsonl")
        _run(rewritten, Rewrite(config.enhance, config.words, camera), texts, mapper, say)
        texts = rewritten
    settings = [config.words.model_dump(), config.dedup.permutations, config.dedup.shingle]
    checked = store.Stage(config.work, "3-validate", store.key(identity, settings), blocks, ".npy")
    _run(checked, Validate(config.words, config.dedup, camera), texts, mapper, say)

    table = np.concatenate([_from_bytes(checked.get(block)) for block in range(blocks)])
    good = np.flatnonzero(table[:, 0] == 0)
    marks = np.ascontiguousarray(table[good, 1:])
    repeated = minhash.duplicates(marks, config.dedup.jaccard)
    kept = [row for row in range(len(good)) if row not in repeated]
    say(f"dedup: {len(good)} valid, {len(repeated)} near-duplicates")
    items = _items(texts, good[kept])
    chosen = _balance(config, items, marks[kept], reserve=_RESERVE if config.dedup.embeddings != "none" else 0.0)
    say("balance: " + ", ".join(f"{name} {len(rows)}" for name, rows in chosen.items()))
    records = _fetch(texts, {items[row].index for rows in chosen.values() for row in rows})
    dropped = 0
    nearest: dict[int, float] = {}
    if config.dedup.embeddings != "none":
        chosen, dropped, nearest = _meanings(config, items, chosen, records, checked.identity, mapper, say)
    splits = {name: _named(name, [items[row] for row in rows], records, nearest) for name, rows in chosen.items()}
    report = {
        "candidates": candidates,
        "invalid": {
            RULES[code - 1]: int(n) for code, n in zip(*np.unique(table[table[:, 0] > 0, 0], return_counts=True), strict=True)
        },
        "near-duplicates by MinHash": len(repeated),
        "near-duplicates by meaning": dropped,
        "subjects": len({item.subject for item in items}),
        "off quota": _verify(config, splits),
    }
    return Built(splits, report)


def _run(stage: store.Stage, task: Task, source: store.Stage | None, mapper: Mapper, say: Say) -> None:
    missing = stage.missing
    if not missing:
        return
    work = ((block, b"" if source is None else source.get(block)) for block in missing)
    done = stage.blocks - len(missing)
    for block, content in mapper(task, work):
        stage.put(block, content)
        done += 1
        say(f"{stage.folder.name.rpartition('-')[0]}: {done}/{stage.blocks} blocks")


def _items(texts: store.Stage, wanted: np.ndarray) -> list[balance.Item]:
    """What selection needs of the candidates with these running numbers, read block by block."""
    out, first, keep = [], 0, set(wanted.tolist())
    for block in range(texts.blocks):
        lines = texts.get(block).splitlines()
        for offset, line in enumerate(lines):
            if first + offset in keep:
                entry = json.loads(line)
                subject = entry["source"].partition(":")[2]
                moves = moves_of(entry["camera"]) or ("fixed",)
                opening = " ".join(entry["base"].lower().split(maxsplit=3)[:3])
                difficulty, apart = entry["quality"]["difficulty"], entry["split"] == "test"
                out.append(balance.Item(first + offset, entry["category"], difficulty, subject, moves, opening, apart))
        first += len(lines)
    return out


def _balance(config: BuildConfig, items: list[balance.Item], marks: np.ndarray, reserve: float) -> dict[str, list[int]]:
    """Rows of `items` for every split. Test first: its subjects are its own, and what resembles its prompts leaves the others."""
    written_apart = frozenset(item.subject for item in items if item.apart)
    apart = written_apart
    if not apart and "test" in config.splits:
        apart = balance.held_out((item.subject for item in items), config.seed)
    chosen: dict[str, list[int]] = {}
    for name in ("test", "train", "dynamic"):
        if name not in config.splits:
            continue
        split = config.splits[name]
        rows = [
            row
            for row, item in enumerate(items)
            if (item.subject in apart) == (name == "test")
            and item.category in split.categories
            # another file's scene of a held-out subject is for no split
            and (name != "test" or not written_apart or item.apart)
        ]
        picked = [rows[k] for k in balance.select([items[row] for row in rows], split, round(split.count * (1 + reserve)))]
        if name != "test" and "test" in chosen and picked:
            near = minhash.nearest(marks[picked], marks[chosen["test"]])
            close = {row for row, value in zip(picked, near, strict=True) if value >= config.dedup.across_splits}
            if close:
                rows = [row for row in rows if row not in close]
                picked = [rows[k] for k in balance.select([items[row] for row in rows], split, round(split.count * (1 + reserve)))]
                near = minhash.nearest(marks[picked], marks[chosen["test"]])
                picked = [row for row, value in zip(picked, near, strict=True) if value < config.dedup.across_splits]
        chosen[name] = picked
    return chosen


def _fetch(texts: store.Stage, wanted: set[int]) -> dict[int, Record]:
    out: dict[int, Record] = {}
    first = 0
    for block in range(texts.blocks):
        lines = texts.get(block).splitlines()
        out |= {first + k: from_json(line.decode()) for k, line in enumerate(lines) if first + k in wanted}
        first += len(lines)
    return out


def _meanings(
    config: BuildConfig,
    items: list[balance.Item],
    chosen: dict[str, list[int]],
    records: dict[int, Record],
    identity: str,
    mapper: Mapper,
    say: Say,
) -> tuple[dict[str, list[int]], int, dict[int, float]]:
    """Drop repeats by meaning from the chosen rows, then choose again to the exact quotas."""
    from world_r1_prompts.embed import nearest, repeats

    rows = [row for part in chosen.values() for row in part]
    texts = [records[items[row].index].base for row in rows]
    size = 256
    parts = [texts[start : start + size] for start in range(0, len(texts), size)]
    about = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    stage = store.Stage(config.work, "6-embed", store.key(identity, about), len(parts), ".npy")
    inputs = {block: json.dumps(part).encode() for block, part in enumerate(parts)}
    for done, (block, content) in enumerate(mapper(Embed(), ((block, inputs[block]) for block in stage.missing)), 1):
        stage.put(block, content)
        say(f"6-embed: {done} of {len(parts)} blocks")
    vectors = dict(zip(rows, np.concatenate([_from_bytes(stage.get(block)) for block in range(stage.blocks)]), strict=True))
    final: dict[str, list[int]] = {}
    dropped = 0
    for name, part in chosen.items():
        own = np.stack([vectors[row] for row in part])
        gone = repeats(own, config.dedup.cosine)
        if "test" in final and name != "test":
            across = nearest(own, np.stack([vectors[row] for row in final["test"]]))
            gone |= {k for k, value in enumerate(across) if value >= config.dedup.cosine_across_splits}
        dropped += len(gone)
        left = [row for k, row in enumerate(part) if k not in gone]
        split = config.splits[name]  # type: ignore[index]
        final[name] = [left[k] for k in balance.select([items[row] for row in left], split, split.count)]
    close: dict[int, float] = {}
    for part in final.values():
        own = np.stack([vectors[row] for row in part])
        close |= {items[row].index: round(float(v), 3) for row, v in zip(part, nearest(own, own, same=True), strict=True)}
    return final, dropped, close


def _named(split: str, items: list[balance.Item], records: dict[int, Record], nearest: dict[int, float]) -> list[Record]:
    """The records of a split with their final ids; the order of choice is kept, so that every beginning of the file is balanced."""
    out = []
    for number, item in enumerate(items):
        record = records[item.index]
        quality = dict(record.quality) | ({"nearest": nearest[item.index]} if item.index in nearest else {})
        out.append(record.having(id=f"{split}-{number:06d}", split=split, quality=quality))
    return out


def _verify(config: BuildConfig, splits: dict[str, list[Record]]) -> dict[str, dict[str, float]]:
    """How far every move is from its quota; ValueError if a split is short or a move is off by more than the tolerance."""
    off: dict[str, dict[str, float]] = {}
    for name, records in splits.items():
        split = config.splits[name]  # type: ignore[index]
        if len(records) < split.count:
            more = "write more scenes" if config.source == "written" else f"raise candidates (now {config.candidates})"
            raise ValueError(f"split {name} has {len(records)} of {split.count} prompts; {more}")
        counts = Counter(move for record in records for move in moves_of(record.camera))
        off[name] = {move: round(value, 3) for move, value in balance.off_quota(counts, split.moves).items()}
        # A share of n moves cannot be met more finely than one move.
        grain = {
            move: sum(split.moves.values()) / (weight * sum(counts.values())) for move, weight in split.moves.items() if weight
        }
        worst = max(off[name], key=lambda move: abs(off[name][move]) - grain[move])
        if abs(off[name][worst]) > config.tolerance + grain[worst]:
            raise ValueError(
                f"split {name}: {worst!r} is {off[name][worst]:+.0%} off its quota (tolerance {config.tolerance:.0%}); raise candidates or "
                f"change splits.{name}.moves"
            )
    return off


def _records(content: bytes) -> list[Record]:
    return [from_json(line.decode()) for line in content.splitlines()]


def _to_bytes(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _from_bytes(content: bytes) -> np.ndarray:
    return np.asarray(np.load(io.BytesIO(content), allow_pickle=False))


def _code(*folders: str) -> str:
    """A hash of the texts and the code in `folders`: another grammar, another set of candidates."""
    root = resources.files("world_r1_prompts")
    digest = hashlib.sha256()
    for folder in folders:
        for file in sorted((root / folder).iterdir(), key=lambda file: file.name):
            if Path(file.name).suffix in (".py", ".txt"):
                digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()
