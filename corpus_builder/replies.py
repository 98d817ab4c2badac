"""A language model's reply -> phrases, or the reason why not. The reply is untrusted text. Pure.

It may be cut, wrapped in a fence or a page, written to steer whoever reads it, or in another language; what passes
is a short list of short plain phrases and nothing else.
"""

import json
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from corpus_builder.prompts import SORTS

MAX_REPLY = 20_000
MAX_WORDS = 6
MAX_LETTERS = 60
LATIN_SHARE = 0.9

_FENCE = re.compile(r"```(?:json)?\s*(\{.*?\})\s*```", re.DOTALL)
_MARKUP = re.compile(r"[<>{}\[\]|\\`@#$%^*=_~\"]|https?:|www\.|\.\w{2,4}/")
_ORDERS = re.compile(
    r"\b(ignore|disregard|forget|override|execute|reveal|instructions?|prompts?|system|assistant|password|api key)\b"
)
_WORD = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*|\d+")


class InvalidReply(ValueError):
    """The reply is not the JSON object asked for; the message says why, in few words."""


@dataclass(frozen=True)
class Phrases:
    """What a reply holds: phrases in its order, and how many were dropped, by reason."""

    kept: tuple[str, ...]
    dropped: Counter[str] = field(default_factory=Counter)


def read_reply(text: str, most: int) -> Phrases:
    """The phrases of a reply, at most ``most`` of each sort.

    Raises :class:`InvalidReply` unless it is, or holds in a fence, an object of the four lists of strings.
    """
    found = _object(text)
    kept: dict[str, None] = {}
    dropped: Counter[str] = Counter()
    for sort in SORTS:
        room = most
        for item in found[sort]:
            phrase = " ".join(unicodedata.normalize("NFKC", item).split()).strip(" .,;:!?-'").lower()
            reason = (
                why_not(phrase)
                or ("duplicate" if phrase in kept else None)
                or ("too many" if not room else None)
            )
            if reason:
                dropped[reason] += 1
            else:
                room -= 1
                kept[phrase] = None
    return Phrases(tuple(kept), dropped)


def why_not(phrase: str) -> str | None:
    """Why a phrase (lower case, single spaces) is not taken, or None."""
    if not phrase:
        return "empty"
    if len(phrase) > MAX_LETTERS or len(phrase.split()) > MAX_WORDS:
        return "too long"
    if _MARKUP.search(phrase) or not phrase.isprintable():
        return "markup"
    letters = [char for char in phrase if char.isalpha()]
    latin = sum("LATIN" in unicodedata.name(char, "") for char in letters)
    if not letters or latin < LATIN_SHARE * len(letters):
        return "not English"
    if _ORDERS.search(phrase):
        return "an order"
    return None if all(_WORD.fullmatch(word.strip("(),/&")) for word in phrase.split()) else "not a phrase"


def _object(text: str) -> dict[str, list[str]]:
    if len(text) > MAX_REPLY:
        raise InvalidReply("too long")
    fenced = _FENCE.search(text)
    for part in [text, *([fenced.group(1)] if fenced else [])]:
        try:
            return _checked(json.loads(part))
        except (json.JSONDecodeError, RecursionError):
            continue
    raise InvalidReply("a page" if text.lstrip().startswith("<") else "no JSON object")


def _checked(found: Any) -> dict[str, list[str]]:
    if not isinstance(found, dict):
        raise InvalidReply(f"a {type(found).__name__}, not an object")
    for sort in SORTS:
        if sort not in found:
            raise InvalidReply(f"no {sort}")
        if not isinstance(found[sort], list) or not all(isinstance(item, str) for item in found[sort]):
            raise InvalidReply(f"{sort} is no list of strings")
    return {sort: found[sort] for sort in SORTS}
