"""Pools of reward workers: no answer crosses over, every way to fail ends in a second try and then a missing value."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from tests.cluster.rewards import fingerprint
from world_r1.config import RewardsConfig
from world_r1.serving import client
from world_r1.serving.attached import Attached
from world_r1.serving.client import PoolClient, PoolError
from world_r1.serving.config import PoolConfig
from world_r1.serving.items import Busy, Item, content_hash, requests
from world_r1.serving.pool import Closed, Pool
from world_r1.types import Clip, Prompt, Verdict

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_cluster")]

REWARDS = "tests.cluster.rewards"
PROMPT = Prompt("p", "A red box.")


def _clips(seed: int, count: int, name: str = "") -> list[Clip]:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 2, 4, 4, 3), dtype=np.uint8)
    return [Clip(f"{name or seed}-k{k}", pixels[k], PROMPT, None) for k in range(count)]


def _config(reward: str, options: dict[str, Any] | None = None, batch: int = 4, timeout: float = 60.0, **pool: Any) -> PoolConfig:
    rewards = {"rewards": [{"name": f"{REWARDS}:{reward}", "options": options or {}}], "batch": batch, "timeout": timeout}
    return PoolConfig.model_validate({"rewards": rewards, "cpus": 0.1, "patience": 60, **pool})


@contextmanager
def _pool(config: PoolConfig) -> Iterator[Pool]:
    pool = Pool(config)
    pool.start()
    try:
        pool.ready(60)
        yield pool
    finally:
        pool.close()


@contextmanager
def _served(name: str, config: PoolConfig) -> Iterator[PoolClient]:
    client.up(name, config)
    try:
        yield PoolClient(name)
    finally:
        client.down(name)


def _items(clips: list[Clip]) -> list[Item]:
    names = requests()
    return [Item(next(names), clip.id, content_hash(clip), "rigid", clips, i) for i, clip in enumerate(clips)]


def _scored(pool: Pool, clips: list[Clip], **how: Any) -> list[Verdict]:
    return pool.submit(_items(clips), **how).result(timeout=120)


def _wait(true: Callable[[], bool], seconds: float = 30.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not true():
        time.sleep(0.05)
    return true()


def test_none_of_10000_answers_reaches_another_of_64_callers() -> None:
    """All callers name their clips alike, so that only request and content tell them apart."""
    callers, each = 64, 157
    work = [_clips(seed, each, name="clip") for seed in range(callers)]
    config = _config("Jittered", batch=16, batch_wait=0.002, replicas={"min": 4, "max": 4}, queue=500)
    with _served("crossing", config) as pool, ThreadPoolExecutor(callers) as threads:

        def call(caller: int) -> int:
            draw, wrong, at = random.Random(caller), 0, 0
            while at < each:
                part = work[caller][at : at + draw.randint(1, 24)]
                at += len(part)
                verdicts = pool.score(part, together=draw.random() < 0.2)
                wrong += sum(verdict.total != fingerprint(clip) for clip, verdict in zip(part, verdicts, strict=True))
            return wrong

        assert sum(threads.map(call, range(callers))) == 0
        status = client.status("crossing")
    assert status["items"] == callers * each == 10_048
    assert status["failures"] == {}
    assert status["restarts"] == {}
    assert sum(worker["served"] > 0 for worker in status["workers"]) == 4


@pytest.mark.parametrize("how", ["inf", "memory"])
def test_a_worker_that_gives_nan_or_runs_out_of_memory_is_replaced_and_the_item_scored(how: str, tmp_path: Path) -> None:
    options = {"counter": str(tmp_path / "times"), "suffix": "k1", "times": 1, "how": how}
    with _pool(_config("Sick", options)) as pool:
        clips = _clips(1, 4)
        before = pool.status()["workers"][0]["pid"]
        assert [verdict.total for verdict in _scored(pool, clips)] == [fingerprint(clip) for clip in clips]
        status = pool.status()
        assert status["restarts"] == {"memory" if how == "memory" else "nan": 1}
        assert (status["retried"], status["failures"]) == (1, {})
        assert status["workers"][0]["pid"] != before


def test_what_fails_twice_has_no_value_and_its_neighbours_do(tmp_path: Path) -> None:
    options = {"counter": str(tmp_path / "times"), "suffix": "k1", "times": 9, "how": "memory"}
    with _pool(_config("Sick", options)) as pool:
        clips = _clips(1, 4)
        verdicts = _scored(pool, clips)
        assert [verdict.total for verdict in verdicts] == [None if i == 1 else fingerprint(c) for i, c in enumerate(clips)]
        assert verdicts[1].scores[0].status == "failed"
        assert verdicts[1].scores[0].reason == "MemoryError: no room for the reconstruction"
        assert pool.status()["failures"] == {"memory": 1}
        assert pool.status()["failure_rate"] == 0.25
        assert (tmp_path / "times").stat().st_size == 2  # tried twice and no more


def test_a_plugin_that_gives_nan_again_and_again_is_not_held_against_the_workers(tmp_path: Path) -> None:
    options = {"counter": str(tmp_path / "times"), "suffix": "k1", "times": 999, "how": "nan"}
    with _pool(_config("Sick", options, batch=1)) as pool:
        for seed in range(6):
            assert _scored(pool, _clips(seed, 2))[1].total is None
        assert pool.status()["failures"] == {"nan": 6}
        assert pool.status()["restarts"]["nan"] <= 4


def test_an_item_that_kills_its_worker_takes_nobody_with_it(tmp_path: Path) -> None:
    """A batch of several callers' items is taken apart for the second try."""
    options = {"counter": str(tmp_path / "deaths"), "suffix": "k2", "deaths": 99}
    with _pool(_config("Fatal", options, batch=4, batch_wait=0.5)) as pool:
        clips = _clips(1, 4)
        verdicts = _scored(pool, clips)
        assert [verdict.total for verdict in verdicts] == [None if i == 2 else fingerprint(c) for i, c in enumerate(clips)]
        assert "the judge died" in verdicts[2].scores[0].reason
        assert pool.status()["restarts"] == {"died": 2}


def test_what_waits_behind_an_item_that_kills_its_worker_is_scored_and_not_held_responsible(tmp_path: Path) -> None:
    """The queue is long, so the next batches already wait in the process that dies."""
    options = {"counter": str(tmp_path / "deaths"), "suffix": "k3", "deaths": 99}
    with _pool(_config("Fatal", options, batch=1)) as pool:
        clips = _clips(1, 12)
        verdicts = _scored(pool, clips)
        assert [verdict.total for verdict in verdicts] == [None if i == 3 else fingerprint(c) for i, c in enumerate(clips)]
        status = pool.status()
        assert (status["restarts"], status["retried"], status["failures"]) == ({"died": 2}, 1, {"died": 1})


def test_a_worker_that_holds_too_much_memory_is_replaced_between_batches() -> None:
    with _pool(_config("Jittered", recycle_gib=0.001)) as pool:
        clips = _clips(1, 3)
        assert [verdict.total for verdict in _scored(pool, clips)] == [fingerprint(clip) for clip in clips]
        assert _wait(lambda: pool.status()["restarts"].get("recycled", 0) >= 1)
        assert pool.status()["failures"] == {}


def test_a_clip_of_other_content_than_was_announced_is_not_scored() -> None:
    with _pool(_config("Jittered", batch=1)) as pool:
        clips = _clips(1, 2)
        honest, swapped = _items(clips)
        changed = Item("other", swapped.id, honest.hash, "rigid", clips, swapped.index)
        good, bad = pool.submit([honest, changed]).result(timeout=60)
        assert good.total == fingerprint(clips[0])
        assert bad.total is None
        assert "asked for" in bad.scores[0].reason
        assert pool.status()["failures"] == {"raised": 1}


def test_the_hash_is_of_all_that_a_score_may_depend_on() -> None:
    clip = _clips(1, 1)[0]
    other = [
        Clip(clip.id, clip.video ^ np.uint8(1), clip.prompt, None),
        Clip(clip.id, clip.video, Prompt("p", "A blue box."), None),
        Clip(clip.id, clip.video, Prompt("p", "A red box.", "dynamic"), None),
        Clip(clip.id, clip.video, clip.prompt, None, fps=16.0),
        Clip(clip.id, clip.video.reshape(2, 2, 8, 3), clip.prompt, None),
    ]
    assert len({content_hash(c) for c in [clip, *other]}) == 6
    assert content_hash(Clip("other id", clip.video.copy(), PROMPT, None)) == content_hash(clip)


def test_a_full_queue_refuses_and_callers_who_wait_are_served() -> None:
    with _pool(_config("Slow", {"suffix": "k0", "seconds": 0.3}, batch=1, queue=4)) as pool:
        clips = _clips(1, 1)
        futures = [pool.offer(_items(clips)) for _ in range(4)]
        with pytest.raises(Busy, match="items wait already") as refused:
            futures += [pool.offer(_items(clips)) for _ in range(3)]
        assert 0 < refused.value.after <= 10
        assert all(future.result(timeout=60)[0].total == fingerprint(clips[0]) for future in futures)
        assert pool.status()["refused"] == 1
    with _served("narrow", _config("Jittered", batch=2, queue=3)) as narrow, ThreadPoolExecutor(8) as threads:
        work = [_clips(seed, 2) for seed in range(24)]
        for clips, verdicts in zip(work, threads.map(narrow.score, work), strict=True):
            assert [verdict.total for verdict in verdicts] == [fingerprint(clip) for clip in clips]
        assert client.status("narrow")["refused"] > 0


def test_workers_come_with_the_queue_and_go_with_it() -> None:
    replicas = {"min": 1, "max": 3, "queue": 2, "up_after": 0.2, "down_after": 0.5}
    with _pool(_config("Slow", {"suffix": "k0", "seconds": 0.4}, batch=1, replicas=replicas)) as pool:
        futures = [pool.submit(_items(_clips(seed, 1))) for seed in range(36)]
        assert _wait(lambda: pool.status()["replicas"]["ready"] == 3)
        for seed, future in enumerate(futures):
            assert future.result(timeout=120)[0].total == fingerprint(_clips(seed, 1)[0])
        assert _wait(lambda: pool.status()["replicas"]["ready"] == 1)
        assert pool.status()["restarts"] == {}
        assert _scored(pool, _clips(50, 1))[0].total == fingerprint(_clips(50, 1)[0])


def test_items_of_several_callers_share_a_batch_and_a_batch_waits_for_more_only_so_long() -> None:
    with _pool(_config("Slow", {"suffix": "none", "seconds": 0}, batch=8, batch_wait=0.3)) as pool:
        clips = _clips(1, 8)
        _scored(pool, clips[:1])  # the worker's first call is slow
        begin = time.monotonic()
        futures = [pool.submit(_items([clip])) for clip in clips]
        assert [future.result(timeout=60)[0].total for future in futures] == [fingerprint(clip) for clip in clips]
        full = time.monotonic() - begin
        begin = time.monotonic()
        _scored(pool, clips[:1])
        assert time.monotonic() - begin >= 0.3
        assert full < 0.3, "a full batch waits for nobody"


def test_closing_ends_the_wait_of_callers_and_says_nothing_of_verdicts(caplog: pytest.LogCaptureFixture) -> None:
    with _pool(_config("Slow", {"suffix": "k0", "seconds": 60.0}, batch=1)) as pool:
        futures = [pool.submit(_items(_clips(seed, 1))) for seed in range(3)]
        time.sleep(0.3)
    for future in [*futures, pool.submit(_items(_clips(9, 1)))]:
        with pytest.raises(Closed):
            future.result(timeout=10)
    assert "no verdict" not in caplog.text


def test_a_killed_pool_comes_back_and_the_caller_does_not_notice() -> None:
    with _served("phoenix", _config("Slow", {"suffix": "k0", "seconds": 1.5}, batch=1)) as pool, ThreadPoolExecutor(1) as threads:
        clips = _clips(1, 2)
        future = threads.submit(pool.score, clips)
        time.sleep(0.5)
        os.kill(client.status("phoenix")["server"]["pid"], signal.SIGKILL)
        assert [verdict.total for verdict in future.result(timeout=120)] == [fingerprint(clip) for clip in clips]
        assert "phoenix" in client.names()


def test_a_worker_gets_its_runtime_environment_and_a_pool_without_a_place_says_so() -> None:
    with _pool(_config("Environment", runtime_env={"env_vars": {"WORLD_R1_TEST": "pool"}}, gpus=0.0)) as pool:
        assert _scored(pool, _clips(1, 1))[0].total == 1.0
    with pytest.raises(PoolError, match=r"did not start: .*nothing after 2 s"):
        client.up("nowhere", _config("Environment", labels={"planet": "mars"}, patience=2))
    with pytest.raises(PoolError, match=r"did not start: .*no class 'Nothing'"):
        client.up("broken", _config("Nothing"))
    assert client.names() == []


def test_status_has_what_the_table_shows() -> None:
    with _served("figures", _config("Jittered", replicas={"min": 2, "max": 2})) as pool:
        pool.score(_clips(1, 30))
        status = client.status("figures")
        with pytest.raises(ValueError, match="a pool named 'figures' runs already"):
            client.up("figures", _config("Jittered"))
    assert status["replicas"] == {"ready": 2, "starting": 0, "min": 2, "max": 2}
    assert status["items"] == 30
    assert 0 < status["p50"] <= status["p95"] < 60
    assert status["rate"] > 0
    for worker in status["workers"]:
        assert worker["memory"] > 1e6
        assert {"python", "world-r1", "torch", "numpy", "ray"} <= worker["versions"].keys()
    with pytest.raises(ValueError, match=r"no pool named 'figures' .*none runs"):
        PoolClient("figures")


def _rewards(*entries: dict[str, Any], **settings: Any) -> RewardsConfig:
    return RewardsConfig.model_validate({"rewards": list(entries), **settings})


def test_a_run_on_two_pools_has_the_scores_of_its_own_judges_with_its_own_weights() -> None:
    bright = {"name": f"{REWARDS}:Brightness", "label": "bright"}
    print_ = {"name": f"{REWARDS}:Jittered", "label": "print"}
    one = PoolConfig(rewards=_rewards(bright), cpus=0.1)
    two = PoolConfig(rewards=_rewards(print_), cpus=0.1)
    config = _rewards({**print_, "weight": 0.5}, {**bright, "weight": 2.0, "phase": "rigid"}, pools=["one", "two"], batch=2)
    with _served("one", one) as first, _served("two", two) as second:
        attached = Attached(config, [first, second])
        clips = _clips(3, 5)
        ids, hashes = [clip.id for clip in clips], [content_hash(clip) for clip in clips]
        for kind in ("rigid", "dynamic"):
            futures = attached.score(ray.put(clips), ids, Prompt("p", "A red box.", kind), hashes)  # type: ignore[arg-type]
            verdicts = [verdict for future in futures for verdict in future.result(timeout=60)]
            assert [verdict.clip for verdict in verdicts] == ids
            for clip, verdict in zip(clips, verdicts, strict=True):
                bright_value = float(clip.video.mean()) / 255
                expected = {"print": fingerprint(clip)} | ({"bright": bright_value} if kind == "rigid" else {})
                assert {score.reward: score.value for score in verdict.scores} == expected
                assert verdict.total == pytest.approx(0.5 * fingerprint(clip) + (2 * bright_value if kind == "rigid" else 0))
        for wrong, message in (
            (_rewards({"name": f"{REWARDS}:Fingerprint", "label": "print"}), "make them the same"),
            (_rewards({"name": "constant"}), "none of one, two has it"),
        ):
            with pytest.raises(ValueError, match=message):
                Attached(wrong, [first, second])
        attached.close()
        assert client.names() == ["one", "two"]
