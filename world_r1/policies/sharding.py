"""FSDP2 of a frozen base: every process keeps its part of each block's weights and gathers a block when it runs.

Adapters stay whole in every process, in float32, and their gradients are added up by the trainer (`world_r1.parallel`). A gather is a call
that all processes make, so all of them must run the transformer equally often and in the same order; `world_r1.config` refuses what would
not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn


def shard_blocks(transformer: nn.Module, blocks: Sequence[nn.Module], mesh: Any) -> None:
    """Shard the frozen weights of the blocks over a device mesh; all else stays whole in every process.

    ValueError where a block has trained weights that are no adapter's: their gradients would be those of a part.
    """
    from torch.distributed.fsdp import fully_shard

    whole = {p for name, p in transformer.named_parameters() if ".lora_" in name}
    if any(p.requires_grad for block in blocks for p in block.parameters() if p not in whole):
        raise ValueError("speed.fsdp shards a frozen base: set model.lora")
    inside = {p for block in blocks for p in block.parameters()}
    for block in blocks:
        fully_shard(block, mesh=mesh, ignored_params=whole)
    # The root orders the gathers, so that the next block's runs beside this one's computation; it has no weights of its own to shard.
    fully_shard(transformer, mesh=mesh, ignored_params=whole | {p for p in transformer.parameters() if p not in inside})
