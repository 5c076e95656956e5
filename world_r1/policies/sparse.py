"""Pyramid sparse attention in a policy: one operator in rollout, update and reference, its plans kept with the rollout and replayed.

A log-prob is that of the velocity that was sampled with, so the blocks that attention skipped are part of the state of a trained step. Each
video's plans travel with its rollout in 2 bits an entry, whatever the batch it was sampled in; the update joins those of its own batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from world_r1.config_speed import AttentionConfig
from world_r1.types import AttentionPlans

if TYPE_CHECKING:
    from world_r1_kernels.pyramid_attention.plan import Plan

    from world_r1.policies.sequence import SequenceParallel

#: Settings of a plan that every layer of a model shares; `estimator_cost` is for reports only.
SETTINGS = ("q_length", "k_length", "block", "rest", "sizes", "has_rest", "everywhere", "correction", "causal")


class SparseAttention:
    """Pyramid attention on one transformer. ValueError for a transformer or settings that it does not know."""

    def __init__(self, transformer: Any, config: AttentionConfig) -> None:
        from world_r1_kernels.pyramid_attention import PyramidConfig, apply_pyramid_attention

        self.config = config
        #: Where processes share a video's tokens, each with a part of the heads: takes plans of all heads apart and joins them.
        self.shared: SequenceParallel | None = None
        self.handle = apply_pyramid_attention(
            transformer,
            PyramidConfig(density=config.density, levels=config.levels, block=config.block),
            order=config.order,
            dense_layers=config.dense_layers,
            dense_above=config.dense_above,
            backend=config.backend,
        )


def apart(
    parts: Sequence[tuple[str, list[int] | None]], config: AttentionConfig, timestep: torch.Tensor
) -> list[tuple[str, list[int] | None]]:
    """The (transformer, rows; None: all) of a batch, those with rows on both sides of `dense_above` as two: dense rows, sparse rows.

    One forward has one kind of attention, and a video's must not depend on which others are in its batch. `timestep` is [B].
    """
    if config.kind == "dense" or config.dense_above is None:
        return list(parts)
    dense = [one / 1000 > config.dense_above for one in timestep.tolist()]  # as `PyramidAttention` decides
    found: list[tuple[str, list[int] | None]] = []
    for part, rows in parts:
        mine = range(len(dense)) if rows is None else rows
        kinds = [[row for row in mine if dense[row] == wanted] for wanted in (True, False)]
        found += [(part, kind) for kind in kinds] if all(kinds) else [(part, rows)]
    return found


class Session:
    """Records (`given` None) or replays plans during `velocity` calls, video by video; forwards may hold any rows in any order."""

    def __init__(
        self,
        attentions: dict[str, SparseAttention],
        given: tuple[AttentionPlans | None, ...] | None,
        wanted: frozenset[int] | None = None,
    ) -> None:
        self.attentions = attentions
        self.given = given
        #: Numbers of the `velocity` calls to record; None: all.
        self.wanted = wanted
        #: Per finished `velocity` call, per video.
        self.taken: list[list[AttentionPlans | None]] = []
        self._rows: dict[tuple[int, int], dict[int, Plan]] = {}
        self._opened: dict[int, dict[int, Plan]] = {}

    @contextmanager
    def call(self, videos: int) -> Iterator[None]:
        """One `velocity` call of so many videos. ValueError if it replays another number."""
        if self.given is not None and len(self.given) != videos:
            raise ValueError(f"{len(self.given)} videos' attention plans are replayed, but the batch has {videos} videos")
        self._rows = {}
        yield
        if self.given is None:
            self.taken.append([self._packed(video) for video in range(videos)])

    @contextmanager
    def around(self, name: str, rows: Sequence[tuple[int, int]]) -> Iterator[None]:
        """One forward of the transformer `name`, whose rows are (video, branch)."""
        attention = self.attentions.get(name)
        if attention is None or (self.given is None and self.wanted is not None and len(self.taken) not in self.wanted):
            yield
        elif self.given is not None:
            device = next(attention.handle.transformer.parameters()).device
            joined = self._joined(rows, device)
            with attention.handle.replaying([joined if attention.shared is None else attention.shared.own(joined)]):
                yield
        else:
            with attention.handle.recording() as recorded:
                yield
            plans = recorded[-1] if attention.shared is None else attention.shared.whole(recorded[-1])
            for index, row in enumerate(rows):
                self._rows[row] = {layer: _row(plan, index) for layer, plan in plans.items()}

    def _packed(self, video: int) -> AttentionPlans | None:
        branches = sorted(branch for one, branch in self._rows if one == video)
        plans = [self._rows[video, branch] for branch in branches]
        return pack(plans) if plans and plans[0] else None

    def _joined(self, rows: Sequence[tuple[int, int]], device: torch.device) -> dict[int, Plan]:
        """{layer: plan} of a forward with these rows, on the device; empty where all of them were dense."""
        from dataclasses import replace

        assert self.given is not None
        plans = [self._plans_of(row, device) for row in rows]
        if not any(plans):
            return {}
        if not all(plans):
            raise ValueError("a batch mixes videos whose attention was sparse at this step with such where it was dense")
        return {layer: replace(plan, levels=torch.cat([one[layer].levels for one in plans])) for layer, plan in plans[0].items()}

    def _plans_of(self, row: tuple[int, int], device: torch.device) -> dict[int, Plan]:
        video, branch = row
        assert self.given is not None
        stored = self.given[video]
        if stored is None:
            return {}
        if branch >= stored.shape[0]:
            raise ValueError("the rollout was sampled without guidance and is trained with it; model.guidance_scale has changed")
        return unpack(stored, branch, device)


def _row(plan: Plan, index: int) -> Plan:
    from dataclasses import replace

    return replace(plan, levels=plan.levels[index : index + 1])


def pack(branches: Sequence[dict[int, Plan]]) -> AttentionPlans:
    """The plans [1, H, nq, nk] of one video, per branch {layer: plan}, as plain data. ValueError for padded batches."""
    layers = tuple(sorted(branches[0]))
    first = branches[0][layers[0]]
    if first.lengths is not None:
        raise ValueError("plans of padded batches cannot be stored")
    settings = {name: getattr(first, name) for name in SETTINGS}
    values = sorted({0, *first.sizes, *([first.rest] if first.has_rest else [])})
    table = torch.full((256,), 255, dtype=torch.uint8, device=first.levels.device)
    table[torch.tensor(values, device=table.device)] = torch.arange(len(values), dtype=torch.uint8, device=table.device)
    bits = _bits(len(values))
    packed = [_pack_bits(table[branch[layer].levels.int()].flatten(), bits) for branch in branches for layer in layers]
    shape = (len(branches), len(layers), *(int(n) for n in first.levels.shape[1:]))
    return AttentionPlans(layers, tuple(values), torch.stack(packed).cpu().numpy(), shape, settings)  # type: ignore[arg-type]


def unpack(stored: AttentionPlans, branch: int, device: torch.device | str = "cpu") -> dict[int, Plan]:
    """{layer: plan [1, H, nq, nk]} of one branch, unpacked on the device: on a CPU that takes longer than a forward on a GPU."""
    from world_r1_kernels.pyramid_attention.plan import Plan

    _, layers, heads, queries, keys = stored.shape
    values = torch.tensor(stored.values, dtype=torch.uint8, device=device)
    packed = torch.tensor(stored.packed[branch * layers : (branch + 1) * layers]).to(device)
    plans: dict[int, Plan] = {}
    for layer, one in zip(stored.layers, packed, strict=True):
        codes = _unpack_bits(one, _bits(len(stored.values)), heads * queries * keys)
        settings: dict[str, Any] = dict(stored.settings)
        plans[layer] = Plan(levels=values[codes.int()].reshape(1, heads, queries, keys), **settings)
    return plans


def _bits(count: int) -> int:
    return 2 if count <= 4 else 4


def _pack_bits(codes: torch.Tensor, bits: int) -> torch.Tensor:
    per_byte = 8 // bits
    codes = torch.nn.functional.pad(codes, (0, -len(codes) % per_byte)).reshape(-1, per_byte)
    packed = codes[:, 0].clone()
    for place in range(1, per_byte):
        packed |= codes[:, place] << (bits * place)
    return packed


def _unpack_bits(packed: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    return ((packed[:, None] >> shifts) & (2**bits - 1)).flatten()[:count]
