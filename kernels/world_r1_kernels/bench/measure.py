"""The timings of `world-r1 bench attention` on a GPU: dense baselines, ours as a whole and part by part."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from world_r1_kernels.bench.attention import inputs, settings_of, timed
from world_r1_kernels.bench.shapes import Shape
from world_r1_kernels.bench.steps import Steps
from world_r1_kernels.pyramid_attention import Plan, PyramidConfig, launch, launch_backward, make_plan, pyramid_attention, tuning


def shape(
    shape: Shape, rows: Sequence[tuple[float, int]], steps: Steps, device: torch.device, dense: dict[str, float], flash: bool = True
) -> None:
    """Rows (density, rest) of one shape into `steps.result["rows"]`: the dense baselines (what `dense` does not hold yet), then ours."""
    baselines = [("cudnn", SDPBackend.CUDNN_ATTENTION), *([("flash", SDPBackend.FLASH_ATTENTION)] if flash else [])]
    for name, backend in baselines:
        for what, call in (("forward", _dense_forward), ("backward", _dense_backward)):
            if f"{name} {what} ms" in dense:
                continue
            ms = steps.step(
                f"{shape.name} {name} {what}",
                lambda call=call, backend=backend: call(shape, backend, device),  # type: ignore[misc]
                needs=20,
            )
            if ms is not None:
                dense[f"{name} {what} ms"] = ms
                steps.say(f"{shape.name} {name} {what}: {ms:.3f} ms")
    for density, rest in rows:
        row: dict[str, Any] = {"shape": shape.name, "density": density, "rest": rest, **dense}
        steps.result["rows"].append(row)
        steps.step(f"{shape.name} density {density}, rest {rest}", lambda row=row: ours(shape, row, steps, device), needs=15)  # type: ignore[misc]
        torch.cuda.empty_cache()


def _dense_forward(shape: Shape, backend: SDPBackend, device: torch.device) -> float:
    q, k, v, _ = inputs(shape, device)
    with sdpa_kernel(backend):
        return timed(lambda: scaled_dot_product_attention(q, k, v))


def _dense_backward(shape: Shape, backend: SDPBackend, device: torch.device) -> float:
    *leaves, grad = inputs(shape, device)
    leaves = [x.requires_grad_() for x in leaves]
    with sdpa_kernel(backend):
        out = scaled_dot_product_attention(*leaves)
        return timed(_backward(out, leaves, grad))


def _backward(out: torch.Tensor, leaves: list[torch.Tensor], grad: torch.Tensor) -> Callable[[], Any]:
    return lambda: torch.autograd.grad(out, leaves, grad, retain_graph=True)


def ours(shape: Shape, row: dict[str, Any], steps: Steps, device: torch.device) -> None:
    """Fill `row`: forward and backward with everything, the parts, FlexAttention on the same full blocks, and the ratios."""
    q, k, v, grad = inputs(shape, device)
    config = PyramidConfig(density=row["density"], rest=row["rest"])
    plan: Plan = make_plan(q, k, config)
    row |= {"attention density": plan.attention_density, "estimator density": plan.estimator_cost}
    row["settings"] = settings_of(device, shape.width)
    label = f"{shape.name} density {row['density']}, rest {row['rest']}"

    def note(name: str, call: Callable[[], Any]) -> float | None:
        ms = steps.step(f"{label} {name}", lambda: timed(call), needs=10)
        if ms is not None:
            row[f"{name} ms"] = ms
            steps.say(f"  {name}: {ms:.3f} ms")
        return ms

    def everything() -> torch.Tensor:
        return pyramid_attention(q, k, v, config)

    whole = note("forward with everything", everything)
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    graph = pyramid_attention(leaves[0], leaves[1], leaves[2], plan)
    backward = note("backward", _backward(graph, leaves, grad))
    row["launches"] = {
        "forward": steps.step(
            f"{label} launches of the forward", lambda: launches(lambda: pyramid_attention(q, k, v, config)), needs=10
        ),
        "backward": steps.step(f"{label} launches of the backward", lambda: launches(_backward(graph, leaves, grad)), needs=10),
    }
    for name, found in row["launches"].items():
        for entry in found or ():
            steps.say(f"  {name}: {entry['us']:8.1f} us  {entry['count']} x {entry['name']}")
    if found := row["launches"]["forward"]:
        row["overhead ms"] = sum(entry["us"] for entry in found if "forward_kernel" not in entry["name"]) / 1000
        steps.say(f"  overhead, all but the attention kernel, on the GPU: {row['overhead ms']:.3f} ms")
    parts(q, k, v, grad, plan, config, note)
    rates(row, plan, shape, steps)
    for name, mine, base in (("forward", whole, "cudnn forward ms"), ("backward", backward, "cudnn backward ms")):
        if mine and base in row:
            row[f"{name} against cudnn"] = row[base] / mine
            steps.say(f"  {name} against cuDNN: {row[base] / mine:.2f}x")
    row["host ms"] = {
        "forward": steps.step(f"{label} host time of the forward", lambda: host(everything)),
        "backward": steps.step(f"{label} host time of the backward", lambda: host(_backward(graph, leaves, grad))),
    }
    steps.say(f"  host: {row['host ms']}")
    replayed = steps.step(f"{label} CUDA graph", lambda: replay(everything), needs=10)
    if replayed is not None:
        row["forward with everything, CUDA graph ms"] = replayed
        steps.say(f"  forward with everything, replayed as a CUDA graph: {replayed:.3f} ms")
    if row["density"] == 0.10 and row["rest"] == 64:
        note("forward with everything, blocks of 64", lambda: pyramid_attention(q, k, v, replace(config, block=64, rest=64)))
    flex = steps.step(f"{label} FlexAttention", lambda: _flex(q, k, v, plan), needs=45)
    if flex is not None:
        row["flex forward ms"] = flex
        steps.say(f"  FlexAttention on the same full blocks: {flex:.3f} ms")


def rates(row: dict[str, Any], plan: Plan, shape: Shape, steps: Steps) -> None:
    """Executed TFLOP/s of every launch with matrix products: 2 D operations a pair and product; 2, 3 and 4 products."""
    full = float((plan.keys * (plan.levels == 1)).double().sum() / plan.keys.double().sum()) * plan.attention_density
    other = plan.attention_density - full
    row["density of full blocks"] = full
    work = {
        "kernel": 2 * (full + other),
        "kernel, full blocks alone": 2 * full,
        "kernel, other parts alone": 2 * other,
        "backward: dq": 3 * (full + other),
        "backward: pooled": 4 * other,
        "backward: dk, dv": 4 * full,
    }
    for name, products in work.items():
        if ms := row.get(f"{name} ms"):
            row[f"{name} TFLOP/s"] = 2 * products * shape.pairs * shape.width / ms / 1e9
            steps.say(f"  {name}: {row[f'{name} TFLOP/s']:.0f} TFLOP/s")


def host(call: Callable[[], Any], repeats: int = 20) -> float:
    """Milliseconds of the CPU per call, to start everything; waits for the GPU count where its queue is full."""
    call()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(repeats):
        call()
    spent = time.perf_counter() - begin
    torch.cuda.synchronize()
    return 1000 * spent / repeats


def replay(call: Callable[[], Any]) -> float:
    """Milliseconds of `call` replayed as a CUDA graph: the GPU's time without the host's."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side), torch.no_grad():
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        call()
    return timed(graph.replay)


def launches(call: Callable[[], Any], repeats: int = 5) -> list[dict[str, Any]]:
    """Microseconds on the GPU per call and launches per call of every kernel that `call` starts, largest first."""
    from torch.profiler import ProfilerActivity, profile

    call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as record:
        for _ in range(repeats):
            call()
        torch.cuda.synchronize()
    rows = [
        {"name": event.key[:80], "us": event.self_device_time_total / repeats, "count": event.count / repeats}
        for event in record.key_averages()
        if event.self_device_time_total > 0
    ]
    if not rows:
        raise RuntimeError("the profiler saw no kernel on this machine")
    return sorted(rows, key=lambda row: -row["us"])


def parts(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    grad: torch.Tensor,
    plan: Plan,
    config: PyramidConfig,
    note: Callable[[str, Callable[[], Any]], float | None],
) -> None:
    """Time every launch by itself."""
    device, width = q.device, q.shape[-1]
    g = launch.Geometry.of(q, k, plan, False)
    pyramid = launch.pool(k, v, None, g)
    listed = launch.lists(plan, pyramid, g)
    out, lse = torch.empty_like(q), torch.empty(q.shape[:3], dtype=torch.float32, device=device)
    settings, scale = tuning.forward_settings(device, width), width**-0.5
    note("select", lambda: make_plan(q, k, config))
    note("pool", lambda: launch.pool(k, v, None, g))
    note("list", lambda: launch.lists(plan, pyramid, g))
    note("kernel", lambda: launch.attend(q, k, v, plan, pyramid, listed, out, lse, scale, settings, g))
    for phase, name in ((1, "kernel, full blocks alone"), (2, "kernel, other parts alone")):
        note(name, lambda phase=phase: launch.attend(q, k, v, plan, pyramid, listed, out, lse, scale, settings, g, (phase,)))  # type: ignore[misc]
    launch.attend(q, k, v, plan, pyramid, listed, out, lse, scale, settings, g)
    backward = tuning.backward_settings(device, width)
    work = launch_backward.prepare_backward(q, k, v, out, lse, grad, None, plan, scale, backward, False)
    pooled = launch_backward.grad_pooled(work)
    note(
        "backward: delta, pool, list",
        lambda: launch_backward.prepare_backward(q, k, v, out, lse, grad, None, plan, scale, backward, False),
    )
    note("backward: dq", lambda: launch_backward.grad_q(work))
    note("backward: pooled", lambda: launch_backward.grad_pooled(work))
    note("backward: dk, dv", lambda: launch_backward.grad_kv(work, pooled))


def _flex(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: Plan) -> float:
    """Milliseconds of FlexAttention on the plan's full blocks alone."""
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    full = plan.levels == 1
    order = torch.argsort(~full, dim=-1, stable=True).int()
    mask = BlockMask.from_kv_blocks(full.sum(-1).int(), order, BLOCK_SIZE=plan.block, seq_lengths=(q.shape[2], k.shape[2]))
    compiled = torch.compile(flex_attention)
    return timed(lambda: compiled(q, k, v, block_mask=mask))
