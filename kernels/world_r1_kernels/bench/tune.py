"""Choose tile shapes on the device: right first, then fast. Each candidate runs in its own process, because one may crash the compiler."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from world_r1_kernels.bench.shapes import SHAPES, Shape
from world_r1_kernels.pyramid_attention import PyramidConfig, make_plan, operator, pyramid_attention, tuning

#: A candidate that takes longer than this, compilation included, is out.
TIME_LIMIT = 120


def tune(device: torch.device, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Time every candidate of every kernel and head width that agrees with the reference; write the fastest into the table."""
    chosen: dict[str, Any] = {}
    for shape in (SHAPES[0], SHAPES[3]):
        for kind, candidates in (("forward", tuning.FORWARD_CANDIDATES), ("backward", tuning.BACKWARD_CANDIDATES)):
            times = [(_in_process(kind, asdict(candidate), shape, say), candidate) for candidate in candidates]
            usable = [(ms, candidate) for ms, candidate in times if ms is not None]
            if not usable:
                say(f"{kind}, width {shape.width}: no candidate is right on this device; the table is left as it is")
                continue
            best, settings = min(usable, key=lambda pair: pair[0])
            tuning.record(device, f"{kind}-{shape.width}", settings)
            chosen[f"{kind}-{shape.width}"] = {
                "ms": best,
                "settings": asdict(settings),
                "of": len(usable),
                "refused": len(times) - len(usable),
            }
            say(f"{kind}, width {shape.width}: {best:.3f} ms with {settings}")
    return chosen


def _in_process(kind: str, settings: dict[str, Any], shape: Shape, say: Callable[[str], None]) -> float | None:
    """Milliseconds of one candidate, None if it is wrong, crashes or hangs."""
    order = json.dumps({"kind": kind, "settings": settings, "shape": asdict(shape)})
    try:
        done = subprocess.run(
            [sys.executable, "-m", __name__, order], capture_output=True, text=True, timeout=TIME_LIMIT, check=False
        )
    except subprocess.TimeoutExpired:
        say(f"  {kind} {settings}: over {TIME_LIMIT} s")
        return None
    if done.returncode != 0:
        say(f"  {kind} {settings}: refused: {(done.stderr.strip().splitlines() or ['no message'])[-1][:160]}")
        return None
    milliseconds = float(done.stdout.strip().splitlines()[-1])
    say(f"  {kind} {settings}: {milliseconds:.3f} ms")
    return milliseconds


def trial(kind: str, settings: dict[str, Any], shape: Shape) -> float:
    """Check one candidate on this device, then time it; RuntimeError if it is wrong."""
    from world_r1_kernels.bench.attention import TOLERANCE, _backward, _inputs, compare, timed

    if kind == "forward":
        chosen = tuning.ForwardSettings(**settings)
        operator.forward_settings = lambda *_: chosen  # type: ignore[assignment]
    else:
        operator.backward_settings = lambda *_: tuning.BackwardSettings(**settings)  # type: ignore[assignment]
    device = torch.device("cuda")
    for config in (
        PyramidConfig(density=0.4, levels=(1, 2, 4, 8), rest=32),
        PyramidConfig(density=0.3),
        PyramidConfig(0.6, causal=True),
    ):
        for tokens in (1000, 4097):
            error = compare("candidate", config, tokens, shape.width, torch.bfloat16, device)
            if not error < TOLERANCE[torch.bfloat16]:
                raise RuntimeError(f"error {error:.2e} against the reference")
    q, k, v, grad = _inputs(shape, device)
    plan = make_plan(q, k, PyramidConfig(density=0.10, rest=32))
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    if kind == "forward":
        return timed(lambda: pyramid_attention(q, k, v, plan))
    return timed(_backward(pyramid_attention(leaves[0], leaves[1], leaves[2], plan), leaves, grad))


if __name__ == "__main__":
    request = json.loads(sys.argv[1])
    print(trial(request["kind"], request["settings"], Shape(**request["shape"])))
