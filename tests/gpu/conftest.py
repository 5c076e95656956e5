"""What the GPU tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def ray_on_gpus() -> Iterator[None]:
    import ray

    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False, _system_config={"worker_niceness": 0})
    yield
    ray.shutdown()
