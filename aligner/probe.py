"""What is in the video files, and which of them are broken: ``aligner check-videos``.

Every file is read in a child process with a time limit, so that a crash or a hang costs that file only. The
report has the columns of a manifest (``path``, ``label``, ``split``, ``seconds``) and can be used as one.
"""

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import av
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from av.container import InputContainer

from aligner import decode
from aligner.artifact import atomic
from aligner.children import Lost, each_in_children
from aligner.config import EXIT_DONE, EXIT_DONE_WITH_FAILURES, AlignerError
from aligner.plan import Plan, VideoItem
from aligner.progress import make_progress
from aligner.sources import Source, as_json, from_json

PROBE = "aligner.probe:probe_file"
# Steps between frames count as equal within a tenth and what containers round (Matroska: 1 ms).
STEP_TOLERANCE, ROUNDING_S = 0.1, 1.5e-3


@dataclass(frozen=True)
class Probe:
    """What is known of one file; None is what could not be found out before it failed.

    ``gop`` is the longest way from one keyframe to the next in frames, ``ordered`` whether its timestamps
    are, ``broken_at_s`` where the first damage lies (only a deep probe looks for it).
    """

    path: str
    label: str | None
    split: str | None
    bytes: int
    ok: bool = False
    stage: str | None = None
    error: str | None = None
    message: str | None = None
    container: str | None = None
    codec: str | None = None
    width: int | None = None
    height: int | None = None
    pixels: str | None = None
    rotation: int | None = None
    seconds: float | None = None
    fps: float | None = None
    frames: int | None = None
    gop: int | None = None
    variable_rate: bool | None = None
    ordered: bool | None = None
    audio: bool | None = None
    broken_at_s: float | None = None


def probe_file(video: dict[str, Any], deep: bool) -> dict[str, Any]:
    """The fields of a ``Probe`` that the file itself tells; ``deep`` decodes every frame.

    ``video`` is what ``sources.as_json`` gives.
    """
    facts: dict[str, Any] = {}
    source = from_json(video)
    try:
        if isinstance(source, Source) and source.frame_rate is not None:
            return _picture_facts(source, deep)
        with decode.open_video(source) as container:
            facts |= _stream_facts(container)
            part = source.part if isinstance(source, Source) else None
            timeline = decode.read_part(container, part) if part else decode.read_timeline(container)
            facts |= _time_facts(timeline, decode.picture_stream(container).time_base)
        with decode.open_video(source) as container:
            _decode_facts(container, timeline, deep, facts)
    except decode.DecodeError as error:
        return facts | {"stage": error.stage, "error": error.reason, "message": str(error)}
    except Exception as error:  # whatever a damaged file provokes in FFmpeg is a fact about the file
        return facts | {
            "stage": "decode",
            "error": type(error).__name__,
            "message": type(error).__doc__ or "",
        }
    return facts | {"ok": True}


def _picture_facts(folder: Source, deep: bool) -> dict[str, Any]:
    """A folder of pictures; ``deep`` reads all of them."""
    count = len(decode.pictures_of(os.listdir(folder.place)))
    height, width, _ = decode.sample_frames(folder, count if deep else 1)[0].rgb.shape
    seconds = count / (folder.frame_rate or 1.0)
    size = {"width": width, "height": height, "seconds": seconds, "frames": count, "fps": folder.frame_rate}
    return {"ok": True, "container": "folder", "codec": "pictures", "rotation": 0, "ordered": True, **size}


def _stream_facts(container: InputContainer) -> dict[str, Any]:
    stream = decode.picture_stream(container)
    context = stream.codec_context
    return {
        "container": container.format.name,
        "codec": context.name,
        "width": context.width,
        "height": context.height,
        "pixels": context.pix_fmt,
        "audio": bool(container.streams.audio),
    }


def _time_facts(timeline: decode.Timeline, time_base: Any) -> dict[str, Any]:
    times, base = timeline.times, float(time_base)
    seconds = (timeline.end - times[0]) * base
    steps = [(after - before) * base for before, after in pairwise(times)]
    return {
        "seconds": round(seconds, 6),
        "frames": len(times),
        "fps": round(len(steps) / sum(steps), 3) if sum(steps) else None,
        "gop": _longest_gop(timeline),
        "variable_rate": _varies(steps),
        "ordered": timeline.ordered,
    }


def _longest_gop(timeline: decode.Timeline) -> int:
    marks = sorted({0, *(timeline.place(time) for time in timeline.keyframes), len(timeline.times)})
    return max(after - before for before, after in pairwise(marks))


def _varies(steps: list[float]) -> bool:
    if not steps:
        return False
    usual = median(steps)
    return max(abs(step - usual) for step in steps) > max(STEP_TOLERANCE * usual, ROUNDING_S)


def _decode_facts(
    container: InputContainer, timeline: decode.Timeline, deep: bool, facts: dict[str, Any]
) -> None:
    """Decode the first frame or all; the facts grow on the way, as far as the file is whole.

    Raises:
        DecodeError: a frame that cannot be decoded, or frames that are missing.
    """
    stream = decode.picture_stream(container)
    decoded, last, problem = 0, timeline.times[0], None
    try:
        for frame in container.decode(stream):
            facts.setdefault("rotation", round(frame.rotation))
            problem = "a frame is damaged" if frame.is_corrupt else None
            if problem or not deep:
                break
            decoded, last = decoded + 1, timeline.times[min(decoded, len(timeline.times) - 1)]
    except av.FFmpegError as error:
        problem = error.strerror or type(error).__name__
    if problem is None and deep and len(timeline.times) - decoded > decode.HIDDEN_FRAMES:
        problem = f"{len(timeline.times) - decoded} of {len(timeline.times)} frames are missing"
    if problem is None and "rotation" not in facts:
        raise decode.DecodeError("no_frames", "the decoder gave no frame", "decode")
    if problem:
        facts["broken_at_s"] = at = round(float(last * stream.time_base), 3)
        raise decode.DecodeError("broken", f"decoding failed at {at:.2f} s: {problem}", "decode")


def check_videos(plan: Plan, deep: bool, workers: int, limit_s: float) -> Iterator[Probe]:
    """A ``Probe`` of every planned video, in the order of the plan."""
    calls = ({"deep": deep, "video": as_json(plan.path(item))} for item in plan.items)
    answers = each_in_children(PROBE, calls, workers, limit_s)
    return (_probe(item, answer) for item, answer in zip(plan.items, answers, strict=True))


def _probe(item: VideoItem, answer: dict[str, Any] | Lost) -> Probe:
    if isinstance(answer, Lost):
        answer = {"stage": "decode", "error": answer.kind, "message": str(answer)}
    return Probe(item.video_id, item.label, item.split, item.bytes, **answer)


def summary(probes: list[Probe]) -> list[str]:
    """Counts by kind, what asks for care, and the bad files with their reasons."""
    good, bad = [p for p in probes if p.ok], [p for p in probes if not p.ok]
    seconds = sum(probe.seconds or 0.0 for probe in good)
    lines = [f"{len(probes)} videos: {len(good)} good ({seconds / 3600:.2f} h), {len(bad)} bad"]
    kinds: dict[str, Callable[[Probe], Any]] = {
        "codec": lambda probe: probe.codec,
        "container": lambda probe: probe.container,
        "size": lambda probe: f"{probe.width}x{probe.height}",
        "pixels": lambda probe: probe.pixels,
        "fps": lambda probe: probe.fps and f"{probe.fps:g}",
    }
    for name, kind in kinds.items():
        counts = Counter(str(kind(probe)) for probe in good).most_common()
        shown = ", ".join(f"{value} ({count})" for value, count in counts[:8])
        lines.append(
            f"  {name:10} {shown or 'none'}" + (f" and {len(counts) - 8} more" if counts[8:] else "")
        )
    notes = {
        "variable frame rate": lambda probe: probe.variable_rate,
        "rotated": lambda probe: probe.rotation,
        "unordered timestamps": lambda probe: not probe.ordered,
        "keyframes more than 250 frames apart": lambda probe: (probe.gop or 0) > 250,
    }
    lines += [f"  {name}: {n}" for name, is_so in notes.items() if (n := sum(map(bool, map(is_so, good))))]
    return lines + [f"bad: {p.path}: {p.stage} ({p.error}): {p.message}" for p in bad]


def write_report(path: Path, probes: list[Probe]) -> None:
    """One row per video as csv, parquet or json, by the extension, atomically.

    Raises:
        AlignerError: another extension.
    """
    write = _writer(path)
    table = pa.Table.from_pylist([asdict(probe) for probe in probes], schema=_report_schema())
    with atomic(path) as temporary:
        write(table, temporary)


def _writer(path: Path) -> Callable[[pa.Table, Path], object]:
    writers: dict[str, Callable[[pa.Table, Path], object]] = {
        ".csv": pa_csv.write_csv,
        ".parquet": pq.write_table,
        ".json": lambda table, file: file.write_text(json.dumps(table.to_pylist(), indent=2) + "\n", "utf-8"),
    }
    if path.suffix.lower() not in writers:
        raise AlignerError(f"--out {path.name}: expected one of {', '.join(writers)}")
    return writers[path.suffix.lower()]


def _report_schema() -> pa.Schema:
    kinds = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    named = {kind.__name__: arrow for kind, arrow in kinds.items()}
    return pa.schema([(field.name, named[_plain(field.type)]) for field in fields(Probe)])


def _plain(kind: Any) -> str:
    """The name of ``kind`` in ``kind | None``."""
    return str(getattr(kind, "__name__", kind)).removesuffix(" | None")


def check_and_report(
    plan: Plan, out: Path | None, *, deep: bool, workers: int, limit_s: float, quiet: bool, as_json: bool
) -> int:
    """``aligner check-videos``: progress on stderr, the summary on stdout; returns the exit code."""
    if out is not None:
        _writer(out)
    probes = []
    with make_progress(len(plan.items), quiet) as progress:
        for probe in check_videos(plan, deep, workers, limit_s):
            probes.append(probe)
            progress.advance(probe.ok)
    if out is not None:
        write_report(out, probes)
    shown = json.dumps([asdict(p) for p in probes], indent=2) if as_json else "\n".join(summary(probes))
    sys.stdout.write(shown + "\n")
    return EXIT_DONE if all(probe.ok for probe in probes) else EXIT_DONE_WITH_FAILURES
