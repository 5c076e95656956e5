"""Processes that share a video's tokens: velocities, plans, gradients and updates of one process, at any number of tokens."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from world_r1 import memory
from world_r1.config import ConfigError, parse
from world_r1.parallel import Processes
from world_r1.policies import sequence, speed
from world_r1.policy import load_policy
from world_r1.rollout import sample_group
from world_r1.types import Prompt
from world_r1.update import Trainer

SPARSE = {"kind": "pyramid", "density": 0.4, "block": 16, "backend": "reference"}
#: 5x5x7 = 175 tokens, which neither two nor three processes divide.
VIDEO = {"frames": 17, "height": 80, "width": 112}
PROMPT = Prompt("a", "Camera orbit left. A red box on grass.")


def pipeline(folder: Path) -> Path:
    """A tiny Wan model with six heads, for two processes and for three."""
    from diffusers import WanTransformer3DModel

    from world_r1.policies.tiny import tiny_wan_pipeline

    path = tiny_wan_pipeline(folder / "model")
    settings = dict(WanTransformer3DModel.load_config(path / "transformer")) | {"num_attention_heads": 6, "attention_head_dim": 8}
    torch.manual_seed(0)
    WanTransformer3DModel.from_config(settings).save_pretrained(path / "transformer")
    return path


def configured(
    path: str,
    shared: int,
    switches: dict[str, Any] | None = None,
    lora: bool = True,
    model: dict[str, Any] | None = None,
    **sections: Any,
) -> Any:
    adapter = {"rank": 2, "alpha": 4.0} if lora else None
    return parse(
        {
            "seed": 7,
            "model": {"path": path, "device": "cpu", "lora": adapter, "guidance_scale": 2.0, **(model or {})},
            "video": VIDEO,
            "flow": {"steps": 3, "window": {"size": 2}},
            "algorithm": {"kl": {"beta": 0.1}},
            "optimizer": {"learning_rate": 0.01, "micro_batch": 2},
            "prompts": {"groups": 1, "group_size": 2},
            "cluster": {"learners": shared},
            "speed": {"sequence_parallel": shared, **(switches or {})},
            **sections,
        }
    )


def policy_of(config: Any, band: Any = None) -> Any:
    """A policy with weights that do something; an adapter's are drawn by their names."""
    policy: Any = load_policy(config)
    with torch.no_grad():
        for i, parameter in enumerate(policy.named_parameters().values()):
            drawn = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
            parameter.add_(0.05 * drawn.to(parameter.device))
    if band is not None:
        policy.share_tokens(band)
    return policy


def seen(policy: Any, sparse: bool, given: Any = None) -> tuple[torch.Tensor, Any, torch.Tensor, dict[str, torch.Tensor]]:
    """Velocity of the reference, plans, velocity under them or under the `given` ones, and the gradients of a loss that is made of it."""
    x = torch.randn(2, *policy.latent_shape(policy.config.video), generator=torch.Generator().manual_seed(1)).to(policy.device)
    condition = policy.encode(["A red box.", "A cone."])
    plans: Any = [[None, None]]
    with torch.no_grad(), policy.reference():
        base = policy.velocity(x, 0.5, condition)
    if sparse:
        with torch.no_grad(), policy.recording() as plans:
            policy.velocity(x, 0.5, condition)
    with policy.replaying(given or plans[0]):
        out = policy.velocity(x, 0.5, condition)
        (out * torch.linspace(-1, 1, out.numel(), device=out.device).view_as(out)).square().mean().backward()
    gradients = {name: p.grad for name, p in policy.named_parameters().items() if p.grad is not None}
    return base, plans[0], out.detach(), gradients


def compare(
    team: Any, band: Any, path: str, switches: dict[str, Any], lora: bool, model: dict[str, Any] | None = None, close: float = 1e-5
) -> None:
    """Velocities to `close`, gradients to ten times that. Plans exactly on a CPU; elsewhere those of one process are given to all."""
    plain = policy_of(configured(path, 1, {**switches, "compile": False}, lora, model))
    shared = policy_of(configured(path, team.size, switches, lora, model), band)
    sparse = "attention" in switches
    exact = plain.device.type == "cpu"
    expected = seen(plain, sparse)
    found = seen(shared, sparse, None if exact else expected[1])
    torch.testing.assert_close(found[0], expected[0], atol=close, rtol=close)
    torch.testing.assert_close(found[2], expected[2], atol=close, rtol=close)
    for one, other in zip(found[1], expected[1], strict=True):  # of all heads, in every process
        assert (one is None) == (other is None) == (not sparse)
        assert one is None or (one.shape == other.shape and (not exact or np.array_equal(one.packed, other.packed)))
    assert found[3].keys() == expected[3].keys()
    parts = {name: value.clone() for name, value in found[3].items()}
    team.sum_gradients(shared.named_parameters().values())
    for name, value in expected[3].items():
        allowed = 10 * close * float(value.abs().max()) + 1e-9
        torch.testing.assert_close(found[3][name], value, atol=allowed, rtol=10 * close, msg=name)
    moved = [name for name, value in expected[3].items() if not torch.allclose(parts[name], value, rtol=1e-2, atol=0)]
    assert len(moved) > 0.5 * len(parts)  # one process alone has a part only


CASES: tuple[tuple[dict[str, Any], bool], ...] = (
    ({}, True),
    ({"guidance_batch": False, "checkpoint": 1.0}, True),
    ({"attention": SPARSE}, True),
    ({"attention": {**SPARSE, "dense_layers": [0]}, "checkpoint": 0.5}, True),
    ({}, False),
    ({"attention": SPARSE, "checkpoint": "auto"}, False),
)


def updated(team: Any, band: Any, path: str, together: int) -> tuple[Any, dict[str, float], list[Any]]:
    """Weights, metrics and rollouts after an update on a group that all processes sampled together."""
    optimizer = {"micro_batch": 1, "learning_rate": 0.01, "grad_clip": 1e-3}
    config = configured(path, together, {"attention": SPARSE}, optimizer=optimizer)
    policy = policy_of(config, band)
    rollouts = sample_group(policy, config, PROMPT, 0, 0, 0).rollouts
    trainer = Trainer(config, policy, team)
    values: dict[str, float | None] = {rollout.id: (-1.0) ** i for i, rollout in enumerate(rollouts)}
    # AdamW divides by the gradient, and so would show the rounding of tiny ones.
    trainer.optimizer = torch.optim.SGD(policy.named_parameters().values(), lr=0.01)
    metrics = trainer.update(rollouts, values)
    return policy.state(), metrics, rollouts


def _process(rank: int, size: int, folder: str) -> None:
    torch.set_num_threads(1)
    team = Processes(rank, size, torch.distributed.FileStore(f"{folder}/store", size), together=size)
    band = team.band()
    path = f"{folder}/model"
    for switches, lora in CASES if size == 2 else CASES[2:3]:
        compare(team, band, path, switches, lora)
    (expected, metrics, rollouts), (found, others, drawn) = updated(None, None, path, 1), updated(team, band, path, size)
    sums = team.exchange({name: zlib.crc32(value.tobytes()) for name, value in found.items()})
    assert all(one == sums[0] for one in sums)
    assert others["ratio_mean"] == pytest.approx(1.0, abs=1e-6)
    assert metrics["grad_norm"] > 1e-3  # clipping is of the whole gradient
    for name, value in metrics.items():
        assert others[name] == pytest.approx(value, rel=1e-3, abs=1e-6), name
    for one, other in zip(drawn, rollouts, strict=True):
        np.testing.assert_allclose(one.x0, other.x0, atol=1e-4)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-7, err_msg=name)
    Path(f"{folder}/passed-{rank}").touch()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_processes_that_share_tokens_give_the_velocities_and_gradients_of_one(tmp_path: Path) -> None:
    """Adapters and whole models, dense and sparse, blocks recomputed or not; then an update, with the same weights everywhere.

    Three of them, which divide neither tokens nor frames; two learn together in tests/cluster/test_learners.py.
    """
    size = 3
    pipeline(tmp_path)
    torch.multiprocessing.spawn(_process, (size, str(tmp_path)), nprocs=size)
    assert all((tmp_path / f"passed-{rank}").exists() for rank in range(size))


def _compiled(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    speed.COMPILER = "aot_eager"
    team = Processes(rank, 2, torch.distributed.FileStore(f"{folder}/store", 2), together=2)
    band = team.band()
    for attention in ({}, {"attention": SPARSE}):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        compare(team, band, f"{folder}/model", {**attention, "compile": True, "checkpoint": 1.0}, True)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
        assert not torch._dynamo.utils.counters["recompile_limit"]
    Path(f"{folder}/passed-{rank}").touch()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_compiled_blocks_share_tokens(tmp_path: Path) -> None:
    """The exchange runs between compiled parts; blocks recomputed. The tracer runs, its code generator does not."""
    pipeline(tmp_path)
    torch.multiprocessing.spawn(_compiled, (str(tmp_path),), nprocs=2)
    assert all((tmp_path / f"passed-{rank}").exists() for rank in range(2))


class Alone(sequence.Band):
    """A band of one: what is sent comes back."""

    def __init__(self) -> None:
        super().__init__(0, 1, 0, None, staged=False)

    def exchange(self, parts: torch.Tensor) -> torch.Tensor:
        return parts.clone()

    def gather(self, part: torch.Tensor) -> torch.Tensor:
        return part[None].clone()


def test_tokens_and_heads_come_back_as_they_were() -> None:
    x = torch.randn(2, 7, 4, 3, requires_grad=True)
    (heads,) = sequence.split_heads((x,), 7, Alone())
    assert torch.equal(heads, x)
    assert torch.equal(sequence.join_heads(heads, Alone()), x)
    assert torch.equal(sequence.all_tokens(sequence.own_tokens(x, Alone()), 7, Alone()), x)
    parts = [sequence.own_tokens(x, sequence.Band(rank, 3, 0, None, staged=False)) for rank in range(3)]
    assert [part.shape[1] for part in parts] == [3, 3, 3]
    assert torch.equal(torch.cat(parts, 1)[:, :7], x)
    assert not torch.cat(parts, 1)[:, 7:].any()


@pytest.mark.parametrize("attention", [None, SPARSE])
def test_a_policy_without_its_band_is_whole(tmp_path: Path, attention: dict[str, Any] | None) -> None:
    """`world-r1 sample` and `eval` run a training configuration in one process."""
    path = str(pipeline(tmp_path))
    switches = {} if attention is None else {"attention": attention}
    plain, switched = (seen(policy_of(configured(path, shared, switches)), attention is not None) for shared in (1, 2))
    torch.testing.assert_close(switched[2], plain[2], atol=1e-5, rtol=1e-5)
    assert switched[3].keys() == plain[3].keys()
    for name, value in plain[3].items():
        torch.testing.assert_close(switched[3][name], value, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"cluster": {"learners": 3}}, r"cluster\.learners in multiples of 2, got 3"),
        ({"cluster": {"learners": 2, "mode": "disaggregated"}}, "cluster.mode=colocated"),
        ({"cluster": {"learners": 2}, "speed": {"sequence_parallel": 2, "fsdp": True}}, "speed.fsdp=false"),
    ],
)
def test_what_would_keep_learners_from_sharing_tokens_is_refused(changes: dict[str, Any], remedy: str) -> None:
    with pytest.raises(ConfigError, match=remedy):
        parse({"speed": {"sequence_parallel": 2}, **changes})


def test_models_that_cannot_share_tokens_are_refused(tmp_path: Path) -> None:
    from world_r1.policies.tiny import tiny_cogvideox_pipeline

    path = str(pipeline(tmp_path / "wan"))
    with pytest.raises(ValueError, match=r"sequence_parallel=4 does not divide the model's 6 heads; \[2, 3, 6\] do"):
        load_policy(configured(path, 4))
    other = configured(str(tiny_cogvideox_pipeline(tmp_path / "cog")), 2).model_dump(mode="json")
    other["model"] |= {"policy": "cogvideox", "lora": {"rank": 2, "targets": ["to_q"]}}
    with pytest.raises(ValueError, match=r"knows Wan's transformer, got CogVideoXTransformer3DModel"):
        load_policy(parse(other))


def test_processes_form_bands_of_equal_size() -> None:
    with pytest.raises(ValueError, match="3 processes do not divide into bands of 2"):
        Processes(0, 3, torch.distributed.HashStore(), together=2)


def test_a_number_of_checkpointed_blocks_is_agreed_on() -> None:
    blocks = [torch.nn.Linear(4, 4) for _ in range(3)]
    chosen = speed.Chosen(blocks, "auto", memory=lambda: 10**9, agree=lambda number, device: max(number, 2))
    x = torch.randn(2, 4, requires_grad=True)
    for block in blocks:
        x = chosen(block, x)
    assert chosen.checkpointed == 2


def test_a_full_memory_names_the_switch() -> None:
    """Wan2.1-14B at 720p on two learners: half of the activations."""
    tree: dict[str, Any] = {
        "model": {"path": "Wan-AI/Wan2.1-T2V-14B-Diffusers", "dtype": "bf16"},
        "video": {"frames": 81, "height": 720, "width": 1280},
        "cluster": {"learners": 2},
    }
    alone, shared = parse(tree), parse({**tree, "speed": {"sequence_parallel": 2}})
    switches = {item.switch: item.saves for item in memory.switches(alone)}
    whole, half = memory.activations(alone), memory.activations(shared)
    assert whole is not None
    assert half is not None
    assert half[0] == pytest.approx(whole[0] / 2)
    assert switches["speed.sequence_parallel=2"] == pytest.approx(half[0] / 2**30)
    assert not any("sequence_parallel" in item.switch for item in memory.switches(shared))
