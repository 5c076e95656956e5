"""Clips and pictures as data URLs, so that a report carries them inside."""

from __future__ import annotations

import base64
import io
import logging
from pathlib import Path

log = logging.getLogger(__name__)

#: Longest side in pixels of an embedded clip and of an embedded contact sheet.
CLIP_SIZE, SHEET_SIZE = 320, 1800


def animation(path: Path, *, quality: int = 72) -> str | None:
    """An MP4 as a looping WebP data URL; None if there is no such file or it cannot be read (which is logged)."""
    if not path.is_file():
        return None
    from PIL import Image

    from world_r1.video import read_mp4

    try:
        video, fps = read_mp4(path)
    except (ValueError, OSError) as error:
        log.warning("left out of the report: %s: %s", path, error)
        return None
    frames = [Image.fromarray(frame) for frame in video]
    for frame in frames:
        frame.thumbnail((CLIP_SIZE, CLIP_SIZE))
    times = [round(1000 / fps)] * len(frames)
    times[-1] += 700  # a pause before the loop starts again
    buffer = io.BytesIO()
    frames[0].save(buffer, "WEBP", save_all=True, append_images=frames[1:], duration=times, loop=0, quality=quality, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def still(path: Path, *, quality: int = 80) -> str | None:
    """A picture as a WebP data URL of at most `SHEET_SIZE` pixels a side; None if there is no such file."""
    if not path.is_file():
        return None
    from PIL import Image

    with Image.open(path) as picture:
        image = picture.convert("RGB")
    image.thumbnail((SHEET_SIZE, SHEET_SIZE))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
