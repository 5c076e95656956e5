"""Videos and pictures as files: MP4 by PyAV (no ffmpeg binary), contact sheets and PNG by Pillow.

A video is uint8 [T, H, W, 3] sRGB everywhere in the project.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

#: Encoders in order of preference, with their options for near-transparent quality.
ENCODERS = (("libx264", {"crf": "16", "preset": "medium"}), ("mpeg4", {"qscale": "2", "flags": "+qscale"}))


def write_mp4(path: str | Path, video: np.ndarray, fps: float = 8.0) -> Path:
    """Write a video, uint8 [T, H, W, 3], as MP4 (H.264, or MPEG-4 where libx264 is missing; yuv420p) and return the path.

    An odd side is padded by repeating its last row or column; `read_mp4` cuts it off again. The file appears whole or not at all.
    ValueError for another shape or dtype, or a frame rate that is not positive.
    """
    import av

    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3 or 0 in video.shape:
        raise ValueError(f"a video is uint8 [T, H, W, 3], got {video.dtype} {list(video.shape)}")
    if not fps > 0:
        raise ValueError(f"the frame rate must be positive, got {fps}")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _, height, width, _ = video.shape
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with av.open(str(partial), "w", format="mp4", options={"movflags": "+faststart+use_metadata_tags"}) as container:
            container.metadata["world_r1_size"] = f"{height}x{width}"
            stream = _stream(container, Fraction(fps).limit_denominator(1001), height + height % 2, width + width % 2)
            for frame in video:
                padded = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(padded), format="rgb24")))
            container.mux(stream.encode())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def read_mp4(path: str | Path) -> tuple[np.ndarray, float]:
    """Frames, uint8 [T, H, W, 3], and frames per second of a video file (any format that FFmpeg reads).

    FileNotFoundError for a missing file, ValueError for one that holds no readable video.
    """
    import av

    if not Path(path).is_file():
        raise FileNotFoundError(2, "no such video", str(path))
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError("it has no video stream")
            stream = container.streams.video[0]
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
            rate, size = stream.average_rate, container.metadata.get("world_r1_size", "")
    except (av.error.FFmpegError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{path} is not a readable video ({reason}); give a file such as an MP4 made by `world-r1 sample`"
        ) from error
    if not frames or not rate:
        raise ValueError(f"{path} is not a readable video (it has no frames); give a file such as an MP4 made by `world-r1 sample`")
    video = np.stack(frames)
    height, _, width = size.partition("x")
    if height.isdigit() and width.isdigit():
        video = video[:, : int(height), : int(width)]
    return np.ascontiguousarray(video), float(rate)


def contact_sheet(
    videos: Sequence[np.ndarray] | np.ndarray, frames: int = 5, labels: Sequence[str] | None = None, gap: int = 2
) -> np.ndarray:
    """One picture, uint8 [H, W, 3], of several videos: a row a video, `frames` frames evenly from first to last, a label above each row.

    Videos may differ in size and length; a label too long for its row ends in an ellipsis. ValueError for no videos or for another
    number of labels than of videos.
    """
    if len(videos) == 0:
        raise ValueError("a contact sheet needs at least one video")
    if labels is not None and len(labels) != len(videos):
        raise ValueError(f"a contact sheet needs one label a video, got {len(labels)} labels for {len(videos)} videos")
    rows = [_strip(video, frames, gap) for video in videos]
    width = max(row.shape[1] for row in rows)
    parts: list[np.ndarray] = []
    for i, row in enumerate(rows):
        if labels is not None:
            parts.append(_label(labels[i], width))
        parts += [np.pad(row, ((0, gap), (0, width - row.shape[1]), (0, 0)))]
    return np.concatenate(parts)


def write_png(path: str | Path, image: np.ndarray) -> Path:
    """Write a picture, uint8 [H, W, 3] or [H, W], and return the path. ValueError for another shape or dtype."""
    from PIL import Image

    if image.dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[-1] == 3)):
        raise ValueError(f"a picture is uint8 [H, W, 3] or [H, W], got {image.dtype} {list(image.shape)}")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(image)).save(path, "PNG")
    return path


def _stream(container: Any, rate: Fraction, height: int, width: int) -> Any:
    import av

    for name, options in ENCODERS:
        if name in av.codecs_available:
            stream = container.add_stream(name, rate=rate, options=options)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.thread_count = 1  # the file does not depend on the number of cores
            return stream
    raise ValueError(
        f"this build of PyAV has none of the encoders {', '.join(name for name, _ in ENCODERS)}; pip install --upgrade av"
    )


def _strip(video: np.ndarray, frames: int, gap: int) -> np.ndarray:
    if video.dtype != np.uint8 or video.ndim != 4 or len(video) == 0:
        raise ValueError(f"a video is uint8 [T, H, W, 3], got {video.dtype} {list(video.shape)}")
    times = np.unique(np.linspace(0, len(video) - 1, min(frames, len(video))).round().astype(int))
    return np.concatenate([np.pad(video[t], ((0, 0), (0, gap), (0, 0))) for t in times], axis=1)


def _label(text: str, width: int, height: int = 16) -> np.ndarray:
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size=11)
    text = " ".join(text.split())
    shown = text
    while text and font.getlength(shown) > width - 6:
        text = text[:-1]
        shown = text.rstrip() + "…"
    image = Image.new("RGB", (width, height), (24, 24, 27))
    ImageDraw.Draw(image).text((3, 1), shown, fill=(228, 228, 231), font=font)
    return np.asarray(image)
