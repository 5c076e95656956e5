"""Vision-language models at tiny size with random weights, and a home-made tokenizer."""

from __future__ import annotations

from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

SPECIAL = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}"
    "{% if c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif c.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ c.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def has_torchvision() -> bool:
    try:
        import torchvision.transforms.v2  # noqa: F401
    except (ImportError, RuntimeError):  # RuntimeError: built for another torch
        return False
    return True


def tokenizer() -> Any:
    """Bytes, and merges that make " 7", "yes", "Yes" and "no" single tokens; everything else falls into bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = [*(("Ġ", digit) for digit in "0123456789"), ("y", "e"), ("ye", "s"), ("Y", "e"), ("Ye", "s"), ("n", "o")]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<|endoftext|>", eos_token="<|im_end|>", additional_special_tokens=SPECIAL
    )


def processor(tok: Any, *, video: bool) -> Any:
    from transformers import ProcessorMixin, Qwen2VLImageProcessorPil, Qwen3VLProcessor

    pictures = Qwen2VLImageProcessorPil(patch_size=16, merge_size=2, temporal_patch_size=2)
    if video:
        from transformers import Qwen3VLVideoProcessor

        return Qwen3VLProcessor(
            image_processor=pictures,
            tokenizer=tok,
            video_processor=Qwen3VLVideoProcessor(patch_size=16, merge_size=2, temporal_patch_size=2),
            chat_template=TEMPLATE,
        )

    class Pictures(Qwen3VLProcessor):
        """The same processor without its video half, which needs torchvision."""

        def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None) -> None:
            self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
            self.image_token_id, self.video_token_id = tokenizer.convert_tokens_to_ids(["<|image_pad|>", "<|video_pad|>"])
            ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    return Pictures(image_processor=pictures, tokenizer=tok, chat_template=TEMPLATE)


def network(tok: Any, seed: int = 5) -> Any:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    torch.manual_seed(seed)
    ids = dict(zip(SPECIAL, tok.convert_tokens_to_ids(SPECIAL), strict=True))
    text = {
        "vocab_size": len(tok),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2], "mrope_interleaved": True},
    }
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": 32,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
    }
    config = Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    return Qwen3VLForConditionalGeneration(config).eval()


def qwen25() -> tuple[Any, Any]:
    """A tiny Qwen2.5-VL."""
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessorPil,
        Qwen2VLVideoProcessor,
    )

    tok = tokenizer()
    ids = dict(zip(SPECIAL, tok.convert_tokens_to_ids(SPECIAL), strict=True))
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]}
    towers = {"hidden_size": 32, "intermediate_size": 48}
    text = {**towers, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "rope_parameters": rope}
    config = Qwen2_5_VLConfig(
        text_config={**text, "vocab_size": len(tok)},
        vision_config={
            **towers,
            "depth": 2,
            "num_heads": 2,
            "out_hidden_size": 32,
            "window_size": 56,
            "fullatt_block_indexes": [1],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    made = Qwen2_5_VLProcessor(Qwen2VLImageProcessorPil(), tok, Qwen2VLVideoProcessor(), chat_template=TEMPLATE)
    return Qwen2_5_VLForConditionalGeneration(config), made


def smolvlm() -> tuple[Any, Any]:
    """A tiny SmolVLM2: tiles of one size, another chat format."""
    from transformers import (
        SmolVLMConfig,
        SmolVLMForConditionalGeneration,
        SmolVLMImageProcessor,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )

    tok = tokenizer()
    tok.add_tokens(["<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>", "<video>"], special_tokens=True)
    towers = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = SmolVLMConfig(
        image_token_id=tok.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        text_config={"model_type": "llama", **towers, "vocab_size": len(tok), "pad_token_id": tok.pad_token_id},
        vision_config={**towers, "image_size": 64, "patch_size": 16},
        pad_token_id=tok.pad_token_id,
    )
    size = {"longest_edge": 64}
    template = (
        "{% for m in messages %}{{m.role}}: {% for c in m.content %}{% if c.type == 'image' %}<image>{% else %}{{c.text}}{% endif %}"
        "{% endfor %}<end_of_utterance>\n{% endfor %}Assistant:"
    )
    pictures = SmolVLMImageProcessor(size=size, max_image_size=size)
    made = SmolVLMProcessor(pictures, tok, SmolVLMVideoProcessor(), image_seq_len=4, chat_template=template)
    return SmolVLMForConditionalGeneration(config), made


def internvl() -> tuple[Any, Any]:
    """A tiny InternVL: square tiles."""
    from transformers import (
        GotOcr2ImageProcessor,
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLProcessor,
        InternVLVideoProcessor,
    )

    own = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tok = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer().backend_tokenizer, pad_token="<|endoftext|>", eos_token="<|im_end|>", extra_special_tokens=own
    )
    towers = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = InternVLConfig(
        image_token_id=tok.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        text_config={"model_type": "qwen2", **towers, "num_key_value_heads": 1, "vocab_size": len(tok)},
        vision_config={**towers, "image_size": [64, 64], "patch_size": [16, 16]},
    )
    size = {"height": 64, "width": 64}
    template = TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", "<IMG_CONTEXT>")
    pictures, film = GotOcr2ImageProcessor(size=size), InternVLVideoProcessor(size=size)
    return InternVLForConditionalGeneration(config), InternVLProcessor(
        pictures, tok, film, image_seq_length=4, chat_template=template
    )


def leaning(net: Any, tok: Any, spelling: str, weight: float = 40.0) -> Any:
    """The same network, which now mostly says one token: a direction of the last hidden state that the head reads for it alone."""
    (wanted,) = tok.encode(spelling, add_special_tokens=False)
    with torch.no_grad():
        head = torch.nn.Linear(net.lm_head.in_features, net.lm_head.out_features, bias=True)
        head.weight.copy_(net.lm_head.weight)
        head.bias.zero_()
        head.bias[wanted] = weight
    net.lm_head = head
    return net
