"""Options that commands share, and how a command ends on a problem. No work, no heavy import."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

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

# Newer versions of typer carry their own copy of click; this is the class in either.
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]


class Commands(TyperGroup):
    """Wrong usage exits with 1: code 2 means "done, with failures" to the scripts that call us."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Read the options."""
        with _usage_error_is_one():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        with _usage_error_is_one():
            return super().invoke(ctx)


@contextmanager
def _usage_error_is_one() -> Iterator[None]:
    try:
        yield
    except _UsageError as error:
        setattr(error, "exit_code", EXIT_NOT_DONE)  # noqa: B010 - typed as a class variable
        raise


@contextmanager
def errors() -> Iterator[None]:
    """Turn a problem that the user can mend (a full disk is one) into one message and exit code 1."""
    try:
        yield
    except (AlignerError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(EXIT_NOT_DONE) from None
