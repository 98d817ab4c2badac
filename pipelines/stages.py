"""The work of each step of ``alt run``: one call into a stage, and the sentence that says what came of it."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from aligner.sources import split_part
from pipelines.config import (
    AblationSection,
    AdapterSection,
    AlignmentsSection,
    EvaluationSection,
    LabelsSection,
    PipelineConfig,
    ProtocolSection,
    ReportSection,
    SlurmSection,
)
from pipelines.errors import PipelineError, Unfinished
from pipelines.ledger import write_text
from pipelines.towers import Towers
from pipelines.windows import Action
from pipelines.workflow import (
    Layout,
    all_alignments,
    missing_file,
    read_missing,
    read_protocol,
    read_scores,
    videos_of,
)


def build_corpus(config: PipelineConfig, out: Path, towers: Towers | None = None) -> str:
    """Mine and embed the entities. Here and below, ``towers`` are the config's model where it is to be loaded once."""
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
        text_tower=(lambda: towers.texts) if towers else None,
    )
    counts = report.manifest["counts"]
    dropped = ", ".join(f"{reason} {n}" for reason, n in counts["dropped"].items()) or "none"
    return f"{report.manifest['entities']} entities from {counts['mentions']} mentions (dropped: {dropped})"


def build_labels(
    config: PipelineConfig, section: LabelsSection, out: Path, towers: Towers | None = None
) -> str:
    """Embed a set of class names."""
    from corpus_builder.build import build_labels as build

    report = build(
        section.file,
        config.model,
        config.pretrained,
        out,
        label_column=section.label_column,
        templates=section.prompts(),
        device=config.device,
        precision=section.precision,
        force=True,
        encoder=towers.names if towers else None,
    )
    return f"{report.manifest['counts']['labels']} classes"


def choose_videos(
    config: PipelineConfig, layout: Layout, name: str | None, section: AlignmentsSection
) -> str:
    """Write the manifest of the videos that are on protocols' lists, or in some splits, and who is not there."""
    manifest = layout.manifest(name)
    manifest.parent.mkdir(parents=True, exist_ok=True)
    missing: list[str] = []
    if section.protocols:
        from adapter.manifests import write_list_manifest

        assert config.lists is not None
        missing = write_list_manifest(section.protocols, config.lists, manifest, section.videos)["missing"]
    counted = _in_splits(section, manifest if section.protocols else section.videos, manifest)
    write_text(missing_file(manifest), "".join(f"{video}\n" for video in missing))
    said = f"{counted} videos"
    return (
        f"{said}; {len(missing)} on the lists are not there ({missing_file(manifest)})" if missing else said
    )


def _in_splits(section: AlignmentsSection, videos: Path, out: Path) -> int:
    """Write the videos of the section's splits, or all, to a manifest; returns how many there are."""
    from aligner.plan import make_plan

    plan = make_plan(videos, section.videos_per_shard, section.root)
    wanted = None if section.splits is None else {*section.splits}
    kept = [item for item in plan.items if wanted is None or wanted.intersection(item.splits)]
    if not kept:
        raise PipelineError(f"no video is in the splits {', '.join(section.splits or ())}")
    if inside := next((item for item in kept if item.offset is not None), None):
        raise PipelineError(f"splits cannot choose from a tar, got {inside.video_id}; unpack it")
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "label", "split", "seconds"])
    writer.writerows([item.video_id, item.label, item.split, item.seconds] for item in kept)
    write_text(out, text.getvalue())
    return len(kept)


def align(
    config: PipelineConfig,
    layout: Layout,
    corpus: Path | None = None,
    force: bool = False,
    name: str | None = None,
    towers: Towers | None = None,
) -> str:
    """Align every video; an unfinished folder is continued, one made with other settings or videos begun anew.

    ``corpus`` is another corpus than the layout's own, ``name`` that of test alignments.

    Raises:
        Unfinished: stopped by a signal, or a job array of it is at work.
    """
    from aligner import run
    from aligner.config import ChangedSettings
    from aligner.progress import make_progress

    section = config.test_alignments[name] if name else config.alignments
    videos, root = videos_of(layout, name, section)
    settings = section.settings(config, corpus or layout.corpus, layout.aligned(name), videos, root)
    settings = replace(settings, force=force)
    if section.launcher == "slurm":
        from pipelines.cluster import fill_by_array

        asked = section.slurm or SlurmSection.model_validate({})
        fill_by_array(settings, asked, layout.root, name or "alignments")
        settings = replace(settings, force=False)
    display = lambda total: make_progress(total, quiet=False)  # noqa: E731
    fill = partial(run.run, display=display, loaded=towers.clip if towers else None)
    try:
        report = fill(settings)
    except ChangedSettings:
        report = fill(replace(settings, force=True))
    if report.stopped:
        raise Unfinished(f"alignments: {report.sentence()}")
    if not report.complete:
        raise PipelineError(f"{report.sentence()}")
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
        layout.aligned(section.alignments),
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


def run_protocol(config: PipelineConfig, layout: Layout, section: ProtocolSection) -> str:
    """Score adapters by a published protocol; videos that its lists name and that are not there are counted."""
    from adapter.scoring import run_and_keep

    assert config.lists is not None
    runs = [layout.run(name) for name in section.runs]
    result = run_and_keep(
        section.published,
        runs,
        config.lists,
        layout.aligned(section.alignments),
        layout.labels(section.labels),
        layout.protocol(section.name),
        config.device,
    )
    return protocol_sentence(result)


def protocol_sentence(result: dict[str, Any]) -> str:
    """What a protocol came to, in one line."""
    lost = len({video for part in result["parts"] for video in (*part["missing"], *part["failed"])})
    counted = f"{lost} listed videos missing or failed" if lost else "no listed video missing"
    return f"{protocol_words(result['table'])}; {counted}"


def protocol_words(table: dict[str, Any]) -> str:
    """The figure of a protocol, as papers print it."""
    top1 = table["top1"]
    if "harmonic_mean" in top1:
        base, novel = (100 * top1[half]["mean"] for half in ("base", "novel"))
        return f"top-1 base {base:.1f}, novel {novel:.1f}, harmonic mean {100 * top1['harmonic_mean']:.1f}"
    spread = f" ± {100 * top1['std']:.1f} over {top1['n']} {top1['over']}" if top1["over"] else ""
    return f"top-1 {100 * top1['mean']:.1f}{spread}"


def ablate(config: PipelineConfig, layout: Layout, section: AblationSection) -> str:
    """The ablation table: forms, baselines and controls."""
    from adapter.ablation import Data, choose_rows, standard_columns
    from adapter.ablation import ablate as run_ablation
    from adapter.artifact import ABLATION_TABLE

    unseen = layout.labels(section.unseen) if section.unseen else None
    result = run_ablation(
        Data(layout.alignments, layout.labels(section.labels)),
        layout.ablation,
        standard_columns(
            section.split, section.shots, unseen, section.unseen_split, section.blend, section.sensitivity
        ),
        choose_rows(section.rows),
        range(section.seeds),
        {"device": config.device, **section.options},
        section.few_options,
    )
    sizes = f"{len(result['rows'])} rows, {len(result['columns'])} columns, {len(result['seeds'])} seeds"
    return f"{sizes}: {layout.ablation / ABLATION_TABLE}"


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
    tested = config.test_alignments[evaluation.alignments] if evaluation.alignments else config.alignments
    drawn = Drawn(
        layout.aligned(evaluation.alignments),
        run,
        layout.labels(evaluation.labels),
        run / predictions_name(section.evaluation),
        tested.root,
        out or layout.report,
        f"alt run {layout.config.name}",
        layout.config.read_text(encoding="utf-8"),
        more_facts=missing_facts(config, layout),
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
    more_facts: Mapping[str, str] = field(default_factory=dict)


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
    from pipelines import gather
    from pipelines import report as pages
    from pipelines.facts import facts, notices

    predictions, alignments = drawn.predictions, drawn.alignments
    shown = gather.choose_videos(predictions, videos)
    if drawn.actions is not None:
        shown = sorted(shown, key=_by_time)
    explanations = predictions.with_name(predictions.stem.replace("predictions", "explanations") + ".json")
    explain_to_file(explanations, explain(drawn.run, alignments, drawn.labels, shown, device=device))
    root = drawn.videos_root
    cards = gather.collect(
        alignments, predictions, root, explanations=explanations, video_ids=shown, limit=videos
    )
    manifest = read_manifest(alignments)
    out = pages.write_report(
        drawn.out,
        title=title,
        cards=cards,
        tables=tables,
        facts=facts(manifest, alignments, drawn.run, drawn.labels, drawn.command) | {**drawn.more_facts},
        entities=gather.load_entities(alignments),
        notices=[*more_notices, *notices(manifest)],
        max_bytes=round(max_mb * 1e6),
        mistakes=gather.find_mistakes(alignments, predictions, root),
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


def score_tables(config: PipelineConfig, layout: Layout) -> list[Any]:
    """Top-1 of every adapter in every evaluation."""
    from pipelines.gather import Table

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
    found = [Table("Results", ["model", *names], rows, note)]
    return found + [_protocol_table(layout, item.name) for item in config.protocols]


def _protocol_table(layout: Layout, name: str) -> Any:
    """A protocol's result as the table that papers print."""
    from adapter.tabulate import table_of
    from pipelines.gather import Table

    result = read_protocol(layout, name)
    head, *rows = table_of(result)
    note = f"{result['about']}. In %; missing: listed videos that are not there or failed."
    return Table(
        f"{result['protocol']}, version {result['version']}", list(head), [list(row) for row in rows], note
    )


def _percent(result: dict[str, Any] | None) -> float | None:
    return None if result is None else round(100 * result["top1"], 1)


def missing_facts(config: PipelineConfig, layout: Layout) -> dict[str, str]:
    """Listed videos that are not there, which no figure counts as right or wrong."""
    found = {
        name or "alignments": len(read_missing(layout.manifest(name)))
        for name, section in all_alignments(config)
        if section.protocols
    }
    return {"listed, not there": ", ".join(f"{name} {n}" for name, n in found.items())} if found else {}
