"""Prompts: where they are read from, and which of them a step uses.

Both answers are pure functions. The prompts of a step follow from (run seed, step) alone, so a resumed run needs no iterator state
and the order does not depend on how many processes there are.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from world_r1.config import Config, PhasesConfig
from world_r1.types import Kind, Prompt

_FIELDS = ("id", "text", "kind", "attributes")
#: Further fields of a curated record (`world_r1_prompts.record.Record`), which become attributes.
_CURATED = ("split", "category", "subcategory", "base", "camera", "source", "licence", "generator", "quality")
_CURATED_SPLITS = ("train", "dynamic", "test")


def load_prompts(source: str, kind: Kind = "rigid") -> list[Prompt]:
    """Prompts of a text file (one a line), a JSONL file ({"text": ..., "id", "kind", "attributes"}), or a named set.

    Named sets: "blockworld:SPLIT:COUNT" (scenes that the embedded world can render) and "world:SPLIT:COUNT" (the shipped text-only set;
    train, dynamic or test; "world:train" is all of it). Any beginning of the shipped set is balanced. A JSONL file may also hold curated
    records as `world-r1 prompts build` writes them; their further fields become attributes. `kind` is the kind of prompts that do not say
    their own. Blank lines are skipped; ids default to "<file>-<line>". Raises ValueError, with the line number, for a missing, empty or
    malformed source or an id that occurs twice.
    """
    if source.startswith("blockworld:"):
        return _generated(source)
    if source.startswith("world:"):
        return _shipped(source)
    path = Path(source)
    if not path.is_file():
        raise ValueError(f'no prompt file at {source}; give a text or JSONL file, "blockworld:SPLIT:COUNT" or "world:SPLIT:COUNT"')
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{source} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from error
    read = _from_json if path.suffix in (".jsonl", ".json") else _from_text
    prompts = [read(line, f"{path.stem}-{n:06d}", kind, f"{source}:{n}") for n, line in enumerate(lines, 1) if line.strip()]
    if not prompts:
        raise ValueError(f"{source} holds no prompts; write one a line")
    seen: dict[str, int] = {}
    for n, prompt in enumerate(prompts, 1):
        if prompt.id in seen:
            raise ValueError(f"{source}: id {prompt.id!r} occurs twice (prompts {seen[prompt.id]} and {n}); ids must be unique")
        seen[prompt.id] = n
    return prompts


def _generated(source: str) -> list[Prompt]:
    from world_r1.blockworld import prompts as blockworld

    _, split, count = [*source.split(":"), "", ""][:3]
    if source.count(":") != 2 or not count.isdigit() or int(count) < 1:
        raise ValueError(
            f'generated prompts are written "blockworld:SPLIT:COUNT", for example blockworld:train:2000; got {source!r}'
        )
    return blockworld.prompts(split, int(count))


def _shipped(source: str) -> list[Prompt]:
    """The first COUNT prompts of a split of the shipped set."""
    _, split, count = [*source.split(":"), "", ""][:3]
    if split not in _CURATED_SPLITS or source.count(":") > 2 or (count and (not count.isdigit() or int(count) < 1)):
        raise ValueError(
            f'shipped prompts are written "world:SPLIT" or "world:SPLIT:COUNT" with SPLIT one of {", ".join(_CURATED_SPLITS)}, for '
            f"example world:train:3000; got {source!r}"
        )
    from importlib import resources

    file = resources.files("world_r1_prompts") / "data" / f"{split}.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines()
    if count and int(count) > len(lines):
        raise ValueError(f"{source}: the shipped set has {len(lines)} prompts in {split}; ask for at most so many")
    return [_from_json(line, "", "rigid", f"{split}.jsonl:{n}") for n, line in enumerate(lines[: int(count or len(lines))], 1)]


def _from_text(line: str, name: str, kind: Kind, where: str) -> Prompt:
    return Prompt(name, line.strip(), kind)


def _from_json(line: str, name: str, kind: Kind, where: str) -> Prompt:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f'{where}: not a JSON object ({error.msg}); every line must be like {{"text": "..."}}') from error
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: expected a JSON object, got {type(entry).__name__}")
    curated = {key: entry.pop(key) for key in _CURATED if key in entry} if set(_CURATED) <= set(entry) else {}
    if unknown := sorted(set(entry) - set(_FIELDS)):
        raise ValueError(f"{where}: unknown field {unknown[0]!r}; known: {', '.join(_FIELDS)}")
    text, own_kind, attributes = entry.get("text"), entry.get("kind", kind), entry.get("attributes", {})
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f'{where}: "text" must be a non-empty string, got {text!r}')
    if own_kind not in get_args(Kind):
        raise ValueError(f'{where}: "kind" must be one of {", ".join(get_args(Kind))}, got {own_kind!r}')
    if not isinstance(attributes, dict):
        raise ValueError(f'{where}: "attributes" must be an object, got {attributes!r}')
    return Prompt(str(entry.get("id", name)), text.strip(), own_kind, curated | attributes)


def phase_at(step: int, config: PhasesConfig) -> Kind:
    """The phase of a loop step: `rigid_steps` rigid ones, then `dynamic_steps` dynamic ones, and again (World-R1, section 3)."""
    return "rigid" if step % (config.rigid_steps + config.dynamic_steps) < config.rigid_steps else "dynamic"


def steps_before(step: int, config: PhasesConfig) -> dict[Kind, int]:
    """How many of the steps 0..step-1 were in each phase."""
    cycles, rest = divmod(step, config.rigid_steps + config.dynamic_steps)
    rigid = cycles * config.rigid_steps + min(rest, config.rigid_steps)
    return {"rigid": rigid, "dynamic": step - rigid}


@dataclass(frozen=True)
class PromptStream:
    """The prompts of every step: per phase, shuffled epochs without replacement, one continuing where the other left off.

    Example: `PromptStream.of(config).at(step=12)` is the tuple of that step's `groups` prompts.
    """

    sets: dict[Kind, Sequence[Prompt]]
    groups: int
    seed: int
    phases: PhasesConfig

    @classmethod
    def of(cls, config: Config) -> PromptStream:
        """Loads the sources that the configuration names; ValueError for a dynamic phase without dynamic prompts."""
        sets: dict[Kind, Sequence[Prompt]] = {"rigid": load_prompts(config.prompts.train)}
        if config.phases.dynamic_steps > 0:
            if config.prompts.dynamic is None:
                raise ValueError("phases.dynamic_steps > 0 needs prompts.dynamic; name a source or set dynamic_steps to 0")
            sets["dynamic"] = load_prompts(config.prompts.dynamic, kind="dynamic")
        return cls(sets, config.prompts.groups, config.seed, config.phases)

    def at(self, step: int) -> tuple[Prompt, ...]:
        """The prompts of a loop step, one a group."""
        kind = phase_at(step, self.phases)
        first = steps_before(step, self.phases)[kind] * self.groups
        return tuple(self._nth(kind, n) for n in range(first, first + self.groups))

    def _nth(self, kind: Kind, n: int) -> Prompt:
        prompts = self.sets[kind]
        epoch, position = divmod(n, len(prompts))
        return prompts[_order(len(prompts), self.seed, kind, epoch)[position]]


def _order(count: int, seed: int, kind: Kind, epoch: int) -> np.ndarray:
    """The shuffle of one epoch: ranks of random keys, which stay the same in every numpy version (permutation() need not)."""
    key: list[Any] = [seed, ["rigid", "dynamic"].index(kind), epoch]
    return np.argsort(np.random.Generator(np.random.Philox(np.random.SeedSequence(key))).random(count), kind="stable")
