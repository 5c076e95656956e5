from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from world_r1 import loop, loop_async
from world_r1.actors.cluster import Cluster, ClusterError, Interrupted
from world_r1.config import Config
from world_r1.prompts import PromptStream

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_cluster")]
Make = Callable[..., Config]


@dataclass
class Ran:
    """What a loop left behind."""

    checkpoints: Path
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    outcome: loop.Outcome | None = None

    def measured(self, steps: range) -> list[dict[str, Any]]:
        """Rows (by finished steps) without what a clock says."""
        return [{k: v for k, v in self.rows[step].items() if not k.startswith("time/")} for step in steps]

    def tensors(self, step: int) -> dict[str, torch.Tensor]:
        """Everything that the checkpoint after `step` steps holds, by "section/name"."""
        files = sorted((self.checkpoints / f"step-{step:06d}").glob("*.safetensors"))
        return {f"{file.stem}/{name}": value for file in files for name, value in load_file(file).items()}


def take(config: Config, cluster: Cluster, folder: Path, start: int = 0) -> Ran:
    """Run the loop that the configuration asks for."""
    ran = Ran(folder)
    module = loop_async if config.cluster.max_staleness else loop
    hooks = loop.Hooks(ran.rows.__setitem__, lambda scored: None, lambda step: None, lambda: "")
    ran.outcome = module.run(config, cluster, PromptStream.of(config), folder, start, hooks)
    return ran


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and len(a) > 0 and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def colocated(config: Make) -> Iterator[tuple[Config, Cluster]]:
    settings = config(keep=9)
    with Cluster(settings) as cluster:
        yield settings, cluster


@pytest.fixture(scope="module")
def straight(colocated: tuple[Config, Cluster], tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """The uninterrupted run in one process that others are compared with."""
    return take(*colocated, tmp_path_factory.mktemp("straight"))


def test_the_loop_runs_end_to_end_and_records_every_step(straight: Ran) -> None:
    assert straight.outcome == loop.Outcome(4, "")
    assert [straight.rows[step]["phase"] for step in (1, 2, 3, 4)] == ["rigid", "rigid", "dynamic", "rigid"]
    for row in straight.rows.values():
        assert {
            "reward", "reward_std", "failure_rate", "dropped_groups", "kl_nats", "beta", "ratio_mean", "ratio_std", "clip_fraction",
            "grad_norm", "lr", "time/rollout", "time/reward", "time/update", "time/total", "staleness",
        } <= row.keys()  # fmt: skip
        assert row["failure_rate"] == row["failures"] == row["dropped_groups"] == row["updates_refused"] == 0
    assert straight.rows[4]["kl_nats"] > straight.rows[1]["kl_nats"] == 0
    before, after = straight.tensors(2), straight.tensors(4)
    assert before.keys() == after.keys()
    assert not same(
        {k: v for k, v in before.items() if k.startswith("trained/")}, {k: v for k, v in after.items() if k.startswith("trained/")}
    )


def test_before_an_update_on_fresh_rollouts_every_ratio_is_exactly_one(straight: Ran) -> None:
    assert all((row["ratio_mean"], row["ratio_std"], row["clip_fraction"]) == (1.0, 0.0, 0.0) for row in straight.rows.values())


def test_a_resumed_loop_equals_the_uninterrupted_one_bit_for_bit(
    colocated: tuple[Config, Cluster], straight: Ran, tmp_path: Path
) -> None:
    settings, cluster = colocated
    shutil.copytree(straight.checkpoints / "step-000002", tmp_path / "step-000002")
    assert cluster.restore(tmp_path / "step-000002") == 2
    resumed = take(settings, cluster, tmp_path, start=2)
    assert resumed.measured(range(3, 5)) == straight.measured(range(3, 5))
    assert same(resumed.tensors(4), straight.tensors(4))


@pytest.mark.parametrize(("samplers", "judges"), [(2, 3)])
def test_any_number_of_samplers_and_judges_gives_the_same_weights(
    config: Make, straight: Ran, samplers: int, judges: int, tmp_path: Path
) -> None:
    settings = config(keep=9, cluster={"mode": "disaggregated", "samplers": samplers, "judges": judges})
    with Cluster(settings) as cluster:
        spread = take(settings, cluster, tmp_path)
    assert spread.measured(range(1, 5)) == straight.measured(range(1, 5))
    assert same(spread.tensors(4), straight.tensors(4))


def test_one_step_ahead_rollouts_are_one_version_old_and_resume_exactly(config: Make, tmp_path: Path) -> None:
    settings = config(keep=9, steps=6, save_every=3, cluster={"max_staleness": 1})
    with Cluster(settings) as cluster:
        ahead = take(settings, cluster, tmp_path / "a")
        # Nothing is started ahead of a checkpoint, so the step after it is fresh.
        assert [ahead.rows[step]["staleness"] for step in range(1, 7)] == [0, 1, 1, 0, 1, 1]
        for row in ahead.rows.values():
            assert (row["ratio_std"] > 0) == (row["staleness"] == 1)  # measured against the policy that sampled
        shutil.copytree(tmp_path / "a" / "step-000003", tmp_path / "b" / "step-000003")
        cluster.restore(tmp_path / "b" / "step-000003")
        resumed = take(settings, cluster, tmp_path / "b", start=3)
    assert resumed.measured(range(4, 7)) == ahead.measured(range(4, 7))
    assert same(resumed.tensors(6), ahead.tensors(6))

    apart = config(keep=9, steps=6, save_every=3, cluster={"max_staleness": 1, "mode": "disaggregated", "samplers": 1})
    with Cluster(apart) as cluster:
        spread = take(apart, cluster, tmp_path / "c")
    assert spread.measured(range(1, 7)) == ahead.measured(range(1, 7))
    assert same(spread.tensors(6), ahead.tensors(6))


def test_a_rollout_can_be_left_behind_and_the_state_is_that_of_before(
    colocated: tuple[Config, Cluster], straight: Ran, tmp_path: Path
) -> None:
    settings, cluster = colocated
    cluster.restore(straight.checkpoints / "step-000002")
    stream = PromptStream.of(settings)
    cluster.stop = lambda: True
    try:
        with pytest.raises(Interrupted):
            cluster.rollout(2, stream.at(2))
    finally:
        cluster.stop = lambda: False
    resumed = take(settings, cluster, tmp_path, start=2)
    assert same(resumed.tensors(4), straight.tensors(4))


def test_a_stale_rollout_is_refused_by_the_learner(colocated: tuple[Config, Cluster], straight: Ran) -> None:
    settings, cluster = colocated
    cluster.restore(straight.checkpoints / "step-000002")
    scored = cluster.rollout(2, PromptStream.of(settings).at(2))
    values = {name: 1.0 for group in scored.groups for name in group.rollouts}
    cluster.update(scored, values)
    with pytest.raises(ValueError, match="drawn with policy version 2, the learner is at 3"):
        cluster.update(scored, values)


def test_videos_without_a_score_stop_the_run_after_a_checkpoint(
    colocated: tuple[Config, Cluster], straight: Ran, tmp_path: Path
) -> None:
    settings, cluster = colocated
    cluster.restore(straight.checkpoints / "step-000002")
    judges, cluster.judges = cluster.judges, _refusing(settings)
    try:
        with pytest.raises(loop.TooManyFailures, match=r"step 2: 33% .*max_failure_rate=0.3 \(2x .*refused by the test.*--resume"):
            take(settings, cluster, tmp_path, start=2)
    finally:
        cluster.judges.close()
        cluster.judges = judges
    saved = Ran(tmp_path)
    assert same(saved.tensors(2), straight.tensors(2))


def _refusing(config: Config) -> Any:
    import ray

    from world_r1.actors.judge import Judge, Judges

    entry = {"name": "tests.cluster.rewards:Refuses", "options": {"suffixes": ["k1"]}}
    rewards = type(config.rewards).model_validate({"rewards": [entry]})
    judges = Judges(rewards, lambda: ray.remote(Judge).options(num_cpus=0.1).remote(rewards), 120)
    crew = [judges.make()]
    ray.get(crew[0].setup.remote())
    judges.employ(crew)
    return judges


def test_an_unreadable_model_is_reported_as_the_error_it_is(config: Make, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere"), Cluster(config(model={"path": str(tmp_path / "nowhere")})):
        pass


def test_more_than_the_cluster_has_is_an_error_that_says_what(config: Make) -> None:
    greedy = config(cluster={"cpus_per_judge": 4000.0, "timeout": 1})
    with pytest.raises(ClusterError, match=r"needs more than the cluster has \(32 of 4001 CPU registered\)"), Cluster(greedy):
        pass
    with pytest.raises(ClusterError, match="GPU"), Cluster(config(model={"device": "cuda"}, cluster={"timeout": 1})):
        pass


def test_the_death_of_the_process_with_the_policy_says_how_to_go_on(
    colocated: tuple[Config, Cluster], tmp_path: Path
) -> None:  # the last test: it takes the shared cluster's worker
    import ray

    settings, cluster = colocated
    ray.kill(cluster.learner)
    with pytest.raises(ClusterError, match=r"the process that holds the policy died .*--resume"):
        take(settings, cluster, tmp_path)
