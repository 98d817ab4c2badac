"""A language model's reply -> phrases or descriptions, or the reason why not. The reply is untrusted text. Pure.

It may be cut, wrapped in a fence or a page, written to steer whoever reads it, or in another language; what passes
is short plain English and nothing else.
"""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from corpus_builder.prompts import CUES, DESCRIPTIONS, SORTS

MAX_REPLY = 20_000
MAX_WORDS = 6
MAX_LETTERS = 60
MAX_TEXT_WORDS = 30
MAX_TEXT_LETTERS = 200
MAX_EXPLANATIONS = 3
LATIN_SHARE = 0.9

_FENCE = re.compile(r"```(?:json)?\s*(\{.*?\})\s*```", re.DOTALL)
_MARKUP = re.compile(r"[<>{}\[\]|\\`@#$%^*=_~\"]|https?:|www\.|\.\w{2,4}/")
_ORDERS = re.compile(
    r"\b(ignore|disregard|forget|override)\b.*\b(instructions?|prompts?|rules|above|previous|earlier|told)\b"
    r"|\breveal\b.*\b(instructions?|prompts?|keys?|secrets?)\b"
    r"|\b(system|developer) (prompt|message)s?\b|\bapi keys?\b|\bpasswords?\b|\blanguage model\b|\bas an ai\b"
    r"|\byou (are|must|should|will|have to)\b|^(execute|run|output|print|answer|respond)\b.*:"
)
_WORD = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*|\d+")
_LETTERS = re.compile(r"[^\W\d_]+")
_ENGLISH = frozenset(
    "a an and are as at by for from in is it its of on or that the to used which with worn".split()
)
_FOREIGN = frozenset(
    "al com con da das de del dem den der des die do du e een ein eine el en es et het il ist la las le les los mit"
    " na o och para per por pour que sur um un una und une van von y zum".split()
)
_FILLERS = _ENGLISH | {"this", "kind", "type", "sort", "thing", "something", "phrase", "called"}


class InvalidReply(ValueError):
    """The reply is not the JSON object asked for, or holds nothing of use; the message says why, in few words."""


@dataclass(frozen=True)
class Read:
    """What a reply holds, as it goes into the file, and how many parts were dropped, by reason."""

    kept: Any
    dropped: Counter[str] = field(default_factory=Counter)


def read_cues(text: str, most: int) -> Read:
    """The phrases of a reply to ``CUES`` as a list, at most ``most`` of each sort.

    Raises :class:`InvalidReply` unless it is, or holds in a fence, an object of the four lists of strings.
    """
    found = _object(text, CUES.schema)
    kept: dict[str, None] = {}
    dropped: Counter[str] = Counter()
    for sort in SORTS:
        room = most
        for item in found[sort]:
            phrase = _clean(item).strip(" .,;:!?-'").lower()
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
    return Read(list(kept), dropped)


def read_description(text: str, phrase: str) -> Read:
    """The parts of a reply to ``DESCRIPTIONS`` that can be used: ``sentence``, ``looks``, ``explanations``.

    Raises :class:`InvalidReply` unless it is an object of those, of which the sentence or the looks can be used.
    """
    found = _object(text, DESCRIPTIONS.schema)
    parts = [("sentence", found["sentence"]), ("looks", found["looks"])]
    parts += [("explanations", item) for item in found["explanations"]]
    kept: dict[str, list[str]] = {}
    dropped: Counter[str] = Counter()
    for name, item in parts:
        told = _without_name(_clean(item).strip(" .;:-'"), phrase)
        reason = why_not_text(told, phrase)
        if not reason and told.casefold() in {t.casefold() for texts in kept.values() for t in texts}:
            reason = "duplicate"
        if not reason and len(kept.get(name, ())) == MAX_EXPLANATIONS:
            reason = "too many"
        if reason:
            dropped[reason] += 1
        else:
            kept.setdefault(name, []).append(told)
    if not {"sentence", "looks"} & kept.keys():
        raise InvalidReply(f"nothing of use: {', '.join(sorted(dropped))}")
    single = {name: kept[name][0] for name in ("sentence", "looks") if name in kept}
    return Read(single | {"explanations": kept.get("explanations", [])}, dropped)


def why_not(phrase: str) -> str | None:
    """Why a phrase (lower case, single spaces) is not taken, or None."""
    return _why_not(phrase, MAX_WORDS, MAX_LETTERS) or (
        None if all(_WORD.fullmatch(word.strip("(),/&")) for word in phrase.split()) else "not a phrase"
    )


def why_not_text(text: str, phrase: str) -> str | None:
    """Why a text (single spaces) is not taken as a description of ``phrase``, or None."""
    reason = _why_not(text, MAX_TEXT_WORDS, MAX_TEXT_LETTERS)
    if reason:
        return reason
    words = _LETTERS.findall(text.casefold())
    foreign = sum(word in _FOREIGN for word in words)
    if foreign > sum(word in _ENGLISH for word in words):
        return "not English"
    known = {_stem(word) for word in _LETTERS.findall(phrase.casefold())}
    return (
        None if any(_stem(word) not in known for word in words if word not in _FILLERS) else "only the phrase"
    )


def _why_not(text: str, most_words: int, most_letters: int) -> str | None:
    if not text:
        return "empty"
    if len(text) > most_letters or len(text.split()) > most_words:
        return "too long"
    if _MARKUP.search(text) or not text.isprintable():
        return "markup"
    letters = [char for char in text if char.isalpha()]
    latin = sum("LATIN" in unicodedata.name(char, "") for char in letters)
    if not letters or latin < LATIN_SHARE * len(letters):
        return "not English"
    return "an order" if _ORDERS.search(text.casefold()) else None


def _clean(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).split())


def _without_name(text: str, phrase: str) -> str:
    """``"eye makeup: paint ..."`` -> ``"paint ..."``: the unit is put in front again when it is embedded."""
    before, colon, after = text.partition(":")
    return after.strip() if colon and before.strip(" '").casefold() == phrase.casefold() else text


def _stem(word: str) -> str:
    return word[:-1] if word.endswith("s") else word


def _object(text: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    if len(text) > MAX_REPLY:
        raise InvalidReply("too long")
    fenced = _FENCE.search(text)
    for part in [text, *([fenced.group(1)] if fenced else [])]:
        try:
            read = json.loads(part)
        except (ValueError, RecursionError):  # also a number of thousands of digits
            continue
        return _checked(read, schema)
    raise InvalidReply("a page" if text.lstrip().startswith("<") else "no JSON object")


def _checked(found: Any, schema: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise InvalidReply(f"a {type(found).__name__}, not an object")
    for name, kind in schema["properties"].items():
        if name not in found:
            raise InvalidReply(f"no {name}")
        several = kind["type"] == "array"
        items = found[name] if several else [found[name]]
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            raise InvalidReply(f"{name} is no {'list of strings' if several else 'string'}")
    return found
