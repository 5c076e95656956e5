"""The file behind `world-r1 rewards up --config`: named pools, each with its rewards and its share of the cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from world_r1.config import ConfigError, RewardsConfig, Strict, parse_as, read_tree


class ReplicasConfig(Strict):
    """How many workers a pool has, by the length of its queue."""

    min: int = Field(1, ge=1)
    max: int = Field(1, ge=1)
    #: Waiting items a worker above which one more is started.
    queue: float = Field(16.0, gt=0)
    #: Seconds that the queue must have been so long, or empty, before workers are added, or ended.
    up_after: float = Field(2.0, ge=0)
    down_after: float = Field(60.0, ge=0)

    @model_validator(mode="after")
    def _ordered(self) -> ReplicasConfig:
        if self.min > self.max:
            raise ValueError(f"replicas.min={self.min} is more than replicas.max={self.max}")
        return self


class PoolConfig(Strict):
    """One pool: identical workers that each hold the rewards' models."""

    rewards: RewardsConfig
    replicas: ReplicasConfig = ReplicasConfig()
    #: What Ray reserves per worker; a fraction of a GPU lets several share one.
    cpus: float = Field(1.0, ge=0)
    gpus: float = Field(0.0, ge=0)
    memory_gib: float | None = Field(None, gt=0)
    #: Custom Ray resources per worker.
    resources: dict[str, float] = Field({})
    #: Labels of the nodes that workers may run on, for example {ray.io/accelerator-type: H200}.
    labels: dict[str, str] = Field({})
    #: Handed to Ray as it is: an environment of the workers' own (py_executable, pip, uv, env_vars, ...).
    runtime_env: dict[str, Any] = Field({})
    threads: int = Field(1, ge=1)
    #: Seconds that a batch waits for more items after its first (its size is `rewards.batch`).
    batch_wait: float = Field(0.01, ge=0)
    #: Items that may wait; callers beyond are told to come back later.
    queue: int = Field(1024, ge=1)
    #: A worker whose process holds more than this is replaced between batches (models that leak).
    recycle_gib: float | None = Field(None, gt=0)
    #: Before a pool takes traffic, a rigid room must win over swimming textures in every reward that claims so (`Reward.rigid_wins`).
    check: bool = True
    #: Seconds until a worker has loaded its models.
    patience: float = Field(600.0, gt=0)


class ServingConfig(Strict):
    """All pools of a file."""

    pools: dict[str, PoolConfig]

    @model_validator(mode="after")
    def _names(self) -> ServingConfig:
        if not self.pools:
            raise ValueError("name at least one pool under pools")
        for name in self.pools:
            if not name.replace("-", "").replace("_", "").isalnum():
                raise ValueError(f"a pool's name has letters, digits, - and _ only, got {name!r}")
        return self


def load_pools(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> ServingConfig:
    """Read the YAML file and overrides (`pools.geometry.gpus=0.25`); raises `ConfigError` as `world_r1.config.load` does."""
    tree = read_tree(Path(path), overrides)
    if "pools" not in tree:
        raise ConfigError(f"{path} has no section pools; configs/rewards.yaml shows one")
    return parse_as(ServingConfig, tree, str(path))
