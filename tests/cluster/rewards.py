"""Rewards for tests of the loop; named in configurations as "tests.cluster.rewards:Class"."""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from world_r1.reward import Degenerate, Reward
from world_r1.types import Clip, Score


class Brightness(Reward):
    """Mean of the frames; a real number that differs between videos and that the policy can raise."""

    name: ClassVar[str] = "tests.cluster.rewards:Brightness"

    def score(self, clip: Clip, evidence: Mapping[str, Any]) -> Score:
        return self.ok(float(evidence["frames"].mean()) / 255.0, red=float(evidence["frames"][..., 0].mean()) / 255.0)


class Fingerprint(Reward):
    """A number that belongs to one video only, given after a jittered time."""

    name: ClassVar[str] = "tests.cluster.rewards:Fingerprint"

    def score(self, clip: Clip, evidence: Mapping[str, Any]) -> Score:
        value = fingerprint(clip)
        time.sleep(0.03 * (value % 7))
        return self.ok(value)


class Fatal(Reward):
    """Kills its process the first `deaths` times that it meets a clip whose id ends in `suffix`; counts in a file."""

    name: ClassVar[str] = "tests.cluster.rewards:Fatal"

    def __init__(self, counter: str, suffix: str, deaths: int) -> None:
        self.counter, self.suffix, self.deaths = Path(counter), suffix, deaths

    def score(self, clip: Clip, evidence: Mapping[str, Any]) -> Score:
        if clip.id.endswith(self.suffix):
            died = self.counter.stat().st_size if self.counter.exists() else 0
            if died < self.deaths:
                with open(self.counter, "ab") as file:
                    file.write(b"x")
                time.sleep(0.5)  # answers given before are on their way, and one that is lost with its sender is asked for again
                os._exit(1)
        return self.ok(fingerprint(clip))


class Slow(Reward):
    """Sleeps on clips whose id ends in `suffix`."""

    name: ClassVar[str] = "tests.cluster.rewards:Slow"

    def __init__(self, suffix: str, seconds: float) -> None:
        self.suffix, self.seconds = suffix, seconds

    def score(self, clip: Clip, evidence: Mapping[str, Any]) -> Score:
        if clip.id.endswith(self.suffix):
            time.sleep(self.seconds)
        return self.ok(fingerprint(clip))


class Told(Reward):
    """Takes as many seconds a clip as `file` says at that time."""

    name: ClassVar[str] = "tests.cluster.rewards:Told"

    def __init__(self, file: str) -> None:
        self.file = Path(file)

    def score(self, clip: Clip, evidence: Mapping[str, Any]) -> Score:
        time.sleep(float(self.file.read_text(encoding="utf-8")))
        return self.ok(fingerprint(clip))


class Refuses(Reward):
    """Degenerate for the share of clips whose id ends in one of `suffixes`."""

    name: ClassVar[str] = "tests.cluster.rewards:Refuses"

    def __init__(self, suffixes: list[str]) -> None:
        self.suffixes = tuple(suffixes)

    def score(self, clip: Clip, evidence: Mapping[str, Any]) -> Score:
        if clip.id.endswith(self.suffixes):
            raise Degenerate("refused by the test")
        return self.ok(float(evidence["frames"].mean()) / 255.0)


def fingerprint(clip: Clip) -> float:
    """A number of the pixels and the id."""
    return float(zlib.crc32(clip.video.tobytes() + clip.id.encode()) % 100_003)


class Jittered(Reward):
    """`fingerprint` after 0 to 2 ms, whatever the order of arrival."""

    name: ClassVar[str] = "tests.cluster.rewards:Jittered"

    def score(self, clip: Clip, evidence: Mapping[str, Any]) -> Score:
        value = fingerprint(clip)
        time.sleep((value % 5) * 0.0005)
        return self.ok(value)


class Sick(Reward):
    """On clips whose id ends in `suffix`: NaN, or MemoryError, the first `times` times in all; counts in a file."""

    name: ClassVar[str] = "tests.cluster.rewards:Sick"

    def __init__(self, counter: str, suffix: str, times: int, how: str) -> None:
        self.counter, self.suffix, self.times, self.how = Path(counter), suffix, times, how

    def score(self, clip: Clip, evidence: Mapping[str, Any]) -> Score:
        if clip.id.endswith(self.suffix):
            before = self.counter.stat().st_size if self.counter.exists() else 0
            if before < self.times:
                with open(self.counter, "ab") as file:
                    file.write(b"x")
                if self.how == "memory":
                    raise MemoryError("no room for the reconstruction")
                return self.ok(float(self.how))
        return self.ok(fingerprint(clip))


class Environment(Reward):
    """1 if the worker's environment variable WORLD_R1_TEST says "pool", else 0."""

    name: ClassVar[str] = "tests.cluster.rewards:Environment"

    def score(self, clip: Clip, evidence: Mapping[str, Any]) -> Score:
        return self.ok(float(os.environ.get("WORLD_R1_TEST") == "pool"))


class Boasts(Reward):
    """Claims to tell the rigid room from the swim, and scores both alike."""

    name: ClassVar[str] = "tests.cluster.rewards:Boasts"
    rigid_wins: ClassVar[float] = 0.1

    def score(self, clip: Clip, evidence: Mapping[str, Any]) -> Score:
        return self.ok(0.5)


class Visible(Reward):
    """1 if the worker may see a GPU, else 0."""

    name: ClassVar[str] = "tests.cluster.rewards:Visible"

    def score(self, clip: Clip, evidence: Mapping[str, Any]) -> Score:
        return self.ok(float(bool(os.environ.get("CUDA_VISIBLE_DEVICES", ""))))
