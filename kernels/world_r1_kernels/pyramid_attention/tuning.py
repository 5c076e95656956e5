"""Tile shapes of the kernels: defaults, candidates, and a checked-in table of the fastest per device.

The table is fixed at run time, so that a rollout and its training steps add in the same order. `world-r1 bench attention --tune` fills it;
a candidate must first agree with the reference on the device. None is warp specialised: Triton 3.6's specialised loop is right whenever it
has the GPU to itself and now and then leaves blocks of garbage where processes take turns on it (LOG.md).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

TABLE = Path(__file__).with_name("tuned.json")


@dataclass(frozen=True)
class ForwardSettings:
    """Shape of the forward kernel's work."""

    rows: int = 128
    """Queries of one program."""
    tile: int = 64
    """Keys of one step over full blocks."""
    pooled_tile: int = 64
    """Rest tokens of one step."""
    warps: int = 8
    stages: int = 3
    tma: bool = True
    split: bool = False
    """Full blocks and the other parts as two launches."""
    pooled_warps: int = 8
    """Warps of the second launch, with `split`."""
    pooled_rows: int = 128
    """Queries of one program of the second launch, with `split`."""
    late: bool = False
    """A step's product with the values overlaps the next step's exponentials, see `triton._full_blocks_late`."""

    def for_block(self, block: int) -> ForwardSettings:
        """The same, for smaller blocks than the 128 they were found with: tiles of 64 rows, which four warps share."""
        return self if block >= 128 else replace(self, warps=min(self.warps, 4), pooled_warps=4)


@dataclass(frozen=True)
class BackwardSettings:
    """Shapes of the backward kernels' work: dQ (q_*), dK and dV of full blocks (k_*), of pooled ones (pooled_*, rest_*)."""

    q_rows: int = 128
    q_tile: int = 64
    q_warps: int = 8
    k_rows: int = 64
    k_tile: int = 64
    k_warps: int = 8
    pooled_tile: int = 64
    pooled_warps: int = 8
    rest_tile: int = 128
    splits: int = 16
    q_stages: int = 2
    k_stages: int = 2
    pooled_stages: int = 2
    tma: bool = True
    q_rest_tile: int = 64
    """Rest tokens of one step of dQ; as many as a full block's keys would not fit into the registers beside the correction."""
    q_late: bool = False
    """dS K overlaps the next step's dS; needs `tma`."""
    k_late: bool = True
    """dV overlaps the same step's dS."""

    def for_block(self, block: int) -> BackwardSettings:
        """As for the forward."""
        return self if block >= 128 else replace(self, q_warps=4, k_warps=4, pooled_warps=4)


#: What `world-r1 bench attention --tune` tries, most promising first.
FORWARD_CANDIDATES = (
    ForwardSettings(128, 64, 64, 4, 2, split=True, pooled_rows=64, pooled_warps=4),
    ForwardSettings(128, 128, 64, 8, 2, split=True, late=True, pooled_rows=64, pooled_warps=4),
    ForwardSettings(128, 128, 128, 8, 2),
    ForwardSettings(128, 64, 64, 8, 4, late=True),
    ForwardSettings(128, 64, 64, 4, 3, split=True, pooled_rows=64, pooled_warps=4),
    ForwardSettings(64, 64, 64, 4, 2, split=True, pooled_rows=64, pooled_warps=4),
    ForwardSettings(128, 128, 64, 8, 2, split=True, pooled_rows=64, pooled_warps=4),
    ForwardSettings(128, 128, 128, 8, 2, late=True),
    ForwardSettings(128, 64, 64, 8, 3, late=True),
    ForwardSettings(64, 64, 64, 4, 2, late=True),
)
#: The backward's three parts do not depend on each other's shapes and are tuned one by one.
BACKWARD_CANDIDATES: dict[str, tuple[dict[str, int], ...]] = {
    "dq": tuple(
        {"q_rows": rows, "q_tile": tile, "q_warps": warps, "q_stages": stages, "q_late": late}
        for rows, tile, warps, stages, late in (
            (128, 128, 8, 2, False),
            (128, 64, 8, 3, True),
            (128, 64, 8, 2, False),
            (128, 64, 8, 2, True),
            (128, 64, 8, 3, False),
        )
    ),
    "dkv": tuple(
        {"k_rows": rows, "k_tile": tile, "k_warps": warps, "k_stages": stages, "k_late": late}
        for rows, tile, warps, stages, late in (
            (64, 64, 4, 2, True),
            (128, 64, 8, 2, True),
            (128, 64, 8, 3, True),
            (64, 64, 4, 2, False),
            (128, 32, 8, 3, True),
            (128, 64, 8, 2, False),
            (64, 32, 4, 3, True),
        )
    ),
    "pooled": tuple(
        {"pooled_tile": tile, "pooled_warps": warps, "rest_tile": rest, "splits": splits, "pooled_stages": stages}
        for rest, tile, warps, splits, stages in (
            (64, 32, 4, 16, 3),
            (128, 32, 8, 16, 3),
            (64, 64, 4, 16, 2),
            (64, 32, 4, 32, 3),
        )
    ),
}


def forward_settings(device: torch.device, width: int) -> ForwardSettings:
    """Settings of the forward kernel for head width `width` on `device`."""
    found = table().get(key(device), {}).get(f"forward-{width}")
    if found:
        return ForwardSettings(**found)
    return ForwardSettings(tma=has_tma(device))


def backward_settings(device: torch.device, width: int) -> BackwardSettings:
    """Settings of the backward kernels for head width `width` on `device`."""
    found = table().get(key(device), {}).get(f"backward-{width}")
    return BackwardSettings(**found) if found else BackwardSettings(tma=has_tma(device))


def has_tma(device: torch.device) -> bool:
    """Whether a device has the tensor memory accelerator (compute capability 9 and up)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 9


def key(device: torch.device) -> str:
    """Name of a device in the table: its compute capability; the interpreter is "cpu"."""
    if device.type != "cuda":
        return device.type
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


@lru_cache(maxsize=1)
def table() -> dict[str, dict[str, dict[str, Any]]]:
    """Device -> "forward-128" -> settings."""
    return json.loads(TABLE.read_text(encoding="utf-8")) if TABLE.is_file() else {}


def record(device: torch.device, name: str, settings: ForwardSettings | BackwardSettings) -> None:
    """Write one device's choice into the table."""
    content = {device_name: dict(entry) for device_name, entry in table().items()}
    content.setdefault(key(device), {})[name] = asdict(settings)
    TABLE.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    table.cache_clear()


def keep_copy(folder: Path) -> None:
    """A copy of the table in `folder`, where there is a table."""
    if TABLE.is_file():
        (folder / TABLE.name).write_text(TABLE.read_text(encoding="utf-8"), encoding="utf-8")
