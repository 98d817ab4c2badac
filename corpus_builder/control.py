"""Random nouns of WordNet: the corpus that a true one has to be better than.

They are named, described and embedded as true entities are, so that a comparison differs in relevance only. Which
are drawn depends on the seed and WordNet alone: a larger draw holds the smaller one.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from corpus_builder.config import MATCHES, CorpusError, check_choice
from corpus_builder.disambiguate import Choice
from corpus_builder.entities import Found
from corpus_builder.mine import Candidate
from corpus_builder.wordnet import CONCRETE_FILES, Lexicon, Noun

MAX_WORDS = 4
"""Words of the longest noun drawn, as in a mined corpus by default."""


@dataclass(frozen=True)
class Reference:
    """The true entities that random ones must not be, and be like: keys, names, and lexicographer files."""

    keys: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()
    lexnames: Mapping[str, int] = field(default_factory=dict)
    """Number of entities by lexicographer file; those without a sense are in none."""


@dataclass(frozen=True)
class Draw:
    """The nouns drawn, as finds of the source ``random``, and how many of them are there in place of the match."""

    found: tuple[Found, ...]
    unmatched: int = 0


def draw(lexicon: Lexicon, size: int, seed: int, reference: Reference, match: str = "none") -> Draw:
    """``size`` random noun synsets that are no entity of ``reference`` and bear no name of one.

    Args:
        lexicon: where nouns come from; named individuals are left out.
        size: how many.
        seed: which.
        reference: the true entities.
        match: ``none``; ``lexname`` (as many of each lexicographer file as the reference, scaled to ``size``); or
            ``concreteness`` (as many things that can be pointed at). Where WordNet has too few of a sort, others
            stand in, and are counted.

    Raises:
        CorpusError: an unknown match, one without anything to match, or fewer nouns than ``size``.
    """
    check_choice("--match", match, MATCHES)
    if match != "none" and not reference.lexnames:
        raise CorpusError(
            f"--match {match} needs a corpus whose entities have senses: give it with --not-in CORPUS"
        )
    left = _quotas(reference.lexnames, size, match)
    taken: dict[str, Found] = {}
    spare = []
    for noun in _in_order(lexicon.nouns(), seed):
        if len(taken) == size:
            break
        sort = _sort(noun.lexname, match)
        if noun.form in reference.names or len(noun.form.split()) > MAX_WORDS:
            continue
        if not left[sort]:
            spare.append(noun)
            continue
        left[sort] -= _take(noun, lexicon, reference, taken)
    matched = len(taken)
    for noun in spare:
        if len(taken) < size:
            _take(noun, lexicon, reference, taken)
    if len(taken) < size:
        raise CorpusError(
            f"--size is {size}, but WordNet has {len(taken)} nouns to draw; ask for at most so many"
        )
    return Draw(tuple(taken.values()), len(taken) - matched)


def _take(noun: Noun, lexicon: Lexicon, reference: Reference, taken: dict[str, Found]) -> bool:
    sense = lexicon.sense_at(noun.wnid)
    if sense is None or sense.name in reference.keys:
        return False
    candidate = Candidate(noun.form, sense.form, "random", taggers=frozenset({"wordnet"}))
    taken[sense.name] = Found(None, candidate, "random", Choice(sense, 0.0, senses=(sense,)))
    return True


def _in_order(nouns: Iterable[Noun], seed: int) -> Iterator[Noun]:
    """In the order of a hash of seed and id: repeatable on every machine and version of Python."""
    return iter(sorted(nouns, key=lambda noun: hashlib.sha256(f"{seed} {noun.wnid}".encode()).digest()))


def _sort(lexname: str, match: str) -> str:
    if match == "concreteness":
        return "thing" if lexname in CONCRETE_FILES else "other"
    return lexname if match == "lexname" else "any"


def _quotas(lexnames: Mapping[str, int], size: int, match: str) -> Counter[str]:
    """How many of each sort, ``size`` in all: shares rounded down, what is left to the largest remainders."""
    if match == "none":
        return Counter({"any": size})
    counts: Counter[str] = Counter()
    for lexname, number in lexnames.items():
        counts[_sort(lexname, match)] += number
    total = counts.total()
    quotas = Counter({sort: number * size // total for sort, number in counts.items()})
    by_remainder: Sequence[str] = sorted(counts, key=lambda sort: (-(counts[sort] * size % total), sort))
    quotas.update(by_remainder[: size - quotas.total()])
    return quotas
