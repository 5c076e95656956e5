"""Processes that learn together: whose micro-batches are whose, what they exchange, and that their number changes nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.test_update import Toy, _advantages, _config, _step
from world_r1.algorithms import Loss
from world_r1.config import parse
from world_r1.parallel import Processes, Team
from world_r1.update import Trainer


class Threads(Team):
    """A team of threads: every call waits for the others, as a collective does."""

    def __init__(self, rank: int, size: int, shared: dict[str, Any]) -> None:
        self.rank, self.size, self.shared = rank, size, shared

    def exchange(self, value: Any) -> list[Any]:
        self.shared["slots"][self.rank] = value
        self.shared["barrier"].wait()
        found = list(self.shared["slots"])
        self.shared["barrier"].wait()
        return found

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        parameters = list(parameters)
        gradients = self.exchange([None if p.grad is None else p.grad.clone() for p in parameters])
        for i, parameter in enumerate(parameters):
            present = [one[i] for one in gradients if one[i] is not None]
            parameter.grad = sum(present) if present else None


def together(size: int, work: Callable[[Team], Any]) -> list[Any]:
    """`work` in as many threads, with a team each; raises what one of them raised."""
    shared: dict[str, Any] = {"slots": [None] * size, "barrier": threading.Barrier(size, timeout=60)}
    found: list[Any] = [None] * size

    def one(rank: int) -> None:
        try:
            found[rank] = work(Threads(rank, size, shared))
        except BaseException as error:
            found[rank] = error
            shared["barrier"].abort()

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for value in found:
        if isinstance(value, BaseException):
            raise value
    return found


def learned(size: int, rollouts: Sequence[Any], values: dict[str, Any], **sections: Any) -> list[tuple[Any, dict[str, float]]]:
    """(weights, metrics) of every process after two optimizer steps of SGD on its share of the batch."""
    config = _config(optimizer={"micro_batch": 2, "learning_rate": 0.01, "grad_clip": 1e-3}, algorithm={"updates": 2}, **sections)

    def work(team: Team) -> tuple[Any, dict[str, float]]:
        policy: Any = Toy()
        trainer = Trainer(config, policy, team)
        trainer.optimizer = torch.optim.SGD(policy.named_parameters().values(), lr=0.01)
        order = [rollout.id for rollout in rollouts if values[rollout.id] is not None]
        own = set(trainer.own(order))
        metrics = trainer.learn(order, {r.id: r for r in rollouts if r.id in own}, values)
        return policy.state(), metrics

    return together(size, work)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_any_number_of_processes_learns_the_same(size: int) -> None:
    """Seven videos in micro-batches of two, the last of one; of five processes one has nothing to do. Clipping is of the whole gradient."""
    rollouts = _step(_config(), Toy())
    values = {**_advantages(rollouts), rollouts[2].id: None}
    ((expected, metrics),) = learned(1, rollouts, values)
    found = learned(size, rollouts, values)
    assert metrics["grad_norm"] > 1e-3
    for state, others in found:
        np.testing.assert_allclose(state["weight"], expected["weight"], rtol=1e-5, atol=1e-8)
        assert np.array_equal(state["weight"], found[0][0]["weight"])
        assert others == found[0][1]
        assert others.keys() == metrics.keys()
        assert others == pytest.approx(metrics, rel=1e-4, abs=1e-6)


def test_a_loss_that_is_not_finite_in_one_process_is_refused_by_all(monkeypatch: pytest.MonkeyPatch) -> None:
    from world_r1.algorithms import FlowGRPO

    rollouts = _step(_config(), Toy())
    losses = FlowGRPO.losses
    seeds = {rollouts[2].seed}

    def broken(self: Any, policy: Any, batch: Any) -> Any:
        for loss in losses(self, policy, batch):
            yield Loss(loss.value * float("nan"), loss.metrics) if seeds & set(batch.seeds) else loss

    monkeypatch.setattr(FlowGRPO, "losses", broken)
    for state, metrics in learned(2, rollouts, _advantages(rollouts)):
        assert np.array_equal(state["weight"], Toy().state()["weight"])
        assert metrics["updates_refused"] == 2.0


def test_micro_batches_are_dealt_once_each() -> None:
    batches = ["a", "b", "c", "d", "e"]
    shared: dict[str, Any] = {}
    dealt = [Threads(rank, 2, shared).mine(batches) for rank in range(2)]
    assert dealt == [[(0, "a"), (2, "c"), (4, "e")], [(1, "b"), (3, "d")]]
    assert Team().mine(batches) == list(enumerate(batches))
    assert Team().exchange({"a": 1}) == [{"a": 1}]


def _sharded(rank: int, folder: str) -> None:
    from world_r1.policy import load_policy

    torch.set_num_threads(1)
    team = Processes(rank, 2, torch.distributed.FileStore(f"{folder}/store", 2))
    model = {"path": f"{folder}/model", "device": "cpu", "lora": {"rank": 2}, "guidance_scale": 2.0}
    video = {"frames": 5, "height": 32, "width": 48}
    config = parse({"model": model, "video": video, "speed": {"checkpoint": 1.0}})
    policies: list[Any] = [load_policy(config), load_policy(config)]
    policies[1].shard(team.mesh("cpu"))
    x = torch.randn(2, *policies[0].latent_shape(config.video), generator=torch.Generator().manual_seed(rank))
    for policy in policies:
        for i, parameter in enumerate(policy.named_parameters().values()):
            parameter.data.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
        condition = policy.encode(["A red box.", "A cone."])
        with torch.no_grad(), policy.reference():
            policy.base = policy.velocity(x, 0.5, condition)
        policy.out = policy.velocity(x, 0.5, condition)
        policy.out.square().mean().backward()
    plain, shard = policies
    torch.testing.assert_close(shard.base, plain.base, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(shard.out, plain.out, atol=1e-5, rtol=1e-4)
    assert not torch.equal(plain.out, plain.base)
    for name, parameter in plain.named_parameters().items():
        torch.testing.assert_close(shard.named_parameters()[name].grad, parameter.grad, atol=1e-6, rtol=1e-3)
    kept, whole = (
        sum(
            getattr(p, "_local_tensor", p).numel() for name, p in policy.transformer.blocks.named_parameters() if "lora" not in name
        )
        for policy in (shard, plain)
    )
    assert kept < 0.55 * whole, (kept, whole)
    assert shard.state().keys() == plain.state().keys()
    shard.save(f"{folder}/adapter-{rank}")
    Path(f"{folder}/passed-{rank}").touch()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_a_sharded_base_gives_the_velocities_and_gradients_of_a_whole_one(tmp_path: Path) -> None:
    """Two processes with other videos each; half of the blocks' weights in each, adapters whole, blocks recomputed in the backward pass."""
    from world_r1.policies.tiny import tiny_wan_pipeline

    tiny_wan_pipeline(tmp_path / "model")
    torch.multiprocessing.spawn(_sharded, (str(tmp_path),), nprocs=2)
    assert all((tmp_path / f"passed-{rank}").exists() for rank in range(2))
    assert all(list((tmp_path / f"adapter-{rank}").glob("*.safetensors")) for rank in range(2))


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"cluster": {"learners": 1}}, "2 or more"),
        ({"cluster": {"learners": 2, "mode": "disaggregated"}}, "colocated"),
        ({"cluster": {"learners": 2, "max_staleness": 1}}, "max_staleness=0"),
        ({"cluster": {"learners": 2}, "prompts": {"groups": 3}}, "prompts.groups"),
        ({"cluster": {"learners": 2}, "model": {"lora": None}}, "an adapter"),
        ({"cluster": {"learners": 2}, "speed": {"fsdp": True, "checkpoint": "auto"}}, "a number for speed.checkpoint"),
        (
            {
                "cluster": {"learners": 2},
                "speed": {"fsdp": True, "attention": {"kind": "pyramid", "dense_above": 0.9}},
                "flow": {"window": {"size": 2, "position": "random"}},
            },
            "speed.attention.dense_above=null, or optimizer.micro_batch=1",
        ),
    ],
)
def test_what_would_put_learners_with_a_shared_base_out_of_step_is_refused(changes: dict[str, Any], remedy: str) -> None:
    with pytest.raises(ValueError, match=remedy):
        parse({"speed": {"fsdp": True}, **changes})


def test_with_a_shared_base_all_processes_run_equally_many_micro_batches() -> None:
    config = _config(
        optimizer={"micro_batch": 2}, speed={"fsdp": True}, cluster={"learners": 2}, prompts={"groups": 2, "group_size": 4}
    )
    order = ["a", "b", "c", "d", "e"]
    shared: dict[str, Any] = {}
    policies: list[Any] = [Toy(), Toy()]
    trainers = [Trainer(config, policy, Threads(rank, 2, shared)) for rank, policy in enumerate(policies)]
    assert trainers[0]._own_batches(order) == [(0, ["a", "b"]), (2, ["e"])]
    assert trainers[1]._own_batches(order) == [(1, ["c", "d"]), (-1, ["a", "b"])]
    assert trainers[1].own(order) == ["c", "d", "a", "b"]


def _process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    team = Processes(rank, 2, _tcp(rank, Path(folder) / "port"))
    parameters = [torch.nn.Parameter(torch.zeros(3, 2)) for _ in range(3)]
    if rank == 0:
        parameters[0].grad = torch.full((3, 2), 1.5)
    parameters[1].grad = torch.full((3, 2), float(rank + 1))
    team.sum_gradients(parameters)
    found = team.exchange({"rank": rank, "text": "x" * (1 + 40 * rank), "number": 0.1 + rank})
    torch.save([found, [None if p.grad is None else p.grad for p in parameters]], f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def _tcp(rank: int, file: Path) -> torch.distributed.TCPStore:
    """A store as learners on several machines have it: the first one listens, the others are told where."""
    if rank == 0:
        store = torch.distributed.TCPStore("127.0.0.1", 0, 2, is_master=True, wait_for_workers=False)
        file.with_suffix(".draft").write_text(str(store.port))
        file.with_suffix(".draft").rename(file)
        return store
    deadline = time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return torch.distributed.TCPStore("127.0.0.1", int(file.read_text()), 2, is_master=False)


@pytest.mark.slow
def test_processes_exchange_values_and_add_gradients(tmp_path: Path) -> None:
    """Two real processes over gloo: a gradient that one lacks, and one that nobody has."""
    torch.multiprocessing.spawn(_process, (str(tmp_path),), nprocs=2)
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert one[0] == two[0] == [{"rank": 0, "text": "x", "number": 0.1}, {"rank": 1, "text": "x" * 41, "number": 1.1}]
    for _, (first, second, third) in (one, two):
        assert torch.equal(first, torch.full((3, 2), 1.5))
        assert torch.equal(second, torch.full((3, 2), 3.0))
        assert third is None
    with pytest.raises(ValueError, match=r"a rank is in 0\.\.1, got 2"):
        Processes(2, 2, torch.distributed.FileStore(str(tmp_path / "other"), 2))
