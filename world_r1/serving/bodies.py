"""Reading what a stranger sends: a video as npz, safetensors or MP4, bounded before it is unpacked, and nothing in it executed."""

from __future__ import annotations

import io
import json
import re
import zipfile
from dataclasses import dataclass
from typing import Any

import numpy as np

#: Most frames, most pixels of a frame, most bytes of the video once unpacked.
FRAMES, PIXELS, BYTES = 1024, 4096 * 4096, 2 << 30
#: Media types that are read.
NPZ, SAFETENSORS, MP4 = "application/x-npz", "application/x-safetensors", "video/mp4"
MEDIA = (NPZ, SAFETENSORS, MP4)
#: Bytes of a safetensors header at most.
HEADER = 1 << 16


class Refused(ValueError):
    """A body that is not read; `status` is the HTTP status that says why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Limits:
    """What is accepted. Example: `Limits(body=256 << 20, frames=1024, pixels=4096 * 4096, unpacked=2 << 30)`"""

    body: int
    frames: int = FRAMES
    pixels: int = PIXELS
    unpacked: int = BYTES


def video_of(body: bytes, media: str, limits: Limits) -> tuple[np.ndarray, float]:
    """Frames, uint8 [T, H, W, 3], and frames per second (8 for arrays without "fps"). Raises `Refused`."""
    kind = media.partition(";")[0].strip().lower()
    if kind == NPZ:
        return _npz(body, limits)
    if kind == SAFETENSORS:
        return _safetensors(body, limits)
    if kind == MP4:
        return _mp4(body, limits)
    raise Refused(
        415, f"send {NPZ} or {SAFETENSORS} (an array video, uint8 [T, H, W, 3]) or {MP4}, got {kind or 'no content type'}"
    )


def _checked(shape: tuple[int, ...], limits: Limits) -> None:
    if len(shape) != 4 or shape[-1] != 3 or 0 in shape:
        raise Refused(422, f"a video is uint8 [T, H, W, 3], got {list(shape)}")
    if shape[0] > limits.frames or shape[1] * shape[2] > limits.pixels or int(np.prod(shape, dtype=object)) > limits.unpacked:
        raise Refused(
            413,
            f"a video has at most {limits.frames} frames, {limits.pixels} pixels a frame, {limits.unpacked} bytes; got {list(shape)}",
        )


def _npz(body: bytes, limits: Limits) -> tuple[np.ndarray, float]:
    """The shape is read from the header, before anything is unpacked; pickled arrays are refused."""
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            _checked(_header(archive, limits), limits)
            if sum(info.file_size for info in archive.infolist()) > limits.unpacked + (1 << 20):
                raise Refused(413, f"unpacked it has more than {limits.unpacked} bytes")
        with np.load(io.BytesIO(body), allow_pickle=False) as arrays:
            video = arrays["video"]
            fps = float(arrays["fps"]) if "fps" in arrays else 8.0
    except Refused:
        raise
    except Exception as error:  # the many ways in which an archive can be broken
        raise Refused(422, f"not a readable npz: {' '.join(str(error).split())}") from None
    return _rated(video, fps)


def _rated(video: np.ndarray, fps: float) -> tuple[np.ndarray, float]:
    if video.dtype != np.uint8:
        raise Refused(422, f"a video is uint8, got {video.dtype}")
    if not (np.isfinite(fps) and 0 < fps <= 1000):
        raise Refused(422, f"fps must be positive, got {fps}")
    return video, fps


def _safetensors(body: bytes, limits: Limits) -> tuple[np.ndarray, float]:
    """The shape is read from the header, before any tensor is made; the data are as long as the body, so nothing is unpacked."""
    from safetensors.numpy import load

    try:
        length = int.from_bytes(body[:8], "little")
        if len(body) < 8 or length > min(HEADER, len(body) - 8):
            raise Refused(
                422, f"not a readable safetensors file: a header of {length} bytes in a body of {len(body)} (at most {HEADER})"
            )
        header = json.loads(body[8 : 8 + length])
        if "video" not in header:
            raise Refused(422, f"a safetensors body has a tensor named video, got {list(header)[:8]}")
        _checked(tuple(int(side) for side in header["video"]["shape"]), limits)
        tensors = load(body)
        video = tensors["video"]
        fps = float(tensors["fps"].reshape(()).item()) if "fps" in tensors else 8.0
    except Refused:
        raise
    except Exception as error:  # the many ways in which a file can be broken
        raise Refused(422, f"not a readable safetensors file: {' '.join(str(error).split())}") from None
    return _rated(video, fps)


def _header(archive: zipfile.ZipFile, limits: Limits) -> tuple[int, ...]:
    if "video.npy" not in archive.namelist():
        raise Refused(422, f"an npz body has an array named video, got {archive.namelist()[:8]}")
    with archive.open("video.npy") as file:
        version = np.lib.format.read_magic(file)
        read: Any = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file, max_header_size=4096)
    if dtype != np.uint8:
        raise Refused(422, f"a video is uint8, got {dtype}")
    return tuple(int(side) for side in shape)


def _mp4(body: bytes, limits: Limits) -> tuple[np.ndarray, float]:
    """Frames are counted while they are decoded, and their size is looked at before."""
    import av

    if not re.match(rb"....ftyp", body[:8], re.S):
        raise Refused(422, "not an MP4 file (it does not begin with ftyp)")
    try:
        with av.open(io.BytesIO(body), "r", format="mp4") as container:
            if not container.streams.video:
                raise Refused(422, "it has no video stream")
            stream = container.streams.video[0]
            frames: list[np.ndarray] = []
            for frame in container.decode(stream):
                _checked((len(frames) + 1, frame.height, frame.width, 3), limits)
                frames.append(frame.to_ndarray(format="rgb24"))
            rate = float(stream.average_rate or 8.0)
    except (av.error.FFmpegError, ValueError) as error:
        if isinstance(error, Refused):
            raise
        raise Refused(422, f"not a readable MP4: {' '.join(str(error).split())}") from None
    if not frames:
        raise Refused(422, "not a readable MP4: it has no frames")
    if len({frame.shape for frame in frames}) != 1:
        raise Refused(422, "the frames of a video have one size")
    return np.stack(frames), rate
