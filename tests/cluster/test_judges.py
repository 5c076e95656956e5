from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from tests.cluster.rewards import fingerprint
from world_r1.actors.judge import Judge, Judges
from world_r1.config import RewardsConfig
from world_r1.serving.items import missing
from world_r1.types import Clip, Prompt, Verdict

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_cluster")]

PROMPT = Prompt("p", "A red box.")
REWARDS = "tests.cluster.rewards"


def _clips(name: str, count: int) -> list[Clip]:
    rng = np.random.default_rng(abs(hash(name)) % 2**32)
    return [Clip(f"{name}-k{k}", rng.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8), PROMPT, None) for k in range(count)]


@contextmanager
def _crew(count: int, rewards: Sequence[dict[str, Any]], **settings: Any) -> Iterator[Judges]:
    config = RewardsConfig.model_validate({"rewards": list(rewards), **settings})
    actor = ray.remote(Judge).options(num_cpus=0.1)
    judges = Judges(config, lambda: actor.remote(config), patience=120)
    crew = [judges.make() for _ in range(count)]
    ray.get([judge.setup.remote() for judge in crew])
    judges.employ(crew)
    try:
        yield judges
    finally:
        judges.close()


def _score(judges: Judges, clips: list[Clip]) -> list[Verdict]:
    futures = judges.score(ray.put(clips), [clip.id for clip in clips], PROMPT)
    return [verdict for future in futures for verdict in future.result(timeout=120)]


def test_no_verdict_reaches_another_caller_under_many_callers_and_jittered_times() -> None:
    callers, each = 12, 5
    with _crew(4, [{"name": f"{REWARDS}:Fingerprint"}], batch=2) as judges, ThreadPoolExecutor(callers) as pool:
        groups = [_clips(f"caller{i}", each) for i in range(callers)]

        def call(i: int) -> list[Verdict]:
            time.sleep(random.Random(i).random() * 0.3)
            return _score(judges, groups[i])

        for clips, verdicts in zip(groups, pool.map(call, range(callers)), strict=True):
            assert [verdict.clip for verdict in verdicts] == [clip.id for clip in clips]
            assert [verdict.total for verdict in verdicts] == [fingerprint(clip) for clip in clips]
        assert judges.replaced == 0


def test_a_judge_that_dies_once_is_replaced_and_its_clips_are_scored(tmp_path: Path) -> None:
    options = {"counter": str(tmp_path / "deaths"), "suffix": "k2", "deaths": 1}
    with _crew(2, [{"name": f"{REWARDS}:Fatal", "options": options}], batch=2) as judges:
        clips = _clips("a", 6)
        assert [verdict.total for verdict in _score(judges, clips)] == [fingerprint(clip) for clip in clips]
        assert judges.replaced == 1


def test_clips_that_kill_two_judges_are_missing_and_the_others_are_scored(tmp_path: Path) -> None:
    options = {"counter": str(tmp_path / "deaths"), "suffix": "k2", "deaths": 99}
    with _crew(1, [{"name": f"{REWARDS}:Fatal", "options": options}], batch=2) as judges:
        clips = _clips("a", 6)
        verdicts = _score(judges, clips)
        assert [verdict.total for verdict in verdicts] == [
            None if i in (2, 3) else fingerprint(clip) for i, clip in enumerate(clips)
        ]  # a batch shares its judge's fate
        assert all(score.status == "failed" and "the judge died" in score.reason for i in (2, 3) for score in verdicts[i].scores)
        assert judges.replaced == 2
        assert [verdict.total for verdict in _score(judges, _clips("b", 2))] == [fingerprint(clip) for clip in _clips("b", 2)]


def test_a_judge_killed_from_outside_while_it_works_is_replaced() -> None:
    with (
        _crew(1, [{"name": f"{REWARDS}:Slow", "options": {"suffix": "k0", "seconds": 2.0}}]) as judges,
        ThreadPoolExecutor(1) as pool,
    ):
        clips = _clips("a", 2)
        pid = ray.get(judges.crew[0].pid.remote())
        future = pool.submit(_score, judges, clips)
        time.sleep(1.0)
        os.kill(pid, signal.SIGKILL)
        assert [verdict.total for verdict in future.result(timeout=120)] == [fingerprint(clip) for clip in clips]
        assert judges.replaced == 1


def test_a_time_out_is_a_missing_value_and_the_next_clips_are_scored() -> None:
    with _crew(1, [{"name": f"{REWARDS}:Slow", "options": {"suffix": "k1", "seconds": 60.0}}], batch=1, timeout=1.0) as judges:
        start = time.monotonic()
        clips = _clips("a", 3)
        verdicts = _score(judges, clips)
        assert [verdict.total for verdict in verdicts] == [fingerprint(clips[0]), None, fingerprint(clips[2])]
        assert verdicts[1].scores[0].status == "failed"
        assert "no verdict within 1 s" in verdicts[1].scores[0].reason
        assert judges.replaced == 2  # the clip is tried once more, on another judge
        assert time.monotonic() - start < 50


def test_a_replacement_that_does_not_start_is_an_error_and_not_a_hang(tmp_path: Path) -> None:
    options = {"counter": str(tmp_path / "deaths"), "suffix": "k0", "deaths": 99}
    with _crew(1, [{"name": f"{REWARDS}:Fatal", "options": options}], batch=1) as judges:
        broken = RewardsConfig.model_validate({"rewards": [{"name": f"{REWARDS}:None"}]})
        judges.make = lambda: ray.remote(Judge).options(num_cpus=0.1).remote(broken)
        futures = judges.score(ray.put(_clips("a", 4)), [f"a-k{k}" for k in range(4)], PROMPT)
        for future in futures:
            with pytest.raises(RuntimeError, match="replacement did not start"):
                future.result(timeout=60)


def test_missing_verdicts_name_the_rewards_that_count_for_the_kind_of_prompt() -> None:
    entries = [
        {"name": "one", "phase": "rigid"},
        {"name": "two"},
        {"name": "three", "phase": "dynamic"},
        {"name": "four", "weight": 0},
    ]
    config = RewardsConfig.model_validate({"rewards": entries})
    verdict = missing(config, "x", "dynamic", "why")
    assert (verdict.clip, verdict.total) == ("x", None)
    assert [(score.reward, score.status, score.reason) for score in verdict.scores] == [
        ("two", "failed", "why"),
        ("three", "failed", "why"),
    ]
