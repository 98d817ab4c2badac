"""Repair: whatever verify finds is made again by the next run with the same bytes, and nothing else is."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aligner import artifact, plan, run
from aligner.cli import app
from aligner.config import AlignerError
from aligner.repair import repair
from aligner.verify import verify


@pytest.fixture(scope="module")
def whole(clips: Path, tiny_corpus: Path, tiny_clip: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three finished shards of seven videos."""
    from aligner.config import AlignConfig

    out = tmp_path_factory.mktemp("whole") / "out"
    small = {"frames": 3, "merge": 2, "top_k": 5, "videos_per_shard": 3, "device": "cpu"}
    run.run(AlignConfig(videos=clips, corpus=tiny_corpus, model=tiny_clip, out=out, **small))
    return out


@pytest.fixture
def done(whole: Path, settings: Callable) -> Path:
    """A copy of it, at the place of ``settings``."""
    return shutil.copytree(whole, settings().out)


def contents(out: Path) -> dict[str, bytes]:
    """Every file but the timings, which differ from run to run."""
    return {p.name: p.read_bytes() for p in out.iterdir() if p.is_file() and not p.name.startswith("timings")}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)


def wrong_rows(out: Path, shard: int) -> None:
    """Rows that are damaged in their meaning only: hashes fit, scores do not descend."""
    table = artifact.pq.read_table(out / artifact.shard_name(shard))
    schema = artifact.schema_of(artifact.read_manifest(out))
    place = table.schema.get_field_index("topk_score")
    turned = artifact._fixed_list(
        artifact.lists(table["topk_score"])[:, ::-1].copy(), schema.field(place).type
    )
    path = out / artifact.shard_name(shard)
    artifact.pq.write_table(table.set_column(place, schema.field(place), turned).cast(schema), path)
    marker = artifact.read_whole_marker(out, shard)
    marker |= {"bytes": path.stat().st_size, "sha256": artifact.file_sha256(path)}
    artifact.write_json(out / artifact.marker_name(shard), marker)


DAMAGE = {
    "flipped bit": lambda out: flip(out / artifact.shard_name(1)),
    "missing rows": lambda out: (out / artifact.shard_name(1)).unlink(),
    "missing failures": lambda out: (out / artifact.failures_name(1)).unlink(),
    "changed failures": lambda out: flip(out / artifact.failures_name(1)),
    "marker unreadable": lambda out: (out / artifact.marker_name(1)).write_text('{"shard":'),
    "wrong rows": lambda out: wrong_rows(out, 1),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_the_next_run_makes_just_the_damaged_shard_again(
    done: Path, whole: Path, settings: Callable, damage: str
) -> None:
    DAMAGE[damage](done)
    kept = (done / artifact.shard_name(1)).exists() and (done / artifact.shard_name(1)).read_bytes()
    tried = repair(done, dry_run=True)
    assert [*tried.set_aside] == [1] and not (done / artifact.SET_ASIDE).exists()
    found = repair(done)
    assert found.set_aside == tried.set_aside and found.exit_code == 0
    assert "makes shards 1 and no others" in found.lines()[-1]
    aside = done / artifact.SET_ASIDE / "00001" / artifact.shard_name(1)
    assert (aside.read_bytes() if aside.exists() else False) == kept
    report = run.run(settings())
    assert (report.done_shards, report.skipped_shards) == (1, 2)
    assert verify(done) == [] and contents(done) == contents(whole)
    assert repair(done).lines() == ["every shard is whole: nothing has to be made again"]


def test_damage_on_damage_and_what_is_not_done(done: Path, whole: Path) -> None:
    """Nothing that was set aside before is overwritten; shards without a marker are the next run's anyway."""
    (done / artifact.marker_name(2)).unlink()
    for number in (1, 2):
        flip(done / artifact.shard_name(0))
        found = repair(done)
        assert [*found.set_aside] == [0] and found.not_done == [2]
        assert "makes shards 0,2 and no others" in found.lines()[-1]
        aside = done / artifact.SET_ASIDE / f"{number:05d}"
        assert sorted(path.name for path in aside.iterdir()) == sorted(artifact.shard_files(0))
        for name in artifact.shard_files(0):
            shutil.copy(whole / name, done / name)


def test_leftovers_and_a_damaged_poison_list(done: Path) -> None:
    old, young = done / ".shard-00000.parquet.0a1b2c3d.tmp", done / ".shard-00001.json.ffffffff.tmp"
    for path in (old, young, done / "notes.tmp"):
        path.touch()
    os.utime(old, (time.time() - 3600,) * 2)
    (done / artifact.poison_name(2)).write_text("{")
    assert repair(done, dry_run=True).leftovers == [old.name] and old.exists()
    found = repair(done)
    assert (found.leftovers, found.young, found.poison_lists) == (
        [old.name],
        [young.name],
        ["poison-00002.json"],
    )
    assert not old.exists() and young.exists() and (done / "notes.tmp").exists() and verify(done) == []
    assert artifact.read_poison(done, 2) == {}


def test_the_entity_table_comes_back_from_its_corpus_only(
    done: Path, whole: Path, tiny_corpus: Path, tiny_info: dict, make_corpus: Callable, tmp_path: Path
) -> None:
    (done / artifact.ENTITIES).write_bytes(b"")
    flip(done / artifact.shard_name(0))
    found = repair(done)
    assert found.exit_code == 1 and "--corpus CORPUS" in found.lost[0] and not found.set_aside
    with pytest.raises(AlignerError, match="these are not the corpus that"):
        repair(done, corpus=make_corpus(tmp_path / "other", tiny_info, seed=1))
    assert repair(done, dry_run=True, corpus=tiny_corpus).restored == [artifact.ENTITIES]
    assert (done / artifact.ENTITIES).read_bytes() == b""
    found = repair(done, corpus=tiny_corpus)
    assert found.restored == [artifact.ENTITIES] and [*found.set_aside] == [0]
    assert (done / artifact.ENTITIES).read_bytes() == (whole / artifact.ENTITIES).read_bytes()


def test_a_plan_comes_back_from_its_videos_also_one_that_grew(
    settings: Callable, clips: Path, make_video: Callable, tmp_path: Path
) -> None:
    root = shutil.copytree(clips, tmp_path / "videos")
    config = settings(videos=root)
    run.run(config)
    make_video(root / "fall" / "new.mp4", 9)
    run.run(config)
    before = (config.out / artifact.VIDEOS).read_bytes()
    (config.out / artifact.VIDEOS).unlink()
    refused = CliRunner().invoke(app, ["repair", str(config.out)])
    assert refused.exit_code == 1 and "lost: videos.parquet is missing" in refused.stdout
    given = ["repair", str(config.out), "--videos", str(root), "--json"]
    found = json.loads(CliRunner().invoke(app, given).stdout)
    assert (found["restored"], found["set_aside"], found["lost"]) == ([artifact.VIDEOS], {}, [])
    assert (config.out / artifact.VIDEOS).read_bytes() == before
    (config.out / artifact.VIDEOS).write_bytes(before[:-1])
    make_video(root / "fall" / "new.mp4", 30)
    with pytest.raises(AlignerError, match="these are not the videos that"):
        repair(config.out, videos=plan.make_plan(root, 3))


def test_starting_over_leaves_what_was_set_aside(done: Path, settings: Callable) -> None:
    flip(done / artifact.shard_name(0))
    repair(done)
    aside = {path: path.read_bytes() for path in (done / artifact.SET_ASIDE).rglob("*") if path.is_file()}
    artifact.start_over(done)
    assert run.run(settings()).done_shards == 3
    assert len(aside) == 3 and aside == {path: path.read_bytes() for path in aside}


def test_manifests_cannot_be_restored(done: Path) -> None:
    manifest = json.loads((done / artifact.MANIFEST).read_text())
    manifest["config"]["frames"] = 9
    (done / artifact.MANIFEST).write_text(json.dumps(manifest))
    before = contents(done)
    found = CliRunner().invoke(app, ["repair", str(done), "--json"])
    assert found.exit_code == 1 and "cannot be restored" in json.loads(found.stdout)["lost"][0]
    (done / artifact.MANIFEST).write_text("{")
    broken = CliRunner().invoke(app, ["repair", str(done)])
    assert broken.exit_code == 1 and "Nothing was touched: put a copy" in broken.stderr
    assert {**contents(done), artifact.MANIFEST: b""} == {**before, artifact.MANIFEST: b""}
