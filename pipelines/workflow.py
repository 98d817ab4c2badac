"""``alt run``: the stages in order, each skipped when nothing it depends on has changed."""

import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from pipelines.checks import in_config_words
from pipelines.config import (
    OF_VIDEOS,
    SECTIONS,
    AblationSection,
    AdapterSection,
    AlignmentsSection,
    EvaluationSection,
    LabelsSection,
    PipelineConfig,
    ProtocolSection,
)
from pipelines.errors import USER_ERRORS, PipelineError
from pipelines.ledger import LEDGER, Ledger, file_sha256, folder_listing, sha256_of, write_text

Say = Callable[[str], None]
Tables = Callable[[PipelineConfig, "Layout"], list[Any]]
CONFIG_FILE = "pipeline.yaml"
OWN = frozenset(
    {"corpus", "labels", "alignments", "runs", "report.html", LEDGER, "videos", "nltk_data"}
    | {"test-alignments", "manifests", "protocols", "ablation"}
)
# What an alignments section says that changes none of its bytes.
ANYWHERE = {"decode_workers", "processes", "launcher", "ray_address", "ray_cpus", "slurm"}
# Files that one thread asks for in a row.
STAT_CHUNK = 500


@dataclass(frozen=True)
class Layout:
    """Every path of a run's folder."""

    root: Path

    @property
    def corpus(self) -> Path:
        """The Corpus artifact."""
        return self.root / "corpus"

    @property
    def alignments(self) -> Path:
        """The Alignments artifact that adapters are trained on."""
        return self.root / "alignments"

    def aligned(self, name: str | None) -> Path:
        """An Alignments artifact: those to test on of a name, else those trained on."""
        return self.root / "test-alignments" / name if name else self.alignments

    def manifest(self, name: str | None) -> Path:
        """The chosen videos of alignments, as a manifest."""
        return self.root / "manifests" / f"{f'test-{name}' if name else 'alignments'}.csv"

    def protocol(self, name: str) -> Path:
        """The result of a protocol."""
        return self.root / "protocols" / f"{name}.json"

    @property
    def ablation(self) -> Path:
        """Table and runs of the ablation."""
        return self.root / "ablation"

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.root / "report.html"

    @property
    def config(self) -> Path:
        """The resolved config, from which the run can be repeated."""
        return self.root / CONFIG_FILE

    def labels(self, name: str) -> Path:
        """A Labels artifact."""
        return self.root / "labels" / name

    def run(self, adapter: str) -> Path:
        """A Run artifact."""
        return self.root / "runs" / adapter


@dataclass(frozen=True)
class SharedLayout(Layout):
    """The folder of one run that was given away (``pipelines/parcel.py``): its files are beside config and corpus."""

    def run(self, adapter: str) -> Path:
        """The Run artifact, whatever its name was."""
        return self.root


def layout_of(root: Path) -> Layout:
    """The layout of a folder with a config in it."""
    return SharedLayout(root) if (root / "manifest.json").is_file() else Layout(root)


@dataclass(frozen=True)
class Step:
    """One skippable piece of work.

    ``key`` says everything its result depends on (read when its turn comes, so that it can look at what earlier steps
    made), ``output`` identifies what lies on disk (None when it is not there), ``work`` does it and returns a line.
    ``section`` names the part of the config whose keys its stage's options are.
    """

    name: str
    key: Callable[[], Any]
    output: Callable[[], str | None]
    work: Callable[[], str]
    section: str = ""

    @property
    def options(self) -> Iterable[str]:
        """Keys of the config that its stage knows as options."""
        return SECTIONS[self.section].model_fields if self.section else ()


@dataclass
class RunReport:
    """What ``alt run`` did, step by step, and the scores of all evaluations."""

    out: Path
    steps: dict[str, str] = field(default_factory=dict)
    scores: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    failed_videos: int = 0
    missing_videos: dict[str, int] = field(default_factory=dict)
    protocols: dict[str, dict[str, Any]] = field(default_factory=dict)
    price: dict[str, Any] = field(default_factory=dict)


def run_pipeline(
    config: PipelineConfig,
    say: Say,
    force: bool = False,
    dry_run: bool = False,
    tables: Tables | None = None,
    probe: int = 0,
) -> RunReport:
    """Run all stages of a config.

    A step whose options, inputs and package version are those of its last success, and whose result is unchanged, is
    skipped. ``dry_run`` only says what would run and, by a ``probe`` of some videos, what it would cost. ``tables``
    makes the report's result tables in place of the plain ones.
    """
    layout, report = Layout(config.out), RunReport(config.out)
    plan, ledger = steps(config, layout, force, tables), Ledger(config.out)
    if dry_run:
        _preview(plan, ledger, report, say, force)
        if report.steps["corpus"] == "would run":
            _check_corpus(config)
        if probe:
            from pipelines.price import price

            report.price = price(config, layout, report.steps, probe, say)
        return report
    refuse_foreign(config.out, OWN)
    _write_config(config, layout)
    for step in plan:
        # Inputs are looked at before the work: what changes meanwhile was not used, and must count as a change.
        key = sha256_of(step.key())
        current = not force and _is_current(ledger, step, key)
        said = "up to date" if current else _run_step(step, key, ledger, say)
        report.steps[step.name] = "up to date" if current else "done"
        say(f"{step.name}: {said}")
    from aligner.artifact import all_failures

    report.scores = read_scores(config, layout)
    report.protocols = {item.name: read_protocol(layout, item.name)["table"] for item in config.protocols}
    for name, section in all_alignments(config):
        report.failed_videos += len(all_failures(layout.aligned(name)))
        if section.chooses:
            report.missing_videos[name or "alignments"] = len(read_missing(layout.manifest(name)))
    return report


def refuse_foreign(folder: Path, own: frozenset[str]) -> None:
    """Refuse to write into a folder that holds other things than a run's, unless an earlier run's config is in it.

    Raises:
        PipelineError: naming some of the other things.
    """
    if not folder.is_dir() or (folder / CONFIG_FILE).is_file():
        return
    others = sorted(path.name for path in folder.iterdir() if path.name not in own)
    if others:
        raise PipelineError(
            f"{folder} holds other things ({', '.join(others[:3])}); give a new or empty folder, which is then ours"
        )


def _preview(plan: Iterable[Step], ledger: Ledger, report: RunReport, say: Say, force: bool) -> None:
    """Say what would run; whatever comes after such a step counts as stale, since its inputs are not there yet."""
    stale = force
    for step in plan:
        stale = stale or not _is_current(ledger, step, sha256_of(step.key()))
        report.steps[step.name] = "would run" if stale else "up to date"
        say(f"{step.name}: {report.steps[step.name]}")


def _check_corpus(config: PipelineConfig) -> None:
    """Refuse a corpus for which WordNet or a tagger's data is missing, before anybody waits for it."""
    from corpus_builder.config import CorpusError
    from corpus_builder.taggers import check_data

    section = config.corpus
    try:
        check_data(section.taggers, section.spacy_model, config.nltk_data)
    except CorpusError as error:
        raise PipelineError(f"corpus: {in_config_words(str(error), type(section).model_fields)}") from error


def _run_step(step: Step, key: str, ledger: Ledger, say: Say) -> str:
    """Do the work and record it; returns what it said. A stage's error comes in the config's words."""
    say(f"{step.name} ...")
    try:
        said = step.work()
    except USER_ERRORS as error:
        if hasattr(error, "exit_code"):
            raise  # stopped, not wrong
        raise PipelineError(f"{step.name}: {in_config_words(str(error), step.options)}") from error
    output = step.output()
    if output is None:
        raise RuntimeError(f"{step.name} ended without its result")
    ledger.record(step.name, key, output)
    return said


def _is_current(ledger: Ledger, step: Step, key: str) -> bool:
    output = step.output()
    return output is not None and ledger.done(step.name, key, output)


def steps(config: PipelineConfig, layout: Layout, force: bool, tables: Tables | None) -> Iterator[Step]:
    """All steps of a config, in order."""
    yield _corpus_step(config, layout)
    for name, labels in config.labels.items():
        yield _labels_step(config, layout, name, labels)
    for place, part in all_alignments(config):
        if part.chooses:
            yield _manifest_step(config, layout, place, part)
        yield _alignments_step(config, layout, place, part, force)
    for name, adapter in config.adapters.items():
        yield _train_step(config, layout, name, adapter, force)
        for evaluation in config.evaluations:
            if evaluation.adapters is None or name in evaluation.adapters:
                yield _evaluation_step(config, layout, name, evaluation)
    for protocol in config.protocols:
        yield _protocol_step(config, layout, protocol)
    if config.ablation:
        yield _ablation_step(config, layout, config.ablation)
    if config.report:
        yield _report_step(config, layout, tables)


def all_alignments(config: PipelineConfig) -> list[tuple[str | None, AlignmentsSection]]:
    """What is aligned: None and the videos that are trained on, then those to test on by name."""
    return [(None, config.alignments), *config.test_alignments.items()]


def videos_of(layout: Layout, name: str | None, section: AlignmentsSection) -> tuple[Path, Path | None]:
    """What is aligned, as the aligner takes it: a folder or a manifest, and the folder that ids are relative to."""
    return (layout.manifest(name), section.root) if section.chooses else (section.videos, section.videos_root)


def _fingerprint(folder: Path) -> str | None:
    """Fingerprint in an artifact's manifest, or None where there is none to be read: the step then runs again."""
    try:
        return str(json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["fingerprint"])
    except (OSError, ValueError, KeyError):
        return None


def _model_key(config: PipelineConfig) -> list[Any]:
    """Identity of the model without loading it: names, and the hash of a local weights file."""
    local = Path(config.model.partition(":")[2]) / "open_clip_model.safetensors"
    weights = file_sha256(local) if config.model.startswith("local-dir:") else None
    if config.pretrained and Path(config.pretrained).is_file():
        weights = file_sha256(Path(config.pretrained))
    return [config.model, config.pretrained, weights]


def _corpus_step(config: PipelineConfig, layout: Layout) -> Step:
    section = config.corpus

    def key() -> Any:
        from corpus_builder import __version__

        inputs = [file_sha256(path) for path in section.files().values()]
        nltk_data = folder_listing(config.nltk_data) if config.nltk_data else None
        settings = section.model_dump(mode="json", exclude={"processes"})
        return [__version__, settings, inputs, _model_key(config), nltk_data]

    def work() -> str:
        from pipelines import stages

        return stages.build_corpus(config, layout.corpus)

    return Step("corpus", key, lambda: _fingerprint(layout.corpus), work, "corpus")


def _labels_step(config: PipelineConfig, layout: Layout, name: str, section: LabelsSection) -> Step:
    def key() -> Any:
        from corpus_builder import __version__

        # The prompts themselves: a file of them may change, and a set's name may come to mean others.
        told = section.model_dump(mode="json") | {"templates": section.prompts()}
        return [__version__, told, file_sha256(section.file), _model_key(config)]

    def work() -> str:
        from pipelines import stages

        return stages.build_labels(config, section, layout.labels(name))

    return Step(f"labels/{name}", key, lambda: _fingerprint(layout.labels(name)), work, "labels")


def _manifest_step(
    config: PipelineConfig, layout: Layout, name: str | None, section: AlignmentsSection
) -> Step:
    files = (layout.manifest(name), missing_file(layout.manifest(name)))

    def key() -> Any:
        from adapter import __version__

        lists = folder_listing(config.lists) if section.protocols and config.lists else None
        videos = folder_listing(section.videos) if section.videos.is_dir() else file_sha256(section.videos)
        return [__version__, section.model_dump(mode="json", include={*OF_VIDEOS}), lists, videos]

    def output() -> str | None:
        whole = all(file.is_file() for file in files)
        return sha256_of([file_sha256(file) for file in files]) if whole else None

    def work() -> str:
        from pipelines import stages

        return stages.choose_videos(config, layout, name, section)

    return Step(f"manifest/{name or 'alignments'}", key, output, work, "alignments")


def _alignments_step(
    config: PipelineConfig, layout: Layout, name: str | None, section: AlignmentsSection, force: bool
) -> Step:
    def key() -> Any:
        from aligner import __version__

        return [
            __version__,
            section.model_dump(mode="json", exclude=ANYWHERE),
            _videos_key(section, *videos_of(layout, name, section)),
            _fingerprint(layout.corpus),
            _model_key(config),
        ]

    def work() -> str:
        from pipelines import stages

        return stages.align(config, layout, force=force, name=name)

    title = f"test-alignments/{name}" if name else "alignments"
    return Step(title, key, lambda: aligned_fingerprint(layout.aligned(name)), work, "alignments")


def _videos_key(section: AlignmentsSection, videos: Path, root: Path | None) -> Any:
    """Names, labels, splits, sizes and times of the planned videos: hashing their bytes would cost too much."""
    from aligner.plan import STAT_THREADS, make_plan

    if section.chooses and not videos.is_file():
        return "not chosen yet"
    plan = make_plan(videos, section.videos_per_shard, root)
    paths = [plan.path(item) for item in plan.items]
    chunks = [paths[start : start + STAT_CHUNK] for start in range(0, len(paths), STAT_CHUNK)]
    with ThreadPoolExecutor(STAT_THREADS) as pool:
        times = [
            time for chunk in pool.map(lambda chunk: [*map(_changed_at, chunk)], chunks) for time in chunk
        ]
    return [[item._asdict(), time] for item, time in zip(plan.items, times, strict=True)]


def _changed_at(path: Any) -> int | None:
    file = path if isinstance(path, Path) else path.file
    try:
        return file.stat().st_mtime_ns if file is not None else None
    except OSError:
        return None


def aligned_fingerprint(folder: Path) -> str | None:
    """Identity of finished alignments, None of others; markers are read again only when the folder has changed."""
    try:
        # A new, moved or removed file changes the folder's own time.
        changed = (folder.stat().st_mtime_ns, (folder / "manifest.json").stat().st_mtime_ns)
    except OSError:
        return None
    return _fingerprint_of_rows(folder, changed)


@lru_cache(maxsize=64)
def _fingerprint_of_rows(folder: Path, changed: tuple[int, int]) -> str | None:
    from aligner.artifact import output_fingerprint

    return output_fingerprint(folder)


def _train_step(
    config: PipelineConfig, layout: Layout, name: str, section: AdapterSection, force: bool
) -> Step:
    def key() -> Any:
        from adapter import __version__

        inputs = [aligned_fingerprint(layout.alignments), _fingerprint(layout.labels(section.labels))]
        return [__version__, section.options(), inputs]

    def work() -> str:
        from pipelines import stages

        return stages.train(config, layout, name, section, force)

    return Step(f"train/{name}", key, lambda: _fingerprint(layout.run(name)), work)


def _evaluation_step(config: PipelineConfig, layout: Layout, name: str, section: EvaluationSection) -> Step:
    from adapter.artifact import evaluation_name, predictions_name

    run = layout.run(name)
    files = (run / evaluation_name(section.name), run / predictions_name(section.name))

    def key() -> Any:
        from adapter import __version__

        inputs = [
            aligned_fingerprint(layout.aligned(section.alignments)),
            _fingerprint(layout.labels(section.labels)),
            _fingerprint(run),
        ]
        return [__version__, section.model_dump(mode="json", exclude={"adapters"}), inputs]

    def output() -> str | None:
        return (
            sha256_of([file_sha256(file) for file in files])
            if all(file.is_file() for file in files)
            else None
        )

    def work() -> str:
        from pipelines import stages

        return stages.evaluate(config, layout, name, section)

    return Step(f"evaluate/{name}/{section.name}", key, output, work, "evaluations")


def _protocol_step(config: PipelineConfig, layout: Layout, section: ProtocolSection) -> Step:
    file = layout.protocol(section.name)

    def key() -> Any:
        from adapter import __version__
        from adapter.recipes import find

        inputs = [
            aligned_fingerprint(layout.aligned(section.alignments)),
            _fingerprint(layout.labels(section.labels)),
            *(_fingerprint(layout.run(name)) for name in section.runs),
            folder_listing(config.lists) if config.lists else None,
        ]
        return [__version__, find(section.published).version, section.model_dump(mode="json"), inputs]

    def work() -> str:
        from pipelines import stages

        return stages.run_protocol(config, layout, section)

    return Step(f"protocol/{section.name}", key, lambda: _file_or_none(file), work, "protocols")


def _ablation_step(config: PipelineConfig, layout: Layout, section: AblationSection) -> Step:
    from adapter.artifact import ABLATION

    file = layout.ablation / ABLATION

    def key() -> Any:
        from adapter import __version__

        sets = [name for name in (section.labels, section.unseen) if name is not None]
        inputs = [
            aligned_fingerprint(layout.alignments),
            *(_fingerprint(layout.labels(name)) for name in sets),
        ]
        return [__version__, section.model_dump(mode="json"), inputs]

    def work() -> str:
        from pipelines import stages

        return stages.ablate(config, layout, section)

    return Step("ablation", key, lambda: _file_or_none(file), work, "ablation")


def _file_or_none(file: Path) -> str | None:
    return file_sha256(file) if file.is_file() else None


def _report_step(config: PipelineConfig, layout: Layout, tables: Tables | None) -> Step:
    section = config.report
    assert section is not None

    def key() -> Any:
        from adapter.artifact import evaluation_name
        from pipelines import __version__

        scores = [file_sha256(path) for path in sorted(layout.root.glob("runs/*/" + evaluation_name("*")))]
        runs = [_fingerprint(layout.run(name)) for name in config.adapters]
        results = [_file_or_none(layout.protocol(item.name)) for item in config.protocols]
        return [
            __version__,
            section.model_dump(mode="json"),
            aligned_fingerprint(layout.alignments),
            runs,
            scores,
            results,
        ]

    def work() -> str:
        from pipelines import stages

        return stages.report(config, layout, (tables or stages.score_tables)(config, layout))

    return Step("report", key, lambda: _file_or_none(layout.report), work, "report")


def missing_file(manifest: Path) -> Path:
    """Where the names of listed videos that are not there lie, beside the manifest of those that are."""
    return manifest.with_suffix(".missing.txt")


def read_missing(manifest: Path) -> list[str]:
    """Listed videos that were not there when the manifest was written."""
    file = missing_file(manifest)
    return file.read_text(encoding="utf-8").splitlines() if file.is_file() else []


def read_protocol(layout: Layout, name: str) -> dict[str, Any]:
    """The stored result of a protocol."""
    found: dict[str, Any] = json.loads(layout.protocol(name).read_text(encoding="utf-8"))
    return found


def read_scores(config: PipelineConfig, layout: Layout) -> dict[str, dict[str, dict[str, Any]]]:
    """Results by adapter and evaluation, as ``adapter eval`` stored them."""
    from adapter.artifact import evaluation_name

    scores: dict[str, dict[str, dict[str, Any]]] = {}
    for name in config.adapters:
        for evaluation in config.evaluations:
            file = layout.run(name) / evaluation_name(evaluation.name)
            if file.is_file() and (evaluation.adapters is None or name in evaluation.adapters):
                scores.setdefault(name, {})[evaluation.name] = json.loads(file.read_text(encoding="utf-8"))
    return scores


def _write_config(config: PipelineConfig, layout: Layout) -> None:
    values = config.model_dump(mode="json", exclude_none=True)
    write_text(layout.config, yaml.safe_dump(values, sort_keys=False))
