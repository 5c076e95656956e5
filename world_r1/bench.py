"""Timings on this machine, each with what was timed and where."""

from __future__ import annotations

import os
import platform
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

from world_r1.config import CameraConfig, NoiseConfig, VideoConfig

#: (frames, height, width), latent shape (C, t, h, w).
SIZES = (
    ((17, 96, 160), (16, 5, 12, 20)),
    ((81, 480, 832), (16, 21, 60, 104)),
)


def noise(device: str, repeats: int = 5, sizes: Any = SIZES) -> list[dict[str, Any]]:
    """Milliseconds of the warped noise of one trajectory: the first time, and with its map cached. Median of `repeats` camera moves."""
    import torch

    from world_r1.camera import MOTIONS, trajectory_for
    from world_r1.noise import initial_noise

    moves = [move for move in MOTIONS if move != "fixed"]
    if not 1 <= repeats < len(moves):
        raise ValueError(f"--repeats is between 1 and {len(moves) - 1}, one camera move each; got {repeats}")
    rows = []
    for (frames, height, width), shape in sizes:
        video = VideoConfig(frames=frames, height=height, width=width)
        seconds: dict[str, list[float]] = {"first": [], "cached": []}
        for move in moves[: repeats + 1]:
            trajectory = trajectory_for(f"Camera {move}.", video, CameraConfig())
            for times in seconds.values():
                begin = time.perf_counter()
                initial_noise(trajectory, shape, NoiseConfig(), 0, device=device)
                if device == "cuda":
                    torch.cuda.synchronize()
                times.append(time.perf_counter() - begin)
        first, cached = (1000 * statistics.median(times[1:]) for times in seconds.values())  # the first move warms up
        rows.append({"video": f"{frames}x{height}x{width}", "first (ms)": first, "map cached (ms)": cached, "on": machine(device)})
    return rows


def attention(
    quick: bool, tune: bool, out: str | None = None, seconds: float | None = None, shapes: str | None = None
) -> dict[str, Any]:
    """Check pyramid attention on this machine and, on a GPU, time it beside dense attention; see `world_r1_kernels.bench.attention`."""
    import torch

    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"  # read when triton is first imported
    from world_r1_kernels.bench import attention as bench

    say = partial(print, flush=True)
    names = [name.strip() for name in shapes.split(",")] if shapes else None
    return bench.run(quick, tune, say, Path(out) if out else None, seconds, names)


def attention_quality(quick: bool) -> dict[str, Any]:
    """Error of sparse attentions on synthetic fields and on the embedded model's queries and keys (sampled without text)."""
    import torch
    from diffusers import WanTransformer3DModel
    from world_r1_kernels.bench import quality

    from world_r1.blockworld import model, weights_path

    transformer = WanTransformer3DModel.from_pretrained(weights_path() / "transformer").eval()
    text = torch.zeros(1, model.TEXT_LENGTH, transformer.config.text_dim)
    return quality.run(quick, transformer, (model.LATENT_CHANNELS, 5, 12, 20), text)


def attention_table() -> str:
    """Put the tables of the attention benchmarks' JSON into kernels/README.md."""
    from world_r1_kernels.bench import table

    return table.write()


def machine(device: str) -> str:
    """The device in words."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {os.cpu_count()} cores, {os.environ.get('OMP_NUM_THREADS', 'all')} thread(s)"
