"""Pictures to search with: image files, and frames of videos. RGB, upright.

Frames need PyAV, an optional part: ``pip install "alt-toolkit[video]"``.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from corpus_builder.config import CorpusError

NO_PYAV = 'frames of videos need PyAV, which is not installed; run `pip install "alt-toolkit[video]"`'

ROUNDING = 1e-6
"""Seconds by which a time given in decimals may miss a frame's own."""


def read_image(path: Path) -> Image.Image:
    """The picture in an image file, turned as its EXIF data ask; of an animation the first one.

    Raises :class:`CorpusError` if the file is missing, no image, or broken.
    """
    _check_file(path)
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        known = not isinstance(error, Image.UnidentifiedImageError)
        reason = f"broken: {error}" if known else "not an image that Pillow reads, such as JPEG or PNG"
        raise CorpusError(f"'{path}' is {reason}") from None


def read_frame(path: Path, at: float) -> Image.Image:
    """The frame of a video on display ``at`` seconds after its first frame, turned upright.

    A frame is on display until the next one comes, the last for its own duration.

    Raises:
        CorpusError: PyAV is not installed; the file is missing, no video, or broken on the way to the frame; the
            video is over before ``at``.
    """
    try:
        import av
    except ImportError:
        raise CorpusError(NO_PYAV) from None
    _check_time(at)
    _check_file(path)
    try:
        return _on_display(path, at)
    except (av.FFmpegError, OSError) as error:
        raise CorpusError(f"'{path}' is no readable video, or broken: {error.strerror or error}") from None


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise CorpusError(f"'{path}': no such file")
    if path.stat().st_size == 0:
        raise CorpusError(f"'{path}' is empty")


def _check_time(at: float) -> None:
    if not (math.isfinite(at) and at >= 0):
        raise CorpusError(f"--at is {at:g}, expected seconds from the beginning of the video, 0 or more")


def _on_display(path: Path, at: float) -> Image.Image:
    """Jump near to the time and look; where that shows nothing, look from the beginning."""
    with _Video(path) as video:
        start = next(video.frames(), None)
    if start is None:
        raise CorpusError(f"'{path}' holds no frame that can be decoded")
    target = start.time + at
    for jump in (True, False):
        with _Video(path) as video:
            shown = video.at(target, jump=jump)
        if shown is not None:
            break
    if shown is None or target >= shown.end:
        end = shown.end if shown else start.end
        raise CorpusError(f"'{path}' shows its last frame until {end - start.time:.2f} s, got --at {at:g}")
    return Image.fromarray(_upright(shown.frame))


@dataclass(frozen=True)
class _Shown:
    """A decoded frame, and from when to when it is on display, in seconds."""

    frame: Any
    time: float
    end: float


class _Video:
    """The first video stream of a file that is not the cover picture of a music file."""

    def __init__(self, path: Path) -> None:
        import av
        from av.stream import Disposition

        self._container = av.open(str(path))
        streams = self._container.streams
        pictures = (s for s in streams.video if not s.disposition & Disposition.attached_pic)
        self._stream: Any = next(pictures, None)
        if self._stream is None:
            kinds = ", ".join(sorted({stream.type for stream in streams})) or "nothing"
            self._container.close()  # after which its streams must not be touched
            raise CorpusError(f"'{path}' holds no video stream, found {kinds}")
        self._step = float(1 / self._stream.average_rate) if self._stream.average_rate else 0.0

    def __enter__(self) -> "_Video":
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    def frames(self) -> Iterator[_Shown]:
        """Frames in order, each as if it were the last; one without a time has its place at the average rate."""
        base = self._stream.time_base
        for place, frame in enumerate(self._container.decode(self._stream)):
            time = place * self._step if frame.pts is None else float(frame.pts * base)
            yield _Shown(frame, time, time + (float(frame.duration * base) if frame.duration else self._step))

    def at(self, target: float, *, jump: bool) -> _Shown | None:
        """The last frame that is not after ``target``; None where the first one to be seen is after it."""
        if jump and self._container.format.name != "avi":  # an AVI's frames bear no times to check a jump by
            self._container.seek(int(target / self._stream.time_base), stream=self._stream)
        shown = None
        for upcoming in self.frames():
            if upcoming.time > target + ROUNDING:
                return replace(shown, end=upcoming.time) if shown else None
            shown = upcoming
        return shown


def _upright(frame: Any) -> np.ndarray:
    """Pixels of shape (height, width, 3), uint8; a stream asks for quarter turns counter-clockwise."""
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), k=round(frame.rotation / 90)))
