"""Sampled frames of a video file with PyAV: by timestamp, frame-exact, rotated upright.

A sample is the frame on display at a moment of the video stream; ``views.py`` says at which moments, by default
at the middle of T equal segments (as X-CLIP and ViFi-CLIP sample). A video with fewer frames than T repeats the
frames on display. However many views a video has, it is decoded once. Frames that lie between the samples are
skipped by seeking when a keyframe allows it: damage there goes unseen and does no harm, while damage on the way
to a sample fails the whole video (no partial decoding).
"""

import math
import os
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from io import IOBase
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from PIL import Image, ImageOps

from aligner.config import AlignerError
from aligner.sources import Source, pictures_of
from aligner.views import Sampling

# The versions belong to the fingerprint of a run: decoders may differ in frames and colours.
DECODER = f"pyav {av.__version__}"


# What a file may be. Not among these are the formats that only name other files (playlists, concat lists,
# picture patterns): a video from somewhere must not be able to read the rest of this machine.
CONTAINERS = ",".join(
    (
        "mov mp4 matroska webm avi flv mpeg mpegts mpegvideo m4v h264 hevc av1 obu ivf ogg asf rm mxf nut dv wtv gxf "
        "yuv4mpegpipe mjpeg vc1 swf 3gp gif apng mp3 wav flac aac ac3 aiff au caf w64"
    ).split()
)
# Packets that may make no picture of their own (fields, hidden frames).
HIDDEN_FRAMES = 2


class DecodeError(AlignerError):
    """A video that gives no frames.

    ``reason`` is one of missing, empty, unreadable, no_video, no_frames, truncated, broken, timeout;
    ``stage`` is ``open`` where the file as a whole is at fault and ``decode`` where its pictures are.
    """

    def __init__(self, reason: str, message: str, stage: str = "open") -> None:
        super().__init__(message)
        self.reason = reason
        self.stage = stage


@dataclass(frozen=True)
class Frame:
    """One sampled frame: its place among the samples, its timestamp in seconds and its uint8 RGB picture."""

    index: int
    time_s: float
    rgb: np.ndarray  # [height, width, 3], or what ``prepare`` made of that


Prepare = Callable[[np.ndarray], np.ndarray]


def _as_it_is(rgb: np.ndarray) -> np.ndarray:
    return rgb


@dataclass(frozen=True)
class Timeline:
    """What the packets of a stream tell without decoding; times in units of the stream's time base.

    ``seekable`` is False where packets carry no trustworthy presentation times (AVI, or times that contradict
    the order of the packets): there the n-th frame that comes out of the decoder has the n-th time, and
    decoding must start at the beginning. ``ordered`` is
    whether packets come in the order of their decoding times, and no two have one presentation time.
    """

    times: list[int]
    keyframes: list[int]
    end: int
    seekable: bool
    ordered: bool = True
    # Where the part that counts begins, by default with the first frame; ``end`` is the end of that part.
    begin: int | None = None
    # Whether only the packets around that part were looked at: the first of ``times`` is not the first of the file.
    partial: bool = False

    @property
    def start(self) -> int:
        """Where the part that counts begins."""
        return self.times[0] if self.begin is None else self.begin

    @property
    def length(self) -> int:
        """How many frames begin in the part that counts, at least one."""
        return max(1, bisect_left(self.times, self.end) - bisect_left(self.times, self.start))

    def shown(self, moments: list[Fraction]) -> list[int]:
        """Times of the frames on display at moments in [0, 1) of the span."""
        start, span = self.start, self.end - self.start
        return [self.times[max(bisect_right(self.times, start + int(m * span)) - 1, 0)] for m in moments]

    def place(self, time: int) -> int:
        """How many frames come before ``time``."""
        return bisect_left(self.times, time)

    def keyframe(self, time: int) -> int | None:
        """The last keyframe that is not after ``time``."""
        place = bisect_right(self.keyframes, time)
        return self.keyframes[place - 1] if place else None


def sample_frames(path: Path | Source, count: int, limit_s: float = math.inf) -> list[Frame]:
    """``count`` frames of the first video stream, or of a folder of pictures, from the middle of equal segments.

    ``limit_s`` and errors are those of ``sample_views``.
    """
    return sample_views(path, Sampling(count), limit_s=limit_s)[0]


def sample_views(
    path: Path | Source,
    sampling: Sampling,
    video_id: str = "",
    limit_s: float = math.inf,
    prepare: Prepare = _as_it_is,
) -> list[list[Frame]]:
    """The frames of every draw or clip of a sampling, from one pass over the video.

    ``video_id`` is what random draws depend on. ``prepare`` is what becomes of a picture as soon as it is
    decoded, so that no more than one lies in memory as large as it was. ``limit_s`` seconds are looked at between
    packets and frames; a hang within one takes a child process to get out of (``children.py``).

    Raises:
        DecodeError: the file is missing, empty, no video, truncated or broken on the way to a sample, or took
        too long.
    """
    deadline = Deadline(limit_s)
    if isinstance(path, Source) and path.frame_rate is not None:
        return _sample_pictures(path, sampling, video_id, deadline, prepare)
    part = path.part if isinstance(path, Source) else None
    with open_video(path) as container:
        timeline = (
            read_timeline(container, deadline) if part is None else read_part(container, part, deadline)
        )
    try:
        try:
            return _sample_moments(path, timeline, sampling, video_id, deadline, prepare)
        except _Misled:
            with open_video(path) as container:
                timeline = _only(read_timeline(container, deadline), container, part)
            return _sample_moments(path, timeline, sampling, video_id, deadline, prepare)
    except av.FFmpegError as error:
        raise DecodeError("broken", f"decoding failed: {error.strerror}", "decode") from error


def _sample_moments(
    path: Path | Source,
    timeline: Timeline,
    sampling: Sampling,
    video_id: str,
    deadline: "Deadline",
    prepare: Prepare,
) -> list[list[Frame]]:
    targets = [timeline.shown(m) for m in sampling.moments(video_id, timeline.length)]
    return _sample(path, timeline, targets, deadline, prepare)


class _Misled(Exception):  # noqa: N818  # caught where it is thrown
    """What the packets around a part told is not what the decoder gives."""


class Deadline:
    """The end of the time that a video may take."""

    def __init__(self, limit_s: float = math.inf) -> None:
        self.limit_s = limit_s
        self.end = time.monotonic() + limit_s

    def check(self, stage: str) -> None:
        """Raise a DecodeError when the time is over."""
        if time.monotonic() > self.end:
            raise DecodeError("timeout", f"took longer than {self.limit_s:g} s", stage)


def read_timeline(container: InputContainer, deadline: Deadline | None = None) -> Timeline:
    """Read all packets (no decoding) and check that the file is as long as its header says.

    Raises:
        DecodeError: no packet in the video stream, or far fewer than announced.
    """
    video = picture_stream(container)
    times, keyframes, ends, decoding, last_s = [], [], [], [], 0.0
    timed = trusted = container.format.name != "avi"
    try:
        for packet in container.demux():
            if deadline is not None:
                deadline.check("open")
            at = packet.dts if packet.pts is None else packet.pts
            if at is None or packet.time_base is None or packet.is_discard:
                continue
            end = at + (packet.duration or 0)
            last_s = max(last_s, float(end * packet.time_base))
            if packet.stream is video:
                trusted &= packet.pts is not None
                times.append(at)
                ends.append(end)
                decoding.append(at if packet.dts is None else packet.dts)
                keyframes += [at] if packet.is_keyframe else []
    except av.FFmpegError as error:
        raise DecodeError(
            "truncated", f"reading stopped after {len(times)} packets: {error.strerror}"
        ) from error
    if not times:
        raise DecodeError("no_frames", "the video stream holds no frame")
    # AVI counts frames that the recorder dropped, which make no packet but take a number.
    _check_length(container, len(times) if timed else max(len(times), max(times) + 1), last_s)
    times.sort()
    end = max(max(ends), times[-1] + (times[-1] - times[0]) // max(len(times) - 1, 1), times[-1] + 1)
    unique = len(set(times)) == len(times)
    ordered = unique and decoding == sorted(decoding)
    return Timeline(times, sorted(keyframes), end, trusted and ordered, ordered)


# Formats with an index of what lies where: a part is found without reading what comes before it.
INDEXED = frozenset(("mov", "mp4", "matroska", "webm"))


def read_part(
    container: InputContainer, part: tuple[float, float], deadline: Deadline | None = None
) -> Timeline:
    """The timeline of a part, in seconds of the stream's clock; of the packets around it where there is an index.

    Without an index, or where packets contradict each other, all packets are read. Whether the whole file is as long as
    its header says is looked at only then.

    Raises:
        DecodeError: no frame before the end of the part, or after its beginning.
    """
    timeline = None
    if INDEXED & set(container.format.name.split(",")):
        timeline = _packets_around(container, part, deadline)
    if timeline is None:
        container.seek(0)
        timeline = read_timeline(container, deadline)
    return _only(timeline, container, part)


def _packets_around(
    container: InputContainer, part: tuple[float, float], deadline: Deadline | None
) -> Timeline | None:
    """What the packets from the last keyframe before a part up to its end tell; None where they cannot be trusted."""
    video = picture_stream(container)
    start, end = (round(Fraction(second) / video.time_base) for second in part)
    times, keyframes, ends, decoding = [], [], [], []
    try:
        container.seek(start, stream=video)
        for packet in container.demux(video):
            if deadline is not None:
                deadline.check("open")
            if packet.is_discard or (packet.pts is None and packet.dts is None):
                continue
            if packet.pts is None or packet.dts is None:
                return None
            times.append(packet.pts)
            ends.append(packet.pts + (packet.duration or 0))
            decoding.append(packet.dts)
            keyframes += [packet.pts] if packet.is_keyframe else []
            # No frame comes out of the decoder before its packet goes in.
            if packet.dts >= end:
                break
    except av.FFmpegError:
        return None
    ordered = len(set(times)) == len(times) and decoding == sorted(decoding)
    if not ordered or not keyframes or times[0] > start:
        return None
    times.sort()
    last = times[-1] + (times[-1] - times[0]) // max(len(times) - 1, 1)
    return Timeline(times, sorted(keyframes), max(max(ends), last, times[-1] + 1), True, partial=True)


def _only(timeline: Timeline, container: InputContainer, part: tuple[float, float] | None) -> Timeline:
    """The timeline of a part of what a timeline tells."""
    if part is None:
        return timeline
    base = picture_stream(container).time_base
    start, end = (round(Fraction(second) / base) for second in part)
    if start >= timeline.end or end <= timeline.times[0]:
        first, last = float(timeline.times[0] * base), float(timeline.end * base)
        why = (
            f"the last one ends at {last:.2f} s"
            if start >= timeline.end
            else f"the first is at {first:.2f} s"
        )
        raise DecodeError("no_frames", f"no frame from {part[0]:g} to {part[1]:g} s: {why}")
    return replace(timeline, begin=max(start, timeline.times[0]), end=min(end, timeline.end))


def span_s(path: Path) -> tuple[float, float]:
    """First and last second of a video by its stream's clock: as the header says, else as the packets do.

    Raises:
        DecodeError: as ``read_timeline``, and no such file.
    """
    with open_video(path) as container:
        video = picture_stream(container)
        start = float((video.start_time or 0) * video.time_base)
        indexed = INDEXED & set(container.format.name.split(","))
        if indexed and video.duration:
            return start, start + float(video.duration * video.time_base)
        if indexed and container.duration:
            return start, container.duration / av.time_base
        timeline = read_timeline(container)
        return float(timeline.start * video.time_base), float(timeline.end * video.time_base)


def _open_source(source: Source) -> IOBase:
    """A file object; whatever a store's package says is not repeated, for it may hold the address."""
    try:
        return source.open()
    except FileNotFoundError as error:
        raise DecodeError("missing", "the file does not exist") from error
    except AlignerError as error:
        raise DecodeError("unreadable", str(error)) from error
    except Exception as error:
        raise DecodeError("unreadable", f"cannot be opened ({type(error).__name__})") from None


def _check_file(path: Path) -> str:
    if not path.exists():
        raise DecodeError("missing", "the file does not exist")
    if not path.is_file():
        raise DecodeError("unreadable", "not a file")
    if path.stat().st_size == 0:
        raise DecodeError("empty", "the file has 0 bytes")
    return str(path)


def open_video(path: Path | Source) -> InputContainer:
    """An opened file that has a video stream.

    Raises:
        DecodeError: the file is missing, empty, unreadable or no video.
    """
    place = path.file or path if isinstance(path, Source) else path
    file = _open_source(place) if isinstance(place, Source) else _check_file(place)
    try:
        options = {"format_whitelist": CONTAINERS}
        container = av.open(file, mode="r", options=options, metadata_errors="replace")
    except (av.FFmpegError, OSError) as error:
        reason = error.strerror or type(error).__name__
        raise DecodeError("unreadable", f"not a readable media file: {reason}") from error
    if picture_stream(container) is None:
        kinds = sorted({stream.type for stream in container.streams})
        container.close()
        raise DecodeError("no_video", f"no video stream; streams found: {', '.join(kinds) or 'none'}")
    if picture_stream(container).codec_context is None:
        container.close()
        raise DecodeError("unreadable", "the video stream is of a codec that is not known")
    return container


def picture_stream(container: InputContainer) -> Any:
    """The first video stream that is not the cover picture of a music file, or None."""
    cover = av.stream.Disposition.attached_pic
    return next((stream for stream in container.streams.video if not stream.disposition & cover), None)


def _check_length(container: InputContainer, packets: int, last_s: float) -> None:
    """Notice a file cut short in formats that can be read up to the cut without any error.

    Headers are taken at their word with 2 % (frames) and 10 % (duration) of grace: recorders miscount a
    little.
    """
    announced = picture_stream(container).frames
    if announced - packets > max(2, announced // 50):
        raise DecodeError("truncated", f"the header announces {announced} frames, the file holds {packets}")
    # Only Matroska states a duration and no number of frames; other formats estimate what they do not state.
    stated = (container.duration or 0) / av.time_base if "matroska" in container.format.name else 0.0
    if stated - last_s > max(1.0 if stated > 10 else 0.1, 0.1 * stated):
        raise DecodeError(
            "truncated", f"the header announces {stated:.2f} s, the file ends at {last_s:.2f} s"
        )


def _sample(
    path: Path | Source, timeline: Timeline, targets: list[list[int]], deadline: Deadline, prepare: Prepare
) -> list[list[Frame]]:
    """Per view the frames at its targets, which are times of the timeline; each is decoded once."""
    pictures: dict[int, Frame] = {}
    reformatter = VideoReformatter()
    with _Reader(path, timeline, deadline) as reader:
        for target in sorted({target for view in targets for target in view}):
            frame, at = reader.frame_at(target)
            rgb = reformatter.reformat(frame, format="rgb24").to_ndarray()
            pictures[target] = Frame(0, float(at * reader.time_base), prepare(upright(rgb, frame.rotation)))
    return _in_order(targets, pictures)


def _in_order(targets: list[list[int]], pictures: dict[int, Frame]) -> list[list[Frame]]:
    return [[replace(pictures[target], index=index) for index, target in enumerate(view)] for view in targets]


def _sample_pictures(
    folder: Source, sampling: Sampling, video_id: str, deadline: Deadline, prepare: Prepare
) -> list[list[Frame]]:
    """Pictures of a folder as if they were the frames of a video of constant rate, the first at 0 s."""
    try:
        names = pictures_of(os.listdir(folder.place))
    except OSError as error:
        raise DecodeError("missing", f"no folder of pictures: {error.strerror}") from error
    if not names:
        raise DecodeError("no_frames", "the folder holds no picture")
    rate = folder.frame_rate or 1.0
    timeline = _pictures_within(Timeline(list(range(len(names))), [0], len(names), True), folder.part, rate)
    targets = [timeline.shown(moments) for moments in sampling.moments(video_id, timeline.length)]
    pictures = {
        place: Frame(0, place / rate, prepare(_picture(Path(folder.place, names[place]), deadline)))
        for place in sorted({place for view in targets for place in view})
    }
    return _in_order(targets, pictures)


def _pictures_within(timeline: Timeline, part: tuple[float, float] | None, rate: float) -> Timeline:
    if part is None:
        return timeline
    start, end = (round(second * rate) for second in part)
    if start >= timeline.end:
        raise DecodeError(
            "no_frames", f"no picture from {part[0]:g} s on: they end at {timeline.end / rate:.2f} s"
        )
    return replace(timeline, begin=start, end=min(max(end, start + 1), timeline.end))


def _picture(path: Path, deadline: Deadline) -> np.ndarray:
    deadline.check("decode")
    try:
        with Image.open(path, formats=("JPEG", "PNG", "WEBP", "BMP")) as picture:
            return np.array(ImageOps.exif_transpose(picture).convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise DecodeError("broken", f"the picture {path.name} cannot be read: {reason}", "decode") from error


def upright(rgb: np.ndarray, rotation: int) -> np.ndarray:
    """Turn a picture as its metadata asks: ``rotation`` degrees counter-clockwise, in quarter turns."""
    return np.ascontiguousarray(np.rot90(rgb, k=round(rotation / 90)))


class _Reader:
    """Frames in order of time, forward only, jumping over groups of pictures when that saves decoding."""

    def __init__(self, path: Path | Source, timeline: Timeline, deadline: Deadline) -> None:
        self.path = path
        self.deadline = deadline
        self.timeline = timeline
        self.timed = timeline.seekable
        self._restart()
        # After a seek the MPEG program stream tells times that are off by a few frames.
        self.jumps = self.timed and self.container.format.name != "mpeg"

    def __enter__(self) -> "_Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self.container.close()

    def _restart(self) -> None:
        self.container = open_video(self.path)
        self.stream = picture_stream(self.container)
        # One thread per decoder: parallelism comes from decoding several videos at once.
        self.stream.codec_context.thread_count = 1
        self.time_base = self.stream.time_base
        self._begin()

    def _begin(self, jumped: bool = False) -> None:
        self.frames = self._timed_frames()
        self.jumped = jumped
        self.current: tuple[VideoFrame, int] | None = None
        self.upcoming: tuple[VideoFrame, int] | None = None

    def _timed_frames(self) -> Iterator[tuple[VideoFrame, int]]:
        times = self.timeline.times
        for place, frame in enumerate(self.container.decode(self.stream)):
            self.deadline.check("decode")
            pts = frame.pts if self.timed else None
            yield frame, times[min(place, len(times) - 1)] if pts is None else pts

    def frame_at(self, target: int) -> tuple[VideoFrame, int]:
        """The frame on display at ``target``, a time of the timeline, and its time."""
        self._jump(target)
        while self.current is None or self.current[1] < target:
            self.upcoming = self.upcoming or next(self.frames, None)
            if self.upcoming is None:
                break
            if self._astray(self.upcoming[1], target):
                return self.frame_at(target)
            if self.current and self.upcoming[1] > target:
                break
            self.current, self.upcoming = self.upcoming, None
        return self._checked(target)

    def _jump(self, target: int) -> None:
        keyframe = self.timeline.keyframe(target) if self.jumps else None
        position = self.current[1] if self.current else self.timeline.times[0]
        unread = self.timeline.partial and self.current is None
        if keyframe is not None and (unread or keyframe > position):
            self.container.seek(keyframe, stream=self.stream)
            self._begin(jumped=True)

    def _astray(self, time: int, target: int) -> bool:
        """Start again without jumps, or without trust in the frames' times, when one of them proves wrong."""
        backwards = self.timed and self.current is not None and time <= self.current[1]
        first = self.jumped and self.current is None
        overshot = first and (time > target or self.timeline.times[self.timeline.place(time)] != time)
        if (backwards or overshot) and self.timeline.partial:
            raise _Misled
        if backwards or overshot:
            self.container.close()
            self.timed, self.jumps = self.timed and not backwards, False
            self._restart()
        return backwards or overshot

    def _checked(self, target: int) -> tuple[VideoFrame, int]:
        """The current frame, unless the decoder ran dry well before the target."""
        if self.current is None:
            raise DecodeError("no_frames", "the decoder gave no frame", "decode")
        times = self.timeline.times
        short = bisect_right(times, target) - bisect_right(times, self.current[1])
        if short > HIDDEN_FRAMES:
            at = float(self.current[1] * self.time_base)
            raise DecodeError("broken", f"the pictures end at {at:.2f} s, {short} frames early", "decode")
        return self.current
