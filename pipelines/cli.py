"""The ``alt`` command: what spans the stages. Options only; the work is in the files named inside each command."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from pipelines import __version__
from pipelines.cli_explore import explore_cli
from pipelines.cli_finetune import finetune_cli
from pipelines.cli_predict import predict_cli
from pipelines.cli_report import report_cli
from pipelines.cli_share import pull_cli, push_cli
from pipelines.options import (
    EXIT_DONE,
    EXIT_DONE_WITH_FAILURES,
    EXIT_NOT_DONE,
    AsJson,
    Commands,
    Quiet,
)
from pipelines.options import errors as _errors
from pipelines.options import say as _say

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Align before Adapt: recognise actions in video by aligning regions with named entities first.\n\n"
    "`alt demo` shows everything on drawn videos in a few minutes. `alt run` does the same for your data from one "
    "config; `alt report` draws what came of it; `alt finetune` tunes its CLIP and adapter together; `alt predict` "
    "applies a trained run, or a CLIP alone, to your own files. The stages by themselves: `corpus-builder`, "
    "`aligner`, `adapter`.",
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"alt {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Align before Adapt: recognise actions in video by aligning regions with named entities first."""


@app.command("demo")
def demo_cli(
    out: Annotated[Path, typer.Option(help="Folder for videos, artifacts and report.")] = Path("demo"),
    size: Annotated[
        str,
        typer.Option(
            help="tiny (a smoke test), small (a few minutes) or full (an hour, the scale of BENCHMARKS.md)."
        ),
    ] = "small",
    seed: Annotated[int, typer.Option(help="Seed of the drawn videos and of training.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Do everything again.")] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Draw videos, build a corpus, align, train, evaluate against baselines, and write a report to look at.

    Needs no network and no GPU. Run it again after an interruption and it goes on where it stopped.
    """
    with _errors(goes_on=True):
        from pipelines.demo import run_demo

        result = run_demo(out, size, seed, _say(quiet), force)
    typer.echo(json.dumps(asdict(result), default=str, sort_keys=True) if as_json else result.text())


@app.command("run")
def run_cli(
    config: Annotated[
        Path, typer.Argument(help="YAML file; `alt init` writes one to start from, `alt recipes` has more.")
    ],
    force: Annotated[bool, typer.Option("--force", help="Run every stage, changed or not.")] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Only say which stages would run, and what they would cost; check model and tower.",
        ),
    ] = False,
    probe: Annotated[
        int,
        typer.Option(help="With --dry-run: videos to decode and encode for the estimate; 0 for none.", min=0),
    ] = 4,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Run all stages of a config, skipping what is up to date.

    Exit codes: 0 done, 2 done with failed videos (see `aligner status OUT/alignments`), 75 stopped or at work on a
    cluster (give the same command again), 130 after Ctrl-C (likewise), 1 not done.
    """
    with _errors(goes_on=True):
        from pipelines.config import load_config
        from pipelines.stages import protocol_words
        from pipelines.workflow import run_pipeline

        report = run_pipeline(load_config(config), _say(quiet), force, dry_run, probe=probe if dry_run else 0)
    if as_json:
        typer.echo(json.dumps(asdict(report), default=str, sort_keys=True))
    else:
        for adapter, found in report.scores.items():
            for name, result in found.items():
                typer.echo(f"{adapter} on {name}: top-1 {result['top1']:.1%} (n = {result['n']})")
        for name, table in report.protocols.items():
            typer.echo(f"{name}: {protocol_words(table)}")
        if lost := sum(report.missing_videos.values()):
            typer.echo(f"{lost} listed videos are not there: {report.out / 'manifests'} names them")
        typer.echo(f"{'would write' if dry_run else 'wrote'} {report.out}")
    raise typer.Exit(EXIT_DONE_WITH_FAILURES if report.failed_videos else EXIT_DONE)


@app.command("init")
def init_cli(
    config: Annotated[Path, typer.Argument(help="YAML file to write.")] = Path("alt.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is there.")] = False,
) -> None:
    """Write a commented config to start from."""
    with _errors():
        from pipelines.template import write_template

        write_template(config, force)
    typer.echo(f"wrote {config}; edit it, then `alt run {config} --dry-run` and `alt run {config}`")


@app.command("recipes")
def recipes_cli(
    name: Annotated[
        str | None, typer.Argument(help="Recipe to print; without, all are listed.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List configs to start from: data sets, protocols, clusters; print one with `alt recipes NAME > my.yaml`."""
    with _errors():
        from pipelines.template import read_recipe, recipes

        if name is not None:
            typer.echo(read_recipe(name), nl=False)
            return
        found = {recipe: read_recipe(recipe).splitlines()[0].lstrip("# ") for recipe in recipes()}
    if as_json:
        typer.echo(json.dumps(found))
    else:
        width = max(map(len, found))
        typer.echo("\n".join(f"{recipe:{width}}  {about}" for recipe, about in found.items()))


app.command("predict")(predict_cli)
app.command("explore")(explore_cli)
app.command("report")(report_cli)
app.command("finetune")(finetune_cli)
app.command("push")(push_cli)
app.command("pull")(pull_cli)


@app.command("doctor")
def doctor_cli(as_json: AsJson = False) -> None:
    """Say what is installed, what works, what is missing and how to get it.

    Exit code 1 when a package or the demo's model is missing; data that only some commands need is a note.
    """
    from pipelines.doctor import examine

    findings = examine()
    if as_json:
        typer.echo(json.dumps([asdict(item) for item in findings]))
    else:
        for item in findings:
            typer.echo(f"{item.status:8}{item.name:20}{item.detail}")
            if item.remedy and item.status != "ok":
                typer.echo(f"{'':28}-> {item.remedy}")
    raise typer.Exit(EXIT_NOT_DONE if any(item.status == "missing" for item in findings) else EXIT_DONE)
