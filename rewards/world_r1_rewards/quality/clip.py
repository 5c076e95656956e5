"""CLIP and the preference models that are CLIPs with other weights."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from world_r1_rewards.quality import files
from world_r1_rewards.quality.pixels import square
from world_r1_rewards.quality.text import harmless


class ClipScorer:
    """Cosines between frames and prompts.

    `model` is a hub id or folder of a transformers CLIPModel with its tokenizer; `checkpoint` replaces its weights (transformers' or
    open_clip's names; a path or "owner/name:file"); `tokenizer` another id for the tokenizer. `fit` as in `pixels.square`.
    """

    def __init__(
        self,
        model: str,
        checkpoint: str | None = None,
        tokenizer: str | None = None,
        revision: str | None = None,
        fit: str = "crop",
        device: str = "auto",
        dtype: str = "auto",
        batch: int = 64,
    ) -> None:
        from transformers import AutoTokenizer, CLIPConfig, CLIPModel

        device = _device(device)
        kind = dtype_of(dtype, device)
        if checkpoint is None:
            net = CLIPModel.from_pretrained(model, revision=revision)
        else:
            net = CLIPModel(CLIPConfig.from_pretrained(model, revision=revision))
            state = files.read(checkpoint)
            files.fill(net, files.from_open_clip(state) if "visual.conv1.weight" in state else state, f"the CLIP {model}")
        self.net = net.to(device, kind).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(tokenizer or model)
        self.fit, self.batch = fit, batch
        self.side = int(net.config.vision_config.image_size)
        self.length = int(net.config.text_config.max_position_embeddings)
        self.versions = {"model": checkpoint or model, "weights": files.fingerprint(net.state_dict())}

    @torch.inference_mode()
    def images(self, frames: np.ndarray) -> torch.Tensor:
        """[n, H, W, 3] uint8 -> [n, D] float32 unit vectors."""
        found = []
        for part in square(frames, self.side, self.fit).split(self.batch):
            pooled = self.net.get_image_features(pixel_values=part.to(self.net.device, self.net.dtype))
            found.append(_features(pooled))
        return torch.nn.functional.normalize(torch.cat(found), dim=-1)

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> tuple[torch.Tensor, list[int]]:
        """[n, D] float32 unit vectors, and how many tokens of each text did not fit and were cut."""
        plain = [harmless(text, self.tokenizer) for text in texts]
        whole = [len(self.tokenizer.encode(text)) for text in plain]
        inputs = self.tokenizer(plain, padding="max_length", truncation=True, max_length=self.length, return_tensors="pt")
        kept = {name: inputs[name].to(self.net.device) for name in ("input_ids", "attention_mask")}
        features = torch.nn.functional.normalize(_features(self.net.get_text_features(**kept)), dim=-1)
        return features, [max(0, count - self.length) for count in whole]

    def cosines(self, clips: Sequence[np.ndarray], prompts: Sequence[str]) -> list[tuple[np.ndarray, int]]:
        """([n] float32 cosines of a clip's frames with its prompt, tokens cut) per clip. RuntimeError if one is not finite."""
        texts, cut = self.texts(prompts)
        results = []
        for frames, text, lost in zip(clips, texts, cut, strict=True):
            found = (self.images(frames) @ text).float().cpu().numpy()
            if not np.isfinite(found).all():
                raise RuntimeError("the CLIP's similarity is not finite")
            results.append((found, lost))
        return results

    @property
    def scale(self) -> float:
        """The learned temperature that turns a cosine into the published score."""
        return float(self.net.logit_scale.detach().exp())


class AestheticHead(torch.nn.Module):
    """LAION's aesthetic predictor v2: five linear layers without activations on unit CLIP ViT-L/14 image vectors, about 1 to 10."""

    def __init__(self, width: int = 768) -> None:
        super().__init__()
        sizes = (width, 1024, 128, 64, 16, 1)
        layers: list[torch.nn.Module] = []
        for i, (before, after) in enumerate(itertools.pairwise(sizes)):
            layers += [torch.nn.Linear(before, after), torch.nn.Dropout(0.0)] if i < 3 else [torch.nn.Linear(before, after)]
        self.layers = torch.nn.Sequential(*layers)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """[n, width] unit vectors -> [n]."""
        return self.layers(vectors)[:, 0]

    @classmethod
    def load(cls, path: str, device: str) -> tuple[AestheticHead, str]:
        """(head, fingerprint) from the published file or a safetensors copy. ValueError if the weights are of something else."""
        state = files.read(path)
        width = state["layers.0.weight"].shape[1] if "layers.0.weight" in state else 768
        head = cls(width)
        files.fill(head, state, "the aesthetic predictor")
        return head.to(_device(device)).eval(), files.fingerprint(state)


def _features(output: Any) -> torch.Tensor:
    pooled = output if isinstance(output, torch.Tensor) else output.pooler_output
    return pooled.float()


def _device(device: str) -> str:
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def dtype_of(dtype: str, device: str) -> torch.dtype:
    """A torch dtype by name; "auto" is bfloat16 on a GPU and float32 elsewhere. ValueError for another name."""
    if dtype == "auto":
        return torch.bfloat16 if device.startswith("cuda") else torch.float32
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"dtype is auto or a torch name such as bfloat16, got {dtype!r}")
    return found


def preference(values: np.ndarray, versions: Mapping[str, str], **parts: float) -> dict[str, Any]:
    """What every quality probe gives: values per frame, what they come from, and more numbers for the records."""
    return {"values": np.asarray(values, np.float32), "versions": dict(versions), "parts": parts}
