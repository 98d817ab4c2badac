"""The ``corpus-builder`` command. Heavy imports wait inside the commands, so that ``--help`` is quick."""

import json
from pathlib import Path
from typing import Annotated

import typer

from corpus_builder import __version__
from corpus_builder.cli_compare import app as compare_app
from corpus_builder.cli_expand import app as expand_app
from corpus_builder.cli_reuse import app as reuse_app
from corpus_builder.config import DEFAULT_SPACY_MODEL, DEFAULT_TEMPLATES, ENTITY_TEXT, CorpusError
from corpus_builder.options import (
    Allow,
    AsJson,
    BodyParts,
    CaptionColumn,
    Captions,
    Commands,
    Deny,
    Descriptions,
    Device,
    EntityText,
    Expansions,
    Force,
    Index,
    LabelColumn,
    LabelsFile,
    MaxWords,
    MaybeLabels,
    MergeAbove,
    MinCount,
    Model,
    NltkData,
    OutDir,
    Precision,
    Pretrained,
    Processes,
    Quiet,
    Related,
    SenseModel,
    SensePretrained,
    Size,
    Sources,
    SpacyModel,
    Strategy,
    Taggers,
    Templates,
    TemplateSet,
    make_say,
    mining,
    plain_errors,
    tell,
)

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Mine, disambiguate and embed a corpus of visual entities from action labels or captions.",
)


def _show_version(shown: bool) -> bool:
    if shown:
        typer.echo(f"corpus_builder {__version__}")
        raise typer.Exit()
    return shown


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Mine, disambiguate and embed a corpus of visual entities from action labels or captions."""


@app.command("mine")
@plain_errors
def mine_cli(
    out: Annotated[Path, typer.Option("--out", help="File to write: .parquet, .csv or .jsonl.")],
    labels: MaybeLabels = None,
    captions: Captions = None,
    expansions: Expansions = None,
    label_column: LabelColumn = None,
    caption_column: CaptionColumn = None,
    spacy_model: SpacyModel = DEFAULT_SPACY_MODEL,
    taggers: Taggers = "both",
    strategy: Strategy = "extended",
    sense_model: SenseModel = None,
    sense_pretrained: SensePretrained = None,
    body_parts: BodyParts = True,
    related: Related = 0,
    sources: Sources = None,
    min_count: MinCount = 1,
    max_words: MaxWords = 4,
    nltk_data: NltkData = None,
    allow: Allow = None,
    deny: Deny = None,
    processes: Processes = 1,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Find the entities of labels and captions, with their WordNet senses. Needs no CLIP."""
    config, inputs = mining(locals())
    from corpus_builder import artifact, build
    from corpus_builder.captions import clear_work, work_folder

    artifact.check_mined(out)
    work = work_folder(out)
    report = build.mine_corpus(inputs, config, make_say(quiet), processes=processes, work=work)
    artifact.write_mined(out, artifact.table_of(build.mined_rows(report), artifact.MINED_SCHEMA))
    clear_work(work)
    if as_json:
        typer.echo(json.dumps(report.counts))
    else:
        make_say(quiet)(json.dumps(report.counts, indent=2))


@app.command("build")
@plain_errors
def build_cli(
    model: Model,
    out: OutDir,
    labels: MaybeLabels = None,
    captions: Captions = None,
    pretrained: Pretrained = None,
    expansions: Expansions = None,
    descriptions: Descriptions = None,
    label_column: LabelColumn = None,
    caption_column: CaptionColumn = None,
    spacy_model: SpacyModel = DEFAULT_SPACY_MODEL,
    taggers: Taggers = "both",
    strategy: Strategy = "extended",
    sense_model: SenseModel = None,
    sense_pretrained: SensePretrained = None,
    body_parts: BodyParts = True,
    related: Related = 0,
    sources: Sources = None,
    min_count: MinCount = 1,
    max_words: MaxWords = 4,
    nltk_data: NltkData = None,
    allow: Allow = None,
    deny: Deny = None,
    entity_text: EntityText = ENTITY_TEXT,
    size: Size = None,
    merge_above: MergeAbove = None,
    index: Index = "auto",
    processes: Processes = 1,
    device: Device = "auto",
    precision: Precision = "fp32",
    force: Force = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Mine entities, embed them with a CLIP text tower, and write the corpus with its FAISS index."""
    config, inputs = mining(locals())
    from corpus_builder import build

    say = make_say(quiet)
    report = build.build_corpus(
        inputs, config, model, pretrained, out, device=device, processes=processes, force=force, say=say
    )
    say(json.dumps(report.manifest["counts"] | {"seconds": report.seconds}, indent=2))
    tell(out, report.manifest, as_json)


@app.command("labels")
@plain_errors
def labels_cli(
    labels: LabelsFile,
    model: Model,
    out: OutDir,
    pretrained: Pretrained = None,
    label_column: LabelColumn = None,
    template: Templates = None,
    templates: TemplateSet = None,
    device: Device = "auto",
    precision: Precision = "fp32",
    force: Force = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Embed class names, averaged over prompt templates, so that training and prediction need no CLIP."""
    from corpus_builder import build
    from corpus_builder.templates import load_templates

    if template and templates:
        raise CorpusError(
            "--template and --templates exclude each other: give prompts, or a set or file of them"
        )
    report = build.build_labels(
        labels,
        model,
        pretrained,
        out,
        label_column=label_column,
        templates=template or load_templates(templates or DEFAULT_TEMPLATES),
        device=device,
        precision=precision,
        force=force,
        say=make_say(quiet),
    )
    tell(out, report.manifest, as_json)


@app.command("inspect")
@plain_errors
def inspect_cli(
    folder: Annotated[Path, typer.Argument(help="Corpus or Labels folder.", metavar="DIR")],
    verify: Annotated[bool, typer.Option("--verify", help="Hash every file and compare.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what an artifact holds and what it was made from; with --verify, whether it is intact."""
    from corpus_builder import artifact

    opened = artifact.open_artifact(folder)
    typer.echo(json.dumps(opened.manifest, indent=2) if as_json else artifact.summary(opened))
    broken = [name for name, intact in artifact.verify_files(opened).items() if not intact] if verify else []
    if broken:
        raise CorpusError(
            f"{', '.join(broken)} changed since written; run `{artifact.MAKERS[opened.kind]}` again"
        )
    if verify:
        typer.echo("every file is as written", err=as_json)


app.registered_commands.extend(compare_app.registered_commands)
app.registered_commands.extend(reuse_app.registered_commands)
app.add_typer(expand_app, name="expand")
