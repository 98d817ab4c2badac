"""The engine: decode in child processes, encode in full passes across videos, write in a thread, commit.

A forward pass always holds the same number of frames, taken in plan order from the videos of one shard; the last
one is filled up with blanks. What an encoder says about a frame depends on the shape of the pass (the last bits of
a matrix product do) but not on the other frames in it, nor on the frame's place: tests/aligner/test_passes.py
proves that. So a shard is a function of plan, settings, model and corpus, and the device sees full passes.
"""

import math
import queue
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from aligner import artifact, encoder, match, plan, regions, resize
from aligner.config import AlignConfig, AlignerError, parse_shards
from aligner.decoding import CRASHED, TIMEOUT, Clip, Decoders, NoClip
from aligner.pixels import Cutter
from aligner.progress import Progress
from aligner.views import Sampling

POLL_S = 0.2
# Passes that a GPU is at work on while the rows of an earlier one are taken apart.
AHEAD = 1


class Stopped(Exception):
    """A signal asked for a stop and the grace time is over; the shard at hand is given up."""


class Stop:
    """Whether to stop: no shard is begun any more, and the one at hand is given up when the grace is over."""

    def __init__(self) -> None:
        self.deadline = math.inf

    def ask(self, grace_s: float = 0.0) -> None:
        """Ask for a stop; may be called from a signal handler."""
        self.deadline = min(self.deadline, time.monotonic() + grace_s)

    @property
    def asked(self) -> bool:
        """Whether somebody asked."""
        return self.deadline < math.inf

    def check(self) -> None:
        """Raise Stopped when the grace is over."""
        if time.monotonic() >= self.deadline:
            raise Stopped


@dataclass(frozen=True)
class Job:
    """Everything a shard needs: settings, plan, model, corpus and the manifest that they agree on."""

    config: AlignConfig
    plan: plan.Plan
    encoder: encoder.RegionEncoder
    matcher: match.Matcher
    manifest: dict[str, Any]

    def fingerprint(self, shard: int) -> str:
        """What the marker of a shard carries."""
        return artifact.shard_fingerprint(self.manifest, shard)

    def my_shards(self) -> list[int]:
        """Shards of this process."""
        if self.config.shards is not None:
            wanted = parse_shards(self.config.shards)
            return [shard for shard in range(self.plan.num_shards) if any(shard in part for part in wanted)]
        return list(range(self.config.shard_index, self.plan.num_shards, self.config.num_shards))

    @property
    def frames_per_pass(self) -> int:
        """Frames in a forward pass, as recorded when the folder was begun."""
        return self.manifest["config"]["frames_per_pass"]

    @property
    def videos_per_pass(self) -> int:
        """Videos that fill a pass."""
        return -(-self.frames_per_pass // (self.config.frames * artifact.view_count(self.manifest)))

    def cutter(self) -> Cutter:
        """How decoded pictures become the model's input."""
        cutter = Cutter.of(self.manifest["config"])
        return replace(cutter, whole=self.config.preprocess == "device")


@dataclass
class Timings:
    """Seconds of a shard, by what they were spent on.

    ``seconds`` is the time of the encoding thread, of which ``wait_decode`` and ``wait_write`` were spent
    waiting; ``encode`` and ``match`` are the device's, which on a GPU works on while that thread does other
    things; ``decode`` adds up over the decoding processes and ``write`` is the writing thread's.
    """

    decode: float = 0.0
    encode: float = 0.0
    match: float = 0.0
    write: float = 0.0
    wait_decode: float = 0.0
    wait_write: float = 0.0
    seconds: float = 0.0

    @contextmanager
    def clock(self, name: str) -> Iterator[None]:
        """Add the time that a block takes."""
        start = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, name, getattr(self, name) + time.perf_counter() - start)


Decoded = Clip | artifact.Failure
Item = plan.VideoItem


# Encoding.


@dataclass(frozen=True)
class FrameRows:
    """The rows of some frames, an array [frames, tokens, ...] per column of artifact.VideoRows.

    ``finite`` says of each frame whether its embeddings are numbers; the other columns mean nothing if not.
    """

    patches: np.ndarray
    centroid_xy: np.ndarray
    box_xyxy: np.ndarray
    patch_map: np.ndarray
    topk_entity: np.ndarray
    topk_score: np.ndarray
    embedding: np.ndarray
    norm: np.ndarray
    finite: np.ndarray

    def part(self, start: int, stop: int) -> "FrameRows":
        """Some of the frames."""
        return FrameRows(*(getattr(self, column.name)[start:stop] for column in fields(self)))


# What the columns of FrameRows are on the device, so that as few bytes as possible come back.
COLUMNS = {
    "patches": torch.int16,
    "centroid_xy": torch.float32,
    "box_xyxy": torch.float32,
    "patch_map": torch.uint8,
    "topk_entity": torch.int32,
    "topk_score": torch.float32,
    "embedding": torch.float16,
    "norm": torch.float32,
    "finite": torch.bool,
}

Crops = Sequence[np.ndarray] | Sequence[Tensor]


class Moment:
    """A moment in the work of a device, which on a GPU comes later than the call that asks for the work."""

    def __init__(self, device: torch.device) -> None:
        self.time_s = time.perf_counter()
        self.event = torch.cuda.Event(enable_timing=True) if device.type == "cuda" else None
        if self.event is not None:
            self.event.record(torch.cuda.current_stream(device))

    def wait(self) -> None:
        """Until the device is there."""
        if self.event is not None:
            self.event.synchronize()

    def since(self, earlier: "Moment") -> float:
        """Seconds of the device's time between two moments that are over."""
        if self.event is not None and earlier.event is not None:
            return earlier.event.elapsed_time(self.event) / 1000
        return self.time_s - earlier.time_s


@dataclass(frozen=True)
class _Part:
    """Rows that are on their way from the device, with the moments of their work."""

    rows: dict[str, Tensor]
    start: Moment
    encoded: Moment
    matched: Moment
    copied: Moment

    def collect(self, timings: Timings) -> FrameRows:
        """Wait for them."""
        self.copied.wait()
        timings.encode += self.encoded.since(self.start)
        timings.match += self.matched.since(self.encoded)
        return FrameRows(**{name: values.numpy() for name, values in self.rows.items()})


class FrameEncoder:
    """Encodes and matches passes of a fixed number of frames, fewer at once after the GPU ran out of memory.

    On a GPU nothing here waits for it but ``_Part.collect``: copies to it are made from pinned memory in a stream of
    their own and copies back into pinned memory, so that a pass can be asked for while the one before is at work.
    """

    def __init__(self, job: Job) -> None:
        settings = job.manifest["config"]
        self.encoder, self.matcher = job.encoder, job.matcher
        self.device = job.matcher.entities.device
        self.mean = torch.tensor(settings["mean"], device=self.device)
        self.std = torch.tensor(settings["std"], device=self.device)
        self.cutter = job.cutter()
        self.size = self.at_once = job.frames_per_pass
        self.copies = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self.ahead = AHEAD if self.copies is not None else 0

    def __call__(self, crops: Crops, timings: Timings) -> FrameRows:
        """Rows of at most ``size`` frames, encoded as one pass of exactly ``size``."""
        return self.start(crops)(timings)

    def cut(self, pictures: UInt8[np.ndarray, "frames height width 3"]) -> Crops:
        """A video's frames as ``start`` takes them: those that came whole are cut on the device.

        Raises:
            AlignerError: the GPU has no room for them.
        """
        if not self.cutter.whole:
            return list(pictures)
        host = self._pinned(pictures.shape)
        host.numpy()[:] = pictures
        try:
            return list(resize.cut(self._on_device(host), self.cutter))
        except torch.OutOfMemoryError as error:
            height, width = pictures.shape[1:3]
            raise AlignerError(
                f"the GPU has no memory to cut {len(pictures)} pictures of {width} x {height}; use --preprocess cpu, "
                "or a smaller --batch-frames"
            ) from error

    def start(self, crops: Crops) -> Callable[[Timings], FrameRows]:
        """Begin a pass of at most ``size`` frames, filled up to exactly ``size``; what is returned waits for its rows.

        Raises:
            AlignerError: the GPU has no room for a single frame.
        """
        frames = self._batch(crops)
        while True:
            try:
                parts = [self._part(part) for part in frames.split(self.at_once)]
                break
            except torch.OutOfMemoryError as error:
                if self.at_once == 1:
                    raise AlignerError("the GPU has no memory for a single frame; is it shared?") from error
            self.at_once = -(-self.at_once // 2)
            torch.cuda.empty_cache()
        return lambda timings: joined([part.collect(timings) for part in parts]).part(0, len(crops))

    def _batch(self, crops: Crops) -> UInt8[Tensor, "size height width 3"]:
        shape = (self.size, *crops[0].shape)
        if isinstance(crops[0], Tensor):
            frames = torch.zeros(shape, dtype=torch.uint8, device=self.device)
            frames[: len(crops)] = torch.stack(cast(list[Tensor], crops))
            return frames
        host = self._pinned(shape)
        np.stack(crops, out=host.numpy()[: len(crops)])
        return self._on_device(host)

    def _pinned(self, shape: tuple[int, ...]) -> UInt8[Tensor, "..."]:
        """Zeros that a GPU can fetch by itself."""
        return torch.zeros(shape, dtype=torch.uint8, pin_memory=self.copies is not None)

    def _on_device(self, host: UInt8[Tensor, "..."]) -> UInt8[Tensor, "..."]:
        if self.copies is None:
            return host.to(self.device)
        with torch.cuda.stream(self.copies):
            values = host.to(self.device, non_blocking=True)
        torch.cuda.current_stream(self.device).wait_stream(self.copies)
        values.record_stream(torch.cuda.current_stream(self.device))
        return values

    def _part(self, crops: UInt8[Tensor, "frames height width 3"]) -> _Part:
        start = Moment(self.device)
        found = self.encoder(normalise(crops, self.mean, self.std))
        encoded = Moment(self.device)
        rows = self._matched(found)
        matched = Moment(self.device)
        rows = {name: rows[name].to(dtype).to("cpu", non_blocking=True) for name, dtype in COLUMNS.items()}
        return _Part(rows, start, encoded, matched, Moment(self.device))

    def _matched(self, found: encoder.EncodedFrames) -> dict[str, Tensor]:
        frames, tokens, _ = found.embeddings.shape
        norm = found.embeddings.norm(dim=-1)
        finite = found.embeddings.isfinite().all(-1).all(-1) & (norm > 0).all(-1)
        # A frame that is no number is matched as zeros: its neighbours in the pass are none the worse for it.
        unit = torch.where(finite[:, None, None], found.embeddings / norm.unsqueeze(-1), 0.0)
        matches = match.top_entities(unit.flatten(0, 1), self.matcher.entities, self.matcher.k)
        shape = regions.region_geometry(found.source, tokens - 1, self.encoder.grid)
        return {
            **vars(shape),
            "topk_entity": matches.entities.view(frames, tokens, -1),
            "topk_score": matches.scores.view(frames, tokens, -1),
            "embedding": unit,
            "norm": norm,
            "finite": finite,
        }


def normalise(
    crops: UInt8[Tensor, "frames height width 3"], mean: Float[Tensor, "3"], std: Float[Tensor, "3"]
) -> Float[Tensor, "frames 3 height width"]:
    """Bytes to the encoder's floats: to [0, 1], less the mean, by the deviation; channels last in memory."""
    return crops.float().div_(255).sub_(mean).div_(std).permute(0, 3, 1, 2)


def joined(parts: list[FrameRows]) -> FrameRows:
    """The frames of all parts."""
    if len(parts) == 1:
        return parts[0]
    names = [column.name for column in fields(FrameRows)]
    return FrameRows(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


@dataclass
class _Pending:
    """A video on its way through the passes: its clip, the parts that are encoded, the frames that are not."""

    item: Item
    clip: Decoded
    left: int
    parts: list[FrameRows] = field(default_factory=list)


class Batcher:
    """Gathers the frames of consecutive videos into passes, and hands the videos back in their order."""

    def __init__(
        self,
        start: Callable[[Crops], Callable[[], FrameRows]],
        size: int,
        cut: Callable[[np.ndarray], Crops] = list,
        ahead: int = 0,
    ) -> None:
        """``start`` begins a pass and gives what waits for it; ``cut`` makes frames of a clip for it.

        ``ahead`` passes may be begun before an earlier one is waited for.
        """
        self.start, self.size, self.cut, self.ahead = start, size, cut, ahead
        self.videos: deque[_Pending] = deque()
        self.crops: list[Any] = []
        self.running: deque[Callable[[], FrameRows]] = deque()

    def add(self, item: Item, clip: Decoded) -> Iterator[tuple[Item, "Result"]]:
        """Take one more video; yields the videos that are finished now."""
        crops = self.cut(clip.crops) if isinstance(clip, Clip) else []
        self.videos.append(_Pending(item, clip, len(crops)))
        self.crops += crops
        while len(self.crops) >= self.size:
            self._pass()
        yield from self._finished()

    def flush(self) -> Iterator[tuple[Item, "Result"]]:
        """The rest, after the last video of a shard."""
        if self.crops:
            self._pass()
        while self.running:
            self._collect()
        yield from self._finished()

    def _pass(self) -> None:
        self.running.append(self.start(self.crops[: self.size]))
        self.crops = self.crops[self.size :]
        while len(self.running) > self.ahead:
            self._collect()

    def _collect(self) -> None:
        rows = self.running.popleft()()
        start = 0
        for video in self.videos:
            count = min(video.left, len(rows.finite) - start)
            if count:
                video.parts.append(rows.part(start, start + count))
                video.left -= count
                start += count

    def _finished(self) -> Iterator[tuple[Item, "Result"]]:
        while self.videos and not self.videos[0].left:
            video = self.videos.popleft()
            yield video.item, video_rows(video.item, video.clip, video.parts)


Result = artifact.VideoRows | artifact.Failure


def video_rows(item: Item, clip: Decoded, parts: list[FrameRows]) -> Result:
    """The rows of one video, or its failure: that of decoding, or an embedding that is no number."""
    if isinstance(clip, artifact.Failure):
        return clip
    rows = joined(parts)
    frames, tokens = rows.norm.shape
    if not rows.finite.all():
        bad = int(np.argmin(rows.finite))
        message = f"{int((~rows.finite).sum())} of {frames} frames have embeddings that are not finite"
        return artifact.Failure(item.video_id, "encode", "not_finite", f"{message}, the first is frame {bad}")
    columns = {column.name: getattr(rows, column.name) for column in fields(rows) if column.name != "finite"}
    return artifact.VideoRows(
        view=np.repeat(np.arange(clip.views, dtype=np.int16), frames // clip.views * tokens),
        frame_index=np.tile(np.repeat(np.arange(frames // clip.views, dtype=np.int32), tokens), clip.views),
        time_s=np.repeat(clip.times_s, tokens),
        region_index=np.tile(np.arange(tokens, dtype=np.int16), frames),
        **{name: values.reshape(frames * tokens, *values.shape[2:]) for name, values in columns.items()},
    )


# Writing.


class Feed:
    """A bounded queue of results from the encoding thread to the writer of one shard."""

    def __init__(self, depth: int) -> None:
        self.queue: queue.Queue[Any] = queue.Queue(depth)
        self.writer: Future[Any] | None = None
        self.frames_at_once = 0

    def put(self, message: Any) -> None:
        """Hand over; raises what the writer died of instead of waiting for it for ever."""
        while True:
            if self.writer is not None and self.writer.done():
                self.writer.result()
            try:
                return self.queue.put(message, timeout=POLL_S)
            except queue.Full:
                continue

    def end(self, frames_at_once: int) -> None:
        """That was the last result; ``frames_at_once`` is what the encoder could hold."""
        self.frames_at_once = frames_at_once
        self.put(None)

    def give_up(self) -> None:
        """Tell the writer to leave nothing of this shard, unless it has ended by itself."""
        if self.writer is not None and not self.writer.done():
            self.put(Stopped)

    def __iter__(self) -> Iterator[tuple[str, Result]]:
        """Results up to the message that ends the shard or gives it up."""
        while (message := self.queue.get()) is not None:
            if message is Stopped:
                raise Stopped
            item, result = message
            yield item.video_id, result


@runtime_checkable
class Results(Protocol):
    """What becomes a shard: the rows or the failure of each video by its id, and the size of the passes."""

    @property
    def frames_at_once(self) -> int:
        """Frames that the encoder held at once; asked for when all results were given."""

    def __iter__(self) -> Iterator[tuple[str, "artifact.VideoRows | pa.Table | artifact.Failure"]]:
        """In order of the ids."""


def commit(job: Job, shard: int, results: Feed, timings: Timings) -> dict[str, Any]:
    """Write one shard of a run; see ``write_shard``.

    Raises:
        Stopped: the shard was given up; nothing of it is left behind.
        AlignerError: what was written does not read back, or videos are missing.
    """
    videos = [item.video_id for item in job.plan.shard(shard)]
    return write_shard(job.config.out, shard, job.manifest, videos, results, timings)


def write_shard(
    out: Path, shard: int, manifest: dict[str, Any], videos: list[str], results: Results, timings: Timings
) -> dict[str, Any]:
    """Write one shard: rows, failures, timings and, last, the marker, which is returned.

    Args:
        out: the alignments folder.
        shard: the number of the shard.
        manifest: that of the folder.
        videos: ids of the planned videos of this shard.
        results: the rows or the failure of each of them, in their order.
        timings: what else took time; the seconds of writing are added.

    Raises:
        AlignerError: what was written does not read back, or videos are missing.
    """
    attempt = artifact.begin_attempt(out, shard)
    failures: list[artifact.Failure] = []
    target = out / artifact.shard_name(shard)
    with artifact.atomic(target, lambda path: _reopen(path, writer)) as temporary:
        with artifact.ShardWriter(temporary, artifact.schema_of(manifest)) as writer:
            for video_id, result in results:
                with timings.clock("write"):
                    if isinstance(result, artifact.Failure):
                        failures.append(result)
                    else:
                        writer.add(video_id, result)
    _refuse_gaps(videos, writer, failures)
    failed = out / artifact.failures_name(shard)
    artifact.write_table(failed, artifact.failures_table(failures))
    marker = {
        "shard": shard,
        "fingerprint": artifact.shard_fingerprint(manifest, shard),
        "rows": writer.rows,
        "bytes": target.stat().st_size,
        "sha256": artifact.file_sha256(target),
        "failures_sha256": artifact.file_sha256(failed),
        "videos": writer.index,
        "counts": {"planned": len(videos), "ok": len(writer.index), "failed": len(failures)},
        "frames_at_once": results.frames_at_once,
    }
    spent = {name: round(seconds, 4) for name, seconds in asdict(timings).items()}
    # Rows that were only copied say nothing of a run's pace.
    spent = spent if timings.seconds else {}
    artifact.write_json(out / artifact.timings_name(shard), {"attempt": attempt, **spent})
    artifact.write_json(out / artifact.marker_name(shard), marker)
    return marker


def _reopen(path: Path, writer: artifact.ShardWriter) -> None:
    """Read back the footer before the file gets its name."""
    with pq.ParquetFile(path) as file:
        same = file.schema_arrow.equals(writer.schema, check_metadata=True)
        if file.metadata.num_rows != writer.rows or not same:
            raise AlignerError(f"{path.name} does not read back as written; is the disk full or failing?")


def _refuse_gaps(videos: list[str], writer: artifact.ShardWriter, failures: list[artifact.Failure]) -> None:
    """Every planned video is a row of either kind, exactly once."""
    found = sorted([*writer.index, *(failure.video_id for failure in failures)])
    if found != sorted(videos):
        raise AlignerError(
            f"{len(videos)} videos planned, {len(writer.index)} ok and {len(failures)} failed: some were lost; "
            "please report this"
        )


# All together.


def fill(job: Job, shards: list[int], progress: Progress, stop: Stop) -> Iterator[tuple[int, dict[str, Any]]]:
    """Write shards one after the other, and yield (shard, marker) as each is committed.

    Decoding runs ahead across shards, and a shard is committed while the next one is being encoded.

    Raises:
        Stopped: ``stop`` was asked for; finished shards are kept.
    """
    config = job.config
    depth = config.decode_workers + job.videos_per_pass
    artifact.remove_leftovers(config.out, shards)
    encode = FrameEncoder(job)
    writing: deque[tuple[int, Future[dict[str, Any]]]] = deque()
    with (
        ThreadPoolExecutor(1, thread_name_prefix="write") as writer,
        Decoders(config.decode_workers, job.cutter(), config.video_seconds) as decoders,
    ):
        videos = decoders.ahead(
            _sources(job, shards), Sampling.of(job.manifest["config"]), depth, attrgetter("video_id")
        )
        for shard in shards:
            if stop.asked:
                break
            feed, timings = Feed(depth), Timings()
            feed.writer = writer.submit(commit, job, shard, feed, timings)
            writing.append((shard, feed.writer))
            of_shard = islice(videos, len(job.plan.shard(shard)))
            try:
                _encode_shard(encode, _arrived(job, shard, of_shard, timings, stop), feed, timings, progress)
            except BaseException:
                feed.give_up()
                raise
            while len(writing) > 1:
                yield _committed(*writing.popleft())
        while writing:
            yield _committed(*writing.popleft())
    if stop.asked:
        raise Stopped


def _committed(shard: int, writer: Future[dict[str, Any]]) -> tuple[int, dict[str, Any]]:
    return shard, writer.result()


def _sources(job: Job, shards: list[int]) -> Iterator[tuple[Item, Any]]:
    """Where each video is, or why it is not even tried."""
    for shard in shards:
        poison = artifact.read_poison(job.config.out, shard)
        for item in job.plan.shard(shard):
            known = poison.get(item.video_id)
            yield item, NoClip(**known) if known else job.plan.path(item)


def _arrived(
    job: Job,
    shard: int,
    videos: Iterable[tuple[Item, "Future[Clip | NoClip]"]],
    timings: Timings,
    stop: Stop,
) -> Iterator[tuple[Item, Decoded]]:
    """The decoded videos of a shard; one that brought a decoder down goes on the poison list at once."""
    for item, future in videos:
        with timings.clock("wait_decode"):
            while not future.done():
                stop.check()
                wait([future], timeout=POLL_S)
        stop.check()
        clip = future.result()
        if isinstance(clip, Clip):
            timings.decode += clip.seconds
            yield item, clip
            continue
        if clip.error in (CRASHED, TIMEOUT):
            artifact.add_poison(job.config.out, shard, item.video_id, asdict(clip))
        yield item, artifact.Failure(item.video_id, **asdict(clip))


def _encode_shard(
    encode: FrameEncoder,
    videos: Iterator[tuple[Item, Decoded]],
    feed: Feed,
    timings: Timings,
    progress: Progress,
) -> None:

    def start(crops: Crops) -> Callable[[], FrameRows]:
        return partial(encode.start(crops), timings)

    batcher = Batcher(start, encode.size, encode.cut, encode.ahead)

    def results() -> Iterator[tuple[Item, Result]]:
        for item, clip in videos:
            yield from batcher.add(item, clip)
        yield from batcher.flush()

    with timings.clock("seconds"):
        for item, result in results():
            with timings.clock("wait_write"):
                feed.put((item, result))
            progress.advance(not isinstance(result, artifact.Failure))
    feed.end(encode.at_once)
