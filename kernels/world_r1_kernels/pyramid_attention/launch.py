"""Launches of the Triton kernels: shapes, buffers, settings. Called by `operator` with checked arguments."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from triton.tools.tensor_descriptor import TensorDescriptor

from world_r1_kernels.pyramid_attention import triton as kernels
from world_r1_kernels.pyramid_attention import triton_pool as pool_kernels
from world_r1_kernels.pyramid_attention.plan import Plan
from world_r1_kernels.pyramid_attention.tuning import ForwardSettings


@dataclass(frozen=True)
class Geometry:
    """Everything about shapes that the kernels take. Rows of the pooled buffer: [2s | 4s | 8s | rest] of one head."""

    batch: int
    heads: int
    kv_heads: int
    n_q: int
    n_k: int
    width: int
    block: int
    rest: int
    sizes: tuple[int, ...]
    bnhd: bool

    @classmethod
    def of(cls, q: torch.Tensor, k: torch.Tensor, plan: Plan, bnhd: bool) -> Geometry:
        """Geometry of q and k in the given layout under a plan."""
        heads_at, tokens_at = (2, 1) if bnhd else (1, 2)
        return cls(
            q.shape[0], q.shape[heads_at], k.shape[heads_at], q.shape[tokens_at], k.shape[tokens_at], q.shape[3],
            plan.block, plan.rest, tuple(plan.sizes), bnhd,
        )  # fmt: skip

    @property
    def group(self) -> int:
        """Query heads per key head."""
        return self.heads // self.kv_heads

    @property
    def nq(self) -> int:
        """Query blocks."""
        return -(-self.n_q // self.block)

    @property
    def nk(self) -> int:
        """Key blocks."""
        return -(-self.n_k // self.block)

    @property
    def bases(self) -> tuple[int, int, int, int]:
        """First row of levels 2, 4, 8 and of the rest tokens in the pooled buffer."""
        starts, at = [], 0
        for size in (2, 4, 8):
            starts.append(at)
            at += self.nk * self.block // size if size in self.sizes else 0
        return starts[0], starts[1], starts[2], at

    @property
    def rows(self) -> int:
        """Rows of the pooled buffer per head, see `padded`."""
        return padded(self.bases[3] + self.rests)

    @property
    def rests(self) -> int:
        """Rest tokens per head."""
        return self.nk * self.block // self.rest

    @property
    def rest_tile(self) -> int:
        """Largest useful step over rest tokens: a power of two, as the kernels need."""
        return power_of_two(max(16, self.nk * self.block // self.rest))

    @property
    def seen_width(self) -> int:
        """Rest tokens per row of `Lists.seen`: whole tiles of any size."""
        return -(-self.nk * self.block // self.rest // 128) * 128

    @property
    def pyramid(self) -> bool:
        """Whether any level between 1 and the rest may occur."""
        return len(self.sizes) > 1

    def matrix(self, x: torch.Tensor) -> torch.Tensor:
        """x [B, H, N, D] or [B, N, H, D], contiguous, as the kernels' matrix."""
        return x.view(-1, x.shape[2] * x.shape[3]) if self.bnhd else x.view(-1, x.shape[3])


@dataclass(frozen=True)
class Pyramid:
    """Pooled keys and values, and of each the log2 count and the covariance trace."""

    wide: torch.Tensor
    """Keys and values [2, B, Hkv, rows, D], in the dtype of k."""
    flat: torch.Tensor
    """Log2 counts and covariance traces [2, B, Hkv, rows], float32."""

    @classmethod
    def empty(cls, k: torch.Tensor, batch: int, kv_heads: int, used: int) -> Pyramid:
        """Buffers beside k for a kernel to fill, `used` rows a head; the rows that `padded` adds are zero, for tiles reach into them."""
        rows = padded(used)
        make = torch.empty if rows == used else torch.zeros
        return cls(
            make(2, batch, kv_heads, rows, k.shape[-1], dtype=k.dtype, device=k.device),
            make(2, batch, kv_heads, rows, dtype=torch.float32, device=k.device),
        )

    @property
    def keys(self) -> torch.Tensor:
        """[B, Hkv, rows, D]."""
        return self.wide[0]

    @property
    def values(self) -> torch.Tensor:
        """[B, Hkv, rows, D]."""
        return self.wide[1]

    @property
    def bias(self) -> torch.Tensor:
        """[B, Hkv, rows]."""
        return self.flat[0]

    @property
    def variance(self) -> torch.Tensor:
        """[B, Hkv, rows]."""
        return self.flat[1]


@dataclass(frozen=True)
class Lists:
    """Key blocks of every query block by level [B, H, nq, nk] and how many of each level [B, H, nq, 4], int32.

    `seen` float32 [B, H, nq, seen_width]: log2 count of every rest token that the query block sees, -inf for the others.
    """

    blocks: torch.Tensor
    counts: torch.Tensor
    seen: torch.Tensor


def padded(rows: int) -> int:
    """Rows of a head with room to the next multiple of eight.

    A descriptor of float32 must start at a multiple of 16 bytes in every head: at 33 blocks an odd start was an illegal instruction.
    """
    return -(-rows // 8) * 8


def power_of_two(n: int) -> int:
    """Smallest power of two that is at least max(n, 2)."""
    return 1 << max(1, (n - 1).bit_length())


def pool(k: torch.Tensor, v: torch.Tensor, lengths: torch.Tensor | None, g: Geometry) -> Pyramid:
    """All pooled levels that `g.sizes` names, and the rest tokens."""
    pyramid = Pyramid.empty(k, g.batch, g.kv_heads, g.bases[3] + g.rests)
    outputs = (pyramid.keys, pyramid.values, pyramid.bias, pyramid.variance, k if lengths is None else lengths)
    common = {"D": g.width, "BK": g.block, "REST": g.rest, "BNHD": g.bnhd, "VARLEN": lengths is not None, "num_warps": 4}
    grid = (g.nk, g.kv_heads, g.batch)
    if g.pyramid:
        pool_kernels.pool_kernel[grid](
            k, v, *outputs, g.kv_heads, g.n_k, g.nk, g.rows, *g.bases, **common, L2=2 in g.sizes, L4=4 in g.sizes, L8=8 in g.sizes
        )
    else:
        unused = (pyramid.bias,) * 4
        pool_kernels.keys_kernel[grid](
            k, v, *unused, *outputs, g.kv_heads, g.n_k, g.rows, g.bases[3],
            **common, V_BNHD=g.bnhd, SELECT=False, POOL=True, DROP=False,
        )  # fmt: skip
    return pyramid


def lists(plan: Plan, pyramid: Pyramid, g: Geometry) -> Lists:
    """The plan's map as lists, for the forward and dQ kernels, and as one bias per rest token."""
    levels = plan.levels
    blocks = torch.empty(levels.shape, dtype=torch.int32, device=levels.device)
    counts = torch.empty(*levels.shape[:3], 4, dtype=torch.int32, device=levels.device)
    seen = torch.empty(*levels.shape[:3], g.seen_width if plan.has_rest else 0, dtype=torch.float32, device=levels.device)
    pool_kernels.lists_kernel[(g.nq, g.heads, g.batch)](
        levels, pyramid.bias, blocks, counts, seen, levels if plan.lengths is None else plan.lengths,
        g.heads, g.group, g.nq, g.nk, g.n_k, g.rows, g.bases[3], g.seen_width,
        BK=g.block, WIDTH=power_of_two(g.nk), REST=g.rest, RESTS=plan.has_rest, EVERYWHERE=plan.everywhere,
        CAUSAL=plan.causal, VARLEN=plan.lengths is not None, num_warps=1,
    )  # fmt: skip
    return Lists(blocks, counts, seen)


def descriptor(x: torch.Tensor, rows: int, g: Geometry) -> TensorDescriptor:
    """Descriptor of tiles of `rows` tokens of one head."""
    matrix = g.matrix(x)
    return TensorDescriptor(matrix, list(matrix.shape), list(matrix.stride()), [rows, g.width])


def rest_descriptors(pyramid: Pyramid, listed: Lists, tile: int, has_rest: bool) -> list[TensorDescriptor]:
    """Descriptors of `tile` pooled keys and values, of their biases as seen by one query block, and of their variances."""
    wide = [x.view(-1, x.shape[-1]) for x in (pyramid.keys, pyramid.values)]
    flat = [x.view(-1) for x in (listed.seen if has_rest else pyramid.variance, pyramid.variance)]
    found = [TensorDescriptor(x, list(x.shape), list(x.stride()), [tile, x.shape[1]]) for x in wide]
    return found + [TensorDescriptor(x, [x.numel()], [1], [tile]) for x in flat]


def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    plan: Plan,
    scale: float,
    settings: ForwardSettings,
    bnhd: bool,
    pyramid: Pyramid | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output like q, and log-sum-exp [B, H, Nq] float32. q, k, v contiguous; `pyramid` is what `pool` would return, where it is known."""
    g = Geometry.of(q, k, plan, bnhd)
    pyramid = pool(k, v, plan.lengths, g) if pyramid is None else pyramid
    listed = lists(plan, pyramid, g)
    out = torch.empty_like(q)
    lse = torch.empty(g.batch, g.heads, g.n_q, dtype=torch.float32, device=q.device)
    attend(q, k, v, plan, pyramid, listed, out, lse, scale, settings, g)
    return out, lse


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    plan: Plan,
    pyramid: Pyramid,
    listed: Lists,
    out: torch.Tensor,
    lse: torch.Tensor,
    scale: float,
    settings: ForwardSettings,
    g: Geometry,
    phases: tuple[int, ...] | None = None,
) -> None:
    """The attention kernel alone, into `out` and `lse`: one launch, or two with `settings.split`.

    `phases` (to time them) are launches: 0 all, 1 the full blocks, 2 the other parts on top of those.
    """
    s = settings
    phases = phases or ((1, 2) if s.split else (0,))
    tile, pooled_tile = min(s.tile, g.block), min(s.pooled_tile, g.rest_tile)
    pooled = [p.view(-1, g.width) for p in (pyramid.keys, pyramid.values)]
    if s.tma:
        descriptors = [descriptor(k, tile, g), descriptor(v, tile, g)]
        descriptors += rest_descriptors(pyramid, listed, pooled_tile, plan.has_rest)
    else:
        descriptors = [k, v, *pooled, listed.seen, pyramid.variance]
    part = (out, lse)  # not used by a single launch
    if phases != (0,):  # 16-bit like the output: a second rounding, which costs less than writing and reading 32 bits
        part = (torch.empty(*lse.shape, g.width, dtype=q.dtype, device=q.device), torch.empty_like(lse))
    for phase in phases:
        rows = min(s.pooled_rows if phase == 2 else s.rows, g.block)
        kernels.forward_kernel[(g.nq * (g.block // rows), g.heads, g.batch)](
            *descriptors, q, k, v, pyramid.keys, pyramid.values, pyramid.bias, pyramid.variance,
            plan.levels, listed.blocks, listed.counts, listed.seen, plan.levels if plan.lengths is None else plan.lengths, out, lse,
            *part, g.seen_width, scale, g.heads, g.group, g.n_q, g.n_k, g.nq, g.nk, g.rows, *g.bases,
            D=g.width, BK=g.block, BM=rows, TN=tile, TP=pooled_tile, REST=g.rest, PYRAMID=g.pyramid, **parts(plan, g),
            VARLEN=plan.lengths is not None, BNHD=g.bnhd, TMA=s.tma, STAGES=s.stages, PHASE=phase, LATE=s.late,
            num_warps=s.pooled_warps if phase == 2 else s.warps,
        )  # fmt: skip


def parts(plan: Plan, g: Geometry) -> dict[str, bool]:
    """Which parts of the operator a plan needs."""
    return {
        "RESTS": plan.has_rest,
        "CORRECT": plan.correction == "isotropic",
        "CAUSAL": plan.causal,
        "EDGE": plan.causal or plan.lengths is not None or g.n_k % g.block != 0,
    }
