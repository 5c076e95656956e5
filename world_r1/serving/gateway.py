"""Scoring from outside Ray, over HTTP (extra `gateway`): POST /v1/score with an npz, safetensors or MP4 body, JSON back.

Off loopback a token is required. Bodies are bounded while they arrive and again before they are unpacked; nothing received is executed.
"""

from __future__ import annotations

import importlib
import ipaddress
import uuid
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from world_r1.config import CameraConfig, VideoConfig
from world_r1.serving.bodies import Limits, Refused, video_of
from world_r1.serving.items import content_hash
from world_r1.types import Clip, Prompt, Verdict

#: Characters of a token at least.
TOKEN = 16


def serve(address: str | None, pools: Sequence[str], *, host: str, port: int, token_file: Path | None, max_bytes: int) -> None:
    """Run the gateway until it is interrupted. ValueError for a public address without a token, or a pool that does not run."""
    token = read_token(token_file)
    refuse_open_door(host, token)
    uvicorn = _package("uvicorn")
    from world_r1.serving import admin
    from world_r1.serving.client import PoolClient

    admin.connect(address)
    make_app = _package("world_r1.serving.gateway_app").make_app
    app = make_app([PoolClient(name) for name in pools], token=token, limits=Limits(max_bytes))
    uvicorn.run(app, host=host, port=port, log_level="warning", timeout_keep_alive=10)


def read_token(path: Path | None) -> str | None:
    """The token in a file (never an argument: those are seen by everyone on a machine). ValueError for one that is too short."""
    if path is None:
        return None
    token = path.read_text(encoding="utf-8").strip()
    if len(token) < TOKEN:
        raise ValueError(f"{path}: a token has at least {TOKEN} characters, got {len(token)}")
    return token


def refuse_open_door(host: str, token: str | None) -> None:
    """ValueError if strangers could reach `host` without a token."""
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback and token is None:
        raise ValueError(f"--host {host} can be reached from elsewhere: give --token-file, or listen on 127.0.0.1")


async def bounded(stream: AsyncIterator[bytes], announced: str | None, limit: int) -> bytes:
    """The body, given up as soon as it is too long. Raises `Refused`."""
    if announced is not None and announced.isdigit() and int(announced) > limit:
        raise Refused(413, f"a body has at most {limit} bytes, this one announces {announced}")
    parts, size = [], 0
    async for part in stream:
        size += len(part)
        if size > limit:
            raise Refused(413, f"a body has at most {limit} bytes")
        parts.append(part)
    return b"".join(parts)


def clip_of(body: bytes, media: str, prompt: str, kind: str, name: str, limits: Limits) -> Clip:
    """The clip that a request describes; its commanded path follows from the prompt. Raises `Refused`."""
    from world_r1.camera import trajectory_for

    video, fps = video_of(body, media, limits)
    frames, height, width, _ = video.shape
    if min(height, width) < 16:
        raise Refused(422, f"a video is at least 16x16 pixels, got {height}x{width}")
    try:
        path = trajectory_for(prompt, VideoConfig(frames=frames, height=height, width=width, fps=fps), CameraConfig())
    except ValueError as error:
        raise Refused(422, f"the camera command cannot be read: {error}") from None
    name = name or uuid.uuid4().hex
    return Clip(name, video, Prompt(name, prompt, kind), path, fps)  # type: ignore[arg-type]


def answer_of(clip: Clip, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """What is sent back: id, content hash, total (null if any score is missing) and every score with its parts."""
    totals = [verdict.total for verdict in verdicts]
    scores = [
        {"reward": s.reward, "status": s.status, "value": s.value, "parts": dict(s.parts), "reason": s.reason}
        for verdict in verdicts
        for s in verdict.scores
    ]
    total = None if any(value is None for value in totals) else sum(value for value in totals if value is not None)
    return {"id": clip.id, "hash": content_hash(clip), "total": total, "scores": scores}


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        missing = error.name or name
        raise ImportError(f"the gateway needs {missing}: pip install 'world-r1[gateway]'", name=missing) from error
