"""Allow and deny lists: one phrase, entity or WordNet synset a line, ``#`` begins a remark."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from corpus_builder.config import CorpusError

SYNSET = re.compile(r"\S+\.n\.\d\d")


@dataclass(frozen=True)
class WordList:
    """The entries of a list: phrases (lower case) and synset names."""

    phrases: frozenset[str] = frozenset()
    synsets: frozenset[str] = frozenset()


def read_list(path: Path | None, option: str) -> WordList:
    """The list in a UTF-8 text file; none is an empty list.

    Raises :class:`CorpusError` naming ``option`` if the file is missing, not text, or holds no entry.
    """
    if path is None:
        return WordList()
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise CorpusError(f"{option} {path}: {error.strerror or error}; expected a text file") from None
    except UnicodeDecodeError as error:
        raise CorpusError(f"{option} {path.name} is not UTF-8 text ({error.reason})") from None
    entries = {" ".join(line.partition("#")[0].split()).lower() for line in lines} - {""}
    if not entries:
        raise CorpusError(f"{option} {path.name} holds no entry, expected one phrase or synset a line")
    synsets = frozenset(entry for entry in entries if SYNSET.fullmatch(entry))
    return WordList(frozenset(entries) - synsets, synsets)


def check_synsets(listed: WordList, option: str, is_known: Callable[[str], bool]) -> None:
    """Raise :class:`CorpusError` if a list names synsets that the WordNet at hand lacks: it was made for another."""
    unknown = sorted(synset for synset in listed.synsets if not is_known(synset))
    if unknown:
        raise CorpusError(
            f"{option} names {len(unknown)} synsets that this WordNet does not have, the first is '{unknown[0]}';"
            " correct them, or use the WordNet version that the list was made for"
        )
