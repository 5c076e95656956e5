"""What goes to a worker and what comes back, each with an id and a hash of its content, and the check that they belong together."""

from __future__ import annotations

import hashlib
import itertools
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np

from world_r1.config import RewardsConfig
from world_r1.types import Clip, Kind, Score, Verdict

#: What may be wrong with an answer: "memory" and "nan" cast doubt on the worker, "error" is the clip's or the plug-in's own.
Trouble = Literal["", "memory", "nan", "error"]


class Crossed(RuntimeError):
    """An answer that belongs to another request: must never happen, and is never delivered."""


class Busy(RuntimeError):
    """A pool whose queue is full; `after` is the number of seconds to wait before another try."""

    def __init__(self, message: str, after: float) -> None:
        super().__init__(message, after)
        self.after = after

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class Item:
    """One clip to score. `block` holds it: a reference to a list of `Clip` (or the list), of which it is number `index`.

    Example: `Item(request="5d1e0c-17", id="s3-p1-k0", hash="9f2c...", kind="rigid", block=<ref to 8 clips>, index=0)`
    """

    #: Names this request; no other has the same, whoever sends it.
    request: str
    #: `Clip.id`, which two senders may give twice.
    id: str
    #: `content_hash` of the clip, or "" where the sender does not know it.
    hash: str
    kind: Kind
    block: Any
    index: int


@dataclass(frozen=True)
class Answer:
    """A worker's verdict on one item, with the hash of the clip that it looked at.

    Example: `Answer(request="5d1e0c-17", hash="9f2c...", verdict=Verdict(...), trouble="")`
    """

    request: str
    hash: str
    verdict: Verdict
    trouble: Trouble = ""


@dataclass(frozen=True)
class Report:
    """A worker's answers to one call, and the bytes that its process and its GPU memory pool hold.

    Example: `Report(answers=(Answer(...), Answer(...)), memory=812e6, gpu_memory=0.0)`
    """

    answers: tuple[Answer, ...]
    memory: float = 0.0
    gpu_memory: float = 0.0


def content_hash(clip: Clip) -> str:
    """SHA-256 (first 32 hex digits) of all that a score may depend on: pixels, prompt, trajectory, frame rate. Not of the id.

    About 0.5 ms for 17x96x160 on a core with SHA instructions.
    """
    digest = hashlib.sha256()
    prompt = clip.prompt
    digest.update(repr((clip.video.shape, prompt.id, prompt.text, prompt.kind, float(clip.fps))).encode())
    digest.update(np.ascontiguousarray(clip.video).data)
    for part in fields(clip.trajectory) if clip.trajectory is not None else ():
        value = getattr(clip.trajectory, part.name)
        digest.update(f"{part.name}:".encode())
        if isinstance(value, np.ndarray):
            digest.update(f"{value.shape}{value.dtype}".encode() + np.ascontiguousarray(value).tobytes())
        else:
            digest.update(repr(value).encode())
    return digest.hexdigest()[:32]


def matched(answers: Sequence[Answer], items: Sequence[Item]) -> list[Answer]:
    """Answers in the order of `items`; raises `Crossed` unless they are exactly those items' answers, of the same content."""
    found = {answer.request: answer for answer in answers}
    if len(answers) != len(items) or found.keys() != {item.request for item in items}:
        raise Crossed(f"asked for verdicts on {[item.request for item in items]}, got {[answer.request for answer in answers]}")
    for item in items:
        answer = found[item.request]
        if answer.verdict.clip != item.id or answer.hash != item.hash:
            raise Crossed(f"the answer for {item.id} ({item.hash}) is a verdict on {answer.verdict.clip} ({answer.hash})")
    return [found[item.request] for item in items]


def requests() -> Iterator[str]:
    """Names for requests, different from those of any other process and any other call. `next` is safe from many threads, as that of a
    generator is not."""
    return map(f"{uuid.uuid4().hex[:12]}-{{}}".format, itertools.count())


def missing(config: RewardsConfig, name: str, kind: Kind, reason: str) -> Verdict:
    """Verdict on a clip that nobody could judge: every reward that counts has status "failed" and no value."""
    counted = [entry.key for entry in config.rewards if entry.weight > 0 and entry.phase in ("all", kind)]
    return Verdict(name, None, tuple(Score(reward, "failed", None, {}, reason) for reward in counted))
