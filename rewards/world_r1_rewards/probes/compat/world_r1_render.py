"""Renderings as the public World-R1 release makes them, its camera errors included: for comparison only, see `scores.compat`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch

from world_r1.reward import Probe
from world_r1.types import Clip
from world_r1_rewards.probes._assemble import interpolate
from world_r1_rewards.probes._geometry import Geometry
from world_r1_rewards.probes._views import Views
from world_r1_rewards.probes.novel_view import dense_cloud
from world_r1_rewards.render import gaussians, splat

#: The release reconstructs at this longest side, and draws squares of this side with the intrinsics of the former.
LONGEST, SIDE = 504, 512
#: Frame of its smoothed, lengthened path -> time in the clip, both of 80 steps, as measured on the release.
TIMES = ((0.0, 3.2), (10.0, 5.4), (20.0, 10.0), (40.0, 20.0), (80.0, 40.0))
#: Views that are drawn together.
CHUNK = 8


class WorldR1Render(Probe):
    """Gives "compat_render": images [T, 512, 512, 3] uint8 that the release compares with frames 0 to T - 1, and the view that it shows
    its judge, [512, 512, 3] uint8, with the `frame` whose camera that is.

    The images follow the path at half speed; the view is that of the input camera farthest from the first. Both are drawn with
    intrinsics of a picture of 504 pixels into squares of 512, so that most of a wide clip's square is empty. The release draws gaussians
    of DA3-GIANT; here they are drawn if the geometry's probe gives some (`da3` with `gaussians: true`), and points if not.
    """

    gives = ("compat_render",)
    needs = ("geometry",)

    def observe(self, clips: Sequence[Clip], evidence: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any] | Exception]:
        return [{"compat_render": self._render(clip, found)} for clip, found in zip(clips, evidence, strict=True)]

    @torch.inference_mode()
    def _render(self, clip: Clip, found: Mapping[str, Any]) -> dict[str, Any]:
        geometry: Geometry = found["geometry"]
        count = len(clip.video)
        halves = interpolate(geometry.c2w.astype(np.float64), 2 * np.arange(count), 2 * count - 1)
        farthest = int(np.linalg.norm(geometry.c2w[:, :3, 3], axis=1).argmax())
        poses = np.concatenate([halves[(2 * times(count)).round().astype(int)], geometry.c2w[farthest][None]])
        views: Views | None = found.get("views")
        if views is not None:  # theirs is another frame of reference
            poses = views.c2w[0].astype(np.float64) @ poses
        images = np.concatenate([_draw(clip, geometry, views, poses[i : i + CHUNK]) for i in range(0, len(poses), CHUNK)])
        return {"images": images[:-1], "view": images[-1], "frame": farthest}


def times(count: int) -> np.ndarray:
    """[count] time in the clip, in frames, of the rendering that the release compares with each frame."""
    at, when = np.array(TIMES).T / 80
    return np.interp(np.linspace(0, 1, count), at, when) * (count - 1)


def intrinsics(K: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[3, 3] K of a picture of `size`, in pixels of one whose longest side is 504: what the release uses for its squares of 512."""
    scale = LONGEST / max(size)
    return np.diag([scale, scale, 1.0]) @ K


def _draw(clip: Clip, geometry: Geometry, views: Views | None, c2w: np.ndarray) -> np.ndarray:
    """[V, 512, 512, 3] uint8."""
    K = intrinsics(geometry.K.astype(np.float64), geometry.size)
    if views is not None and views.gaussians is not None:
        like = views.gaussians.means
        drawn = gaussians(views.gaussians, torch.from_numpy(c2w).to(like), torch.from_numpy(K).to(like), (SIDE, SIDE))
        return _bytes(drawn.image)
    points, colours = dense_cloud(clip.video, geometry)
    if views is not None:
        points = points @ torch.from_numpy(views.c2w[0, :3, :3].T).float() + torch.from_numpy(views.c2w[0, :3, 3]).float()
    side = max(geometry.size)  # as many pixels as there are points, then enlarged
    small = np.diag([side / SIDE, side / SIDE, 1.0]) @ K
    drawn = splat(points, colours, torch.from_numpy(c2w).float(), torch.from_numpy(small).float(), (side, side))
    return np.stack([cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR) for image in _bytes(drawn.image)])


def _bytes(image: torch.Tensor) -> np.ndarray:
    return (image.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
