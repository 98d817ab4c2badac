"""Compaction: the folder that one run from the start would have made, whatever the plan grew through."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aligner import artifact, compact, run
from aligner.compact import compact as compact_folder
from aligner.config import AlignConfig, AlignerError
from aligner.verify import status, verify


@pytest.fixture(scope="module")
def grown(
    clips: Path, tiny_corpus: Path, tiny_clip: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Callable[..., AlignConfig]]:
    """Nine videos that came in three times, two of them bad, in shards of at most two."""
    folder = tmp_path_factory.mktemp("grown")
    root = folder / "videos"

    def settings(**changes: object) -> AlignConfig:
        chosen = {"videos": root, "corpus": tiny_corpus, "model": tiny_clip, "out": folder / "out"}
        chosen |= {"frames": 3, "merge": 2, "top_k": 5, "videos_per_shard": 2, "device": "cpu"}
        return AlignConfig(**(chosen | changes))

    for part in (
        ("run/0.mp4", "jump/3.mp4"),
        ("jump/1.mp4",),
        ("run/2.mp4", "run/4.mp4", "jump/5.mp4", "run/6.mp4"),
    ):
        for name in part:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(clips / name, root / name)
        (root / f"bad{len(part)}.mp4").write_text("text")
        run.run(settings())
    return folder, settings


def rows_of(out: Path) -> pa.Table:
    table = pa.concat_tables(pq.read_table(path) for path in sorted(out.glob("shard-*.parquet")))
    return table.sort_by([(name, "ascending") for name in artifact.SORTED_BY]).replace_schema_metadata(None)


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if not path.name.startswith("timings")}


def test_it_is_what_a_run_from_the_start_makes(
    grown: tuple[Path, Callable], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With passes of one video's frames every byte is; the run then has nothing to do, the source is untouched."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1760000000")
    folder, settings = grown
    before = contents(folder / "out")
    done = compact_folder(folder / "out", tmp_path / "dst", 4)
    assert (done.shards_before, done.shards, done.skipped_shards, done.videos) == (6, 3, 0, 10)
    assert contents(folder / "out") == before
    assert verify(tmp_path / "dst") == []
    assert rows_of(tmp_path / "dst").equals(rows_of(folder / "out"))
    run.run(settings(out=tmp_path / "fresh", videos_per_shard=4))
    assert contents(tmp_path / "dst") == contents(tmp_path / "fresh")
    report = run.run(settings(out=tmp_path / "dst", videos_per_shard=4))
    assert (report.skipped_shards, report.done_shards, report.failed) == (3, 0, 3)
    assert "nothing to do" in report.sentence()


def test_in_passes_across_videos_the_rows_are_those_of_the_source(
    grown: tuple[Path, Callable], tmp_path: Path
) -> None:
    folder, settings = grown
    run.run(settings(out=tmp_path / "src", batch_frames=5))
    compact_folder(tmp_path / "src", tmp_path / "dst", 100)
    assert artifact.read_manifest(tmp_path / "dst")["config"]["frames_per_pass"] == 5
    assert verify(tmp_path / "dst") == [] and status(tmp_path / "dst").shards == {"done": 1}
    assert rows_of(tmp_path / "dst").equals(rows_of(tmp_path / "src"))
    assert len(artifact.read_failures(tmp_path / "dst", 0)) == 3


@pytest.mark.parametrize("kill", [0, 1, 2])
def test_killed_in_the_middle(
    grown: tuple[Path, Callable], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill: int
) -> None:
    """Before its first, second or third shard; it goes on, and so does `aligner run`."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1760000000")
    folder, settings = grown
    compact_folder(folder / "out", tmp_path / "whole", 4)
    real = compact.write_shard

    def until_killed(out: Path, shard: int, *rest: object) -> dict:
        if shard == kill:
            (out / f".{artifact.shard_name(shard)}.0a0a0a0a.tmp").write_bytes(b"half")
            raise KeyboardInterrupt
        return real(out, shard, *rest)

    with monkeypatch.context() as killing:
        killing.setattr(compact, "write_shard", until_killed)
        with pytest.raises(KeyboardInterrupt):
            compact_folder(folder / "out", tmp_path / "dst", 4)
    shutil.copytree(tmp_path / "dst", tmp_path / "run")
    assert compact_folder(folder / "out", tmp_path / "dst", 4).skipped_shards == kill
    assert run.run(settings(out=tmp_path / "run", videos_per_shard=4)).done_shards == 3 - kill
    assert contents(tmp_path / "dst") == contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_refusals(grown: tuple[Path, Callable], tmp_path: Path) -> None:
    folder, _ = grown
    source = folder / "out"
    with pytest.raises(AlignerError, match="cannot be compacted into itself"):
        compact_folder(source, source)
    with pytest.raises(AlignerError, match="--videos-per-shard must be at least 1, got 0"):
        compact_folder(source, tmp_path / "dst", 0)
    compact_folder(source, tmp_path / "dst", 4)
    with pytest.raises(AlignerError, match="holds other alignments"):
        compact_folder(source, tmp_path / "dst", 5)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").touch()
    with pytest.raises(AlignerError, match="holds thesis.tex"):
        compact_folder(source, tmp_path / "foreign", 4)
    cut = shutil.copytree(source, tmp_path / "cut")
    (cut / artifact.marker_name(0)).unlink()
    with pytest.raises(AlignerError, match="not whole: shard 0: not done.*Finish it with `aligner run`"):
        compact_folder(cut, tmp_path / "other", 4)
    assert not (tmp_path / "other").exists()


def test_the_poison_list_comes_along(grown: tuple[Path, Callable], tmp_path: Path) -> None:
    folder, settings = grown
    source = shutil.copytree(folder / "out", tmp_path / "src")
    shard = next(r["shard"] for r in artifact.read_videos(source).to_pylist() if r["video_id"] == "run/2.mp4")
    told = {"stage": "decode", "error": "timeout", "message": "too long"}
    artifact.add_poison(source, shard, "run/2.mp4", told)
    (source / artifact.marker_name(shard)).unlink()
    run.run(settings(out=source))
    compact_folder(source, tmp_path / "dst", 100)
    assert artifact.read_poison(tmp_path / "dst", 0) == {"run/2.mp4": told}
    report = run.run(settings(out=tmp_path / "dst", videos_per_shard=100, retry_poisoned=True))
    assert (report.done_shards, report.failed) == (1, 3)
