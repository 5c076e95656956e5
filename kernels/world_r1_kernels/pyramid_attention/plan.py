"""A plan: at which resolution every query block sees every key block.

The plan is data, not code. It is drawn once, without gradient and without random numbers, and can be saved, hashed and replayed, so that
a rollout and the log-probs computed from it later go through the same operator.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

#: Group sizes of the pyramid; 1 is the tokens themselves.
PYRAMID = (1, 2, 4, 8)
CORRECTIONS = ("none", "isotropic", "diagonal")


def check_block(block: int) -> None:
    """ValueError unless so many tokens make a block."""
    if not 8 <= block <= 128 or block & (block - 1):
        raise ValueError(f"block is a power of two from 8 to 128, got {block}")


@dataclass(frozen=True, eq=False)
class Plan:
    """The level of every key block for every query block, and what else the operator must know.

    `levels[b, h, i, j]` is the number of tokens that one key of block j stands for when query block i looks at it: 1, 2, 4, 8, `rest`
    (the unselected blocks' tokens, usually one mean per block) or 0, not seen at all. Heads are query heads.
    """

    levels: torch.Tensor
    """uint8 [B, H, nq, nk]."""
    q_length: int
    k_length: int
    block: int = 128
    """Tokens in a query block and in a key block; the last ones may be short."""
    rest: int = 128
    """Tokens behind one key of an unselected block: `block` (its mean) or a smaller power of two from 16 up."""
    sizes: tuple[int, ...] = PYRAMID
    """Levels that may occur among the selected blocks; the kernels pool to no others."""
    has_rest: bool = True
    """Whether unselected blocks are seen through rest tokens at all; False: they are dropped."""
    everywhere: bool = False
    """Every block is seen through its rest tokens too, selected or not (BLADE's global tokens: selected blocks then count twice)."""
    correction: str = "isotropic"
    """Bias of pooled keys beside log count: "isotropic" adds half the variance of the logit within the group, see `reference`."""
    causal: bool = False
    lengths: torch.Tensor | None = None
    """int32 [B]: true length of each sequence of a padded batch, queries and keys alike; None: all `q_length`, `k_length`."""
    estimator_cost: float = 0.0
    """Cost of choosing the plan as a density: score FLOPs over the FLOPs of dense attention."""

    def __post_init__(self) -> None:
        if self.levels.dtype != torch.uint8 or self.levels.ndim != 4:
            raise ValueError(f"levels must be uint8 [B, H, nq, nk], got {self.levels.dtype} {tuple(self.levels.shape)}")
        expected = (blocks(self.q_length, self.block), blocks(self.k_length, self.block))
        if tuple(self.levels.shape[2:]) != expected:
            raise ValueError(
                f"levels hold {tuple(self.levels.shape[2:])} blocks, but {self.q_length} queries and {self.k_length} keys in blocks of "
                f"{self.block} make {expected}"
            )
        check_block(self.block)
        least = min(16, self.block)
        if self.rest < least or self.rest & (self.rest - 1) or self.rest > self.block:
            raise ValueError(f"rest is a power of two from {least} to the block's {self.block} tokens, got {self.rest}")
        if not {1} <= set(self.sizes) <= set(PYRAMID):
            raise ValueError(f"sizes are of {PYRAMID} and 1 is among them, got {self.sizes}")
        if self.everywhere and not self.has_rest:
            raise ValueError("everywhere=True needs rest tokens: has_rest=True")
        if self.correction not in CORRECTIONS:
            raise ValueError(f"correction is one of {', '.join(CORRECTIONS)}, got {self.correction!r}")
        if self.causal and self.q_length != self.k_length:
            raise ValueError(f"a causal plan needs as many queries as keys, got {self.q_length} and {self.k_length}")
        if self.lengths is not None and (self.q_length != self.k_length or tuple(self.lengths.shape) != (self.levels.shape[0],)):
            raise ValueError("lengths is one number per sequence, [B], and needs as many queries as keys")

    def check(self) -> Plan:
        """Self, if every entry is legal; ValueError otherwise. Reads the whole map, so it is for tests and for plans from files."""
        legal = torch.tensor([0, *self.sizes, *([self.rest] if self.has_rest else [])], device=self.levels.device)
        if not torch.isin(self.levels, legal).all():
            raise ValueError(f"levels must be one of {legal.tolist()}, got {torch.unique(self.levels).tolist()}")
        if self.lengths is not None and not ((self.lengths > 0) & (self.lengths <= self.q_length)).all():
            raise ValueError(f"lengths must be within 1..{self.q_length}, got {self.lengths.tolist()}")
        if self.causal:
            if self.everywhere:
                raise ValueError("a causal plan cannot see every block through its rest tokens: later blocks are not visible")
            nq = self.levels.shape[2]
            if torch.triu(self.levels, 1).any():
                raise ValueError("a causal plan must not see a key block after the query's own")
            own = self.levels[..., range(nq), range(nq)] == 1
            if not (own | (self._tokens[:, None] == 0)).all():
                raise ValueError("a causal plan sees the query's own block token by token: its diagonal must be 1")
        return self

    @cached_property
    def _tokens(self) -> torch.Tensor:
        """int64 [B, n]: tokens in each block; 0 beyond a sequence's end."""
        return self._count(self.k_length)

    def _count(self, length: int) -> torch.Tensor:
        lengths = torch.full((self.levels.shape[0],), length) if self.lengths is None else self.lengths.long().cpu()
        starts = torch.arange(0, blocks(length, self.block) * self.block, self.block)
        return (lengths[:, None] - starts).clamp(0, self.block).to(self.levels.device)

    @property
    def keys(self) -> torch.Tensor:
        """int64 [B, H, nq, nk]: keys with which a query block sees a key block, rest tokens that are seen everywhere included."""
        tokens = self._tokens[:, None, None, :]
        level = self.levels.long()
        keys = torch.where(level > 0, -(-tokens // level.clamp(min=1)), 0)
        return keys + -(-tokens // self.rest) if self.everywhere else keys

    @property
    def attention_density(self) -> float:
        """Query-key pairs evaluated over those of dense attention (for a causal plan: of dense causal attention)."""
        return float(self.density_per_head.mean())

    @property
    def density_per_head(self) -> torch.Tensor:
        """float64 [B, H]: `attention_density` of every head."""
        queries = self._count(self.q_length).double()
        pairs = torch.einsum("bhij,bi->bh", self.keys.double(), queries)
        full = self._tokens.double()[:, None, :].expand(-1, queries.shape[1], -1)
        if self.causal:
            full = torch.tril(full)
        return pairs / torch.einsum("bij,bi->b", full, queries)[:, None]

    @property
    def density(self) -> float:
        """`attention_density` plus the estimator's own cost."""
        return self.attention_density + self.estimator_cost

    @property
    def hash(self) -> str:
        """Hex digest of the map and the settings: equal plans compute the same function."""
        digest = hashlib.sha256(json.dumps(self._settings(), sort_keys=True).encode())
        for tensor in (self.levels, self.lengths):
            if tensor is not None:
                digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def to(self, device: torch.device | str) -> Plan:
        """The same plan with its map on `device`."""
        lengths = None if self.lengths is None else self.lengths.to(device)
        return replace(self, levels=self.levels.to(device), lengths=lengths)

    def save(self, path: str | Path) -> None:
        """Write the plan as one safetensors file."""
        tensors = {"levels": self.levels.cpu().contiguous()}
        if self.lengths is not None:
            tensors["lengths"] = self.lengths.cpu()
        save_file(tensors, str(path), metadata={"plan": json.dumps(self._settings())})

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read what `save` wrote; ValueError for a file that is no plan or holds an illegal one."""
        with safe_open(str(path), "pt") as file:
            settings = (file.metadata() or {}).get("plan")
            names = set(file.keys())
            if settings is None or "levels" not in names:
                raise ValueError(f"{path} holds no attention plan")
            lengths = file.get_tensor("lengths") if "lengths" in names else None
            settings = json.loads(settings)
            settings["sizes"] = tuple(settings["sizes"])
            return cls(levels=file.get_tensor("levels"), lengths=lengths, **settings).check()

    def _settings(self) -> dict[str, object]:
        names = (
            "q_length",
            "k_length",
            "block",
            "rest",
            "sizes",
            "has_rest",
            "everywhere",
            "correction",
            "causal",
            "estimator_cost",
        )
        return {name: getattr(self, name) for name in names}


def blocks(length: int, block: int) -> int:
    """Number of blocks that hold `length` tokens."""
    return -(-length // block)


def dense_plan(batch: int, heads: int, q_length: int, k_length: int, *, causal: bool = False, block: int = 128) -> Plan:
    """Every block at level 1: exact attention."""
    levels = torch.ones(batch, heads, blocks(q_length, block), blocks(k_length, block), dtype=torch.uint8)
    return Plan(
        torch.tril(levels) if causal else levels, q_length, k_length, block, rest=block, sizes=(1,), has_rest=False, causal=causal
    )
