"""A whole model from a learner to a sampler by broadcast: through the CPU where they share a GPU, by NCCL where each has one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from world_r1.config import parse
from world_r1.types import Prompt

pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.usefixtures("ray_on_gpus")
@pytest.mark.parametrize("gpus", [0.4, 1.0], ids=["one-gpu-gloo", "two-gpus-nccl"])
def test_a_sampler_holds_what_the_learner_learned(tmp_path: Path, gpus: float) -> None:
    import ray

    from world_r1.actors.cluster import Cluster
    from world_r1.policies.tiny import tiny_wan_pipeline

    if gpus == 1.0 and torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    config = parse(
        {
            "model": {"path": str(tiny_wan_pipeline(tmp_path / "model")), "device": "cuda", "dtype": "fp32", "lora": None},
            "video": {"frames": 5, "height": 32, "width": 48},
            "flow": {"steps": 3, "window": {"size": 1}},
            "optimizer": {"micro_batch": 2, "learning_rate": 0.01},
            "prompts": {"groups": 1, "group_size": 2},
            "cluster": {"mode": "disaggregated", "gpus_per_policy": gpus, "timeout": 300},
        }
    )
    with Cluster(config) as cluster:
        assert cluster.publishing is not None
        assert cluster.publishing.broadcasts

        def held(actor: Any) -> tuple[str, dict[str, np.ndarray]]:
            return ray.get(actor.__ray_call__.remote(lambda self: (getattr(self._channel, "backend", ""), self.policy.state())))  # type: ignore[no-any-return]

        scored = cluster.rollout(0, [Prompt("a", "Camera push in. A red box.")])
        backend, before = held(cluster.samplers[0])
        assert backend == ("nccl" if gpus == 1.0 else "gloo")
        cluster.update(scored, {name: (-1.0) ** i for i, name in enumerate(scored.groups[0].rollouts)})
        cluster.publish()
        ray.get(cluster.loads)
        (_, learned), (_, found) = held(cluster.learner), held(cluster.samplers[0])
    assert learned.keys() == found.keys()
    assert all(np.array_equal(found[name], value) for name, value in learned.items())
    assert any(not np.array_equal(before[name], value) for name, value in found.items())
