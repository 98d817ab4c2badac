"""The one YAML file of ``alt run``: what it may hold (``checks.py`` asks whether it can work).

Every section maps onto a stage's own options, so that a key has the same name here as on that stage's command line.
Relative paths are read from the folder of the YAML file.
"""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipelines.errors import PipelineError, did_you_mean

if TYPE_CHECKING:
    from aligner.config import AlignConfig
    from corpus_builder.config import CorpusConfig

# What of the alignments section says which videos there are, and which sampling goes with its own options: a test
# alignment that names its own inherits none of the others.
OF_VIDEOS = ("videos", "videos_root", "protocols", "splits")
OF_SAMPLING = ("sampling", "draws", "stride", "clips")


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
    strategy: str = Field(
        "extended", description="Word-sense disambiguation: extended, lesk, first, clip or t5."
    )
    sense_model: str | None = Field(None, description="Model of the strategy clip or t5.")
    sense_pretrained: str | None = Field(None, description="Weights of the strategy clip's model.")
    body_parts: bool = Field(True, description="Add the body parts.")
    min_count: int = Field(1, description="Captions that must mention an entity.")
    max_words: int = Field(4, description="Longest entity, in words.")
    entity_text: str | None = Field(
        None, description="Text of an entity, with {unit} and {description}; default: the stage's own."
    )
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
    index: str = Field("auto", description="FAISS index: auto, flat, ivf or hnsw.")
    precision: str = Field("fp32", description="Arithmetic of the text tower: fp32, bf16 or fp16.")
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
        given = {name: value for name in names - {"sources"} if (value := getattr(self, name)) is not None}
        return CorpusConfig(**given, sources=split_sources(",".join(self.sources) or None))


class LabelsSection(Section):
    """``corpus-builder labels``: a set of classes as prompt-ensembled text embeddings."""

    file: Path = Field(description="Label file (txt, csv, json).")
    label_column: str | None = Field(None, description="Column of the labels in a csv with several.")
    templates: list[str] | str | None = Field(
        None,
        description="Prompts with {} for the class, or the name or file of a set of them; default: the stage's own.",
    )
    precision: str = Field("fp32", description="Arithmetic of the text tower: fp32, bf16 or fp16.")

    def prompts(self) -> tuple[str, ...]:
        """The prompts, none where the stage's own are meant; raises its ``CorpusError`` for an unknown set."""
        if isinstance(self.templates, str):
            from corpus_builder.templates import load_templates

            return load_templates(self.templates)
        return tuple(self.templates or ())


class SlurmSection(Section):
    """``aligner slurm submit``: what a task of the job array asks of the cluster, spelled as for ``sbatch``."""

    shards_per_task: int = Field(1, ge=1, description="Shards that a task of the array fills.")
    time: str | None = Field(None, description="Time limit of a task, such as 04:00:00.")
    partition: str | None = Field(None, description="Partition of the cluster.")
    gpus: str | None = Field(None, description="GPUs of a task, such as 1 or a100:1.")
    cpus_per_task: int | None = Field(None, description="Processor cores of a task.")
    mem: str | None = Field(None, description="Memory of a task, such as 32G.")
    options: list[str] = Field([], description="Other options of sbatch, such as --account=vision.")
    max_array_size: int = Field(1001, ge=1, description="The cluster's MaxArraySize.")
    concurrent: int | None = Field(None, ge=1, description="Tasks that run at the same time, at most.")


class AlignmentsSection(Section):
    """``aligner run``: which videos, how many frames, how much merging."""

    videos: Path = Field(description="Folder of videos, or a manifest with columns path, label, split.")
    videos_root: Path | None = Field(None, description="Folder that video ids are relative to.")
    protocols: list[str] = Field(
        [],
        description="Published protocols whose lists (see lists) say which videos below the folder, with classes; "
        "a video is in the splits that are named like its lists.",
    )
    splits: list[str] | None = Field(None, description="Only videos of these splits.")
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
    preprocess: str = Field("cpu", description="Where pictures are cut to size: cpu or device.")
    compile: bool = Field(False, description="Compile the encoder with torch.compile.")
    batch_frames: int | None = Field(
        None, description="Frames in a forward pass; default: one video's, on a GPU 256."
    )
    store: Literal["fp16", "int8", "topk"] = Field(
        "fp16", description="Embeddings to keep: fp16, int8, or topk (of frames alone)."
    )
    videos_per_shard: int = Field(64, description="Videos per shard, the unit of resuming.")
    decode_workers: int = Field(2, description="Processes that decode ahead.")
    processes: int | Literal["auto"] = Field(
        "auto", description="Processes that share the videos, or auto: one per GPU."
    )
    launcher: Literal["local", "ray", "slurm"] = Field(
        "local", description="Where they run: local, ray (a Ray cluster) or slurm (a job array)."
    )
    ray_address: str | None = Field(
        None, description="The Ray cluster; default: RAY_ADDRESS, or a running one."
    )
    ray_cpus: int = Field(2, description="Processor cores of a process on Ray.")
    slurm: SlurmSection | None = Field(None, description="What a task of the job array asks for.")

    @property
    def root(self) -> Path:
        """The folder that video ids are relative to."""
        return self.videos_root or (self.videos if self.videos.is_dir() else self.videos.parent)

    @property
    def chooses(self) -> bool:
        """Whether the videos are a choice of those that are there, which is written down as a manifest."""
        return bool(self.protocols) or self.splits is not None

    def settings(
        self, config: "PipelineConfig", corpus: Path, out: Path, videos: Path, root: Path | None
    ) -> "AlignConfig":
        """The stage's own settings; raises its ``AlignerError`` where they make no sense."""
        from aligner.config import AlignConfig

        names = {field.name for field in dataclasses.fields(AlignConfig)} & set(type(self).model_fields)
        given = {name: getattr(self, name) for name in names - {"videos", "videos_root", "launcher"}}
        if self.launcher == "ray":
            given["launcher"] = "ray"
        whole: dict[str, Any] = {
            "model": config.model,
            "pretrained": config.pretrained,
            "device": config.device,
        }
        return AlignConfig(
            videos=videos,
            videos_root=root,
            corpus=corpus,
            out=out,
            allow_changed_videos=True,
            **whole,
            **given,
        )


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
    alignments: str | None = Field(
        None, description="Name of test alignments to score on; default: the alignments trained on."
    )


class ProtocolSection(Section):
    """``adapter protocol run``: adapters scored as published, on the official lists."""

    name: str = Field(description="Name of the result, and of the protocol unless that is given.")
    protocol: str | None = Field(None, description="Protocol, from `adapter protocol list`.")
    labels: str = Field(description="Name of a label set that holds all candidates.")
    runs: list[str] = Field(
        min_length=1,
        description="Adapters: those that the protocol names, in its order, or seeds of one form.",
    )
    alignments: str | None = Field(
        None, description="Name of test alignments to score on; default: the alignments trained on."
    )

    @property
    def published(self) -> str:
        """The protocol's own name."""
        return self.protocol or self.name


class AblationSection(Section):
    """``adapter ablate``: the paper's forms, baselines and controls, seed by seed in one table."""

    labels: str = Field(description="Name of the label set, a key of the labels section.")
    rows: list[str] = Field([], description="Rows by name or pattern, such as 'tracks*'; default: all.")
    shots: list[int] = Field([4], description="Columns of K shots.")
    seeds: int = Field(3, ge=1, le=20, description="Training seeds: 0, 1 ...")
    split: str = Field("test", description="Split to test on.")
    unseen: str | None = Field(
        None, description="Label set of classes not trained on: adds zero-shot columns."
    )
    unseen_split: str = Field("all", description="Split of the videos of unseen classes.")
    blend: float = Field(0.5, description="Share of zero-shot CLIP in the blended column.")
    sensitivity: bool = Field(False, description="Add reversed and shuffled frames, scenes and objects.")
    options: dict[str, Any] = Field({}, description="The adapter's options for every run.")
    few_options: dict[str, Any] = Field({}, description="The adapter's options for few-shot runs.")


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
    lists: Path | None = Field(
        None,
        description="Folder of official lists: a copy of ViFi-CLIP, OST, Text4Vis or Open-VCLIP, or your own.",
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")
    corpus: CorpusSection = Field(
        description="Where entities come from; at least labels: FILE or captions: FILE."
    )
    labels: dict[str, LabelsSection] = Field(description="Sets of classes by name: {train: {file: FILE}}.")
    alignments: AlignmentsSection = Field(description="Which videos, at least videos: FOLDER or MANIFEST.")
    test_alignments: dict[str, AlignmentsSection] = Field(
        default_factory=dict,
        description="Other videos or views to score on, by name; what is not said is as in alignments.",
    )
    adapters: dict[str, AdapterSection] = Field(default_factory=dict)
    evaluations: list[EvaluationSection] = Field(default_factory=list)
    protocols: list[ProtocolSection] = Field(default_factory=list)
    ablation: AblationSection | None = None
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
    from pipelines import checks

    raw = inherited(raw)
    try:
        config = PipelineConfig.model_validate(raw)
    except ValidationError as error:
        refuse(name, [*map(_problem, error.errors()), *checks.adapter_problems(raw.get("adapters"))])
    resolved = resolve(config, base)
    refuse(name, [*checks.contradictions(config), *(checks.missing_inputs(resolved) if inputs else [])])
    return resolved


def inherited(raw: dict[str, Any]) -> dict[str, Any]:
    """Plain values with every test alignment spelled out: what it does not say is as in ``alignments``."""
    base, tests = raw.get("alignments"), raw.get("test_alignments")
    if not isinstance(base, dict) or not isinstance(tests, dict):
        return raw
    return raw | {"test_alignments": {name: _inherit(base, own) for name, own in tests.items()}}


def _inherit(base: dict[str, Any], own: Any) -> Any:
    if not isinstance(own, dict):
        return base if own is None else own
    apart = {*(OF_VIDEOS if "videos" in own else ()), *(OF_SAMPLING if "sampling" in own else ())}
    return {key: value for key, value in base.items() if key not in apart} | own


def refuse(name: str, problems: list[str]) -> None:
    """Raise one PipelineError that lists all problems, if there are any."""
    if problems:
        raise PipelineError(f"{name} has {len(problems)} problem(s):\n  " + "\n  ".join(problems))


def inputs_only(config: PipelineConfig) -> dict[str, Any]:
    """Plain values of a config without adapters and all that is made with them."""
    raw = config.model_dump(mode="json", exclude_none=True)
    made = ("adapters", "test_alignments", "evaluations", "protocols", "ablation", "report")
    return {key: value for key, value in raw.items() if key not in made}


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
    labels = {name: _with_prompts(section, base) for name, section in resolved.labels.items()}
    return resolved.model_copy(update={"labels": labels})


def _with_prompts(section: LabelsSection, base: Path) -> LabelsSection:
    """The section with its file of prompts, if it names one, made absolute."""
    if not isinstance(section.templates, str) or not (base / section.templates).is_file():
        return section
    return section.model_copy(update={"templates": str(_absolute(base, Path(section.templates)))})


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
            changed[name] = {
                key: _resolve_paths(item, base) if isinstance(item, Section) else item
                for key, item in value.items()
            }
    return section.model_copy(update=changed)


def _absolute(base: Path, path: Path) -> Path:
    return (base / path.expanduser()).resolve()


def _keys(section: type[BaseModel]) -> str:
    return ", ".join(section.model_fields)


def _problem(item: Any) -> str:
    """One line for one of pydantic's errors: where, what, and the nearest known key."""
    where = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        word, section = str(item["loc"][-1]), _section_at(item["loc"][:-1])
        return f"{where}: {_elsewhere(word, section) or _unknown(word, section.model_fields)}"
    if item["type"] == "missing":
        return f"{where}: missing; {_section_at(item['loc'][:-1]).model_fields[item['loc'][-1]].description}"
    return f"{where}: {item['msg']}, got {item['input']!r}"


def _unknown(word: str, known: Iterable[str]) -> str:
    return f"unknown key{did_you_mean(word, known) or '; known are ' + ', '.join(known)}"


def _elsewhere(word: str, section: type[Section]) -> str:
    """Where a key belongs that stands in the wrong section."""
    if section is not PipelineConfig and word in PipelineConfig.model_fields:
        return f"unknown key; {word} belongs at the top level of the file"
    homes = [name for name, home in SECTIONS.items() if word in home.model_fields]
    if section is PipelineConfig and homes:
        return f"unknown key; {word} belongs under {' or '.join(homes)}"
    return ""


SECTIONS: dict[str, type[Section]] = {
    "corpus": CorpusSection,
    "labels": LabelsSection,
    "alignments": AlignmentsSection,
    "test_alignments": AlignmentsSection,
    "adapters": AdapterSection,
    "evaluations": EvaluationSection,
    "protocols": ProtocolSection,
    "ablation": AblationSection,
    "report": ReportSection,
}


def _section_at(location: tuple[Any, ...]) -> type[Section]:
    if location[-1:] == ("slurm",):
        return SlurmSection
    return SECTIONS[location[0]] if location else PipelineConfig
