"""A judge in this process: any image-text-to-text model that transformers can load."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import torch

from world_r1_rewards.judges import answers
from world_r1_rewards.judges.answers import DIGITS, MIN_MASS, YES_NO, Answer, Judge, JudgeError, Question

log = logging.getLogger(__name__)

#: A processor that shows the model less than this share of the pixels it was given has a budget of its own.
SHRUNK = 0.5


class TransformersJudge(Judge):
    """One forward, no generation: the distribution of the next token over the allowed answers, whose ids the tokenizer tells.

    `model` is a hub id or a folder, `revision` a commit of it. `device` "auto", "cpu", "cuda"; `dtype` "auto" (bfloat16 on a GPU, else
    float32) or a torch name. `batch` questions a forward; out of memory halves it. `input` "video", "images", or "auto" (video for
    Qwen-VL). `answer_prefix` is written for the model after its turn begins (some want "Answer: "). Questions of
    more than `max_tokens` tokens fail. Remote code is never run. ValueError for options that cannot work.
    """

    def __init__(
        self,
        model: str,
        revision: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        batch: int = 4,
        input: str = "auto",
        answer_prefix: str = "",
        min_mass: float = MIN_MASS,
        max_tokens: int = 16_384,
        attention: str = "sdpa",
    ) -> None:
        self.loaded = load(model, revision, device, dtype, attention)
        name = f"{model}@{revision}" if revision else model
        self._take(self.loaded.net, self.loaded.processor, name, batch, input, answer_prefix, min_mass, max_tokens)

    @classmethod
    def of(cls, net: Any, processor: Any, name: str, **options: Any) -> TransformersJudge:
        """A judge from a model and a processor that are already in memory; options as in the constructor, after `dtype`."""
        judge = cls.__new__(cls)
        defaults: dict[str, Any] = {"batch": 4, "input": "auto", "answer_prefix": "", "min_mass": MIN_MASS, "max_tokens": 16_384}
        judge._take(net.eval(), processor, name, **(defaults | options))
        return judge

    def _take(
        self, net: Any, processor: Any, name: str, batch: int, input: str, answer_prefix: str, min_mass: float, max_tokens: int
    ) -> None:
        vision = processor.image_processor
        #: Qwen-VL processors cut any size into patches; the others resize to tiles of their own, and are shown pictures only.
        self.patch = int(vision.patch_size) if hasattr(vision, "merge_size") and hasattr(vision, "patch_size") else 0
        self.multiple = self.patch * int(vision.merge_size) if self.patch else 1
        takes_video = bool(self.patch) and getattr(processor, "video_processor", None) is not None
        if input not in ("auto", "images", "video") or batch < 1:
            raise ValueError(f"judge: input is auto, images or video and batch at least 1; got input={input!r}, batch={batch}")
        if input == "video" and not takes_video:
            raise ValueError(f"judge: {name} is not shown video here; set input: images")
        self.model, self.net, self.processor, self.batch = name, net, processor, batch
        self.video = takes_video and input != "images"
        self.answer_prefix, self.min_mass, self.max_tokens = answer_prefix, min_mass, max_tokens
        self.tokenizer = processor.tokenizer
        self.tokenizer.padding_side = "left"  # so that the last position is the answer's, for every row of a batch
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.ids = {choices: choice_ids(self.tokenizer, choices) for choices in (DIGITS, YES_NO)}
        self.keeps_last = "logits_to_keep" in inspect.signature(net.forward).parameters

    def ask(self, questions: Sequence[Question]) -> list[Answer | Exception]:
        """One answer per question, `batch` of a kind at a time."""
        results: list[Answer | Exception] = [JudgeError("not asked")] * len(questions)
        kinds: dict[tuple[Any, ...], list[int]] = {}
        for i, question in enumerate(questions):
            if problem := self._problem(question):
                results[i] = JudgeError(problem)
            else:
                kinds.setdefault((self.video and len(question.frames) > 1, question.choices), []).append(i)
        for (video, choices), members in kinds.items():
            for first in range(0, len(members), self.batch):
                part = members[first : first + self.batch]
                for i, answer in zip(part, self._batch([questions[i] for i in part], video, choices), strict=True):
                    results[i] = answer
        return results

    def _batch(self, questions: list[Question], video: bool, choices: tuple[str, ...]) -> list[Answer | Exception]:
        """Answers of one forward, or of smaller ones when memory is short. One bad question does not spoil the others."""
        try:
            return list(self._forward(questions, video, choices))
        except torch.OutOfMemoryError as error:
            # Without the traceback, which would keep the tensors; still this type, after which a pool replaces its worker.
            cause: Exception = torch.OutOfMemoryError(f"{str(error).partition('. ')[0]}; lower pixels or frames")
            torch.cuda.empty_cache()
        except JudgeError as error:
            cause = error
        if len(questions) == 1:
            return [cause]
        half = len(questions) // 2
        log.info("judge %s: %s; in two halves of %d", self.model, cause, len(questions))
        return self._batch(questions[:half], video, choices) + self._batch(questions[half:], video, choices)

    @torch.inference_mode()
    def _forward(self, questions: list[Question], video: bool, choices: tuple[str, ...]) -> list[Answer]:
        inputs = self._inputs(questions, video)
        details = self._seen(inputs, questions, video)
        inputs = {key: value.to(self.net.device) for key, value in inputs.items() if isinstance(value, torch.Tensor)}
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(self.net.dtype)
        if "pixel_values_videos" in inputs:
            inputs["pixel_values_videos"] = inputs["pixel_values_videos"].to(self.net.dtype)
        keep = {"logits_to_keep": 1} if self.keeps_last else {}
        logits = self.net(**inputs, use_cache=False, **keep).logits[:, -1].float()
        if not torch.isfinite(logits).all():
            raise JudgeError("the model's logits are not finite")
        log_probs = logits.log_softmax(-1)
        return [self._answer(row, choices, detail) for row, detail in zip(log_probs, details, strict=True)]

    def _answer(self, log_probs: torch.Tensor, choices: tuple[str, ...], details: dict[str, float]) -> Answer:
        pairs = [(choice, float(log_probs[i])) for choice, ids in self.ids[choices].items() for i in ids]
        said = self.tokenizer.decode([int(log_probs.argmax())])
        return Answer(*answers.read(pairs, choices, min_mass=self.min_mass, said=said), details, self.model)

    def _inputs(self, questions: list[Question], video: bool) -> Any:
        texts = [self._prompt(question, video) for question in questions]
        options: dict[str, Any] = {"return_tensors": "pt", "padding": True}
        if self.patch:
            options["do_resize"] = False  # the frames have the size of the budget; the processor's own budget is another
        if video:
            options |= {"do_sample_frames": False, "video_metadata": [_metadata(question) for question in questions]}
            if "cap_pixels_per_frame" in getattr(self.processor.video_processor, "__dict__", {}):
                options["cap_pixels_per_frame"] = False
            return self.processor(text=texts, videos=[torch.from_numpy(q.frames).movedim(-1, 1) for q in questions], **options)
        vision = self.processor.image_processor
        options |= {name: False for name in ("do_image_splitting", "crop_to_patches") if hasattr(vision, name)}
        return self.processor(text=texts, images=[list(question.frames) for question in questions], **options)

    def _prompt(self, question: Question, video: bool) -> str:
        content: list[dict[str, str]] = [{"type": "video"}] if video else []
        for i in range(0 if video else len(question.frames)):
            if question.times:
                content.append({"type": "text", "text": f"Second {question.times[i]:.2f}:"})
            content.append({"type": "image"})
        content.append({"type": "text", "text": question.text})
        messages = [
            {"role": "system", "content": [{"type": "text", "text": question.system}]},
            {"role": "user", "content": content},
        ]
        return self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False) + self.answer_prefix

    def _seen(self, inputs: Any, questions: list[Question], video: bool) -> list[dict[str, float]]:
        """What the model really gets, per question. Raises `JudgeError` if that is too much, or if the processor shrank it."""
        tokens = inputs["attention_mask"].sum(1).tolist()
        if max(tokens) > self.max_tokens:
            raise JudgeError(f"a question of {max(tokens)} tokens, more than max_tokens={self.max_tokens}; lower frames or pixels")
        grids = inputs.get("video_grid_thw" if video else "image_grid_thw")
        details, row = [], 0
        for question, count in zip(questions, tokens, strict=True):
            pictures = 1 if video else len(question.frames)
            if grids is None or not self.patch:
                height, width = inputs["pixel_values_videos" if video else "pixel_values"].shape[-2:]
                slices = len(question.frames)
            else:
                own = grids[row : row + pictures]
                slices, height, width = int(own[:, 0].sum()), int(own[0, 1]) * self.patch, int(own[0, 2]) * self.patch
            row += pictures
            shown = question.frames.shape[1] * question.frames.shape[2]
            if height * width < SHRUNK * shown:
                size = f"{question.frames.shape[1]}x{question.frames.shape[2]}"
                raise JudgeError(
                    f"the processor of {self.model} shrank frames of {size} to {height}x{width}; lower pixels to what it takes"
                )
            seen = {"frames": len(question.frames), "slices": slices, "height": height, "width": width, "input_tokens": count}
            details.append({name: float(value) for name, value in seen.items()})
        return details

    def _problem(self, question: Question) -> str:
        """Why a question cannot be put to this model, "" if it can: prompts may hold no control token, frames must fill patches."""
        special = set(self.tokenizer.all_special_ids) | set(getattr(self.tokenizer, "added_tokens_decoder", {}))
        found = [i for i in self.tokenizer.encode(question.text, add_special_tokens=False) if i in special]
        if found:
            return f"the text of the question holds the model's control token {self.tokenizer.decode(found[:1])!r}"
        height, width = question.frames.shape[1:3]
        if height % self.multiple or width % self.multiple:
            return f"frames of {height}x{width} do not fill the model's patches of {self.multiple}x{self.multiple} pixels"
        return ""


@dataclass(frozen=True)
class Loaded:
    """A model in eval mode on its device, and its processor. Frozen: several judges of a process may hold the same one."""

    net: Any
    processor: Any


_LOADED: WeakValueDictionary[tuple[str | None, ...], Loaded] = WeakValueDictionary()


def load(model: str, revision: str | None, device: str, dtype: str, attention: str) -> Loaded:
    """Model and processor, shared by everyone in this process who asks for the same ones and freed with the last of them.

    ImportError names the extra that is missing, ValueError a dtype that is none.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    key = (model, revision, device, dtype, attention)
    found = _LOADED.get(key)
    if found is None:
        found = _LOADED[key] = _load(model, revision, device, dtype, attention)
    return found


def _load(model: str, revision: str | None, device: str, dtype: str, attention: str) -> Loaded:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    kind = ("bfloat16" if device.startswith("cuda") else "float32") if dtype == "auto" else dtype
    if not isinstance(getattr(torch, kind, None), torch.dtype):
        raise ValueError(f"judge: dtype is auto or a torch name such as bfloat16, got {dtype!r}")
    try:
        processor = AutoProcessor.from_pretrained(model, revision=revision)
    except (ImportError, RuntimeError) as error:
        if "torchvision" not in str(error):
            raise
        raise ImportError(
            f"the processor of {model} needs torchvision; install it with: pip install 'world-r1[judge]'", name="torchvision"
        ) from error
    net = AutoModelForImageTextToText.from_pretrained(
        model, revision=revision, dtype=getattr(torch, kind), attn_implementation=attention
    )
    return Loaded(net.to(device).eval(), processor)


def choice_ids(tokenizer: Any, choices: tuple[str, ...]) -> dict[str, list[int]]:
    """Token ids that spell each allowed answer, with or without a space before it, in any case. ValueError if one has none."""
    found: dict[str, list[int]] = {choice: [] for choice in choices}
    for token, i in tokenizer.get_vocab().items():
        choice = answers.choice_of(token, choices) if len(token) <= 6 else None
        if choice is not None:
            found[choice].append(int(i))
    if lacking := [choice for choice, ids in found.items() if not ids]:
        raise ValueError(f"judge: the tokenizer of this model has no single token for {lacking}; choose another model")
    return found


def _metadata(question: Question) -> dict[str, Any]:
    """The times of sampled frames in the form that video processors read: indices at a thousand frames a second."""
    indices = [round(1000 * second) for second in question.times]
    return {"fps": 1000.0, "total_num_frames": indices[-1] + 1, "frames_indices": indices, "duration": (indices[-1] + 1) / 1000}
