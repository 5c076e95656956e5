"""Does the embedded model do what its prompts say? Camera direction by an independent reconstruction, colours by the evaluator.

    python -m world_r1.blockworld.assess --clips 64 --guidance 3

Both measurements are also made on real renders of the same scenes and on their VAE round trips, which bound what can be measured.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from world_r1 import camera, policy, reward, sample
from world_r1.blockworld import prompts, scenes, weights_path
from world_r1.blockworld.evaluator import Evaluator
from world_r1.config import Config, parse
from world_r1.policies import wan_vae
from world_r1.types import Clip, Prompt, Trajectory

#: Commanded movement below these does not count as a direction: share of the subject's depth, and degrees.
LEAST_TRANSLATION, LEAST_ROTATION = 0.08, 4.0
#: Cosine between commanded and measured direction from which it is right (45 degrees).
AGREEMENT = math.cos(math.radians(45))


def rotation_vector(rotation: np.ndarray) -> np.ndarray:
    """[3] axis times angle in radians of a [3, 3] rotation below 180 degrees."""
    skew = np.array([rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]]) / 2
    sine, cosine = np.linalg.norm(skew), (np.trace(rotation) - 1) / 2
    return skew * (math.atan2(sine, cosine) / sine if sine > 1e-9 else 1.0)


def direction_is_right(commanded: Trajectory, measured: np.ndarray) -> bool:
    """Whether measured poses [T, 4, 4] (any scale) turn and travel the commanded way, at half time and at the end.

    Translation and rotation count if they are commanded; each must lie within 45 degrees of the command.
    """
    last = len(commanded.c2w) - 1
    for frame in (last // 2, last):
        want, got = commanded.c2w[frame], measured[frame]
        travel = want[:3, 3] / commanded.depth
        if np.linalg.norm(travel) >= LEAST_TRANSLATION and _cosine(travel, got[:3, 3]) < AGREEMENT:
            return False
        turn = rotation_vector(want[:3, :3])
        if np.degrees(np.linalg.norm(turn)) >= LEAST_ROTATION and _cosine(turn, rotation_vector(got[:3, :3])) < AGREEMENT:
            return False
    return True


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-12))


def assess(config: Config, count: int, progress: bool = True) -> dict[str, dict[str, float]]:
    """Shares of right camera directions and colours on `count` held-out prompts with a moving camera, for samples, renders, round trips."""
    model: Any = policy.load_policy(config, trainable=False)
    asked = [p for p in prompts.prompts("test", 2 * count) if p.attributes["command"] != "fixed"][:count]
    evaluator = Evaluator.from_pretrained(weights_path() / "evaluator")
    rows: dict[str, list[dict[str, float]]] = {"samples": [], "renders": [], "roundtrips": []}
    for number, prompt in enumerate(asked):
        real = scenes.render(prompts.scene_of(prompt)).rgb
        with torch.no_grad():
            again = wan_vae.decode(model.vae, wan_vae.encode(model.vae, real.to(model.device))[0], clamp=True).cpu()
        videos = {"samples": sample.generate(model, config, [prompt], [0])[0], "renders": _bytes(real), "roundtrips": _bytes(again)}
        for name, video in videos.items():
            rows[name].append(_measure(video, prompt, config, evaluator))
        if progress:
            print(f"{number + 1}/{len(asked)} {prompt.text} {rows['samples'][-1]}", flush=True)
    return {name: _means(values) for name, values in rows.items()}


def _bytes(video: torch.Tensor) -> np.ndarray:
    return ((video[0].permute(1, 2, 3, 0) + 1) * 127.5).round().clamp(0, 255).byte().numpy()


def _measure(video: np.ndarray, prompt: Prompt, config: Config, evaluator: Evaluator) -> dict[str, float]:
    """1, 0 or nan (not applicable, not measurable) per question."""
    commanded = camera.trajectory_for(prompt.text, config.video, config.camera)
    assert commanded is not None
    probe = reward.load("flow_ba", reward.PROBES, reward.Probe)(quality="eval")
    [found] = probe.observe([Clip("assess", video, prompt, commanded, config.video.fps)], [{"frames": video}])
    right = math.nan if isinstance(found, Exception) else float(direction_is_right(commanded, found["geometry"].c2w))
    answers = evaluator.attribute_accuracy(video[None], [dict(prompt.attributes)])
    colours = {name: float(np.asarray(answers[name], dtype=float)[0]) for name in ("floor", "wall", "object_colour")}
    return {"camera": right, **colours}


def _means(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    means = {name: float(np.nanmean([row[name] for row in rows])) for name in rows[0]}
    return {**means, "clips": len(rows), "camera_unmeasured": float(np.isnan([row["camera"] for row in rows]).sum())}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--steps", type=int, default=8)
    options = parser.parse_args()
    config = parse({"model": {"guidance_scale": options.guidance}, "flow": {"steps": options.steps}})
    print(json.dumps(assess(config, options.clips), indent=2))


if __name__ == "__main__":
    main()
