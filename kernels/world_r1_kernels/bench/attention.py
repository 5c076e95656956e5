"""`world-r1 bench attention`: is it right on this machine, and only then, how fast."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from world_r1_kernels.bench.shapes import QUICK_CPU, QUICK_GPU, ROWS, SHAPES, Shape, machine, results_folder
from world_r1_kernels.bench.steps import Steps
from world_r1_kernels.pyramid_attention import PyramidConfig, make_plan, pyramid_attention, reference

#: Largest error allowed against the float32 reference, as a share of the largest value.
TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 4e-3, torch.float32: 5e-6}


def run(
    quick: bool = False,
    tune: bool = False,
    say: Callable[[str], None] = print,
    out: Path | None = None,
    seconds: float | None = None,
    names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Check, then measure every shape (or those of `names`) and density; returns the result, which is on disk after every step.

    `out` is the folder for the JSON (and a copy of tuned.json), `seconds` the time after which no new step begins. Without a GPU only the
    check runs, in Triton's interpreter. RuntimeError if the kernels disagree with the reference: no speed is shown. ValueError for an
    unknown shape.
    """
    known = [shape.name for shape in SHAPES]
    if unknown := [name for name in names or () if name not in known]:
        raise ValueError(f"no shape {unknown[0]!r}; known: {', '.join(known)}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    result: dict[str, Any] = {"machine": machine(device), "checks": [], "rows": []}
    if device.type != "cuda":
        result["checks"] = check(device, say)
        say("no GPU here: checked in Triton's interpreter, nothing timed")
        return result
    name = f"attention-{result['machine']['device'].replace(' ', '-').lower()}{'-quick' if quick else ''}.json"
    steps = Steps((out or results_folder()) / name, result, seconds, say)
    steps.say(" ".join(f"{key} {value}" for key, value in result["machine"].items()))
    shapes = tuple(shape for shape in SHAPES if shape.name in (names or (QUICK_GPU if quick else known)))
    if tune:
        from world_r1_kernels.bench.tune import tune as find

        for shape in {shape.width: shape for shape in reversed(shapes)}.values():  # the first, smallest shape of every head width
            steps.step(f"tune, width {shape.width}", lambda shape=shape: find(shape, steps, device), needs=120)  # type: ignore[misc]
    _speeds(shapes, quick, steps, device)
    steps.say(f"wrote {steps.path}")
    return result


def _speeds(shapes: tuple[Shape, ...], quick: bool, steps: Steps, device: torch.device) -> None:
    """Check, then time: result["checks"] and result["rows"]."""
    from world_r1_kernels.bench import measure

    result = steps.result
    widths = tuple(sorted({shape.width for shape in shapes}, reverse=True))
    result["checks"] = check(device, steps.say, strict=False, widths=widths)
    steps.save()
    wrong = [f"{row['case']}, width {row['width']}: {row['error']:.2e}" for row in result["checks"] if not row["right"]]
    if wrong:
        raise RuntimeError(f"the kernels are wrong on this machine ({'; '.join(wrong)}); nothing was timed")
    for shape in shapes:
        dense = result.setdefault("dense", {}).setdefault(shape.name, {})
        rows = QUICK_GPU.get(shape.name, ROWS[1:2]) if quick else ROWS
        measure.shape(shape, rows, steps, device, dense, flash=not quick)


def check(
    device: torch.device, say: Callable[[str], None] = print, strict: bool = True, widths: tuple[int, ...] = (128, 64)
) -> list[dict[str, Any]]:
    """Output and gradients against the float32 reference for plans with every ingredient; rows {case, width, error, right}.

    `strict`: RuntimeError on the first that is off. Otherwise a case that cannot run at all has error infinity and its message.
    """
    rows: list[dict[str, Any]] = []
    gpu = device.type == "cuda"
    cases = [
        ("means", PyramidConfig(density=0.4)),
        ("rest tokens of 16", PyramidConfig(density=0.4, rest=16)),
        ("all levels", PyramidConfig(density=0.4, levels=(1, 2, 4, 8), rest=32)),
        ("causal", PyramidConfig(density=0.6, causal=True)),
        ("dropped", PyramidConfig(density=0.4, rest=0)),
    ]
    dtype = torch.bfloat16 if gpu else torch.float32
    for width in widths if gpu else (64,):
        for name, config in cases if gpu else cases[2:3]:
            row: dict[str, Any] = {"case": name, "width": width}
            try:
                row["error"] = compare(name, config, 1000 if gpu else QUICK_CPU[0].tokens, width, dtype, device)
            except Exception as error:
                if strict:
                    raise
                row |= {"error": float("inf"), "message": f"{type(error).__name__}: {error}"[:2000]}
            row["right"] = row["error"] < TOLERANCE[dtype]
            rows.append(row)
            say(f"check {name}, width {width}: largest error {row['error']:.1e} {row.get('message', '')[:300]}")
            if strict and not row["right"]:
                raise RuntimeError(
                    f"the kernels are wrong on this machine ({name}, width {width}: error {row['error']:.2e}); nothing was timed"
                )
    return rows


def compare(
    name: str,
    config: PyramidConfig,
    tokens: int,
    width: int,
    dtype: torch.dtype,
    device: torch.device,
    gradients: bool = True,
) -> float:
    """Largest error of output (and dq, dk, dv), each as a share of its largest value; NaN counts as infinite."""
    generator = torch.Generator().manual_seed(tokens + width)
    q, k, v, grad = (torch.randn(1, 2, tokens, width, generator=generator).to(device, dtype) for _ in range(4))
    k = (k.float() + k.float().roll(1, 2) + k.float().roll(2, 2)).to(dtype)  # neighbours resemble each other, as in a video
    plan = make_plan(q, k, config)
    exact = [x.detach().float().requires_grad_(gradients) for x in (q, k, v)]
    target, _ = reference.attention(exact[0], exact[1], exact[2], plan)
    ours = [x.detach().requires_grad_(gradients) for x in (q, k, v)]
    out = pyramid_attention(ours[0], ours[1], ours[2], plan, backend="triton")
    pairs = [(out, target)]
    if gradients:
        target.backward(grad.float())
        out.backward(grad)
        pairs += [(mine.grad, his.grad) for mine, his in zip(ours, exact, strict=True)]  # type: ignore[misc]
    worst = max(float(((a.float() - b).abs().max() / b.abs().max()).detach()) for a, b in pairs)
    finite = all(bool(torch.isfinite(a).all()) for a, _ in pairs)
    return worst if finite else float("inf")


def inputs(shape: Shape, device: torch.device) -> list[torch.Tensor]:
    """Random bfloat16 q, k, v and output gradient (B, H, N, D)."""
    generator = torch.Generator(device).manual_seed(0)
    size = (shape.batch, shape.heads, shape.tokens, shape.width)
    return [torch.randn(size, generator=generator, device=device, dtype=torch.bfloat16) for _ in range(4)]


def timed(call: Callable[[], Any], rep: int = 200) -> float:
    """Median milliseconds, L2 flushed between calls."""
    from triton.testing import do_bench

    return float(do_bench(call, warmup=40, rep=rep, return_mode="median"))


def settings_of(device: torch.device, width: int) -> dict[str, Any]:
    """Tile shapes in use, for the result file."""
    from world_r1_kernels.pyramid_attention import tuning

    return {
        "forward": asdict(tuning.forward_settings(device, width)),
        "backward": asdict(tuning.backward_settings(device, width)),
    }
