"""The worker actor: holds the rubric and scores what it is handed, one batch at a time."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import ray

from world_r1.config import RewardsConfig
from world_r1.serving.items import Answer, Report, Trouble, content_hash
from world_r1.types import Clip, NotFinite


class Worker:
    """Runs the rubric on clips; holds no state between calls."""

    def __init__(self, config: RewardsConfig, threads: int = 1) -> None:
        self.config = config
        self.threads = threads
        self.rubric: Any = None

    def setup(self) -> dict[str, Any]:
        """Build the rubric; returns what `describe` says. A worker without a share of a GPU does not see one."""
        if not ray.get_gpu_ids():
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        from world_r1.reward import Rubric

        self.rubric = Rubric(self.config)
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(self.threads)
        if "cv2" in sys.modules:
            sys.modules["cv2"].setNumThreads(self.threads)
        return self.describe()

    def describe(self) -> dict[str, Any]:
        """Process, node, GPUs, rewards, what they claim (`reward_check.claims`) and versions."""
        from world_r1.reward_check import claims

        packages = {name for plugin in self._plugins() for name in plugin.packages}
        context = ray.get_runtime_context()
        return {
            "pid": os.getpid(),
            "node": context.get_node_id(),
            "gpus": [str(gpu) for gpu in ray.get_gpu_ids()],
            "rewards": [entry.key for entry, _ in self.rubric.rewards],
            "claims": claims(self.rubric),
            "memory": resident(),
            "versions": versions(packages),
        }

    def pid(self) -> int:
        """Id of this process."""
        return os.getpid()

    def judge(self, asks: Sequence[tuple[str, str, str, int, int]], *blocks: Sequence[Clip]) -> Report:
        """Score one batch. An ask is (request, clip id, hash, number of the block, number in the block).

        ValueError for a clip of another id, or of another hash where the sender knows the hash: it is not scored.
        """
        clips, hashes = [], []
        for _, name, known, block, index in asks:
            clip = blocks[block][index]
            found = content_hash(clip) if known else ""
            if clip.id != name or found != known:
                raise ValueError(f"asked for {name} ({known or 'no hash'}), found {clip.id} ({found or 'no hash'})")
            clips.append(clip)
            hashes.append(found)
        examined = self.rubric.examine(clips)
        answers = [
            Answer(ask[0], found, verdict, trouble_of(errors))
            for ask, found, (verdict, errors) in zip(asks, hashes, examined, strict=True)
        ]
        return Report(tuple(answers), resident(), gpu_reserved())

    def _plugins(self) -> list[Any]:
        return [*self.rubric.probes.values(), *(reward for _, reward in self.rubric.rewards)]


def trouble_of(errors: Sequence[BaseException]) -> Trouble:
    """The gravest of the exceptions behind a verdict: memory before NaN before anything else that is not the clip's fault."""
    from world_r1.reward import Degenerate

    if any(isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" for error in errors):
        return "memory"
    if any(isinstance(error, NotFinite) for error in errors):
        return "nan"
    return "error" if any(not isinstance(error, Degenerate) for error in errors) else ""


def versions(packages: set[str] | frozenset[str] = frozenset()) -> dict[str, str]:
    """Versions of Python, of this project and its main dependencies, and of the packages that plug-ins name."""
    found = {"python": platform.python_version()}
    for name in ("world-r1", "torch", "numpy", "ray", *sorted(packages)):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # a module whose distribution has another name
            found[name] = str(getattr(sys.modules.get(name), "__version__", "unknown"))
    return found


def resident() -> float:
    """Bytes of memory that this process holds (Linux; elsewhere the most that it has held)."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return float(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1.0 if sys.platform == "darwin" else 1024.0)


def gpu_reserved() -> float:
    """Bytes of GPU memory that torch holds in this process; 0 without a GPU."""
    torch = sys.modules.get("torch")
    return float(torch.cuda.memory_reserved()) if torch is not None and torch.cuda.is_initialized() else 0.0
