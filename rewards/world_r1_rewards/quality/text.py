"""Prompts for models that were trained on bare text: as written, without what a tokenizer takes for a command."""

from __future__ import annotations

from typing import Any

from world_r1_rewards.judges.quoting import clean


def harmless(prompt: str, tokenizer: Any, limit: int = 2000) -> str:
    """The prompt, folded and cut at `limit` characters, every control token of the tokenizer broken up by a space.

    "<|endoftext|>" in a prompt would end the text for CLIP, "<|Reward|>" would be a second place to read a reward from. Tokens of
    fewer than three characters are letters that a tokenizer uses for padding; they stay. ValueError if one is left.
    """
    control = {i: str(token) for i, token in getattr(tokenizer, "added_tokens_decoder", {}).items() if len(str(token)) >= 3}
    text = clean(prompt)[:limit]
    for token in sorted(control.values(), key=len, reverse=True):
        text = text.replace(token, f"{token[0]} {token[1:]}")
    if left := set(control) & set(tokenizer.encode(text, add_special_tokens=False)):
        raise ValueError(f"the prompt holds control tokens of the model: {', '.join(sorted(control[i] for i in left))}")
    return text
