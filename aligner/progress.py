"""Progress of a run: a bar on a terminal, a plain line now and then in a log file."""

import sys
import time
from typing import TextIO

LINE_EVERY_S = 30.0


class Progress:
    """Is told of every video as it is finished; this one says nothing (``--quiet``, and library use)."""

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to close."""

    def advance(self, ok: bool) -> None:
        """One more video; ``ok`` is False when it failed."""


class Lines(Progress):
    """A line every 30 seconds, and one at the end: batch schedulers keep carriage returns for ever."""

    def __init__(self, total: int, stream: TextIO) -> None:
        self.total, self.stream = total, stream
        self.done = self.failed = 0
        self.start = self.last = time.monotonic()

    def advance(self, ok: bool) -> None:
        """Count, and print if it is time."""
        self.done += 1
        self.failed += not ok
        if time.monotonic() - self.last >= LINE_EVERY_S:
            self._line()

    def __exit__(self, *_: object) -> None:
        self._line()

    def _line(self) -> None:
        self.last = time.monotonic()
        rate = self.done / max(self.last - self.start, 1e-9)
        left = (self.total - self.done) / rate if rate else 0.0
        self.stream.write(
            f"{self.done}/{self.total} videos, {self.failed} failed, {rate:.2f}/s, about {left:.0f} s left\n"
        )
        self.stream.flush()


class Bar(Progress):
    """A rich progress bar."""

    def __init__(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        columns = (
            TextColumn("aligning"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[failed]} failed"),
            TimeRemainingColumn(),
        )
        self.bar = RichProgress(*columns, console=Console(stderr=True))
        self.failed = 0
        self.task = self.bar.add_task("videos", total=total, failed=0)

    def __enter__(self) -> "Bar":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def advance(self, ok: bool) -> None:
        """Move the bar by one video."""
        self.failed += not ok
        self.bar.update(self.task, advance=1, failed=self.failed)


def make_progress(total: int, quiet: bool) -> Progress:
    """The display that fits: none, a bar on a terminal, lines otherwise; all on stderr."""
    if quiet:
        return Progress()
    return Bar(total) if sys.stderr.isatty() else Lines(total, sys.stderr)
