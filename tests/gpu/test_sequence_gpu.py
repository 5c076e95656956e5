"""Processes on GPUs that share a video's tokens, against one: over NCCL with a GPU each, and through the CPU where they share one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.test_sequence import SPARSE, compare, configured, pipeline, policy_of, seen
from world_r1.parallel import Processes

pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

FP32 = {"device": "cuda", "dtype": "fp32"}
CASES: tuple[tuple[dict[str, Any], bool], ...] = (
    ({}, True),
    ({"attention": SPARSE, "checkpoint": "auto"}, True),
    ({"guidance_batch": False, "checkpoint": 1.0}, False),
)


def wide(folder: Path) -> str:
    """A model with four heads of width 64, which the kernels know."""
    from diffusers import WanTransformer3DModel

    path = pipeline(folder / "wide")
    settings = dict(WanTransformer3DModel.load_config(path / "transformer")) | {"num_attention_heads": 4, "attention_head_dim": 64}
    torch.manual_seed(0)
    WanTransformer3DModel.from_config(settings).save_pretrained(path / "transformer")
    return str(path)


def compare_in_bf16(team: Any, band: Any, path: str, switches: dict[str, Any]) -> None:
    """Sparse attention by its kernels under autocast: velocities and gradients agree as far as bf16 does."""
    model = {"device": "cuda", "dtype": "bf16"}
    expected = seen(policy_of(configured(path, 1, {**switches, "compile": False}, True, model)), sparse=True)
    policy = policy_of(configured(path, team.size, switches, True, model), band)
    found = seen(policy, sparse=True, given=expected[1])  # of its own it would draw a few other blocks, scores being rounded
    team.sum_gradients(policy.named_parameters().values())
    assert float((found[2] - expected[2]).norm() / expected[2].norm()) < 0.05
    for one, other in zip(found[1], expected[1], strict=True):
        assert one.shape == other.shape
    one, other = (torch.cat([gradients[name].flatten() for name in sorted(gradients)]) for gradients in (found[3], expected[3]))
    assert float(torch.nn.functional.cosine_similarity(one, other, dim=0)) > 0.98
    assert float(one.norm() / other.norm()) == pytest.approx(1.0, abs=0.05)  # neither a half of it nor twice as much


def _process(rank: int, folder: str, backend: str) -> None:
    os.environ |= {"NCCL_NVLS_ENABLE": "0", "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    torch.cuda.set_device(rank if backend == "nccl" else 0)
    team = Processes(rank, 2, torch.distributed.FileStore(f"{folder}/store", 2), backend, together=2)
    band = team.band()
    for switches, lora in CASES:
        compare(team, band, f"{folder}/model", switches, lora, FP32, close=1e-4)
    attention = {"kind": "pyramid", "density": 0.5, "block": 64}
    for switches in ({"checkpoint": "auto"}, {"checkpoint": 1.0, "compile": True}):
        compare_in_bf16(team, band, f"{folder}/wide/model", {"attention": attention, **switches})
    Path(f"{folder}/passed-{rank}").touch()
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("backend", ["gloo", "nccl"])
def test_two_processes_give_the_velocities_and_gradients_of_one(tmp_path: Path, backend: str) -> None:
    if backend == "nccl" and torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    pipeline(tmp_path)
    wide(tmp_path)
    torch.multiprocessing.spawn(_process, (str(tmp_path), backend), nprocs=2)
    assert all((tmp_path / f"passed-{rank}").exists() for rank in range(2))
