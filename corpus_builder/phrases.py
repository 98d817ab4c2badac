"""The phrases that need a description: entities of a corpus or of a mined file without a WordNet sense, or a list."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from corpus_builder import artifact
from corpus_builder.config import CorpusError
from corpus_builder.wordlists import read_list


@dataclass(frozen=True)
class Phrase:
    """A name, and the labels or captions it was found in."""

    name: str
    contexts: tuple[str, ...] = ()


def listed_phrases(path: Path) -> list[Phrase]:
    """The phrases of a text file, one a line, sorted; without contexts."""
    return [Phrase(name) for name in sorted(read_list(path, "--phrases").phrases)]


def corpus_phrases(folder: Path) -> list[Phrase]:
    """The entities of a corpus without a gloss, with their labels, or the captions they were found in."""
    table = artifact.open_corpus(folder).table.select(["name", "gloss", "labels", "contexts"])
    rows = [row for row in table.to_pylist() if row["gloss"] is None]
    pairs = ((row["name"], text) for row in rows for text in row["labels"] or row["contexts"] or [""])
    return _gathered(f"--corpus {folder}", pairs)


def mined_phrases(path: Path) -> list[Phrase]:
    """The entities of a file written by ``mine`` without a gloss, with their labels."""
    rows = artifact.read_mined(path).to_pylist()
    pairs = ((row["entity"], row["label"] or "") for row in rows if row["gloss"] is None)
    return _gathered(f"--mined {path}", pairs)


def _gathered(given: str, pairs: Iterable[tuple[str, str]]) -> list[Phrase]:
    """One phrase per name, in order of the names, with its distinct contexts in theirs."""
    contexts: dict[str, dict[str, None]] = {}
    for name, context in pairs:
        contexts.setdefault(name, {}).update({context: None} if context else {})
    if not contexts:
        raise CorpusError(f"{given} holds no phrase without a gloss: there is nothing to describe")
    return [Phrase(name, tuple(contexts[name])) for name in sorted(contexts)]
