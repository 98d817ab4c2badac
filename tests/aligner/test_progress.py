"""Progress: what the lines of a log say, and which display is chosen."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

from aligner import progress
from aligner.progress import Bar, Lines, Progress, make_progress


class Clock:
    """A clock that tests set."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


@pytest.fixture
def log(tmp_path: Path) -> Iterator[TextIO]:
    with open(tmp_path / "log.txt", "w+") as file:
        yield file


def test_a_line_every_thirty_seconds_and_one_at_the_end(clock: Clock, log: TextIO) -> None:
    with Lines(10, log) as lines:
        for place in range(8):
            clock.now += 10
            lines.advance(ok=place != 1)
    assert Path(log.name).read_text().splitlines() == [
        "3/10 videos, 1 failed, 0.10/s, about 70 s left",
        "6/10 videos, 1 failed, 0.10/s, about 40 s left",
        "8/10 videos, 1 failed, 0.10/s, about 20 s left",
    ]


def test_nothing_done_has_no_rate(clock: Clock, log: TextIO) -> None:
    with Lines(4, log):
        clock.now += 5
    assert Path(log.name).read_text() == "0/4 videos, 0 failed, 0.00/s, about 0 s left\n"


def test_the_bar_counts_videos_and_failures() -> None:
    with Bar(3) as bar:
        for ok in (True, False, True):
            bar.advance(ok)
    task = bar.bar.tasks[0]
    assert (task.completed, task.total, task.fields["failed"]) == (3, 3, 1)


@pytest.mark.parametrize(
    ("quiet", "terminal", "kind"),
    [(True, True, Progress), (True, False, Progress), (False, True, Bar), (False, False, Lines)],
)
def test_the_display_fits_the_stream(
    quiet: bool, terminal: bool, kind: type, log: TextIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", log)
    assert type(make_progress(5, quiet)) is kind


def test_quiet_says_nothing(capsys: pytest.CaptureFixture) -> None:
    with make_progress(2, quiet=True) as silent:
        silent.advance(ok=True)
        silent.advance(ok=False)
    assert capsys.readouterr() == ("", "")
