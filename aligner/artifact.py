"""ALIGNMENTS CONTRACT: file names, Arrow schema, manifest, markers; how shards are written and read.

An alignments folder holds ``manifest.json`` (written by the plan), ``videos.parquet`` (the plan),
``entities.parquet`` (a copy of the corpus's), and for every finished shard ``shard-00000.parquet``,
``failures-00000.parquet`` and, last, the marker ``shard-00000.json``. A shard is done when its marker is
there and carries the fingerprint that the manifest lists for it: one over the settings and over the videos
of that shard alone, so that a plan may grow by new shards while the old ones stay valid.
``poison-00000.json`` names the videos that brought a decoder down, where there
are any; ``timings-00000.json`` says how long a shard took and how often it was begun, and is the only file of a
finished folder whose bytes differ from run to run (beside ``created`` in the manifest).
"""

import contextlib
import datetime
import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from aligner import __version__
from aligner.config import STORES, AlignerError, did_you_mean

ARTIFACT = "alignments"
SCHEMA_VERSION = 3
# The first version whose rows tell their view.
WITH_VIEWS = 3
PACKAGE = f"aligner {__version__}"

MANIFEST = "manifest.json"
VIDEOS = "videos.parquet"
ENTITIES = "entities.parquet"
SET_ASIDE = "set-aside"

MADE_BY = "produced by `aligner run --videos DIR --corpus DIR --model NAME --out DIR`"

# What readers rely on, as nested keys and types; the key "*" stands for any.
_TEXT_OR_NONE = (str, type(None))
_MODEL = {"name": str, "pretrained": _TEXT_OR_NONE, "weights_sha256": str, "random_weights": bool}
_FILE = {"sha256": str, "bytes": int}
_MANIFEST_SHAPE: dict[str, Any] = {
    **{"package": str, "fingerprint": str, "created": str, "model": _MODEL, "counts": dict},
    "config": {"top_k": int, "frames": int, "image_size": list},
    "inputs": dict,
    "files": {VIDEOS: _FILE, ENTITIES: _FILE, "*": _FILE},
    **dict.fromkeys(("patches", "regions", "dim", "top_k", "frames", "num_shards", "videos"), int),
    "corpus": {"entities": int},
}
_MARKER_SHAPE = {"videos": {"*": {"row_group": int, "offset": int, "rows": int}}}
_DONE_SHAPE: dict[str, Any] = {
    **{"fingerprint": str, "rows": int, "bytes": int, "sha256": str, "failures_sha256": str},
    "counts": {"planned": int, "ok": int, "failed": int},
}
_POISON_SHAPE = {"videos": {"*": dict.fromkeys(("stage", "error", "message"), str)}}

# What our own work leaves in a folder: before the manifest is there, and at any time.
_START = r"videos\.parquet|entities\.parquet"
_SHARD = r"shard-\d{5,}\.(?:parquet|json)|failures-\d{5,}\.parquet|(?:timings|poison)-\d{5,}\.json"
_LEFT_BY_START = re.compile(rf"{_START}|\.(?:manifest\.json|{_START})\.[0-9a-f]+\.tmp")
_LEFT_BY_SHARD = re.compile(r"\.(shard|failures|timings|poison)-(\d{5,})\.(?:parquet|json)\.[0-9a-f]+\.tmp")
_LEFT_BY_RUN = re.compile(rf"{_SHARD}|\.(?:manifest\.json|{_START}|{_SHARD})\.[0-9a-f]+\.tmp")

# The order of the rows of a shard.
SORTED_BY = ("video_id", "view", "frame_index", "region_index")

# How small tables are written.
_SMALL: dict[str, Any] = {"compression": "ZSTD", "write_page_checksum": True}

# A row group is closed at the first video boundary past this many bytes of rows, as they lie in memory.
ROW_GROUP_BYTES = 16 << 20

VIDEOS_SCHEMA = pa.schema(
    [
        pa.field("video_id", pa.string(), False, {"about": "POSIX path relative to the videos' root"}),
        pa.field("label", pa.string(), True),
        pa.field("split", pa.string(), True),
        pa.field("bytes", pa.int64(), False, {"unit": "bytes", "about": "0 when the file was missing"}),
        pa.field(
            "seconds", pa.float64(), True, {"unit": "seconds", "about": "as the manifest of videos says"}
        ),
        pa.field("offset", pa.int64(), True, {"unit": "bytes", "about": "where it begins in its tar"}),
        pa.field("shard", pa.int32(), False),
    ]
)
FAILURES_SCHEMA = pa.schema(
    [
        pa.field("video_id", pa.string(), False),
        pa.field("stage", pa.string(), False, {"about": "open, decode or encode"}),
        pa.field("error", pa.string(), False, {"about": "kind of problem, one word"}),
        pa.field("message", pa.string(), False),
    ]
)


def shard_name(shard: int) -> str:
    """File name of a shard's rows."""
    return f"shard-{shard:05d}.parquet"


def marker_name(shard: int) -> str:
    """File name of a shard's marker."""
    return f"shard-{shard:05d}.json"


def failures_name(shard: int) -> str:
    """File name of a shard's failures."""
    return f"failures-{shard:05d}.parquet"


def timings_name(shard: int) -> str:
    """File name of a shard's timings."""
    return f"timings-{shard:05d}.json"


def poison_name(shard: int) -> str:
    """File name of the list of a shard's videos that brought a decoder down."""
    return f"poison-{shard:05d}.json"


def shard_schema(
    dim: int,
    patches: int,
    top_k: int,
    fingerprint: str,
    store: str = "fp16",
    version: int = SCHEMA_VERSION,
) -> pa.Schema:
    """Schema of the region rows; units and conventions travel in the metadata of the fields.

    Versions before 3 have a single view and no column for it.
    """
    unit = {"unit": "fraction of the model's square crop"}
    columns = [
        ("video_id", pa.string(), {"about": "key of videos.parquet"}),
        ("view", pa.int16(), {"about": "place in the manifest's table of views"}),
        ("frame_index", pa.int32(), {"about": "position among the sampled frames"}),
        ("time_s", pa.float64(), {"unit": "seconds", "about": "timestamp in the file"}),
        ("region_index", pa.int16(), {"about": "0 class token, then merged regions in encoder order"}),
        ("patches", pa.int16(), {"about": "patches in the region, 0 for the class token"}),
        ("cx", pa.float32(), unit),
        ("cy", pa.float32(), unit),
        *((corner, pa.float32(), unit) for corner in ("x0", "y0", "x1", "y1")),
        ("patch_map", pa.binary(-(-patches // 8)), {"about": "np.packbits of the row-major patches"}),
        ("topk_entity", _list(pa.int32(), top_k), {"about": "entity_id, best first, ties by lower id"}),
        ("topk_score", _list(pa.float32(), top_k), {"unit": "cosine"}),
    ]
    fields = [
        pa.field(name, kind, False, metadata)
        for name, kind, metadata in columns
        if version >= WITH_VIEWS or name != "view"
    ]
    norm = {"about": "length of the embedding before normalising"}
    fields += [*_vector_fields(dim, store), pa.field("norm", pa.float32(), False, norm)]
    return pa.schema(fields, {"schema_version": str(version), "fingerprint": fingerprint})


def _vector_fields(dim: int, store: str) -> list[pa.Field]:
    """The columns that hold unit vectors, by store."""

    def embedding(kind: pa.DataType, dtype: str, about: str) -> pa.Field:
        return pa.field("embedding", kind, store == "topk", {"dtype": dtype, "dim": str(dim), "about": about})

    if store == "int8":
        scale = pa.field("scale", pa.float32(), False, {"about": "largest entry of the unit vector / 127"})
        return [embedding(pa.binary(dim), "i1", "times scale: unit length"), scale]
    if store == "topk":
        return [embedding(pa.binary(), "<f2", "unit length; of the class token, null for merged regions")]
    return [embedding(pa.binary(2 * dim), "<f2", "unit length")]


def _list(kind: pa.DataType, size: int) -> pa.DataType:
    """A fixed-size list whose items are named as Parquet names them, so that the schema reads back equal."""
    return pa.list_(pa.field("element", kind), size)


@dataclass(frozen=True)
class VideoRows:
    """Region rows of one video, in order of view, frame and region (n rows)."""

    view: np.ndarray  # [n] int16
    frame_index: np.ndarray  # [n] int32
    time_s: np.ndarray  # [n] float64
    region_index: np.ndarray  # [n] int16
    patches: np.ndarray  # [n] int16
    centroid_xy: np.ndarray  # [n, 2] float32
    box_xyxy: np.ndarray  # [n, 4] float32
    patch_map: np.ndarray  # [n, bytes] uint8
    topk_entity: np.ndarray  # [n, k] int32
    topk_score: np.ndarray  # [n, k] float32
    embedding: np.ndarray  # [n, dim] float16
    norm: np.ndarray  # [n] float32

    def __len__(self) -> int:
        return len(self.frame_index)


@dataclass(frozen=True)
class Failure:
    """Why a video has no rows."""

    video_id: str
    stage: str
    error: str
    message: str


@dataclass
class ShardWriter:
    """Collects the rows of videos and writes row groups that end on video boundaries."""

    path: Path
    schema: pa.Schema
    index: dict[str, dict[str, int]] = field(default_factory=dict)
    rows: int = 0

    def __enter__(self) -> "ShardWriter":
        self._pending: list[pa.Table] = []
        self._group = self._bytes = 0
        nested = {"topk_entity.list.element", "topk_score.list.element"}
        plain = {name for name in self.schema.names if not name.startswith("topk_")}
        self._writer = pq.ParquetWriter(
            self.path,
            self.schema,
            # 16-bit noise does not compress, and an uncompressed column is read without a copy.
            compression={name: "NONE" if name == "embedding" else "ZSTD" for name in plain | nested},
            use_dictionary=["video_id"],
            write_statistics=list(SORTED_BY),
            # One page a column: its vectors then lie in the file as one run, which readers can map.
            data_page_size=1 << 30,
            write_page_checksum=True,
            write_page_index=True,
            # These columns come before the nested ones, so a field's index is that of its leaf.
            sorting_columns=[pq.SortingColumn(self.schema.get_field_index(name)) for name in SORTED_BY],
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        self._writer.close()

    def add(self, video_id: str, rows: VideoRows | pa.Table) -> None:
        """Append one video, also as read from another shard; videos come in order of their id."""
        offset = sum(len(table) for table in self._pending)
        self.index[video_id] = {"row_group": self._group, "offset": offset, "rows": len(rows)}
        self.rows += len(rows)
        if isinstance(rows, pa.Table):
            table = pa.table(rows.columns, schema=self.schema)
        else:
            table = _table(video_id, rows, self.schema)
        self._pending.append(table)
        self._bytes += table.nbytes
        if self._bytes >= ROW_GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._pending:
            table = pa.concat_tables(self._pending).combine_chunks()
            self._writer.write_table(table, row_group_size=len(table))
            self._pending, self._group, self._bytes = [], self._group + 1, 0


def _table(video_id: str, rows: VideoRows, schema: pa.Schema) -> pa.Table:
    cx, cy = rows.centroid_xy.T
    x0, y0, x1, y1 = rows.box_xyxy.T
    columns = {
        "video_id": pa.array([video_id]).take(pa.array(np.zeros(len(rows), np.int32))),
        "patch_map": _fixed_binary(rows.patch_map),
        "topk_entity": _fixed_list(rows.topk_entity, schema.field("topk_entity").type),
        "topk_score": _fixed_list(rows.topk_score, schema.field("topk_score").type),
        **_vector_columns(rows, schema),
    }
    flat = {"cx": cx, "cy": cy, "x0": x0, "y0": y0, "x1": x1, "y1": y1}
    plain = ("view", "frame_index", "time_s", "region_index", "patches", "norm")
    flat |= {name: getattr(rows, name) for name in plain}
    columns |= {name: pa.array(values, schema.field(name).type) for name, values in flat.items()}
    return pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)


def _vector_columns(rows: VideoRows, schema: pa.Schema) -> dict[str, pa.Array]:
    if "scale" in schema.names:
        numbers, scale = quantised(rows.embedding)
        return {"embedding": _fixed_binary(numbers), "scale": pa.array(scale)}
    halves = rows.embedding.astype("<f2")
    if schema.field("embedding").nullable:
        held = zip(rows.region_index, halves, strict=True)
        kept = [vector.tobytes() if region == 0 else None for region, vector in held]
        return {"embedding": pa.array(kept, pa.binary())}
    return {"embedding": _fixed_binary(halves)}


def quantised(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vectors [rows, dim] as int8 and a float32 scale [rows]: scale = max |x| / 127, number = round(x / scale).

    Symmetric, so zero stays zero, and no entry of scale * number is further than scale / 2 from x.
    """
    exact = vectors.astype(np.float64)
    scale = (np.abs(exact).max(axis=1) / 127).astype(np.float32)
    numbers = np.rint(exact / np.where(scale > 0, scale, 1)[:, None])
    return numbers.astype(np.int8), scale


def _fixed_binary(values: np.ndarray) -> pa.Array:
    width = values.shape[1] * values.itemsize
    buffer = pa.py_buffer(np.ascontiguousarray(values).tobytes())
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(values), [None, buffer])


def _fixed_list(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), type=kind)


def vectors(rows: pa.Table) -> np.ndarray:
    """The embeddings that rows hold, [held, dim]: float16, or float32 where int8 is multiplied out.

    All rows hold one, except in a store of top-k, where only the class tokens do.
    """
    dim = int(rows.schema.field("embedding").metadata[b"dim"])
    kind = np.dtype(np.int8 if "scale" in rows.column_names else "<f2")
    width = dim * kind.itemsize
    held = rows["embedding"].combine_chunks().drop_null().cast(pa.binary(width))
    data = np.frombuffer(held.buffers()[1], kind, len(held) * dim, held.offset * width).reshape(-1, dim)
    return data * rows["scale"].to_numpy()[:, None] if "scale" in rows.column_names else data


# What compression leaves of an entity (its id halves, its score hardly shrinks), and of all else in a row.
ENTITY_BYTES, PLACE_BYTES = 5.5, 16


def bytes_per_video(frames: int, tokens: int, dim: int, top_k: int, store: str) -> int:
    """Bytes on disk of a video of ``frames`` x ``tokens`` rows (the class token is one), rather too many than too few.

    Ids of few entities compress better: with a corpus of 50, a store of top-k is a quarter smaller than this.
    """
    held = {"fp16": tokens * 2 * dim, "int8": tokens * (dim + 4), "topk": 2 * dim}[store]
    return round(frames * (held + tokens * (ENTITY_BYTES * top_k + PLACE_BYTES)))


def lists(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """A fixed-size list column as [rows, k]."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return array.flatten().to_numpy(zero_copy_only=False).reshape(len(array), array.type.list_size)


# Files that appear whole or not at all.


@contextlib.contextmanager
def atomic(target: Path, check: Callable[[Path], object] = lambda path: None) -> Iterator[Path]:
    """A temporary path beside ``target`` that becomes it when the block ends well: fsync, check, rename.

    ``check`` raises if what was written must not get the name.

    Raises:
        AlignerError: it cannot be written (a full disk, a folder that is read-only).
    """
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        check(temporary)
        os.replace(temporary, target)
        _sync_folder(target.parent)
    except OSError as error:
        raise AlignerError(
            f"{target} cannot be written ({error.strerror or error}); what is finished is kept: mend this and run again"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` last; Windows can open no folder and needs none of this."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_leftovers(out: Path, shards: Collection[int]) -> None:
    """Delete temporary files that a killed process left for some shards."""
    mine = {*shards}
    for name, _, shard in _shard_leftovers(out):
        if shard in mine:
            (out / name).unlink(missing_ok=True)


def begun_shards(out: Path) -> set[int]:
    """Shards whose rows somebody writes, or wrote when he was killed."""
    return {shard for _, kind, shard in _shard_leftovers(out) if kind == "shard"}


def _shard_leftovers(out: Path) -> list[tuple[str, str, int]]:
    """Names of temporary files, what they hold, and of which shard; lists the folder, so ask once for all shards."""
    found = map(_LEFT_BY_SHARD.fullmatch, os.listdir(out))
    return [(match[0], match[1], int(match[2])) for match in found if match]


def remove_start_leftovers(out: Path) -> None:
    """Delete temporary files that a process killed before the first shard left."""
    for leftover in out.glob(".*.tmp"):
        if _LEFT_BY_START.fullmatch(leftover.name):
            leftover.unlink(missing_ok=True)


def leftovers(out: Path) -> list[Path]:
    """Temporary files that killed processes left; one that still runs may be writing the newest of them."""
    return [path for path in sorted(out.glob(".*.tmp")) if _LEFT_BY_RUN.fullmatch(path.name)]


def shard_files(shard: int) -> list[str]:
    """Names of the files of a finished shard; the marker comes first, for without it the others mean nothing."""
    return [marker_name(shard), shard_name(shard), failures_name(shard)]


def set_aside(out: Path, names: list[str]) -> Path:
    """Move files of a folder out of the way, in this order, so that the next run makes them again.

    Returns:
        The folder that holds them now: ``set-aside/`` and the next free number. Nothing is deleted.
    """
    number = 1 + max((int(path.name) for path in (out / SET_ASIDE).glob("[0-9]*")), default=0)
    target = out / SET_ASIDE / f"{number:05d}"
    target.mkdir(parents=True)
    for name in names:
        if (out / name).exists():
            os.replace(out / name, target / name)
    return target


def refuse_foreign(out: Path) -> None:
    """Let nothing be written into, or deleted from, a folder that is not ours, whatever the options.

    Raises:
        AlignerError: ``out`` is neither absent, nor empty, nor an alignments folder, nor what an interrupted
        start leaves.
    """
    # Listed before the manifest is looked for: another process may be writing it at this moment.
    names = sorted(path.name for path in out.iterdir()) if out.exists() else []
    foreign = [name for name in names if not _LEFT_BY_START.fullmatch(name) and name != SET_ASIDE]
    if not foreign or _artifact_kind(out) == ARTIFACT:
        return
    more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
    raise AlignerError(
        f"{out} holds {', '.join(foreign[:3])}{more}, but no {MANIFEST} of an alignments folder; it is left "
        "alone, even with --force: give another --out, or empty that folder yourself"
    )


def _artifact_kind(folder: Path) -> Any:
    """What the manifest says that a folder is; None without a readable manifest."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
    except (ValueError, OSError):
        return None
    return manifest.get("artifact") if isinstance(manifest, dict) else None


def start_over(out: Path) -> None:
    """Delete shards, failures and markers, and the manifest last: a kill on the way leaves a folder of ours."""
    refuse_foreign(out)
    for path in sorted(out.iterdir()):
        if _LEFT_BY_RUN.fullmatch(path.name):
            path.unlink(missing_ok=True)
    (out / MANIFEST).unlink(missing_ok=True)


def write_json(target: Path, content: dict[str, Any]) -> None:
    """Sorted, indented JSON, atomically."""
    with atomic(target) as temporary:
        temporary.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", "utf-8")


def write_table(target: Path, table: pa.Table) -> None:
    """A small Parquet file, atomically."""
    with atomic(target) as temporary:
        pq.write_table(table, temporary, **_SMALL)


def table_bytes(table: pa.Table) -> bytes:
    """What ``write_table`` writes."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **_SMALL)
    return sink.getvalue().to_pybytes()


def write_bytes(target: Path, content: bytes) -> None:
    """A copy of another file, atomically."""
    with atomic(target) as temporary:
        temporary.write_bytes(content)


def file_sha256(path: Path) -> str:
    """Hash of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_sha256(content: Any) -> str:
    """Hash of a JSON value, independent of key order."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def table_sha256(table: pa.Table) -> str:
    """The ``canonical_sha256`` of a table's rows as objects, without ever holding all of them."""
    digest, comma = hashlib.sha256(b"["), b""
    for batch in table.to_batches(max_chunksize=10_000):
        rows = json.dumps(batch.to_pylist(), sort_keys=True, separators=(",", ":"))
        digest.update(comma + rows[1:-1].encode())
        comma = b","
    digest.update(b"]")
    return digest.hexdigest()


# Manifest.


def make_manifest(out: Path, *, rows: int, entities: int, content: dict[str, Any]) -> dict[str, Any]:
    """Complete a manifest for the plan and the entity table that already lie in ``out``.

    ``content`` has config, inputs, model, counts and the extra keys (grid, patches, regions, ...).
    """
    manifest = {"artifact": ARTIFACT, "schema_version": SCHEMA_VERSION, "package": PACKAGE, **content}
    manifest["files"] = {
        VIDEOS: _file_entry(out / VIDEOS, rows),
        ENTITIES: _file_entry(out / ENTITIES, entities),
    }
    manifest["settings_fingerprint"] = settings_fingerprint(manifest)
    manifest["shard_fingerprints"] = shard_fingerprints(manifest, read_videos(out))
    manifest["fingerprint"] = manifest_fingerprint(manifest)
    manifest["created"] = _now().isoformat(timespec="seconds")
    return manifest


def _now() -> datetime.datetime:
    """The time, or that of SOURCE_DATE_EPOCH where bytes must not depend on it (reproducible-builds.org)."""
    fixed = os.environ.get("SOURCE_DATE_EPOCH", "")
    if fixed.isdecimal():
        return datetime.datetime.fromtimestamp(int(fixed), datetime.UTC)
    return datetime.datetime.now(datetime.UTC)


def manifest_fingerprint(manifest: dict[str, Any]) -> str:
    """Hash of everything that decides the bytes of all shards, the plan included (never of ``created``)."""
    kept = {
        key: manifest[key] for key in ("artifact", "schema_version", "package", "config", "inputs", "model")
    }
    kept["files"] = {name: entry["sha256"] for name, entry in manifest["files"].items()}
    return canonical_sha256(kept)


def settings_fingerprint(manifest: dict[str, Any]) -> str:
    """Hash of what decides the bytes of a video's rows: all but which videos there are."""
    kept = {key: manifest[key] for key in ("artifact", "schema_version", "package", "config", "model")}
    kept["inputs"] = {name: value for name, value in manifest["inputs"].items() if name != "videos"}
    kept["files"] = {ENTITIES: manifest["files"][ENTITIES]["sha256"]}
    return canonical_sha256(kept)


def shard_fingerprints(manifest: dict[str, Any], plan: pa.Table) -> list[str]:
    """What the marker of every shard must carry: a hash of the settings and of the shard's own videos.

    Label, split and duration of a video may change without touching its rows, so they are left out.
    """
    shards = plan["shard"].to_numpy()
    by_shard = plan.select(["video_id", "bytes", "offset"]).take(np.argsort(shards, kind="stable"))
    ends = np.searchsorted(np.sort(shards), np.arange(manifest["num_shards"] + 1))
    settings = settings_fingerprint(manifest)
    return [
        canonical_sha256([settings, [list(row.values()) for row in by_shard[start:end].to_pylist()]])
        for start, end in pairwise(ends)
    ]


def shard_fingerprint(manifest: dict[str, Any], shard: int) -> str:
    """What the marker of one shard must carry; in a folder of version 1 all carry the manifest's."""
    listed = manifest.get("shard_fingerprints")
    return manifest["fingerprint"] if listed is None else listed[shard]


def _file_entry(path: Path, rows: int) -> dict[str, Any]:
    return {"sha256": file_sha256(path), "bytes": path.stat().st_size, "rows": rows}


@dataclass(frozen=True)
class Contract:
    """What a reader expects of the manifest of a folder, and what its refusals say."""

    kind: str  # value of the key "artifact"
    versions: tuple[int, ...]
    shape: dict[str, Any]  # see misfits
    noun: str
    made_by: str
    option: str = ""  # that named the folder


def read_manifest(out: Path) -> dict[str, Any]:
    """The manifest of an alignments folder.

    Raises:
        AlignerError: no manifest, another artifact, a newer version, or damage; saying how to get one.
    """
    versions = tuple(range(SCHEMA_VERSION + 1))
    manifest = checked_manifest(
        out, Contract(ARTIFACT, versions, _MANIFEST_SHAPE, "an alignments folder", MADE_BY)
    )
    if len(manifest.get("shard_fingerprints", range(manifest["num_shards"]))) != manifest["num_shards"]:
        raise AlignerError(f"{out / MANIFEST} has a damaged shard_fingerprints; {MADE_BY}")
    if store_of(manifest) not in STORES:
        raise AlignerError(
            f"{out / MANIFEST} has store {store_of(manifest)!r}, expected one of {', '.join(STORES)}; {MADE_BY}"
        )
    return manifest


def store_of(manifest: dict[str, Any]) -> Any:
    """How a folder keeps embeddings (one of config.STORES); before version 3 always fp16."""
    return manifest["config"].get("store", "fp16")


def checked_manifest(folder: Path, wanted: Contract) -> dict[str, Any]:
    """The manifest of any artifact, if it is what the contract says.

    Raises:
        AlignerError: it is not, or there is none that can be read.
    """
    path, made_by = folder / MANIFEST, wanted.made_by
    shown = f"{wanted.option} {folder}".lstrip()
    if not path.is_file():
        raise AlignerError(f"{shown} needs {MANIFEST}, found none: not {wanted.noun}, {made_by}")
    try:
        manifest = json.loads(path.read_text("utf-8"))
    except (ValueError, OSError) as error:
        raise AlignerError(f"{path} is damaged ({error}); {made_by}") from error
    if not isinstance(manifest, dict):
        raise AlignerError(f"{path} is damaged (no JSON object); {made_by}")
    found, version = manifest.get("artifact"), manifest.get("schema_version")
    if found != wanted.kind or version not in wanted.versions:
        raise AlignerError(
            f"{shown} needs artifact {wanted.kind!r} of version {max(wanted.versions)}, found {found!r} of "
            f"version {version}; {made_by}"
        )
    if wrong := misfits(manifest, wanted.shape):
        raise AlignerError(f"{path} has {' and '.join(wrong)}; {made_by}")
    return manifest


def misfits(content: Any, shape: Any, where: str = "") -> list[str]:
    """Where a JSON value lacks keys of ``shape`` or has other types, such as ``no model.name``."""
    if not isinstance(shape, dict):
        return [] if isinstance(content, shape) else [f"a damaged {where}"]
    if not isinstance(content, dict):
        return [f"a damaged {where}".rstrip()]
    dot = f"{where}." if where else ""
    wrong = [f"no {dot}{key}" for key in shape if key != "*" and key not in content]
    for key, value in content.items():
        wanted: Any = shape.get(key, shape.get("*", object))
        # Markers of a million videos come through here: a place is only spelled where it may be needed.
        if isinstance(wanted, dict) or not isinstance(value, wanted):
            wrong += misfits(value, wanted, f"{dot}{key}")
    return wrong


def damaged_files(out: Path, manifest: dict[str, Any]) -> list[str]:
    """Which of the manifest's files are missing or have other bytes, one sentence each."""
    problems = []
    for name, entry in manifest["files"].items():
        if not (out / name).is_file():
            problems.append(f"{name} is missing")
        elif file_sha256(out / name) != entry["sha256"]:
            problems.append(f"{name} is not the file that the manifest describes (sha256 differs)")
    return problems


def schema_of(manifest: dict[str, Any]) -> pa.Schema:
    """Schema that the shards of this manifest have."""
    sizes = manifest["dim"], manifest["patches"], manifest["config"]["top_k"]
    fingerprint = manifest.get("settings_fingerprint", manifest["fingerprint"])
    return shard_schema(*sizes, fingerprint, store_of(manifest), manifest["schema_version"])


def view_count(manifest: dict[str, Any]) -> int:
    """Views of every video; one in versions before 3."""
    return len(manifest.get("views", [None]))


def first_view(rows: pa.Table) -> pa.Table:
    """Of the rows of one video those of view 0: the first draw or clip through the middle crop."""
    return rows.filter(pc.equal(rows["view"], 0)) if "view" in rows.column_names else rows


def read_videos(out: Path) -> pa.Table:
    """The plan: videos.parquet (AlignerError when it cannot be read); what version 1 lacks is null."""
    needed = [field.name for field in VIDEOS_SCHEMA if not field.nullable]
    table = _read_columns(out / VIDEOS, needed, others_too=True)
    columns = [
        table[field.name] if field.name in table.column_names else pa.nulls(len(table), field.type)
        for field in VIDEOS_SCHEMA
    ]
    return pa.table(columns, schema=VIDEOS_SCHEMA)


def read_entity_names(out: Path) -> list[str]:
    """Names of the entities, by entity_id (AlignerError when they cannot be read)."""
    return _read_columns(out / ENTITIES, ["name"])["name"].to_pylist()


def _read_columns(path: Path, columns: list[str], others_too: bool = False) -> pa.Table:
    """Columns of a small table of the folder; every way in which it cannot be read is an AlignerError."""
    try:
        # Without threads and a data set around it: there are tens of thousands of tiny ones.
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read(None if others_too else columns, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise AlignerError(f"{path} cannot be read ({reason}); {_cure(path.parent)}") from error
    if missing := [name for name in columns if name not in table.column_names]:
        raise AlignerError(f"{path} has no column {', '.join(missing)}; {_cure(path.parent)}")
    return table


def _cure(out: Path) -> str:
    return f"`aligner verify {out}` lists all damage, `aligner run --force` starts over"


# Markers.


def read_marker(out: Path, shard: int) -> dict[str, Any] | None:
    """The marker of a shard, or None; a marker that does not say where the rows are marks nothing."""
    try:
        marker = json.loads((out / marker_name(shard)).read_text("utf-8"))
    except (ValueError, OSError):
        return None
    return None if misfits(marker, _MARKER_SHAPE) else marker


def read_whole_marker(out: Path, shard: int) -> dict[str, Any] | None:
    """The marker with all that it takes to call a shard done (fingerprint, sizes, hashes, counts), or None."""
    marker = read_marker(out, shard)
    return None if misfits(marker, _DONE_SHAPE) else marker


def shard_state(out: Path, shard: int, fingerprint: str) -> str:
    """One of done, stale (made otherwise, or files that miss or differ in size) and todo.

    ``fingerprint`` is the one that the manifest lists for this shard (``shard_fingerprint``).
    """
    return look_at(out, shard, fingerprint)[0]


def look_at(out: Path, shard: int, fingerprint: str) -> tuple[str, dict[str, Any] | None]:
    """The state of a shard (see ``shard_state``) and its whole marker, which is read once."""
    marker = read_whole_marker(out, shard)
    if marker is None:
        return "todo", None
    try:
        size = os.stat(out / shard_name(shard)).st_size
    except OSError:
        return "stale", marker
    whole = size == marker["bytes"] and marker["fingerprint"] == fingerprint
    return "done" if whole and (out / failures_name(shard)).is_file() else "stale", marker


def read_timings(out: Path, shard: int) -> dict[str, Any]:
    """``attempt`` and, once the shard is done, seconds by what they were spent on; nothing if unreadable."""
    try:
        timings = json.loads((out / timings_name(shard)).read_text("utf-8"))
    except (ValueError, OSError):
        return {}
    return timings if not misfits(timings, {"attempt": int}) else {}


def begin_attempt(out: Path, shard: int) -> int:
    """Count, on disk, that a shard is begun (again); returns which attempt this is, from 1."""
    attempt = read_timings(out, shard).get("attempt", 0) + 1
    write_json(out / timings_name(shard), {"attempt": attempt})
    return attempt


def read_poison(out: Path, shard: int) -> dict[str, dict[str, str]]:
    """Videos of a shard that brought a decoder down, with stage, error and message of their failure.

    Raises:
        AlignerError: the list cannot be read.
    """
    path = out / poison_name(shard)
    if not path.exists():
        return {}
    try:
        poison = json.loads(path.read_text("utf-8"))
    except (ValueError, OSError) as error:
        raise AlignerError(f"{path} is damaged ({error}); --retry-poisoned makes it anew") from error
    if wrong := misfits(poison, _POISON_SHAPE):
        raise AlignerError(f"{path} has {' and '.join(wrong)}; --retry-poisoned makes it anew")
    return poison["videos"]


def add_poison(out: Path, shard: int, video_id: str, failure: dict[str, str]) -> None:
    """Put a video on the poison list of its shard, so that no later run tries it."""
    videos = read_poison(out, shard) | {video_id: failure}
    write_json(out / poison_name(shard), {"videos": videos})


def remove_poison(out: Path, shard: int, videos: set[str]) -> None:
    """Take videos off the poison list of their shard."""
    kept = {video: failure for video, failure in read_poison(out, shard).items() if video not in videos}
    if kept:
        write_json(out / poison_name(shard), {"videos": kept})
    else:
        (out / poison_name(shard)).unlink(missing_ok=True)


def forget_poison(out: Path, shard: int) -> None:
    """Make a shard with poisoned videos undone, so that the next run tries them again."""
    if (out / poison_name(shard)).exists():
        # In this order: a kill between the two leaves the shard to be made with what is known.
        (out / marker_name(shard)).unlink(missing_ok=True)
        (out / poison_name(shard)).unlink()


def failures_table(failures: list[Failure]) -> pa.Table:
    """Failures as a table, one row each."""
    return pa.Table.from_pylist([vars(failure) for failure in failures], schema=FAILURES_SCHEMA)


def read_failures(out: Path, shard: int) -> list[dict[str, str]]:
    """Failure rows of a finished shard (AlignerError when they cannot be read)."""
    path = out / failures_name(shard)
    return _read_columns(path, FAILURES_SCHEMA.names).to_pylist() if path.is_file() else []


def failures_of(out: Path, shard: int, marker: dict[str, Any] | None) -> list[dict[str, str]]:
    """The same, but without a look at the disk if the shard's marker tells that nothing failed."""
    return read_failures(out, shard) if marker and marker["counts"]["failed"] else []


def read_video(out: Path, video_id: str) -> pa.Table:
    """All region rows of one video: one row group is read.

    Raises:
        AlignerError: an unknown video, one whose shard is not done, one that failed, or damage.
    """
    videos = read_videos(out)
    known = videos["video_id"].to_pylist()
    if video_id not in known:
        raise AlignerError(f"no video {video_id!r} in {out}{did_you_mean(video_id, known)}")
    shard = videos["shard"][known.index(video_id)].as_py()
    marker = read_marker(out, shard)
    if marker is None:
        raise AlignerError(f"{video_id} is in shard {shard}, which is not done; run `aligner run` again")
    if video_id not in marker["videos"]:
        raise AlignerError(_why_failed(out, shard, video_id))
    place = marker["videos"][video_id]
    return read_row_group(out, shard, place["row_group"]).slice(place["offset"], place["rows"])


def read_row_group(out: Path, shard: int, group: int, columns: list[str] | None = None) -> pa.Table:
    """Rows of some whole videos; markers say in which row group a video is.

    Raises:
        AlignerError: there is no such group, or it is damaged.
    """
    try:
        with pq.ParquetFile(out / shard_name(shard), page_checksum_verification=True) as file:
            return file.read_row_group(group, columns)
    except (pa.ArrowException, OSError, IndexError) as error:
        raise AlignerError(f"{shard_name(shard)} cannot be read; `aligner verify {out}` says more") from error


def _why_failed(out: Path, shard: int, video_id: str) -> str:
    for row in read_failures(out, shard):
        if row["video_id"] == video_id:
            return f"{video_id} failed at stage {row['stage']}: {row['message']}"
    return f"{video_id} is neither in shard {shard} nor among its failures; `aligner verify {out}` says more"


# For the consumers of whole folders.


def matches(out: Path, shard: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Entity ids [rows, k] and scores [rows, k] of a finished shard, a row group at a time.

    Raises:
        AlignerError: the shard is damaged.
    """
    places = (read_marker(out, shard) or {"videos": {}})["videos"].values()
    for group in sorted({place["row_group"] for place in places}):
        rows = read_row_group(out, shard, group, ["topk_entity", "topk_score"])
        yield lists(rows["topk_entity"]), lists(rows["topk_score"])


def bytes_on_disk(out: Path) -> dict[str, int]:
    """Bytes of a folder by what they hold: rows, the rest of an alignments folder, and what was set aside."""
    found = {"rows": 0, "other": 0, "set aside": 0}
    for path in out.rglob("*"):
        if path.is_file():
            rows = path.name.startswith("shard-") and path.suffix == ".parquet"
            aside = path.relative_to(out).parts[0] == SET_ASIDE
            found["set aside" if aside else "rows" if rows else "other"] += path.stat().st_size
    return found


def all_failures(folder: Path) -> list[dict[str, str]]:
    """Failure rows (video_id, stage, error, message) of all shards that are done, in order of shards.

    Raises:
        AlignerError: not an alignments folder, or a damaged one.
    """
    manifest = read_manifest(folder)
    rows: list[dict[str, str]] = []
    for shard in range(manifest["num_shards"]):
        state, marker = look_at(folder, shard, shard_fingerprint(manifest, shard))
        if state == "done":
            rows += failures_of(folder, shard, marker)
    return rows


def is_complete(folder: Path) -> bool:
    """Whether this is an alignments folder with every file in place; hashes are left to ``verify``."""
    return output_fingerprint(folder) is not None


def output_fingerprint(folder: Path) -> str | None:
    """Identity of the rows of a complete folder, from the hashes that it records; None for any other."""
    try:
        manifest = read_manifest(folder)
        if any((folder / name).stat().st_size != entry["bytes"] for name, entry in manifest["files"].items()):
            return None
    except (AlignerError, OSError):
        return None
    hashes = []
    for shard in range(manifest["num_shards"]):
        state, marker = look_at(folder, shard, shard_fingerprint(manifest, shard))
        if marker is None or state != "done":
            return None
        hashes.append(marker["sha256"])
    return canonical_sha256([manifest["fingerprint"], hashes])


def is_done(folder: Path, shard: int, manifest: dict[str, Any]) -> bool:
    """Whether a shard has a marker that fits the manifest, and its files."""
    return shard_state(folder, shard, shard_fingerprint(manifest, shard)) == "done"
