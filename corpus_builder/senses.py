"""A candidate and the text it stands in -> its sense, by the strategy of the settings.

Which senses come into question is decided here (those of an activity, those within a longer phrase); which of
them it is by :mod:`corpus_builder.disambiguate`, or by a model of :mod:`corpus_builder.learned`.
"""

from functools import lru_cache
from typing import Any

from corpus_builder.config import LEARNED_STRATEGIES, CorpusConfig, CorpusError
from corpus_builder.disambiguate import Choice, disambiguate
from corpus_builder.mine import Candidate, segments
from corpus_builder.taggers import FUNCTION_WORDS
from corpus_builder.wordnet import Lexicon, Sense

NO_SENSE = Choice(None, 0.0)


class Chooser:
    """Chooses the sense of a candidate in a text; a candidate that was dropped, or is a mere name, has none."""

    def __init__(self, lexicon: Lexicon, strategy: str, scorer: Any = None) -> None:
        self._lexicon = lexicon
        self._strategy = strategy
        self._scorer = scorer
        self._words = lru_cache(maxsize=64)(self._words_of)
        self._asks = lru_cache(maxsize=4096)(lexicon.asks)

    def __call__(self, candidate: Candidate, text: str) -> Choice:
        """The sense in ``text``, with its margin and what else was weighed."""
        if not candidate.kept or candidate.role in ("compound", "name"):
            return NO_SENSE
        senses = self._in_question(candidate)
        if self._scorer is not None:
            from corpus_builder.learned import choose

            return choose(self._scorer, candidate.phrase, text, senses)
        # a class name of a single word says what is done
        act = candidate.role in ("activity", "whole") or candidate.phrase == text
        words, asks = self._words(text)
        return disambiguate(candidate.entity, senses, words, self._strategy, act=act, asks=asks)

    def _in_question(self, candidate: Candidate) -> tuple[Sense, ...]:
        if candidate.role == "activity":
            return self._lexicon.activity(candidate.phrase)
        senses = self._lexicon.senses(candidate.entity)
        if candidate.role == "head" and candidate.within:
            within = self._lexicon.within
            kinds = {k for whole in self._lexicon.senses(candidate.within) for k in within(whole.name)}
            return tuple(sense for sense in senses if sense.name in kinds) or senses
        return senses

    def _words_of(self, text: str) -> tuple[frozenset[str], dict[str, frozenset[str]]]:
        words = self._lexicon.lemmas(word for part in segments(text) for word in part if word.isalnum())
        return words, {word: self._asks(word) for word in words - FUNCTION_WORDS}


def load_chooser(
    lexicon: Lexicon, config: CorpusConfig, device: str = "auto", encoder: Any = None
) -> Chooser:
    """The chooser of ``config.strategy``; a learned one loads its model.

    Args:
        lexicon: where senses come from.
        config: the settings.
        device: for a learned strategy.
        encoder: a text encoder at hand, used by ``clip`` where ``config.sense_model`` is not given.

    Raises:
        CorpusError: ``clip`` without any model, or one that cannot be loaded.
    """
    if config.strategy not in LEARNED_STRATEGIES:
        return Chooser(lexicon, config.strategy)
    from corpus_builder.embed import choose_device, load_text_encoder
    from corpus_builder.learned import T5_DEFAULT, ClipScorer, T5Scorer

    if config.strategy == "t5":
        scorer: Any = T5Scorer(config.sense_model or T5_DEFAULT, choose_device(device))
        return Chooser(lexicon, config.strategy, scorer)
    if config.sense_model is not None:
        encoder = load_text_encoder(config.sense_model, config.sense_pretrained, device)
    if encoder is None:
        raise CorpusError(
            "--strategy clip needs a CLIP to read the glosses with: give --sense-model NAME --sense-pretrained TAG"
        )
    return Chooser(lexicon, config.strategy, ClipScorer(encoder))
