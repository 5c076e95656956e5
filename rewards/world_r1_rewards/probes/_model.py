"""What the adapters of geometry models share: choosing frames, loading once, memory, and turning failures into missing values."""

from __future__ import annotations

import importlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from world_r1.reward import Degenerate, Probe
from world_r1.types import Clip
from world_r1_rewards.probes._assemble import used_frames
from world_r1_rewards.probes._views import MIN_KNOWN, Views, measured, resized

#: Fewest frames that a reconstruction is made of.
FEWEST = 5


class ModelProbe(Probe):
    """A foundation model for geometry: `predict` gives `Views`; the evidence is those and the `Geometry` measured from them.

    Options of all of them: `weights` a hub id or a folder; `frames` used at most, evenly spread; `size` of the longer side in pixels that
    the model sees; `device` "auto", "cpu" or "cuda". The model is loaded with the first clip. When memory runs out, the clip is tried
    once more with half the frames; what fails then is a failure of that clip.
    """

    gives = ("geometry", "views")
    #: Multiple of pixels that the model's pictures must have, and the default of `size`.
    patch: ClassVar[int] = 14
    longest: ClassVar[int] = 518
    #: Share of the keyframes whose depth it must know.
    known_share: ClassVar[float] = MIN_KNOWN

    def __init__(self, weights: str | None = None, *, frames: int = 17, size: int | None = None, device: str = "auto") -> None:
        if frames < FEWEST:
            raise ValueError(f"{self._name()}: frames must be at least {FEWEST}, got {frames}")
        self.weights_from, self.frames, self.size = weights or type(self).weights, frames, size or self.longest
        if self.size < 4 * self.patch:
            raise ValueError(f"{self._name()}: size must be at least {4 * self.patch} pixels, got {self.size}")
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else torch.device(device)
        self._loaded: Any = None

    @abstractmethod
    def load(self) -> Any:
        """The model in evaluation mode on `self.device`."""

    @abstractmethod
    def predict(self, model: Any, images: np.ndarray, frames: np.ndarray) -> Views:
        """Cameras and depths of images [F, H, W, 3] uint8, which are the `frames` of their clip."""

    def observe(self, clips: Sequence[Clip], evidence: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any] | Exception]:
        """{"geometry": Geometry, "views": Views} for every clip, or the exception that it caused."""
        results: list[Mapping[str, Any] | Exception] = []
        for clip in clips:
            try:
                results.append(self._one(clip))
            except (Degenerate, ValueError, ArithmeticError, RuntimeError, np.linalg.LinAlgError) as error:
                results.append(error)
        return results

    @torch.inference_mode()
    def _one(self, clip: Clip) -> Mapping[str, Any]:
        if clip.video.ndim != 4 or clip.video.shape[3] != 3 or clip.video.dtype != np.uint8:
            raise ValueError(f"a clip's video must be [T, H, W, 3] uint8, got {clip.video.shape} {clip.video.dtype}")
        if len(clip.video) < FEWEST:
            raise Degenerate(f"a reconstruction needs {FEWEST} frames, got {len(clip.video)}")
        if self._loaded is None:
            self._loaded = self.load()
        frames = used_frames(len(clip.video), self.frames)
        try:
            views = self.predict(self._loaded, clip.video[frames], frames)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            frames = used_frames(len(clip.video), max(FEWEST, len(frames) // 2))
            views = self.predict(self._loaded, clip.video[frames], frames)
        views = views.checked()
        return {"geometry": measured(clip, views, known_share=self.known_share), "views": views}

    def fitted(self, images: np.ndarray) -> torch.Tensor:
        """[F, 3, h, w] float32 in 0..1 on the device; the longer side is `size`, both are multiples of the patch."""
        height, width = images.shape[1:3]
        scale = self.size / max(height, width)
        target = tuple(max(1, round(side * scale / self.patch)) * self.patch for side in (height, width))
        small = resized(images, target)  # type: ignore[arg-type]
        return torch.from_numpy(small).to(self.device).permute(0, 3, 1, 2).float() / 255

    def half(self) -> torch.autocast:
        """Mixed precision on a GPU (bfloat16 where it exists), nothing on a CPU."""
        dtype = torch.bfloat16 if self.device.type == "cpu" or torch.cuda.is_bf16_supported() else torch.float16
        return torch.autocast(self.device.type, dtype=dtype, enabled=self.device.type == "cuda")

    @classmethod
    def _name(cls) -> str:
        return cls.__module__.rpartition(".")[2]

    @classmethod
    def package(cls, module: str) -> Any:
        """A module of the model's own package. ImportError that says how to get it."""
        try:
            return importlib.import_module(module)
        except ImportError as error:
            raise ImportError(f"{cls._name()}: cannot import {module} ({error}); {cls.install}") from error

    #: How to install the model's package, for the error and the README.
    install: ClassVar[str] = ""


def load_state(model: torch.nn.Module, path: str) -> None:
    """Weights from a .safetensors file, or from a .pt or .pth file of plain tensors (nothing in it is executed).

    Raises ValueError for a missing file, another ending, or weights of another model.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"no weights at {file}")
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        state = load_file(file)
    elif file.suffix in (".pt", ".pth"):
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            if type(error).__name__ != "UnpicklingError":  # by name: nothing here imports pickle
                raise
            raise ValueError(f"{file} holds more than tensors and would have to be executed to be read; it is not") from error
    else:
        raise ValueError(f"weights must be a .safetensors, .pt or .pth file, got {file.name}")
    lacking = model.load_state_dict(state, strict=False)
    if lacking.missing_keys:
        raise ValueError(f"{file} lacks {len(lacking.missing_keys)} parameters, for example {lacking.missing_keys[0]}")


def arrays(*tensors: torch.Tensor) -> tuple[np.ndarray, ...]:
    """float32 numpy copies."""
    return tuple(x.detach().float().cpu().numpy() for x in tensors)


def inverted(w2c: np.ndarray) -> np.ndarray:
    """[F, 4, 4] float32 camera-to-world of world-to-camera [F, 3 or 4, 4]."""
    full = np.tile(np.eye(4), (len(w2c), 1, 1))
    full[:, :3] = w2c[:, :3]
    return np.linalg.inv(full).astype(np.float32)


def from_ratio(confidence: np.ndarray) -> np.ndarray:
    """Confidences of one and more (1 + exp, as DUSt3R and its descendants use) to 0..1."""
    return np.clip(1 - 1 / np.maximum(confidence, 1.0), 0, 1).astype(np.float32)
