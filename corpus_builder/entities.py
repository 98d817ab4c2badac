"""Finds -> entities: one entry per sense, or per name where there is none; variants united. Pure.

Order of a corpus, which makes entity ids repeatable: by source (in the order of ``config.SOURCES``), then name,
then sense. An entity's key is its sense where it has one, else its name; finds of one key are merged, their
counts added and their labels united.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from corpus_builder.config import ENTITY_TEXT, EXAMPLES, SOURCES, CorpusError
from corpus_builder.describe import describe
from corpus_builder.disambiguate import Choice
from corpus_builder.mine import Candidate
from corpus_builder.wordlists import WordList
from corpus_builder.wordnet import ABSTRACT_FILES, SPORTS, Sense

# British to American, for comparing names only: words that WordNet knows meet by their sense instead.
_SPELLINGS = (
    (re.compile(r"(?<=[a-z]{2})our(?=s?\b|ed\b|ing\b|ful\b)"), "or"),
    (re.compile(r"(?<=[a-z]{2})is(?=e[ds]?\b|ing\b|ation\b)"), "iz"),
    (re.compile(r"(?<=nt|et|at|ib)re(?=s?\b)"), "er"),
    (re.compile(r"\bgrey\b"), "gray"),
    (re.compile(r"\btyre"), "tire"),
)


@dataclass(frozen=True)
class Found:
    """One phrase of one mention, or of all captions that hold it: kept with its sense, or dropped."""

    label: str | None
    candidate: Candidate
    source: str
    choice: Choice
    count: int = 1
    contexts: tuple[str, ...] = ()
    description: str | None = None
    """Given with the word, to be embedded in place of the sense's gloss."""

    @property
    def name(self) -> str:
        """The unit: the sense's own form for nouns (tooth for teeth), else the words as found."""
        named = self.candidate.role in ("activity", "compound", "name", "body_part")
        sense = self.choice.sense
        return self.candidate.entity if named or sense is None else sense.form

    @property
    def key(self) -> str:
        """What makes two finds one entity."""
        return self.choice.sense.name if self.choice.sense else self.name


@dataclass(frozen=True)
class Entity:
    """One entry of the corpus, gathered from all finds of its key."""

    key: str
    name: str
    sources: tuple[str, ...]
    choice: Choice
    count: int = 0
    labels: frozenset[str] = frozenset()
    aliases: frozenset[str] = frozenset()
    contexts: tuple[str, ...] = ()
    description: str | None = None
    """Embedded in place of the sense's gloss; for a phrase without a sense it is all there is."""

    @property
    def sense(self) -> Sense | None:
        """The WordNet sense, or None for a phrase that WordNet does not know."""
        return self.choice.sense

    @property
    def source(self) -> str:
        """The first of its sources."""
        return self.sources[0]

    @property
    def gloss(self) -> str | None:
        """The definition of its sense, else its description."""
        return self.sense.gloss if self.sense else self.description

    def text(self, form: str = ENTITY_TEXT) -> str:
        """What is embedded, in a form of :func:`corpus_builder.describe.describe`."""
        return describe(self.name, self.description or self.gloss, form)


@dataclass(frozen=True)
class Merge:
    """An entity that went into another: ``reason`` is ``variant`` or ``near-duplicate``."""

    survivor: str
    merged: Entity
    reason: str
    cosine: float | None = None


@dataclass(frozen=True)
class Gathered:
    """Entities in corpus order, and what was merged into them (survivors by key)."""

    entities: tuple[Entity, ...]
    merges: tuple[Merge, ...]


def gather(found: Iterable[Found]) -> Gathered:
    """Merge the kept finds into entities, in corpus order (see the module).

    A merged entity bears the name found most often (ties: the alphabetically first) and all sources.
    Names without a sense that differ only in case, number, hyphens or spelling become one.
    """
    groups: dict[str, list[Found]] = {}
    for item in found:
        if item.candidate.kept:
            groups.setdefault(item.key, []).append(item)
    return _unite_variants(sorted((_entity(key, group) for key, group in groups.items()), key=_order))


def with_descriptions(gathered: Gathered, descriptions: Mapping[str, str]) -> Gathered:
    """The same, each entity without a sense with the description of its name, or else of one of its aliases."""

    def described(entity: Entity) -> Entity:
        names = [name for name in (entity.name, *sorted(entity.aliases)) if name in descriptions]
        return replace(entity, description=descriptions[names[0]]) if names and not entity.sense else entity

    return replace(gathered, entities=tuple(map(described, gathered.entities)))


def judge(found: Iterable[Found], allow: WordList, deny: WordList) -> list[Found]:
    """The finds, those dropped whose *sense* speaks against them; what the allow list names is kept.

    A denied synset goes always. An abstract sense (a thought, a time) goes, unless it is all that its class
    name holds, since every class is to have an entity; what other sources add to the class has no say in that.
    """
    found = list(found)
    named = (item for item in found if item.source == "label" and item.candidate.kept)
    shown = {item.label for item in named if not _is_abstract(item)}
    return [_judged(item, allow, deny, shown) for item in found]


def _judged(item: Found, allow: WordList, deny: WordList, shown: set[str | None]) -> Found:
    sense = item.choice.sense
    if not item.candidate.kept or sense is None:
        return item
    reason = None
    if sense.name in deny.synsets:
        reason = "deny list"
    elif {item.candidate.phrase, item.name} & allow.phrases or sense.name in allow.synsets:
        pass
    elif _is_abstract(item) and (item.source != "label" or item.label in shown):
        reason = "abstract sense"
    return replace(item, candidate=replace(item.candidate, reason=reason)) if reason else item


def _is_abstract(item: Found) -> bool:
    sense = item.choice.sense
    # WordNet files a penalty under attributes; what belongs to a game is there to be seen
    return sense is not None and sense.lexname in ABSTRACT_FILES and not sense.kinds & SPORTS


def variant_key(name: str) -> str:
    """What names that are one but for case, number, hyphens, spaces or spelling have in common.

    ``Eye-Makeups`` and ``eye make up`` -> ``eyemakeup``. For comparing only: not a word.
    """
    text = unicodedata.normalize("NFKC", name).casefold()
    for pattern, new in _SPELLINGS:
        text = pattern.sub(new, text)
    text = re.sub(r"(?<=[a-z])'s\b", "", text)
    return _singular(re.sub(r"[\W_]+", "", text)) or text


def unite(survivor: Entity, merged: Entity) -> Entity:
    """The survivor with the counts, labels, sources, contexts and names of both."""
    names = {survivor.name, merged.name, *survivor.aliases, *merged.aliases}
    return replace(
        survivor,
        sources=tuple(s for s in SOURCES if s in (*survivor.sources, *merged.sources)),
        count=survivor.count + merged.count,
        labels=survivor.labels | merged.labels,
        aliases=frozenset(names - {survivor.name}),
        contexts=examples((*survivor.contexts, *merged.contexts)),
        description=survivor.description or merged.description,
    )


def largest(gathered: Gathered, size: int | None) -> Gathered:
    """The ``size`` entities that matter most, in corpus order: those of labels first, then by count, then by order.

    None keeps all. What was merged into an entity that goes is no longer told. Raises :class:`CorpusError` if there
    are fewer entities than ``size``.
    """
    entities = gathered.entities
    if size is None:
        return gathered
    if size > len(entities):
        raise CorpusError(
            f"--size is {size}, but there are {len(entities)} entities; ask for at most so many"
        )
    ranked = sorted(
        range(len(entities)), key=lambda n: ("label" not in entities[n].sources, -entities[n].count, n)
    )
    kept = tuple(entities[number] for number in sorted(ranked[:size]))
    told = survivors(gathered)
    keys = {entity.key for entity in kept}
    return Gathered(kept, tuple(merge for merge in gathered.merges if told[merge.merged.key] in keys))


def survivors(gathered: Gathered) -> dict[str, str]:
    """For each key that was merged away the key of the entity that holds it in the end."""
    went = {merge.merged.key: merge.survivor for merge in gathered.merges}

    def last(key: str) -> str:
        while key in went:
            key = went[key]
        return key

    return {key: last(key) for key in went}


def merge_pairs(
    entities: Sequence[Entity], pairs: Iterable[tuple[int, int, float | None]], reason: str
) -> Gathered:
    """Unite each pair (survivor, merged, cosine), given by position; the rest stays as it is."""
    kept = dict(enumerate(entities))
    merges = []
    for survivor, merged, cosine in pairs:
        merges.append(Merge(entities[survivor].key, kept[merged], reason, cosine))
        kept[survivor] = unite(kept[survivor], kept.pop(merged))
    return Gathered(tuple(sorted(kept.values(), key=_order)), tuple(merges))


def _unite_variants(entities: Sequence[Entity]) -> Gathered:
    """Senseless entities go into the one variant that has a sense, else into the one found most often."""
    groups: dict[str, list[int]] = {}
    for number, entity in enumerate(entities):
        groups.setdefault(variant_key(entity.name), []).append(number)
    pairs: list[tuple[int, int, float | None]] = []
    for numbers in groups.values():
        plain = [number for number in numbers if entities[number].sense is None]
        known = [number for number in numbers if entities[number].sense is not None]
        if not plain or len(known) > 1:
            known = []
        best = min([*known, *([] if known else plain)], key=lambda n: (-entities[n].count, n), default=None)
        pairs.extend((best, number, None) for number in plain if best is not None and number != best)
    return merge_pairs(entities, pairs, "variant")


def _singular(word: str) -> str:
    for ending, new in (("ies", "y"), ("ches", "ch"), ("shes", "sh"), ("sses", "ss"), ("xes", "x")):
        if word.endswith(ending) and len(word) > len(ending) + 2:
            return word[: -len(ending)] + new
    plural = word.endswith("s") and not word.endswith(("ss", "us", "is")) and len(word) > 3
    return word[:-1] if plural else word


def _order(entity: Entity) -> tuple[int, str, str]:
    return SOURCES.index(entity.source), entity.name, entity.key


def examples(texts: Iterable[str]) -> tuple[str, ...]:
    """The first ``EXAMPLES`` distinct texts."""
    return tuple(dict.fromkeys(texts))[:EXAMPLES]


def _entity(key: str, group: Sequence[Found]) -> Entity:
    names: Counter[str] = Counter()
    for item in group:
        names[item.name] += item.count
    name = min(names, key=lambda name: (-names[name], name))
    sources = {item.source for item in group}
    surest = max(group, key=lambda item: (len(item.choice.scores) > 0, item.choice.margin))
    return Entity(
        key,
        name,
        tuple(source for source in SOURCES if source in sources),
        surest.choice,
        # a body part is listed, not mentioned
        sum(item.count for item in group if item.source != "body_part"),
        frozenset(item.label for item in group if item.label is not None),
        frozenset(names) - {name},
        examples(text for item in group for text in item.contexts),
        next((item.description for item in group if item.description), None),
    )
