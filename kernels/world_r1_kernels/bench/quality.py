"""`world-r1 bench attention-quality`: error of sparse attentions against exact attention, at equal density."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from world_r1_kernels.bench.fields import REGIMES, Sample, field_sample, recorded
from world_r1_kernels.bench.shapes import DENSITIES, machine, results_folder
from world_r1_kernels.pyramid_attention import Plan, PyramidConfig, make_plan
from world_r1_kernels.pyramid_attention.published import asa, binary_top_k, paper_psa
from world_r1_kernels.pyramid_attention.reference import attention

Draw = Callable[[torch.Tensor, torch.Tensor, float, int], Plan]


@dataclass(frozen=True)
class Method:
    """How a plan is drawn from q, k, a density and a block size, in which token order, and with what part of the usual block."""

    draw: Draw
    order: str = "tiles"
    finer: int = 1
    """The block is the usual one over this."""
    whole: bool = False
    """The density asked for includes the estimator's own cost."""


#: The PSA paper's mix of levels 1/2/4/8 at density .10, stretched to other densities.
PAPER_MIX: Mapping[int, float] = {1: 0.05, 2: 0.04, 4: 0.06, 8: 0.12}


def paper_shares(density: float) -> dict[int, float]:
    """Shares of the blocks at each level that cost `density`, in the paper's proportions as far as there are blocks."""
    unit = sum(share / level for level, share in PAPER_MIX.items())
    shares = {level: share * density / unit for level, share in PAPER_MIX.items()}
    room = 1.0 / max(1.0, sum(shares.values()))
    return {level: share * room for level, share in shares.items()}


def ours(order: str = "tiles", finer: int = 1, whole: bool = False, **settings: Any) -> Method:
    """Our plan with these settings; rest="fine": `rest_for`."""

    def draw(q: torch.Tensor, k: torch.Tensor, density: float, block: int) -> Plan:
        spent = make_plan(q, k, PyramidConfig(density=density, block=block)).estimator_cost if whole else 0.0
        left = density - spent
        chosen = {**settings, "rest": rest_for(left, block)} if settings.get("rest") == "fine" else settings
        return make_plan(q, k, PyramidConfig(density=left, block=block, **chosen))

    return Method(draw, order, finer, whole)


def rest_for(density: float, block: int) -> int:
    """Rest tokens that take at most about half of the budget."""
    rest = block
    while rest > 16 and 2 / rest <= density / 2 + 1e-9:
        rest //= 2
    return rest


METHODS: dict[str, Method] = {
    "binary top-k": Method(lambda q, k, density, block: binary_top_k(q, k, density, block=block)),
    "paper PSA": Method(lambda q, k, density, block: paper_psa(q, k, paper_shares(density), block=block)),
    "paper PSA, Hilbert": Method(lambda q, k, density, block: paper_psa(q, k, paper_shares(density), block=block), "hilbert"),
    "PSA as coded": Method(lambda q, k, density, block: paper_psa(q, k, paper_shares(density), block=block, normalised=False)),
    "ASA, global tokens": Method(
        lambda q, k, density, block: asa(q, k, density, energy=1.0, global_group=max(16, block // 4), block=block)
    ),
    "ours: mass, dropped": ours(allocation="quota", rest=0, correction="none"),
    "+ means": ours(allocation="quota", correction="none"),
    "+ correction": ours(allocation="quota"),
    "+ budget": ours(),
    "+ levels": ours(levels=(1, 2, 4, 8)),
    "+ finer rest": ours(levels=(1, 2, 4, 8), rest="fine"),
    "diagonal correction": ours(levels=(1, 2, 4, 8), correction="diagonal"),
    "level 1, finer rest": ours(rest="fine"),
    "level 1, finer rest, Hilbert": ours("hilbert", rest="fine"),
    "the same, half blocks": ours("hilbert", 2, rest="fine"),
    "the same, estimator paid": ours("hilbert", 2, True, rest="fine"),
}


def run(
    quick: bool = False,
    transformer: Any = None,
    latent_shape: tuple[int, int, int, int] | None = None,
    text: torch.Tensor | None = None,
    say: Callable[[str], None] = print,
    out: Path | None = None,
) -> dict[str, Any]:
    """Measure all methods on the synthetic fields and, with a transformer, on what its layers see; writes JSON and a PNG."""
    grid, densities = ((4, 16, 16), (0.10, 0.20)) if quick else ((8, 24, 24), DENSITIES)
    result: dict[str, Any] = {"machine": machine(torch.device("cpu")), "grid": grid, "rows": []}
    for name in REGIMES:
        result["rows"] += measure([field_sample(name, grid)], densities, 128, name)
        say(f"{name}: " + _line(result["rows"], name))
    if transformer is not None and latent_shape is not None and text is not None:
        steps = 2 if quick else 4
        sigmas = [1 - i / steps for i in range(steps)]
        samples = list(recorded(transformer, latent_shape, text, sigmas))
        samples = samples[:: max(1, len(samples) // 4)] if quick else samples
        result["rows"] += measure(samples, (0.3,) if quick else (0.15, 0.2, 0.3, 0.5), 32, "blockworld")
        say("blockworld: " + _line(result["rows"], "blockworld"))
    folder = out or results_folder()
    folder.mkdir(parents=True, exist_ok=True)
    name = "attention-quality-quick" if quick else "attention-quality"
    (folder / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    plot(result["rows"], folder / f"{name}.png")
    say(f"wrote {folder / name}.json and .png")
    return result


@torch.no_grad()
def measure(samples: Iterable[Sample], densities: Iterable[float], block: int, source: str) -> list[dict[str, Any]]:
    """Rows {source, method, density asked, density, error}: relative error of the output, root mean square over the samples.

    With several samples also the error of each, by name.
    """
    samples = list(samples)
    rows = []
    for asked in densities:
        for name, method in METHODS.items():
            errors, spent, with_estimator = [], [], []
            for sample in samples:
                q, k, v = sample.ordered(method.order, block // method.finer)
                target = scaled_dot_product_attention(q, k, v)
                plan = method.draw(q, k, asked, block // method.finer)
                out, _ = attention(q, k, v, plan)
                errors.append(float((out - target).square().sum() / target.square().sum()))
                spent.append(plan.attention_density)
                with_estimator.append(plan.density)
            rows.append(
                {
                    "source": source,
                    "method": name,
                    "asked": asked,
                    "density": float(np.mean(spent)),
                    "with estimator": float(np.mean(with_estimator)),
                    "error": float(np.mean(errors)) ** 0.5,
                    "samples": len(samples),
                    **({"errors": {s.name: e**0.5 for s, e in zip(samples, errors, strict=True)}} if len(samples) > 1 else {}),
                }
            )
    return rows


def _line(rows: list[dict[str, Any]], source: str) -> str:
    mine = [row for row in rows if row["source"] == source]
    first = min(row["asked"] for row in mine)
    return ", ".join(f"{row['method']} {row['error']:.3f}" for row in mine if row["asked"] == first) + f" (density {first})"


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Error against density, one panel a source, both axes logarithmic."""
    import cv2

    sources = list(dict.fromkeys(row["source"] for row in rows))
    panels = [_panel([row for row in rows if row["source"] == source], source) for source in sources]
    if not cv2.imwrite(str(path), np.concatenate(panels, 1)):
        raise OSError(f"cannot write {path}")


def _panel(rows: list[dict[str, Any]], title: str) -> np.ndarray:
    import cv2

    height, width, left, top, right, bottom = 600, 520, 60, 40, 500, 330
    image = np.full((height, width, 3), 255, np.uint8)
    x, y = ([np.log(row[key]) for row in rows] for key in ("density", "error"))
    low_x, high_x, low_y, high_y = min(x) - 0.1, max(x) + 0.1, min(y) - 0.1, max(y) + 0.1

    def place(row: dict[str, Any]) -> tuple[int, int]:
        across = (np.log(row["density"]) - low_x) / (high_x - low_x)
        up = (np.log(row["error"]) - low_y) / (high_y - low_y)
        return int(left + across * (right - left)), int(bottom - up * (bottom - top))

    def write(text: str, at: tuple[int, int], colour: tuple[int, ...] = (60, 60, 60)) -> None:
        cv2.putText(image, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.42, colour, 1, cv2.LINE_AA)

    cv2.rectangle(image, (left, top), (right, bottom), (200, 200, 200), 1)
    write(f"{title}: relative error against density", (left, top - 14))
    for value in sorted({row["asked"] for row in rows}):
        at = int(left + (np.log(value) - low_x) / (high_x - low_x) * (right - left))
        write(f"{value:g}", (at - 10, bottom + 18))
    for value in (0.05, 0.1, 0.2, 0.5, 1.0):
        if low_y < np.log(value) < high_y:
            at = int(bottom - (np.log(value) - low_y) / (high_y - low_y) * (bottom - top))
            write(f"{value:g}", (left - 40, at + 4))
            cv2.line(image, (left, at), (right, at), (235, 235, 235), 1)
    methods = list(dict.fromkeys(row["method"] for row in rows))
    hues = np.array([[[int(179 * i / len(methods)), 210, 170] for i in range(len(methods))]], np.uint8)
    for i, (method, bgr) in enumerate(zip(methods, cv2.cvtColor(hues, cv2.COLOR_HSV2BGR)[0].tolist(), strict=True)):
        points = [place(row) for row in rows if row["method"] == method]
        for start, end in pairwise(points):
            cv2.line(image, start, end, bgr, 2, cv2.LINE_AA)
        for point in points:
            cv2.circle(image, point, 4, bgr, -1, cv2.LINE_AA)
        spot = (left + 230 * (i % 2), bottom + 44 + 24 * (i // 2))
        cv2.circle(image, spot, 5, bgr, -1, cv2.LINE_AA)
        write(method, (spot[0] + 12, spot[1] + 4))
    return image
