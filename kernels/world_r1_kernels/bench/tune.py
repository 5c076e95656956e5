"""Choose tile shapes on the device: right first, then fast.

Each candidate has a process of its own, because one may crash the compiler. The processes of one kernel compile and check side by side, on
the CPU's cores; when all of them have finished that, they are timed one after the other with the GPU to themselves.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from typing import Any

import torch

from world_r1_kernels.bench.shapes import Shape
from world_r1_kernels.bench.steps import Steps
from world_r1_kernels.pyramid_attention import PyramidConfig, launch, launch_backward, make_plan, operator, tuning

#: A candidate that compiles and checks for longer than this is out.
TIME_LIMIT = 150
#: The plan that candidates are timed on.
TIMED = PyramidConfig(density=0.10)
#: What a candidate must compute rightly before it is timed; the check of the whole bench, with the winners, has every other ingredient.
CHECKED = ((TIMED, 4097), (PyramidConfig(density=0.4, rest=32), 1000))


@dataclass
class Trial:
    """One candidate's process."""

    kind: str
    settings: dict[str, Any]
    process: subprocess.Popen[str]
    messages: queue.Queue[dict[str, Any]]
    began: float

    @classmethod
    def start(cls, kind: str, settings: dict[str, Any], shape: Shape) -> Trial:
        """Start the process; a thread puts every message of it into the queue, and {"ended": how} at the end."""
        job = json.dumps({"kind": kind, "settings": settings, "shape": asdict(shape)})
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, job],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        messages: queue.Queue[dict[str, Any]] = queue.Queue()

        def listen() -> None:
            last = "no message"
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("{"):
                    messages.put(json.loads(line))
                elif line.strip() and ("Error" in line or "Error" not in last):  # CUDA's advice follows what went wrong
                    last = line.strip()
            messages.put({"ended": f"{last[:300]} (exit {process.wait()})"})

        threading.Thread(target=listen, daemon=True).start()
        return cls(kind, settings, process, messages, time.monotonic())

    def wait(self, seconds: float) -> dict[str, Any]:
        """The next message, or {"ended": "..."} once the time is up."""
        try:
            return self.messages.get(timeout=max(seconds, 0.1))
        except queue.Empty:
            return {"ended": f"no answer for {time.monotonic() - self.began:.0f} s"}

    def measure(self) -> dict[str, Any]:
        """Let the process time itself; {"ms": ...} or {"ended": ...}."""
        if self.process.stdin is None:
            raise RuntimeError("the trial has no input to be told on")
        try:
            self.process.stdin.write("time\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it ended meanwhile, which the queue tells
        return self.wait(60)

    def stop(self) -> None:
        """End the process if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def tune(shape: Shape, steps: Steps, device: torch.device, workers: int | None = None) -> dict[str, Any]:
    """Fastest right settings of every kernel at `shape`; written into the table, and beside the result, as each is found.

    Returns {kind: {"ms", "settings", "tried": [...]}}.
    """
    kinds: dict[str, list[dict[str, Any]]] = {"forward": [asdict(s) for s in tuning.FORWARD_CANDIDATES]}
    kinds |= {kind: list(candidates) for kind, candidates in tuning.BACKWARD_CANDIDATES.items()}
    turns = zip_longest(*([(kind, settings) for settings in candidates] for kind, candidates in kinds.items()))
    jobs = [job for turn in turns for job in turn if job is not None]  # the likeliest of every kernel first
    found: dict[str, Any] = {kind: {"tried": []} for kind in kinds}
    steps.result.setdefault("tuned", {})[str(shape.width)] = found
    width = workers or max(1, min((os.cpu_count() or 2) - 1, 15))
    reserve = 110.0  # seconds that the check and the table need afterwards
    for first in range(0, len(jobs), width):
        if steps.left < reserve + 45:
            steps.say(f"width {shape.width}: {len(jobs) - first} candidates not tried, the time is up")
            break
        _batch(jobs[first : first + width], shape, steps, found, reserve)
        for kind in kinds:
            _keep_best(kind, found[kind], shape, steps, device)
    return found


def _keep_best(kind: str, found: dict[str, Any], shape: Shape, steps: Steps, device: torch.device) -> None:
    """Write the fastest right settings so far into the table."""
    right = [row for row in found["tried"] if "ms" in row]
    if not right:
        steps.say(f"{kind}, width {shape.width}: no candidate is right on this device so far; the table keeps what it has")
        return
    best = min(right, key=lambda row: row["ms"])
    found |= {"ms": best["ms"], "settings": best["settings"]}
    _record(kind, best["settings"], shape.width, device)
    tuning.keep_copy(steps.path.parent)
    steps.say(f"{kind}, width {shape.width}: {best['ms']:.3f} ms with {_short(best['settings'])}")
    steps.save()


def _batch(jobs: list[tuple[str, dict[str, Any]]], shape: Shape, steps: Steps, found: dict[str, Any], reserve: float) -> None:
    """Compile and check side by side, then time one by one; a row per candidate into found[kind]["tried"]."""
    limit = time.monotonic() + min(TIME_LIMIT, max(steps.left - reserve - 15, 1))
    trials = [Trial.start(kind, settings, shape) for kind, settings in jobs]
    ready = []
    try:
        for trial in trials:
            message = trial.wait(limit - time.monotonic())
            if "ended" in message:
                found[trial.kind]["tried"].append({"settings": trial.settings, "refused": message["ended"]})
                steps.say(f"  {trial.kind} {_short(trial.settings)}: refused: {message['ended'][:160]}")
                trial.stop()
            else:
                ready.append((trial, message))
        for trial, message in ready:
            row = {"settings": trial.settings, **message, **trial.measure()}
            found[trial.kind]["tried"].append(row)
            trial.stop()
            outcome = f"{row['ms']:.3f} ms" if "ms" in row else f"not timed: {row['ended'][:160]}"
            steps.say(
                f"  {trial.kind} {_short(trial.settings)}: {outcome}, error {row['error']:.1e}, ready after {row['seconds']:.0f} s"
            )
            steps.save()
    finally:
        for trial in trials:
            trial.stop()


def _short(settings: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in settings.items())


def _record(kind: str, settings: dict[str, Any], width: int, device: torch.device) -> None:
    if kind == "forward":
        tuning.record(device, f"forward-{width}", tuning.ForwardSettings(**settings))
    else:
        tuning.record(device, f"backward-{width}", replace(tuning.backward_settings(device, width), **settings))


def use(kind: str, settings: dict[str, Any], width: int, device: torch.device) -> None:
    """Let the operator use these settings in this process."""
    if kind == "forward":
        forward = tuning.ForwardSettings(**settings)
        operator.forward_settings = lambda *_: forward  # type: ignore[assignment]
    else:
        backward = replace(tuning.backward_settings(device, width), **settings)
        operator.backward_settings = lambda *_: backward  # type: ignore[assignment]


def prepare(kind: str, settings: dict[str, Any], shape: Shape) -> tuple[float, Callable[[], Any]]:
    """Largest error over `CHECKED`, and the call to time, run once; RuntimeError if the candidate is wrong."""
    from world_r1_kernels.bench.attention import TOLERANCE, compare, inputs

    device = torch.device("cuda")
    use(kind, settings, shape.width, device)
    worst = 0.0
    for config, tokens in CHECKED:
        error = compare("candidate", config, tokens, shape.width, torch.bfloat16, device, gradients=kind != "forward")
        worst = max(worst, error)
        if not error < TOLERANCE[torch.bfloat16]:
            raise RuntimeError(f"error {error:.2e} against the reference ({config.levels}, {tokens} tokens)")
    q, k, v, grad = inputs(shape, device)
    plan = make_plan(q, k, TIMED)
    g = launch.Geometry.of(q, k, plan, False)
    scale = shape.width**-0.5
    if kind == "forward":
        pyramid = launch.pool(k, v, None, g)
        listed = launch.lists(plan, pyramid, g)
        out, lse = torch.empty_like(q), torch.empty(q.shape[:3], dtype=torch.float32, device=device)
        chosen = tuning.ForwardSettings(**settings)

        def call() -> Any:
            return launch.attend(q, k, v, plan, pyramid, listed, out, lse, scale, chosen, g)
    else:
        forward = tuning.forward_settings(device, shape.width)
        backward = replace(tuning.backward_settings(device, shape.width), **settings)
        work = launch_backward.prepare_backward(
            q, k, v, *launch.forward(q, k, v, plan, scale, forward, False), grad, None, plan, scale, backward, False
        )
        pooled = launch_backward.grad_pooled(work)
        parts: dict[str, Callable[[], Any]] = {
            "dq": lambda: launch_backward.grad_q(work),
            "dkv": lambda: launch_backward.grad_kv(work, pooled),
            "pooled": lambda: launch_backward.grad_pooled(work),
        }
        call = parts[kind]
    call()
    torch.cuda.synchronize()
    return worst, call


def main(request: dict[str, Any]) -> None:
    """A trial's process: check, say so, time when told to."""
    from world_r1_kernels.bench.attention import timed

    began = time.monotonic()
    error, call = prepare(request["kind"], request["settings"], Shape(**request["shape"]))
    print(json.dumps({"error": error, "seconds": time.monotonic() - began}), flush=True)
    if sys.stdin.readline().strip() == "time":
        print(json.dumps({"ms": timed(call)}), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
