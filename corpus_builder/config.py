"""Settings of the corpus stage, its fixed vocabularies and its error class. Standard library only."""

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

TAGGER_CHOICES = ("both", "spacy", "nltk", "wordnet")
LEARNED_STRATEGIES = ("clip", "t5")
STRATEGIES = ("extended", "lesk", "first", *LEARNED_STRATEGIES)
PRECISIONS = ("fp32", "bf16", "fp16")
INDEX_CHOICES = ("auto", "flat", "ivf", "hnsw")
MINED_SOURCES = ("label", "caption", "expansion", "related", "body_part")
SOURCES = (*MINED_SOURCES, "list", "random")
"""Where an entity comes from: mined, a list of words (``import``), or drawn at random (``random``)."""

MATCHES = ("none", "lexname", "concreteness")
"""What random nouns may have in common with a corpus: nothing, lexicographer files, or how many are things."""

KINDS = (
    "object",
    "animal",
    "person",
    "body part",
    "food",
    "plant",
    "scene",
    "substance",
    "activity",
    "group",
    "other",
    "phrase",
)
"""What an entity is, by its sense; a ``phrase`` has none."""

EXAMPLES = 3
"""Texts that are kept as examples of where a phrase was found."""

DEFAULT_SPACY_MODEL = "en_core_web_sm"

DEFAULT_TEMPLATES = "default"
"""Name of the set of prompts, in ``templates.json``, that class names are embedded with unless told otherwise."""

ENTITY_TEXT = "{unit}: {description}"

BODY_PARTS: tuple[tuple[str, str], ...] = (
    ("head", "head.n.01"),
    ("face", "face.n.01"),
    ("hair", "hair.n.01"),
    ("eye", "eye.n.01"),
    ("eyebrow", "eyebrow.n.01"),
    ("ear", "ear.n.01"),
    ("nose", "nose.n.01"),
    ("mouth", "mouth.n.01"),
    ("lip", "lip.n.01"),
    ("tooth", "tooth.n.01"),
    ("tongue", "tongue.n.01"),
    ("chin", "chin.n.01"),
    ("neck", "neck.n.01"),
    ("shoulder", "shoulder.n.01"),
    ("chest", "thorax.n.02"),
    ("back", "back.n.01"),
    ("waist", "waist.n.01"),
    ("hip", "hip.n.01"),
    ("arm", "arm.n.01"),
    ("elbow", "elbow.n.01"),
    ("wrist", "wrist.n.01"),
    ("hand", "hand.n.01"),
    ("finger", "finger.n.01"),
    ("leg", "leg.n.01"),
    ("knee", "knee.n.01"),
    ("ankle", "ankle.n.01"),
    ("foot", "foot.n.01"),
)
"""Body parts that every corpus holds unless told otherwise, each with its sense in WordNet 3.0."""


class CorpusError(ValueError):
    """Something the user can mend: the message says what was got, what was expected and what to do."""


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """``" (did you mean 'x'?)"`` for the choice closest to ``word``, or an empty string."""
    close = difflib.get_close_matches(word, list(choices), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


def check_choice(option: str, value: str, choices: Sequence[str]) -> None:
    """Raise :class:`CorpusError` naming ``option`` unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise CorpusError(
            f"{option} is '{value}', expected one of {', '.join(choices)}{did_you_mean(value, choices)}"
        )


@dataclass(frozen=True)
class CorpusConfig:
    """How a corpus is mined; every field changes the artifact, so all of them are recorded."""

    taggers: str = "both"
    """Which taggers propose noun phrases: ``both`` (their union, as in the paper), ``spacy``, ``nltk``, or
    ``wordnet``, which needs no tagger's data and is coarse."""
    spacy_model: str = DEFAULT_SPACY_MODEL
    """Installed spaCy pipeline, or a path to one; read when ``taggers`` is ``both`` or ``spacy``."""
    strategy: str = "extended"
    """How a WordNet sense is chosen: ``extended`` (this package's Lesk), ``lesk`` (NLTK's), ``first``,
    ``clip`` (cosine of gloss and text in a CLIP's space) or ``t5`` (a tuned T5; extra ``wsd``)."""
    sense_model: str | None = None
    """Model of ``clip`` (as ``--model``; a build takes its own by default) or ``t5`` (hub id or folder)."""
    sense_pretrained: str | None = None
    """Weights of ``clip``, as ``--pretrained``."""
    body_parts: bool = True
    """Whether the body parts of ``BODY_PARTS`` are added."""
    related: int = 0
    """Most things that WordNet relates to what a class name holds (parts, materials, kinds), added per name."""
    min_count: int = 1
    """Captions that must mention an entity before it is kept; labels and expansions are always kept."""
    max_words: int = 4
    """Longest entity, in words."""
    min_letters: int = 2
    """Shortest entity, in characters."""
    entity_text: str = ENTITY_TEXT
    """How the text of an entity is made of its ``{unit}`` and ``{description}``, each once."""
    precision: str = "fp32"
    """Arithmetic of the text tower: ``fp32``, or on a GPU ``bf16`` or ``fp16`` (autocast)."""
    index: str = "auto"
    """FAISS index: ``flat`` (exact), ``ivf``, ``hnsw``, or ``auto`` by size."""
    merge_above: float | None = None
    """Cosine of two embeddings from which they are one entity; None (the default) merges none, since the
    right threshold depends on the model."""
    sources: tuple[str, ...] = ()
    """Which of ``MINED_SOURCES`` make entities, in this order; none named means all."""
    size: int | None = None
    """How many entities are kept: those of labels first, then by count, then in corpus order; None keeps all."""

    def __post_init__(self) -> None:
        """Check every option; raises :class:`CorpusError`."""
        check_choice("--taggers", self.taggers, TAGGER_CHOICES)
        check_choice("--precision", self.precision, PRECISIONS)
        check_choice("--index", self.index, INDEX_CHOICES)
        check_choice("--strategy", self.strategy, STRATEGIES)
        if sorted(re.findall(r"\{.*?\}", self.entity_text)) != ["{description}", "{unit}"]:
            raise CorpusError(
                f"--entity-text is '{self.entity_text}', expected {{unit}} and {{description}} once each, such as"
                f" '{ENTITY_TEXT}'"
            )
        for option, value in (("--min-count", self.min_count), ("--max-words", self.max_words)):
            if value < 1:
                raise CorpusError(f"{option} is {value}, expected at least 1")
        if self.sense_model is not None and self.strategy not in LEARNED_STRATEGIES:
            raise CorpusError(f"--sense-model is for --strategy clip or t5, got --strategy {self.strategy}")
        if self.merge_above is not None and not 0 < self.merge_above <= 1:
            raise CorpusError(f"--merge-above is {self.merge_above}, expected a cosine above 0, at most 1")
        if self.related < 0:
            raise CorpusError(f"--related is {self.related}, expected 0 (none) or more")
        self._check_selection()
        if not self.spacy_model:
            raise CorpusError("--spacy-model is empty, expected an installed pipeline's name or a path")

    def _check_selection(self) -> None:
        for source in self.sources:
            check_choice("--sources", source, MINED_SOURCES)
        if self.size is not None and self.size < 1:
            raise CorpusError(f"--size is {self.size}, expected at least 1 entity")
        if "related" in self.sources and not self.related:
            raise CorpusError("--sources names related, which needs --related N, the most to add per label")
        if "body_part" in self.sources and not self.body_parts:
            raise CorpusError("--sources names body_part, which --no-body-parts leaves out")


def split_sources(text: str | None) -> tuple[str, ...]:
    """``"caption,label"`` -> ``("label", "caption")``: each once, in the order of ``MINED_SOURCES``; None -> ().

    Raises :class:`CorpusError` on a name that is none of them.
    """
    if text is None:
        return ()
    names = [name.strip() for name in text.split(",")]
    for name in names:
        check_choice("--sources", name, MINED_SOURCES)
    return tuple(source for source in MINED_SOURCES if source in names)


def check_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """The templates as a tuple; raises :class:`CorpusError` unless each holds ``{}`` exactly once."""
    if not templates:
        raise CorpusError("--template: the list is empty, expected at least one such as 'a video of {}.'")
    for template in templates:
        if template.count("{}") != 1 or template.replace("{}", "").strip("{}") != template.replace("{}", ""):
            raise CorpusError(f"--template '{template}' must hold the place of the class name, {{}}, once")
    return tuple(templates)
