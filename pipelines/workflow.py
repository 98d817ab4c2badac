"""``alt run``: the stages in order, each skipped when nothing it depends on has changed."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pipelines.config import (
    AdapterSection,
    AlignmentsSection,
    EvaluationSection,
    LabelsSection,
    PipelineConfig,
)
from pipelines.errors import PipelineError
from pipelines.ledger import LEDGER, Ledger, file_sha256, folder_listing, sha256_of, write_text

Say = Callable[[str], None]
Tables = Callable[[PipelineConfig, "Layout"], list[Any]]
CONFIG_FILE = "pipeline.yaml"
OWN = frozenset({"corpus", "labels", "alignments", "runs", "report.html", LEDGER, "videos", "nltk_data"})


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
        """The Alignments artifact."""
        return self.root / "alignments"

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
    """

    name: str
    key: Callable[[], Any]
    output: Callable[[], str | None]
    work: Callable[[], str]


@dataclass
class RunReport:
    """What ``alt run`` did, step by step, and the scores of all evaluations."""

    out: Path
    steps: dict[str, str] = field(default_factory=dict)
    scores: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    failed_videos: int = 0


def run_pipeline(
    config: PipelineConfig,
    say: Say,
    force: bool = False,
    dry_run: bool = False,
    tables: Tables | None = None,
) -> RunReport:
    """Run all stages of a config.

    A step whose options, inputs and package version are those of its last success, and whose result is unchanged, is
    skipped. ``dry_run`` only says what would run. ``tables`` makes the report's result tables in place of the plain
    one.
    """
    layout, report = Layout(config.out), RunReport(config.out)
    plan, ledger = steps(config, layout, force, tables), Ledger(config.out)
    if dry_run:
        _preview(plan, ledger, report, say, force)
        return report
    refuse_foreign(config.out, OWN)
    _write_config(config, layout)
    for step in plan:
        current = not force and _is_current(ledger, step)
        said = "up to date" if current else _run_step(step, ledger, say)
        report.steps[step.name] = "up to date" if current else "done"
        say(f"{step.name}: {said}")
    from aligner.artifact import all_failures

    report.scores = read_scores(config, layout)
    report.failed_videos = len(all_failures(layout.alignments))
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
        stale = stale or not _is_current(ledger, step)
        report.steps[step.name] = "would run" if stale else "up to date"
        say(f"{step.name}: {report.steps[step.name]}")


def _run_step(step: Step, ledger: Ledger, say: Say) -> str:
    """Do the work and record it; returns what it said."""
    say(f"{step.name} ...")
    # Inputs are looked at before the work: what changes meanwhile was not used, and must count as a change.
    key = sha256_of(step.key())
    said = step.work()
    output = step.output()
    if output is None:
        raise RuntimeError(f"{step.name} ended without its result")
    ledger.record(step.name, key, output)
    return said


def _is_current(ledger: Ledger, step: Step) -> bool:
    output = step.output()
    return output is not None and ledger.done(step.name, sha256_of(step.key()), output)


def steps(config: PipelineConfig, layout: Layout, force: bool, tables: Tables | None) -> Iterator[Step]:
    """All steps of a config, in order."""
    yield _corpus_step(config, layout)
    for name, labels in config.labels.items():
        yield _labels_step(config, layout, name, labels)
    yield _alignments_step(config, layout, force)
    for name, adapter in config.adapters.items():
        yield _train_step(config, layout, name, adapter, force)
        for evaluation in config.evaluations:
            if evaluation.adapters is None or name in evaluation.adapters:
                yield _evaluation_step(config, layout, name, evaluation)
    if config.report:
        yield _report_step(config, layout, tables)


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

    return Step("corpus", key, lambda: _fingerprint(layout.corpus), work)


def _labels_step(config: PipelineConfig, layout: Layout, name: str, section: LabelsSection) -> Step:
    def key() -> Any:
        from corpus_builder import __version__

        return [__version__, section.model_dump(mode="json"), file_sha256(section.file), _model_key(config)]

    def work() -> str:
        from pipelines import stages

        return stages.build_labels(config, section, layout.labels(name))

    return Step(f"labels/{name}", key, lambda: _fingerprint(layout.labels(name)), work)


def _alignments_step(config: PipelineConfig, layout: Layout, force: bool) -> Step:
    section = config.alignments

    def key() -> Any:
        from aligner import __version__

        return [
            __version__,
            section.model_dump(mode="json", exclude={"decode_workers", "processes"}),
            _videos_key(section),
            _fingerprint(layout.corpus),
            _model_key(config),
        ]

    def work() -> str:
        from pipelines import stages

        return stages.align(config, layout, force=force)

    return Step("alignments", key, lambda: _aligned(layout), work)


def _videos_key(section: AlignmentsSection) -> list[Any]:
    """Names, labels, splits, sizes and times of the planned videos: hashing their bytes would cost too much."""
    from aligner.plan import make_plan

    plan = make_plan(section.videos, section.videos_per_shard, section.videos_root)
    return [[item._asdict(), _changed_at(plan.path(item))] for item in plan.items]


def _changed_at(path: Any) -> int | None:
    file = path if isinstance(path, Path) else path.file
    return file.stat().st_mtime_ns if file is not None and file.exists() else None


def _aligned(layout: Layout) -> str | None:
    from aligner.artifact import output_fingerprint

    return output_fingerprint(layout.alignments)


def _train_step(
    config: PipelineConfig, layout: Layout, name: str, section: AdapterSection, force: bool
) -> Step:
    def key() -> Any:
        from adapter import __version__

        inputs = [_aligned(layout), _fingerprint(layout.labels(section.labels))]
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
            _aligned(layout),
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

    return Step(f"evaluate/{name}/{section.name}", key, output, work)


def _report_step(config: PipelineConfig, layout: Layout, tables: Tables | None) -> Step:
    section = config.report
    assert section is not None

    def key() -> Any:
        from adapter.artifact import evaluation_name
        from pipelines import __version__

        scores = [file_sha256(path) for path in sorted(layout.root.glob("runs/*/" + evaluation_name("*")))]
        runs = [_fingerprint(layout.run(name)) for name in config.adapters]
        return [
            __version__,
            section.model_dump(mode="json"),
            _aligned(layout),
            runs,
            scores,
        ]

    def work() -> str:
        from pipelines import stages

        return stages.report(config, layout, (tables or stages.score_tables)(config, layout))

    def output() -> str | None:
        return file_sha256(layout.report) if layout.report.is_file() else None

    return Step("report", key, output, work)


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
