"""Reward models on a Qwen2-VL backbone: a small head reads the hidden states of reward tokens in the question.

HPSv3 (arXiv 2508.03789) scores pictures with one token, VideoAlign (arXiv 2501.13918) clips with three. Both were trained with
positions that count tokens one by one, pictures included, instead of the backbone's three-dimensional ones; so are they run here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from world_r1_rewards.quality import files, pixels
from world_r1_rewards.quality.clip import dtype_of
from world_r1_rewards.quality.text import harmless

#: Characters of a prompt that are shown at most.
LIMIT = 2000
#: Where the prompt goes in a template.
PLACE = "{text_prompt}"


@dataclass(frozen=True)
class Layout:
    """What tells one reward model from another."""

    #: Special tokens whose hidden states are read, in the order in which they stand in the template.
    tokens: tuple[str, ...]
    #: Whether frames are shown as one video, or each as a picture.
    video: bool
    #: Pixels a frame: (least, most).
    pixels: tuple[int, int]
    #: (outputs of the head per token, hidden layers or none).
    outputs: int
    deep: bool


HPSV3 = Layout(("<|Reward|>",), False, (256 * 28 * 28, 256 * 28 * 28), 2, True)
VIDEOALIGN = Layout(("<|VQ_reward|>", "<|MQ_reward|>", "<|TA_reward|>"), True, (128 * 28 * 28, 200_704), 1, False)


def head_of(layout: Layout, width: int) -> torch.nn.Module:
    """The untrained head: one linear map without bias, or three layers (1024, 16) with ReLU (HPSv3)."""
    if not layout.deep:
        return torch.nn.Linear(width, layout.outputs, bias=False)
    return torch.nn.Sequential(
        torch.nn.Linear(width, 1024),
        torch.nn.ReLU(),
        torch.nn.Dropout(0.0),
        torch.nn.Linear(1024, 16),
        torch.nn.ReLU(),
        torch.nn.Linear(16, layout.outputs),
    )


class QwenReward:
    """A Qwen2-VL reward model. `scores` gives [items, tokens, outputs] float32.

    `base` is a hub id or folder with the backbone's configuration and tokenizer (its weights are not read), `checkpoint` the trained
    weights (path or "owner/name:file"; safetensors, or a tensors-only .pth), `template` the path of the text that the checkpoint was
    trained with, "{text_prompt}" in place of the prompt and the reward tokens in it: with another text the numbers mean nothing, and
    it belongs to the model's authors, so it is not shipped. `lora_scale` is alpha / r of a checkpoint with unmerged adapters.
    """

    def __init__(
        self,
        layout: Layout,
        base: str,
        checkpoint: str,
        template: str,
        revision: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        batch: int = 4,
        lora_scale: float = 1.0,
        attention: str = "sdpa",
    ) -> None:
        from transformers import AutoConfig, AutoTokenizer

        device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self.layout, self.batch, self.template = layout, batch, read_template(template, layout)
        self.tokenizer = AutoTokenizer.from_pretrained(base, revision=revision)
        self.tokenizer.add_tokens(list(layout.tokens), special_tokens=True)
        self.reward_ids = self.tokenizer.convert_tokens_to_ids(list(layout.tokens))
        state = files.read(checkpoint)
        self.versions = {"model": checkpoint, "weights": files.fingerprint(state)}
        backbone, head = files.to_backbone(files.merge_lora(state, lora_scale))
        self.net = _backbone(AutoConfig.from_pretrained(base, revision=revision), backbone, dtype_of(dtype, device), attention)
        self.net = self.net.to(device).eval()
        self.head = head_of(layout, self.net.config.text_config.hidden_size)
        files.fill(self.head, head, "the reward head")
        self.head = self.head.float().to(device).eval()
        vision = self.net.config.vision_config
        self.patch, self.merge, self.temporal = vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size
        if max(self.reward_ids) >= self.net.get_input_embeddings().num_embeddings:
            raise ValueError(f"{checkpoint} has no embedding of {layout.tokens}; it is not the checkpoint of this reward model")

    def scores(self, items: Sequence[tuple[np.ndarray, str]]) -> list[torch.Tensor | Exception]:
        """[tokens, outputs] float32 per (frames [n, H, W, 3] uint8, prompt), or what went wrong; a picture model wants n = 1."""
        results: list[torch.Tensor | Exception] = []
        for first in range(0, len(items), self.batch):
            results += self._some(items[first : first + self.batch])
        return results

    def _some(self, items: Sequence[tuple[np.ndarray, str]]) -> list[torch.Tensor | Exception]:
        try:
            return list(self._forward(items))
        except torch.OutOfMemoryError as error:
            # Without the traceback, which would keep the tensors; still this type, after which a pool replaces its worker.
            cause: Exception = torch.OutOfMemoryError(str(error).partition(". ")[0])
            torch.cuda.empty_cache()
        except ValueError as error:
            cause = error
        if len(items) == 1:
            return [cause]
        half = len(items) // 2
        return self._some(items[:half]) + self._some(items[half:])

    @torch.inference_mode()
    def _forward(self, items: Sequence[tuple[np.ndarray, str]]) -> list[torch.Tensor]:
        shown = [self._patches(frames) for frames, _ in items]
        rows = [self._tokens(grid, prompt) for (_, grid), (_, prompt) in zip(shown, items, strict=True)]
        length = max(len(row) for row in rows)
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0
        ids = torch.tensor([row + [pad] * (length - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
        device = self.net.device
        kind = "video" if self.layout.video else "image"
        vision = {
            "pixel_values_videos" if self.layout.video else "pixel_values": torch.cat([flat for flat, _ in shown]).to(device),
            f"{kind}_grid_thw": torch.tensor([grid for _, grid in shown], device=device),
        }
        positions = torch.arange(length, device=device).expand(3, len(rows), length)
        hidden = self.net(
            input_ids=ids.to(device), attention_mask=mask.to(device), position_ids=positions, use_cache=False, **vision
        ).last_hidden_state
        found = self.head(hidden.float()).cpu()
        if not torch.isfinite(found).all():
            raise ValueError("the reward model's output is not finite")
        return [row[[ids_.index(i) for i in self.reward_ids]] for row, ids_ in zip(found, rows, strict=True)]

    def _patches(self, frames: np.ndarray) -> tuple[torch.Tensor, tuple[int, int, int]]:
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

        least, most = self.layout.pixels
        height, width = smart_resize(*frames.shape[1:3], factor=self.patch * self.merge, min_pixels=least, max_pixels=most)
        normal = pixels.normalise(pixels.resized(frames, height, width))
        return pixels.patches(normal, self.patch, self.merge, self.temporal)

    def _tokens(self, grid: tuple[int, int, int], prompt: str) -> list[int]:
        """Token ids of the conversation, in the form that Qwen2-VL's own template gives it."""
        plain = harmless(prompt, self.tokenizer, LIMIT)
        pad = "<|video_pad|>" if self.layout.video else "<|image_pad|>"
        count = grid[0] * grid[1] * grid[2] // self.merge**2
        ids = self.tokenizer.encode(
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
            + pad * count
            + f"<|vision_end|>{self.template.replace(PLACE, plain)}<|im_end|>\n<|im_start|>assistant\n",
            add_special_tokens=False,
        )
        if ids.count(self.tokenizer.convert_tokens_to_ids(pad)) != count or any(ids.count(i) != 1 for i in self.reward_ids):
            raise ValueError(f"the tokenizer takes the reward tokens or {pad} apart; base is not a Qwen2-VL")
        return ids


def read_template(path: str, layout: Layout) -> str:
    """The trained question. ValueError unless it holds the prompt's place and every reward token once, in order."""
    file = Path(path)
    if not file.is_file():
        raise ValueError(
            f"template: no file at {path}; it is the text that the checkpoint was trained with (rewards/README.md, Quality)"
        )
    text = file.read_text(encoding="utf-8")
    places = [text.find(token) for token in layout.tokens]
    if text.count(PLACE) != 1 or any(text.count(token) != 1 for token in layout.tokens) or places != sorted(places):
        raise ValueError(f"template {path}: must hold {PLACE} and {', '.join(layout.tokens)} once each, in this order of tokens")
    return text


def _backbone(config: Any, state: Mapping[str, torch.Tensor], dtype: torch.dtype, attention: str) -> Any:
    """A Qwen2VLModel with these weights; the vocabulary has as many rows as they do."""
    from transformers import Qwen2VLModel
    from transformers.initialization import no_init_weights

    embedding = "language_model.embed_tokens.weight"
    if embedding not in state:
        raise ValueError("the checkpoint is not of a Qwen2-VL: it has no token embeddings")
    config.text_config.vocab_size = state[embedding].shape[0]
    with no_init_weights():
        net = Qwen2VLModel._from_config(config, attn_implementation=attention, dtype=dtype)
    files.fill(net, {name: value.to(dtype) for name, value in state.items()}, "the Qwen2-VL backbone")
    return net
