"""The one thing of English that depends on a drawn word: the article before it."""

from __future__ import annotations

import re

_CONSONANT = r"(?:one|uni(?!n|m)|use|usu|eu|ut[ei]|ukul|once)[a-z-]*\b"
_AN = re.compile(rf"\b([Aa]) (?=(?!{_CONSONANT})[aeiou]|(?:hour|heir|honest|honou?r)[a-z-]*\b)", re.IGNORECASE)
_A = re.compile(rf"\b([Aa])n (?=(?![aeiou]|hour|heir|hono)[a-z]|{_CONSONANT})", re.IGNORECASE)


def articles(text: str) -> str:
    """`text` with "a" and "an" as the next word wants it."""
    return _A.sub(r"\1 ", _AN.sub(r"\1n ", text))
