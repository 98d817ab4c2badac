"""``alt report`` on the command line; the work is in ``reporting.py``."""

from pathlib import Path
from typing import Annotated

import typer

from pipelines.errors import PipelineError
from pipelines.options import Quiet, errors, say


def report_cli(
    run: Annotated[
        Path, typer.Argument(help="Out folder of `alt run` or `alt demo`, or one of its runs/NAME.")
    ],
    evaluation: Annotated[
        str | None,
        typer.Option(help="Whose predictions to show. Default: the config's report, or the only one."),
    ] = None,
    videos: Annotated[int, typer.Option(min=0, help="Videos shown at most.")] = 24,
    max_mb: Annotated[
        float,
        typer.Option(
            help="Size of the file at most, in MB: pictures are compressed harder, then videos left out."
        ),
    ] = 20.0,
    out: Annotated[
        Path | None, typer.Option(help="HTML file to write. Default: report.html in the folder.")
    ] = None,
    alignments: Annotated[
        Path | None,
        typer.Option(help="Alignments of a run that was made stage by stage.", rich_help_panel="By hand"),
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="Label set that it was evaluated with.", rich_help_panel="By hand")
    ] = None,
    videos_root: Annotated[
        Path | None,
        typer.Option(help="Folder that the ids of its videos are relative to.", rich_help_panel="By hand"),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    quiet: Quiet = False,
) -> None:
    """Draw the report of a run: one HTML file that needs no network and opens anywhere.

    Frames with their regions and entities, what carried each prediction, mistakes, tables and run facts. A run made
    with `adapter train` and `adapter eval` takes --alignments, --labels and --videos-root as well.
    """
    with errors():
        from pipelines.reporting import ByHand, report_run

        given = (alignments, labels, videos_root)
        by_hand = None
        if any(path is not None for path in given):
            if alignments is None or labels is None or videos_root is None:
                raise PipelineError(
                    "--alignments, --labels and --videos-root go together: give all three, or none"
                )
            by_hand = ByHand(alignments, labels, videos_root)
        path = report_run(run, evaluation, videos, max_mb, out, by_hand, device, say(quiet))
    typer.echo(f"wrote {path}")
