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
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from aligner import artifact, encoder, match, plan, regions
from aligner.config import AlignConfig, AlignerError, parse_shards
from aligner.decoding import CRASHED, TIMEOUT, Clip, Decoders, NoClip
from aligner.pixels import Cutter
from aligner.progress import Progress

POLL_S = 0.2


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
        return -(-self.frames_per_pass // self.config.frames)

    def cutter(self) -> Cutter:
        """How decoded pictures become the model's input."""
        settings = self.manifest["config"]
        return Cutter(
            tuple(settings["image_size"]),
            settings["resize_mode"],
            settings["interpolation"],
            settings["fill_color"],
        )


@dataclass
class Timings:
    """Seconds of a shard, by what they were spent on.

    ``seconds`` is the time of the encoding thread, of which ``wait_decode`` and ``wait_write`` were spent
    waiting; ``decode`` adds up over the decoding processes and ``write`` is the writing thread's.
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


class FrameEncoder:
    """Encodes and matches passes of a fixed number of frames, fewer at once after the GPU ran out of memory."""

    def __init__(self, job: Job) -> None:
        settings = job.manifest["config"]
        self.encoder, self.matcher = job.encoder, job.matcher
        self.device = job.matcher.entities.device
        self.mean = torch.tensor(settings["mean"], device=self.device)
        self.std = torch.tensor(settings["std"], device=self.device)
        self.size = self.at_once = job.frames_per_pass

    def __call__(self, crops: list[np.ndarray], timings: Timings) -> FrameRows:
        """Rows of at most ``size`` frames, encoded as one pass of exactly ``size``.

        Raises:
            AlignerError: the GPU has no room for a single frame.
        """
        batch = np.zeros((self.size, *crops[0].shape), np.uint8)
        np.stack(crops, out=batch[: len(crops)])
        frames = self._on_device(torch.from_numpy(batch))
        while True:
            try:
                return self._rows(frames, timings).part(0, len(crops))
            except torch.OutOfMemoryError as error:
                if self.at_once == 1:
                    raise AlignerError("the GPU has no memory for a single frame; is it shared?") from error
            self.at_once = -(-self.at_once // 2)
            torch.cuda.empty_cache()

    def _on_device(self, frames: Tensor) -> Tensor:
        if self.device.type != "cuda":
            return frames.to(self.device)
        return frames.pin_memory().to(self.device, non_blocking=True)

    def _rows(self, frames: UInt8[Tensor, "frames height width 3"], timings: Timings) -> FrameRows:
        parts = []
        for crops in frames.split(self.at_once):
            with timings.clock("encode"):
                found = self.encoder(normalise(crops, self.mean, self.std))
                if self.device.type == "cuda":
                    torch.cuda.synchronize(self.device)
            with timings.clock("match"):
                parts.append(self._matched(found))
        return joined(parts)

    def _matched(self, found: encoder.EncodedFrames) -> FrameRows:
        frames, tokens, _ = found.embeddings.shape
        norm = found.embeddings.norm(dim=-1)
        finite = found.embeddings.isfinite().all(-1).all(-1) & (norm > 0).all(-1)
        # A frame that is no number is matched as zeros: its neighbours in the pass are none the worse for it.
        unit = torch.where(finite[:, None, None], found.embeddings / norm.unsqueeze(-1), 0.0)
        matches = self.matcher(unit.flatten(0, 1))
        shape = regions.region_geometry(found.source, tokens - 1, self.encoder.grid)
        return FrameRows(
            _array(shape.patches, np.int16),
            _array(shape.centroid_xy, np.float32),
            _array(shape.box_xyxy, np.float32),
            _array(shape.patch_map, np.uint8),
            _array(matches.entities.view(frames, tokens, -1), np.int32),
            _array(matches.scores.view(frames, tokens, -1), np.float32),
            _array(unit.half(), np.float16),
            _array(norm, np.float32),
            _array(finite, np.bool_),
        )


def normalise(
    crops: UInt8[Tensor, "frames height width 3"], mean: Float[Tensor, "3"], std: Float[Tensor, "3"]
) -> Float[Tensor, "frames 3 height width"]:
    """Bytes to the encoder's floats: to [0, 1], less the mean, by the deviation, channels first."""
    pixels = crops.permute(0, 3, 1, 2).contiguous().float().div_(255)
    return pixels.sub_(mean[:, None, None]).div_(std[:, None, None])


def _array(values: Tensor, dtype: Any) -> np.ndarray:
    return values.cpu().numpy().astype(dtype, copy=False)


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

    def __init__(self, encode: Callable[[list[np.ndarray]], FrameRows], size: int) -> None:
        self.encode, self.size = encode, size
        self.videos: deque[_Pending] = deque()
        self.crops: list[np.ndarray] = []

    def add(self, item: Item, clip: Decoded) -> Iterator[tuple[Item, "Result"]]:
        """Take one more video; yields the videos that are finished now."""
        crops = list(clip.crops) if isinstance(clip, Clip) else []
        self.videos.append(_Pending(item, clip, len(crops)))
        self.crops += crops
        while len(self.crops) >= self.size:
            self._pass()
        yield from self._finished()

    def flush(self) -> Iterator[tuple[Item, "Result"]]:
        """The rest, after the last video of a shard."""
        if self.crops:
            self._pass()
        yield from self._finished()

    def _pass(self) -> None:
        rows = self.encode(self.crops[: self.size])
        self.crops = self.crops[self.size :]
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
        frame_index=np.repeat(np.arange(frames, dtype=np.int32), tokens),
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

    def __iter__(self) -> Iterator[tuple[Item, Result]]:
        """Results up to the message that ends the shard or gives it up."""
        while (message := self.queue.get()) is not None:
            if message is Stopped:
                raise Stopped
            yield message


def commit(job: Job, shard: int, results: Feed, timings: Timings) -> dict[str, Any]:
    """Write one shard: rows, failures, timings and, last, the marker, which is returned.

    Raises:
        Stopped: the shard was given up; nothing of it is left behind.
        AlignerError: what was written does not read back, or videos are missing.
    """
    out, items = job.config.out, job.plan.shard(shard)
    attempt = artifact.begin_attempt(out, shard)
    failures: list[artifact.Failure] = []
    target = out / artifact.shard_name(shard)
    with artifact.atomic(target, lambda path: _reopen(path, writer)) as temporary:
        with artifact.ShardWriter(temporary, artifact.schema_of(job.manifest)) as writer:
            for item, result in results:
                with timings.clock("write"):
                    if isinstance(result, artifact.Failure):
                        failures.append(result)
                    else:
                        writer.add(item.video_id, result)
    _refuse_gaps(items, writer, failures)
    failed = out / artifact.failures_name(shard)
    artifact.write_table(failed, artifact.failures_table(failures))
    marker = {
        "shard": shard,
        "fingerprint": job.fingerprint(shard),
        "rows": writer.rows,
        "bytes": target.stat().st_size,
        "sha256": artifact.file_sha256(target),
        "failures_sha256": artifact.file_sha256(failed),
        "videos": writer.index,
        "counts": {"planned": len(items), "ok": len(writer.index), "failed": len(failures)},
        "frames_at_once": results.frames_at_once,
    }
    spent = {name: round(seconds, 4) for name, seconds in asdict(timings).items()}
    artifact.write_json(out / artifact.timings_name(shard), {"attempt": attempt, **spent})
    artifact.write_json(out / artifact.marker_name(shard), marker)
    return marker


def _reopen(path: Path, writer: artifact.ShardWriter) -> None:
    """Read back the footer before the file gets its name."""
    with pq.ParquetFile(path) as file:
        same = file.schema_arrow.equals(writer.schema, check_metadata=True)
        if file.metadata.num_rows != writer.rows or not same:
            raise AlignerError(f"{path.name} does not read back as written; is the disk full or failing?")


def _refuse_gaps(items: list[Item], writer: artifact.ShardWriter, failures: list[artifact.Failure]) -> None:
    """Every planned video is a row of either kind, exactly once."""
    found = sorted([*writer.index, *(failure.video_id for failure in failures)])
    if found != sorted(item.video_id for item in items):
        raise AlignerError(
            f"{len(items)} videos planned, {len(writer.index)} ok and {len(failures)} failed: some were lost; "
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
        videos = decoders.ahead(_sources(job, shards), config.frames, depth)
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
    batcher = Batcher(lambda crops: encode(crops, timings), encode.size)

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
