"""Disks that are full or read-only, inputs that vanish, bits that flip: a clear error, and nothing lost."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from aligner import artifact, run
from aligner.cli import app
from aligner.config import AlignConfig, AlignerError, ChangedSettings
from aligner.verify import status, verify

PAGE = 4096


class Disk:
    """A small file system in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def mount(self, options: str) -> subprocess.CompletedProcess:
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(self.folder)]
        return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(tmp_path / "disk")
    disk.folder.mkdir()
    done = disk.mount("size=1m") if hasattr(os, "geteuid") and os.geteuid() == 0 else None
    if done is None or done.returncode:
        pytest.skip(f"needs to mount a tmpfs: {done.stderr.strip() if done else 'not root'}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk.folder)], check=True)


def call(config: AlignConfig) -> Result:
    given = {
        "--videos": config.videos,
        "--corpus": config.corpus,
        "--model": config.model,
        "--out": config.out,
    }
    given |= {"--frames": config.frames, "--merge": config.merge, "--top-k": config.top_k}
    given |= {"--videos-per-shard": config.videos_per_shard, "--device": "cpu"}
    return CliRunner().invoke(
        app, ["run", "--quiet", *(str(word) for pair in given.items() for word in pair)]
    )


def files(out: Path) -> dict[str, bytes]:
    """What a run makes, without times."""
    kept = (path for path in out.iterdir() if not path.name.startswith(("timings-", "manifest")))
    return {path.name: path.read_bytes() for path in kept}


@pytest.fixture
def whole(settings: Callable, tmp_path: Path) -> dict[str, bytes]:
    run.run(settings(out=tmp_path / "whole"))
    return files(tmp_path / "whole")


@pytest.mark.parametrize(
    "room", [0.0, 0.4, 0.95, *(pytest.param(room, marks=pytest.mark.exhaustive) for room in (0.2, 0.6, 0.8))]
)
def test_a_full_disk_is_a_message_and_loses_nothing(
    settings: Callable, whole: dict[str, bytes], disk: Disk, room: float
) -> None:
    """Full from the start, at the plan, in the middle of a shard, at a marker."""
    pages = sum(-(-len(content) // PAGE) for content in whole.values())
    disk.mount(f"remount,size={max(1, int(room * pages)) * PAGE}")
    config = settings(out=disk.folder / "out")
    result = call(config)
    assert result.exit_code == 1 and "Traceback" not in result.output
    assert "No space left on device" in result.stderr and "run again" in result.stderr
    before = status(config.out).shards.get("done", 0) if (config.out / "manifest.json").exists() else 0
    assert not list(config.out.glob(".*.tmp"))
    disk.mount("remount,size=10m")
    result = call(config)
    assert result.exit_code == 0, result.output
    assert files(config.out) == whole and verify(config.out) == [] and before < 3


def test_a_read_only_target_is_a_message(settings: Callable, whole: dict[str, bytes], disk: Disk) -> None:
    config = settings(out=disk.folder / "out")
    run.prepare(config)
    disk.mount("remount,ro")
    result = call(config)
    assert (
        result.exit_code == 1
        and "Read-only file system" in result.stderr
        and "Traceback" not in result.output
    )
    disk.mount("remount,rw")
    assert call(config).exit_code == 0 and files(config.out) == whole


@pytest.fixture
def own_clips(make_video: Callable, tmp_path: Path) -> Path:
    for place in range(4):
        make_video(tmp_path / "videos" / f"{place}.mp4", frames=8, seed=place)
    return tmp_path / "videos"


def test_a_video_that_vanishes_costs_itself(settings: Callable, own_clips: Path) -> None:
    job = run.prepare(settings(videos=own_clips, videos_per_shard=4))
    (own_clips / "1.mp4").unlink()
    assert run.run_shard(job, 0)["counts"] == {"planned": 4, "ok": 3, "failed": 1}
    row = artifact.read_failures(settings().out, 0)[0]
    assert (row["video_id"], row["stage"], row["error"]) == ("1.mp4", "open", "missing")
    with pytest.raises(
        ChangedSettings, match="1 videos of the plan were removed and 0 changed:\n  removed: 1.mp4"
    ):
        run.prepare(settings(videos=own_clips, videos_per_shard=4))


def test_inputs_that_vanish_as_a_whole_lose_nothing(
    settings: Callable, own_clips: Path, tmp_path: Path
) -> None:
    config = settings(videos=own_clips)
    run.run(config)
    before = files(config.out)
    own_clips.rename(tmp_path / "elsewhere")
    with pytest.raises(AlignerError, match="does not exist; give a folder of videos, tars or a manifest"):
        run.run(config)
    assert files(config.out) == before and verify(config.out) == []
    assert run.run(settings(videos=tmp_path / "elsewhere")).skipped_shards == 2


@pytest.mark.parametrize(
    "place", [0.01, 0.6, *(pytest.param(place, marks=pytest.mark.exhaustive) for place in (0.3, 0.99))]
)
def test_a_flipped_bit_is_named_and_mended_by_making_the_shard_again(
    settings: Callable, place: float
) -> None:
    config = settings()
    run.run(config)
    before = files(config.out)
    shard = config.out / artifact.shard_name(1)
    data = bytearray(shard.read_bytes())
    data[int(place * len(data))] ^= 4
    shard.write_bytes(data)
    problems = verify(config.out)
    assert (
        problems[0] == "shard 1: shard-00001.parquet was changed or damaged (sha256 differs from the marker)"
    )
    (config.out / artifact.marker_name(1)).unlink()
    assert run.run(config).done_shards == 1
    assert files(config.out) == before and verify(config.out) == []
