"""What the commands of ``alt`` have in common: exit codes, options, and how one ends on a problem. No heavy import."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from aligner.options import Commands as Commands
from pipelines.errors import USER_ERRORS

EXIT_DONE, EXIT_NOT_DONE, EXIT_DONE_WITH_FAILURES = 0, 1, 2
EXIT_INTERRUPTED = 130  # as shells say it of Ctrl-C

Quiet = Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@contextmanager
def errors(goes_on: bool = False) -> Iterator[None]:
    """One message and exit code 1 for what a user can mend; anything else is a bug and stays loud.

    ``goes_on``: a command that was interrupted continues when it is given again, which Ctrl-C then says.
    """
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"stopped{'; the same command goes on from here' if goes_on else ''}", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except (*USER_ERRORS, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(getattr(error, "exit_code", EXIT_NOT_DONE)) from None


def say(quiet: bool) -> Callable[[str], None]:
    """Lines for people go to standard error, or nowhere."""
    return (lambda line: None) if quiet else (lambda line: typer.echo(line, err=True))
