"""A phrase, its candidate senses and the words around it -> one sense and how sure the choice is. Pure.

Class names are too short for the plain Lesk overlap ("shoot bow" shares no word with any gloss of *bow*),
so the default weighs three things: the overlap of a sense's wider texts with the context, widened by what
an action is usually done with; how frequent the sense is; and whether a camera could see it. Terms of the
score::

    up to 1.0 per shared word, the more the fewer senses share it         overlap
    2.0 if the action asks for such a sense, 2.5 by both file and gloss   cue
    +1 visual, +0.5 people and places, -1 abstract                        prior
    1.5 for an act, 2.0 for "the act of ...", where acts are meant        prior
    -0.3 log2(rank + 1)                                                   prior
    0.3, or 0.75 for several words, if the sense is headed by them        prior
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from corpus_builder.wordnet import ABSTRACT_FILES, ACTION_FILES, Sense

VISUAL_FILES = frozenset(
    f"noun.{name}" for name in "animal artifact body food object plant substance".split()
)
HALF_VISUAL_FILES = frozenset(f"noun.{name}" for name in "location person phenomenon Tops".split())
RANK_WEIGHT = 0.3
HEAD_WEIGHT = 0.75
WORD_WEIGHT = 0.3
CUE_WEIGHT = 2.0
BOTH_WEIGHT = 0.5
ACT_WEIGHT = 1.5
DEED_WEIGHT = 0.5

STOP_WORDS = frozenset(
    """a an and are as at be been by for from has have in into is it its of on or that the their them this
    to with which who used usually someone something person people one other any some often especially
    not etc very made make having being such more than when where making set take taking do doing get
    getting give use using carry carrying play plays played playing player players""".split()
)

_BODY, _FOOD, _ARTIFACT = (frozenset({f"noun.{name}"}) for name in ("body", "food", "artifact"))
_DRINK_WORDS = frozenset("beverage drink liquor alcoholic beer wine tea coffee".split())
_SPORT_WORDS = frozenset("game sport athletic ball team".split())


@dataclass(frozen=True)
class Cue:
    """What an action asks of its object: lexicographer files, or one of some words in its gloss."""

    files: frozenset[str] = frozenset()
    words: frozenset[str] = frozenset()


def _cues(verbs: str, cue: Cue) -> dict[str, Cue]:
    return dict.fromkeys(verbs.split(), cue)


ACTION_CUES: dict[str, Cue] = {
    **_cues("eat cook bake fry taste peel chop grill roast grind scramble", Cue(files=_FOOD)),
    **_cues("drink sip pour", Cue(words=_DRINK_WORDS)),
    **_cues(
        "play strum",
        Cue(words=frozenset("game sport musical instrument strings keys".split())),
    ),
    **_cues(
        "brush wash shave wax massage curl stretch braid clap crack dye fill shake tickle stick fix trim",
        Cue(files=_BODY),
    ),
    **_cues("shoot aim fire", Cue(words=frozenset("weapon arrow arrows firearm gun goal basket".split()))),
    **_cues("shuffle deal", Cue(_ARTIFACT)),
    **_cues("cut slice pick", Cue(files=_FOOD)),
    **_cues("water", Cue(files=frozenset({"noun.plant", "noun.Tops"}))),
    **_cues("pump", Cue(words=frozenset({"fuel", "gasoline"}))),
    **_cues(
        "ride mount", Cue(files=frozenset({"noun.animal"}), words=frozenset({"pedals", "saddle", "foot"}))
    ),
    **_cues("drive steer", Cue(words=frozenset("vehicle motor wheels".split()))),
    **_cues("pet feed groom walk milk shear hold", Cue(files=frozenset({"noun.animal"}))),
    **_cues("wear put", Cue(words=frozenset("garment clothing worn cosmetic footwear".split()))),
    **_cues("write read", Cue(words=frozenset("write writing written read chalk".split()))),
    **_cues("swing hit catch throw kick dribble dunk bounce toss juggle", Cue(_ARTIFACT, _SPORT_WORDS)),
    **_cues("shot penalty bowling pitch swing dunk bowl", Cue(words=_SPORT_WORDS)),
    **_cues("use operate install assemble repair fix", Cue(_ARTIFACT)),
    **_cues("dance", Cue(words=frozenset("dance dancing ballroom music".split()))),
}
"""Actions, as lemmas, and what is commonly their object."""


@dataclass(frozen=True)
class Choice:
    """The sense chosen, its lead over the runner-up (0 for a tie or no other), and all that were weighed.

    ``scores`` go with ``senses``; a strategy that gives no points leaves them out.
    """

    sense: Sense | None
    margin: float
    scores: tuple[float, ...] = ()
    senses: tuple[Sense, ...] = ()


def words_of(texts: Iterable[str]) -> frozenset[str]:
    """Content words of some texts, lower case and stemmed, so that ``hammered`` meets ``hammering``."""
    words = (word for text in texts for word in re.findall(r"[a-z]+", text.lower()))
    return frozenset(_stem(word) for word in words if word not in STOP_WORDS)


# crude on purpose: both sides of a comparison go through it
_ENDINGS = (("ied", "y"), ("ies", "y"), ("ation", "at"), ("ing", ""), ("ed", ""), ("s", ""))


def _stem(word: str) -> str:
    for ending, new in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) > 2 and not word.endswith("ss"):
            word = word[: -len(ending)] + new
            break
    return word[:-1] if word.endswith("e") and len(word) > 3 else word


def disambiguate(
    phrase: str,
    senses: Sequence[Sense],
    context: Iterable[str],
    strategy: str = "extended",
    *,
    act: bool = False,
) -> Choice:
    """Choose the sense of ``phrase`` that suits ``context``.

    Args:
        phrase: the entity as mined; its own words are no evidence and are taken out of the context.
        senses: candidates, most frequent first.
        context: words around it, with their lemmas.
        strategy: ``extended`` (see the module), ``lesk`` (NLTK's, on glosses alone) or ``first``.
        act: the phrase names what is done, so acts are what a camera sees.

    Ties go to the more frequent sense.
    """
    if not senses:
        return Choice(None, 0.0)
    if strategy == "lesk":
        return Choice(_nltk_lesk(phrase, senses, context), 0.0, senses=tuple(senses))
    if strategy == "first":
        return Choice(senses[0], 0.0, senses=tuple(senses))
    context = frozenset(context)
    own = words_of([phrase, *(sense.form for sense in senses)])
    cues = [ACTION_CUES[word] for word in sorted(context) if word in ACTION_CUES and _stem(word) not in own]
    scores = _scores(senses, words_of(context), own, cues, act)
    best = max(range(len(senses)), key=lambda i: (scores[i], -i))
    others = [score for i, score in enumerate(scores) if i != best]
    return Choice(senses[best], scores[best] - max(others) if others else 0.0, tuple(scores), tuple(senses))


def _scores(
    senses: Sequence[Sense], around: frozenset[str], own: frozenset[str], cues: Sequence[Cue], act: bool
) -> list[float]:
    texts = [words_of(sense.signature or (sense.gloss,)) for sense in senses]
    shared = Counter(word for text in texts for word in text)
    scores = []
    for sense, text in zip(senses, texts, strict=True):
        asked = max((_answer(sense, cue, own) for cue in cues), default=0.0)
        prior = _prior(sense, act)
        # what an action asks for is there to be seen, whatever WordNet files it under
        prior = asked + max(prior, 0.0) if asked else prior
        overlap = _overlap((text & around) - own, shared, len(senses))
        scores.append(overlap + prior + _frequency(sense))
    return scores


def _overlap(found: frozenset[str], shared: Counter[str], count: int) -> float:
    """A word that every candidate's text holds tells nothing; one that a single text holds counts as 1."""
    if count == 1:
        return float(len(found))
    return math.fsum(1 - math.log(shared[word]) / math.log(count) for word in sorted(found))


def _answer(sense: Sense, cue: Cue, own: frozenset[str]) -> float:
    filed = sense.lexname in cue.files
    told = bool((words_of(cue.words) - own) & words_of([sense.gloss]))
    return CUE_WEIGHT * (filed or told) + BOTH_WEIGHT * (filed and told)


def _prior(sense: Sense, act: bool) -> float:
    lexname = sense.lexname
    if act and lexname in ACTION_FILES:
        return ACT_WEIGHT + DEED_WEIGHT * sense.gloss.startswith("the act of")
    if lexname in HALF_VISUAL_FILES:
        return 0.5
    return float(lexname in VISUAL_FILES) - float(
        lexname in ABSTRACT_FILES or lexname == "noun.communication"
    )


def _frequency(sense: Sense) -> float:
    """How likely a sense is before anything is known: by its rank, and whether the phrase is its headword.

    A word is rarely meant for what WordNet lists it under as a by-name only (scooter for a duck). Phrases of
    several words are rare in the texts that the ranks were counted in, so that there the headword tells more.
    """
    weight = HEAD_WEIGHT if " " in sense.form else WORD_WEIGHT
    return weight * _heads(sense) - RANK_WEIGHT * math.log2(sense.rank + 1)


def _heads(sense: Sense) -> bool:
    """Whether the phrase is the sense's headword and no by-name of another thing."""
    return sense.name.rsplit(".", 2)[0].replace("_", " ") == sense.form.lower()


class _Gloss:
    """The one method nltk.wsd.lesk asks of a synset."""

    def __init__(self, sense: Sense) -> None:
        self.sense = sense

    def definition(self) -> str:
        return self.sense.gloss


def _nltk_lesk(phrase: str, senses: Sequence[Sense], context: Iterable[str]) -> Sense:
    from nltk.wsd import lesk

    return lesk(sorted(context), phrase, synsets=[_Gloss(sense) for sense in senses]).sense
