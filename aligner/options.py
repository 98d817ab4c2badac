"""How a command ends on a problem. No work, no heavy import."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from aligner.config import EXIT_NOT_DONE, AlignerError


@contextmanager
def errors() -> Iterator[None]:
    """Turn a problem that the user can mend (a full disk is one) into one message and exit code 1."""
    try:
        yield
    except (AlignerError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(EXIT_NOT_DONE) from None
