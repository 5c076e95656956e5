"""Prompt curation's blocks as Ray tasks: the same files as in one process."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from world_r1_prompts import config, pipeline

from world_r1.curation import Camera

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_cluster")]


def test_a_build_on_ray_is_the_build_here(tmp_path: Path) -> None:
    from world_r1.actors.blocks import map_blocks

    split = config.Split(count=20, categories={"urban": 1, "indoor": 1}, moves={"push in": 1, "pan left": 1, "pan right": 1})
    changes = {"candidates": 400, "block": 100, "splits": {"train": split}, "tolerance": 9.0}
    wanted = config.load(ROOT / "configs/prompts_small.yaml").model_copy(update=changes)
    here = pipeline.build(wanted.model_copy(update={"work": tmp_path / "here"}), Camera())
    there = pipeline.build(wanted.model_copy(update={"work": tmp_path / "there"}), Camera(), partial(map_blocks, in_flight=2))
    assert there == here
    files = [sorted(path.name for path in (tmp_path / name).rglob("*.*")) for name in ("here", "there")]
    assert files[0] == files[1]
