"""Prompt text is data: whatever a prompt says, a judge reads it inside one quoted line and nowhere else."""

from __future__ import annotations

import json
import re
import unicodedata

#: Characters that chat templates, special tokens and markup are made of; a quotation has JSON's escapes in their place.
MARKUP = "<>[]{}|`#"
#: Characters of a prompt that a judge reads at most.
LIMIT = 1200


def quote(text: str, limit: int = LIMIT) -> str:
    """`text` as one line of JSON, in double quotes, without a character that could end the quotation or form a special token.

    Compatibility forms are folded first (NFKC), so that look-alikes of `<` do not survive; control, format, surrogate and
    unassigned characters are dropped; runs of white space become one space; more than `limit` characters are cut, with an ellipsis
    that counts. `json.loads(quote(text))` gives back what was kept.
    """
    kept = clean(text)
    if len(kept) > limit:
        kept = kept[: max(limit - 1, 0)].rstrip() + "…"
    line = json.dumps(kept, ensure_ascii=False)
    return line.translate({ord(c): f"\\u{ord(c):04x}" for c in MARKUP})


def clean(text: str) -> str:
    """`text` folded (NFKC), without control and format characters, white space collapsed; nothing is cut."""
    folded = unicodedata.normalize("NFKC", text)
    spaced = re.sub(r"\s+", " ", folded)
    return " ".join("".join(c for c in spaced if unicodedata.category(c)[0] != "C").split())
