"""Pyramid sparse attention in a policy: one operator in rollout, update and reference, its plans kept with the rollout and replayed.

A log-prob is that of the velocity that was sampled with, so the blocks that attention skipped are part of the state of a trained step. Each
video's plans travel with its rollout in 2 bits an entry, whatever the batch it was sampled in; the update joins those of its own batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
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
        #: Forwards of this call so far: their rows, (video, branch) each, and plans; none where attention was dense.
        self._seen: list[tuple[Sequence[tuple[int, int]], dict[int, Plan]]] = []

    @contextmanager
    def call(self, videos: int) -> Iterator[None]:
        """One `velocity` call of so many videos. ValueError if it replays another number."""
        if self.given is not None and len(self.given) != videos:
            raise ValueError(f"{len(self.given)} videos' attention plans are replayed, but the batch has {videos} videos")
        self._seen = []
        yield
        if self.given is None:
            found = {row: one for rows, plans in self._seen if plans for row, one in zip(rows, pack(plans), strict=True)}
            self.taken.append([_joined([found[row] for row in sorted(found) if row[0] == video]) for video in range(videos)])

    @contextmanager
    def around(self, name: str, rows: Sequence[tuple[int, int]]) -> Iterator[None]:
        """One forward of the transformer `name`, whose rows are (video, branch)."""
        attention = self.attentions.get(name)
        if attention is None or (self.given is None and self.wanted is not None and len(self.taken) not in self.wanted):
            yield
        elif self.given is not None:
            device = next(attention.handle.transformer.parameters()).device
            joined = self._given(rows, device)
            with attention.handle.replaying([joined if attention.shared is None else attention.shared.own(joined)]):
                yield
        else:
            with attention.handle.recording() as recorded:
                yield
            plans = recorded[-1] if attention.shared is None else attention.shared.whole(recorded[-1])
            self._seen.append((rows, plans))

    def _given(self, rows: Sequence[tuple[int, int]], device: torch.device) -> dict[int, Plan]:
        """{layer: plan} of a forward with these rows, on the device; empty where all of them were dense."""
        assert self.given is not None
        stored = [self.given[video] for video, _ in rows]
        sparse = [(one, branch) for one, (_, branch) in zip(stored, rows, strict=True) if one is not None]
        if not sparse:
            return {}
        if len(sparse) < len(rows):
            raise ValueError("a batch mixes videos whose attention was sparse at this step with such where it was dense")
        return unpack(sparse, device)


def _joined(branches: Sequence[AttentionPlans]) -> AttentionPlans | None:
    """The plans of a video from those of its branches; None without any."""
    if not branches:
        return None
    packed = np.concatenate([one.packed for one in branches])
    return replace(branches[0], packed=packed, shape=(len(branches), *branches[0].shape[1:]))


def pack(plans: dict[int, Plan]) -> list[AttentionPlans]:
    """Each sequence's part of {layer: plan [B, H, nq, nk]} as plain data of one branch. ValueError for padded batches.

    A layer at a time, all sequences at once: small models have hundreds of small maps, which one by one on a GPU would cost more than the
    attention they describe; large ones have maps of gigabytes in all, which indexing makes eight times as large.
    """
    layers = tuple(sorted(plans))
    first = plans[layers[0]]
    if first.lengths is not None:
        raise ValueError("plans of padded batches cannot be stored")
    settings = {name: getattr(first, name) for name in SETTINGS}
    values = tuple(sorted({0, *first.sizes, *([first.rest] if first.has_rest else [])}))
    table = torch.zeros(256, dtype=torch.uint8, device=first.levels.device)
    table[torch.tensor(values, device=table.device)] = torch.arange(len(values), dtype=torch.uint8, device=table.device)
    bits = _bits(len(values))
    packed = torch.stack([_pack_bits(table[plans[layer].levels.int()].flatten(1), bits) for layer in layers], 1).cpu().numpy()
    shape = (1, len(layers), *(int(n) for n in first.levels.shape[1:]))
    return [AttentionPlans(layers, values, one, shape, settings) for one in packed]  # type: ignore[arg-type]


def unpack(stored: Sequence[tuple[AttentionPlans, int]], device: torch.device | str = "cpu") -> dict[int, Plan]:
    """{layer: plan [B, H, nq, nk]} of B pairs (plans, branch), unpacked on the device: on a CPU that takes longer than a forward on a GPU.

    ValueError for a branch that was not stored, and for plans of different models or settings.
    """
    from world_r1_kernels.pyramid_attention.plan import Plan

    first = stored[0][0]
    _, layers, heads, queries, keys = first.shape
    for one, branch in stored:
        if branch >= one.shape[0]:
            raise ValueError("the rollout was sampled without guidance and is trained with it; model.guidance_scale has changed")
        if (one.layers, one.values, one.shape[1:], one.settings) != (first.layers, first.values, first.shape[1:], first.settings):
            raise ValueError("a batch mixes attention plans of different models or settings; one run's rollouts have one kind")
    packed = np.stack([one.packed[branch * layers : (branch + 1) * layers] for one, branch in stored])
    on_device = torch.from_numpy(packed).to(device)
    values = torch.tensor(first.values, dtype=torch.uint8, device=device)
    settings: dict[str, Any] = dict(first.settings)
    plans: dict[int, Plan] = {}
    for i, layer in enumerate(first.layers):
        codes = _unpack_bits(on_device[:, i], _bits(len(first.values)), heads * queries * keys)
        plans[layer] = Plan(levels=values[codes.int()].reshape(len(stored), heads, queries, keys), **settings)
    return plans


def _bits(count: int) -> int:
    return 2 if count <= 4 else 4


def _pack_bits(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """uint8 [..., bytes] of codes [..., n], lowest bits first; the last byte is filled with zeros."""
    per_byte = 8 // bits
    codes = torch.nn.functional.pad(codes, (0, -codes.shape[-1] % per_byte)).unflatten(-1, (-1, per_byte))
    packed = codes[..., 0].clone()
    for place in range(1, per_byte):
        packed |= codes[..., place] << (bits * place)
    return packed


def _unpack_bits(packed: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """uint8 [..., count]: the codes of `_pack_bits`."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    return ((packed[..., None] >> shifts) & (2**bits - 1)).flatten(-2)[..., :count]
