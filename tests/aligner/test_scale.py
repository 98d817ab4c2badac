"""Twenty thousand videos planned, half of them done: what a plan, a status and a resume say is right at scale.

Planning, commits, status and the decision what to do are real; the files are sparse and the rows random
(benchmarks/million.py, which also measures).
"""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow.compute as pc
import pytest

from aligner import artifact, run
from aligner.config import AlignConfig
from aligner.engine import Stopped
from aligner.verify import status
from benchmarks.million import FAIL_EVERY, FRAMES, MERGE, TOP_K, commit_shards, write_manifest, write_tree

pytestmark = pytest.mark.exhaustive

VIDEOS, PER_SHARD = 20_000, 40
SHARDS = VIDEOS // PER_SHARD


@pytest.fixture(scope="module")
def config(tiny_corpus: Path, tiny_clip: str, tmp_path_factory: pytest.TempPathFactory) -> AlignConfig:
    """The settings of a folder of which every second shard is done."""
    root = tmp_path_factory.mktemp("scale")
    settings = AlignConfig(
        videos=write_manifest(root / "videos.parquet", VIDEOS),
        videos_root=write_tree(root / "videos", VIDEOS),
        corpus=tiny_corpus,
        model=tiny_clip,
        out=root / "out",
        frames=FRAMES,
        merge=MERGE,
        top_k=TOP_K,
        videos_per_shard=PER_SHARD,
        device="cpu",
    )
    commit_shards(run.prepare(settings), range(0, SHARDS, 2))
    return settings


@pytest.fixture
def listings(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each folder was listed."""
    counted: Counter[str] = Counter()

    def counting(name: str) -> None:
        whole = getattr(os, name)

        def listed(path: object = ".") -> object:
            counted[str(path)] += 1
            return whole(path)

        monkeypatch.setattr(os, name, listed)

    counting("listdir")
    counting("scandir")
    return counted


def failing(config: AlignConfig) -> int:
    """Videos of the done shards that failed, by the plan on disk."""
    table = artifact.read_videos(config.out)
    done = table.filter(pc.equal(pc.bit_wise_and(table["shard"], 1), 0))
    return sum(int(Path(name).stem) % FAIL_EVERY == 0 for name in done["video_id"].to_pylist())


def test_the_plan_has_every_video_once_in_balanced_shards(config: AlignConfig) -> None:
    table = artifact.read_videos(config.out)
    ids = table["video_id"].to_pylist()
    assert ids == sorted({f"class {place // 1000:04d}/{place:07d}.mp4" for place in range(VIDEOS)})
    assert Counter(table["shard"].to_pylist()) == dict.fromkeys(range(SHARDS), PER_SHARD)
    assert [int(Path(name).stem) * 7919 % 99991 + 1000 for name in ids] == table["bytes"].to_pylist()
    loads = table.group_by("shard").aggregate([("seconds", "sum")])["seconds_sum"].to_numpy()
    assert loads.max() - loads.min() <= max(table["seconds"].to_pylist()) + 1e-6
    fingerprints = artifact.read_manifest(config.out)["shard_fingerprints"]
    assert len(set(fingerprints)) == len(fingerprints) == SHARDS


def test_status_counts_every_shard_and_failure(config: AlignConfig, listings: Counter[str]) -> None:
    found, failed = status(config.out), failing(config)
    assert failed > 20
    assert found.shards == {"done": SHARDS // 2, "todo": SHARDS // 2}
    assert found.videos == {"planned": VIDEOS, "ok": VIDEOS // 2 - failed, "failed": failed}
    assert found.failures == {"decode (broken)": failed}
    # Every shard took a second, by its timings, and half of them are left.
    assert found.seconds_left == pytest.approx(SHARDS // 2)
    assert sum(listings.values()) == 1


@pytest.fixture
def disturbed(config: AlignConfig) -> Iterator[list[int]]:
    """Of the done shards one lost its marker, one its end, and one was made of other videos; mended at the end."""
    marker, rows, other = (
        config.out / artifact.marker_name(0),
        config.out / artifact.shard_name(2),
        config.out / artifact.marker_name(4),
    )
    before = {path: path.read_bytes() for path in (marker, rows, other)}
    marker.unlink()
    rows.write_bytes(before[rows][:-1])
    other.write_bytes((config.out / artifact.marker_name(6)).read_bytes())
    yield [0, 2, 4]
    for path, content in before.items():
        path.write_bytes(content)


def test_a_resumed_run_does_what_is_not_done(
    config: AlignConfig, disturbed: list[int], listings: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine is asked for the right shards; a stub in its place stops the run there."""
    asked: list[int] = []

    def fill(job: object, shards: list[int], *_: object) -> Iterator[object]:
        asked.extend(shards)
        raise Stopped
        yield

    monkeypatch.setattr(run, "fill", fill)
    report = run.run(config)
    assert asked == sorted([*range(1, SHARDS, 2), *disturbed])
    assert (report.shards, report.skipped_shards, report.stopped) == (SHARDS, SHARDS - len(asked), True)
    assert report.planned == report.ok + report.failed == report.skipped_shards * PER_SHARD
    # The cost of listing a folder grows with its shards, so it must not be paid once a shard.
    assert listings[str(config.out)] <= 3


def test_leftovers_of_some_shards_are_removed_and_no_others(config: AlignConfig) -> None:
    kinds = (artifact.shard_name, artifact.marker_name, artifact.failures_name, artifact.timings_name)
    mine, others = ([config.out / f".{name(shard)}.0a1b2c3d.tmp" for name in kinds] for shard in (7, 9))
    for path in (*mine, *others):
        path.touch()
    assert artifact.begun_shards(config.out) == {7, 9}
    assert status(config.out).shards == {"done": SHARDS // 2, "running": 2, "todo": SHARDS // 2 - 2}
    artifact.remove_leftovers(config.out, [7, 8])
    assert [path.exists() for path in (*mine, *others)] == [False] * 4 + [True] * 4
    artifact.remove_leftovers(config.out, range(SHARDS))
    assert not any(path.exists() for path in others)
