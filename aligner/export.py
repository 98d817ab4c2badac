"""``aligner export``: alignments for other programs, with entities by name and embeddings as lists of floats.

- ``parquet``: ``regions-00000.parquet``, one for each shard, for DuckDB, pandas, polars and their like.
- ``jsonl``: ``regions-00000.jsonl``, one object a line.
- ``hf``: ``data/SPLIT-00000.parquet``, which ``datasets.load_dataset`` takes by split.

A data card, ``README.md``, says that the export is not finished until it is. One row group is in memory at a time.
"""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from aligner import artifact
from aligner.card import CARD, data_card
from aligner.config import AlignerError, did_you_mean
from aligner.progress import Progress

FORMS = ("parquet", "jsonl", "hf")
# The card until all else is written: by it an export knows what another one left.
UNFINISHED = "This export is not finished: run `aligner export` again.\n"
# Rows that are Python objects at the same time.
JSON_ROWS = 256


@dataclass(frozen=True)
class Choice:
    """What is exported: with embeddings or without; videos by a pattern of their ids and by their split."""

    embeddings: bool = True
    videos: str | None = None
    split: str | None = None

    def of(self, plan: pa.Table) -> pa.Table:
        """The chosen rows of the plan.

        Raises:
            AlignerError: there are none.
        """
        splits = {split for split in plan["split"].to_pylist() if split is not None}
        if self.split is not None and self.split not in splits:
            told = ", ".join(sorted(splits)) or "none at all"
            raise AlignerError(
                f"no video has --split {self.split}{did_you_mean(self.split, splits)}, expected one of: {told}"
            )
        ids = zip(plan["video_id"].to_pylist(), plan["split"].to_pylist(), strict=True)
        kept = [
            (self.videos is None or fnmatchcase(video, self.videos)) and self.split in (None, split)
            for video, split in ids
        ]
        if not any(kept):
            raise AlignerError(
                f"no video fits --videos {self.videos!r}, such as {plan['video_id'][0].as_py()!r} would"
            )
        return plan.filter(pa.array(kept))


@dataclass
class Exported:
    """What was written."""

    out: str
    form: str
    videos: int
    rows: int = 0
    files: list[str] = field(default_factory=list)

    def sentence(self) -> str:
        """For people."""
        return f"{self.rows} rows of {self.videos} videos in {len(self.files)} files and {CARD} in {self.out}"


def export(
    out: Path,
    destination: Path,
    form: str = "parquet",
    choice: Choice = Choice(),
    display: Callable[[int], Progress] = lambda total: Progress(),
) -> Exported:
    """Write finished alignments for other programs.

    Args:
        out: a finished alignments folder.
        destination: a folder that is absent, empty, or left by an export that was interrupted.
        form: one of ``FORMS``.
        choice: which videos, and whether with embeddings.
        display: makes a progress display for a number of videos.

    Raises:
        AlignerError: an unknown format, an unfinished folder, a destination that holds other things, or no such video.
    """
    if form not in FORMS:
        raise AlignerError(f"--format {form}{did_you_mean(form, FORMS)}: expected one of {', '.join(FORMS)}")
    manifest = artifact.read_manifest(out)
    _refuse_unfinished(out, manifest)
    chosen = choice.of(artifact.read_videos(out))
    maker = Maker(out, manifest, chosen, choice.embeddings, by_split=form == "hf")
    _make_room(destination)
    done = Exported(str(destination), form, len(maker.ok))
    with display(len(chosen)) as progress:
        for shard in sorted(set(chosen["shard"].to_pylist())):
            _write_shard(maker, shard, destination, done)
            for _ in range(pc.sum(pc.equal(chosen["shard"], shard)).as_py()):
                progress.advance(True)
    card = data_card(
        manifest, maker.schema, done.files, rows=done.rows, videos=done.videos, planned=len(chosen)
    )
    artifact.write_bytes(destination / CARD, card.encode())
    return done


def _refuse_unfinished(out: Path, manifest: dict[str, Any]) -> None:
    undone = [shard for shard in range(manifest["num_shards"]) if not artifact.is_done(out, shard, manifest)]
    if undone:
        raise AlignerError(
            f"{len(undone)} of {manifest['num_shards']} shards of {out} are not done; finish it with `aligner run`"
        )


def _make_room(destination: Path) -> None:
    """An empty folder but for a card; only what an interrupted export left is removed."""
    found = [path for path in destination.rglob("*") if path.is_file()] if destination.exists() else []
    card = destination / CARD
    ours = card in found and card.read_bytes() == UNFINISHED.encode()
    if found and not ours:
        raise AlignerError(
            f"{destination} holds {len(found)} files such as {found[0].relative_to(destination)}; "
            "give a folder that is absent or empty, or remove that one first"
        )
    for path in found:
        if path != card:
            path.unlink()
    destination.mkdir(parents=True, exist_ok=True)
    artifact.write_bytes(card, UNFINISHED.encode())


class Maker:
    """Makes plain tables of the row groups of a folder."""

    def __init__(
        self, out: Path, manifest: dict[str, Any], chosen: pa.Table, embeddings: bool, by_split: bool
    ) -> None:
        self.out, self.manifest = out, manifest
        self.by_split, self.embeddings = by_split, embeddings
        self.names = pa.array(artifact.read_entity_names(out))
        self.chosen = chosen.select(["video_id", "label", "split"]).combine_chunks()
        self.folders = _split_names(chosen["split"].unique().to_pylist())
        self.places = {
            shard: (artifact.read_marker(out, shard) or {})["videos"]
            for shard in set(chosen["shard"].to_pylist())
        }
        ids = set(self.chosen["video_id"].to_pylist())
        self.ok = {video for places in self.places.values() for video in places if video in ids}
        self.schema = self.plain(artifact.schema_of(manifest).empty_table()).schema

    def parts(self, shard: int) -> Iterator[tuple[str, pa.Table]]:
        """(name of the file's family, rows) of a shard, a row group at a time, or a split of one."""
        groups = sorted(
            {place["row_group"] for video, place in self.places[shard].items() if video in self.ok}
        )
        for group in groups:
            table = self.plain(artifact.read_row_group(self.out, shard, group))
            if not self.by_split:
                yield "regions", table
                continue
            for split in table["split"].unique().to_pylist():
                same = pc.is_null(table["split"]) if split is None else pc.equal(table["split"], split)
                yield f"data/{self.folders[split]}", table.filter(same)

    def plain(self, rows: pa.Table) -> pa.Table:
        """The chosen rows, with nothing in them that takes this package to read."""
        place = pc.index_in(rows["video_id"], self.chosen["video_id"])
        rows, place = rows.filter(pc.is_valid(place)), place.filter(pc.is_valid(place))
        special = {"video_id", "patch_map", "topk_entity", "topk_score", "embedding", "scale", "norm"}
        columns: dict[str, Any] = {name: self.chosen[name].take(place) for name in self.chosen.column_names}
        columns |= {name: rows[name] for name in rows.column_names if name not in special}
        ids = artifact.lists(rows["topk_entity"])
        columns["patch_ids"] = _patch_lists(rows["patch_map"], self.manifest["patches"])
        columns["entities"] = _lists(
            self.names.take(pa.array(ids.ravel(), pa.int32())), self.manifest["top_k"]
        )
        columns["entity_ids"] = _lists(pa.array(ids.ravel(), pa.int32()), self.manifest["top_k"])
        scores = pa.array(artifact.lists(rows["topk_score"]).ravel(), pa.float32())
        columns["scores"] = _lists(scores, self.manifest["top_k"])
        if self.embeddings and "embedding" in rows.column_names:
            vectors = pa.array(artifact.vectors(rows).astype(np.float32).ravel())
            columns["embedding"] = _lists(vectors, self.manifest["dim"], pc.is_valid(rows["embedding"]))
            columns["norm"] = rows["norm"]
        return pa.table(columns).replace_schema_metadata(None)


def _split_names(splits: list[str | None]) -> dict[str | None, str]:
    """A name that ``datasets`` takes for every split; "train" is its name for what has none."""
    unnamed = "train" if splits == [None] else "unsplit"
    names = {split: unnamed if split is None else re.sub(r"\W", "_", split) for split in splits}
    if len(set(names.values())) < len(names) or "all" in names.values():
        raise AlignerError(
            f"splits {splits} cannot all be told to `datasets`: rename them in the manifest of videos"
        )
    return names


def _lists(values: pa.Array, length: int, held: pa.ChunkedArray | None = None) -> pa.Array:
    """A list of ``length`` values in every row, or only in those that ``held`` says; the others are null."""
    flat = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    there = np.ones(len(values) // length, bool) if held is None else held.to_numpy()
    offsets = np.concatenate([[0], there.cumsum() * length])
    mask = None if held is None else pa.array(~there)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat, mask=mask)


def _patch_lists(maps: pa.ChunkedArray, patches: int) -> pa.Array:
    """The numbers of the patches of every region, row by row of the grid."""
    packed = np.frombuffer(b"".join(maps.to_pylist()), np.uint8).reshape(len(maps), maps.type.byte_width)
    member = np.unpackbits(packed, axis=1)[:, :patches]
    offsets = np.concatenate([[0], member.sum(1, dtype=np.int64).cumsum()])
    numbers = np.nonzero(member)[1].astype(np.int16)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(numbers))


# Writing.


def _write_shard(maker: Maker, shard: int, destination: Path, done: Exported) -> None:
    """The files of one shard; each appears whole or not at all."""
    writers: dict[str, Callable[[pa.Table], object]] = {}
    suffix = "jsonl" if done.form == "jsonl" else "parquet"
    with ExitStack() as stack:
        for family, table in maker.parts(shard):
            if family not in writers:
                name = f"{family}-{shard:05d}.{suffix}"
                (destination / name).parent.mkdir(exist_ok=True)
                temporary = stack.enter_context(artifact.atomic(destination / name))
                open_writer = _json_writer if suffix == "jsonl" else _parquet_writer
                writers[family] = stack.enter_context(open_writer(temporary, maker.schema))
                done.files.append(name)
            writers[family](table)
            done.rows += len(table)


@contextmanager
def _parquet_writer(path: Path, schema: pa.Schema) -> Iterator[Callable[[pa.Table], object]]:
    # Texts repeat and numbers do not; of the bytes of floats that were halves, some are all alike.
    texts = ["video_id", "label", "split", "entities.list.element"]
    floats = ["embedding.list.element"] if "embedding" in schema.names else False
    with pq.ParquetWriter(
        path, schema, compression="ZSTD", use_dictionary=texts, use_byte_stream_split=floats
    ) as writer:
        yield writer.write_table


@contextmanager
def _json_writer(path: Path, _: pa.Schema) -> Iterator[Callable[[pa.Table], object]]:
    with open(path, "w", encoding="utf-8", newline="\n") as file:

        def write(table: pa.Table) -> None:
            for batch in table.to_batches(JSON_ROWS):
                file.writelines(f"{json.dumps(row, ensure_ascii=False)}\n" for row in batch.to_pylist())

        yield write
