"""A picture of a reconstruction, for people: what was filmed, what the points look like from there, depth, and the path of the camera."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np

#: Pixels of a panel's height at least, and between panels.
LEAST, GAP = 160, 4


def draw(path: Path, video: np.ndarray, geometry: Any) -> Path:
    """Write a PNG and return its path: a column a keyframe (filmed, points seen from its camera, depth), then the camera's path from above.

    `video` is uint8 [T, H, W, 3]; `geometry` is the evidence of that name.
    """
    scale = max(1, round(LEAST / geometry.size[0]))
    columns = []
    for number, key in enumerate(geometry.keys):
        seen = _points(geometry, np.asarray(geometry.c2w)[key])
        filmed = cv2.resize(video[key], geometry.size[::-1], interpolation=cv2.INTER_AREA)
        depth = cv2.resize(_coloured(np.asarray(geometry.depth)[number]), geometry.size[::-1], interpolation=cv2.INTER_NEAREST)
        columns.append(_stack([_enlarged(panel, scale) for panel in (filmed, seen, depth)]))
    height = columns[0].shape[0]
    columns.append(_path(np.asarray(geometry.c2w)[:, :3, 3], height))
    sheet = np.concatenate([np.pad(column, ((0, 0), (0, GAP), (0, 0)), constant_values=255) for column in columns], 1)
    ok, data = cv2.imencode(".png", cv2.cvtColor(np.ascontiguousarray(sheet), cv2.COLOR_RGB2BGR))
    if not ok:
        raise ValueError(f"cannot encode a picture of {sheet.shape}")
    path.write_bytes(data.tobytes())
    return path


def _points(geometry: Any, c2w: np.ndarray) -> np.ndarray:
    """[H, W, 3] the coloured points from a camera, the nearest in front; grey where there is none."""
    height, width = geometry.size
    points, K = np.asarray(geometry.points, np.float64), np.asarray(geometry.K, np.float64)
    local = (points - c2w[:3, 3]) @ c2w[:3, :3]
    ahead = local[:, 2] > 1e-6
    local, colours = local[ahead], np.asarray(geometry.colours)[ahead]
    pixel = np.floor(local[:, :2] / local[:, 2:] * [K[0, 0], K[1, 1]] + [K[0, 2], K[1, 2]]).astype(int)
    order = np.argsort(-local[:, 2])  # far to near
    picture, nearest = np.full((height, width, 3), 128, np.uint8), np.full((height, width), np.inf)
    side = max(2, round(width / np.asarray(geometry.depth).shape[2]))  # a dot fills the space between its neighbours
    for down in range(side):
        for right in range(side):
            x, y = pixel[order, 0] + right - side // 2, pixel[order, 1] + down - side // 2
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            x, y, painted, far = x[inside], y[inside], colours[order][inside], local[order, 2][inside]
            front = far <= nearest[y, x]
            picture[y[front], x[front]] = painted[front]
            np.minimum.at(nearest, (y, x), far)
    return picture


def _coloured(depth: np.ndarray) -> np.ndarray:
    """[h, w, 3] inverse depth in colours, near is bright; black where there is none."""
    known = np.isfinite(depth) & (depth > 0)
    inverse = np.where(known, 1 / np.where(known, depth, 1), 0)
    low, high = (np.quantile(inverse[known], share) for share in (0.02, 0.98)) if known.any() else (0.0, 1.0)
    level = np.clip((inverse - low) / max(high - low, 1e-9), 0, 1)
    picture = cv2.applyColorMap((255 * level).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1].copy()
    picture[~known] = 0
    return picture


def _path(centres: np.ndarray, side: int) -> np.ndarray:
    """[side, side, 3] camera centres from above (x right, z up), first green, last red, on a white ground; both axes have one scale."""
    picture = np.full((side, side, 3), 255, np.uint8)
    flat = centres[:, [0, 2]]
    middle, extent = (flat.max(0) + flat.min(0)) / 2, max(float(np.ptp(flat, axis=0).max()), 1e-9)
    at = (flat - middle) / extent * 0.8 * side * [1, -1] + side / 2
    pixels = at.round().astype(int)
    cv2.polylines(picture, [pixels.reshape(-1, 1, 2)], False, (90, 90, 90), 1, cv2.LINE_AA)
    for place, colour in ((pixels[0], (0, 150, 0)), (pixels[-1], (200, 0, 0))):
        cv2.circle(picture, (int(place[0]), int(place[1])), 4, colour, -1, cv2.LINE_AA)
    return picture


def _enlarged(picture: np.ndarray, scale: int) -> np.ndarray:
    return np.repeat(np.repeat(picture, scale, 0), scale, 1)


def _stack(panels: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.pad(panel, ((0, GAP), (0, 0), (0, 0)), constant_values=255) for panel in panels], 0)
