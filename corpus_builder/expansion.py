"""What a language model is asked about: cues of labels, and descriptions of phrases that WordNet does not know."""

import json
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from corpus_builder.asking import Question
from corpus_builder.config import CorpusError
from corpus_builder.phrases import Phrase, corpus_phrases, listed_phrases, mined_phrases
from corpus_builder.prompts import CUES, DESCRIPTIONS
from corpus_builder.replies import read_cues, read_description
from corpus_builder.sources import Label, read_labels

MOST = 6
CONTEXTS = 5
CONTEXT_LETTERS = 120


def read_questions(
    *,
    labels: Path | None = None,
    label_column: str | None = None,
    phrases: Path | None = None,
    corpus: Path | None = None,
    mined: Path | None = None,
    most: int = MOST,
) -> list[Question]:
    """The questions about the one source that is given: cues of labels, or descriptions of phrases.

    Raises :class:`CorpusError` unless there is exactly one source, or if it holds nothing to ask about.
    """
    if sum(path is not None for path in (labels, phrases, corpus, mined)) != 1:
        raise CorpusError(
            "what to ask about? give one of --labels FILE (cues), --corpus DIR, --mined FILE and --phrases FILE"
            " (descriptions)"
        )
    if labels is not None:
        return cue_questions(read_labels(labels, label_column).labels, most)
    if corpus is not None:
        return description_questions(corpus_phrases(corpus))
    return description_questions(mined_phrases(mined) if mined else listed_phrases(phrases or Path()))


def cue_questions(labels: Iterable[Label], most: int = MOST) -> list[Question]:
    """One question per label: its objects, body parts, scenes and roles, at most ``most`` of each."""
    return [
        Question(
            label.label, CUES.ask.format(label=label.name, most=most), CUES, partial(read_cues, most=most)
        )
        for label in labels
    ]


def description_questions(phrases: Iterable[Phrase]) -> list[Question]:
    """One question per phrase, with the texts it was found in, for they tell which meaning is wanted.

    The paper's three prompts are one request: a third of the cost, and the sentence is written with the explanations
    and the looks before the model's eyes, so that all three are of one meaning.
    """
    return [
        Question(
            phrase.name,
            DESCRIPTIONS.ask.format(phrase=phrase.name, contexts=_quoted(phrase.contexts or (phrase.name,))),
            DESCRIPTIONS,
            partial(read_description, phrase=phrase.name),
        )
        for phrase in phrases
    ]


def _quoted(contexts: Sequence[str]) -> str:
    """The first few contexts, each cut to a length, as a JSON list: a caption is no part of our own words."""
    return json.dumps([text[:CONTEXT_LETTERS] for text in contexts[:CONTEXTS]], ensure_ascii=False)
