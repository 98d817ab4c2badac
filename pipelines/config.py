"""The one YAML file of ``alt run``: what it may hold, checked whole before anything is computed.

Every section maps onto a stage's own options, so that a key has the same name here as on that stage's command line.
Relative paths are read from the folder of the YAML file.
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipelines.errors import PipelineError, did_you_mean

if TYPE_CHECKING:
    from corpus_builder.config import CorpusConfig


class Section(BaseModel):
    """A part of the config; a key that is not a field is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


AnySection = TypeVar("AnySection", bound=Section)


class CorpusSection(Section):
    """``corpus-builder build``: where entities come from and how they are mined."""

    labels: Path | None = Field(None, description="Label file (txt, csv, json) whose nouns become entities.")
    captions: Path | None = Field(None, description="Caption file (txt, csv, parquet) mined likewise.")
    label_column: str | None = Field(None, description="Column of the labels in a csv with several.")
    caption_column: str | None = Field(None, description="Column of the captions in a csv or parquet file.")
    taggers: str = Field("both", description="both, spacy, nltk or wordnet.")
    spacy_model: str = Field("en_core_web_sm", description="Installed spaCy pipeline, or a path to one.")
    strategy: str = Field("extended", description="Word-sense disambiguation: extended, lesk or first.")
    body_parts: bool = Field(True, description="Add the body parts.")
    min_count: int = Field(1, description="Captions that must mention an entity.")
    max_words: int = Field(4, description="Longest entity, in words.")
    expansions: list[Path] = Field(
        [], description="JSON files: label or class id -> phrases that belong to it."
    )
    descriptions: Path | None = Field(
        None, description="JSON file: phrase -> what it is, for those without a sense."
    )
    allow: Path | None = Field(
        None, description="Text file: phrases and synsets to keep whatever speaks against."
    )
    deny: Path | None = Field(None, description="Text file: phrases and synsets never to keep.")
    related: int = Field(0, description="Things that WordNet relates to add per label, at most.")
    sources: list[str] = Field(
        [], description="Finds that make entities: label, caption, expansion ...; all if none."
    )
    size: int | None = Field(
        None, description="Entities to keep: of labels first, then by mentions; all if none."
    )
    merge_above: float | None = Field(
        None, description="Cosine from which two entities are one; never if none."
    )
    processes: int = Field(1, ge=1, description="Processes that mine captions; the result is the same.")

    def files(self) -> dict[str, Path]:
        """The files that are mined, by their keys."""
        named = ("labels", "captions", "descriptions", "allow", "deny")
        found = {name: path for name in named if (path := getattr(self, name)) is not None}
        return found | {f"expansions.{number}": path for number, path in enumerate(self.expansions)}

    def settings(self) -> "CorpusConfig":
        """The stage's own settings; raises its ``CorpusError`` where they make no sense."""
        from corpus_builder.config import CorpusConfig, split_sources

        names = {field.name for field in dataclasses.fields(CorpusConfig)} & set(type(self).model_fields)
        given = {name: getattr(self, name) for name in names - {"sources"}}
        return CorpusConfig(**given, sources=split_sources(",".join(self.sources) or None))


class LabelsSection(Section):
    """``corpus-builder labels``: a set of classes as prompt-ensembled text embeddings."""

    file: Path = Field(description="Label file (txt, csv, json).")
    label_column: str | None = Field(None, description="Column of the labels in a csv with several.")
    templates: list[str] | None = Field(
        None, description="Prompts with {} for the class; default: the stage's own."
    )


class AlignmentsSection(Section):
    """``aligner run``: which videos, how many frames, how much merging."""

    videos: Path = Field(description="Folder of videos, or a manifest with columns path, label, split.")
    videos_root: Path | None = Field(None, description="Folder that video ids are relative to.")
    frames: int = Field(8, description="Frames of each view of a video.")
    sampling: str = Field("uniform", description="Which frames: uniform, tsn or dense.")
    draws: int = Field(1, description="Random draws of tsn, each a view.")
    stride: int | None = Field(None, description="Frames from one frame of dense to the next.")
    clips: int = Field(1, description="Clips of uniform or dense, each a view.")
    crops: int = Field(1, description="Crops of each clip, each a view: 1 or 3.")
    seed: int = Field(0, description="Seed of the draws.")
    colours: str = Field("model", description="Statistics of colours: model, clip or imagenet.")
    merge: int | Literal["auto"] = Field(8, description="Token pairs merged in every encoder block, or auto.")
    top_k: int = Field(16, description="Entities stored per region.")
    proportional_attention: bool = Field(True, description="Merged tokens count by their size in attention.")
    dense: str = Field("none", description="Attention of the regions in the last block: none, value or self.")
    precision: str = Field("fp32", description="fp32, bf16 or fp16.")
    store: Literal["fp16", "int8", "topk"] = Field(
        "fp16", description="Embeddings to keep: fp16, int8, or topk (of frames alone)."
    )
    videos_per_shard: int = Field(64, description="Videos per shard, the unit of resuming.")
    decode_workers: int = Field(2, description="Processes that decode ahead.")
    processes: int | Literal["auto"] = Field(
        "auto", description="Processes that share the videos, or auto: one per GPU."
    )

    def views(self) -> dict[str, Any]:
        """Which frames and crops of a video are taken, by the stage's own names."""
        names = ("sampling", "draws", "stride", "clips", "crops", "seed", "colours")
        return {name: getattr(self, name) for name in names}


class AdapterSection(Section):
    """``adapter train``: the label set to train on, and any of the adapter's own options by name.

    Several adapters, say a model and its controls, are trained on the same cache and meet the same evaluations.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    labels: str = Field(description="Name of the label set, a key of the labels section.")

    def options(self) -> dict[str, Any]:
        """The adapter's options, without the label set."""
        return dict(self.model_extra or {})


class EvaluationSection(Section):
    """``adapter eval``: a split scored with a label set."""

    name: str = Field(description="Name of the result.")
    labels: str = Field(description="Name of the label set, a key of the labels section.")
    split: str | None = Field(
        None, description="Split of the videos to score; default: test, or all videos where none has a split."
    )
    candidates: str = Field("all", description="all, seen or unseen labels.")
    reverse_time: bool = Field(False, description="Play the videos backwards.")
    blend: float = Field(
        0.0, description="Share of zero-shot CLIP's log-probabilities mixed in late, 0 to 1."
    )
    adapters: list[str] | None = Field(None, description="Only these adapters; default: all.")


class ReportSection(Section):
    """The HTML report: whose predictions in which evaluation, and how many videos."""

    adapter: str = Field(description="Name of the adapter, a key of the adapters section.")
    evaluation: str = Field(description="Name of the evaluation whose predictions are shown.")
    videos: int = Field(24, ge=0, description="Videos shown at most.")
    max_mb: float = Field(20.0, gt=0, description="Size of the file at most, in MB: then pictures give way.")


class PipelineConfig(Section):
    """Everything one ``alt run`` does."""

    out: Path = Field(description="Folder of all artifacts of this run.")
    model: str = Field(description="open_clip model: ViT-B-16, hf-hub:ORG/REPO or local-dir:FOLDER.")
    pretrained: str | None = Field(None, description="Weights: a tag, a file, or none for random weights.")
    nltk_data: Path | None = Field(None, description="NLTK data folder to read first.")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")
    corpus: CorpusSection = Field(
        description="Where entities come from; at least labels: FILE or captions: FILE."
    )
    labels: dict[str, LabelsSection] = Field(description="Sets of classes by name: {train: {file: FILE}}.")
    alignments: AlignmentsSection = Field(description="Which videos, at least videos: FOLDER or MANIFEST.")
    adapters: dict[str, AdapterSection] = Field(default_factory=dict)
    evaluations: list[EvaluationSection] = Field(default_factory=list)
    report: ReportSection | None = None


def load_config(path: Path) -> PipelineConfig:
    """Read and check a YAML file; all problems are reported together.

    Raises:
        PipelineError: a missing file, broken YAML, unknown keys (with the nearest known one), wrong types, or names
            that refer to nothing.
    """
    if not path.is_file():
        raise PipelineError(f"no config file at {path}; `alt init FILE` writes one to start from")
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PipelineError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(raw, dict):
        raise PipelineError(
            f"{path} holds {type(raw).__name__}; a mapping with the keys {_keys(PipelineConfig)} is needed"
        )
    return check_config(raw, path.parent, path.name)


def check_config(
    raw: dict[str, Any], base: Path, name: str = "config", inputs: bool = True
) -> PipelineConfig:
    """A checked config from plain values, its relative paths resolved against ``base``.

    ``inputs`` also asks whether the input files are there, which an old run that is only applied does not need.
    """
    try:
        config = PipelineConfig.model_validate(raw)
    except ValidationError as error:
        refuse(name, [*map(_problem, error.errors()), *_adapter_problems(raw.get("adapters"))])
    resolved = resolve(config, base)
    missing = _missing_inputs(resolved) if inputs else []
    adapters = _adapter_problems(raw.get("adapters"), config.alignments.store)
    refuse(name, [*_dangling(config), *adapters, *missing])
    return resolved


def refuse(name: str, problems: list[str]) -> None:
    """Raise one PipelineError that lists all problems, if there are any."""
    if problems:
        raise PipelineError(f"{name} has {len(problems)} problem(s):\n  " + "\n  ".join(problems))


def resolve(config: PipelineConfig, base: Path) -> PipelineConfig:
    """The config with every relative path, a ``local-dir:`` model and a weights file included, made absolute."""
    changed: dict[str, Any] = {}
    if config.model.startswith("local-dir:"):
        changed["model"] = f"local-dir:{_absolute(base, Path(config.model.partition(':')[2]))}"
    if config.pretrained and (base / config.pretrained).is_file():
        changed["pretrained"] = str(_absolute(base, Path(config.pretrained)))
    resolved = _resolve_paths(config, base).model_copy(update=changed)
    spacy_model = base / config.corpus.spacy_model
    if spacy_model.is_dir():
        corpus = resolved.corpus.model_copy(update={"spacy_model": str(_absolute(base, spacy_model))})
        resolved = resolved.model_copy(update={"corpus": corpus})
    return resolved


def _resolve_paths(section: AnySection, base: Path) -> AnySection:
    changed: dict[str, Any] = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Path):
            changed[name] = _absolute(base, value)
        elif isinstance(value, Section):
            changed[name] = _resolve_paths(value, base)
        elif isinstance(value, list):
            changed[name] = [_absolute(base, item) if isinstance(item, Path) else item for item in value]
        elif isinstance(value, dict):
            changed[name] = {key: _resolve_paths(item, base) for key, item in value.items()}
    return section.model_copy(update=changed)


def _absolute(base: Path, path: Path) -> Path:
    return (base / path.expanduser()).resolve()


def _keys(section: type[BaseModel]) -> str:
    return ", ".join(section.model_fields)


def _problem(item: Any) -> str:
    """One line for one of pydantic's errors: where, what, and the nearest known key."""
    where = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        known = _section_at(item["loc"][:-1]).model_fields
        word = str(item["loc"][-1])
        return f"{where}: unknown key{did_you_mean(word, known) or '; known are ' + ', '.join(known)}"
    if item["type"] == "missing":
        return f"{where}: missing; {_section_at(item['loc'][:-1]).model_fields[item['loc'][-1]].description}"
    return f"{where}: {item['msg']}, got {item['input']!r}"


_SECTIONS: dict[str, type[Section]] = {
    "corpus": CorpusSection,
    "labels": LabelsSection,
    "alignments": AlignmentsSection,
    "adapters": AdapterSection,
    "evaluations": EvaluationSection,
    "report": ReportSection,
}


def _section_at(location: tuple[Any, ...]) -> type[Section]:
    return _SECTIONS[location[0]] if location else PipelineConfig


def _dangling(config: PipelineConfig) -> list[str]:
    """Names that refer to a label set, an adapter or an evaluation that is not there."""
    sets, adapters = list(config.labels), list(config.adapters)
    evaluations = [item.name for item in config.evaluations]
    references = [(f"adapters.{name}.labels", item.labels, sets) for name, item in config.adapters.items()]
    for item in config.evaluations:
        references.append((f"evaluations.{item.name}.labels", item.labels, sets))
        references += [(f"evaluations.{item.name}.adapters", name, adapters) for name in item.adapters or ()]
    if config.report:
        references.append(("report.adapter", config.report.adapter, adapters))
        references.append(("report.evaluation", config.report.evaluation, evaluations))
    shown = next(
        (item for item in config.evaluations if config.report and item.name == config.report.evaluation), None
    )
    if config.report and shown and shown.adapters is not None:
        references.append(("report.adapter (in its evaluation)", config.report.adapter, shown.adapters))
    problems = [
        f"{where}: there is no '{name}'{did_you_mean(name, known) or '; there are ' + (', '.join(known) or 'none')}"
        for where, name, known in references
        if name not in known
    ]
    return problems + [
        f"'{name}' cannot name a folder" for name in (*sets, *adapters, *evaluations) if not _plain(name)
    ]


def _plain(name: str) -> bool:
    return bool(name) and not name.startswith(".") and not set(name) & set("/\\")


def _adapter_problems(sections: Any, store: str = "fp16") -> list[str]:
    """Unknown or impossible options of the adapters, in the stage's own words."""
    from adapter.config import AdapterError, make_settings, without_regions

    problems = []
    for name, section in sections.items() if isinstance(sections, dict) else ():
        options = (
            {key: value for key, value in section.items() if key != "labels"}
            if isinstance(section, dict)
            else {}
        )
        try:
            model = make_settings(options).model
        except AdapterError as error:
            problems.append(f"adapters.{name}: {error}")
            continue
        if store == "topk" and model.reads_regions:
            problems.append(f"adapters.{name}: {without_regions(model, 'alignments')}")
    return problems


def _missing_inputs(config: PipelineConfig) -> list[str]:
    """Inputs that are not there, and settings of the corpus that its stage would refuse."""
    from corpus_builder.config import CorpusError

    inputs: list[tuple[str, Path | None]] = [
        (f"corpus.{name}", path) for name, path in config.corpus.files().items()
    ]
    inputs += [(f"labels.{name}.file", section.file) for name, section in config.labels.items()]
    inputs += [("alignments.videos", config.alignments.videos), ("nltk_data", config.nltk_data)]
    problems = [
        f"{where}: there is no {path}" for where, path in inputs if path is not None and not path.exists()
    ]
    if config.alignments.videos.exists():
        problems += _missing_splits(config)
    problems += _impossible_views(config)
    if config.corpus.labels is None and config.corpus.captions is None:
        problems.append("corpus: nothing to mine; give labels, captions or both")
    try:
        config.corpus.settings()
    except CorpusError as error:
        problems.append(f"corpus: {error}")
    return problems


def _impossible_views(config: PipelineConfig) -> list[str]:
    """Views that the stage would refuse, in its own words."""
    from aligner.config import AlignConfig, AlignerError

    try:
        AlignConfig(config.alignments.videos, Path(), config.model, **config.alignments.views())
    except AlignerError as error:
        return [f"alignments: {error}"]
    return []


def _missing_splits(config: PipelineConfig) -> list[str]:
    """Evaluations of a split that no video has: better known before the training than after it."""
    from aligner.config import AlignerError
    from aligner.plan import make_plan

    section = config.alignments
    try:
        plan = make_plan(section.videos, section.videos_per_shard, section.videos_root)
    except AlignerError as error:
        return [f"alignments.videos: {error}"]
    splits = {item.split for item in plan.items}
    there = ", ".join(sorted(split for split in splits if split)) or "none"
    return [
        f"evaluations.{item.name}.split: no video has split '{item.split}' (there are: {there}); "
        "leave split out, or give all for every video"
        for item in config.evaluations
        if item.split not in (None, "all", *splits)
    ]
