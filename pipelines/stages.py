"""The work of each step of ``alt run``: one call into a stage, and the sentence that says what came of it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aligner.sources import split_part
from pipelines.config import AdapterSection, EvaluationSection, LabelsSection, PipelineConfig, ReportSection
from pipelines.errors import PipelineError
from pipelines.windows import Action
from pipelines.workflow import Layout, read_scores


def build_corpus(config: PipelineConfig, out: Path) -> str:
    """Mine and embed the entities."""
    from corpus_builder.build import Inputs
    from corpus_builder.build import build_corpus as build

    section = config.corpus
    inputs = Inputs(
        labels=section.labels,
        captions=section.captions,
        expansions=tuple(section.expansions),
        descriptions=section.descriptions,
        label_column=section.label_column,
        caption_column=section.caption_column,
        nltk_data=config.nltk_data,
        allow=section.allow,
        deny=section.deny,
    )
    report = build(
        inputs,
        section.settings(),
        config.model,
        config.pretrained,
        out,
        device=config.device,
        processes=section.processes,
        force=True,
    )
    counts = report.manifest["counts"]
    dropped = ", ".join(f"{reason} {n}" for reason, n in counts["dropped"].items()) or "none"
    return f"{report.manifest['entities']} entities from {counts['mentions']} mentions (dropped: {dropped})"


def build_labels(config: PipelineConfig, section: LabelsSection, out: Path) -> str:
    """Embed a set of class names."""
    from corpus_builder.build import build_labels as build

    report = build(
        section.file,
        config.model,
        config.pretrained,
        out,
        label_column=section.label_column,
        templates=section.templates or (),
        device=config.device,
        force=True,
    )
    return f"{report.manifest['counts']['labels']} classes"


def align(config: PipelineConfig, layout: Layout, corpus: Path | None = None, force: bool = False) -> str:
    """Align every video; an unfinished folder is continued, one made with other settings or videos begun anew.

    ``corpus`` is another corpus than the layout's own.
    """
    from aligner import run
    from aligner.config import AlignConfig, ChangedSettings
    from aligner.progress import make_progress

    section = config.alignments
    settings = AlignConfig(
        videos=section.videos,
        videos_root=section.videos_root,
        corpus=corpus or layout.corpus,
        model=config.model,
        pretrained=config.pretrained,
        frames=section.frames,
        **section.views(),
        merge=section.merge,
        top_k=section.top_k,
        proportional_attention=section.proportional_attention,
        dense=section.dense,
        precision=section.precision,
        store=section.store,
        videos_per_shard=section.videos_per_shard,
        decode_workers=section.decode_workers,
        processes=section.processes,
        device=config.device,
        out=layout.alignments,
        allow_changed_videos=True,
        force=force,
    )
    try:
        report = run.run(settings, lambda total: make_progress(total, quiet=False))
    except ChangedSettings:
        settings = replace(settings, force=True)
        report = run.run(settings, lambda total: make_progress(total, quiet=False))
    if not report.complete:
        raise PipelineError(f"alignments: {report.sentence()}")
    return "; ".join([report.sentence(), *report.warnings])


def train(config: PipelineConfig, layout: Layout, name: str, section: AdapterSection, force: bool) -> str:
    """Train one adapter; a training that was stopped goes on unless forced to start over."""
    from adapter.config import make_settings
    from adapter.train import train as train_adapter

    options = {"device": config.device, **section.options()}
    report = train_adapter(
        layout.alignments,
        layout.labels(section.labels),
        layout.run(name),
        make_settings(options),
        force,
        resume="restart",
    )
    chosen = (
        "no validation videos" if report.best_val_top1 is None else f"validation {report.best_val_top1:.1%}"
    )
    said = [
        f"{report.parameters / 1e6:.2f} M parameters, best epoch {report.best_epoch}, {chosen}, {report.seconds:.0f} s"
    ]
    used = report.counts["train"]
    if used["used"] < used["planned"]:
        said.append(f"trained on {used['used']} of {used['planned']} videos")
    if report.counts["unknown_labels"]:
        said.append(f"labels that the set lacks: {', '.join(report.counts['unknown_labels'])}")
    return "; ".join(said)


def evaluate(config: PipelineConfig, layout: Layout, name: str, section: EvaluationSection) -> str:
    """Score one adapter on one split."""
    from adapter.evaluate import evaluate as evaluate_adapter

    result = evaluate_adapter(
        layout.run(name),
        layout.alignments,
        layout.labels(section.labels),
        section.split,
        section.name,
        section.candidates,
        section.reverse_time,
        section.blend,
        device=config.device,
    )
    said = f"top-1 {result['top1']:.1%} (n = {result['n']})"
    if result["n_trained_on"]:
        said += f"; warning: {result['n_trained_on']} of these videos trained the model or chose its epoch"
    return said


def report(
    config: PipelineConfig,
    layout: Layout,
    tables: list[Any],
    section: ReportSection | None = None,
    out: Path | None = None,
) -> str:
    """Explain the shown predictions of an evaluation and draw the report, result tables first.

    ``section`` in place of the config's own, ``out`` in place of ``report.html``.
    """
    from adapter.artifact import predictions_name

    section = section or config.report
    assert section is not None
    evaluation = next(item for item in config.evaluations if item.name == section.evaluation)
    run = layout.run(section.adapter)
    drawn = Drawn(
        layout.alignments,
        run,
        layout.labels(evaluation.labels),
        run / predictions_name(section.evaluation),
        config.alignments.videos_root or _videos_root(config.alignments.videos),
        out or layout.report,
        f"alt run {layout.config.name}",
        layout.config.read_text(encoding="utf-8"),
    )
    title = f"{config.out.name}: {section.adapter} on {section.evaluation}"
    return draw_report(drawn, title, tables, section.videos, section.max_mb, config.device)


@dataclass(frozen=True)
class Drawn:
    """What a report is drawn from and where to: artifacts, predictions, videos; command and config to repeat it.

    ``actions`` is the timeline that the predictions of windows make.
    """

    alignments: Path
    run: Path
    labels: Path
    predictions: Path
    videos_root: Path
    out: Path
    command: str
    config: str = ""
    actions: Sequence[Action] | None = None


def draw_report(
    drawn: Drawn,
    title: str,
    tables: list[Any],
    videos: int = 24,
    max_mb: float = 20.0,
    device: str = "auto",
    more_notices: Sequence[str] = (),
) -> str:
    """Explain the predictions to be shown, at most so many ``videos``, and write the report; returns a sentence.

    The explanations lie beside the predictions.
    """
    from adapter.explain import explain, explain_to_file
    from aligner.artifact import read_manifest
    from pipelines import report as pages
    from pipelines.facts import facts, notices

    predictions, alignments = drawn.predictions, drawn.alignments
    shown = pages.choose_videos(predictions, videos)
    if drawn.actions is not None:
        shown = sorted(shown, key=_by_time)
    explanations = predictions.with_name(predictions.stem.replace("predictions", "explanations") + ".json")
    explain_to_file(explanations, explain(drawn.run, alignments, drawn.labels, shown, device=device))
    root = drawn.videos_root
    cards = pages.collect(
        alignments, predictions, root, explanations=explanations, video_ids=shown, limit=videos
    )
    manifest = read_manifest(alignments)
    out = pages.write_report(
        drawn.out,
        title=title,
        cards=cards,
        tables=tables,
        facts=facts(manifest, alignments, drawn.run, drawn.labels, drawn.command),
        entities=pages.load_entities(alignments),
        notices=[*more_notices, *notices(manifest)],
        max_bytes=round(max_mb * 1e6),
        mistakes=pages.find_mistakes(alignments, predictions, root),
        lead=_lead(drawn.run),
        config=drawn.config,
        actions=drawn.actions or (),
    )
    return f"{out.name}, {out.stat().st_size / 1e6:.1f} MB, {len(cards)} videos"


def _lead(run: Path) -> str:
    """What the reader is told first: how a prediction of this run comes about."""
    from adapter.artifact import open_run
    from pipelines import report as pages

    return pages.LEAD if open_run(run).config.get("model") == "alt" else pages.LEAD_WHOLE_FRAMES


def _by_time(video_id: str) -> tuple[str, tuple[float, float]]:
    name, part = split_part(video_id)
    return name, part or (0.0, 0.0)


def _videos_root(videos: Path) -> Path:
    return videos if videos.is_dir() else videos.parent


def score_tables(config: PipelineConfig, layout: Layout) -> list[Any]:
    """Top-1 of every adapter in every evaluation."""
    from pipelines.report import Table

    scores = read_scores(config, layout)
    names = [item.name for item in config.evaluations]
    rows: list[list[str | float | None]] = [
        [adapter, *(_percent(found.get(name)) for name in names)] for adapter, found in scores.items()
    ]
    sizes = {name: result["n"] for found in scores.values() for name, result in found.items()}
    note = (
        "Top-1 in %. Videos: " + ", ".join(f"{name} {sizes[name]}" for name in names if name in sizes) + "."
    )
    blended = [item.name for item in config.evaluations if item.blend]
    note += f" Blended with zero-shot CLIP: {', '.join(blended)}." if blended else ""
    return [Table("Results", ["model", *names], rows, note)]


def _percent(result: dict[str, Any] | None) -> float | None:
    return None if result is None else round(100 * result["top1"], 1)
