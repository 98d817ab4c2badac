"""Options that commands share, and how a command ends on a problem. No work, no heavy import."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from aligner.config import EXIT_NOT_DONE, AlignerError

Workers = Annotated[int, typer.Option(help="Processes that decode ahead.")]
VideoSeconds = Annotated[float, typer.Option(help="Give up a video that takes longer to decode.")]
RetryPoisoned = Annotated[
    bool,
    typer.Option("--retry-poisoned", help="Try again the videos that crashed a decoder or took too long."),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Folder = Annotated[Path, typer.Argument(help="Alignments folder.", show_default=False)]


@contextmanager
def errors() -> Iterator[None]:
    """Turn a problem that the user can mend (a full disk is one) into one message and exit code 1."""
    try:
        yield
    except (AlignerError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(EXIT_NOT_DONE) from None
