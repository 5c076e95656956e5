"""The little morphology that composed sentences need: articles, number, verb forms, clauses that can be finite or absolute."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


#: Nouns whose last letter misleads about their number.
_SINGULAR = _set(
    "glass moss grass brass canvas compass gas lens iris atlas chess dress cross bus chaos lotus cactus octopus hibiscus "
    "crocus bias harness mess mass class pass press fortress mattress wilderness abyss cypress watercress terrace citrus "
    "walrus abacus bliss loess princess waitress actress hostess seamstress darkness stillness lattice nautilus cumulus "
    "crevasse albatross truss pampas furnace gneiss gladiolus asparagus apparatus papyrus thermos isthmus nexus orchis "
    "agaves"
)
_PLURAL = _set(
    "people children sheep geese leaves teeth feet men women cattle dice mice fungi strata cacti oxen deer salmon koi "
    "herdsmen fishermen workmen bacteria fish swine police dancers"
)
_BREAKS = _set(
    "of with in on from under between beneath above over along against beside behind at by across for to through into "
    "around near without that which whose made beyond inside outside below after before up down onto among amid"
)
_IRREGULAR = _set(
    "cut set hung full left made built lit hid split laid shut burst bound wound worn torn held kept spun strung stuck"
)
_NUMBERS = _set("two three four five six seven eight nine ten eleven twelve several many some few dozens scores")

_CONSONANT = r"(?:one|uni(?!n|m)|use|usu|eu|ut[ei]|ukul|once)[a-z-]*\b"
_AN = re.compile(rf"\b([Aa]) (?=(?!{_CONSONANT})[aeiou]|(?:hour|heir|honest|honou?r)[a-z-]*\b)", re.IGNORECASE)
_A = re.compile(rf"\b([Aa])n (?=(?![aeiou]|hour|heir|hono)[a-z]|{_CONSONANT})", re.IGNORECASE)

_MARKED = re.compile(r"\+([a-z]+)")


def articles(text: str) -> str:
    """`text` with "a" and "an" as the next word wants it."""
    return _A.sub(r"\1 ", _AN.sub(r"\1n ", text))


@lru_cache(maxsize=65536)
def is_plural(phrase: str) -> bool:
    """Whether a noun phrase takes "are"."""
    words = phrase.lower().replace(",", "").split()
    if not words:
        return False
    first = words[0]
    if first in _NUMBERS or (first in ("a", "an") and words[1:3] in (["few", words[2] if len(words) > 2 else ""], ["pair", "of"])):
        return first in _NUMBERS or words[1] == "few"
    if first in ("a", "an", "one", "each", "every", "another", "this", "that"):
        return False
    for index, word in enumerate(words):
        if word in _BREAKS and index:
            head = words[index - 1]
            break
    else:
        head = words[-1]
    if " and " in f" {' '.join(words)} " and not any(word in _BREAKS for word in words[: words.index("and")]):
        return True
    if head in _PLURAL:
        return True
    return head.endswith("s") and head not in _SINGULAR and not head.endswith(("ss", "us"))


def plain(verb: str) -> str:
    """ "stands" -> "stand": the form that a plural subject takes. "is" -> "are", "has" -> "have"."""
    if verb in ("is", "has", "does", "was"):
        return {"is": "are", "has": "have", "does": "do", "was": "were"}[verb]
    if verb.endswith("ies") and len(verb) > 4:
        return verb[:-3] + "y"
    if verb.endswith(("sses", "shes", "ches", "xes", "zzes")) or verb in ("goes", "does"):
        return verb[:-2]
    return verb[:-1] if verb.endswith("s") and not verb.endswith("ss") else verb


#: Verbs that double their last consonant before -ing.
_DOUBLE = _set(
    "sit run dip cut hug skim drip spin stop wrap shut put set jut swim tip flap slip drop strip snap clap plan hop let "
    "begin stir bud split grin slit brim dot fan fur hum overlap pit rot shed spot star thin zigzag spiral unravel travel nod "
    "pat rip tug grip bob bat dig trim step scan rub drag zip wag skip sag plot"
)
_ING = {
    "lie": "lying", "die": "dying", "tie": "tying", "are": "being", "have": "having", "vie": "vying", "singe": "singeing", "dye": "dyeing",
}  # fmt: skip


def participle(verb: str) -> str:
    """ "stands" -> "standing"."""
    base = plain(verb)
    if base in _ING:
        return _ING[base]
    if base in _DOUBLE:
        return base + base[-1] + "ing"
    if base.endswith("e") and not base.endswith(("ee", "oe", "ye")):
        return base[:-1] + "ing"
    return base + "ing"


#: Words that show that a noun phrase already has its adjective, or that the next word is no noun that takes one.
_DRESSED = _set(
    "row pair few old new red blue green grey black white brown yellow gold silver pink amber big small tall low long "
    "short wide narrow huge giant tiny little single lone half flat round square steep dark pale bright clear cold dry "
    "wet open closed stone glass brass iron wood wooden paper felt clay second smaller bigger bank stand line string set "
    "heap stack pile scatter patch mat bed wall first last other another more dozens same whole strip band spread"
)
_ADJECTIVAL = re.compile(r"(ed|en|ous|ful|less|ing|ern|ish|ic|al|y)$")


def noun_of(phrase: str) -> str:
    """The head of a noun phrase: "wall" of "a wall of old posters", "of" and its like ending it."""
    words = phrase.lower().replace(",", "").split()
    end = next((k for k, word in enumerate(words) if word in _BREAKS and k), len(words))
    head = words[end - 1] if words else ""
    # "a row of lockers" is about lockers.
    if head in _DRESSED and end < len(words) and words[end] == "of":
        return noun_of(" ".join(words[end + 1 :])) if end + 1 < len(words) else head
    return head


def dressed(noun: str, adjective: str, compound: bool = False) -> str:
    """A noun phrase with an adjective before its first word; unchanged if it has one, or belongs to somebody.

    `compound`: two words may follow the article ("a noodle stall").
    """
    words = noun.split()
    if not adjective:
        return noun
    first = words[0].lower()
    start = 1 if first in ("a", "an") or first in _NUMBERS else 0
    if first in ("the", "its", "his", "her", "their", "one", "another") or len(words) <= start or "," in words[start]:
        return noun
    following = words[start].lower()
    if following in _DRESSED or "-" in following or "'" in following or _ADJECTIVAL.search(following):
        return noun
    if (
        not compound
        and len(words) > start + 1
        and words[start + 1].lower() not in _BREAKS
        and words[start + 1].lower() != "and"
        and start
    ):
        return noun
    return " ".join([*words[:start], adjective, *words[start:]])


def capital(text: str) -> str:
    """`text` with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def owned(head: str, plural: bool) -> str:
    """ "the lighthouse's", "the poplars'"."""
    return f"the {head}{chr(39) if plural and head.endswith('s') else chr(39) + 's'}"


@dataclass(frozen=True)
class Clause:
    """A noun phrase with what is said of it, in the forms that sentences need.

    Written "noun phrase ~ rest". Verbs of the rest are marked ("+leans on the wall"); a rest that does not begin with a verb is
    anything that follows "is" ("streaked with rust", "drying on a line").
    """

    noun: str
    rest: str

    @property
    def plural(self) -> bool:
        return is_plural(self.noun)

    @property
    def finite(self) -> str:
        """ "its gallery is streaked with rust"."""
        return f"{self.noun} {predicate(self.rest, self.plural)}"

    @property
    def absolute(self) -> str:
        """ "its gallery streaked with rust"."""
        return f"{self.noun} {marked(self.rest, participle)}"

    @property
    def tight(self) -> str:
        """ "three dinghies upturned on trestles", "a screw, tall as a tower": how the phrase stands behind "in front is"."""
        rest = marked(self.rest, participle)
        first = rest.split()[0]
        comma = "" if first.endswith(("ing", "ed", "en", "wn", "ught", "nt")) or first in _BREAKS or first in _IRREGULAR else ","
        return f"{self.noun}{comma} {rest}"


def marked(text: str, form: Callable[[str], str]) -> str:
    """`text` with every "+verb" in another form."""
    return _MARKED.sub(lambda found: form(found[1]), text)


def predicate(rest: str, plural: bool) -> str:
    """The finite predicate of a rest: "leans on the wall", "is streaked with rust"."""
    verbs = marked(rest, plain) if plural else rest.replace("+", "")
    if rest.startswith("+"):
        return verbs
    if rest.startswith("with "):
        return f"{'have' if plural else 'has'} {verbs[5:]}"
    if rest.startswith("like "):
        return f"{'look' if plural else 'looks'} {verbs}"
    return f"{'are' if plural else 'is'} {verbs}"


def clause(text: str) -> Clause:
    """Read "noun phrase ~ rest"; ValueError without "~"."""
    noun, mark, rest = (part.strip() for part in text.partition("~"))
    if not mark or not noun or not rest:
        raise ValueError(f"a clause is written 'noun phrase ~ rest' or 'noun phrase ~ +verb rest', got {text!r}")
    return Clause(noun, rest)
