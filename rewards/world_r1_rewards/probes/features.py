"""Features of frames by a picture backbone from transformers: what is shown, whatever the pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch

from world_r1.reward import Probe
from world_r1.types import Clip

#: Mean and deviation of the pixels that backbones were trained with.
STATISTICS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758)),
}


class Features(Probe):
    """Gives "features": `frames` [F] and `vectors` [F, d], the backbone's pooled features of evenly spread frames, of unit length.

    Weights: `facebook/dinov2-base` (Apache-2.0; VBench uses DINO for subjects), or any model of transformers with one vector a picture
    (DINOv2, ViT, the vision part of CLIP), by id or folder. Options: `frames`, `device`.
    """

    gives = ("features",)
    weights = "facebook/dinov2-base"
    licence = "Apache-2.0"

    def __init__(self, weights: str | None = None, frames: int = 17, device: str = "auto") -> None:
        if frames < 2:
            raise ValueError(f"features: frames must be at least 2, got {frames}")
        self.weights_from, self.frames = weights or type(self).weights, frames
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else torch.device(device)
        self.model: Any = None

    def observe(self, clips: Sequence[Clip], evidence: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any] | Exception]:
        return [{"features": self._one(clip.video)} for clip in clips]

    @torch.inference_mode()
    def _one(self, video: np.ndarray) -> dict[str, np.ndarray]:
        if self.model is None:
            from transformers import AutoModel

            self.model = AutoModel.from_pretrained(self.weights_from).eval().to(self.device)
        frames = np.unique(np.linspace(0, len(video) - 1, min(len(video), self.frames)).round().astype(int))
        found = self._vectors(self._pictures(video[frames]))
        return {"frames": frames, "vectors": torch.nn.functional.normalize(found.float(), dim=-1).cpu().numpy()}

    def _pictures(self, frames: np.ndarray) -> torch.Tensor:
        """[F, 3, s, s], the whole picture squashed to the backbone's side and normalised with ImageNet's or CLIP's statistics."""
        config = getattr(self.model.config, "vision_config", self.model.config)
        side = int(config.image_size)
        if config.model_type.startswith("dinov2"):
            side = 16 * int(config.patch_size)  # trained at 518, used at 224 with patches of 14 by everyone
        mean, std = (
            ((0.481, 0.458, 0.408), (0.269, 0.261, 0.276))
            if "clip" in config.model_type
            else ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        )
        small = np.stack([cv2.resize(frame, (side, side), interpolation=cv2.INTER_AREA) for frame in frames])
        pixels = (small.astype(np.float32) / 255 - np.array(mean, np.float32)) / np.array(std, np.float32)
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).to(self.device)

    def _vectors(self, pictures: torch.Tensor) -> torch.Tensor:
        if hasattr(self.model, "get_image_features"):
            found = self.model.get_image_features(pixel_values=pictures)
            return found if isinstance(found, torch.Tensor) else found.pooler_output
        found = self.model(pixel_values=pictures)
        pooled = getattr(found, "pooler_output", None)
        return found.last_hidden_state[:, 0] if pooled is None else pooled  # type: ignore[no-any-return]
