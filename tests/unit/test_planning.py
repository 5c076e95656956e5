"""The planner: counts by hand, the simulator against its limits, the public recipe's cost, and what it says of itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from world_r1 import planning
from world_r1.bench_pieces import merged
from world_r1.config import Config, parse
from world_r1.planning import Split, Work, arithmetic, best, simulate

WAN = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
WORK = Work(
    videos=32,
    groups=8,
    sample=10.0,
    decode=2.0,
    judge=5.0,
    update=8.0,
    optimizer=1.0,
    publish=0.5,
    gradients=0.1,
    staleness=0,
    batch=4,
)


def public() -> Config:
    """The public release: 50 steps with guidance, 24 trained steps, reference passes."""
    return parse(
        {
            "model": {"path": WAN, "guidance_scale": 5.0},
            "video": {"frames": 81, "height": 480, "width": 832},
            "flow": {"steps": 50, "window": {"size": 24}},
            "algorithm": {"kl": {"beta": 0.004}},
            "prompts": {"groups": 48, "group_size": 8},
        }
    )


def test_the_public_recipe_costs_what_arithmetic_says() -> None:
    """100 rollout forwards, 48 trained, 48 of the reference: about 230 s of an H200 a video."""
    assert planning.passes(public()) == {"rollout": 100, "trained": 48, "without gradient": 48}
    counted = planning.work(public(), planning.costs())
    expected = 100 * 0.686 + 48 * 2.67 + 48 * 0.686 + 2.77
    assert counted.sample + counted.update + counted.decode == pytest.approx(expected)
    assert 225 < expected < 240


def test_passes_follow_the_algorithm() -> None:
    nft = {"name": "diffusion_nft", "nft_sigmas": 2, "updates": 3, "kl": {"beta": 0.1}}
    config = parse({"flow": {"steps": 8, "window": {"size": 1}}, "algorithm": nft})
    assert planning.passes(config) == {"rollout": 8, "trained": 6, "without gradient": 12}
    plain = parse({"flow": {"steps": 8, "window": {"size": 2}}, "algorithm": {"kl": {"beta": 0.0}}})
    assert planning.passes(plain) == {"rollout": 8, "trained": 2, "without gradient": 0}


def test_steps_above_a_sigma_attend_densely() -> None:
    """Eight steps at shift 3: 1, .955, .9, .833, .75, .643, .5, .3."""

    def shares(flow: dict[str, Any], algorithm: dict[str, Any] | None = None, **attention: Any) -> tuple[float, float]:
        speed = {"attention": {"kind": "pyramid", **attention}}
        return planning.dense_shares(
            parse({"flow": {"steps": 8, "shift": 3.0, **flow}, "speed": speed, "algorithm": algorithm or {}})
        )

    first = {"window": {"size": 4, "position": "first"}}
    assert shares(first, dense_above=0.95) == (0.25, 0.5)
    assert shares(first) == (0.0, 0.0)
    assert shares(first, kind="dense") == (1.0, 1.0)
    drawn = {"window": {"size": 2, "position": "random", "within": 5}}
    assert shares(drawn, dense_above=0.95) == pytest.approx((0.25, 0.4)), "2 of 5 candidates"
    nft = {"name": "diffusion_nft", "nft_sigma_min": 0.0}  # shifted u > .75 from u > .5 on
    assert shares(first, nft, dense_above=0.75) == pytest.approx((0.5, 0.5), abs=2e-3)


def test_dense_steps_cost_what_the_compiler_alone_leaves() -> None:
    """With factors of .5 (sparse) and .8 (dense, compiled): a quarter of the rollout and half of the update are dense."""
    constants = planning.costs()
    constants["switches"]["forward"] |= {"factor": 0.5, "dense factor": 0.8}
    constants["switches"]["forward_backward"] |= {"factor": 0.25, "dense factor": 0.75}
    tree = merged(
        public().model_dump(mode="json"),
        {
            "flow": {"steps": 8, "window": {"size": 4, "position": "first"}},
            "speed": {"compile": True, "attention": {"kind": "pyramid", "dense_above": 0.95}},
        },
    )
    counted = planning.work(parse(tree), constants)
    forward, trained = (constants["reference"][kind]["seconds"] for kind in ("forward", "forward_backward"))
    assert counted.sample == pytest.approx(16 * forward * 0.575)
    assert counted.update == pytest.approx(8 * trained * 0.5 + 8 * forward * 0.65)
    slow = planning.work(parse(merged(tree, {"speed": {"compile": False}})), constants)
    assert slow.sample == pytest.approx(counted.sample / 0.8), "not compiled"
    assert slow.update == pytest.approx(8 * trained * 0.5 / 0.75 + 8 * forward * 0.65 / 0.8)


def test_flops_and_adapters_by_hand() -> None:
    """32,760 tokens: 0.198 PFLOP of attention (30 layers, 1536 wide) and 2 x 1.419e9 a token."""
    assert planning.flops(WAN, 81, 480, 832) == pytest.approx(4 * 32760**2 * 1536 * 30 + 2 * 1.419e9 * 32760)
    assert planning.flops("zai-org/CogVideoX-5b", 49, 480, 720) == pytest.approx(4 * 17776**2 * 3072 * 42 + 2 * 5.57e9 * 17776)
    config = parse({"model": {"path": WAN, "lora": {"rank": 32}}})
    assert (
        planning.adapter_bytes(config) == 4 * 240 * 2 * 1536 * 32
    )  # the policy trains as many: a test of the policy counts 240 layers


@pytest.mark.parametrize("split", [Split(4, 2, 4), Split(8, 1, 2), Split(4, 4, 4, colocated=True)])
@pytest.mark.parametrize("staleness", [0, 1])
def test_without_jitter_the_simulator_is_near_the_arithmetic(split: Split, staleness: int) -> None:
    """The loop cannot be faster than the slowest role, and waits little more where rollouts run ahead."""
    work = replace(WORK, staleness=staleness)
    played, counted = simulate(work, split), arithmetic(work, split)
    least = max(
        work.videos / split.samplers * (work.sample + work.decode),
        work.videos * work.judge / split.judges,
        work.videos * work.update / split.learners,
    )
    assert played.seconds >= least - 1e-6
    assert played.seconds == pytest.approx(counted, rel=0.35 if staleness else 0.15)
    assert played.videos_per_hour == pytest.approx(3600 * 32 / played.seconds)


def test_one_of_each_takes_the_sum() -> None:
    """One sampler, one judge, one learner, one group: nothing overlaps but the judging of a group's own batches."""
    work = replace(WORK, groups=1, videos=4)
    assert simulate(work, Split(1, 1, 1)).seconds == pytest.approx(4 * 12 + 4 * 5 + 4 * 8 + 1 + 0.5)
    assert simulate(work, Split(1, 1, 1)).staleness == 0.0


def test_rollouts_ahead_overlap_and_are_stale() -> None:
    work = replace(WORK, judge=0.5)
    behind, ahead = simulate(work, Split(4, 4, 4)), simulate(replace(work, staleness=1), Split(4, 4, 4))
    assert ahead.seconds < 0.75 * behind.seconds
    assert ahead.busy > behind.busy
    assert behind.staleness == 0.0
    assert 0.5 < ahead.staleness <= 1.0


def test_failures_and_jitter_cost_time() -> None:
    quiet = simulate(WORK, Split(8, 2, 4))
    jittery = simulate(replace(WORK, jitter=0.3), Split(8, 2, 4))
    failing = simulate(replace(WORK, failures=1 / 600, restart=120.0), Split(8, 2, 4))
    assert quiet.seconds < jittery.seconds < failing.seconds
    assert simulate(replace(WORK, jitter=0.3), Split(8, 2, 4)) == jittery


def test_the_best_split_beats_its_neighbours() -> None:
    found = best(replace(WORK, groups=32, videos=128, staleness=1), 12)
    top = found[0]
    assert top.split.gpus == 12
    assert [p.videos_per_hour for p in found] == sorted((p.videos_per_hour for p in found), reverse=True)
    worst = simulate(replace(WORK, groups=32, videos=128, staleness=1), Split(1, 1, 10))
    assert top.videos_per_hour > 3 * worst.videos_per_hour
    assert top.busy > 0.7
    with pytest.raises(ValueError, match="at least 2"):
        best(WORK, 1)


def test_a_plan_says_what_it_rests_on() -> None:
    config = parse(
        {**public().model_dump(mode="json"), "speed": {"compile": True}, "model": {"path": "Wan-AI/Wan2.1-T2V-14B-Diffusers"}}
    )
    said = planning.plan(config, 24, planning.costs())
    text = " ".join(said["notes"])
    assert len(said["splits"]) == 5
    for word in ("measured on an H200", "assumed", "compiled, with sparse attention", "scaled from", "more have not run"):
        assert word in text, word
    json.dumps(said)


def test_groups_are_raised_until_the_gpus_are_busy() -> None:
    """Two groups keep two samplers of sixteen GPUs busy."""
    few = replace(WORK, groups=2, videos=8, staleness=1)
    more = planning.filled(few, 16)
    assert more.groups >= 8
    assert more.videos == 4 * more.groups
    assert best(more, 16)[0].videos_per_hour > 2 * best(few, 16)[0].videos_per_hour
    assert planning.filled(replace(WORK, groups=64, videos=256), 4).groups == 64


def test_constants_of_a_file(tmp_path: Path) -> None:
    found = planning.costs()
    found["reference"]["forward"]["seconds"] = 0.313
    path = tmp_path / "costs.json"
    path.write_text(json.dumps(found))
    assert planning.work(public(), planning.costs(path)).sample == pytest.approx(31.3)
    path.write_text("{}")
    with pytest.raises(ValueError, match="holds no constants"):
        planning.costs(path)
    with pytest.raises(ValueError, match="no architecture is known"):
        planning.work(parse({}), found)
