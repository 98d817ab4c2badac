"""Taggers that propose noun phrases: NLTK's perceptron with our chunk grammar, spaCy's noun chunks.

Both read the same tokens, so that their proposals can be compared and united.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from corpus_builder.config import CorpusConfig, CorpusError
from corpus_builder.wordnet import Lexicon, find_data

TAGGER = "taggers/averaged_perceptron_tagger_eng"
# Words, a possessive 's on its own, and single punctuation marks.
_TOKEN = re.compile(r"'s\b|\w+n't\b|\w+|[^\w\s]")

NOUN_PHRASES = "NP: {<VBG|VBN|JJ.*|NN.*>*<NN.*>}"
"""Chunk grammar over Penn tags: participles, adjectives and nouns up to a noun."""


FUNCTION_WORDS = frozenset(
    """a an the this that these those some any no another other all both each every many much more most
    several few my your his her its our their one's oneself and or but nor so than as if while until
    because not without with of in into on onto upon at by for from to towards toward over under
    underneath up down out off away through across along around behind between near next inside outside
    against about after before during is are was were be been being do does did doing has have had
    having it he she they we you i him them us who which what where when there here then just very too
    also only really actually completely slightly lightly almost can cannot could will would 's like one
    two three don't doesn't isn't can't won't""".split()
)
"""Words that join or point and never name anything; a phrase is cut at them."""


UNUSED_PIPES = frozenset(
    """ner lemmatizer trainable_lemmatizer textcat textcat_multilabel entity_linker entity_ruler span_ruler
    spancat spancat_singlelabel spans_finder future_entity_ruler""".split()
)
"""spaCy factories that neither noun chunks nor tags need; the morphologizer stays, since noun chunks ask
for parts of speech and in Universal Dependencies pipelines it alone sets them."""


@dataclass(frozen=True)
class Chunk:
    """A proposed noun phrase: tokens ``start`` up to ``stop``, and the Penn tag of each."""

    start: int
    stop: int
    tags: tuple[str, ...]


@runtime_checkable
class Tagger(Protocol):
    """Proposes noun phrases in tokenised sentences."""

    name: str

    def chunks(self, sentences: Iterable[Sequence[str]]) -> Iterator[list[Chunk]]:
        """One list of chunks per sentence, in order."""
        ...


def tokenise(text: str) -> list[str]:
    """Words and punctuation marks (``person's head`` -> ``person 's head``); needs no data."""
    return _TOKEN.findall(text)


class NltkTagger:
    """NLTK's averaged perceptron with the grammar ``NOUN_PHRASES``."""

    name = "nltk"

    def __init__(self, nltk_data: Path | None = None) -> None:
        import nltk
        from nltk.tag import PerceptronTagger

        pointer = find_data(TAGGER, nltk_data, elsewhere=True)
        self._tagger = PerceptronTagger(lang="eng", loc=pointer)
        self._parser = nltk.RegexpParser(NOUN_PHRASES)

    def chunks(self, sentences: Iterable[Sequence[str]]) -> Iterator[list[Chunk]]:
        """See :class:`Tagger`."""
        for words in sentences:
            yield _parse(self._parser, self._tagger.tag(list(words)))


class WordnetTagger:
    """Tags by what WordNet says of each word alone: for places with neither tagger's data. Coarse."""

    name = "wordnet"

    def __init__(self, lexicon: Lexicon) -> None:
        import nltk

        self._lexicon = lexicon
        self._parser = nltk.RegexpParser(NOUN_PHRASES)

    def chunks(self, sentences: Iterable[Sequence[str]]) -> Iterator[list[Chunk]]:
        """See :class:`Tagger`."""
        for words in sentences:
            yield _parse(
                self._parser,
                [(word, self._tag(word, before)) for before, word in zip(("", *words), words, strict=False)],
            )

    def _tag(self, word: str, before: str) -> str:
        if word in FUNCTION_WORDS or not word[:1].isalnum():
            return "IN"
        if self._lexicon.is_gerund(word):
            return "VBG"
        if self._lexicon.is_mostly_verb(word) and before in ("", "people", "is", "to", "and", "or"):
            return "VB"
        return "NN" if self._lexicon.lookup([word]) else "JJ"


class SpacyTagger:
    """The noun chunks of a spaCy pipeline's parser."""

    name = "spacy"

    def __init__(self, model: str) -> None:
        self._nlp = _load_spacy(model)
        self.version = f"{self._nlp.meta['lang']}_{self._nlp.meta['name']} {self._nlp.meta['version']}"

    def chunks(self, sentences: Iterable[Sequence[str]]) -> Iterator[list[Chunk]]:
        """See :class:`Tagger`."""
        from spacy.tokens import Doc

        # a vocabulary keeps every new word for ever; in a zone it forgets those of this call
        zone = self._nlp.memory_zone() if hasattr(self._nlp, "memory_zone") else nullcontext()
        with zone:
            docs = (Doc(self._nlp.vocab, words=list(words)) for words in sentences)
            for doc in self._nlp.pipe(docs, batch_size=256):
                yield [
                    Chunk(chunk.start, chunk.end, tuple(token.tag_ for token in chunk))
                    for chunk in doc.noun_chunks
                ]


def _parse(parser: Any, tagged: list[tuple[str, str]]) -> list[Chunk]:
    found, position = [], 0
    for node in parser.parse(tagged) if tagged else ():
        leaves = node.leaves() if hasattr(node, "leaves") else [node]
        if hasattr(node, "leaves"):
            found.append(Chunk(position, position + len(leaves), tuple(tag for _, tag in leaves)))
        position += len(leaves)
    return found


def check_data(taggers: str, spacy_model: str, nltk_data: Path | None = None) -> None:
    """Raise mining's :class:`CorpusError` if WordNet or what the taggers need is not there; loads nothing."""
    find_data("corpora/wordnet", nltk_data)
    if taggers in ("both", "nltk"):
        find_data(TAGGER, nltk_data, elsewhere=True)
    if taggers in ("both", "spacy") and not Path(spacy_model).exists() and find_spec(spacy_model) is None:
        raise _no_pipeline(spacy_model)


def _no_pipeline(model: str) -> CorpusError:
    return CorpusError(
        f"spaCy's pipeline '{model}' is not installed; fetch it with `python -m spacy download {model}`,"
        " give another name or a path with --spacy-model, or do without spaCy with --taggers nltk"
    )


def _load_spacy(model: str) -> Any:
    import spacy

    try:
        nlp = spacy.load(model)
    except OSError:
        raise _no_pipeline(model) from None
    if not nlp.has_pipe("parser"):
        raise CorpusError(
            f"spaCy's pipeline '{model}' has no parser ({', '.join(nlp.pipe_names)}), and noun chunks"
            " need one: choose another with --spacy-model, or --taggers nltk"
        )
    nlp.disable_pipes(*[n for n in nlp.pipe_names if nlp.get_pipe_meta(n).factory in UNUSED_PIPES])
    return nlp


def load_taggers(config: CorpusConfig, lexicon: Lexicon, nltk_data: Path | None = None) -> tuple[Tagger, ...]:
    """The taggers of ``config.taggers``; missing data is a :class:`CorpusError` with the command."""
    taggers: list[Tagger] = []
    if config.taggers == "wordnet":
        taggers.append(WordnetTagger(lexicon))
    if config.taggers in ("both", "nltk"):
        taggers.append(NltkTagger(nltk_data))
    if config.taggers in ("both", "spacy"):
        taggers.append(SpacyTagger(config.spacy_model))
    return tuple(taggers)
