"""What the command-line files share."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from adapter.config import AdapterError

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
        setattr(error, "exit_code", 1)  # noqa: B010 - typed as a class variable
        raise


def friendly(command: Callable[..., None]) -> Callable[..., None]:
    """Turn what the user can mend (a full disk is one) into one line and exit code 1 (or its own); bugs stay loud."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except (AdapterError, OSError) as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(getattr(error, "exit_code", 1)) from None

    return wrapped
