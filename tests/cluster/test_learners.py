"""Several learners: the weights of one, whoever resumes, and a clear end when one of them dies."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from tests.cluster.runs import same, take, tensors
from world_r1 import bench_scale
from world_r1.actors.cluster import Cluster, ClusterError
from world_r1.config import Config
from world_r1.prompts import PromptStream

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_cluster")]
Make = Callable[..., Config]
ROOT = Path(__file__).parents[2]
WAN = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
#: One trained step a video, so that each of the two micro-batches is one sum of gradients: two sums added in either order are the same
#: to the last bit. More of them agree to rounding (tests/unit/test_parallel.py).
ONE = {"window": {"size": 1}}


@pytest.fixture(scope="module")
def alone(config: Make, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, dict[str, Any]]]:
    """Three steps of one learner."""
    folder = tmp_path_factory.mktemp("alone")
    settings = config(steps=3, save_every=1, keep=9, flow=ONE)
    with Cluster(settings) as cluster:
        return folder, take(settings, cluster, folder)


@pytest.fixture(scope="module")
def two(config: Make) -> Iterator[tuple[Config, Cluster]]:
    settings = config(steps=3, save_every=1, keep=9, flow=ONE, cluster={"learners": 2})
    with Cluster(settings) as cluster:
        yield settings, cluster


def test_two_learners_end_with_the_weights_of_one(
    two: tuple[Config, Cluster], alone: tuple[Path, dict[int, dict[str, Any]]], tmp_path: Path
) -> None:
    rows = take(*two, tmp_path)
    assert rows == alone[1]
    assert same(tensors(tmp_path, 3), tensors(alone[0], 3))
    states = ray.get([actor.publish.remote() for actor in two[1].learners.actors])  # type: ignore[union-attr]
    assert all((states[0].state[name] == value).all() for name, value in states[1].state.items())
    assert any(value.any() for name, value in states[0].state.items() if "lora_B" in name)


def test_a_run_goes_on_with_another_number_of_learners(
    two: tuple[Config, Cluster], alone: tuple[Path, dict[int, dict[str, Any]]], tmp_path: Path
) -> None:
    settings, cluster = two
    shutil.copytree(alone[0] / "step-000001", tmp_path / "step-000001")
    assert cluster.restore(tmp_path / "step-000001") == 1  # written by one learner
    assert take(settings, cluster, tmp_path, start=1) == {step: alone[1][step] for step in (2, 3)}
    assert same(tensors(tmp_path, 3), tensors(alone[0], 3))


def test_videos_are_evaluated_by_all_learners(two: tuple[Config, Cluster], tmp_path: Path) -> None:
    reports: list[tuple[int, int]] = []
    result = two[1].evaluate(tmp_path, "average", lambda *amounts: reports.append(amounts))
    assert reports[-1] == (2, 2)
    assert result


@pytest.mark.slow
def test_learners_apart_from_samplers(config: Make, alone: tuple[Path, dict[int, dict[str, Any]]], tmp_path: Path) -> None:
    settings = config(steps=2, save_every=1, keep=9, flow=ONE, cluster={"learners": 2, "mode": "disaggregated", "samplers": 1})
    with Cluster(settings) as cluster:
        rows = take(settings, cluster, tmp_path)
        assert cluster.learners is not None
        store = Path(cluster.learners.meeting.folder) / "store"
        assert store.is_file()  # NCCL still meets there when a group of it is first used
    assert not store.exists()
    assert rows == {step: alone[1][step] for step in (1, 2)}
    assert same(tensors(tmp_path, 2), tensors(alone[0], 2))


@pytest.mark.slow
def test_a_base_that_is_spread_over_two_learners(
    config: Make, alone: tuple[Path, dict[int, dict[str, Any]]], tmp_path: Path
) -> None:
    """A video is not a forward of its own then, so that numbers agree to rounding; one video has no score, which leaves them in step."""
    changes: dict[str, Any] = {"cluster": {"learners": 2}, "speed": {"fsdp": True}}
    settings = config(steps=2, save_every=1, keep=9, flow=ONE, **changes)
    with Cluster(settings) as cluster:
        rows = take(settings, cluster, tmp_path)
        scored = cluster.rollout(2, PromptStream.of(settings).at(2))
        names = [name for group in scored.groups for name in group.rollouts]
        metrics = cluster.update(scored, {name: (-1.0) ** i if i < 3 else None for i, name in enumerate(names)})  # one micro-batch
        assert cluster.evaluate(tmp_path / "eval", "average", lambda *_: None)
    assert metrics["grad_norm"] > 0
    for step, row in rows.items():
        assert row["ratio_mean"] == pytest.approx(1.0, abs=1e-6)
        assert row["reward"] == pytest.approx(alone[1][step]["reward"], abs=1e-4)
        assert row["grad_norm"] == pytest.approx(alone[1][step]["grad_norm"], rel=0.02)


@pytest.mark.slow
def test_learners_that_share_tokens(config: Make, alone: tuple[Path, dict[int, dict[str, Any]]], tmp_path: Path) -> None:
    """Two bands of two that take turns: sums over tokens, so that numbers agree to rounding with those of one learner."""
    changes: dict[str, Any] = {"cluster": {"learners": 4}, "speed": {"sequence_parallel": 2}}
    settings = config(steps=2, save_every=1, keep=9, flow=ONE, **changes)
    reports: list[tuple[int, int]] = []
    with Cluster(settings) as cluster:
        rows = take(settings, cluster, tmp_path)
        states = ray.get([actor.publish.remote() for actor in cluster.learners.actors])  # type: ignore[union-attr]
        assert cluster.evaluate(tmp_path / "eval", "average", lambda *amounts: reports.append(amounts))
        ray.kill(cluster.learners.actors[1])  # type: ignore[union-attr]
        with pytest.raises(ClusterError, match=r"sampling, learner 1 of 4: .* died"):
            cluster.rollout(2, PromptStream.of(settings).at(2))
    assert reports[-1] == (2, 2)
    assert all((states[0].state[name] == value).all() for one in states for name, value in one.state.items())
    for step, row in rows.items():
        assert row["ratio_mean"] == pytest.approx(1.0, abs=1e-6)
        assert row["reward"] == pytest.approx(alone[1][step]["reward"], abs=1e-4)
        assert row["grad_norm"] == pytest.approx(alone[1][step]["grad_norm"], rel=0.02)
    expected, found = tensors(alone[0], 1), tensors(tmp_path, 1)
    for name, value in expected.items():
        if name.startswith(
            "trained/"
        ):  # AdamW's first step is the rate by the gradient's sign, whatever is left of a tiny gradient
            assert (found[name] - value).abs().max() < 2.1e-2
            assert (found[name] - value).abs().mean() < 2e-4, name


@pytest.mark.slow
def test_learners_that_share_tokens_stay_in_step(config: Make, tmp_path: Path) -> None:
    """A rollout one step ahead of an update, one that is left behind, and an evaluation after it."""
    changes: dict[str, Any] = {"cluster": {"learners": 2, "max_staleness": 1, "sample_batch": 3}, "speed": {"sequence_parallel": 2}}
    settings = config(flow=ONE, **changes)
    stream = PromptStream.of(settings)
    with Cluster(settings) as cluster:
        scored = cluster.rollout(0, stream.at(0))
        for step in (1, 2):
            ahead = cluster.async_rollout(step, stream.at(step))
            names = [name for group in scored.groups for name in group.rollouts]
            assert cluster.update(scored, {name: (-1.0) ** i for i, name in enumerate(names)})["grad_norm"] > 0
            scored = cluster.wait(ahead)
        assert scored.version == 1
        cluster.async_rollout(3, stream.at(3)).abandon()
        assert cluster.save(tmp_path, 3).is_dir()
        assert cluster.evaluate(tmp_path / "eval", "base", lambda *_: None)


@pytest.mark.slow
def test_the_benchmark_of_scaling_learns_with_every_number(tmp_path: Path) -> None:
    costs = ROOT / "world_r1/assets/costs.json"
    found = bench_scale.run(WAN, [1, 2], quick=True, costs=costs, out=tmp_path / "scale.json")
    one, two = found["rows"]
    assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-4), (one, two)
    assert found["videos a step"] == 4
    assert min(one["planned (s)"], two["planned (s)"]) > 0
    assert one["error of the plan"] == pytest.approx(one["planned (s)"] / one["step (s)"] - 1)
    assert [line["learners"] for line in bench_scale.table(found)] == [1, 2]
    assert json.loads((tmp_path / "scale.json").read_text())["rows"] == found["rows"]
    with pytest.raises(ValueError, match=r"divide the largest"):
        bench_scale.run(WAN, [2, 3], quick=True)
    with pytest.raises(ValueError, match=r"cluster.learners of 2 or more"):
        bench_scale.run(WAN, [1, 2], quick=True, fsdp=True)


@pytest.mark.slow
def test_the_benchmark_of_scaling_shares_tokens(tmp_path: Path) -> None:
    """One group for two learners that share its videos; overrides come last."""
    changes = ("video.height=48", "flow.steps=3", "flow.window.size=1")
    found = bench_scale.run(WAN, [1, 2], quick=True, sequence_parallel=2, overrides=changes)
    one, two = found["rows"]
    assert (found["videos a step"], found["video"]) == (2, [9, 48, 96])
    assert [row["sequence parallel"] for row in (one, two)] == [1, 2]
    assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-3), (one, two)
    with pytest.raises(ValueError, match="--sequence-parallel"):
        bench_scale.run(WAN, [1, 2], quick=True, sequence_parallel=2, costs=tmp_path / "costs.json")


def test_a_learner_that_dies_ends_the_run_and_says_so(two: tuple[Config, Cluster], tmp_path: Path) -> None:
    """The last test of the module's cluster. The saved state goes on with any number of learners (above)."""
    settings, cluster = two
    cluster.save(tmp_path, 1)
    scored = cluster.rollout(1, PromptStream.of(settings).at(1))
    assert cluster.learners is not None
    ray.kill(cluster.learners.actors[1])
    with pytest.raises(ClusterError, match=r"the policy update, learner 1 of 2: .* died .*--resume"):
        cluster.update(scored, {name: 1.0 for group in scored.groups for name in group.rollouts})
    assert (tmp_path / "step-000001" / "state.json").is_file()
