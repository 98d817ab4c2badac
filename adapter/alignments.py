"""Consumer of the Alignments artifact: checks that it is whole, then reads videos by row group.

Axis words: frames, tokens (cls at 0, then the regions of a frame), topk, dim, entities.
"""

import hashlib
import mmap
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float16, Float32, Float64, Int32

from adapter.artifact import read_json, read_manifest, read_table, with_model
from adapter.config import AdapterError, ModelConfig, reason, without_regions
from adapter.labels import vectors

MADE_BY = "aligner run --videos DIR --corpus DIR --model NAME --pretrained TAG --out DIR"
VIDEO_COLUMNS = ("video_id", "label", "split", "shard")
ENTITY_COLUMNS = ("entity_id", "name", "embedding")
COLUMNS = (
    "video_id",
    "frame_index",
    "time_s",
    "region_index",
    "patches",
    "cx",
    "cy",
    "topk_entity",
    "topk_score",
    "embedding",
    "norm",
)
NOT_NUMBERS = ("video_id", "embedding")
# What geometry is made of; not kept beside it.
PARTS = ("patches", "cx", "cy")
# Columns of floating-point numbers, checked to be finite (geometry is cx, cy and the area).
NUMBERS = ("topk_score", "norm", "time_s", "geometry", "scale")
# How embeddings are kept: the Arrow type for a dimension.
STORES: dict[str, Callable[[int], pa.DataType]] = {
    "fp16": lambda dim: pa.binary(2 * dim),
    "int8": lambda dim: pa.binary(dim),
    "topk": lambda dim: pa.binary(),
}


@dataclass(frozen=True)
class Planned:
    """One video of the plan, whether or not it could be read; ``split`` names one split, or several: ``a+b``."""

    video_id: str
    label: str | None
    split: str | None
    shard: int

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that it is in."""
        return tuple(self.split.split("+")) if self.split else ()


@dataclass(frozen=True)
class Entities:
    """The corpus that the alignments point into; row = entity id, embeddings of unit length.

    ``kinds`` are the corpus builder's (object, scene, person ...), None where the corpus does not tell them.
    """

    names: tuple[str, ...]
    embeddings: Float32[np.ndarray, "entities dim"]
    kinds: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Slot:
    """Where a video's rows lie: ``rows`` rows from ``offset`` within one row group of one shard."""

    shard: int
    row_group: int
    offset: int
    rows: int


@dataclass(frozen=True)
class Video:
    """One video's cached regions, in one of its views.

    ``geometry`` holds centroid x, centroid y and area share, all 0..1 of the model's square crop (cls:
    centre, 1); ``times`` are seconds; ``mask`` is False where a frame has fewer regions than the artifact's
    widest. ``embeddings`` are of every token, or of the class token alone where the store keeps no more (topk).
    """

    video_id: str
    embeddings: Float16[np.ndarray, "frames held dim"]
    norms: Float32[np.ndarray, "frames tokens"]
    topk_entity: Int32[np.ndarray, "frames tokens topk"]
    topk_score: Float32[np.ndarray, "frames tokens topk"]
    geometry: Float32[np.ndarray, "frames tokens 3"]
    times: Float64[np.ndarray, " frames"]
    mask: Bool[np.ndarray, "frames tokens"]


@dataclass(frozen=True)
class Shard:
    """A shard's file mapped into memory; ``stamp`` (inode, bytes, time) tells it from one put in its place."""

    content: mmap.mmap
    stamp: tuple[int, int, int]


@dataclass(frozen=True)
class RowGroup:
    """A row group in memory, a row of numpy arrays for each of its own; nothing is copied that need not be.

    ``owner`` is a video by the number that ``numbers`` gives it; ``vectors`` are as stored (float16, or int8 to be
    scaled), and ``place`` says where a row's vector is, if not every row has one. Where the file holds the vectors as
    one run from byte ``offset``, they are a view of it, paged in as they are used.
    """

    stamp: tuple[int, int, int]
    owner: np.ndarray
    numbers: dict[str, int]
    columns: dict[str, np.ndarray]
    vectors: np.ndarray
    place: np.ndarray | None
    offset: int | None

    @property
    def rest_bytes(self) -> int:
        """Memory of all but the vectors."""
        return self.owner.nbytes + sum(column.nbytes for column in self.columns.values())

    def without_vectors(self) -> "RowGroup":
        """The same with no hold on the file, nor on what decoding left: its buffers are larger than their arrays."""
        columns = {name: column.copy() for name, column in self.columns.items()}
        return replace(self, owner=self.owner.copy(), columns=columns, vectors=self.vectors[:0].copy())

    def on(self, shard: Shard) -> "RowGroup":
        """The same with the vectors that lie in its file."""
        assert self.offset is not None
        shape = len(self.owner), self.vectors.shape[1]
        return replace(self, vectors=np.ndarray(shape, self.vectors.dtype, shard.content, self.offset))

    def embeddings(self, rows: Any) -> Float16[np.ndarray, "held dim"]:
        """The vectors that rows hold; those of int8 times their scale."""
        if self.place is not None:
            return self.vectors[np.unique(self.place[rows])]
        if "scale" in self.columns:
            return (self.vectors[rows] * self.columns["scale"][rows][:, None]).astype(np.float16)
        return self.vectors[rows]

    def of_rows(self, held: Bool[np.ndarray, " held"]) -> Bool[np.ndarray, " rows"]:
        """What is said of vectors, said of the rows (a row without a vector: as the one before it)."""
        return held if self.place is None else held[self.place]


@dataclass
class Alignments:
    """An opened, complete Alignments artifact."""

    path: Path
    manifest: dict[str, Any]
    plan: tuple[Planned, ...]
    entities: Entities
    index: dict[str, Slot]
    failed: dict[str, str]
    fingerprint: str
    keep: int = 8
    keep_bytes: int = 0
    _groups: "OrderedDict[tuple[int, int], RowGroup]" = field(default_factory=OrderedDict)
    _rest: dict[tuple[int, int], RowGroup] = field(default_factory=dict)
    _rest_bytes: int = 0
    _verified: dict[tuple[int, int], tuple[int, int, int]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def model(self) -> Mapping[str, Any]:
        """The vision-language model that made the embeddings."""
        return self.manifest["model"]

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return self.manifest["dim"]

    @property
    def frames(self) -> int:
        """Frames of every video."""
        return self.manifest["frames"]

    @property
    def views(self) -> int:
        """Views of every video: draws or clips, times crops; one in versions before 3."""
        return len(self.manifest.get("views", [None]))

    @property
    def tokens(self) -> int:
        """Tokens of a frame: cls and the regions."""
        return self.manifest["regions"] + 1

    @property
    def store(self) -> str:
        """How embeddings are kept; before version 3 always as fp16."""
        return self.manifest["config"].get("store", "fp16")

    @property
    def held(self) -> int:
        """Tokens of a frame whose embeddings are kept: all, or the class token alone."""
        return 1 if self.store == "topk" else self.tokens

    def require_regions(self, config: ModelConfig, who: str = "") -> None:
        """Raise when a model reads embeddings of regions, and there are none; ``who`` begins the message."""
        if config.reads_regions and self.store == "topk":
            raise AdapterError(who + without_regions(config, f"alignments {self.path}"))

    def bytes_per_video(self) -> int:
        """Memory of one view of a video as ``Video`` holds it."""
        rest = self.tokens * (8 * self.manifest["config"]["top_k"] + 17)
        return self.frames * (2 * self.dim * self.held + rest)

    def group_of(self, video_id: str) -> tuple[int, int]:
        """Shard and row group of a video: videos of one group are read together."""
        slot = self.index[video_id]
        return slot.shard, slot.row_group

    def read(self, video_ids: Iterable[str], view: int = 0) -> Iterator[Video]:
        """One view of videos in the order asked for.

        The last ``keep`` row groups stay in memory, so sort by group. Of others all but the vectors (a seventh, and
        nearly all the work of decoding) stays, up to ``keep_bytes``, if their vectors can be mapped from the file.
        """
        for video_id in video_ids:
            yield self._video(video_id, view)

    def _video(self, video_id: str, view: int) -> Video:
        slot = self.index[video_id]
        group = self._group(slot.shard, slot.row_group)
        rows: Any = slice(slot.offset, slot.offset + slot.rows)
        owners = group.owner[rows]
        if slot.rows < 1 or len(owners) != slot.rows or (owners != group.numbers.get(video_id, -1)).any():
            raise _damaged(self.path, slot.shard, f"the rows of {video_id} are not where its marker says")
        if self.views > 1:
            rows = _run(slot.offset + np.flatnonzero(group.columns["view"][rows] == view))
        return self._assemble(video_id, group, rows, slot.shard)

    def _assemble(self, video_id: str, group: RowGroup, rows: Any, shard: int) -> Video:
        f, s = self.frames, self.tokens
        columns = {name: column[rows] for name, column in group.columns.items()}
        frame, region = columns["frame_index"], columns["region_index"]
        whole = np.array_equal(frame, self._grid[0]) and np.array_equal(region, self._grid[1])
        mask = np.ones((f, s), bool) if whole else self._mask(video_id, frame, region, shard)

        def spread(values: np.ndarray, tokens: int = s) -> np.ndarray:
            if whole:
                return values.reshape(f, tokens, *values.shape[1:])
            out = np.zeros((f * tokens, *values.shape[1:]), values.dtype)
            out[(frame.astype(np.int64) * tokens + region)[region < tokens]] = values
            return out.reshape(f, tokens, *values.shape[1:])

        return Video(
            video_id,
            spread(group.embeddings(rows), self.held),
            spread(columns["norm"]),
            spread(columns["topk_entity"]),
            spread(columns["topk_score"]),
            spread(columns["geometry"]),
            spread(columns["time_s"])[:, 0],
            mask,
        )

    @cached_property
    def _grid(self) -> tuple[np.ndarray, np.ndarray]:
        """Frame and region of every row of a video that has all its regions."""
        frame, region = np.indices((self.frames, self.tokens)).reshape(2, -1)
        return frame, region

    def _mask(self, video_id: str, frame: np.ndarray, region: np.ndarray, shard: int) -> np.ndarray:
        f, s = self.frames, self.tokens
        if ((frame < 0) | (frame >= f) | (region < 0) | (region >= s)).any():
            raise _damaged(self.path, shard, f"{video_id} has frames or regions outside {f} x {s}")
        mask = np.zeros((f, s), bool)
        mask[frame, region] = True
        if mask.sum() != len(frame) or not mask[:, 0].all():
            raise _damaged(self.path, shard, f"{video_id} lacks a frame's cls row or holds a row twice")
        return mask

    def _group(self, shard: int, row_group: int) -> RowGroup:
        key = shard, row_group
        with self._lock:
            if key not in self._groups:
                self._groups[key] = self._open_group(key)
                while len(self._groups) > self.keep:
                    self._groups.popitem(last=False)
            self._groups.move_to_end(key)
            return self._groups[key]

    def _open_group(self, key: tuple[int, int]) -> RowGroup:
        """A row group; checksums and values are verified the first time that this process reads it from a file."""
        mapped = _map(self.path, key[0])
        if (rest := self._rest.get(key)) is not None:
            if rest.stamp == mapped.stamp:
                return rest.on(mapped)
            self._rest_bytes -= self._rest.pop(key).rest_bytes
        group = self._read_group(*key, mapped, verify=self._verified.get(key) != mapped.stamp)
        self._verified[key] = mapped.stamp
        if group.offset is not None and self._rest_bytes + group.rest_bytes <= self.keep_bytes:
            self._rest[key] = group.without_vectors()
            self._rest_bytes += group.rest_bytes
            return self._rest[key].on(mapped)
        return group

    def _read_group(self, shard: int, row_group: int, mapped: Shard, verify: bool) -> RowGroup:
        wanted = [*COLUMNS, *["view"] * (self.views > 1), *["scale"] * (self.store == "int8")]
        table, end = _read_table(self.path, shard, row_group, mapped, wanted, verify)
        embedding, kind = table["embedding"], STORES[self.store](self.dim)
        if embedding.type != kind:
            raise _damaged(
                self.path,
                shard,
                f"embeddings are {embedding.type}, dim and store of the manifest need {kind}",
            )
        owner = _array(table["video_id"])
        columns = {name: _column(_array(table[name])) for name in wanted if name not in NOT_NUMBERS}
        columns["geometry"] = _geometry(columns, self.manifest["patches"])
        try:
            vectors = _vectors(_array(embedding), self.store, self.dim)
        except pa.ArrowInvalid as error:
            raise _damaged(self.path, shard, f"row group {row_group}: {reason(error)}") from error
        valid = None if embedding.null_count == 0 else np.asarray(_array(embedding).is_valid())
        place = None if valid is None else np.cumsum(valid) - 1
        numbers = {name: number for number, name in enumerate(owner.dictionary.to_pylist())}
        kept = {name: column for name, column in columns.items() if name not in PARTS}
        offset = _offset(mapped, vectors, end) if place is None else None
        group = RowGroup(mapped.stamp, np.asarray(owner.indices), numbers, kept, vectors, place, offset)
        self._check_store(group, valid, shard)
        if verify:
            self._check_values(group, shard)
        return group if offset is None else group.on(mapped)

    def _check_store(self, group: RowGroup, valid: np.ndarray | None, shard: int) -> None:
        wanted = group.columns["region_index"] < self.held
        self._refuse(
            group,
            wanted != (True if valid is None else valid),
            shard,
            f"has other embeddings than a store of {self.store}",
        )

    def _check_values(self, group: RowGroup, shard: int) -> None:
        entities = len(self.entities.names)
        ids = group.columns["topk_entity"]
        if len(ids) and (ids.min() < 0 or ids.max() >= entities):
            wrong = ((ids < 0) | (ids >= entities)).any(axis=1)
            self._refuse(group, np.asarray(wrong), shard, f"names entities outside 0..{entities - 1}")
        for name in NUMBERS:
            values = group.columns.get(name, np.zeros(0))
            if not np.isfinite(values).all():
                self._refuse(group, _not_finite(values), shard, f"has {name} that are not finite")
        if not _finite_halves(group.vectors):
            wrong = group.of_rows(_not_finite(group.vectors))
            self._refuse(group, wrong, shard, "has embeddings that are not finite")

    def _refuse(self, group: RowGroup, wrong: np.ndarray, shard: int, why: str) -> None:
        if wrong.any():
            raise _damaged(self.path, shard, f"{list(group.numbers)[group.owner[wrong.argmax()]]} {why}")

    def __getstate__(self) -> dict[str, Any]:
        """A loader's worker reads row groups for itself."""
        own = ("_groups", "_rest", "_rest_bytes", "_verified", "_lock")
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        empty = {"_groups": OrderedDict(), "_rest": {}, "_rest_bytes": 0, "_verified": {}}
        self.__dict__ |= {**state, **empty, "_lock": threading.Lock()}


def open_alignments(path: Path) -> Alignments:
    """Open alignments whose every shard is done; otherwise say which are not and what to run."""
    manifest = read_manifest(path, "alignments", MADE_BY)
    if (store := manifest["config"].get("store", "fp16")) not in STORES:
        raise AdapterError(f"{path} has store {store!r}; this adapter reads {', '.join(STORES)}")
    columns = _columns(path / "videos.parquet", VIDEO_COLUMNS, f"make it again with `{MADE_BY}`")
    plan = tuple(Planned(*row) for row in zip(*columns, strict=True))
    markers = _read_markers(path, manifest)
    index: dict[str, Slot] = {}
    failed: dict[str, str] = {}
    for shard, marker in enumerate(markers):
        index |= _slots(path, shard, marker["videos"])
    for shard in range(len(markers)):
        failed |= _read_failures(path / f"failures-{shard:05d}.parquet")
    lost = [video.video_id for video in plan if video.video_id not in index and video.video_id not in failed]
    if lost:
        raise AdapterError(
            f"{path}: {len(lost)} planned videos are neither aligned nor failed, such as {lost[:3]}; run "
            f"`aligner verify {path}`"
        )
    return Alignments(
        path,
        manifest,
        plan,
        _read_entities(path, manifest["dim"]),
        index,
        failed,
        _identity(manifest, markers),
    )


def _read_markers(path: Path, manifest: dict[str, Any]) -> list[dict[str, Any]]:
    num_shards = manifest["num_shards"]
    files = [path / f"shard-{shard:05d}.json" for shard in range(num_shards)]
    missing = [str(shard) for shard, file in enumerate(files) if not file.is_file()]
    if missing:
        shown = ", ".join(missing[:10]) + (" ..." if len(missing) > 10 else "")
        run = with_model(f"aligner run --videos DIR --corpus DIR MODEL --out {path}", manifest["model"])
        raise AdapterError(
            f"alignments {path} are incomplete: {len(missing)} of {num_shards} shards are not done "
            f"({shown}); run {run} again, it goes on where it stopped"
        )
    entries = {"fingerprint": str, "sha256": str, "videos": dict}
    markers = [read_json(file, entries, f"run `aligner verify {path}`") for file in files]
    # Version 1 has one fingerprint for all shards, version 2 one for each.
    wanted = manifest.get("shard_fingerprints", [manifest["fingerprint"]] * num_shards)
    if [marker["fingerprint"] for marker in markers] != wanted:
        raise AdapterError(
            f"some shards of {path} come from other settings or videos than its manifest; run "
            f"`aligner verify {path}`"
        )
    return markers


def _read_entities(path: Path, dim: int) -> Entities:
    file, mend = path / "entities.parquet", f"make it again with `{MADE_BY}`"
    table = read_table(file, ENTITY_COLUMNS, mend, optional=("kind",))
    embeddings = vectors(table, "embedding", file, mend)
    if embeddings.shape[1] != dim:
        raise AdapterError(
            f"{file} holds vectors of {embeddings.shape[1]} dimensions, the manifest says {dim}; run "
            f"`{MADE_BY}`"
        )
    kinds = tuple(table["kind"].to_pylist()) if "kind" in table.column_names else None
    return Entities(tuple(table["name"].to_pylist()), embeddings, kinds)


def _read_failures(file: Path) -> dict[str, str]:
    ids, stages, errors = _columns(
        file, ("video_id", "stage", "error"), f"run `aligner verify {file.parent}`"
    )
    return {video_id: f"{stage}: {error}" for video_id, stage, error in zip(ids, stages, errors, strict=True)}


def _slots(path: Path, shard: int, videos: dict[str, Any]) -> dict[str, Slot]:
    try:
        return {
            video_id: Slot(shard, *(int(entry[name]) for name in ("row_group", "offset", "rows")))
            for video_id, entry in videos.items()
        }
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, shard, f"its marker does not say where a video's rows lie ({error})") from error


def _columns(file: Path, names: tuple[str, ...], mend: str) -> list[list[Any]]:
    table = read_table(file, names, mend)
    return [table[name].to_pylist() for name in names]


def _run(rows: np.ndarray) -> Any:
    """Places of rows as a slice where they follow each other: what it takes is then no copy."""
    if len(rows) and rows[-1] - rows[0] + 1 == len(rows):
        return slice(rows[0], rows[-1] + 1)
    return rows


def _map(path: Path, shard: int) -> Shard:
    try:
        with (path / f"shard-{shard:05d}.parquet").open("rb") as file:
            told = os.fstat(file.fileno())
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # a ValueError: the file is empty
        raise _damaged(path, shard, reason(error)) from error
    return Shard(content, (told.st_ino, told.st_size, told.st_mtime_ns))


def _read_table(
    path: Path, shard: int, row_group: int, mapped: Shard, wanted: list[str], verify: bool
) -> tuple[pa.Table, int]:
    """Columns of a row group, and the byte at which that of embeddings ends in the file.

    Decoded in the calling thread: workers and a trainer share the cores.
    """
    try:
        # ParquetFile rather than dataset.to_batches, which leaks and hangs when left half-read (arrow#39808,
        # #45214).
        with pq.ParquetFile(
            pa.BufferReader(pa.py_buffer(mapped.content)),
            page_checksum_verification=verify,
            read_dictionary=["video_id"],
        ) as parquet:
            table = parquet.read_row_group(row_group, columns=wanted, use_threads=False)
            if missing := [name for name in wanted if name not in table.column_names]:
                raise _damaged(path, shard, f"it lacks columns {', '.join(missing)}")
            return table, _end_of(parquet.metadata.row_group(row_group), "embedding")
    except (OSError, pa.ArrowException, IndexError) as error:
        raise _damaged(path, shard, reason(error)) from error


def _end_of(group: pq.RowGroupMetaData, name: str) -> int:
    chunks = (group.column(i) for i in range(group.num_columns))
    chunk = next(chunk for chunk in chunks if chunk.path_in_schema == name)
    first = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
    return first + chunk.total_compressed_size


def _offset(mapped: Shard, vectors: np.ndarray, end: int) -> int | None:
    """Where the file holds these bytes up to ``end``; None where they are compressed or lie in several pages."""
    start = end - vectors.nbytes
    if start < 0 or end > len(mapped.content) or not vectors.size:
        return None
    found = pa.py_buffer(mapped.content).slice(start, vectors.nbytes)
    return start if found.equals(pa.py_buffer(vectors)) else None


def _array(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _vectors(embedding: pa.Array, store: str, dim: int) -> np.ndarray:
    """The vectors that a column holds, in the numbers of its store; nulls are left out."""
    held = embedding.drop_null() if embedding.null_count else embedding
    kind = np.dtype(np.int8) if store == "int8" else np.dtype("<f2")
    width = dim * kind.itemsize
    fixed = held.cast(pa.binary(width))
    return np.frombuffer(fixed.buffers()[1], kind, len(fixed) * dim, fixed.offset * width).reshape(-1, dim)


def _not_finite(values: np.ndarray) -> np.ndarray:
    return np.asarray((~np.isfinite(values)).reshape(len(values), -1).any(axis=1))


def _finite_halves(values: np.ndarray) -> bool:
    """Whether no number is infinite or NaN: in float16 those with every bit of the exponent set."""
    if values.dtype != np.float16 or not values.size:
        return True
    # numpy's isfinite has no vector code for halves. As integers, positive ones come in their order, and negative ones
    # by their size; without a sign the latter are the largest.
    return bool(values.view(np.int16).max() < 0x7C00 and values.view(np.uint16).max() < 0xFC00)


def _column(array: pa.Array) -> np.ndarray:
    if pa.types.is_fixed_size_list(array.type):
        return np.asarray(array.flatten()).reshape(len(array), array.type.list_size)
    return np.asarray(array)


def _geometry(rows: dict[str, np.ndarray], patches: int) -> Float32[np.ndarray, "rows 3"]:
    area = rows["patches"].astype(np.float32) / patches
    area[rows["region_index"] == 0] = 1.0
    return np.stack([rows["cx"], rows["cy"], area], axis=1).astype(np.float32)


def _identity(manifest: dict[str, Any], markers: list[dict[str, Any]]) -> str:
    # The manifest is written before the shards are, so what was read is the plan and every shard's bytes.
    parts = [manifest["fingerprint"], *(marker["sha256"] for marker in markers)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _damaged(path: Path, shard: int, why: str) -> AdapterError:
    return AdapterError(
        f"shard {shard} of {path} is damaged: {why}; run `aligner verify {path}`, then align it again"
    )
