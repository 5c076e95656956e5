"""Policy-optimisation algorithms: one file each, behind the interface in `base`.

A new algorithm is a class that takes the `Config` and implements `base.Algorithm`, listed in `ALGORITHMS` under the name that
`algorithm.name` selects.
"""

from __future__ import annotations

from world_r1.algorithms.base import Algorithm, Batch, Loss
from world_r1.algorithms.diffusion_nft import DiffusionNFT
from world_r1.algorithms.flow_grpo import FlowGRPO
from world_r1.config import Config

ALGORITHMS: dict[str, type] = {"flow_grpo": FlowGRPO, "diffusion_nft": DiffusionNFT}

__all__ = ["ALGORITHMS", "Algorithm", "Batch", "Loss", "build"]


def build(config: Config) -> Algorithm:
    """The algorithm that `config.algorithm.name` names; ValueError for a setting that it cannot honour."""
    return ALGORITHMS[config.algorithm.name](config)
