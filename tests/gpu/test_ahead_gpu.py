"""One step ahead, a reward that takes as long as a rollout is not waited for: the loop itself, with Wan2.1-1.3B's architecture.

Three counts of a busy GPU: the time that the loop does not wait for rewards; what `nvidia-smi` says, the time in which a kernel runs; and
the profiler's spans of one more steady step, which tell where the rest goes (gaps between kernels, or between calls).
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from world_r1.config import Config, load, parse
from world_r1.prompts import PromptStream

pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

RECIPE = Path(__file__).parents[2] / "configs/wan2.1_1.3b.yaml"
BAR = 0.92


def small(reward: dict[str, Any]) -> Config:
    """Four videos a step in two groups, nine frames each, not compiled: kernels are short."""
    model = {"path": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "random_weights": "full", "device": "cuda", "dtype": "bf16"}
    return parse(
        {
            "steps": 100,
            "save_every": 1000,  # before a checkpoint nothing is started ahead
            "model": {**model, "guidance_scale": 5.0},
            "video": {"frames": 9, "height": 480, "width": 832},
            "flow": {"steps": 4, "shift": 3.0, "family": "wan_sde", "noise_level": 1.0, "window": {"size": 2, "position": "first"}},
            "algorithm": {"kl": {"beta": 0.0}},
            "optimizer": {"micro_batch": 1},
            "speed": {"vae_dtype": "bf16", "latents": "bf16", "text_encoder": "free", "fused_optimizer": True},
            "rewards": {"rewards": [reward], "batch": 1, "timeout": 120},
            "prompts": {"groups": 2, "group_size": 2},
            "cluster": {"judges": 1, "max_staleness": 1, "sample_batch": 2, "timeout": 400},
        }
    )


def recipe(reward: dict[str, Any]) -> Config:
    """The recommended recipe as it is configured, 81 frames, with two groups of two videos a step."""
    changed = {
        "steps": 100,
        "save_every": 1000,
        "model.random_weights": "full",
        "model.device": "cuda",
        "rewards": {"rewards": [reward], "batch": 1, "timeout": 400},
        "prompts": {"groups": 2, "group_size": 2},
        "cluster.judges": 1,
        "cluster.sample_batch": 2,
    }
    return load(RECIPE, [f"{key}={json.dumps(value)}" for key, value in changed.items()])


def steady(config: Config, folder: Path, seconds: Path, counted: int) -> dict[str, Any]:
    """Of `counted` steady steps: their seconds, the share that the loop did not wait for rewards, the GPU's own count; of the next
    one what the profiler sees."""
    from world_r1 import loop, loop_async
    from world_r1.actors.cluster import Cluster

    rows: list[tuple[float, dict[str, Any]]] = []
    watched: list[float] = []
    stream = PromptStream.of(config)
    with Cluster(config) as cluster:

        def row(step: int, values: dict[str, Any]) -> None:
            rows.append((time.monotonic(), values))
            if step == counted + 1:  # the first step warms up
                _in(cluster.learner, start_profile)
                watched.append(time.monotonic())

        hooks = loop.Hooks(row, lambda scored: None, lambda step: None, lambda: "seen" if len(rows) == counted + 2 else "")
        rollout = _rollout(cluster, stream, seconds)
        seconds.write_text(str(rollout / 4), encoding="utf-8")
        with Watch() as watch:
            loop_async.run(config, cluster, stream, folder, 0, hooks)
        spans = _in(cluster.learner, stop_profile)
    total = sum(values["time/total"] for _, values in rows[1 : counted + 1])
    waited = sum(values["time/reward"] for _, values in rows[1 : counted + 1])
    begin, end = watched[0], rows[counted + 1][0]
    return {
        "rollout (s)": rollout,
        "steps (s)": [values["time/total"] for _, values in rows[1:]],
        "busy by the loop": 1 - waited / total,
        "busy by the GPU": watch.mean(rows[0][0], rows[counted][0]),
        "profiled": {"busy by the GPU": watch.mean(begin, end), **described(spans, end - begin)},
    }


def _rollout(cluster: Any, stream: PromptStream, seconds: Path) -> float:
    """Seconds of a warm rollout whose judging takes none."""
    seconds.write_text("0", encoding="utf-8")
    for step in range(2):  # the first warms up
        begin = time.monotonic()
        cluster.rollout(step, stream.at(step))
    return time.monotonic() - begin


def _in(actor: Any, function: Any) -> Any:
    import ray

    return ray.get(actor.__ray_call__.remote(function))


def start_profile(learner: Any) -> None:
    """In the learner's process, between two of its calls: the profiler watches the GPU from now on."""
    from torch.profiler import ProfilerActivity, profile

    learner.seen = profile(activities=[ProfilerActivity.CUDA])
    learner.seen.start()
    learner.begin = time.time_ns()


def stop_profile(learner: Any) -> list[tuple[int, int]]:
    """When each kernel and copy since `start_profile` began and ended, in ns since then, by their beginnings."""
    learner.seen.stop()
    events = learner.seen.profiler.kineto_results.events()
    spans = [(e.start_ns() - learner.begin, e.end_ns() - learner.begin) for e in events if e.device_type().name == "CUDA"]
    return sorted(spans)


def described(spans: list[tuple[int, int]], seconds: float) -> dict[str, Any]:
    """Share of the first `seconds` in which a kernel or copy ran, and the seconds and numbers of the gaps between them by length."""
    spans = [span for span in spans if span[0] < seconds * 1e9]
    gaps = list(_gaps(spans, seconds * 1e9))
    bounds = {"to 10 us": (0, 1e4), "to 1 ms": (1e4, 1e6), "to 20 ms": (1e6, 2e7), "longer": (2e7, float("inf"))}
    return {
        "seconds": seconds,
        "busy by the profiler": 1 - sum(gaps) / 1e9 / seconds,
        "kernels": len(spans),
        "gaps": {
            name: {"number": len(chosen), "s": round(sum(chosen) / 1e9, 4)}
            for name, (low, high) in bounds.items()
            if (chosen := [gap for gap in gaps if low <= gap < high])
        },
        "longest (s)": [round(gap / 1e9, 3) for gap in sorted(gaps)[-8:]],
    }


def _gaps(spans: list[tuple[int, int]], end: float) -> Iterator[float]:
    reached = 0.0
    for start, stop in [*spans, (end, end)]:
        if start > reached:
            yield start - reached
        reached = max(reached, stop)


class Watch:
    """The GPU's utilisation, the share of time in which a kernel runs, asked for five times a second."""

    def __enter__(self) -> Watch:
        command = ["nvidia-smi", "--id=0", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--loop-ms=200"]
        self.begin = time.monotonic()
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.end = time.monotonic()
        self.process.terminate()
        text, _ = self.process.communicate()
        self.values = [float(line) / 100 for line in text.split()]

    def mean(self, first: float, last: float) -> float:
        each = (self.end - self.begin) / len(self.values)
        chosen = self.values[int((first - self.begin) / each) : int((last - self.begin) / each)]
        return sum(chosen) / len(chosen)


@pytest.mark.usefixtures("ray_on_gpus")
@pytest.mark.parametrize(("case", "counted"), [(small, 3), (recipe, 1)])
def test_a_reward_as_long_as_a_rollout_is_not_waited_for(tmp_path: Path, case: Any, counted: int) -> None:
    seconds = tmp_path / "seconds"
    reward = {"name": "tests.cluster.rewards:Told", "options": {"file": str(seconds)}}
    found = steady(case(reward), tmp_path / "run", seconds, counted)
    found = {"device": torch.cuda.get_device_name(), "commit": os.environ.get("WORLD_R1_COMMIT"), "case": case.__name__, **found}
    print(json.dumps(found))
    assert found["busy by the loop"] >= BAR, found
    if case is recipe:  # at nine frames the gaps between short kernels are seen
        assert found["busy by the GPU"] >= BAR, found
