"""The shapes that are measured, and what a result says about the machine."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Shape:
    """One layer's self-attention."""

    name: str
    batch: int
    heads: int
    tokens: int
    width: int
    grid: tuple[int, int, int] | None = None
    """Latent grid (T, H, W) in tokens, where all tokens are video."""

    @property
    def pairs(self) -> int:
        """Query-key pairs of dense attention."""
        return self.batch * self.heads * self.tokens**2


SHAPES = (
    Shape("Wan-1.3B 480p", 1, 12, 32760, 128, (21, 30, 52)),
    Shape("Wan-14B 480p", 1, 40, 32760, 128, (21, 30, 52)),
    Shape("Wan-14B 720p", 1, 40, 75600, 128, (21, 45, 80)),
    Shape("CogVideoX-5B", 1, 48, 17776, 64),
)
DENSITIES = (0.05, 0.10, 0.15, 0.20, 0.30)
#: (density, tokens behind a rest token) of every row. A rest token costs 1/rest of the density, and full blocks run faster.
ROWS = ((0.05, 128), (0.10, 128), (0.10, 64), (0.15, 128), (0.15, 64), (0.20, 64), (0.30, 32), (0.70, 128))
#: The rows that the bars are about.
QUICK_GPU: dict[str, tuple[tuple[float, int], ...]] = {
    "Wan-1.3B 480p": ((0.10, 128), (0.15, 128), (0.70, 128)),
    "Wan-14B 720p": ((0.10, 128),),
}
#: For the interpreter: one short last block, several blocks.
QUICK_CPU = (Shape("smoke", 1, 1, 300, 64),)


def machine(device: torch.device) -> dict[str, Any]:
    """Machine, driver, torch, triton and commit, for every result file."""
    try:
        import triton

        triton_version = triton.__version__
    except ImportError:
        triton_version = None
    gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if gpu else f"{platform.machine()} CPU, {os.cpu_count()} cores",
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").split("\n")[0] if gpu else None,
        "torch": torch.__version__,
        "triton": triton_version,
        "commit": commit(),
        "changed": "WORLD_R1_COMMIT" not in os.environ and bool(_git("status", "--porcelain", "--untracked-files=no")),
    }


def commit() -> str | None:
    """The checkout's commit; where the code came as an archive, without its history, what the variable WORLD_R1_COMMIT says."""
    return os.environ.get("WORLD_R1_COMMIT") or _git("rev-parse", "--short=12", "HEAD") or None


def _git(*arguments: str) -> str:
    return _output("git", "-C", str(Path(__file__).parent), *arguments)


def _output(*command: str) -> str:
    """Standard output of a command, "" where it cannot run."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def results_folder() -> Path:
    """kernels/bench/results of a checkout; elsewhere the current directory."""
    folder = Path(__file__).parents[2] / "bench" / "results"
    return folder if folder.parent.is_dir() else Path.cwd()
