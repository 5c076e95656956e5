"""Held-out evaluation: prompts never trained on, the same noise before and after, metrics that no reward uses.

`evaluate` samples one clip per prompt from a policy and measures it; `reference` does the same for real renders of the prompts'
scenes and for their round trip through the VAE, which is what a perfect latent model could reach; `comparison.compare` sets them
side by side.

A folder of an evaluation holds `eval.json` (rows and summary), `clips/NNN.mp4` and `sheet.png` of the first few clips.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from world_r1 import comparison, exam, heldout
from world_r1.config import Config, load
from world_r1.policy import Policy, load_policy
from world_r1.record import write_json
from world_r1.types import Clip, Prompt, Trajectory

log = logging.getLogger(__name__)

#: Called with (clips done, clips in all).
Progress = Callable[[int, int], None]
#: A held-out clip, uint8 [T, H, W, 3], or why there is none.
Sampled = np.ndarray | Exception


def heldout_prompts(config: Config) -> list[Prompt]:
    """The first `evaluation.prompts` prompts of `prompts.test`; ValueError if there are fewer."""
    from world_r1.prompts import load_prompts

    prompts = load_prompts(config.prompts.test)
    wanted = config.evaluation.prompts
    if len(prompts) < wanted:
        raise ValueError(
            f"evaluation.prompts={wanted}, but prompts.test={config.prompts.test!r} holds {len(prompts)}; "
            "lower the one or extend the other"
        )
    return prompts[:wanted]


def trajectories(config: Config, prompts: Sequence[Prompt]) -> list[Trajectory | None]:
    """The commanded camera of every prompt, None where it commands none."""
    from world_r1.camera import trajectory_for

    return [trajectory_for(prompt.text, config.video, config.camera) for prompt in prompts]


def evaluate(
    policy: Policy,
    config: Config,
    state: Mapping[str, np.ndarray] | None,
    out_dir: str | Path,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
    others: Sequence[Iterable[Sampled]] = (),
) -> dict[str, Any]:
    """Sample and measure one clip per held-out prompt; writes `out_dir` and returns the content of its `eval.json`.

    `state` (for example the moving average of the weights) is loaded for the duration and the policy's own weights are put back;
    None evaluates the policy as it is. The noise of clip i follows from `evaluation.seed` and i alone, so two evaluations of one
    configuration pair. `workers` is the number of measuring processes, `evaluation.workers` if None. With n `others`, the policy
    samples every (n + 1)-th prompt only, and source k of them `sampled(..., k + 1, n + 1)`. A clip whose sampling or measurement
    fails is a row of missing values.
    """
    prompts = heldout_prompts(config)
    before = policy.state() if state is not None else None
    if state is not None:
        policy.load_state(state)
    try:
        sources = [iter(source) for source in (sampled(policy, config, 0, len(others) + 1), *others)]
        videos = (next(sources[i % len(sources)]) for i in range(len(prompts)))
        return _examined(videos, prompts, config, out_dir, workers=workers, progress=progress, device=policy.device)
    finally:
        if before is not None:
            policy.load_state(before)


def reference(
    policy: Policy, config: Config, out_dir: str | Path, *, workers: int | None = None, progress: Progress | None = None
) -> dict[str, Any] | None:
    """Real renders of the held-out prompts' scenes and their VAE round trips, measured like samples.

    Returns `{"render": rows, "roundtrip": rows}` and writes it with clips under `out_dir`. None for prompts that describe no scene
    of blockworld, which have no ground truth.
    """
    prompts = heldout_prompts(config)
    if not all({"scene_seed", "index"} <= set(prompt.attributes) for prompt in prompts):
        return None
    out, pairs = Path(out_dir), list(_renders(policy, config, prompts))
    result: dict[str, Any] = {}
    for kind, position in (("render", 0), ("roundtrip", 1)):
        videos = (pair[position] for pair in pairs)
        options = {"workers": workers, "progress": progress, "device": policy.device}
        result[kind] = _examined(videos, prompts, config, out / kind, **options)["rows"]
    write_json(out / "reference.json", result)
    return result


def earlier_reference(config: Config) -> dict[str, Any] | None:
    """The rows of `evaluation.reference_from` that belong to the held-out prompts, None if none are asked for.

    Raises ValueError if there are none, or if they were measured on other prompts, another video or another camera.
    """
    prompts = heldout_prompts(config)
    if config.evaluation.reference_from is None:
        return None
    folder = Path(config.evaluation.reference_from)
    remedy = "name the folder `reference` of a finished run of the same configuration, or leave evaluation.reference_from out"
    try:
        found = json.loads((folder / "reference.json").read_text(encoding="utf-8"))
        measured = json.loads((folder.parent / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"evaluation.reference_from={str(folder)!r} cannot be used ({error}); {remedy}") from error
    asked = config.model_dump(mode="json")
    for section in ("video", "camera"):
        if measured.get(section) != asked[section]:
            raise ValueError(f"evaluation.reference_from={str(folder)!r} was measured with another `{section}`; {remedy}")
    texts = [prompt.text for prompt in prompts]
    rows = {kind: found[kind][: len(prompts)] for kind in ("render", "roundtrip")}
    if any([row["prompt"] for row in some] != texts for some in rows.values()):
        raise ValueError(f"evaluation.reference_from={str(folder)!r} was measured on other prompts; {remedy}")
    return rows


def take_reference(config: Config, out_dir: Path) -> dict[str, Any] | None:
    """Copy what `evaluation.reference_from` names, clips too, into a run; returns its rows, None if it names nothing."""
    rows = earlier_reference(config)
    if rows is not None and config.evaluation.reference_from is not None:
        shutil.copytree(config.evaluation.reference_from, out_dir, dirs_exist_ok=True)
        write_json(out_dir / "reference.json", rows)
    return rows


def evaluate_command(
    source: str | Path | Config, lora: str | None, out: str | Path, *, progress: Progress | None = None
) -> dict[str, Any]:
    """What `world-r1 eval` does: evaluate the base model or, with `lora`, the base and the adapted one; write `out`/eval.json and
    report.html.

    With an adapter the summary compares base and adapter with paired noise. Returns the content of eval.json.
    """
    from world_r1 import report
    from world_r1.sample import for_sampling

    config = source if isinstance(source, Config) else load(source)
    folder = Path(out)
    base = load_policy(for_sampling(config), trainable=False)
    before = evaluate(base, config, None, folder / "eval_before", progress=progress)
    anchors = reference(base, config, folder / "reference", progress=progress) if config.evaluation.reference else None
    result = before
    if lora is not None:
        del base
        adapted = load_policy(for_sampling(config, lora=str(lora)), trainable=False)
        result = evaluate(adapted, config, None, folder / "eval_after", progress=progress)
        draws, seed = config.evaluation.bootstrap, config.evaluation.seed
        write_json(folder / "summary.json", comparison.compare(before, result, reference=anchors, draws=draws, seed=seed))
    write_json(folder / "eval.json", result)
    write_json(folder / "config.json", config.model_dump(mode="json"))
    report.write_report(folder)
    return result


def sampled(policy: Policy, config: Config, part: int = 0, parts: int = 1) -> Iterable[Sampled]:
    """Clips of the held-out prompts part, part + parts, ..., uint8 [T, H, W, 3], one batch at a time; a batch that fails gives its
    exception for each of its clips."""
    from world_r1.sample import generate

    prompts = heldout_prompts(config)
    mine = range(part, len(prompts), parts)
    size = 1 if policy.device.type == "cpu" else 16
    steps = config.evaluation.steps or config.flow.steps
    for start in range(0, len(mine), size):
        batch = mine[start : start + size]
        keys = [(config.evaluation.seed, i) for i in batch]
        try:
            yield from generate(policy, config, [prompts[i] for i in batch], keys, steps=steps)
        except (
            RuntimeError,
            ArithmeticError,
        ) as error:  # out of memory, non-finite latents: these clips are missing, not the evaluation
            if config.speed.sequence_parallel > 1 and not isinstance(error, ArithmeticError):
                raise  # the processes that share its tokens would wait for this one in the middle of a forward
            log.warning("sampling of %d held-out clips failed: %s", len(batch), error)
            yield from [error] * len(batch)


def _examined(
    videos: Iterable[Sampled],
    prompts: Sequence[Prompt],
    config: Config,
    out_dir: str | Path,
    *,
    workers: int | None,
    progress: Progress | None,
    device: Any,
) -> dict[str, Any]:
    """Measure clips as they come, write the folder, return the content of `eval.json`."""
    start = time.perf_counter()
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    settings = config.evaluation
    paths = trajectories(config, prompts)
    kept: list[tuple[Prompt, np.ndarray]] = []
    clips: dict[int, Clip] = {}
    failures: dict[int, str] = {}
    with exam.examiner(config.rewards if settings.rubric else None, workers or settings.workers) as examiner:
        for i, (video, prompt, trajectory) in enumerate(zip(videos, prompts, paths, strict=True)):
            if isinstance(video, Exception):
                failures[i] = f"sampling failed: {type(video).__name__}: {video}"
            else:
                clips[i] = Clip(prompt.id, video, prompt, trajectory, config.video.fps)
                examiner.submit(exam.Task(clips[i], rubric=settings.rubric, geometry=len(kept) < settings.keep))
                if len(kept) < settings.keep:
                    kept.append((prompt, video))
                    _write_clip(out, i, video, config.video.fps)
            if progress:
                progress(i + 1, len(prompts))
        measured = dict(zip(clips, examiner.results(), strict=True))
    _judge_by_model(config, clips, measured, device)
    rows = [_row(i, prompt, paths[i], measured.get(i), failures.get(i)) for i, prompt in enumerate(prompts)]
    _write_sheet(out, kept)
    result = {"rows": rows, "summary": comparison.summarise(rows), "seconds": time.perf_counter() - start}
    write_json(out / "eval.json", result)
    return result


def _row(
    index: int, prompt: Prompt, trajectory: Trajectory | None, measured: dict[str, Any] | None, failure: str | None
) -> dict[str, Any]:
    command = trajectory.command if trajectory else ""
    row: dict[str, Any] = {"index": index, "id": prompt.id, "prompt": prompt.text, "kind": prompt.kind, "command": command}
    if measured is None:
        return row | {
            "values": dict.fromkeys(heldout.METRICS),
            "missing": dict.fromkeys(heldout.METRICS, failure or "not measured"),
        }
    return row | measured


#: Facts of the prompt whose mean is "fidelity"; the camera is a metric of its own.
FACTS = ("floor", "wall", "sky", "object_colour", "object_shape", "count", "colours")


def _judge_by_model(config: Config, clips: Mapping[int, Clip], measured: Mapping[int, dict[str, Any]], device: Any) -> None:
    """Adds what the evaluation-only model sees: "fidelity", "direction", "quality", and each fact as "fidelity/NAME".

    Only for blockworld, whose weights bring that model; without it the metrics are missing, with the reason.
    """
    if config.model.path != "blockworld" or not clips:
        return
    from world_r1.blockworld import weights_path
    from world_r1.blockworld.evaluator import Evaluator

    try:
        judge = Evaluator.from_pretrained(weights_path() / "evaluator", device)
    except ValueError as error:
        log.warning("no prompt fidelity: %s", error)
        for row in measured.values():
            row["values"] |= dict.fromkeys(comparison.MODEL_METRICS)
            row["missing"] |= dict.fromkeys(comparison.MODEL_METRICS, str(error))
        return
    videos = np.stack([clip.video for clip in clips.values()])
    right = judge.attribute_accuracy(videos, [clip.prompt.attributes for clip in clips.values()])
    quality = judge.predict(videos)["quality"]
    for position, i in enumerate(clips):
        facts = {name: float(right[name][position]) for name in FACTS if not right[name][position].isnan()}
        direction = right["camera_direction"][position]
        values: dict[str, float | None] = {"quality": float(quality[position])}
        values["fidelity"] = sum(facts.values()) / len(facts) if facts else None
        values["direction"] = None if direction.isnan() else float(direction)
        measured[i]["values"] |= values | {f"fidelity/{name}": fact for name, fact in facts.items()}
        measured[i]["missing"] |= {name: "the prompt states no such fact" for name, value in values.items() if value is None}


def _renders(policy: Any, config: Config, prompts: Sequence[Prompt]) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """(render, VAE round trip) of each prompt's scene, uint8 [T, H, W, 3]."""
    import torch

    from world_r1.blockworld import prompts as blockworld
    from world_r1.blockworld import scenes
    from world_r1.policies import wan_vae

    size = config.video
    for prompt in prompts:
        with torch.no_grad():
            rendered = scenes.render(blockworld.scene_of(prompt).to(policy.device), size.height, size.width, 2).rgb
            mean, _ = wan_vae.encode(policy.vae, rendered)
            trip = policy.decode(wan_vae.normalise(policy.vae, mean))[0]
        video = ((rendered[0].permute(1, 2, 3, 0) * 0.5 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        yield video.cpu().numpy(), trip


def _write_clip(out: Path, index: int, video: np.ndarray, fps: float) -> None:
    from world_r1.video import write_mp4

    (out / "clips").mkdir(exist_ok=True)
    write_mp4(out / "clips" / f"{index:03d}.mp4", video, fps)


def _write_sheet(out: Path, kept: Sequence[tuple[Prompt, np.ndarray]]) -> None:
    from world_r1.video import contact_sheet, write_png

    if kept:
        sheet = contact_sheet([video for _, video in kept], frames=6, labels=[prompt.text for prompt, _ in kept])
        write_png(out / "sheet.png", sheet)
