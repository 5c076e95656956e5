"""One Ray cluster for all cluster tests, and the smallest configuration that goes through every part of the loop."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from world_r1.config import Config, parse

ROOT = Path(__file__).parents[2]
REWARDS = "tests.cluster.rewards"


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """Reservations are logical, so a cluster of many CPUs runs on two cores."""
    import ray

    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))  # workers get the driver's path, and so find the rewards of this folder
    ray.init(
        address="local",
        num_cpus=32,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _system_config={"worker_niceness": 0},
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random Wan pipeline and prompt files."""
    from world_r1.policies.tiny import tiny_wan_pipeline

    folder = tmp_path_factory.mktemp("tiny")
    tiny_wan_pipeline(folder / "model")
    texts = [
        "Camera push in. A red box on grass.",
        "Camera pan left. A blue sphere on sand.",
        "A green box.",
        "Tilt up. Two boxes.",
    ]
    (folder / "prompts.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    (folder / "dynamic.txt").write_text("Camera push in. A red box moves.\nA ball rolls.\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tree(tiny: Path) -> dict[str, Any]:
    """The configuration as a mapping: 2 groups of 3 videos of 5 frames, 3 denoising steps of which 2 are trained."""
    return {
        "seed": 3,
        "steps": 4,
        "save_every": 2,
        "model": {"path": str(tiny / "model"), "device": "cpu", "lora": {"rank": 2, "alpha": 4}},
        "video": {"frames": 5, "height": 32, "width": 48},
        "flow": {"steps": 3, "window": {"size": 2}},
        "optimizer": {"learning_rate": 0.01, "micro_batch": 3},
        "algorithm": {"kl": {"beta": 0.1, "target_nats": 0.5}},
        "rewards": {"rewards": [{"name": f"{REWARDS}:Brightness"}], "batch": 2},
        "phases": {"rigid_steps": 2, "dynamic_steps": 1},
        "prompts": {
            "train": str(tiny / "prompts.txt"),
            "dynamic": str(tiny / "dynamic.txt"),
            "test": str(tiny / "prompts.txt"),
            "groups": 2,
            "group_size": 3,
        },
        "cluster": {"timeout": 300},
        "evaluation": {"prompts": 2, "keep": 1, "bootstrap": 100, "reference": False},
        "record": {"tensorboard": False, "video_every": 0, "progress": "auto"},
    }


@pytest.fixture(scope="session")
def config(tree: dict[str, Any]) -> Callable[..., Config]:
    """`config(section={key: value}, key=value)`: the small configuration with changes."""

    def make(**changes: Any) -> Config:
        return parse({**tree, **{k: {**tree.get(k, {}), **v} if isinstance(v, dict) else v for k, v in changes.items()}})

    return make
