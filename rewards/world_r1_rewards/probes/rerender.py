"""Every frame against the reconstruction, rendered at the frame's own time, with the clip's own intrinsics and aspect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch

from world_r1.reward import Degenerate, Probe
from world_r1.types import Clip
from world_r1_rewards import likeness
from world_r1_rewards.probes._assemble import shrink
from world_r1_rewards.probes._geometry import Geometry
from world_r1_rewards.probes.novel_view import clouds
from world_r1_rewards.render import Rendered, splat

#: A rendering that covers less than this share of a frame says nothing about it.
SEEN = 0.3


class Rerender(Probe):
    """Gives "rerender": per frame psnr (dB), ssim and gradient (-1..1), lpips if asked for, coverage (0..1); and the renderings.

    A coloured point cloud of the keyframes is drawn into the camera of every estimated frame and compared where it covers the frame,
    after the gain and bias that fit best (light is not geometry; option `exposure: false` leaves them in). With `held_out` (default) a
    keyframe's own pixels take no part in its rendering, or it would be compared with itself. `lpips`: a folder or file with the trunk
    weights of AlexNet (see `likeness.Lpips`), to measure LPIPS too. `width`: frames are compared at most this wide.

    Data: arrays [F] psnr, ssim, gradient, coverage, gain, bias (and lpips), `frames` [F], `images` [F, h, w, 3] uint8.
    """

    gives = ("rerender",)
    needs = ("geometry",)

    def __init__(
        self, held_out: bool = True, exposure: bool = True, lpips: str | None = None, width: int = 160, device: str = "cpu"
    ) -> None:
        if width < 32:
            raise ValueError(f"rerender: width must be at least 32 pixels, got {width}")
        self.held_out, self.exposure, self.width, self.device = held_out, exposure, width, torch.device(device)
        self.lpips = likeness.Lpips(lpips, self.device) if lpips is not None else None

    def observe(self, clips: Sequence[Clip], evidence: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any] | Exception]:
        results: list[Mapping[str, Any] | Exception] = []
        for clip, found in zip(clips, evidence, strict=True):
            try:
                results.append({"rerender": self._compare(clip, found["geometry"])})
            except Degenerate as error:
                results.append(error)
        return results

    @torch.inference_mode()
    def _compare(self, clip: Clip, geometry: Geometry) -> dict[str, Any]:
        frames = np.stack([shrink(clip.video[t], self.width) for t in geometry.frames])
        height, width = frames.shape[1:3]
        K = torch.from_numpy(np.diag([width / geometry.size[1], height / geometry.size[0], 1.0]).astype(np.float32) @ geometry.K)
        image, covered = self._drawn(clip, geometry, K.to(self.device), (height, width))
        real = torch.from_numpy(frames).to(self.device).float() / 255
        share = covered.float().mean((1, 2))
        seen = share >= SEEN
        if int(seen.sum()) < 2:
            raise Degenerate(
                f"renderings cover {float(share.mean()):.0%} of the frames; {SEEN:.0%} of at least two frames are needed"
            )
        gain, bias = likeness.exposure(real, image, covered) if self.exposure else (torch.ones_like(share), torch.zeros_like(share))
        image = (image * gain[:, None, None, None] + bias[:, None, None, None]).clamp(0, 1)
        found = {
            "psnr": likeness.psnr(real, image, covered),
            "ssim": likeness.ssim(real, image, covered),
            "gradient": likeness.gradient(real, image, covered),
        }
        if self.lpips is not None:
            found["lpips"] = self.lpips(real, torch.where(covered[..., None], image, real))
        numbers = {name: torch.where(seen, value, torch.nan).cpu().numpy() for name, value in found.items()}
        pictures = (image * covered[..., None] * 255).round().to(torch.uint8).cpu().numpy()
        return numbers | {
            "coverage": share.cpu().numpy(), "gain": gain.cpu().numpy(), "bias": bias.cpu().numpy(),
            "frames": geometry.frames, "images": pictures,
        }  # fmt: skip

    def _drawn(self, clip: Clip, geometry: Geometry, K: torch.Tensor, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Renderings [F, h, w, 3] and what they cover [F, h, w]."""
        parts = [(p.to(self.device), c.to(self.device)) for p, c in clouds(clip.video, geometry)]
        c2w = torch.from_numpy(geometry.c2w[geometry.frames]).to(self.device)
        every = range(len(parts))
        drawn = self._splat(parts, every, c2w, K, size)
        image, covered = drawn.image, drawn.covered
        if self.held_out:
            for a, key in enumerate(geometry.keys):
                t = int(np.flatnonzero(geometry.frames == key)[0])
                alone = self._splat(parts, [b for b in every if b != a], c2w[t : t + 1], K, size)
                image[t], covered[t] = alone.image[0], alone.covered[0]
        return image, covered

    @staticmethod
    def _splat(
        parts: Sequence[tuple[torch.Tensor, torch.Tensor]],
        which: Sequence[int],
        c2w: torch.Tensor,
        K: torch.Tensor,
        size: tuple[int, int],
    ) -> Rendered:
        points, colours = (torch.cat([parts[a][i] for a in which]) for i in (0, 1))
        return splat(points, colours, c2w, K, size)


def side_by_side(clip: Clip, found: Mapping[str, Any]) -> np.ndarray:
    """[2 h, F w, 3] uint8: the frames above their renderings, for reports and `world-r1 rewards score`."""
    height, width = found["images"].shape[1:3]
    real = [cv2.resize(clip.video[t], (width, height), interpolation=cv2.INTER_AREA) for t in found["frames"]]
    return np.concatenate([np.concatenate(real, 1), np.concatenate(list(found["images"]), 1)])
