"""VideoAlign's VideoReward (arXiv 2501.13918): visual quality, motion quality and text alignment of a clip, by a Qwen2-VL with a head."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from world_r1.reward import Probe
from world_r1.types import Clip
from world_r1_rewards.probes._quality import under
from world_r1_rewards.quality.qwen import VIDEOALIGN, QwenReward

DIMENSIONS = ("VQ", "MQ", "TA")


class VideoAlign(Probe):
    """Gives "videoalign": {VQ, MQ, TA} as standard scores of the model's own training set, about -3 to 3, and what they come from.

    Options: `template` (see `quality.qwen.QwenReward`); `folder` of the released checkpoint, or its hub id (model_config.json and
    checkpoint-N/model.pth; `checkpoint` names another file of weights); `fps` frames a second that are shown, at least 4 in all;
    `base` and the others of `QwenReward`. Means, deviations and the scale of the adapters are read from model_config.json.
    """

    gives = ("videoalign",)
    weights = "KwaiVGI/VideoReward"
    licence = "MIT (code); weights: see their card; grown from Qwen2-VL-2B, Apache-2.0"

    def __init__(
        self,
        template: str,
        folder: str = weights,
        checkpoint: str | None = None,
        fps: float = 2.0,
        base: str = "Qwen/Qwen2-VL-2B-Instruct",
        **options: Any,
    ) -> None:
        if fps <= 0:
            raise ValueError(f"videoalign: fps must be positive, got {fps}")
        release = _release(folder)
        settings = _settings(release)
        self.fps, self.means, self.deviations = fps, settings["means"], settings["deviations"]
        weights = checkpoint or str(_newest(release))
        self.model = QwenReward(VIDEOALIGN, base, weights, template, **{"lora_scale": settings["lora_scale"], **options})

    def observe(self, clips: Sequence[Clip], evidence: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any] | Exception]:
        shown = [clip.video[sampled(len(clip.video), clip.fps, self.fps)] for clip in clips]
        found = self.model.scores([(frames, clip.prompt.text) for frames, clip in zip(shown, clips, strict=True)])
        results: list[Mapping[str, Any] | Exception] = []
        for frames, marks in zip(shown, found, strict=True):
            if isinstance(marks, Exception):
                results.append(marks)
                continue
            standard = (marks[:, 0].numpy() - self.means) / self.deviations
            scores = {name: float(value) for name, value in zip(DIMENSIONS, standard, strict=True)}
            results.append({**scores, "frames": float(len(frames)), "versions": self.model.versions})
        return under("videoalign", results)


def sampled(length: int, fps: float, wanted: float) -> np.ndarray:
    """Indices of frames at `wanted` a second of a clip at `fps`: an even number, at least 4, at most the clip's own (rounded down)."""
    count = min(max(4, 2 * int(length / fps * wanted / 2)), length - length % 2 or 1)
    return np.linspace(0, length - 1, count).round().astype(int)


def _release(folder: str) -> Path:
    """A local folder, or the cached copy of a hub repository's settings and weights."""
    if Path(folder).is_dir() or not re.fullmatch(r"[\w.-]+/[\w.-]+", folder):
        return Path(folder)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(folder, allow_patterns=["model_config.json", "checkpoint-*/model.*"]))


def _settings(folder: Path) -> dict[str, Any]:
    file = folder / "model_config.json"
    if not file.is_file():
        raise ValueError(f"videoalign: no model_config.json in {folder}; give the folder of the released checkpoint")
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
        inference, lora = tree["inference_config"], tree.get("peft_lora_config") or {}
        means, deviations = (np.array([float(inference[f"{name}_{kind}"]) for name in DIMENSIONS]) for kind in ("mean", "std"))
        rank = float(lora.get("lora_r") or 1)
        scale = float(lora.get("lora_alpha") or 1) / (rank**0.5 if lora.get("use_rslora") else rank)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"videoalign: {file} lacks the means and deviations of its scores ({type(error).__name__}: {error})"
        ) from error
    if not (deviations > 0).all():
        raise ValueError(f"videoalign: deviations in {file} must be positive, got {deviations}")
    return {"means": means, "deviations": deviations, "lora_scale": scale}


def _newest(folder: Path) -> Path:
    """The weights of the highest checkpoint-N."""
    found = sorted(folder.glob("checkpoint-*/model.*"), key=lambda file: (int(file.parent.name.rpartition("-")[2]), file.suffix))
    if not found:
        raise ValueError(f"videoalign: no checkpoint-N/model.pth (or .safetensors) in {folder}")
    return found[-1]
