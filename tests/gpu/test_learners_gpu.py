"""Learners on GPUs: two that share one add gradients through the CPU, two with one each by NCCL; both learn what one learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from world_r1.config import parse
from world_r1.types import Prompt

pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def learned(path: Path, learners: int, gpus: float) -> tuple[dict[str, Any], dict[str, float]]:
    """Weights and metrics after one step of two groups of two videos."""
    from world_r1.actors.cluster import Cluster

    config = parse(
        {
            "model": {"path": str(path), "device": "cuda", "dtype": "fp32", "lora": {"rank": 4}},
            "video": {"frames": 5, "height": 32, "width": 48},
            "flow": {"steps": 3, "window": {"size": 1}},
            "optimizer": {"micro_batch": 2, "learning_rate": 0.01},
            "prompts": {"groups": 2, "group_size": 2},
            "cluster": {"learners": learners, "gpus_per_policy": gpus, "timeout": 300},
        }
    )
    prompts = [Prompt("a", "Camera push in. A red box."), Prompt("b", "A green cone.")]
    with Cluster(config) as cluster:
        scored = cluster.rollout(0, prompts)
        names = [name for group in scored.groups for name in group.rollouts]
        metrics = cluster.update(scored, {name: (-1.0) ** i for i, name in enumerate(names)})
        return dict(cluster._call("publishing", cluster.learner.publish.remote()).state), metrics


@pytest.mark.usefixtures("ray_on_gpus")
@pytest.mark.parametrize("gpus", [0.4, 1.0], ids=["one-gpu-gloo", "two-gpus-nccl"])
def test_two_learners_learn_what_one_learns(tmp_path: Path, gpus: float) -> None:
    from world_r1.policies.tiny import tiny_wan_pipeline

    if gpus == 1.0 and torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    path = Path(tiny_wan_pipeline(tmp_path / "model"))
    (expected, one), (found, two) = (learned(path, count, gpus) for count in (1, 2))
    assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)
    assert two["grad_norm"] > 0
    for name, value in expected.items():
        torch.testing.assert_close(torch.from_numpy(found[name]), torch.from_numpy(value), atol=2.1e-2, rtol=0)
    moved = {name for name, value in expected.items() if "lora_B" in name and abs(value).max() > 0}
    close = [abs(found[name] - expected[name]).mean() < 1e-4 for name in moved]
    assert moved
    assert all(close)
