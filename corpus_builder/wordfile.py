"""Plain lists of words, as people have them (ImageNet, COCO, LVIS classes), -> finds of the source ``list``.

A row is a phrase; ``phrase, other name, ...``; ``phrase (remark)``; ``phrase<TAB>description``; a synset
(``bat.n.05``) or an ImageNet id (``n02139199``), alone, before a phrase, or after a phrase and a tab. No row is lost:
one that gives no entity is a find with its reason.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from corpus_builder.disambiguate import Choice
from corpus_builder.entities import Found
from corpus_builder.mine import Candidate
from corpus_builder.senses import NO_SENSE, Chooser
from corpus_builder.sources import clean_name, list_rows
from corpus_builder.wordlists import SYNSET
from corpus_builder.wordnet import Lexicon, Sense

MAX_CHARACTERS = 2000

_WNID = re.compile(r"n\d{8}")
_GAP = re.compile(r"[\s,:]+")
_REMARK = re.compile(r"\(([^)]*)\)")
_WORD = re.compile(r"[^\W_]")


@dataclass(frozen=True)
class Row:
    """What a row says: the phrase, other names and remarks (``hints``), a description, a sense's name or id."""

    phrase: str = ""
    others: tuple[str, ...] = ()
    hints: str = ""
    description: str | None = None
    sense: str | None = None


def read_words(
    path: Path, column: str | None, lexicon: Lexicon | None, choose: Chooser | None, max_words: int
) -> list[Found]:
    """One find per row of a ``.txt``, ``.csv``, ``.json``, ``.jsonl`` or ``.parquet`` file, in its order.

    Without a lexicon and a chooser words stay as they are. Raises :class:`CorpusError` on a file that cannot be read.
    """
    found = []
    for text, reason in list_rows(path, column):
        reason = reason or _fault(text)
        row = Row(text.strip()) if reason else parse(text, senses=lexicon is not None)
        if reason is None and len(row.phrase.split()) > max_words:
            reason = "too many words"
        found.append(_dropped(row.phrase, reason) if reason else _find(row, text.strip(), lexicon, choose))
    return found


def parse(text: str, *, senses: bool = True) -> Row:
    """The parts of a row; without ``senses`` synsets and ids are words like any other. Phrases in lower case."""
    before, _, after = text.strip().partition("\t")
    description: str | None = " ".join(after.split()) or None
    sense = None
    if senses:
        before, sense = _sense_in(before)
        if sense is None and description and is_sense(description):
            sense, description = description, None
        elif sense is not None and not before:
            before, description = description or "", None
    names = [_plain(name) for name in _REMARK.sub(" ", before).split(",")]
    phrase, *others = [name for name in names if name] or [_plain(before)]
    remarks = " ".join(_plain(remark) for remark in _REMARK.findall(before))
    return Row(phrase, tuple(others), remarks, description, sense)


def is_sense(text: str) -> bool:
    """Whether a text is the name of a noun synset or an ImageNet id, known or not."""
    return bool(SYNSET.fullmatch(text) or _WNID.fullmatch(text))


def _sense_in(text: str) -> tuple[str, str | None]:
    first, *rest = _GAP.split(text.strip(), maxsplit=1)
    return ("".join(rest), first) if is_sense(first) else (text, None)


def _plain(text: str) -> str:
    return " ".join(text.replace("_", " ").split()).lower()


def _fault(text: str) -> str | None:
    if not text.strip():
        return "blank"
    if "\0" in text:
        return "NUL byte"
    if len(text) > MAX_CHARACTERS:
        return "too long"
    return None if _WORD.search(text) else "no word"


def _dropped(phrase: str, reason: str) -> Found:
    phrase = phrase[:MAX_CHARACTERS].replace("\0", " ")
    return Found(None, Candidate(phrase, phrase, "word", reason), "list", NO_SENSE)


def _find(row: Row, given: str, lexicon: Lexicon | None, choose: Chooser | None) -> Found:
    plain = Candidate(row.phrase, row.phrase, "name")
    if lexicon is None or choose is None:
        return Found(None, plain, "list", NO_SENSE, contexts=(given,), description=row.description)
    if row.sense is not None:
        sense = lexicon.sense_at(row.sense) if _WNID.fullmatch(row.sense) else lexicon.sense(row.sense)
        if sense is None:
            return _dropped(row.sense, "no such noun synset in WordNet")
        named = replace(sense, form=row.phrase or sense.form)
        choice, candidate = Choice(named, 0.0, senses=(named,)), Candidate(named.form, named.form, "word")
    else:
        candidate = _known(row.phrase, lexicon) or plain
        choice = _chosen(row, candidate, lexicon, choose)
    return Found(None, candidate, "list", choice, contexts=(given,), description=row.description)


def _known(phrase: str, lexicon: Lexicon) -> Candidate | None:
    """The phrase by the form that WordNet knows: as written, with its hyphens, else as a class name is read."""
    for words in (phrase.split(), clean_name(phrase).split()):
        form = lexicon.lookup(words) if words else None
        if form is not None:
            return Candidate(phrase, form, "word")
    return None


def _chosen(row: Row, candidate: Candidate, lexicon: Lexicon, choose: Chooser) -> Choice:
    """The one sense that the other names share, if there is; else by the strategy, in the light of the row."""
    shared = _shared(row, candidate, lexicon)
    if len(shared) == 1:
        return Choice(shared[0], 0.0, senses=lexicon.senses(candidate.entity))
    return choose(candidate, " ".join((row.phrase, *row.others, row.hints, row.description or "")))


def _shared(row: Row, candidate: Candidate, lexicon: Lexicon) -> list[Sense]:
    votes: Counter[str] = Counter()
    for other in row.others:
        form = lexicon.lookup(other.split())
        votes.update({sense.name for sense in lexicon.senses(form)} if form else ())
    senses = lexicon.senses(candidate.entity)
    most = max((votes[sense.name] for sense in senses), default=0)
    return [sense for sense in senses if most and votes[sense.name] == most]


def told(found: list[Found]) -> Iterator[str]:
    """Lines for people: what came of the rows."""
    reasons = Counter(item.candidate.reason for item in found if item.candidate.reason)
    kept = [item for item in found if item.candidate.kept]
    plain = sum(item.choice.sense is None for item in kept)
    yield f"{len(found)} rows, {len(kept)} kept, {len(kept) - len({item.key for item in kept})} of them duplicates"
    yield f"{plain} kept without a sense"
    yield from (f"{number} rows dropped: {reason}" for reason, number in sorted(reasons.items()))
