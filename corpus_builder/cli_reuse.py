"""Commands that make corpora from corpora, or tell of them; mounted by :mod:`corpus_builder.cli`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from corpus_builder.options import (
    AsJson,
    Device,
    Force,
    Model,
    OutDir,
    Precision,
    Pretrained,
    plain_errors,
    tell,
)

app = typer.Typer()
Corpus = Annotated[Path, typer.Argument(help="Corpus folder.", metavar="CORPUS")]
Other = Annotated[Path, typer.Argument(help="Another corpus folder.", metavar="OTHER")]


@app.command("search")
@plain_errors
def search_cli(
    corpus: Corpus,
    text: Annotated[str | None, typer.Argument(help="What to look for.")] = None,
    image: Annotated[Path | None, typer.Option("--image", help="Look for what is in this picture.")] = None,
    video: Annotated[
        Path | None, typer.Option("--video", help="Look for what a video shows at --at SECONDS.")
    ] = None,
    at: Annotated[float | None, typer.Option("--at", help="Seconds from the beginning of --video.")] = None,
    k: Annotated[int, typer.Option("--k", min=1, help="How many entities to show.")] = 10,
    model: Annotated[
        str | None, typer.Option("--model", help="The corpus's model, where its local folder has moved.")
    ] = None,
    pretrained: Pretrained = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Show the entities nearest to a text, a picture or a frame of a video, by cosine."""
    from corpus_builder import api, search

    query = search.Query(text, image, video, at)
    opened = api.open(corpus, model=model, pretrained=pretrained, device=device)
    hits = opened.find(query, k)
    typer.echo(json.dumps([asdict(hit) for hit in hits]) if as_json else "\n".join(map(str, hits)))
    if opened.random_weights:
        typer.echo("the corpus's model has random weights: the cosines mean nothing", err=True)


@app.command("export")
@plain_errors
def export_cli(
    corpus: Corpus,
    out: Annotated[Path, typer.Option("--out", help="File (.csv, .jsonl) or, for hf, folder to write.")],
    form: Annotated[
        str | None, typer.Option("--format", help="csv, jsonl or hf (default: by the suffix of --out).")
    ] = None,
    embeddings: Annotated[
        bool, typer.Option("--embeddings", help="Write the vectors too; hf always does.")
    ] = False,
    force: Force = False,
) -> None:
    """Write the entities for other programs: a table, or a folder for Hugging Face datasets with its card."""
    from corpus_builder.export import export

    told = export(corpus, out, form=form, embeddings=embeddings, force=force)
    typer.echo(f"{out}: {told.entities} entities as {told.form}")
    if told.formulas:
        typer.echo(
            f"{told.formulas} cells begin with = + - or @. They are data, written as they are: have a"
            " spreadsheet import the columns as text",
            err=True,
        )


@app.command("merge")
@plain_errors
def merge_cli(
    corpus: Corpus,
    others: Annotated[list[Path], typer.Argument(help="Other corpus folders.", metavar="OTHER...")],
    out: OutDir,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Unite corpora of one model; entities of one key become one."""
    from corpus_builder import reuse

    manifest = reuse.merge([corpus, *others], out, force=force)
    tell(out, manifest, as_json)
    counts = manifest["counts"]
    typer.echo(
        f"{counts['united']} united, of which {counts['texts_differed']} had another text", err=as_json
    )


@app.command("subset")
@plain_errors
def subset_cli(
    corpus: Corpus,
    out: OutDir,
    labels: Annotated[
        Path | None, typer.Option("--labels", help="Keep entities found in these labels.")
    ] = None,
    entities: Annotated[
        Path | None,
        typer.Option("--entities", help="Keep these: text file, one name or key (synset) a line."),
    ] = None,
    kind: Annotated[list[str] | None, typer.Option("--kind", help="Keep this kind. Repeatable.")] = None,
    source: Annotated[
        list[str] | None,
        typer.Option("--source", help="Keep what was found there: label, caption ... Repeatable."),
    ] = None,
    lexname: Annotated[
        list[str] | None, typer.Option("--lexname", help="Keep this lexicographer file. Repeatable.")
    ] = None,
    min_count: Annotated[int, typer.Option("--min-count", help="Keep what is mentioned so often.")] = 0,
    top: Annotated[int | None, typer.Option("--top", help="Keep the so many mentioned most.")] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Keep the entities that meet every condition given."""
    from corpus_builder import reuse

    selection = reuse.Selection(
        labels, entities, tuple(kind or ()), tuple(source or ()), tuple(lexname or ()), min_count, top
    )
    manifest = reuse.subset(corpus, out, selection, force=force)
    tell(out, manifest, as_json)
    if missing := manifest["counts"]["not_found"]:
        typer.echo(f"{len(missing)} asked for are not in '{corpus}', the first is '{missing[0]}'", err=True)


@app.command("re-embed")
@plain_errors
def re_embed_cli(
    corpus: Corpus,
    model: Model,
    out: OutDir,
    pretrained: Pretrained = None,
    device: Device = "auto",
    precision: Precision = "fp32",
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Embed the same entities, under the same ids, with another CLIP."""
    from corpus_builder import reuse

    told = reuse.re_embed(corpus, out, model, pretrained, device=device, precision=precision, force=force)
    tell(out, told, as_json)


@app.command("diff")
@plain_errors
def diff_cli(corpus: Corpus, other: Other, as_json: AsJson = False) -> None:
    """Show what two corpora differ in, by key."""
    from corpus_builder import reuse

    told = reuse.diff(corpus, other)
    if as_json:
        typer.echo(json.dumps(asdict(told)))
        return
    lines = [f"- {key}" for key in told.only_first] + [f"+ {key}" for key in told.only_second]
    lines += [f"~ {key}: {', '.join(columns)}" for key, columns in told.changed.items()]
    only = f"{len(told.only_first)} only in '{corpus}', {len(told.only_second)} only in '{other}'"
    model = "made with one model" if told.one_model else "made with different models"
    typer.echo("\n".join([*lines, f"{only}, {len(told.changed)} changed, {told.same} alike; {model}"]))


@app.command("stats")
@plain_errors
def stats_cli(corpus: Corpus, as_json: AsJson = False) -> None:
    """Show the sizes of a corpus: by kind, source and lexicographer file, mentions, labels, bytes."""
    from corpus_builder import reuse

    told = reuse.stats(corpus)
    if as_json:
        typer.echo(json.dumps(told))
        return
    for name, value in told.items():
        shown = (
            ", ".join(f"{key} {number}" for key, number in value.items())
            if isinstance(value, dict)
            else value
        )
        typer.echo(f"{name.replace('_', ' '):<20} {shown}")


@app.command("report")
@plain_errors
def report_cli(
    corpus: Corpus,
    out: Annotated[Path, typer.Option("--out", help="HTML file to write.")] = Path("report.html"),
    max_mb: Annotated[
        float,
        typer.Option("--max-mb", help="Largest size of the page, in MB; the most mentioned come first."),
    ] = 20.0,
) -> None:
    """Make one HTML page of a corpus: entities, senses, neighbours, a map, and what was dropped."""
    from corpus_builder.report import write_report

    written = write_report(corpus, out, max_mb=max_mb)
    typer.echo(f"{out}: {written.shown} of {written.entities} entities, {written.bytes / 1e6:.2f} MB")
