"""A camera path as a picture: top view, side view, and angles and focal length over time.

Only arrays come in, so this package needs to know nothing of the camera language; `world-r1 prompts preview` joins the two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

WIDTH, HEIGHT = 1200, 850
_INK, _QUIET, _GRID, _SUBJECT = (34, 38, 46), (110, 116, 128), (228, 231, 236), (200, 60, 60)
#: Colour of the path from its beginning to its end.
_RAMP = np.array([(38, 84, 184), (24, 150, 160), (232, 150, 40)], float)
_CURVES = (("yaw", (38, 84, 184)), ("pitch", (24, 150, 110)), ("roll", (190, 70, 160)))
_FOCAL = (214, 120, 20)
#: Drawn at this factor and shrunk, which smooths edges.
_FINE = 2
#: Length of a drawn viewing cone, as a share of the subject's distance.
_CONE = 0.28


@dataclass(frozen=True)
class Path:
    """What is drawn. Example: `Path(trajectory.c2w, trajectory.Ks, (96, 160), 3.6, -0.23, fps=8.0)`"""

    #: [T, 4, 4] camera-to-world relative to the first camera, OpenCV axes.
    c2w: np.ndarray
    #: [T, 3, 3] intrinsics in pixels of `size` (height, width).
    Ks: np.ndarray
    size: tuple[int, int]
    #: Distance of the subject in the unit of the translations.
    depth: float
    #: Pitch of the first camera in radians; negative looks down.
    pitch: float
    fps: float = 8.0

    def __post_init__(self) -> None:
        frames = len(self.c2w)
        if self.c2w.shape != (frames, 4, 4) or self.Ks.shape != (frames, 3, 3) or frames < 1 or not self.depth > 0:
            raise ValueError(
                f"a path has poses [T, 4, 4], intrinsics [T, 3, 3] and a positive depth, got {self.c2w.shape}, {self.Ks.shape} and "
                f"{self.depth}"
            )

    @property
    def level(self) -> np.ndarray:
        """[T, 4, 4] float64 poses in axes whose y is vertical, translations as a share of the depth."""
        c, s = math.cos(self.pitch), math.sin(self.pitch)
        poses = self.c2w.astype(np.float64)
        poses[:, :3] = np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) @ poses[:, :3]
        poses[:, :3, 3] /= self.depth
        return poses

    @property
    def angles(self) -> np.ndarray:
        """[T, 3] yaw (right is positive), pitch (up is positive) and roll (clockwise is positive) in degrees."""
        rotation = self.level[:, :3, :3]
        yaw = np.unwrap(np.arctan2(rotation[:, 0, 2], rotation[:, 2, 2]))
        pitch = np.arcsin(np.clip(-rotation[:, 1, 2], -1, 1))
        roll = np.unwrap(np.arctan2(rotation[:, 1, 0], rotation[:, 1, 1]))
        return np.degrees(np.stack([yaw, pitch, roll], -1))


def draw(path: Path, title: str, text: str = "") -> Image:
    """RGB picture of `WIDTH` x `HEIGHT` pixels: `title` (the command), `text` (the prompt), both views and the curves.

    Lengths are shares of the subject's distance; the subject is the dot, blue is the beginning and orange the end.
    """
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (WIDTH * _FINE, HEIGHT * _FINE), (255, 255, 255))
    sheet = _Sheet(ImageDraw.Draw(image))
    sheet.text((40, 24), title, 24, _INK)
    for line, words in enumerate(_wrapped(text, 150)[:2]):
        sheet.text((40, 62 + 19 * line), words, 14, _QUIET)
    poses = path.level
    aim = np.array([0.0, -math.tan(path.pitch), 1.0])
    half = np.stack([0.5 * path.size[1] / path.Ks[:, 0, 0], 0.5 * path.size[0] / path.Ks[:, 1, 1]], -1)
    top, side = np.array([[1.0, 0, 0], [0, 0, 1]]), np.array([[0, 0, 1.0], [0, -1, 0]])
    extent = max(_extent(poses, view, aim) for view in (top, side))
    _view(
        sheet, (50, 142, 580, 602), "top view: right, forward (1 = distance of the subject)", poses, top, half[:, 0], 0, aim, extent
    )
    _view(sheet, (640, 142, 1170, 602), "side view: forward, up", poses, side, half[:, 1], 1, aim, extent)
    _curves(sheet, (80, 656, 1080, 806), path)
    return image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)


class _Sheet:
    """A drawing surface in final pixels."""

    def __init__(self, pen: Any) -> None:
        self.pen = pen

    def line(self, points: Sequence[Any], colour: tuple[int, ...], width: float = 1.0) -> None:
        flat = [tuple(float(value) * _FINE for value in point) for point in points]
        self.pen.line(flat, fill=colour, width=max(1, round(width * _FINE)), joint="curve")

    def polygon(self, points: Sequence[Any], outline: tuple[int, ...], fill: tuple[int, ...]) -> None:
        self.pen.polygon(
            [tuple(float(value) * _FINE for value in point) for point in points], fill=fill, outline=outline, width=_FINE
        )

    def dot(self, centre: Any, radius: float, colour: tuple[int, ...]) -> None:
        x, y = (float(value) * _FINE for value in centre)
        radius *= _FINE
        self.pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)

    def text(self, at: tuple[float, float], words: str, size: int, colour: tuple[int, ...], anchor: str = "la") -> None:
        from PIL import ImageFont

        self.pen.text((at[0] * _FINE, at[1] * _FINE), words, fill=colour, font=ImageFont.load_default(size * _FINE), anchor=anchor)


def _wrapped(text: str, width: int) -> list[str]:
    import textwrap

    return textwrap.wrap(text, width)


def _colour(share: float) -> tuple[int, ...]:
    position = share * (len(_RAMP) - 1)
    low = min(int(position), len(_RAMP) - 2)
    return tuple(int(v) for v in _RAMP[low] + (position - low) * (_RAMP[low + 1] - _RAMP[low]))


def _extent(poses: np.ndarray, view: np.ndarray, aim: np.ndarray) -> float:
    """Side of the square that shows the path, its viewing cones and the subject."""
    points = np.concatenate([poses[:, :3, 3], poses[:, :3, 3] + _CONE * poses[:, :3, 2], aim[None], np.zeros((1, 3))]) @ view.T
    return max(1.3, 1.2 * float(np.ptp(points, axis=0).max()))


def _view(
    sheet: _Sheet, box: tuple[int, ...], title: str, poses: np.ndarray, view: np.ndarray, half: np.ndarray, spread: int, aim: np.ndarray,
    extent: float,
) -> None:  # fmt: skip
    """One orthographic view in a box of pixels; `half` [T] is the tangent of half the field of view in it, along camera axis `spread`."""
    left, upper, right, lower = box
    size = min(right - left, lower - upper)
    flat = np.concatenate([poses[:, :3, 3], aim[None]]) @ view.T
    middle = (flat.min(0) + flat.max(0)) / 2
    corner = np.array([(left + right) / 2, (upper + lower) / 2])
    place = lambda point: corner + (point @ view.T - middle) * np.array([1, -1]) * size / extent  # noqa: E731
    _grid(sheet, box, middle, corner, size / extent)
    sheet.text((left, upper - 20), title, 14, _QUIET)
    last = len(poses) - 1
    for frame in sorted({round(last * share) for share in np.linspace(0, 1, 7)}):
        eye, axis = poses[frame, :3, 3], poses[frame, :3, :3]
        wide = axis[:, spread] * half[frame]
        tips = [eye + _CONE * (axis[:, 2] + sign * wide) for sign in (-1, 1)]
        colour = _colour(frame / max(last, 1))
        pale = tuple(int(255 - 0.18 * (255 - value)) for value in colour)
        sheet.polygon([place(eye), *map(place, tips)], colour, pale)
    track = [place(pose[:3, 3]) for pose in poses]
    for frame in range(last):
        sheet.line([track[frame], track[frame + 1]], _colour(frame / last), 4)
    sheet.dot(track[0], 5, _colour(0.0))
    sheet.dot(track[-1], 5, _colour(1.0))
    sheet.dot(place(aim), 8, _SUBJECT)


def _grid(sheet: _Sheet, box: tuple[int, ...], middle: np.ndarray, corner: np.ndarray, scale: float) -> None:
    left, upper, right, lower = box
    step = 0.25 if scale > 150 else 0.5 if scale > 70 else 1.0 if scale > 30 else 5.0
    for axis, (low, high) in enumerate(((left, right), (upper, lower))):
        sign = 1 if axis == 0 else -1
        ends = sorted(middle[axis] + sign * (edge - corner[axis]) / scale for edge in (low, high))
        for number in range(math.ceil(ends[0] / step), math.floor(ends[1] / step) + 1):
            at = corner[axis] + sign * (number * step - middle[axis]) * scale
            sheet.line([(at, upper), (at, lower)] if axis == 0 else [(left, at), (right, at)], _GRID)
            label = f"{number * step:g}"
            if axis == 0:
                sheet.text((at, lower + 3), label, 11, _QUIET, "ma")
            else:
                sheet.text((left - 5, at), label, 11, _QUIET, "rm")


def _curves(sheet: _Sheet, box: tuple[int, ...], path: Path) -> None:
    """Angles in degrees and the focal length relative to the first frame, over seconds."""
    left, upper, right, lower = box
    angles, zoom = path.angles, path.Ks[:, 0, 0] / path.Ks[0, 0, 0]
    low, high = min(-5.0, float(angles.min())), max(5.0, float(angles.max()))
    low, high = low - 0.05 * (high - low), high + 0.05 * (high - low)
    frames = len(angles)
    x = left + (right - left) * np.arange(frames) / max(frames - 1, 1)
    y = lambda values: lower - (lower - upper) * (values - low) / (high - low)  # noqa: E731
    step = next(size for size in (5, 10, 15, 30, 45, 90, 180) if (high - low) / size <= 6 or size == 180)
    for number in range(math.ceil(low / step), math.floor(high / step) + 1):
        sheet.line([(left, y(number * step)), (right, y(number * step))], _GRID)
        sheet.text((left - 6, y(number * step)), f"{number * step}°", 11, _QUIET, "rm")
    seconds = (frames - 1) / path.fps
    for share in np.linspace(0, 1, 5):
        sheet.text((left + share * (right - left), lower + 5), f"{share * seconds:.3g} s", 11, _QUIET, "ma")
    for (name, colour), column in zip(_CURVES, angles.T, strict=True):
        sheet.line(list(zip(x, y(column), strict=True)), colour, 2.5)
        sheet.text((right + 14, upper + 22 * [n for n, _ in _CURVES].index(name)), name, 14, colour)
    sheet.text((left, upper - 22), "angles of the camera", 14, _QUIET)
    if np.ptp(zoom) > 1e-6:
        logs = np.log2(zoom)
        reach = max(0.1, float(np.abs(logs).max()))
        sheet.line(list(zip(x, (upper + lower) / 2 - 0.45 * (lower - upper) * logs / reach, strict=True)), _FOCAL, 2.5)
        sheet.text((right + 14, upper + 66), f"focal x {zoom[-1]:.2f}", 14, _FOCAL)
