"""`world-r1 prompts preview`: the camera path of a prompt as a picture."""

from __future__ import annotations

from pathlib import Path

from world_r1.config import VideoConfig


def preview(text: str, out: Path, preset: str = "blockworld", video: VideoConfig | None = None) -> str:
    """Write a PNG with the top and side view of the camera path that a prompt commands; returns the canonical command.

    ValueError for a prompt that names no camera, an unknown preset or another suffix than .png; CameraTextError, with the place in
    the text, for a command that is ambiguous, contradictory or impossible.
    """
    from world_r1_prompts.preview import Path as Drawn
    from world_r1_prompts.preview import draw

    from world_r1.camera import PRESETS, parse_plan, trajectory

    if preset not in PRESETS:
        raise ValueError(f"there is no preset {preset!r}; known are {', '.join(PRESETS)}")
    if out.suffix.lower() != ".png":
        raise ValueError(f"a preview is a PNG file, got --out {out}; give it the suffix .png")
    plan = parse_plan(text)
    if plan is None:
        raise ValueError('the prompt names no camera, so there is no path to draw; begin it with "Camera push in.", for example')
    video = video or VideoConfig()
    amplitudes = PRESETS[preset]
    path = trajectory(plan, video.frames, (video.height, video.width), amplitudes, video.fps)
    picture = draw(Drawn(path.c2w, path.Ks, path.size, path.depth, amplitudes.pitch, video.fps), plan.text, text)
    out.parent.mkdir(parents=True, exist_ok=True)
    picture.save(out)
    return plan.text


def prompt_of(source: str, name: str | None) -> str:
    """The prompt itself, or the text of record `name` of the JSONL file `source`; ValueError if there is no such record."""
    if name is None:
        return source
    from world_r1.prompts import load_prompts

    for prompt in load_prompts(source):
        if prompt.id == name:
            return prompt.text
    raise ValueError(f"{source} holds no prompt with the id {name!r}")
