"""The ``corpus-builder`` command. Heavy imports wait inside the commands, so that ``--help`` is quick."""

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from corpus_builder import __version__
from corpus_builder.config import DEFAULT_SPACY_MODEL, CorpusConfig, CorpusError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Mine, disambiguate and embed a corpus of visual entities from action labels or captions.",
)

LabelsFile = Annotated[Path, typer.Option("--labels", help="Class names: .txt (one a line), .csv or .json.")]
MaybeLabels = Annotated[
    Path | None, typer.Option("--labels", help="Class names: .txt (one a line), .csv or .json.")
]
Captions = Annotated[
    Path | None, typer.Option("--captions", help="Captions: .txt (one a line), .csv or .parquet.")
]
Expansions = Annotated[
    list[Path] | None,
    typer.Option("--expansions", help="JSON: label or class id -> phrases that belong to it. Repeatable."),
]
LabelColumn = Annotated[
    str | None,
    typer.Option("--label-column", help="Column of a CSV with the names [default: name or label]."),
]
CaptionColumn = Annotated[
    str | None, typer.Option("--caption-column", help="Column with the captions [default: caption or text].")
]
SpacyModel = Annotated[str, typer.Option("--spacy-model", help="Installed spaCy pipeline, or a path to one.")]
Taggers = Annotated[
    str,
    typer.Option(
        "--taggers", help="Who proposes noun phrases: both, spacy, nltk, or wordnet (coarse, no data)."
    ),
]
Strategy = Annotated[
    str, typer.Option("--strategy", help="How a sense is chosen: extended, lesk, first, clip or t5.")
]
SenseModel = Annotated[
    str | None,
    typer.Option("--sense-model", help="Model of --strategy clip or t5 [default: the build's own]."),
]
SensePretrained = Annotated[str | None, typer.Option("--sense-pretrained", help="Its weights, for clip.")]
BodyParts = Annotated[bool, typer.Option("--body-parts/--no-body-parts", help="Add the parts of the body.")]
MinCount = Annotated[int, typer.Option("--min-count", help="Captions an entity must be found in.")]
MaxWords = Annotated[int, typer.Option("--max-words", help="Longest entity, in words.")]
Allow = Annotated[
    Path | None,
    typer.Option("--allow", help="Text file: phrases and synsets to keep whatever speaks against."),
]
Deny = Annotated[Path | None, typer.Option("--deny", help="Text file: phrases and synsets never to keep.")]
Index = Annotated[str, typer.Option("--index", help="FAISS index: flat (exact), ivf, hnsw, or auto by size.")]
MergeAbove = Annotated[
    float | None,
    typer.Option("--merge-above", help="Cosine from which two entities are one [default: never]."),
]
NltkData = Annotated[
    Path | None,
    typer.Option("--nltk-data", help="NLTK data folder with WordNet [default: NLTK's own search path]."),
]
Model = Annotated[
    str, typer.Option("--model", help="open_clip name (ViT-B-16), hf-hub:ORG/REPO or local-dir:PATH.")
]
Pretrained = Annotated[
    str | None,
    typer.Option(
        "--pretrained", help="Tag, weights file, or none for random weights; left out with local-dir:."
    ),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
Templates = Annotated[
    list[str] | None,
    typer.Option("--template", help="Prompt with {} for the name, replacing the built-in ones. Repeatable."),
]
Force = Annotated[bool, typer.Option("--force", help="Write into a folder that holds other things.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress lines.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
OutDir = Annotated[Path, typer.Option("--out", help="Folder to write.")]


def _plain_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Show a :class:`CorpusError`, or what the file system refuses, as one line on stderr and end with 1."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except CorpusError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(1) from None
        except BrokenPipeError:  # the reader of our output left, which click ends quietly
            raise
        except OSError as error:
            place = f"'{error.filename}': " if error.filename else ""
            typer.echo(
                f"error: {place}{error.strerror or error}; check the path, its rights and the space", err=True
            )
            raise typer.Exit(1) from None

    return wrapped


def _say(quiet: bool) -> Callable[[str], None]:
    return (lambda line: None) if quiet else functools.partial(typer.echo, err=True)


def _mining(given: Mapping[str, Any]) -> tuple[CorpusConfig, Any]:
    """The settings and the ``Inputs`` among the options of a command, told apart by their names."""
    names = {field.name for field in fields(CorpusConfig)}
    config = CorpusConfig(**{name: value for name, value in given.items() if name in names})
    from corpus_builder.build import Inputs

    names = {field.name for field in fields(Inputs)}
    files = {name: value for name, value in given.items() if name in names}
    return config, Inputs(**files | {"expansions": tuple(files["expansions"] or ())})


def _show_version(shown: bool) -> bool:
    if shown:
        typer.echo(f"corpus_builder {__version__}")
        raise typer.Exit()
    return shown


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Version.")
    ] = False,
) -> None:
    """Mine, disambiguate and embed a corpus of visual entities from action labels or captions."""


@app.command("mine")
@_plain_errors
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
    min_count: MinCount = 1,
    max_words: MaxWords = 4,
    nltk_data: NltkData = None,
    allow: Allow = None,
    deny: Deny = None,
    quiet: Quiet = False,
) -> None:
    """Find the entities of labels and captions, with their WordNet senses. Needs no CLIP."""
    config, inputs = _mining(locals())
    from corpus_builder import artifact, build

    artifact.check_mined(out)
    report = build.mine_corpus(inputs, config, _say(quiet))
    artifact.write_mined(out, artifact.table_of(build.mined_rows(report), artifact.MINED_SCHEMA))
    _say(quiet)(json.dumps(report.counts, indent=2))


@app.command("build")
@_plain_errors
def build_cli(
    model: Model,
    out: OutDir,
    labels: MaybeLabels = None,
    captions: Captions = None,
    pretrained: Pretrained = None,
    expansions: Expansions = None,
    label_column: LabelColumn = None,
    caption_column: CaptionColumn = None,
    spacy_model: SpacyModel = DEFAULT_SPACY_MODEL,
    taggers: Taggers = "both",
    strategy: Strategy = "extended",
    sense_model: SenseModel = None,
    sense_pretrained: SensePretrained = None,
    body_parts: BodyParts = True,
    min_count: MinCount = 1,
    max_words: MaxWords = 4,
    nltk_data: NltkData = None,
    allow: Allow = None,
    deny: Deny = None,
    merge_above: MergeAbove = None,
    index: Index = "auto",
    device: Device = "auto",
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Mine entities, embed them with a CLIP text tower, and write the corpus with its FAISS index."""
    config, inputs = _mining(locals())
    from corpus_builder import build

    say = _say(quiet)
    report = build.build_corpus(inputs, config, model, pretrained, out, device=device, force=force, say=say)
    say(json.dumps(report.manifest["counts"] | {"seconds": report.seconds}, indent=2))
    typer.echo(
        f"{out}: {report.manifest['entities']} entities, fingerprint {report.manifest['fingerprint'][:12]}"
    )


@app.command("labels")
@_plain_errors
def labels_cli(
    labels: LabelsFile,
    model: Model,
    out: OutDir,
    pretrained: Pretrained = None,
    label_column: LabelColumn = None,
    template: Templates = None,
    device: Device = "auto",
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Embed class names, averaged over prompt templates, so that training and prediction need no CLIP."""
    from corpus_builder import build

    report = build.build_labels(
        labels,
        model,
        pretrained,
        out,
        label_column=label_column,
        templates=template or (),
        device=device,
        force=force,
        say=_say(quiet),
    )
    typer.echo(
        f"{out}: {report.manifest['labels']} labels, fingerprint {report.manifest['fingerprint'][:12]}"
    )


@app.command("search")
@_plain_errors
def search_cli(
    corpus: Annotated[Path, typer.Argument(help="Corpus folder.", metavar="DIR")],
    text: Annotated[str, typer.Argument(help="What to look for.")],
    k: Annotated[int, typer.Option("--k", min=1, help="How many entities to show.")] = 10,
    model: Annotated[
        str | None, typer.Option("--model", help="The corpus's model, where its local folder has moved.")
    ] = None,
    pretrained: Pretrained = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Show the entities nearest to a text, by cosine."""
    from corpus_builder import build

    rows = build.search_corpus(corpus, text, k, model=model, pretrained=pretrained, device=device)
    if as_json:
        typer.echo(json.dumps(rows))
        return
    for row in rows:
        typer.echo(f"{row['cosine']:7.4f}  {row['name']:<24} {row['sense'] or '-':<24} {row['gloss'] or ''}")


@app.command("inspect")
@_plain_errors
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
