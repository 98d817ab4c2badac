"""Compose the steps: mentions -> candidates -> senses -> entities -> text -> vectors -> artifact."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from corpus_builder import __version__, artifact
from corpus_builder.captions import (
    CHUNK,
    LoadedMiner,
    Miner,
    Work,
    caption_finds,
    clear_work,
    tally_captions,
    work_folder,
)
from corpus_builder.config import (
    BODY_PARTS,
    DEFAULT_TEMPLATES,
    SOURCES,
    CorpusConfig,
    CorpusError,
    check_templates,
)
from corpus_builder.disambiguate import Choice
from corpus_builder.entities import Found, Gathered, gather, judge, largest, merge_pairs, with_descriptions
from corpus_builder.mine import Candidate, Limits, mine, reasons
from corpus_builder.relations import expand
from corpus_builder.senses import Chooser, load_chooser
from corpus_builder.sources import (
    LabelFile,
    iter_captions,
    label_mentions,
    read_descriptions,
    read_expansions,
    read_labels,
    require_file,
)
from corpus_builder.tables import candidate_table, entity_table, merge_table, sense_table, with_embeddings
from corpus_builder.taggers import Tagger, load_taggers
from corpus_builder.templates import load_templates
from corpus_builder.wordlists import WordList, check_synsets, read_list
from corpus_builder.wordnet import Lexicon, Sense, open_lexicon

LEFT_OUT, BEYOND = "source left out", "beyond the size"
"""Why a find makes no entity though nothing speaks against it."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Inputs:
    """What a corpus is mined from: files, and where to look for WordNet. At least labels or captions."""

    labels: Path | None = None
    captions: Path | None = None
    expansions: tuple[Path, ...] = ()
    label_column: str | None = None
    caption_column: str | None = None
    nltk_data: Path | None = None
    allow: Path | None = None
    deny: Path | None = None
    descriptions: Path | None = None
    """Phrase -> description, for the entities of a build that have no sense."""

    def __post_init__(self) -> None:
        """Raises :class:`CorpusError` if there is nothing to mine."""
        if self.labels is None and self.captions is None:
            raise CorpusError("nothing to mine: give --labels FILE, --captions FILE or both")
        if self.expansions and self.labels is None:
            raise CorpusError("--expansions needs --labels: its keys are labels or class ids")


@dataclass(frozen=True)
class MineReport:
    """Everything mined, with what was dropped and why."""

    found: tuple[Found, ...]
    mentions: int
    uncovered: tuple[str, ...]
    inputs: dict[str, Any]
    spacy_model: str | None
    skipped: Mapping[str, int] = field(default_factory=dict)
    descriptions: Mapping[str, str] = field(default_factory=dict)
    """Of phrases, for those that have no sense."""

    @property
    def kept(self) -> list[Found]:
        """The finds that make entities."""
        return [item for item in self.found if item.candidate.kept]

    @property
    def counts(self) -> dict[str, Any]:
        """Totals: mentions, candidates, kept, dropped by reason, labels without any entity."""
        dropped = reasons(item.candidate for item in self.found)
        return {
            "mentions": self.mentions,
            "candidates": len(self.found),
            "kept": len(self.kept),
            "dropped": {str(reason): number for reason, number in sorted(dropped.items())},
            "labels_without_entity": len(self.uncovered),
            "skipped_captions": dict(sorted(self.skipped.items())),
        }


@dataclass(frozen=True)
class BuildReport:
    """What a build made: the manifest as written, and how long each step took, in seconds."""

    manifest: dict[str, Any]
    seconds: dict[str, float]


def mine_corpus(
    inputs: Inputs,
    config: CorpusConfig,
    say: Say = lambda line: None,
    *,
    device: str = "auto",
    encoder: Any = None,
    processes: int = 1,
    work: Path | None = None,
) -> MineReport:
    """Find and disambiguate the entities of labels, their expansions and captions, and add the body parts.

    ``device`` and ``encoder`` serve a learned strategy, see :func:`corpus_builder.senses.load_chooser`. Captions are
    mined by so many ``processes``, and what is mined is kept in the folder ``work`` until :func:`clear_work`.
    Raises :class:`CorpusError` on bad input files or missing WordNet, tagger or spaCy data.
    """
    labels = _read_labels(inputs)
    _check_sources(config.sources, inputs, labels)
    descriptions = read_descriptions(inputs.descriptions) if inputs.descriptions else {}
    if inputs.captions is not None:
        require_file(inputs.captions, "--captions")
    say("loading WordNet and the taggers")
    lexicon = open_lexicon(inputs.nltk_data)
    taggers = load_taggers(config, lexicon, inputs.nltk_data)
    choose = load_chooser(lexicon, config, device, encoder)
    allow = _read_list(inputs.allow, "--allow", lexicon)
    deny = _read_list(inputs.deny, "--deny", lexicon)
    facts = input_facts(inputs, lexicon)
    limits = Limits(config.max_words, config.min_letters, allow.phrases, deny.phrases)
    counter: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    found = list(_from_labels(labels, taggers, lexicon, choose, limits, counter))
    if inputs.captions is not None:
        say("mining captions")
        captions = iter_captions(inputs.captions, inputs.caption_column)
        loaded = LoadedMiner(taggers, lexicon, limits)
        kept = Work.open(work, _work_facts(facts, inputs.caption_column, loaded, config)) if work else Work()
        miner = Miner(config, inputs.nltk_data, limits)
        tally = tally_captions(captions, miner, loaded, kept, processes, say)
        counter["mentions"] += tally.captions
        skipped = captions.skipped
        say(f"{tally.captions} captions hold {len(tally.phrases)} phrases; choosing their senses")
        found += caption_finds(tally, choose, config.min_count)
    found += expand(found, lexicon, config.related) if config.related else []
    found = judge(found, allow, deny)
    found += _body_parts(lexicon) if config.body_parts else []
    covered = {item.label for item in found if item.candidate.kept}
    uncovered = tuple(label.label for label in labels.labels if label.label not in covered)
    versions = [tagger.version for tagger in taggers if hasattr(tagger, "version")]
    spacy_model = versions[0] if versions else None
    report = MineReport(
        tuple(found), counter["mentions"], uncovered, facts, spacy_model, skipped, descriptions
    )
    return of_sources(report, config.sources)


def of_sources(report: MineReport, sources: Sequence[str]) -> MineReport:
    """The report whose finds of other ``sources`` are dropped for that reason; none named keeps all."""
    if not sources:
        return report
    return _leave_out(report, lambda item: item.source not in sources, LEFT_OUT)


def _leave_out(report: MineReport, goes: Callable[[Found], bool], reason: str) -> MineReport:
    found = tuple(
        replace(item, candidate=replace(item.candidate, reason=reason))
        if item.candidate.kept and goes(item)
        else item
        for item in report.found
    )
    covered = {item.label for item in found if item.candidate.kept}
    lost = (item.label for item in report.kept if item.label is not None and item.label not in covered)
    uncovered = tuple(dict.fromkeys((*report.uncovered, *lost)))
    return replace(report, found=found, uncovered=uncovered)


def mined_rows(report: MineReport) -> list[dict[str, Any]]:
    """One row per (label, entity) kept, as ``artifact.MINED_SCHEMA``, in order of the mentions."""
    rows: dict[tuple[str | None, str, str], dict[str, Any]] = {}
    for item in report.kept:
        sense = item.choice.sense
        row: dict[str, Any] = {
            "label": item.label,
            "entity": item.name,
            "sense": sense.name if sense else None,
        }
        row |= {"source": item.source, "gloss": sense.gloss if sense else None, "count": 0}
        rows.setdefault((item.label, item.key, item.source), row)["count"] += item.count
    return list(rows.values())


def build_corpus(
    inputs: Inputs,
    config: CorpusConfig,
    model: str,
    pretrained: str | None,
    out: Path,
    *,
    device: str = "auto",
    processes: int = 1,
    force: bool = False,
    say: Say = lambda line: None,
    text_tower: Callable[[], Any] | None = None,
) -> BuildReport:
    """Mine, embed and publish a Corpus under ``out``; see :func:`mine_corpus` for the errors.

    What is mined of captions lies beside ``out`` until that is written; the same call goes on from there.
    ``text_tower`` gives the model (an ``embed.OpenClip``) where the caller has it, or will have it, in memory.
    """
    from corpus_builder.embed import check_model, choose_device, load_text_encoder, model_location

    artifact.check_room(out, "corpus", force=force)
    check_model(model, pretrained)
    choose_device(device, config.precision)
    clock = _Clock()
    # a CLIP that reads glosses is needed before mining; otherwise a big model waits until mining has gone well
    early = config.strategy == "clip" and config.sense_model is None
    load = text_tower or partial(load_text_encoder, model, pretrained, device, config.precision)
    encoder = load() if early else None
    work = work_folder(out)
    report = mine_corpus(inputs, config, say, device=device, encoder=encoder, processes=processes, work=work)
    gathered = gather_all(report, config)
    clock.lap("mine")
    say(f"{len(gathered.entities)} entities from {report.mentions} mentions; loading {model}")
    encoder = encoder or load()
    clock.lap("load model")
    manifest = publish(
        report,
        config,
        encoder,
        out,
        told=asdict(config) | {"spacy_model": report.spacy_model},
        kind=open_lexicon(inputs.nltk_data).kind,
        location=model_location(model, pretrained),
        force=force,
        say=say,
    )
    clear_work(work)
    clock.lap("embed and write")
    return BuildReport(manifest, clock.seconds)


def gather_all(report: MineReport, config: CorpusConfig) -> Gathered:
    """The entities of a report, cut to ``config.size`` unless that has to wait for the near-duplicates.

    Raises :class:`CorpusError` if there is none, or fewer than ``config.size``.
    """
    gathered = with_descriptions(gather(report.found), report.descriptions)
    if not gathered.entities:
        raise CorpusError(
            f"no entity was found in {report.mentions} mentions; try --taggers both or --body-parts"
        )
    cut = largest(gathered, config.size)
    return cut if config.merge_above is None else gathered


def publish(
    report: MineReport,
    config: CorpusConfig,
    encoder: Any,
    out: Path,
    *,
    told: Mapping[str, Any],
    kind: Callable[[Sense], str],
    location: Mapping[str, str] | None = None,
    force: bool = False,
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """Embed the entities of a report, write them as a Corpus and return its manifest.

    Args:
        report: what was found, by mining or otherwise.
        config: ``size``, ``entity_text``, ``merge_above`` and ``index`` are used.
        encoder: a :class:`corpus_builder.embed.TextEncoder`.
        out: the folder.
        told: the manifest's ``config``.
        kind: what a sense is, as :meth:`corpus_builder.wordnet.Lexicon.kind`.
        location: where the model lies.
        force: write even if the folder holds other things.
        say: told of each step.
    """
    from corpus_builder.index import build_index, index_bytes

    gathered = gather_all(report, config)
    say("embedding")
    texts = [entity.text(config.entity_text) for entity in gathered.entities]
    truncated = encoder.truncated(texts)
    gathered, vectors = _unite_near(gathered, encoder.encode(texts), config)
    held = {entity.key for entity in gathered.entities} | {merge.merged.key for merge in gathered.merges}
    report = _leave_out(report, lambda item: item.key not in held, BEYOND)
    table = entity_table(gathered.entities, vectors, kind, config.entity_text)
    built = build_index(vectors, config.index)
    say(f"index: {built.kind}, recall@1 {built.recall_at_1:.4f} against exact search")
    facts = {
        "config": dict(told),
        "inputs": report.inputs,
        "model": encoder.info,
        "counts": report.counts
        | _entity_counts(gathered, report.descriptions)
        | {"texts_truncated": truncated},
        "index": built.facts,
    }
    tables = {
        artifact.SENSES: sense_table(gathered.entities),
        artifact.MERGED: merge_table(gathered),
        artifact.CANDIDATES: candidate_table(report.found),
    }
    return artifact.write_corpus(
        out, table, index_bytes(built.index), tables, facts, location=location, force=force
    )


def build_labels(
    path: Path,
    model: str,
    pretrained: str | None,
    out: Path,
    *,
    label_column: str | None = None,
    templates: Sequence[str] = (),
    device: str = "auto",
    precision: str = "fp32",
    force: bool = False,
    say: Say = lambda line: None,
    encoder: Any = None,
) -> BuildReport:
    """Embed class names over ``templates`` and publish a Labels artifact under ``out``.

    ``encoder`` is the model (an ``embed.OpenClip`` with its learned prompts) where the caller has it in memory already.
    """
    from corpus_builder.embed import check_model, choose_device, embed_labels, load_text_encoder

    artifact.check_room(out, "labels", force=force)
    chosen = check_templates(templates or load_templates(DEFAULT_TEMPLATES))
    labels = read_labels(path, label_column).labels
    check_model(model, pretrained)
    choose_device(device, precision)
    clock = _Clock()
    say(f"loading {model}")
    encoder = encoder or load_text_encoder(model, pretrained, device, precision, prompted=True)
    clock.lap("load model")
    say(f"embedding {len(labels)} labels in {len(chosen)} templates")
    names = [label.name for label in labels]
    vectors = embed_labels(names, chosen, encoder)
    clock.lap("embed")
    schema = artifact.labels_schema(vectors.shape[1])
    rows = [{"class_id": row, "label": label.label, "name": label.name} for row, label in enumerate(labels)]
    table = with_embeddings(rows, vectors, schema)
    prompts = [template.replace("{}", name) for name in names for template in chosen]
    facts = {
        "config": {"templates": list(chosen), "label_column": label_column, "precision": precision},
        "inputs": {"labels": artifact.file_input(path)},
        "model": encoder.info,
        "counts": {"labels": len(labels), "texts_truncated": encoder.truncated(prompts)},
    }
    return BuildReport(artifact.write_labels(out, table, facts, force=force), clock.seconds)


class _Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = round(now - self._last, 3)
        self._last = now


def _read_labels(inputs: Inputs) -> LabelFile:
    if inputs.labels is None:
        return LabelFile((), {})
    file = read_labels(inputs.labels, inputs.label_column)
    expansions = dict(file.expansions)
    for path in inputs.expansions:
        for label, phrases in read_expansions(path, file.labels).items():
            expansions[label] = (*expansions.get(label, ()), *phrases)
    return LabelFile(file.labels, expansions)


def _check_sources(sources: Sequence[str], inputs: Inputs, labels: LabelFile) -> None:
    """Raise :class:`CorpusError` if a source is asked for that was not given."""
    needs = {
        "label": ("--labels FILE", inputs.labels is not None),
        "related": ("--labels FILE", inputs.labels is not None),
        "caption": ("--captions FILE", inputs.captions is not None),
        "expansion": ("--expansions FILE", bool(labels.expansions)),
    }
    for source in sources:
        option, given = needs.get(source, ("", True))
        if not given:
            raise CorpusError(f"--sources names {source}, which needs {option}")


def _from_labels(
    labels: LabelFile,
    taggers: Sequence[Tagger],
    lexicon: Lexicon,
    choose: Chooser,
    limits: Limits,
    counter: Counter[str],
) -> Iterator[Found]:
    for mention, candidates in mine(label_mentions(labels), taggers, lexicon, limits):
        counter["mentions"] += 1
        same = mention.context == mention.text
        text = mention.text if same else f"{mention.context} {mention.text}"
        for candidate in candidates:
            choice = choose(candidate, text)
            yield Found(mention.label, candidate, mention.source, choice, contexts=(mention.text,))
        if not candidates and mention.source == "expansion":
            nothing = Candidate(mention.text, mention.text, "whole", "no noun")
            yield Found(mention.label, nothing, mention.source, Choice(None, 0.0), contexts=(mention.text,))


def _read_list(path: Path | None, option: str, lexicon: Lexicon) -> WordList:
    listed = read_list(path, option)
    check_synsets(listed, option, lambda name: lexicon.sense(name) is not None)
    return listed


def _work_facts(
    facts: Mapping[str, Any], column: str | None, loaded: LoadedMiner, config: CorpusConfig
) -> dict[str, Any]:
    """What decides the tallies of the captions' chunks; ``facts`` are those of the inputs."""
    return {
        "package": f"corpus_builder {__version__}",
        "captions": facts["captions"],
        "column": column,
        "taggers": config.taggers,
        "versions": [getattr(tagger, "version", tagger.name) for tagger in loaded.taggers],
        "wordnet": facts[artifact.WORDNET]["sha256"],
        "words": [loaded.limits.max_words, loaded.limits.min_letters],
        "allow": sorted(loaded.limits.allow),
        "deny": sorted(loaded.limits.deny),
        "chunk": CHUNK,
    }


def _body_parts(lexicon: Lexicon) -> list[Found]:
    found = []
    for name, synset in BODY_PARTS:
        bodies = (sense for sense in lexicon.senses(name) if sense.lexname == "noun.body")
        sense = next((s for s in lexicon.senses(name) if s.name == synset), None) or next(bodies, None)
        found.append(Found(None, Candidate(name, name, "body_part"), "body_part", Choice(sense, 0.0)))
    return found


def _unite_near(gathered: Gathered, vectors: Any, config: CorpusConfig) -> tuple[Gathered, Any]:
    """Unite entities whose embeddings have a cosine of at least ``config.merge_above``, then cut to the size."""
    from corpus_builder.dedup import near_duplicates

    if config.merge_above is None:
        return gathered, vectors
    pairs = near_duplicates(vectors, config.merge_above)
    united = merge_pairs(gathered.entities, pairs, "near-duplicate")
    after = largest(Gathered(united.entities, (*gathered.merges, *united.merges)), config.size)
    row = {entity.key: number for number, entity in enumerate(gathered.entities)}
    return after, vectors[[row[entity.key] for entity in after.entities]]


def _entity_counts(gathered: Gathered, descriptions: Mapping[str, str]) -> dict[str, Any]:
    told = [entity for entity in gathered.entities if entity.description]
    names = {name for entity in told for name in (entity.name, *entity.aliases)}
    sources = Counter(entity.source for entity in gathered.entities)
    merges = Counter(merge.reason for merge in gathered.merges)
    return {
        "entities": len(gathered.entities),
        "entities_by_source": {source: sources[source] for source in SOURCES if sources[source]},
        "entities_with_sense": sum(entity.sense is not None for entity in gathered.entities),
        "entities_described": len(told),
        "descriptions_unused": len(descriptions.keys() - names),
        "entities_merged": dict(sorted(merges.items())),
    }


def input_facts(inputs: Inputs, lexicon: Lexicon) -> dict[str, Any]:
    """A manifest's ``inputs``: name and hash of every file that is mined, and WordNet's."""
    files = {
        "labels": inputs.labels,
        "captions": inputs.captions,
        "allow": inputs.allow,
        "deny": inputs.deny,
        "descriptions": inputs.descriptions,
    }
    files |= {f"expansions{number}": path for number, path in enumerate(inputs.expansions)}
    facts: dict[str, Any] = {
        name: artifact.file_input(path) for name, path in files.items() if path is not None
    }
    return facts | wordnet_facts(lexicon)


def wordnet_facts(lexicon: Lexicon) -> dict[str, dict[str, str]]:
    """A manifest's ``inputs`` entry for WordNet."""
    return {artifact.WORDNET: {"file": "data.noun", "sha256": lexicon.sha256()}}
