"""Commands on an alignments folder: options only, the work is in the file of each command's name."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from aligner.config import AlignConfig
from aligner.options import AsJson, Folder, Quiet, RetryPoisoned, VideoSeconds, Workers, errors

app = typer.Typer()

Form = Annotated[str, typer.Option("--format", help="parquet, jsonl, or hf (a folder for `datasets`).")]


def _print(lines: list[str], content: dict, as_json: bool) -> None:
    typer.echo(json.dumps(content, indent=2) if as_json else "\n".join(lines))


@app.command()
def repair(
    out: Folder,
    corpus: Annotated[
        Path | None, typer.Option(help="The corpus of this folder, to restore a lost entity table.")
    ] = None,
    videos: Annotated[
        str | None, typer.Option(help="As for `run --videos`, to restore a lost plan.", show_default=False)
    ] = None,
    videos_root: Annotated[str | None, typer.Option(help="As for `run`.")] = None,
    allow_outside_root: Annotated[bool, typer.Option("--allow-outside-root", help="As for `run`.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, change nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Set damaged shards aside (into `set-aside/`), so that the next `aligner run` makes exactly those again.

    Finds what `verify` finds. Temporary files of killed runs are removed; nothing else is deleted. Run it when no
    `aligner run` is at work. Exit code 1: manifest, plan or entity table are lost.
    """
    with errors():
        from aligner.repair import repair_and_report

        given = None if videos is None else (videos, videos_root, allow_outside_root)
        found = repair_and_report(out, dry_run=dry_run, corpus=corpus, videos=given)
        _print(found.lines(), asdict(found), as_json)
        raise typer.Exit(found.exit_code)


@app.command()
def retry(
    out: Folder,
    videos_root: Annotated[str, typer.Option(help="Folder or address that video ids are relative to.")],
    stage: Annotated[
        str | None, typer.Option(help="Only failures of this stage: open, decode, encode.")
    ] = None,
    error: Annotated[
        str | None, typer.Option(help="Only failures of this kind, as `status` names it.")
    ] = None,
    retry_poisoned: RetryPoisoned = False,
    decode_workers: Workers = AlignConfig.decode_workers,
    video_seconds: VideoSeconds = AlignConfig.video_seconds,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Decode, but change nothing.")] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Decode failed videos once more; shards in which one decodes now are made again by the next `aligner run`.

    Failures of the encoder are tried with `--stage encode` only. Exit codes: 0 nothing that was tried fails still, 2
    something does, 1 not done.
    """
    with errors():
        from aligner.progress import make_progress
        from aligner.retry import Choice, retry

        found = retry(
            out,
            videos_root,
            Choice(stage, error, retry_poisoned),
            workers=decode_workers,
            video_seconds=video_seconds,
            dry_run=dry_run,
            display=lambda total: make_progress(total, quiet),
        )
        _print(found.lines(), asdict(found), as_json)
        raise typer.Exit(found.exit_code)


@app.command()
def compact(
    source: Folder,
    out: Annotated[Path, typer.Argument(help="Folder to write.", show_default=False)],
    videos_per_shard: Annotated[
        int | None, typer.Option(help="Videos per shard (default: as before).", min=1, show_default=False)
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Copy finished alignments into a new folder with full shards, as one run from the start would plan them.

    The source is only read. Interrupted? Run the same command again.
    """
    with errors():
        from aligner.compact import compact
        from aligner.progress import make_progress

        done = compact(source, out, videos_per_shard, lambda total: make_progress(total, quiet))
        _print([done.sentence()], asdict(done), as_json)


@app.command()
def export(
    out: Folder,
    destination: Annotated[Path, typer.Argument(help="Folder to write.", show_default=False)],
    form: Form = "parquet",
    embeddings: Annotated[
        bool, typer.Option("--embeddings/--no-embeddings", help="Write the embedding of every region.")
    ] = True,
    videos: Annotated[
        str | None, typer.Option(help="Only videos whose id fits this pattern, such as 'run/*'.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Only videos of this split.")] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Write alignments for other programs: entities by name, embeddings as lists of floats, and a data card."""
    with errors():
        from aligner.export import Choice, export
        from aligner.progress import make_progress

        choice = Choice(embeddings, videos, split)
        done = export(out, destination, form, choice, lambda total: make_progress(total, quiet))
        _print([done.sentence()], asdict(done), as_json)


@app.command()
def stats(
    out: Folder,
    top: Annotated[int, typer.Option(help="Entities to list at either end.", min=0)] = 10,
    as_json: AsJson = False,
) -> None:
    """Rows, regions, entities by how often they match, scores, throughput, bytes and failures."""
    with errors():
        from aligner.stats import stats

        found = stats(out, top)
        _print(found.lines(), asdict(found), as_json)
