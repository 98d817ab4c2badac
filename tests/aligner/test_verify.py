"""Verification finds every kind of damage; status and inspect tell what is there."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aligner import artifact, run
from aligner.config import AlignerError
from aligner.verify import check_video, region_lines, status, summary, verify


@pytest.fixture
def done(settings: Callable) -> Path:
    run.run(settings())
    return settings().out


def edit(file: Path, change: Callable[[dict], None]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_every_damage_is_listed(done: Path) -> None:
    assert verify(done) == []
    shard = done / artifact.shard_name(0)
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 16
    shard.write_bytes(data)
    (done / artifact.marker_name(1)).unlink()
    edit(done / artifact.marker_name(2), lambda marker: marker.update(fingerprint="other"))
    problems = verify(done)
    assert "shard 0: shard-00000.parquet was changed or damaged (sha256 differs from the marker)" in problems
    assert "shard 1: not done; run `aligner run` again" in problems
    assert (
        "shard 2: its marker belongs to other settings or other videos; run `aligner run` again" in problems
    )


def test_damage_in_a_page_is_named_by_its_checksum(done: Path) -> None:
    shard = done / artifact.shard_name(0)
    vectors = artifact.vectors(pq.read_table(shard))
    data = bytearray(shard.read_bytes())
    data[data.find(vectors[:4].tobytes())] ^= 1
    shard.write_bytes(data)
    assert any("CRC" in problem for problem in verify(done))


def test_missing_files_and_a_changed_manifest(done: Path) -> None:
    (done / artifact.failures_name(0)).unlink()
    (done / artifact.shard_name(1)).unlink()
    lost = next(row["video_id"] for row in artifact.read_videos(done).to_pylist() if row["shard"] == 1)
    with pytest.raises(AlignerError, match="shard-00001.parquet cannot be read; `aligner verify"):
        region_lines(done, lost)
    assert verify(done) == [
        "shard 0: failures-00000.parquet is missing",
        "shard 1: shard-00001.parquet is missing",
    ]
    edit(done / "manifest.json", lambda manifest: manifest["shard_fingerprints"].reverse())
    assert verify(done) == ["manifest.json was changed: its shard_fingerprints do not fit the plan"]
    edit(done / "manifest.json", lambda manifest: manifest["config"].update(frames=9))
    (done / "entities.parquet").write_bytes(b"")
    assert verify(done) == [
        "entities.parquet is not the file that the manifest describes (sha256 differs)",
        "manifest.json was changed: its fingerprint does not fit its content",
    ]


def test_a_folder_of_version_2_is_whole_as_it_is(settings: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Version 2 had the rows of today's fp16 but for their view, and no word for it in the manifest."""
    monkeypatch.setattr(artifact, "SCHEMA_VERSION", 2)
    monkeypatch.setattr(artifact, "SORTED_BY", tuple(name for name in artifact.SORTED_BY if name != "view"))
    monkeypatch.setattr(artifact, "_table", partial(_without_view, artifact._table))
    content = run._manifest_content
    monkeypatch.setattr(run, "_manifest_content", lambda *given: _without_store(content(*given)))
    run.run(settings())
    monkeypatch.undo()
    assert "store" not in artifact.read_manifest(settings().out)["config"]
    assert verify(settings().out) == [] and "stored as fp16" in "\n".join(summary(settings().out))


def _without_view(table: Callable, video_id: str, rows: object, schema: pa.Schema) -> pa.Table:
    today = schema.insert(1, pa.field("view", pa.int16(), False))
    return table(video_id, rows, today).drop_columns(["view"]).cast(schema)


def _without_store(content: dict) -> dict:
    del content["config"]["store"]
    return content


def test_a_folder_of_version_1_is_still_read(done: Path) -> None:
    """Version 1 had one fingerprint for all shards, and no durations in the plan."""
    table = artifact.read_videos(done)
    artifact.write_table(
        done / artifact.VIDEOS, table.select(["video_id", "label", "split", "bytes", "shard"])
    )
    (done / "manifest.json").write_text(
        json.dumps(
            {
                name: value
                for name, value in artifact.read_manifest(done).items()
                if name not in ("settings_fingerprint", "shard_fingerprints")
            }
            | {"schema_version": 1, "fingerprint": "f"}
        )
    )
    assert status(done).shards == {"stale": 3}
    for shard in range(3):
        edit(done / artifact.marker_name(shard), lambda marker: marker.update(fingerprint="f"))
    assert status(done).complete and artifact.read_videos(done).equals(table)


def test_a_marker_that_does_not_cover_the_plan(done: Path) -> None:
    edit(done / artifact.marker_name(0), lambda marker: marker["videos"].popitem())
    problems = verify(done)
    assert problems == [
        "shard 0: 2 ok and 0 failed videos do not cover the plan",
        "shard 0: row group 0 does not end on a video boundary",
    ]


def with_column(rows: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return rows.set_column(rows.schema.get_field_index(name), rows.schema.field(name), values)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        ("short", "expected 39 rows of this video"),
        ("shuffled", "rows are not in order of view, frame and region"),
        ("patches", "the regions of a frame do not sum to 16 patches"),
        ("nan", "an embedding has NaN or infinity"),
        ("long", "an embedding is not of unit length"),
        ("entity", "an entity id lies outside the corpus of 40"),
        ("score", "scores do not descend"),
    ],
)
def test_wrong_rows(done: Path, damage: str, problem: str) -> None:
    rows = artifact.read_video(done, "run/0.mp4").combine_chunks()
    vectors = artifact.vectors(rows).copy()
    kind = rows.schema.field("topk_score").type
    if damage == "short":
        rows = rows.slice(1)
    elif damage == "shuffled":
        rows = rows.take(pa.array([1, 0, *range(2, len(rows))]))
    elif damage == "patches":
        rows = with_column(rows, "patches", pa.array(np.ones(len(rows), np.int16)))
    elif damage in ("nan", "long"):
        vectors[5] = np.nan if damage == "nan" else vectors[5] * 1.1
        rows = with_column(rows, "embedding", artifact._fixed_binary(vectors))
    elif damage == "entity":
        ids = artifact.lists(rows["topk_entity"]).copy()
        ids[3, 0] = 40
        rows = with_column(
            rows, "topk_entity", artifact._fixed_list(ids, rows.schema.field("topk_entity").type)
        )
    elif damage == "score":
        scores = artifact.lists(rows["topk_score"])[:, ::-1]
        rows = with_column(rows, "topk_score", artifact._fixed_list(scores, kind))
    assert check_video("run/0.mp4", rows, artifact.read_manifest(done)) == [problem]


def test_status_counts_and_estimates(settings: Callable) -> None:
    job = run.prepare(settings())
    fresh = status(settings().out)
    assert (fresh.shards, fresh.seconds_left, fresh.complete) == ({"todo": 3}, None, False)
    run.run_shard(job, 0)
    edit(settings().out / artifact.timings_name(0), lambda timings: timings.update(seconds=6.0))
    (settings().out / f".{artifact.shard_name(1)}.77.tmp").touch()
    half = status(settings().out)
    assert half.shards == {"done": 1, "running": 1, "todo": 1}
    assert half.videos == {"planned": 7, "ok": 3, "failed": 0}
    assert half.seconds_left == pytest.approx(6.0 / 3 * 4)
    assert half.lines()[-1] == "about 8 s left for one process, at 0.50 videos/s"


def test_inspect(done: Path) -> None:
    assert "model: local-dir:tinyrandom" in "\n".join(summary(done))
    lines = region_lines(done, "run/0.mp4", top=2, largest=3)
    assert [line.frame for line in lines] == [0] * 4 + [1] * 4 + [2] * 4
    assert [line.region == 0 for line in lines[:4]] == [True, False, False, False]
    assert all(line.entities[0][0].startswith("entity ") for line in lines)
    assert all(len(line.entities) == 2 and line.entities[0][1] >= line.entities[1][1] for line in lines)
    assert len(region_lines(done, "run/0.mp4")) == 39
    with pytest.raises(AlignerError, match="no video 'run/9.mp4' .*did you mean"):
        region_lines(done, "run/9.mp4")
    with pytest.raises(AlignerError, match="--top must lie between 1 and 5, got 6"):
        region_lines(done, "run/0.mp4", top=6)


@pytest.fixture
def with_failures(settings: Callable, make_video: Callable, tmp_path: Path) -> Path:
    """Three shards of two videos; the first of every shard is broken."""
    root = tmp_path / "videos"
    for place in range(3):
        make_video(root / f"{place}b.mp4", 5)
        (root / f"{place}a.mp4").write_text("no video")
    run.run(settings(videos=root, videos_per_shard=2))
    return settings().out


def test_failures_are_those_of_every_finished_shard(with_failures: Path) -> None:
    assert [row["video_id"] for row in artifact.all_failures(with_failures)] == ["0a.mp4", "1a.mp4", "2a.mp4"]
    (with_failures / artifact.marker_name(0)).unlink()
    # Two markers are left, of shards 1 and 2: whoever counts markers reads 0 and 1.
    assert [row["video_id"] for row in artifact.all_failures(with_failures)] == ["1a.mp4", "2a.mp4"]
    found = status(with_failures)
    assert found.failures == {"open (unreadable)": 2} and found.videos["failed"] == 2
    with pytest.raises(AlignerError, match="needs manifest.json"):
        artifact.all_failures(with_failures.parent)


def test_the_output_has_an_identity_only_when_complete(
    done: Path, settings: Callable, tmp_path: Path
) -> None:
    whole = artifact.output_fingerprint(done)
    assert artifact.is_complete(done) and whole is not None and len(whole) == 64
    run.run(settings(out=tmp_path / "again"))
    run.run(settings(out=tmp_path / "other", frames=2))
    assert artifact.output_fingerprint(tmp_path / "again") == whole
    assert artifact.output_fingerprint(tmp_path / "other") not in (whole, None)
    edit(done / artifact.marker_name(1), lambda marker: marker.update(sha256="0" * 64))
    assert artifact.output_fingerprint(done) not in (whole, None)


@pytest.mark.parametrize(
    "name", ["manifest.json", "videos.parquet", "entities.parquet", "shard-00001.json", "shard-00002.parquet"]
)
@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_a_damaged_folder_is_not_complete(done: Path, name: str, damage: str) -> None:
    (done / name).unlink() if damage == "gone" else (done / name).write_bytes((done / name).read_bytes()[:40])
    assert not artifact.is_complete(done) and artifact.output_fingerprint(done) is None


def test_no_folder_is_not_complete(tmp_path: Path) -> None:
    assert not artifact.is_complete(tmp_path / "gone") and artifact.output_fingerprint(tmp_path) is None
