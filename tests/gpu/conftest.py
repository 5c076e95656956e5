"""What the GPU tests share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def ray_on_gpus() -> Iterator[None]:
    import ray

    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))  # workers get the driver's path, and so find the rewards of the cluster's tests
    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False, _system_config={"worker_niceness": 0})
    yield
    ray.shutdown()
