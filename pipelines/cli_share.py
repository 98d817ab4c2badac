"""``alt push`` and ``alt pull``: artifacts to and from the Hugging Face hub. Options only."""

import json
from pathlib import Path
from typing import Annotated

import typer

from pipelines.options import AsJson, Quiet, errors, say

Source = Annotated[
    Path, typer.Argument(help="Folder of an `alt run`, or of one run, corpus, label set or alignments.")
]


def push_cli(
    path: Source,
    repo: Annotated[str, typer.Argument(help="OWNER/NAME on the hub; made if it is not there.")],
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    license: Annotated[
        str | None, typer.Option(help="Licence field of the card: mit, apache-2.0, cc-by-4.0 ...")
    ] = None,
    to: Annotated[
        Path | None, typer.Option(help="Write what would be pushed into this new folder, and push nothing.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be pushed.")] = False,
    allow_local_paths: Annotated[
        bool, typer.Option("--allow-local-paths", help="Push files that name folders of this machine, too.")
    ] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Push an artifact, verified and with a filled card, to the Hugging Face hub.

    Of an `alt run` this is its adapter with what predicting needs: corpus, config, and a model of one's own.
    """
    with errors():
        from pipelines import hub
        from pipelines.parcel import write

        if to is not None:
            parcel = hub.prepare(path, hub.parse(repo).repo_id, license, allow_local_paths)
            write(parcel, to)
            typer.echo(json.dumps({"to": str(to)}) if as_json else f"wrote {to}: {len(parcel.files)} files")
            return
        _hide_bars(quiet)
        done = hub.push(path, repo, private, dry_run, license, allow_local_paths, say(quiet))
    if as_json:
        typer.echo(json.dumps(vars(done), sort_keys=True))
        return
    if dry_run:
        for name, size in done.files.items():
            typer.echo(f"{size:>14,}  {name}")
    what = f"{len(done.files)} files, {sum(done.files.values()) / 1e6:.1f} MB, as {done.repo_type} {done.repo_id}"
    typer.echo(f"would push {done.kind}: {what}" if dry_run else f"pushed {done.kind}: {what}; {done.url}")


def pull_cli(
    repo: Annotated[
        str,
        typer.Argument(
            help="OWNER/NAME or datasets/OWNER/NAME, with @REVISION and /FOLDER where wanted, with or without hf://."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Download an artifact from the Hugging Face hub and verify it; the stages take the folder as any other."""
    with errors():
        from pipelines import hub

        _hide_bars(quiet)
        kind = hub.pull(repo, out, say(quiet))
    typer.echo(json.dumps({"kind": kind, "out": str(out)}) if as_json else f"wrote {out}: {kind}, verified")


def _hide_bars(quiet: bool) -> None:
    if quiet:
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()
