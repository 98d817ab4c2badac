"""Taggers that propose noun phrases: NLTK's perceptron with a chunk grammar of our own, and spaCy's noun chunks.

Both read the same tokens, so that their proposals can be compared and united.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from corpus_builder.config import CorpusConfig, CorpusError
from corpus_builder.wordnet import find_data

# Words, a possessive 's on its own, and single punctuation marks.
_TOKEN = re.compile(r"'s\b|\w+|[^\w\s]")

NOUN_PHRASES = "NP: {<VBG|VBN|JJ.*|NN.*>*<NN.*>}"
"""Chunk grammar over Penn tags: participles, adjectives and nouns up to a noun."""


@dataclass(frozen=True)
class Chunk:
    """A proposed noun phrase: tokens ``start`` up to ``stop``, and the Penn tag of each."""

    start: int
    stop: int
    tags: tuple[str, ...]


class Tagger(Protocol):
    """Proposes noun phrases in tokenised sentences."""

    name: str

    def chunks(self, sentences: Iterable[Sequence[str]]) -> Iterator[list[Chunk]]:
        """One list of chunks per sentence, in order."""
        ...


def tokenise(text: str) -> list[str]:
    """Words and punctuation marks: ``person's head`` -> ``person 's head``. Needs no sentence-splitting data."""
    return _TOKEN.findall(text)


class NltkTagger:
    """NLTK's averaged perceptron with the grammar ``NOUN_PHRASES``."""

    name = "nltk"

    def __init__(self, nltk_data: Path | None = None) -> None:
        import nltk
        from nltk.tag import PerceptronTagger

        pointer = find_data("taggers/averaged_perceptron_tagger_eng", nltk_data)
        self._tagger = PerceptronTagger(lang="eng", loc=pointer)
        self._parser = nltk.RegexpParser(NOUN_PHRASES)

    def chunks(self, sentences: Iterable[Sequence[str]]) -> Iterator[list[Chunk]]:
        """See :class:`Tagger`."""
        for words in sentences:
            yield self._sentence(words)

    def _sentence(self, words: Sequence[str]) -> list[Chunk]:
        found, position = [], 0
        for node in self._parser.parse(self._tagger.tag(list(words))):
            leaves = node.leaves() if hasattr(node, "leaves") else [node]
            if hasattr(node, "leaves"):
                found.append(Chunk(position, position + len(leaves), tuple(tag for _, tag in leaves)))
            position += len(leaves)
        return found


class SpacyTagger:
    """The noun chunks of a spaCy pipeline's parser."""

    name = "spacy"

    def __init__(self, model: str) -> None:
        self._nlp = _load_spacy(model)
        self.version = f"{self._nlp.meta['lang']}_{self._nlp.meta['name']} {self._nlp.meta['version']}"

    def chunks(self, sentences: Iterable[Sequence[str]]) -> Iterator[list[Chunk]]:
        """See :class:`Tagger`."""
        from spacy.tokens import Doc

        docs = (Doc(self._nlp.vocab, words=list(words)) for words in sentences)
        for doc in self._nlp.pipe(docs, batch_size=256):
            yield [
                Chunk(chunk.start, chunk.end, tuple(token.tag_ for token in chunk)) for chunk in doc.noun_chunks
            ]


def _load_spacy(model: str) -> Any:
    import spacy

    try:
        nlp = spacy.load(model)
    except OSError:
        raise CorpusError(
            f"spaCy's pipeline '{model}' is not installed; fetch it with `python -m spacy download {model}`,"
            " give another name or a path with --spacy-model, or do without spaCy with --taggers nltk"
        ) from None
    if not nlp.has_pipe("parser"):
        raise CorpusError(
            f"spaCy's pipeline '{model}' has no parser ({', '.join(nlp.pipe_names)}), and noun chunks need one:"
            " choose another with --spacy-model, or --taggers nltk"
        )
    return nlp


def load_taggers(config: CorpusConfig, nltk_data: Path | None = None) -> tuple[Tagger, ...]:
    """The taggers of ``config.taggers``; raises :class:`CorpusError` naming the command that fetches missing data."""
    taggers: list[Tagger] = []
    if config.taggers in ("both", "nltk"):
        taggers.append(NltkTagger(nltk_data))
    if config.taggers in ("both", "spacy"):
        taggers.append(SpacyTagger(config.spacy_model))
    return tuple(taggers)
