"""Texts -> candidate entities: noun phrases proposed by the taggers, cut to units that WordNet knows.

A class name is hard on a tagger ("tapping guitar" may come out as two nouns), so it is also read inside
carrier sentences ("a person is tapping the guitar."), and the proposals are united. Every proposal that is
not kept stays in the result with its reason.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from corpus_builder.sources import Mention
from corpus_builder.taggers import FUNCTION_WORDS, Chunk, Tagger, tokenise
from corpus_builder.wordnet import ABSTRACT_FILES, Lexicon

STOP_WORDS = frozenset(
    """way kind type sort style lot number amount part piece side front top bottom end middle rest left
    right thing something anything nothing everything someone somebody anyone everyone one other time
    game sport exercise use case form set pair bit matter fact contact action activity motion movement
    process method technique step order human substance position direction place area example manner
    level point state""".split()
)
"""Nouns that name nothing to be seen; each is a valid head of a longer phrase ("chess set")."""

STYLE_HEADS = frozenset("dancing dance spin".split())
"""Heads whose modifier names a style rather than a thing: salsa dancing holds no sauce."""

SUBJECTS = frozenset(
    """something anything nothing everything someone somebody anyone everyone it they he she you we i that
    which who to cannot can will""".split()
)
"""What a verb follows: "letting something roll" holds no roll."""

_NEGATED = re.compile(r"\(\s*(?:not|no|without)\b[^)]*\)", re.IGNORECASE)
_ASIDE = re.compile(r"\(([^)]*)\)")
BATCH = 512
MAX_KNOWN_WORDS = 4


@dataclass(frozen=True)
class Candidate:
    """A phrase found in a mention, the entity it stands for, and why it was dropped if it was.

    ``role``: ``noun``, ``whole`` (the class name, known to WordNet as it stands), ``head`` or ``modifier``
    of a longer phrase, ``compound`` that WordNet does not know, ``activity``, or ``name`` (kept under words
    of the class name for want of anything known). ``within`` is the longer phrase a head belongs to, so that
    a bow tie's tie is a necktie.
    """

    phrase: str
    entity: str
    role: str
    reason: str | None = None
    within: str | None = None
    taggers: frozenset[str] = frozenset()

    @property
    def kept(self) -> bool:
        """Whether nothing speaks against it."""
        return self.reason is None


@dataclass(frozen=True)
class Reading:
    """One sentence to tag; ``source[i]`` is the segment's word at token i, None if added."""

    tokens: tuple[str, ...]
    source: tuple[int | None, ...]


@dataclass(frozen=True)
class Limits:
    """What a candidate must satisfy besides being a noun."""

    max_words: int = 4
    min_letters: int = 2
    allow: frozenset[str] = frozenset()
    """Phrases or entities kept whatever speaks against them."""
    deny: frozenset[str] = frozenset()
    """Phrases or entities never kept."""


def segments(text: str) -> list[list[str]]:
    """The words of a name, then those of each remark in brackets, but for what it is *not*."""
    told = _NEGATED.sub(" ", text)
    parts = [_ASIDE.sub(" ", told), *_ASIDE.findall(told)]
    return [words for words in map(tokenise, parts) if words]


def readings(words: Sequence[str], lexicon: Lexicon, *, carriers: bool) -> list[Reading]:
    """The words as they stand and, if asked for, inside carrier sentences that suit their first word."""
    plain = Reading(tuple(words), tuple(range(len(words))))
    if not carriers:
        return [plain]
    gerund = lexicon.is_gerund(words[0])
    if not gerund and not lexicon.is_mostly_verb(words[0]):
        return [plain, _carry(("the",), words, ())]
    subject = ("a", "person", "is") if gerund else ("people",)
    found = [plain, _carry(subject, words, ())]
    if len(words) > 1 and words[1] not in FUNCTION_WORDS:
        found.append(_carry((*subject, words[0], "the"), words[1:], (1,)))
    return found


def _carry(before: Sequence[str], words: Sequence[str], offset: tuple[int, ...]) -> Reading:
    shift = sum(offset)
    source = (*[None] * len(before), *range(shift, shift + len(words)), None)
    return Reading((*before, *words, "."), source)


def mine(
    mentions: Iterable[Mention], taggers: Sequence[Tagger], lexicon: Lexicon, limits: Limits = Limits()
) -> Iterator[tuple[Mention, list[Candidate]]]:
    """Candidates of every mention, kept and dropped, in the order of the mentions; streams in batches."""
    stream = iter(mentions)
    while batch := list(islice(stream, BATCH)):
        yield from zip(batch, _mine_batch(batch, taggers, lexicon, limits), strict=True)


def _mine_batch(
    batch: Sequence[Mention], taggers: Sequence[Tagger], lexicon: Lexicon, limits: Limits
) -> list[list[Candidate]]:
    parts = [(number, words) for number, mention in enumerate(batch) for words in segments(mention.text)]
    plans = [readings(words, lexicon, carriers=batch[number].source == "label") for number, words in parts]
    runs = _tag(parts, plans, taggers, lexicon)
    found: list[list[Candidate]] = [[] for _ in batch]
    for (number, words), proposals in zip(parts, runs, strict=True):
        for (start, stop, tags), names in sorted(proposals.items()):
            units = resolve(words[start:stop], tags, lexicon, first=start == 0)
            found[number].extend(replace(unit, taggers=frozenset(names)) for unit in units)
    return [
        [_listed(item, limits) for item in _settle(mention, items, lexicon, limits)]
        for mention, items in zip(batch, found, strict=True)
    ]


Run = tuple[int, int, tuple[str, ...]]


def _tag(
    parts: Sequence[tuple[int, list[str]]],
    plans: Sequence[Sequence[Reading]],
    taggers: Sequence[Tagger],
    lexicon: Lexicon,
) -> list[dict[Run, set[str]]]:
    """For every segment the noun runs proposed, and by whom."""
    flat = [(number, reading) for number, plan in enumerate(plans) for reading in plan]
    proposals: list[dict[Run, set[str]]] = [{} for _ in parts]
    for tagger in taggers:
        chunked = tagger.chunks(reading.tokens for _, reading in flat)
        for (number, reading), chunks in zip(flat, chunked, strict=True):
            for chunk in chunks:
                for run in _runs(chunk, reading, parts[number][1], lexicon):
                    run = _with_gerund(run, parts[number][1], lexicon) if len(plans[number]) > 1 else run
                    proposals[number].setdefault(run, set()).add(tagger.name)
    return proposals


def _runs(chunk: Chunk, reading: Reading, words: Sequence[str], lexicon: Lexicon) -> Iterator[Run]:
    """The chunk's stretches of content words, as positions in the segment, leading verbs cut off."""
    pieces: list[list[tuple[int, str]]] = [[]]
    for position, tag in zip(range(chunk.start, chunk.stop), chunk.tags, strict=True):
        index = reading.source[position]
        if index is None or words[index] in FUNCTION_WORDS or not words[index][0].isalnum():
            pieces.append([])
            continue
        if index and words[index - 1] in SUBJECTS:
            pieces.append([])
        if not _is_predicate(words, index, lexicon):
            pieces[-1].append((index, tag))
    for piece in filter(None, pieces):
        start = piece[0][0] + _leading_verbs([words[index] for index, _ in piece], piece[0][0] == 0, lexicon)
        if start <= piece[-1][0]:
            yield start, piece[-1][0] + 1, tuple(tag for index, tag in piece if index >= start)


def _is_predicate(words: Sequence[str], index: int, lexicon: Lexicon) -> bool:
    """Whether a word is the verb of what stands before it, whatever the tagger took it for."""
    before = words[index - 1] if index else ""
    if before not in SUBJECTS and not before.endswith("n't"):
        return False
    word = words[index]
    only_verb = not lexicon.forms([word]) and lexicon.verb_lemma(word) is not None
    return not lexicon.is_gerund(word) and (only_verb or lexicon.is_deverbal(word))


def _with_gerund(run: Run, words: Sequence[str], lexicon: Lexicon) -> Run:
    """The run and an -ing form that ends the class name after it, often tagged as a verb."""
    start, stop, tags = run
    if stop == len(words) - 1 and lexicon.is_gerund(words[stop]):
        return start, stop + 1, (*tags, "VBG")
    return run


def _leading_verbs(words: Sequence[str], first: bool, lexicon: Lexicon) -> int:
    """How many leading words are verbs, unless WordNet knows a noun begun by them."""
    count = 0
    while count < len(words) - 1:
        verb = lexicon.is_gerund(words[count]) or (first and count == 0 and lexicon.is_mostly_verb(words[0]))
        stops = range(count + 2, min(len(words), count + MAX_KNOWN_WORDS) + 1)
        if not verb or any(lexicon.lookup(words[count:stop]) for stop in stops):
            break
        count += 1
    return count


def resolve(
    words: Sequence[str], tags: Sequence[str], lexicon: Lexicon, *, first: bool = False
) -> list[Candidate]:
    """Cut a run of content words into the longest nouns WordNet knows; head, modifiers and compound of it.

    ``first`` tells that the run begins its text: "brush hair" is then an order rather than a kind of hair.
    """
    *before, last = _units(words, lexicon)
    head, *found = _head(words[last.start : last.stop], lexicon)
    style = bool(before) and words[-1] in STYLE_HEADS
    nouns = [
        _are_nouns(words[unit.start : unit.stop], tags[unit.start : unit.stop], lexicon) for unit in before
    ]
    for unit, named in zip(before, nouns, strict=True):
        found.extend(_modifier(words[unit.start : unit.stop], named and not style, lexicon))
    order = first and lexicon.is_deverbal(words[0])
    deed = bool(before) and head.role == "noun" and lexicon.is_verb_and_act(head.entity)
    if style or (before and all(nouns) and not lexicon.is_gerund(words[-1]) and not order):
        entity = " ".join((*words[: last.start], head.entity))
        # a frisbee catch is done with a frisbee, and is no thing beside it
        role = "activity" if deed and not style else "compound"
        found.append(Candidate(" ".join(words), entity, role))
    if deed:
        head = replace(head, role="activity")
    return [head, *found]


def _are_nouns(words: Sequence[str], tags: Sequence[str], lexicon: Lexicon) -> bool:
    if len(words) == 1 and lexicon.is_mostly_adjective(words[0]):
        return False
    return all(tag.startswith("NN") for tag in tags)


def _units(words: Sequence[str], lexicon: Lexicon) -> list[slice]:
    units, start = [], 0
    while start < len(words):
        stops = range(min(len(words), start + MAX_KNOWN_WORDS), start + 1, -1)
        stop = next((stop for stop in stops if lexicon.lookup(words[start:stop])), start + 1)
        units.append(slice(start, stop))
        start = stop
    return units


def _head(words: Sequence[str], lexicon: Lexicon) -> list[Candidate]:
    phrase = " ".join(words)
    if len(words) == 1:
        return [_single(phrase, lexicon)]
    entity = lexicon.lookup(words) or phrase
    return [Candidate(phrase, entity, "noun"), *_inside(words, entity, lexicon)]


def _single(word: str, lexicon: Lexicon) -> Candidate:
    entity = lexicon.lookup([word]) or word
    if not STOP_WORDS.isdisjoint({word, *lexicon.forms([word])}):
        return Candidate(word, entity, "noun", "stop word")
    if lexicon.is_gerund(word):
        return Candidate(word, word, "activity")
    return Candidate(word, entity, "noun", None if lexicon.lookup([word]) else "not a noun in WordNet")


def _inside(words: Sequence[str], entity: str, lexicon: Lexicon) -> list[Candidate]:
    """The head of a known phrase if the phrase is a kind of it; what an activity is done with or on."""
    last = words[-1]
    if lexicon.is_deverbal(last) and lexicon.is_action(entity):
        parts = [
            Candidate(word, lexicon.lookup([word]) or word, "modifier", within=entity) for word in words[:-1]
        ]
        return [part for part in parts if lexicon.is_concrete(part.entity) and last not in STYLE_HEADS]
    known = {sense.name for sense in lexicon.senses(entity)}
    kinds = {kind for name in known for kind in lexicon.within(name)} - known
    noun = lexicon.lookup([last]) or last
    kind = any(sense.name in kinds for sense in lexicon.senses(noun))
    seen = lexicon.is_concrete(noun) or lexicon.is_action(noun)
    return [Candidate(last, noun, "head", within=entity)] if kind and seen else []


def _modifier(words: Sequence[str], named: bool, lexicon: Lexicon) -> list[Candidate]:
    phrase = " ".join(words)
    entity = lexicon.lookup(words)
    if entity is None:
        return [Candidate(phrase, phrase, "modifier", "not a noun in WordNet")]
    if not STOP_WORDS.isdisjoint(lexicon.forms(words)):
        return [Candidate(phrase, entity, "modifier", "stop word")]
    if len(words) == 1 and lexicon.is_gerund(phrase):
        return [Candidate(phrase, entity, "modifier", "verb")]
    game = lexicon.is_action(entity) and not lexicon.is_mostly_verb(phrase)
    group = any(sense.lexname == "noun.group" for sense in lexicon.senses(entity)[:2])
    if len(words) > 1:
        kept = any(sense.lexname not in ABSTRACT_FILES for sense in lexicon.senses(entity)[:1])
    else:
        kept = named and (game or group or lexicon.is_concrete(entity))
    return [Candidate(phrase, entity, "modifier", None if kept else "modifier of no thing")]


def _settle(
    mention: Mention, items: Sequence[Candidate], lexicon: Lexicon, limits: Limits
) -> list[Candidate]:
    """One candidate per entity, limits applied; a class name that shows no thing gets its activity."""
    items = [*(_whole(mention, lexicon) if mention.source == "label" else ()), *items]
    merged = _merge(_limited(item, limits) for item in _uncovered(items))
    if mention.source == "label" and " " not in mention.text and lexicon.is_deverbal(mention.text):
        merged = [replace(item, role="activity", reason=None) for item in merged]
    rest = [item for item in merged if item.role != "activity"]
    acts = [item for item in merged if item.role == "activity"]
    if mention.source != "label":
        return rest + [replace(act, reason="activity") for act in acts]
    deeds = _deeds(mention, lexicon)
    acts = _merge(act for act in [*acts, *_verbs(mention, lexicon), *deeds] if act.phrase not in STOP_WORDS)
    if any(item.kept for item in rest):
        named, reason = {deed.phrase for deed in deeds}, "activity of a named thing"
        return rest + [act if act.phrase in named else replace(act, reason=reason) for act in acts]
    return _merge([*rest, *_stand_ins(mention, rest, acts, lexicon)])


def _uncovered(items: Sequence[Candidate]) -> Iterator[Candidate]:
    """Drop words that a phrase known to WordNet holds: a butterfly stroke shows no butterfly."""
    held = {word for item in items if _is_known_phrase(item) for word in item.phrase.split()}
    for item in items:
        inner = item.kept and item.within is None and item.phrase in held
        yield replace(item, reason="part of a known phrase") if inner else item


def _is_known_phrase(item: Candidate) -> bool:
    return item.kept and item.role in ("whole", "noun", "modifier") and " " in item.phrase


def _stand_ins(
    mention: Mention, dropped: Sequence[Candidate], acts: Sequence[Candidate], lexicon: Lexicon
) -> list[Candidate]:
    """What a class name that shows no known thing is kept by: an unknown noun, its activity, or itself."""
    passed = [item for item in dropped if item.reason == "modifier of no thing"]
    things = [item for item in passed if lexicon.is_concrete(item.entity)] or _overlooked(mention, lexicon)
    if things:
        named = {deed.phrase for deed in _deeds(mention, lexicon)}
        return [*(replace(item, reason=None) for item in things), *(a for a in acts if a.phrase in named)]
    unknown = [item for item in dropped if item.role == "noun" and item.reason == "not a noun in WordNet"]
    unknown = [item for item in unknown if item.phrase.isalnum()]
    if unknown:
        return [replace(item, role="name", reason=None) for item in unknown]
    known = [act for act in acts if lexicon.activity(act.phrase)]
    if known:
        return known
    words = (segments(mention.text) or [tokenise(mention.text)])[0]
    content = [word for word in words if word not in FUNCTION_WORDS | STOP_WORDS] or words
    names = [act.phrase for act in acts] or [
        " ".join(words if len(words) <= MAX_KNOWN_WORDS else content[:1])
    ]
    return [Candidate(name, name, "name") for name in names]


def _overlooked(mention: Mention, lexicon: Lexicon) -> list[Candidate]:
    """The noun that ends a class name after its verb, where no tagger took it for one (sucking lolly)."""
    words = (segments(mention.text) or [[]])[0]
    if len(words) != 2 or not lexicon.is_gerund(words[0]):
        return []
    last, noun = words[-1], lexicon.lookup(words[-1:])
    outside = not (FUNCTION_WORDS | STOP_WORDS | SUBJECTS).isdisjoint({last, *lexicon.forms([last])})
    if noun is None or outside or lexicon.is_deverbal(last) or not lexicon.is_concrete(noun):
        return []
    return [Candidate(last, noun, "noun", taggers=frozenset({"wordnet"}))]


def _whole(mention: Mention, lexicon: Lexicon) -> list[Candidate]:
    """The class name itself where WordNet knows it as a noun of several words ("clean and jerk")."""
    words = (segments(mention.text) or [[]])[0]
    if not 2 <= len(words) <= MAX_KNOWN_WORDS or not lexicon.lookup(words):
        return []
    name, *inside = _head(words, lexicon)
    return [replace(name, role="whole", taggers=frozenset({"wordnet"})), *inside]


def _verbs(mention: Mention, lexicon: Lexicon) -> list[Candidate]:
    """The actions a class name is made of: its -ing forms, and a leading base form."""
    words = (segments(mention.text) or [[]])[0]
    verbs = [word for word in words if lexicon.is_gerund(word)]
    if words and not verbs and lexicon.is_mostly_verb(words[0]):
        verbs.append(words[0])
    return [Candidate(verb, verb, "activity") for verb in verbs if verb not in FUNCTION_WORDS]


def _deeds(mention: Mention, lexicon: Lexicon) -> list[Candidate]:
    """Nouns of doing that a class name ends with after a noun (tennis swing), or gives in brackets (boxing).

    They are named as things are, unlike the verb that a class name begins with.
    """
    parts = segments(mention.text)
    asides = [words[0] for words in parts[1:] if len(words) == 1]
    main = parts[0] if parts else []
    verbal = bool(main) and (lexicon.is_gerund(main[0]) or lexicon.is_mostly_verb(main[0]))
    ends = len(main) > 1 and not verbal and main[-2] not in FUNCTION_WORDS | STOP_WORDS | SUBJECTS
    whole = any(lexicon.lookup(main[start:]) for start in range(len(main) - 1))
    last = [(lexicon.lookup(main[-1:]) or main[-1])] if ends and not whole else []
    nouns = [*last, *asides]
    return [Candidate(word, word, "activity") for word in nouns if lexicon.is_deed(word)]


def _limited(item: Candidate, limits: Limits) -> Candidate:
    if not item.kept:
        return item
    if len(item.entity.split()) > limits.max_words:
        return replace(item, reason="too long")
    return replace(item, reason="too short") if len(item.entity) < limits.min_letters else item


def _listed(item: Candidate, limits: Limits) -> Candidate:
    """The user's lists have the last word; what is on both is denied."""
    names = {item.phrase, item.entity}
    if names & limits.deny:
        return replace(item, reason="deny list")
    return replace(item, reason=None) if names & limits.allow else item


def _merge(items: Iterable[Candidate]) -> list[Candidate]:
    """One candidate per entity in order of appearance, a kept one before a dropped one, taggers united."""
    merged: dict[str, Candidate] = {}
    for item in items:
        old = merged.get(item.entity)
        if old is None:
            merged[item.entity] = item
        else:
            best = item if item.kept and not old.kept else old
            merged[item.entity] = replace(best, taggers=old.taggers | item.taggers)
    return list(merged.values())


def reasons(items: Iterable[Candidate]) -> Counter[str]:
    """How many candidates were dropped, by reason."""
    return Counter(item.reason for item in items if item.reason is not None)
