"""A progress bar on a terminal, a plain line now and then in a log."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LOG_SECONDS = 30.0


@contextmanager
def bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """Yields ``advance(done, total)``; shown on standard error."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as display:
            task = display.add_task(title, total=None)
            yield lambda done, total: display.update(task, completed=done, total=total)
        return
    last = [time.monotonic()]

    def advance(done: int, total: int) -> None:
        if time.monotonic() - last[0] >= LOG_SECONDS:
            last[0] = time.monotonic()
            print(f"{title}: {done} of {total}", file=sys.stderr, flush=True)  # noqa: T201

    yield advance
