"""Consumer of the Alignments artifact: checks that it is whole, then reads videos by row group.

Axis words: frames, tokens (cls at 0, then the regions of a frame), topk, dim, entities.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
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
# How embeddings are kept: the Arrow type for a dimension.
STORES: dict[str, Callable[[int], pa.DataType]] = {
    "fp16": lambda dim: pa.binary(2 * dim),
    "int8": lambda dim: pa.binary(dim),
    "topk": lambda dim: pa.binary(),
}


@dataclass(frozen=True)
class Planned:
    """One video of the plan, whether or not it could be read."""

    video_id: str
    label: str | None
    split: str | None
    shard: int


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
    _groups: "OrderedDict[tuple[int, int], dict[str, Any]]" = field(default_factory=OrderedDict)

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

        The last ``keep`` row groups stay in memory, so sort by group.
        """
        for video_id in video_ids:
            yield self._video(video_id, view)

    def _video(self, video_id: str, view: int) -> Video:
        slot = self.index[video_id]
        columns = self._group(slot.shard, slot.row_group)
        rows = {name: column[slot.offset : slot.offset + slot.rows] for name, column in columns.items()}
        if slot.rows < 1 or len(rows["video_id"]) != slot.rows or (rows["video_id"] != video_id).any():
            raise _damaged(self.path, slot.shard, f"the rows of {video_id} are not where its marker says")
        if self.views > 1:
            rows = {name: _where(column, rows["view"] == view) for name, column in rows.items()}
        try:
            return self._assemble(video_id, rows, slot.shard)
        except pa.ArrowInvalid as error:
            raise _damaged(self.path, slot.shard, f"{video_id}: {reason(error)}") from error

    def _assemble(self, video_id: str, rows: dict[str, Any], shard: int) -> Video:
        f, s = self.frames, self.tokens
        frame, region = rows["frame_index"], rows["region_index"]
        if ((frame < 0) | (frame >= f) | (region < 0) | (region >= s)).any():
            raise _damaged(self.path, shard, f"{video_id} has frames or regions outside {f} x {s}")
        place = frame.astype(np.int64) * s + region
        mask = np.zeros(f * s, bool)
        mask[place] = True
        if mask.sum() != len(place) or not mask.reshape(f, s)[:, 0].all():
            raise _damaged(self.path, shard, f"{video_id} lacks a frame's cls row or holds a row twice")

        def spread(values: np.ndarray, tokens: int = s) -> np.ndarray:
            out = np.zeros((f * tokens, *values.shape[1:]), values.dtype)
            out[(frame.astype(np.int64) * tokens + region)[region < tokens]] = values
            return out.reshape(f, tokens, *values.shape[1:])

        if (np.asarray(rows["embedding"].is_valid()) != (region < self.held)).any():
            raise _damaged(self.path, shard, f"{video_id} has other embeddings than a store of {self.store}")

        entity = spread(rows["topk_entity"])
        if entity.min() < 0 or entity.max() >= len(self.entities.names):
            raise _damaged(
                self.path, shard, f"{video_id} names entities outside 0..{len(self.entities.names) - 1}"
            )
        return Video(
            video_id,
            spread(_embeddings(rows, self.dim), self.held),
            spread(rows["norm"]),
            entity,
            spread(rows["topk_score"]),
            spread(_geometry(rows, self.manifest["patches"])),
            spread(rows["time_s"])[:, 0],
            mask.reshape(f, s),
        )

    def _group(self, shard: int, row_group: int) -> dict[str, Any]:
        key = shard, row_group
        if key not in self._groups:
            self._groups[key] = _read_group(self.path, shard, row_group, self.store, self.dim, self.views)
            while len(self._groups) > self.keep:
                self._groups.popitem(last=False)
        self._groups.move_to_end(key)
        return self._groups[key]


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


def _where(column: Any, chosen: np.ndarray) -> Any:
    """The chosen rows of a column, in numpy's form or in Arrow's."""
    return column.filter(pa.array(chosen)) if isinstance(column, pa.Array) else column[chosen]


def _read_group(path: Path, shard: int, row_group: int, store: str, dim: int, views: int) -> dict[str, Any]:
    """Columns of a row group; the embeddings stay in Arrow's form, where a null takes no room."""
    file = path / f"shard-{shard:05d}.parquet"
    wanted = [*COLUMNS, *["view"] * (views > 1), *["scale"] * (store == "int8")]
    try:
        # ParquetFile rather than dataset.to_batches, which leaks and hangs when left half-read (arrow#39808,
        # #45214).
        with pq.ParquetFile(file, memory_map=True, page_checksum_verification=True) as parquet:
            table = parquet.read_row_group(row_group, columns=wanted)
    except (OSError, pa.ArrowException, IndexError) as error:
        raise _damaged(path, shard, reason(error)) from error
    if missing := [name for name in wanted if name not in table.column_names]:
        raise _damaged(path, shard, f"it lacks columns {', '.join(missing)}")
    if (found := table["embedding"].type) != (kind := STORES[store](dim)):
        raise _damaged(path, shard, f"embeddings are {found}, dim and store of the manifest need {kind}")
    columns = {name: _column(table[name].combine_chunks()) for name in wanted if name != "embedding"}
    return {**columns, "embedding": table["embedding"].combine_chunks()}


def _embeddings(rows: dict[str, Any], dim: int) -> Float16[np.ndarray, "held dim"]:
    """The vectors that rows hold; those of int8 times their scale."""
    held = rows["embedding"].drop_null()
    if "scale" in rows:
        return (_numbers(held, np.dtype(np.int8), dim) * rows["scale"][:, None]).astype(np.float16)
    return _numbers(held, np.dtype("<f2"), dim)


def _numbers(held: pa.Array, kind: np.dtype, dim: int) -> np.ndarray:
    width = dim * kind.itemsize
    fixed = held.cast(pa.binary(width))
    return np.frombuffer(fixed.buffers()[1], kind, len(fixed) * dim, fixed.offset * width).reshape(-1, dim)


def _column(array: pa.Array) -> np.ndarray:
    if pa.types.is_fixed_size_list(array.type):
        return np.asarray(array.flatten()).reshape(len(array), array.type.list_size)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
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
