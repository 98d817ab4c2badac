"""The contract of the alignments folder: what is written reads back, whole files only, same bytes."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from aligner import artifact
from aligner.artifact import ShardWriter, VideoRows, shard_schema
from aligner.config import AlignerError

DIM, PATCHES, TOP_K = 6, 10, 3


def video_rows(rows: int, seed: int) -> VideoRows:
    rng = np.random.default_rng(seed)
    return VideoRows(
        view=np.arange(rows, dtype=np.int16) // 2,
        frame_index=np.arange(rows, dtype=np.int32),
        time_s=rng.random(rows),
        region_index=np.zeros(rows, np.int16),
        patches=rng.integers(0, 9, rows).astype(np.int16),
        centroid_xy=rng.random((rows, 2)).astype(np.float32),
        box_xyxy=rng.random((rows, 4)).astype(np.float32),
        patch_map=rng.integers(0, 256, (rows, 2)).astype(np.uint8),
        topk_entity=rng.integers(0, 9, (rows, TOP_K)).astype(np.int32),
        topk_score=rng.random((rows, TOP_K)).astype(np.float32),
        embedding=rng.standard_normal((rows, DIM)).astype(np.float16),
        norm=rng.random(rows).astype(np.float32),
    )


def write(path: Path, lengths: list[int]) -> ShardWriter:
    with ShardWriter(path, shard_schema(DIM, PATCHES, TOP_K, "f" * 64)) as writer:
        for place, rows in enumerate(lengths):
            writer.add(f"v{place}", video_rows(rows, place))
    return writer


def test_round_trip_and_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seven = artifact._table("v0", video_rows(7, 0), shard_schema(DIM, PATCHES, TOP_K, "f" * 64)).nbytes
    monkeypatch.setattr(artifact, "ROW_GROUP_BYTES", seven)
    lengths = [3, 4, 2, 9, 1]
    writer = write(tmp_path / "s.parquet", lengths)
    file = pq.ParquetFile(tmp_path / "s.parquet")
    groups = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
    assert groups == [7, 11, 1]
    assert writer.rows == sum(lengths) == file.metadata.num_rows
    for place, rows in enumerate(lengths):
        where = writer.index[f"v{place}"]
        table = file.read_row_group(where["row_group"]).slice(where["offset"], where["rows"])
        wanted = video_rows(rows, place)
        assert table["video_id"].to_pylist() == [f"v{place}"] * rows
        np.testing.assert_array_equal(artifact.vectors(table), wanted.embedding)
        np.testing.assert_array_equal(artifact.lists(table["topk_entity"]), wanted.topk_entity)
        np.testing.assert_array_equal(artifact.lists(table["topk_score"]), wanted.topk_score)
        assert [list(value) for value in table["patch_map"].to_pylist()] == wanted.patch_map.tolist()
        boxes = np.stack([table[c].to_numpy() for c in ("x0", "y0", "x1", "y1")], axis=1)
        np.testing.assert_array_equal(boxes, wanted.box_xyxy)


def test_layout_is_as_agreed(tmp_path: Path) -> None:
    write(tmp_path / "s.parquet", [30])
    file = pq.ParquetFile(tmp_path / "s.parquet")
    columns = {}
    for i in range(file.metadata.num_columns):
        column = file.metadata.row_group(0).column(i)
        columns[column.path_in_schema.split(".")[0]] = column
    assert columns["embedding"].compression == "UNCOMPRESSED"
    assert {c.compression for name, c in columns.items() if name != "embedding"} == {"ZSTD"}
    assert {name for name, c in columns.items() if c.has_dictionary_page} == {"video_id"}
    assert list(columns) == file.schema_arrow.names
    assert file.schema_arrow.equals(shard_schema(DIM, PATCHES, TOP_K, "f" * 64), check_metadata=True)
    assert file.schema_arrow.field("embedding").type.byte_width == 2 * DIM
    assert file.schema_arrow.field("patch_map").type.byte_width == 2


def test_the_schema_before_views_is_the_same_without_them() -> None:
    now, before = (shard_schema(DIM, PATCHES, TOP_K, "f" * 64, version=version) for version in (3, 2))
    assert now.field(1).name == "view"
    assert now.remove(1).equals(before.with_metadata(now.metadata), check_metadata=True)
    assert before.metadata[b"schema_version"] == b"2"


def test_readers_are_told_the_order_and_the_pages(tmp_path: Path) -> None:
    write(tmp_path / "s.parquet", [30])
    group = pq.ParquetFile(tmp_path / "s.parquet").metadata.row_group(0)
    by = [group.column(place.column_index).path_in_schema for place in group.sorting_columns]
    assert by == ["video_id", "view", "frame_index", "region_index"]
    assert not any(place.descending for place in group.sorting_columns)
    assert all(group.column(i).has_offset_index for i in range(group.num_columns))
    indexed = {
        group.column(i).path_in_schema for i in range(group.num_columns) if group.column(i).has_column_index
    }
    assert indexed == {"video_id", "view", "frame_index", "region_index"}


def test_same_rows_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / name, [3, 4])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    write(path, [50])
    data = bytearray(path.read_bytes())
    place = data.find(video_rows(50, 0).embedding.tobytes()[:64])
    assert place > 0
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(OSError, match="CRC"):
        pq.read_table(path, page_checksum_verification=True)


def test_an_empty_shard_is_a_file_with_a_schema(tmp_path: Path) -> None:
    write(tmp_path / "s.parquet", [])
    assert pq.read_table(tmp_path / "s.parquet").num_rows == 0


def test_atomic_leaves_all_or_nothing(tmp_path: Path) -> None:
    target = tmp_path / "file.json"
    artifact.write_json(target, {"a": 1})
    with pytest.raises(RuntimeError), artifact.atomic(target) as temporary:
        temporary.write_text("half of")
        raise RuntimeError
    assert json.loads(target.read_text()) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["file.json"]


def test_windows_opens_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError("Windows opens no folders")

    names = {name: getattr(os, name) for name in ("fsync", "replace", "close", "O_RDONLY")}
    monkeypatch.setattr(artifact, "os", SimpleNamespace(name="nt", open=refuse, **names))
    artifact.write_json(tmp_path / "file.json", {"a": 1})
    assert json.loads((tmp_path / "file.json").read_text()) == {"a": 1}


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        ({"a": 1, "b": {"c": "x"}}, []),
        ({"a": 1, "b": {"c": "x", "d": 2}, "e": None}, []),
        ({"b": {}}, ["no a", "no b.c"]),
        ({"a": "1", "b": []}, ["a damaged a", "a damaged b"]),
        (
            {"a": 1, "b": {"c": "x"}, "many": {"p": {"n": 1}, "q": {"n": "2"}, "r": 3}},
            ["a damaged many.q.n", "a damaged many.r"],
        ),
    ],
)
def test_misfits_are_named(content: dict, wrong: list[str]) -> None:
    shape = {"a": int, "b": {"c": str}, "many": {"*": {"n": int}}}
    assert artifact.misfits({"many": {}} | content, shape) == wrong


def test_fingerprint_ignores_time_and_key_order_only() -> None:
    manifest = {
        **{"artifact": "alignments", "schema_version": 1, "package": "p", "model": {"a": 1, "b": 2}},
        **{
            "inputs": {},
            "config": {"frames": 8},
            "created": "now",
            "files": {"x": {"sha256": "1", "rows": 3}},
        },
    }
    before = artifact.manifest_fingerprint(manifest)
    assert artifact.manifest_fingerprint(manifest | {"created": "later", "model": {"b": 2, "a": 1}}) == before
    for change in ({"config": {"frames": 9}}, {"model": {"a": 1}}, {"files": {"x": {"sha256": "2"}}}):
        assert artifact.manifest_fingerprint(manifest | change) != before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "needs manifest.json, found none: not an alignments folder, produced by `aligner run"),
        ({"artifact": "corpus", "schema_version": 1}, "needs artifact 'alignments' .* found 'corpus'"),
        ({"artifact": "alignments", "schema_version": 9}, "found 'alignments' of version 9"),
    ],
)
def test_wrong_folders(tmp_path: Path, content: dict | None, message: str) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(AlignerError, match=message):
        artifact.read_manifest(tmp_path)
