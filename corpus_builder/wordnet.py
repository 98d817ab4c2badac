"""WordNet nouns through NLTK's reader: look up, lemmatise, list senses. The data's absence is a clear error.

Readers are built on the root that was found rather than taken from ``nltk.corpus.wordnet``: that lazy
loader keeps the first root of a process, and two data folders must be usable side by side (the demo's
lexicon and the real one).
"""

import hashlib
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from corpus_builder.config import CorpusError

REMEMBERED = 1 << 16
"""Phrases whose nouns and senses are kept at hand."""

DOWNLOAD = "python -m nltk.downloader wordnet averaged_perceptron_tagger_eng"
ACTION_FILES = ("noun.act", "noun.event")
SEEN_DEEDS = ("noun.communication", "noun.process", "noun.phenomenon", "noun.state")
"""Where WordNet files what a body does and nobody would call an act: a laugh, a yawn."""

CONCRETE_FILES = (
    "noun.animal",
    "noun.artifact",
    "noun.body",
    "noun.food",
    "noun.object",
    "noun.person",
    "noun.plant",
    "noun.substance",
    "noun.Tops",
)
"""Lexicographer files of things that can be pointed at."""

SEEN_FILES = tuple(
    f"noun.{name}" for name in "animal artifact body food object plant substance location".split()
)
"""Lexicographer files of what a picture can show beside the thing that is named."""

ABSTRACT_FILES = (
    "noun.attribute",
    "noun.cognition",
    "noun.feeling",
    "noun.motive",
    "noun.process",
    "noun.quantity",
    "noun.relation",
    "noun.state",
    "noun.time",
)
"""Lexicographer files of what no camera sees."""

_KINDS = {
    "noun.act": "activity",
    "noun.animal": "animal",
    "noun.artifact": "object",
    "noun.body": "body part",
    "noun.event": "activity",
    "noun.food": "food",
    "noun.group": "group",
    "noun.location": "scene",
    "noun.object": "object",
    "noun.person": "person",
    "noun.plant": "plant",
    "noun.substance": "substance",
    "noun.Tops": "object",
}
SCENES = frozenset(
    f"{word}.n.{number:02}"
    for word, number in (
        ("location", 1),
        ("building", 1),
        ("room", 1),
        ("way", 6),
        ("facility", 1),
        ("land", 4),
        ("geological_formation", 1),
        ("body_of_water", 1),
        ("area", 5),
        ("vegetation", 1),
    )
)
"""Synsets whose kinds are places to be in, whatever lexicographer file they are in."""

SPORTS = frozenset({"game.n.01", "game.n.03", "sport.n.01"})
"""Synsets whose kinds are played."""

ASKING_SENSES = 2
"""How many senses of a verb tell what it asks of its object; further ones are rare."""

GENERAL_VERBS = frozenset({"use", "put"})
"""Verbs that ask for this or that thing only where they are written: exercise is filed under them too."""

MIN_PART = 2
"""Letters that a part of a word written as two has at least."""

# Plurals that WordNet lists as nouns of their own (dental "teeth"); any other exception is left to morphy.
_OWN_PLURALS = frozenset("teeth feet men women children mice geese".split())

# WordNet's noun endings (morphy(7WN)); nltk's morphy stops at the form itself, so "hands" would never reach
# "hand".
_ENDINGS = (("s", ""), ("ses", "s"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"), ("ies", "y"))


@dataclass(frozen=True)
class Sense:
    """One noun sense: what is needed to choose it and to describe it.

    ``rank`` counts from 0, the most frequent. ``signature`` holds the texts that speak of the sense: its
    gloss, examples and lemma names, and the glosses and names of its hypernyms, hyponyms, parts and topic.
    ``kinds`` names the synsets it is a kind of, itself included, and those that its topics are; ``count`` is
    how often the form had this sense in the texts that WordNet's senses were counted in.
    """

    name: str
    form: str
    gloss: str
    lexname: str
    rank: int
    signature: tuple[str, ...] = ()
    kinds: frozenset[str] = frozenset()
    count: int = 0


@dataclass(frozen=True)
class Noun:
    """What a line of WordNet's noun file tells of a synset: its id, headword (lower case) and lexicographer file.

    ``wnid`` is ``n`` and the offset in eight digits, as in ImageNet; ``individual`` tells a named one (a general).
    """

    wnid: str
    form: str
    lexname: str
    individual: bool


_OPEN: dict[str, "Lexicon"] = {}
_JOINED: set[str] = set()
"""Folders that stand on NLTK's path because a call named them."""


def find_data(resource: str, nltk_data: Path | None = None, *, elsewhere: bool = False) -> Any:
    """NLTK's pointer to ``corpora/x`` or ``taggers/x``, from a folder or a zip file.

    Args:
        resource: path inside an NLTK data folder, without an ending.
        nltk_data: look here only; it also joins NLTK's path, which bounds what NLTK will open.
        elsewhere: if ``nltk_data`` lacks the resource, look on NLTK's own path too (never in a folder that was
            another call's ``nltk_data``).

    Raises:
        CorpusError: nothing found; the message names the command that fetches it.
    """
    import nltk

    # NLTK refuses a path with ".." in it
    nltk_data = nltk_data.resolve() if nltk_data is not None else None
    own = [path for path in nltk.data.path if path not in _JOINED]
    if nltk_data is not None and str(nltk_data) not in nltk.data.path:
        nltk.data.path.append(str(nltk_data))
        _JOINED.add(str(nltk_data))
    given = [str(nltk_data)] if nltk_data is not None else []
    paths = [*given, *(own if elsewhere or not given else ())]
    for name in (f"{resource}/", f"{resource}.zip/{resource.split('/')[-1]}/"):
        try:
            return nltk.data.find(name, paths=paths)
        except (LookupError, OSError):
            continue
    looked = f"'{nltk_data}'" if nltk_data is not None else "NLTK's data path"
    raise CorpusError(
        f"NLTK's {resource.split('/')[-1]} data is not in {looked}; fetch it with `{DOWNLOAD}`,"
        " or say where it lies with --nltk-data DIR or NLTK_DATA"
    )


def open_lexicon(nltk_data: Path | None = None) -> "Lexicon":
    """WordNet on the data found; one reader per root and process, since loading takes seconds."""
    root = find_data("corpora/wordnet", nltk_data)
    if str(root) not in _OPEN:
        _OPEN[str(root)] = _load(root)
    return _OPEN[str(root)]


def _load(root: Any) -> "Lexicon":
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # it warns that only English is available, which is all that is asked of it
        try:
            reader = WordNetCorpusReader(root, omw_reader=None)
        except (OSError, ValueError, AssertionError, KeyError) as error:
            raise CorpusError(
                f"WordNet's data cannot be read ({error}); fetch it again with `{DOWNLOAD}`"
            ) from None
        return Lexicon(reader)


class Lexicon:
    """Questions about English nouns, answered by one WordNet reader and remembered."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader
        # bounded, since the phrases of a million captions have no end
        self._noun_forms = lru_cache(REMEMBERED)(self._read_forms)
        self._senses = lru_cache(REMEMBERED)(self._read_senses)
        self._irregular = self._read_irregular()
        self._counts = self._read_counts()
        self._nouns: dict[str, Noun] = {}

    def sha256(self) -> str:
        """Hash of the noun data, the part of WordNet that decides a corpus."""
        with self._reader.open("data.noun") as stream:
            return hashlib.sha256(stream.read().encode()).hexdigest()

    def lookup(self, words: Sequence[str]) -> str | None:
        """WordNet's form of a noun phrase, spaced (``push ups`` -> ``pushup``), or None."""
        forms = self.forms(words)
        return forms[0] if forms else None

    def forms(self, words: Sequence[str]) -> tuple[str, ...]:
        """All nouns a phrase may stand for: ``hands`` is one itself, and the plural of ``hand``."""
        return tuple(form.replace("_", " ") for form in self._noun_forms(" ".join(words)))

    def senses(self, phrase: str) -> tuple[Sense, ...]:
        """Noun senses of a phrase, most frequent first, of its own form before its singular's.

        Named individuals (a general called Clay) are left out while there is any other sense.
        """
        return self._senses(phrase)

    def sense(self, name: str) -> Sense | None:
        """The noun sense of that synset name, or None."""
        try:
            synset = self._reader.synset(name)
        except Exception:  # nltk raises WordNetError, KeyError or ValueError, depending on what is wrong
            return None
        return self._describe(synset, _words(synset), 0) if synset.pos() == "n" else None

    def sense_at(self, wnid: str) -> Sense | None:
        """The noun sense of an id such as ImageNet's ``n01440764`` (``n`` and WordNet 3.0's offset), or None."""
        if wnid not in self._all_nouns():
            return None
        synset = self._reader.synset_from_pos_and_offset("n", int(wnid[1:]))
        return self._describe(synset, _words(synset), 0)

    def nouns(self) -> tuple[Noun, ...]:
        """Every noun synset but named individuals, in the order of WordNet's file."""
        return tuple(noun for noun in self._all_nouns().values() if not noun.individual)

    def kind(self, sense: Sense) -> str:
        """What a sense is, one of ``config.KINDS``: a place is a scene, the rest goes by lexicographer file."""
        found = _KINDS.get(sense.lexname, "other")
        return "scene" if found in ("object", "group") and self.within(sense.name) & SCENES else found

    def verb_lemma(self, word: str) -> str | None:
        """Base form of a verb (``riding`` -> ``ride``), or None if WordNet knows no such verb."""
        return self._reader.morphy(word, "v")

    def is_gerund(self, word: str) -> bool:
        """Whether a word is a verb's -ing form, known or not: ``krumping`` is, ``swing`` is not."""
        if not word.endswith("ing") or len(word) < 5:
            return False
        verb = self.verb_lemma(word)
        return verb != word if verb else not self._noun_forms(word)

    def is_mostly_verb(self, word: str) -> bool:
        """Whether a base form has more verb senses than noun senses (``kick``, ``ride``; not ``golf``)."""
        return self._verb_senses(word) > len(self._reader.synsets(word, "n"))

    def is_deverbal(self, word: str) -> bool:
        """Whether a noun names a deed: a gerund, or a noun that is about as much a verb (``throw``)."""
        verbs = self._verb_senses(word)
        return self.is_gerund(word) or (verbs > 0 and 2 * verbs >= len(self._reader.synsets(word, "n")))

    def is_mostly_adjective(self, word: str) -> bool:
        """Whether a word has more adjective senses than noun senses (``dry``, ``high``)."""
        return len(self._reader.synsets(word, "a")) > len(self._reader.synsets(word, "n"))

    def is_concrete(self, phrase: str) -> bool:
        """Whether one of the three most frequent senses of a phrase is a thing that can be pointed at."""
        return any(sense.lexname in CONCRETE_FILES for sense in self.senses(phrase)[:3])

    def is_action(self, phrase: str) -> bool:
        """Whether the most frequent sense of a phrase is an act or an event."""
        return any(sense.lexname in ACTION_FILES for sense in self.senses(phrase)[:1])

    def activity(self, word: str) -> tuple[Sense, ...]:
        """Senses of the activity a word stands for: its own as a noun, its -ing form's, what its verb gives.

        ``swimming`` and ``jump`` are nouns themselves; ``eat`` goes by ``eating``; ``applauding`` by what WordNet
        derives from the verb.
        """
        verb = self.verb_lemma(word) or word
        found: dict[str, Sense] = {}
        for form in (word, *(() if self.is_gerund(word) else _gerunds(verb))):
            for sense in self.senses(form):
                if sense.lexname in ACTION_FILES:
                    found.setdefault(sense.name, replace(sense, rank=len(found)))
        return tuple(found.values()) or self._derived(verb, ACTION_FILES) or self._derived(verb, SEEN_DEEDS)

    def asks(self, word: str) -> frozenset[str]:
        """Words for what is done under that word: the verbs that it is a kind of, itself included (sip: drink).

        Also ``sport`` if the word is a noun for a game.
        """
        verbs = [s for s in self._reader.synsets(word, "v")[:ASKING_SENSES] if word in s.lemma_names()]
        names = {s.name().split(".")[0] for verb in verbs for s in (verb, *verb.hypernyms())}
        game = any(SPORTS & self.within(sense.name) for sense in self.senses(word)[:1])
        return frozenset({word, *(names - GENERAL_VERBS), *(("sport",) if game else ())})

    def is_deed(self, word: str) -> bool:
        """Whether a noun is about as much a verb and may name an act (``swing``)."""
        return self.is_deverbal(word) and any(sense.lexname in ACTION_FILES for sense in self.senses(word))

    def within(self, name: str) -> frozenset[str]:
        """Names of the synsets that the named one is a kind of, itself included."""
        synset = self._reader.synset(name)
        return frozenset({name, *(parent.name() for parent in synset.closure(lambda s: s.hypernyms()))})

    def related(self, name: str) -> tuple[Sense, ...]:
        """Things to be seen with the named synset: its parts, what it is made of, what its field uses, its kinds.

        In this order, each in that of WordNet's file; only what a camera sees (``SEEN_FILES``), no meat of an animal.
        """
        synset = self._reader.synset(name)
        if synset.pos() != "n":
            return ()
        field = [other for other in synset.in_topic_domains() if other.pos() == "n"]
        groups = (synset.part_meronyms(), synset.substance_meronyms(), field, synset.hyponyms())
        found = [other for group in groups for other in _in_file_order(group)]
        meat = synset.lexname() == "noun.animal"
        kept = {
            other.name(): other
            for other in found
            if other.lexname() in SEEN_FILES and not (meat and other.lexname() == "noun.food")
        }
        forms = ((other, other.lemma_names()[0].replace("_", " ").lower()) for other in kept.values())
        return tuple(self._describe(other, form, 0) for other, form in forms)

    def lemmas(self, words: Iterable[str]) -> frozenset[str]:
        """The words together with their noun and verb lemmas, for comparing texts."""
        found: set[str] = set()
        for word in words:
            found.update(filter(None, (word, self._reader.morphy(word, "n"), self.verb_lemma(word))))
            # morphy is content with the first base it knows, and takes "swinging" for "to swinge"
            if word.endswith("ing") and self.verb_lemma(word[:-3]) == word[:-3]:
                found.add(word[:-3])
        return frozenset(found)

    def is_verb_and_act(self, word: str) -> bool:
        """Whether a noun is at least as much a verb and may name an act (``throw``; not ``dress``)."""
        named = any(sense.lexname in ACTION_FILES for sense in self.senses(word))
        return named and self._verb_senses(word) >= len(self._reader.synsets(word, "n"))

    def _verb_senses(self, word: str) -> int:
        return len(self._reader.synsets(word, "v")) if self.verb_lemma(word) == word else 0

    def _read_irregular(self) -> dict[str, str]:
        with self._reader.open("noun.exc") as stream:
            rows = [line.split() for line in stream.read().splitlines()]
        return {row[0]: row[1] for row in rows if len(row) > 1}

    def _read_counts(self) -> dict[str, int]:
        with self._reader.open("cntlist.rev") as stream:
            rows = [line.split() for line in stream.read().splitlines()]
        return {key: int(count) for key, _, count in rows}

    def _all_nouns(self) -> dict[str, Noun]:
        # read from the file itself: NLTK takes half a minute to make all its synsets
        if not self._nouns:
            with self._reader.open("lexnames") as stream:
                lexnames = dict(line.split()[:2] for line in stream.read().splitlines() if line.strip())
            with self._reader.open("data.noun") as stream:
                lines = (line for line in stream.read().splitlines() if line[:1].isdigit())
            nouns = (_noun(line, lexnames) for line in lines)
            self._nouns = {noun.wnid: noun for noun in nouns}
        return self._nouns

    def _read_forms(self, phrase: str) -> tuple[str, ...]:
        return self._find_forms(phrase.split())

    def _find_forms(self, words: list[str]) -> tuple[str, ...]:
        joins = ("_",) if len(words) != 2 else ("_", "-", "")
        for join in joins:
            written = join.join(words)
            form = self._reader.morphy(written, "n")
            if form and not (join == "" and self._is_person(form)):
                if form in _OWN_PLURALS and form in self._irregular:
                    return (self._irregular[form],)
                return (form, *(self._singulars(form) if form == written else ()))
        return self._find_deed(words) if len(words) > 1 else self._find_parts(words[0])

    def _find_parts(self, word: str) -> tuple[str, ...]:
        """``pullup`` by ``pull-up``: a word that WordNet writes as two, each known by itself."""
        for cut in range(MIN_PART, len(word) - MIN_PART + 1):
            parts = word[:cut], word[cut:]
            if all(self._reader.synsets(part) for part in parts):
                forms = [self._reader.morphy(join.join(parts), "n") for join in "_-"]
                if any(forms):
                    return (next(filter(None, forms)),)
        return ()

    def _find_deed(self, words: list[str]) -> tuple[str, ...]:
        """``bench pressing`` by ``bench press``, if that is something done; ``car parking`` is no car park."""
        *before, last = words
        verb = self.verb_lemma(last) if last.endswith("ing") else None
        if verb is None or verb == last:
            return ()
        # morphy is content with the first base it knows, and takes "swinging" for "to swinge"
        base = last[:-3] if self.verb_lemma(last[:-3]) == last[:-3] else verb
        forms = self._find_forms([*before, base])
        done = any(s.lexname() in ACTION_FILES for form in forms[:1] for s in self._reader.synsets(form, "n"))
        return forms if done else ()

    def _is_person(self, form: str) -> bool:
        # "side kick" is no sidekick: two words written as one rarely name the same person
        return self._reader.synsets(form, "n")[0].lexname() == "noun.person"

    def _singulars(self, form: str) -> list[str]:
        stems = [
            form[: -len(end)] + new for end, new in _ENDINGS if form.endswith(end) and not form.endswith("ss")
        ]
        return [stem for stem in stems if len(stem) > 2 and self._reader.morphy(stem, "n") == stem][:1]

    def _read_senses(self, phrase: str) -> tuple[Sense, ...]:
        found: dict[str, tuple[Any, str]] = {}
        for form in self._noun_forms(phrase):
            for synset in self._reader.synsets(form, "n"):
                named = {lemma.lower() for lemma in synset.lemma_names()}
                if form.lower() in named:
                    found.setdefault(synset.name(), (synset, form.replace("_", " ")))
        common = [pair for pair in found.values() if not pair[0].instance_hypernyms()]
        kept = common or list(found.values())
        return tuple(self._describe(synset, form, rank) for rank, (synset, form) in enumerate(kept))

    def _describe(self, synset: Any, form: str, rank: int) -> Sense:
        groups = (
            synset.hypernyms(),
            synset.part_meronyms(),
            synset.substance_meronyms(),
            synset.topic_domains(),
        )
        near = [other for group in groups for other in _in_file_order(group)]
        texts = [synset.definition(), *synset.examples(), *synset.lemma_names()]
        texts += [text for other in near for text in (other.definition(), *other.lemma_names())]
        texts += [name for other in _in_file_order(synset.hyponyms()) for name in other.lemma_names()]
        signature = tuple(text.replace("_", " ") for text in texts)
        kinds = frozenset().union(*(self.within(s.name()) for s in (synset, *synset.topic_domains())))
        named = [lemma for lemma in synset.lemmas() if lemma.name().replace("_", " ").lower() == form.lower()]
        count = sum(self._counts.get(lemma.key(), 0) for lemma in named)
        definition, lexname = synset.definition(), synset.lexname()
        return Sense(synset.name(), form, definition, lexname, rank, signature, kinds, count)

    def _derived(self, verb: str, files: tuple[str, ...]) -> tuple[Sense, ...]:
        found: dict[str, Sense] = {}
        for synset in self._reader.synsets(verb, "v"):
            for lemma in synset.lemmas():
                if lemma.name() != verb:
                    continue
                for form in lemma.derivationally_related_forms():
                    if form.synset().lexname() in files:
                        sense = self._describe(form.synset(), form.name().replace("_", " "), len(found))
                        found.setdefault(sense.name, sense)
        return tuple(found.values())


def _in_file_order(synsets: Iterable[Any]) -> list[Any]:
    # NLTK gives what a synset points to in the order of a set, another one in every process
    return sorted(synsets, key=lambda synset: (synset.pos(), synset.offset()))


def _words(synset: Any) -> str:
    """The headword as in the synset's name, spaced: names hold full stops of their own (``ph.d..n.01``)."""
    return synset.name().rsplit(".", 2)[0].replace("_", " ")


def _noun(line: str, lexnames: dict[str, str]) -> Noun:
    offset, file, _, _, word, _ = line.split(" ", 5)
    told = line.partition(" | ")[0]
    return Noun(f"n{offset}", word.replace("_", " ").lower(), lexnames[file], " @i " in told)


def _gerunds(verb: str) -> tuple[str, ...]:
    stem = verb[:-1] if verb.endswith("e") else verb
    return (f"{stem}ing", f"{verb}{verb[-1]}ing")
