"""Long videos in windows of equal length, and the timeline of actions that their predictions make."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import PipelineError

if TYPE_CHECKING:
    from pipelines.predict import Prediction


@dataclass(frozen=True)
class Windows:
    """Windows of ``seconds``, one beginning every ``stride`` seconds (by default side by side)."""

    seconds: float
    stride: float | None = None

    def __post_init__(self) -> None:
        """Raises ``PipelineError`` for lengths that make no windows."""
        if not 0 < self.seconds < float("inf"):
            raise PipelineError(f"--window is {self.seconds:g}; it must be a number of seconds above 0")
        if self.stride is not None and not 0 < self.stride <= self.seconds:
            raise PipelineError(
                f"--stride is {self.stride:g}; it must be above 0 and at most the window, {self.seconds:g} s: longer "
                "strides would leave out what lies between"
            )

    def cut(self, start: float, end: float) -> list[tuple[float, float]]:
        """Windows from ``start`` to ``end`` in seconds; the last is moved back so that all are equally long.

        A video that is shorter than a window is one, whole.
        """
        stride, found = self.stride or self.seconds, [(start, min(start + self.seconds, end))]
        while found[-1][1] < end - 1e-3:
            begin = min(start + len(found) * stride, end - self.seconds)
            found.append((begin, begin + self.seconds))
        return [(round(a, 3), round(b, 3)) for a, b in found]


@dataclass(frozen=True)
class Action:
    """A stretch of a video whose windows agree: ``probability`` is the mean of theirs."""

    video: str
    start_s: float
    end_s: float
    label: str
    probability: float
    windows: int

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return dict(vars(self))


def windows_of(path: Path, windows: Windows) -> list[tuple[float, float]]:
    """The windows of a video file; none if it cannot be read, which the alignment will say of the whole."""
    from aligner.decode import DecodeError, span_s

    try:
        return windows.cut(*span_s(path))
    except DecodeError:
        return []


def timeline(found: Sequence["Prediction"]) -> list[Action]:
    """The actions of every video in order of time, from predictions of its windows.

    Neighbouring windows with one best label are one action. Where the label changes, the border lies halfway between
    the middles of the two windows. Windows that could not be read break an action and are left out.
    """
    actions: list[Action] = []
    for video, members in groupby(found, key=lambda item: item.video):
        timed = [item for item in members if item.start_s is not None]
        borders = [_border(before, after) for before, after in pairwise(timed)]
        starts = [item.start_s or 0.0 for item in timed[:1]] + borders
        ends = borders + [item.end_s or 0.0 for item in timed[-1:]]
        rows = [row for row in zip(timed, starts, ends, strict=True)]
        for label, same in groupby(rows, key=lambda row: None if row[0].error else row[0].labels[0]):
            stretch = list(same)
            if label is not None:
                mean = sum(item.probabilities[0] for item, _, _ in stretch) / len(stretch)
                actions.append(Action(video, stretch[0][1], stretch[-1][2], label, mean, len(stretch)))
    return actions


def _border(before: "Prediction", after: "Prediction") -> float:
    middles = [((item.start_s or 0.0) + (item.end_s or 0.0)) / 2 for item in (before, after)]
    return round(sum(middles) / 2, 3)


def clock(seconds: float) -> str:
    """``1:02:03.5`` or ``2:03.5``; tenths only where there are any."""
    tenths = round(seconds * 10)
    minutes, rest = divmod(tenths, 600)
    text = f"{rest // 10:02d}" + (f".{rest % 10}" if rest % 10 else "")
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{text}" if hours else f"{minutes}:{text}"
