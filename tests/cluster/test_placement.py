"""Where the workers of a pool run: labels of nodes, fractions of a GPU, and more of them while the queue is long."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """What a cluster of two nodes did, in processes of its own (the other tests' cluster has one node and no GPU)."""
    script = Path(__file__).with_name("placement.py")
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "CUDA_VISIBLE_DEVICES")}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])  # type: ignore[no-any-return]


def test_four_workers_share_the_gpu_of_the_node_with_the_label(found: dict[str, Any]) -> None:
    assert found["quarters"] == [{"node": found["labelled"], "gpus": ["0"]}] * 4
    assert found["visible"] == [1.0] * 12
    assert "did not start" in found["fifth"]


def test_a_worker_without_a_share_runs_where_its_label_says_and_sees_no_gpu(found: dict[str, Any]) -> None:
    ((worker),) = found["plain"]
    assert worker["node"] != found["labelled"]
    assert worker["gpus"] == []
    assert found["unseen"] == 0.0


def test_a_label_that_no_node_has_is_an_error_and_not_a_hang(found: dict[str, Any]) -> None:
    assert "did not start" in found["nowhere"]


def test_the_queue_brings_workers_to_the_label_and_their_share_bounds_them(found: dict[str, Any]) -> None:
    assert found["most"] == [{"node": found["labelled"], "gpus": ["0"]}] * 3
    assert found["unanswered"] == 0
    assert found["least"] == 1
