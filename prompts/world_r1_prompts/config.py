"""The configuration of a build: a YAML file, checked before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from world_r1_prompts.record import CATEGORIES

#: Share of each move among all moves of a split, before it is scaled to sum 1 over the moves that are asked for.
MOVES = {
    "push in": 11.0, "pull out": 9.0, "orbit left": 9.5, "orbit right": 9.5, "move left": 7.0, "move right": 7.0, "pan left": 8.0,
    "pan right": 8.0, "tilt up": 5.5, "tilt down": 4.0, "move up": 5.0, "move down": 4.0, "arc up": 1.5, "arc down": 1.5,
    "crane up": 1.2, "crane down": 1.2, "zoom in": 1.8, "zoom out": 1.3, "roll left": 0.8, "roll right": 0.8,
}  # fmt: skip
DIFFICULTIES = {"single": 0.46, "together": 0.16, "pair": 0.29, "triple": 0.09}


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Split(_Section):
    """How many prompts a split gets and how they are spread."""

    count: int = Field(ge=1)
    #: Weight of each category.
    categories: dict[str, float]
    #: Weight of each camera difficulty: single, together, pair, triple, still.
    difficulties: dict[str, float] = DIFFICULTIES
    #: Weight of each move among all moves.
    moves: dict[str, float] = MOVES


class Dedup(_Section):
    #: Word shingles, hash functions and the estimated Jaccard similarity from which the later of two candidates is dropped.
    shingle: int = Field(3, ge=1)
    permutations: int = Field(128, ge=32, multiple_of=4)
    jaccard: float = Field(0.5, gt=0, lt=1)
    #: The same between a training and a test prompt.
    across_splits: float = Field(0.35, gt=0, lt=1)
    #: "minilm" compares meanings as well (extra `prompts`); "none" does not.
    embeddings: Literal["none", "minilm"] = "none"
    #: Cosine from which two selected prompts are one too many.
    cosine: float = Field(0.93, gt=0, lt=1)
    #: The same between a training and a test prompt.
    cosine_across_splits: float = Field(0.9, gt=0, lt=1)


class Words(_Section):
    least: int = Field(18, ge=1)
    most: int = Field(120, ge=1)


class Enhance(_Section):
    """Who rewrites scenes to 80-120 words: an OpenAI-compatible endpoint, or a local transformers model."""

    endpoint: str = ""
    model: str
    #: Name of the environment variable that holds the key; never the key itself.
    key_variable: str = "OPENAI_API_KEY"
    temperature: float = Field(0.9, ge=0)
    attempts: int = Field(3, ge=1)
    least: int = Field(80, ge=1)
    most: int = Field(120, ge=1)


class BuildConfig(_Section):
    """A whole build. Same configuration and seed, same files."""

    name: str
    seed: int = 0
    #: "grammar": composed of hand-written sentences, as many as `candidates`; "written": scenes written whole, all of the package's.
    source: Literal["grammar", "written"] = "grammar"
    candidates: int = Field(0, ge=0)
    #: Where finished stages are kept, so that an interrupted build continues.
    work: Path
    #: Where the data set goes.
    out: Path
    #: Candidates a task.
    block: int = Field(2000, ge=1)
    #: Weight of each category among the candidates.
    categories: dict[str, float] = dict.fromkeys(CATEGORIES, 1.0)
    splits: dict[Literal["train", "dynamic", "test"], Split]
    words: Words = Words()
    dedup: Dedup = Dedup()
    #: A split is short, or a move is off its quota by more than this share: the build says so and fails.
    tolerance: float = Field(0.1, gt=0)
    enhance: Enhance | None = None


def load(path: Path) -> BuildConfig:
    """Read a configuration; ValueError that names the field and what is wrong with it."""
    try:
        entry: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(entry, dict):
        raise ValueError(f"{path}: expected a mapping of settings, got {type(entry).__name__}")
    try:
        config = BuildConfig.model_validate(entry)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{path}: {where}: {first['msg']}, got {first['input']!r}") from error
    if (config.source == "grammar") != (config.candidates > 0):
        raise ValueError(
            f"{path}: candidates: got {config.candidates}; the grammar needs a positive number, and written scenes are taken as they are "
            "(leave it out)"
        )
    for name, weights in (
        ("categories", config.categories),
        *((f"splits.{k}.categories", v.categories) for k, v in config.splits.items()),
    ):
        if unknown := sorted(set(weights) - set(CATEGORIES)):
            raise ValueError(f"{path}: {name}: unknown category {unknown[0]!r}; known are {', '.join(CATEGORIES)}")
    for name, split in config.splits.items():
        if unknown := sorted(set(split.moves) - set(MOVES) - {"fixed"}):
            raise ValueError(f"{path}: splits.{name}.moves: unknown move {unknown[0]!r}; known are {', '.join(MOVES)}")
        if unknown := sorted(set(split.difficulties) - {*DIFFICULTIES, "still"}):
            raise ValueError(
                f"{path}: splits.{name}.difficulties: unknown {unknown[0]!r}; known are {', '.join(DIFFICULTIES)}, still"
            )
    return config
