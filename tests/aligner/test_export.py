"""Export: pandas, DuckDB and `datasets` read back what the shards hold; what is written explains itself."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from aligner import artifact, run
from aligner.cli import app
from aligner.config import AlignConfig, AlignerError
from aligner.export import FORMS, Choice, export


@pytest.fixture(scope="module")
def done(clips: Path, tiny_corpus: Path, tiny_clip: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven videos with splits and one that is missing, in three shards."""
    folder = tmp_path_factory.mktemp("export")
    names = sorted(path.relative_to(clips).as_posix() for path in clips.rglob("*.mp4"))
    rows = [f"{name},{name.split('/')[0]},{('train', 'val')[place % 2]}" for place, name in enumerate(names)]
    manifest = folder / "list.csv"
    manifest.write_text("\n".join(["path,label,split", *rows, "gone.mp4,run,val"]) + "\n")
    small = {"frames": 2, "merge": 2, "top_k": 3, "videos_per_shard": 3, "device": "cpu"}
    config = AlignConfig(
        videos=manifest, videos_root=clips, corpus=tiny_corpus, model=tiny_clip, out=folder / "out", **small
    )
    run.run(config)
    return folder / "out"


def expected(out: Path) -> pd.DataFrame:
    """The rows by a plain loop over the shards, in their order."""
    names = artifact.read_entity_names(out)
    about = {row["video_id"]: row for row in artifact.read_videos(out).to_pylist()}
    rows = []
    for path in sorted(out.glob("shard-*.parquet")):
        table = pq.read_table(path)
        vectors = artifact.vectors(table).astype(np.float32)
        for row, vector in zip(table.to_pylist(), vectors, strict=True):
            bits = "".join(f"{byte:08b}" for byte in row["patch_map"])
            video = about[row["video_id"]]
            rows.append(
                {"video_id": row["video_id"], "label": video["label"], "split": video["split"]}
                | {
                    name: row[name]
                    for name in ("frame_index", "time_s", "region_index", "patches", "x0", "norm")
                }
                | {"patch_ids": [place for place, bit in enumerate(bits) if bit == "1"]}
                | {"entities": [names[entity] for entity in row["topk_entity"]]}
                | {
                    "entity_ids": row["topk_entity"],
                    "scores": row["topk_score"],
                    "embedding": vector.tolist(),
                }
            )
    return pd.DataFrame(rows)


def plain(frame: pd.DataFrame) -> list[dict]:
    """Rows with lists in place of arrays, to compare exactly."""
    return [
        {name: list(value) if isinstance(value, np.ndarray) else value for name, value in row.items()}
        for row in frame.to_dict("records")
    ]


@pytest.fixture(scope="module")
def rows(done: Path) -> list[dict]:
    return plain(expected(done))


def test_pandas_reads_parquet(done: Path, rows: list[dict], tmp_path: Path) -> None:
    found = export(done, tmp_path / "new", "parquet")
    assert (found.videos, found.rows, len(found.files)) == (7, 7 * 2 * 13, 3)
    frame = pd.concat([pd.read_parquet(tmp_path / "new" / name) for name in found.files])
    assert plain(frame[[*rows[0]]]) == rows
    schema = pq.read_schema(tmp_path / "new" / found.files[0])
    assert schema.field("embedding").type == pa.list_(pa.float32())
    assert (frame["patch_ids"].map(len) == frame["patches"]).all()


def test_pandas_reads_json_lines(done: Path, rows: list[dict], tmp_path: Path) -> None:
    found = export(done, tmp_path / "new", "jsonl")
    frame = pd.concat([pd.read_json(tmp_path / "new" / name, lines=True) for name in found.files])
    assert plain(frame[["video_id", "entities", "patch_ids"]]) == [
        {name: row[name] for name in ("video_id", "entities", "patch_ids")} for row in rows
    ]
    lines = [line for name in found.files for line in (tmp_path / "new" / name).read_text().splitlines()]
    assert [json.loads(line)["embedding"] for line in lines] == [row["embedding"] for row in rows]


def test_duckdb_counts_entities(done: Path, rows: list[dict], tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb", reason="needs duckdb (pip install duckdb)")
    export(done, tmp_path / "new")
    files = str(tmp_path / "new" / "regions-*.parquet")
    query = "SELECT entities[1] AS entity, count(*), sum(list_inner_product(embedding, embedding)) FROM "
    found = duckdb.sql(f"{query} read_parquet(?) GROUP BY entity", params=[files]).fetchall()
    counts = pd.Series([row["entities"][0] for row in rows]).value_counts().to_dict()
    assert {entity: count for entity, count, _ in found} == counts
    assert sum(length for *_, length in found) == pytest.approx(len(rows), rel=1e-3)


def test_datasets_finds_the_splits(done: Path, rows: list[dict], tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="needs Hugging Face datasets (pip install datasets)")
    export(done, tmp_path / "new", "hf")
    loaded = datasets.load_dataset(str(tmp_path / "new"), cache_dir=str(tmp_path / "cache"))
    assert sorted(loaded) == ["train", "val"]
    for split in loaded:
        wanted = [row for row in rows if row["split"] == split]
        assert [{name: row[name] for name in rows[0]} for row in loaded[split].to_list()] == wanted
    feature = loaded["train"].features["embedding"]
    assert feature.feature.dtype == "float32"


def test_a_choice_of_videos_and_columns(done: Path, tmp_path: Path) -> None:
    found = export(done, tmp_path / "run", "parquet", Choice(embeddings=False, videos="run/*", split="val"))
    frame = pd.concat([pd.read_parquet(tmp_path / "run" / name) for name in found.files])
    ids = {
        row["video_id"]
        for row in artifact.read_videos(done).to_pylist()
        if row["split"] == "val" and row["video_id"].startswith("run/")
    }
    assert {*frame["video_id"]} == ids and found.videos == len(ids) > 0
    assert not {"embedding", "norm"} & {*frame.columns}
    with pytest.raises(AlignerError, match=r"no video has --split vall \(did you mean 'val'\?\)"):
        export(done, tmp_path / "no", "parquet", Choice(split="vall"))
    with pytest.raises(AlignerError, match="no video fits --videos 'walk/\\*'"):
        export(done, tmp_path / "no", "parquet", Choice(videos="walk/*"))
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("form", FORMS)
def test_the_same_bytes_and_a_card_that_tells(done: Path, tmp_path: Path, form: str) -> None:
    for name in ("one", "two"):
        export(done, tmp_path / name, form)
    files = {
        p.relative_to(tmp_path / "one"): p.read_bytes() for p in (tmp_path / "one").rglob("*") if p.is_file()
    }
    assert files == {name: (tmp_path / "two" / name).read_bytes() for name in files}
    card = files[Path("README.md")].decode()
    assert "182 rows of 7 videos, 2 frames each" in card and "1 more videos could not be read" in card
    assert (
        "- `embedding`: unit vector" in card
        and str(done.parent) not in card
        and "local-dir:tinyrandom" in card
    )
    assert card.startswith("---\nlicense: other") == (form == "hf")


def test_an_interrupted_export_is_begun_again_and_nothing_else_is_touched(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aligner import export as module

    real = module._write_shard

    def until_killed(maker: object, shard: int, *rest: object) -> None:
        real(maker, shard, *rest)
        if shard == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as killing:
        killing.setattr(module, "_write_shard", until_killed)
        with pytest.raises(KeyboardInterrupt):
            export(done, tmp_path / "new", "jsonl")
    assert "not finished" in (tmp_path / "new" / "README.md").read_text()
    export(done, tmp_path / "new", "parquet")
    assert sorted(path.suffix for path in (tmp_path / "new").iterdir()) == [".md", *[".parquet"] * 3]
    before = {path: path.read_bytes() for path in (tmp_path / "new").iterdir()}
    result = CliRunner().invoke(app, ["export", str(done), str(tmp_path / "new"), "--quiet"])
    assert result.exit_code == 1 and "give a folder that is absent or empty" in result.stderr
    assert {path: path.read_bytes() for path in (tmp_path / "new").iterdir()} == before


def test_refusals(done: Path, tmp_path: Path) -> None:
    with pytest.raises(AlignerError, match=r"--format parket \(did you mean 'parquet'\?\)"):
        export(done, tmp_path / "new", "parket")
    cut = shutil.copytree(done, tmp_path / "cut")
    (cut / artifact.marker_name(0)).unlink()
    with pytest.raises(AlignerError, match="1 of 3 shards of .* are not done"):
        export(cut, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_split_names_that_datasets_does_not_take(done: Path, tmp_path: Path) -> None:
    out = shutil.copytree(done, tmp_path / "out")
    table = artifact.read_videos(out)
    place = table.schema.get_field_index("split")
    odd = [None if split == "val" else "fold 1" for split in table["split"].to_pylist()]
    artifact.write_table(out / artifact.VIDEOS, table.set_column(place, "split", pa.array(odd)))
    names = {Path(name).stem.rpartition("-")[0] for name in export(out, tmp_path / "new", "hf").files}
    assert names == {"fold_1", "unsplit"}
    odd = ["fold 1" if split is None else "fold_1" for split in odd]
    artifact.write_table(out / artifact.VIDEOS, table.set_column(place, "split", pa.array(odd)))
    with pytest.raises(AlignerError, match="rename them"):
        export(out, tmp_path / "other", "hf")
