"""What the command-line files share."""

import functools
from collections.abc import Callable
from typing import Any

import typer

from adapter.config import AdapterError


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
