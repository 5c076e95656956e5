"""`world-r1 bench attention`: is it right on this machine, and only then, how fast."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from world_r1_kernels.bench.shapes import DENSITIES, QUICK_CPU, QUICK_GPU, SHAPES, Shape, machine, results_folder
from world_r1_kernels.pyramid_attention import Plan, PyramidConfig, make_plan, pyramid_attention, reference

#: Largest error allowed against the float32 reference, as a share of the largest value.
TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 4e-3, torch.float32: 5e-6}


def run(quick: bool = False, tune: bool = False, say: Callable[[str], None] = print, out: Path | None = None) -> dict[str, Any]:
    """Check, then measure every shape and density; writes and returns the result.

    Without a GPU only the check runs, in Triton's interpreter. RuntimeError if the kernels disagree with the reference: no speed is shown.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    checks = check(device, say)
    result: dict[str, Any] = {"machine": machine(device), "checks": checks, "rows": []}
    if device.type != "cuda":
        say("no GPU here: checked in Triton's interpreter, nothing timed")
        return result
    from world_r1_kernels.bench import tune as tuner

    if tune:
        result["tuned"] = tuner.tune(device, say)
    for shape in QUICK_GPU if quick else SHAPES:
        dense = _dense(shape, device)
        say(f"{shape.name}: " + ", ".join(f"{name} {ms:.2f} ms" for name, ms in dense.items() if ms is not None))
        for density in (0.10,) if quick else DENSITIES:
            row = {"shape": shape.name, "density": density, **dense, **_sparse(shape, density, device)}
            result["rows"].append(row)
            say("  " + ", ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items() if k not in dense))
            torch.cuda.empty_cache()
    path = (
        out or results_folder()
    ) / f"attention-{result['machine']['device'].replace(' ', '-').lower()}{'-quick' if quick else ''}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    say(f"wrote {path}")
    return result


def check(device: torch.device, say: Callable[[str], None] = print) -> list[dict[str, Any]]:
    """Output and gradients against the float32 reference for plans with every ingredient; RuntimeError on the first that is off."""
    rows = []
    gpu = device.type == "cuda"
    cases = [
        ("means", PyramidConfig(density=0.4)),
        ("rest tokens of 16", PyramidConfig(density=0.4, rest=16)),
        ("all levels", PyramidConfig(density=0.4, levels=(1, 2, 4, 8), rest=32)),
        ("causal", PyramidConfig(density=0.6, causal=True)),
        ("dropped", PyramidConfig(density=0.4, rest=0)),
    ]
    for width in (64, 128) if gpu else (64,):
        for name, config in cases if gpu else cases[2:3]:
            tokens = 1000 if gpu else QUICK_CPU[0].tokens
            dtype = torch.bfloat16 if gpu else torch.float32
            error = compare(name, config, tokens, width, dtype, device)
            rows.append({"case": name, "width": width, "error": error})
            say(f"{name}, width {width}: largest error {error:.1e}")
            if not error < TOLERANCE[dtype]:
                raise RuntimeError(
                    f"the kernels are wrong on this machine ({name}, width {width}: error {error:.2e}); nothing was timed"
                )
    return rows


def compare(name: str, config: PyramidConfig, tokens: int, width: int, dtype: torch.dtype, device: torch.device) -> float:
    """Largest error of output, dq, dk, dv, each as a share of its largest value; NaN counts as infinite."""
    generator = torch.Generator().manual_seed(tokens + width)
    q, k, v, grad = (torch.randn(1, 2, tokens, width, generator=generator).to(device, dtype) for _ in range(4))
    k = (k.float() + k.float().roll(1, 2) + k.float().roll(2, 2)).to(dtype)  # neighbours resemble each other, as in a video
    plan = make_plan(q, k, config)
    exact = [x.detach().float().requires_grad_() for x in (q, k, v)]
    target, _ = reference.attention(exact[0], exact[1], exact[2], plan)
    target.backward(grad.float())
    ours = [x.detach().requires_grad_() for x in (q, k, v)]
    out = pyramid_attention(ours[0], ours[1], ours[2], plan, backend="triton")
    out.backward(grad)
    pairs = [(out, target), *((mine.grad, his.grad) for mine, his in zip(ours, exact, strict=True))]
    worst = max(float(((a.float() - b).abs().max() / b.abs().max()).detach()) for a, b in pairs)  # type: ignore[union-attr,operator]
    finite = all(bool(torch.isfinite(a).all()) for a, _ in pairs)  # type: ignore[arg-type]
    return worst if finite else float("inf")


def _inputs(shape: Shape, device: torch.device) -> list[torch.Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    size = (shape.batch, shape.heads, shape.tokens, shape.width)
    return [torch.randn(size, generator=generator, device=device, dtype=torch.bfloat16) for _ in range(4)]


def timed(call: Callable[[], Any]) -> float:
    """Median milliseconds, L2 flushed between calls."""
    from triton.testing import do_bench

    return float(do_bench(call, warmup=50, rep=300, return_mode="median"))


def _dense(shape: Shape, device: torch.device) -> dict[str, float | None]:
    """Forward and backward of the dense baselines; None where a backend refuses the shape."""
    q, k, v, grad = _inputs(shape, device)
    times: dict[str, float | None] = {}
    for name, backend in (("cudnn", SDPBackend.CUDNN_ATTENTION), ("flash", SDPBackend.FLASH_ATTENTION)):
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        try:
            with sdpa_kernel(backend):
                times[f"{name} forward ms"] = timed(lambda: scaled_dot_product_attention(q, k, v))
                out = scaled_dot_product_attention(*leaves)
                times[f"{name} backward ms"] = timed(_backward(out, leaves, grad))
        except RuntimeError as error:
            times |= {f"{name} forward ms": None, f"{name} backward ms": None}
            print(f"{name} cannot run {shape.name}: {str(error).splitlines()[0]}")
    return times


def _backward(out: torch.Tensor, leaves: list[torch.Tensor], grad: torch.Tensor) -> Callable[[], Any]:
    return lambda: torch.autograd.grad(out, leaves, grad, retain_graph=True)


def _sparse(shape: Shape, density: float, device: torch.device) -> dict[str, Any]:
    """Ours at one density: everything, its parts, the backward; and FlexAttention on the same full blocks."""
    from world_r1_kernels.pyramid_attention import launch
    from world_r1_kernels.pyramid_attention.tuning import forward_settings

    q, k, v, grad = _inputs(shape, device)
    config = PyramidConfig(density=density, rest=32 if density >= 0.1 else 64)
    plan: Plan = make_plan(q, k, config)
    g = launch.Geometry.of(q, k, plan, False)
    pyramid, listed = launch.pool(k, v, None, g), launch.lists(plan.levels, None, False, g)
    out, lse = torch.empty_like(q), torch.empty(q.shape[:3], dtype=torch.float32, device=device)
    settings, scale = forward_settings(device, shape.width), shape.width**-0.5
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    graph = pyramid_attention(leaves[0], leaves[1], leaves[2], plan)
    kernel = timed(lambda: launch.attend(q, k, v, plan, pyramid, listed, out, lse, scale, settings, g))
    pairs = plan.attention_density * shape.pairs
    return {
        "attention density": plan.attention_density,
        "estimator density": plan.estimator_cost,
        "forward with everything ms": timed(lambda: pyramid_attention(q, k, v, config)),
        "select ms": timed(lambda: make_plan(q, k, config)),
        "pool and list ms": timed(lambda: (launch.pool(k, v, None, g), launch.lists(plan.levels, None, False, g))),
        "kernel ms": kernel,
        "kernel TFLOP/s": 4 * pairs * shape.width / kernel / 1e9,
        "backward ms": timed(_backward(graph, leaves, grad)),
        "flex forward ms": _flex(q, k, v, plan),
        "settings": asdict(settings),
    }


def _flex(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: Plan) -> float | None:
    """FlexAttention on the plan's full blocks alone; None where it does not compile."""
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    full = plan.levels == 1
    order = torch.argsort(~full, dim=-1, stable=True).int()
    try:
        mask = BlockMask.from_kv_blocks(full.sum(-1).int(), order, BLOCK_SIZE=plan.block, seq_lengths=(q.shape[2], k.shape[2]))
        compiled = torch.compile(flex_attention)
        return timed(lambda: compiled(q, k, v, block_mask=mask))
    except Exception as error:  # a baseline that this torch cannot build is reported as missing, not as a number
        print(f"FlexAttention cannot run here: {type(error).__name__}: {str(error).splitlines()[0]}")
        return None
