"""Retry: what decodes now is made again, what does not is left alone, and the next command is the right one."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aligner import artifact, run
from aligner.cli import app
from aligner.config import AlignerError, ChangedSettings
from aligner.retry import Choice, retry
from aligner.verify import status, verify

NAMES = ["a.mp4", "b.mp4", "cut.avi", "empty.mp4", "missing.mp4", "z.mp4"]


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory, make_video: Callable) -> Path:
    """Good versions of all videos."""
    root = tmp_path_factory.mktemp("originals")
    for seed, name in enumerate(NAMES):
        make_video(root / name, 80 if name == "cut.avi" else 10, seed=seed)
    return root


@pytest.fixture(scope="module")
def failed(
    originals: Path, tiny_corpus: Path, tiny_clip: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict]:
    """Two videos a shard: [a b] is good, one of [cut empty] and one of [missing z] will recover."""
    folder = tmp_path_factory.mktemp("failed")
    root = shutil.copytree(originals, folder / "videos")
    (root / "missing.mp4").unlink()
    (root / "empty.mp4").write_bytes(b"")
    cut = (originals / "cut.avi").read_bytes()
    (root / "cut.avi").write_bytes(cut[: len(cut) // 2])
    (root / "list.csv").write_text("path,seconds\n" + "".join(f"{name},1\n" for name in NAMES))
    given = {"videos": root / "list.csv", "corpus": tiny_corpus, "model": tiny_clip, "out": folder / "out"}
    given |= {"frames": 2, "merge": 2, "top_k": 4, "videos_per_shard": 6, "device": "cpu"}
    from aligner.config import AlignConfig

    assert run.run(AlignConfig(**given)).failed == 3
    return folder, given


@pytest.fixture
def copy(failed: tuple[Path, dict], tmp_path: Path) -> tuple[Path, Path, Callable]:
    """(videos, out, settings) of a copy to change."""
    from aligner.config import AlignConfig

    folder, given = failed
    work = shutil.copytree(folder, tmp_path / "work")
    moved = given | {"videos": work / "videos" / "list.csv", "out": work / "out"}
    return work / "videos", work / "out", lambda **changes: AlignConfig(**(moved | changes))


def test_nothing_recovers(copy: tuple[Path, Path, Callable]) -> None:
    root, out, _ = copy
    found = retry(out, root)
    assert found.failing == {"open (empty)": 1, "open (missing)": 1, "open (truncated)": 1}
    assert (found.recovered, found.not_tried, found.set_aside, found.exit_code) == ({}, {}, [], 2)
    assert "every shard stays as it is" in found.lines()[-1] and verify(out) == []


def test_a_missing_and_a_truncated_file_come_back(copy: tuple[Path, Path, Callable], originals: Path) -> None:
    """The plan knows their sizes: the message leads to --allow-changed-videos, and that makes their rows."""
    root, out, settings = copy
    for name in ("missing.mp4", "cut.avi"):
        shutil.copy(originals / name, root / name)
    tried = retry(out, root, dry_run=True)
    assert status(out).complete and tried.set_aside == [0]
    result = CliRunner().invoke(app, ["retry", str(out), "--videos-root", str(root), "--quiet"])
    assert result.exit_code == 2, result.output
    assert "recovered: 1 at open (missing)\nrecovered: 1 at open (truncated)\n" in result.stdout
    assert "failing still: 1 at open (empty)" in result.stdout
    assert "2 of the recovered have another size than planned, such as cut.avi" in result.stdout
    assert "options of before and --allow-changed-videos; it makes shards 0 and no others" in result.stdout
    with pytest.raises(ChangedSettings, match="2 changed"):
        run.run(settings())
    report = run.run(settings(allow_changed_videos=True))
    assert (report.ok, report.failed) == (5, 1) and verify(out) == []


def test_only_shards_that_gain_are_made_again(
    copy: tuple[Path, Path, Callable], originals: Path, tmp_path: Path
) -> None:
    """Same size, other bytes: the plan is as it was, and an uninterrupted run gives the same shards."""
    root, _, settings = copy
    whole = originals / "missing.mp4"
    (root / "missing.mp4").write_bytes(bytes(whole.stat().st_size))
    config = settings(out=tmp_path / "new", videos_per_shard=2)
    run.run(config)
    shard_of = {row["video_id"]: row["shard"] for row in artifact.read_videos(config.out).to_pylist()}
    stamps = {path.name: path.stat().st_mtime_ns for path in config.out.glob("shard-*")}
    shutil.copy(whole, root / "missing.mp4")
    found = retry(config.out, root)
    assert (found.set_aside, found.changed) == ([shard_of["missing.mp4"]], [])
    assert found.lines()[-1].startswith("next: `aligner run` with the options of before; it makes shards")
    assert run.run(config).done_shards == 1 and verify(config.out) == []
    again = {name for name, stamp in stamps.items() if (config.out / name).stat().st_mtime_ns != stamp}
    assert again == {*artifact.shard_files(shard_of["missing.mp4"])[:2]}
    run.run(settings(out=tmp_path / "fresh", videos_per_shard=2))
    for name in stamps:
        if name.endswith(".parquet"):
            assert (config.out / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes()


def test_stage_and_error_choose(copy: tuple[Path, Path, Callable], originals: Path) -> None:
    root, out, _ = copy
    for name in ("missing.mp4", "cut.avi"):
        shutil.copy(originals / name, root / name)
    found = retry(out, root, Choice(error="missing"), dry_run=True)
    assert found.recovered == {"open (missing)": 1} and found.failing == {}
    assert found.not_tried == {"open (empty)": 1, "open (truncated)": 1}
    with pytest.raises(AlignerError, match=r"no failure has --error mising \(did you mean 'missing'"):
        retry(out, root, Choice(error="mising"))
    with pytest.raises(AlignerError, match="no failure has --stage encode, expected one of: open"):
        retry(out, root, Choice(stage="encode"))


def test_poisoned_videos_need_consent_and_leave_the_list_one_by_one(
    copy: tuple[Path, Path, Callable],
) -> None:
    """b decodes although it is on the list, empty does not; --retry-poisoned of a run forgets the whole list."""
    root, out, settings = copy
    told = {"stage": "decode", "error": "crashed", "message": "it died"}
    for name in ("b.mp4", "empty.mp4"):
        artifact.add_poison(out, 0, name, told)
    (out / artifact.marker_name(0)).unlink()
    assert run.run(settings()).failures_by_stage == {"decode": 2, "open": 2}
    found = retry(out, root)
    assert found.not_tried == {"decode (crashed)": 2} and found.set_aside == []
    found = retry(out, root, Choice(poisoned=True))
    assert found.recovered == {"decode (crashed)": 1} and found.videos == ["b.mp4"]
    assert [*artifact.read_poison(out, 0)] == ["empty.mp4"]
    assert run.run(settings()).failures_by_stage == {"decode": 1, "open": 2}
    assert run.run(settings(retry_poisoned=True)).failures_by_stage == {"open": 3}


def test_failures_of_the_encoder_are_tried_only_when_asked_for(copy: tuple[Path, Path, Callable]) -> None:
    """They decode in any case, so that alone is no reason to encode them again."""
    root, out, _ = copy
    rows = [
        row if row["video_id"] != "empty.mp4" else row | {"stage": "encode", "error": "not_finite"}
        for row in artifact.read_failures(out, 0)
    ]
    shutil.copy(root / "a.mp4", root / "empty.mp4")
    artifact.write_table(
        out / artifact.failures_name(0), artifact.failures_table([artifact.Failure(**row) for row in rows])
    )
    assert retry(out, root).not_tried == {"encode (not_finite)": 1}
    assert retry(out, root, Choice(stage="encode"), dry_run=True).recovered == {"encode (not_finite)": 1}
