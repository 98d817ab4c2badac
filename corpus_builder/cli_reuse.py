"""Commands that make corpora from corpora, or tell of them; mounted by :mod:`corpus_builder.cli`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from corpus_builder.options import AsJson, Device, Force, Model, OutDir, Precision, Pretrained, plain_errors

app = typer.Typer()
Corpus = Annotated[Path, typer.Argument(help="Corpus folder.", metavar="CORPUS")]
Other = Annotated[Path, typer.Argument(help="Another corpus folder.", metavar="OTHER")]


def _tell(out: Path, manifest: dict) -> None:
    typer.echo(f"{out}: {manifest['entities']} entities, fingerprint {manifest['fingerprint'][:12]}")


@app.command("merge")
@plain_errors
def merge_cli(corpus: Corpus, other: Other, out: OutDir, force: Force = False) -> None:
    """Unite two corpora of one model; entities of one key become one."""
    from corpus_builder import reuse

    _tell(out, reuse.merge(corpus, other, out, force=force))


@app.command("subset")
@plain_errors
def subset_cli(
    corpus: Corpus,
    out: OutDir,
    labels: Annotated[
        Path | None, typer.Option("--labels", help="Keep entities found in these labels.")
    ] = None,
    kind: Annotated[list[str] | None, typer.Option("--kind", help="Keep this kind. Repeatable.")] = None,
    lexname: Annotated[
        list[str] | None, typer.Option("--lexname", help="Keep this lexicographer file. Repeatable.")
    ] = None,
    min_count: Annotated[int, typer.Option("--min-count", help="Keep what is mentioned so often.")] = 0,
    top: Annotated[int | None, typer.Option("--top", help="Keep the so many mentioned most.")] = None,
    force: Force = False,
) -> None:
    """Keep the entities that meet every condition given."""
    from corpus_builder import reuse

    selection = reuse.Selection(labels, tuple(kind or ()), tuple(lexname or ()), min_count, top)
    _tell(out, reuse.subset(corpus, out, selection, force=force))


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
) -> None:
    """Embed the same entities, under the same ids, with another CLIP."""
    from corpus_builder import reuse

    told = reuse.re_embed(corpus, out, model, pretrained, device=device, precision=precision, force=force)
    _tell(out, told)


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
    typer.echo("\n".join([*lines, f"{only}, {len(told.changed)} changed, {told.same} alike"]))


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
