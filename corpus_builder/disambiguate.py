"""A phrase, its candidate senses and the words around it -> one sense and how sure the choice is. Pure.

Class names are too short for the plain Lesk overlap ("shoot bow" shares no word with any gloss of *bow*),
so the default weighs three things: the overlap of a sense's wider texts with the context, and what the
action asks of its object; how frequent the sense is; and whether a camera could see it. Terms of the score::

    up to 1.0 per shared word, the more the fewer senses share it             overlap
    2.0 if the action asks for such a sense, 2.5 by both file or kind and gloss   cue
    from +1.2 (food) and +1 (things, animals) to -1 (abstract), by file       prior
    1.5 for an act, 2.0 for "the act of ...", where acts are meant            prior
    -0.15 log2(rank + 1), 0.2 ln((count + 1) / (highest count + 1))           frequency
    0.4, or 0.75 for several words, if the sense is headed by them            frequency

Ranks and counts are WordNet's own; a count is compared with those of the same form only. What an action asks
for is a short list (``ACTION_CUES``) that WordNet widens: a verb asks what the verbs above it ask, and
a thing answers by what it is a kind of.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from corpus_builder.wordnet import ABSTRACT_FILES, ACTION_FILES, Sense

FILE_PRIORS = {
    **dict.fromkeys(("noun.communication", *ABSTRACT_FILES), -1.0),
    **{f"noun.{name}": 1.0 for name in "animal artifact body object substance".split()},
    **{f"noun.{name}": 0.5 for name in "location person phenomenon Tops".split()},
    "noun.food": 1.2,
    "noun.plant": 0.7,
    "noun.event": 0.3,
    "noun.group": 0.3,
}
"""How likely a camera sees what is in a lexicographer file; 0 for the rest."""

RANK_WEIGHT = 0.15
COUNT_WEIGHT = 0.2
HEAD_WEIGHT = 0.75
WORD_WEIGHT = 0.4
CUE_WEIGHT = 2.0
BOTH_WEIGHT = 0.5
ASKED_PRIOR = 0.3
SETTLED = 100
"""Counts of a sense from which no cue speaks for one that was never counted: who throws a ball is no game piece."""
ACT_WEIGHT = 1.5
DEED_WEIGHT = 0.5

STOP_WORDS = frozenset(
    """a an and are as at be been by for from has have in into is it its of on or that the their them this
    to with which who used usually someone something person people one other any some often especially
    not etc very made make having being such more than when where making set take taking do doing get
    getting give use using carry carrying play plays played playing player players""".split()
)


@dataclass(frozen=True)
class Cue:
    """What an action asks of its object: lexicographer files, synsets it is a kind of, or words of its gloss."""

    files: frozenset[str] = frozenset()
    kinds: frozenset[str] = frozenset()
    words: frozenset[str] = frozenset()


def _cues(verbs: str, files: str = "", kinds: str = "", words: str = "") -> dict[str, Cue]:
    named = frozenset(f"noun.{name}" for name in files.split())
    return dict.fromkeys(verbs.split(), Cue(named, frozenset(kinds.split()), frozenset(words.split())))


ACTION_CUES: dict[str, Cue] = {
    **_cues("eat cook bake fry taste peel chop grill roast grind scramble", "food"),
    **_cues("drink sip pour", words="beverage drink liquor alcoholic beer wine tea coffee"),
    **_cues("play", kinds="game.n.01 game.n.03 sport.n.01 musical_instrument.n.01"),
    **_cues("strum", kinds="musical_instrument.n.01"),
    **_cues(
        "brush wash shave wax massage curl stretch braid clap crack dye fill shake tickle stick trim", "body"
    ),
    **_cues("shoot aim fire", kinds="weapon.n.01 projectile.n.01 game_equipment.n.01", words="goal"),
    **_cues("shuffle deal", kinds="card.n.01 game_equipment.n.01"),
    **_cues("cut slice pick", kinds="food.n.02"),
    **_cues("water", "plant Tops"),
    **_cues("pump", words="fuel gasoline"),
    **_cues("ride mount", "animal", "vehicle.n.01", "pedals saddle foot"),
    **_cues("drive steer", kinds="vehicle.n.01"),
    **_cues("pet feed groom milk shear", "animal"),
    **_cues("wear put apply", kinds="clothing.n.01 footwear.n.02 cosmetic.n.01 toiletry.n.01"),
    **_cues("write read", words="write writing written read chalk"),
    **_cues(
        "swing hit catch throw kick dribble dunk bounce toss juggle",
        kinds="ball.n.01 sports_equipment.n.01 plaything.n.01 weapon.n.01",
        words="game sport ball",
    ),
    **_cues("use operate install assemble repair fix", kinds="instrumentality.n.03"),
    **_cues("dance", words="dance dancing ballroom music"),
    **_cues(
        "sport shot penalty pitch serve bowl bowling",
        kinds="game.n.01 game.n.03 sport.n.01 game_equipment.n.01 sports_equipment.n.01",
    ),
}
"""Actions, as lemmas, and what is commonly their object; ``sport`` stands for any game that is named."""


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
    asks: Mapping[str, frozenset[str]] = MappingProxyType({}),
) -> Choice:
    """Choose the sense of ``phrase`` that suits ``context``.

    Args:
        phrase: the entity as mined; its own words are no evidence and are taken out of the context.
        senses: candidates, most frequent first.
        context: words around it, with their lemmas.
        strategy: ``extended`` (see the module), ``lesk`` (NLTK's, on glosses alone) or ``first``.
        act: the phrase names what is done, so acts are what a camera sees.
        asks: what is done under words of the context, as in ``ACTION_CUES``; a word without an entry stands for itself.

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
    others = (word for word in sorted(context) if _stem(word) not in own)
    named = {name for word in others for name in asks.get(word, (word,))}
    cues = [ACTION_CUES[name] for name in sorted(named & ACTION_CUES.keys())]
    scores = _scores(phrase, senses, words_of(context), own, cues, act)
    best = max(range(len(senses)), key=lambda i: (scores[i], -i))
    rest = [score for i, score in enumerate(scores) if i != best]
    return Choice(senses[best], scores[best] - max(rest) if rest else 0.0, tuple(scores), tuple(senses))


def _scores(
    phrase: str,
    senses: Sequence[Sense],
    around: frozenset[str],
    own: frozenset[str],
    cues: Sequence[Cue],
    act: bool,
) -> list[float]:
    texts = [words_of(sense.signature or (sense.gloss,)) for sense in senses]
    shared = Counter(word for text in texts for word in text)
    most = {form: max(s.count for s in senses if s.form == form) for form in {s.form for s in senses}}
    scores = []
    for sense, text in zip(senses, texts, strict=True):
        unheard = not sense.count and most[sense.form] >= SETTLED
        asked = 0.0 if unheard else max((_answer(sense, cue, own) for cue in cues), default=0.0)
        prior = _prior(sense, act)
        # what an action asks for is there to be seen, whatever WordNet files it under
        prior = asked + max(prior, ASKED_PRIOR) if asked else prior
        overlap = _overlap((text & around) - own, shared, len(senses))
        # a plural that WordNet lists by itself means more than its singular's plural: glasses
        heads = _heads(sense) or (len(most) > 1 and sense.form == phrase)
        scores.append(overlap + prior + _frequency(sense, heads, most[sense.form]))
    return scores


def _overlap(found: frozenset[str], shared: Counter[str], count: int) -> float:
    """A word that every candidate's text holds tells nothing; one that a single text holds counts as 1."""
    if count == 1:
        return float(len(found))
    return math.fsum(1 - math.log(shared[word]) / math.log(count) for word in sorted(found))


def _answer(sense: Sense, cue: Cue, own: frozenset[str]) -> float:
    filed = sense.lexname in cue.files or bool(sense.kinds & cue.kinds)
    told = bool((words_of(cue.words) - own) & words_of([sense.gloss]))
    return CUE_WEIGHT * (filed or told) + BOTH_WEIGHT * (filed and told)


def _prior(sense: Sense, act: bool) -> float:
    lexname = sense.lexname
    if act and lexname in ACTION_FILES:
        return ACT_WEIGHT + DEED_WEIGHT * sense.gloss.startswith("the act of")
    return FILE_PRIORS.get(lexname, 0.0)


def _frequency(sense: Sense, heads: bool, most: int) -> float:
    """How likely a sense is before anything is known: by rank and count, and whether the phrase is its headword.

    A word is rarely meant for what WordNet lists it under as a by-name only (scooter for a duck). Phrases of
    several words are rare in the texts that were counted, so that there the headword tells more.
    """
    head = (HEAD_WEIGHT if " " in sense.form else WORD_WEIGHT) * heads
    share = math.log((sense.count + 1) / (most + 1))
    return head - RANK_WEIGHT * math.log2(sense.rank + 1) + COUNT_WEIGHT * share


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
