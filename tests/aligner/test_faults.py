"""SIGKILL at every named point and at random moments, then the same command again: every file byte for byte the same.

Not compared are ``timings-*.json``, which say how long it took and how often a shard was begun. SOURCE_DATE_EPOCH fixes
the one time in the manifest. CHAOS_SECONDS=120 makes the random kills last two minutes.
"""

import json
import os
import random
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aligner.verify import status, verify

HARNESS = Path(__file__).with_name("kill_points.py")
ROOT = Path(__file__).resolve().parents[2]
POINTS = runpy.run_path(str(HARNESS))["POINTS"]
CHAOS_S = float(os.environ.get("CHAOS_SECONDS", 15))
EPOCH = {"SOURCE_DATE_EPOCH": "1767225600"}
KILLED = -9

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and fork to kill at a point")


def tree(out: Path) -> dict[str, bytes]:
    """Every file but the timings."""
    return {path.name: path.read_bytes() for path in out.iterdir() if not path.name.startswith("timings-")}


class Harness:
    """Runs of the real command in processes of their own."""

    def __init__(self, options: list[str], env: dict[str, str]) -> None:
        self.options, self.env = options, env
        self.server = subprocess.Popen(
            [sys.executable, str(HARNESS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
            cwd=ROOT,
        )

    def arguments(self, out: Path, *more: object) -> list[str]:
        return ["run", *self.options, "--out", str(out), *map(str, more)]

    def run(self, out: Path, *more: object, **request: object) -> dict:
        """Exit status (negative for a signal) and seconds of ``aligner run``; its words are in OUT.log."""
        request |= {"args": self.arguments(out, *more), "log": f"{out}.log"}
        print(json.dumps(request), file=self.server.stdin, flush=True)
        return json.loads(self.server.stdout.readline())


@pytest.fixture(scope="module")
def videos(make_video: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of videos, one of them broken."""
    root = tmp_path_factory.mktemp("faults") / "plain"
    for place in range(5):
        make_video(root / f"{place}.mp4", frames=6, seed=place)
    (root / "2-broken.mp4").write_text("no video")
    return root


@pytest.fixture(scope="module")
def harness(videos: Path, tiny_corpus: Path, tiny_clip: str) -> Iterator[Harness]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    env = kept | EPOCH | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}
    options = ["--corpus", str(tiny_corpus), "--model", tiny_clip, "--device", "cpu", "--quiet"]
    options += (
        "--frames 2 --merge 2 --top-k 4 --videos-per-shard 3 --batch-frames 4 --decode-workers 1".split()
    )
    harness = Harness(["--videos", str(videos), *options], env)
    yield harness
    harness.server.stdin.close()
    harness.server.wait()


@pytest.fixture(scope="module")
def whole(harness: Harness, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a run that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert harness.run(out)["status"] == 2
    assert verify(out) == [] and status(out).videos == {"planned": 6, "ok": 5, "failed": 1}
    return tree(out)


@pytest.mark.parametrize("point", [name for name in POINTS if not name.startswith(("poison", "force"))])
def test_killed_at_a_point_and_run_again(
    harness: Harness, whole: dict[str, bytes], tmp_path: Path, point: str
) -> None:
    out = tmp_path / "out"
    assert harness.run(out, point=point)["status"] == KILLED, Path(f"{out}.log").read_text()
    assert harness.run(out)["status"] == 2, Path(f"{out}.log").read_text()
    assert tree(out) == whole and verify(out) == []


def test_killed_twice_in_one_shard(harness: Harness, whole: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "out"
    for point in ("rows in the middle", "rows after rename", "marker before rename"):
        assert harness.run(out, point=point)["status"] == KILLED
    assert harness.run(out)["status"] == 2
    assert tree(out) == whole
    assert json.loads((out / "timings-00000.json").read_text())["attempt"] == 4
    assert json.loads((out / "timings-00001.json").read_text())["attempt"] == 1


@pytest.mark.parametrize("point", [name for name in POINTS if name.startswith("poison")])
def test_killed_while_a_video_is_put_on_the_poison_list(
    harness: Harness, make_video: Callable, tmp_path: Path, point: str
) -> None:
    make_video(tmp_path / "videos" / "1.mp4", frames=6)
    make_video(tmp_path / "videos" / "segfault.mp4", frames=6)
    other = ["--videos", tmp_path / "videos"]
    assert harness.run(tmp_path / "whole", *other)["status"] == 2
    assert harness.run(tmp_path / "out", *other, point=point)["status"] == KILLED
    assert harness.run(tmp_path / "out", *other)["status"] == 2
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    assert "segfault.mp4" in (tmp_path / "out" / "poison-00000.json").read_text()


@pytest.mark.parametrize("point", [name for name in POINTS if name.startswith("force")])
def test_killed_while_starting_over(
    harness: Harness, whole: dict[str, bytes], tmp_path: Path, point: str
) -> None:
    out = tmp_path / "out"
    assert harness.run(out, "--merge", 1)["status"] == 2
    assert harness.run(out, "--force", point=point)["status"] == KILLED
    assert harness.run(out, "--force")["status"] == 2
    assert tree(out) == whole and verify(out) == []


@pytest.mark.parametrize(
    "point",
    [
        "rows after fsync",
        pytest.param("manifest before rename", marks=pytest.mark.exhaustive),
        pytest.param("marker before rename", marks=pytest.mark.exhaustive),
    ],
)
def test_a_process_of_its_own_killed_at_a_point(
    harness: Harness, whole: dict[str, bytes], tmp_path: Path, point: str
) -> None:
    """The same without a fork: a fresh interpreter each, the second one the command as users type it."""
    out = tmp_path / "out"
    armed = [sys.executable, str(HARNESS), point, *harness.arguments(out)]
    quiet = {"cwd": ROOT, "env": harness.env, "capture_output": True}
    assert subprocess.run(armed, **quiet).returncode == KILLED
    plain = [sys.executable, "-m", "aligner", *harness.arguments(out)]
    assert subprocess.run(plain, **quiet).returncode == 2
    assert tree(out) == whole


@pytest.mark.parametrize(
    ("number", "grace", "shards_done"),
    [
        (signal.SIGTERM, 60, 2),
        (signal.SIGUSR1, 0, 1),
        pytest.param(signal.SIGUSR1, 60, 2, marks=pytest.mark.exhaustive),
        pytest.param(signal.SIGINT, 60, 1, marks=pytest.mark.exhaustive),
    ],
)
def test_a_signal_stops_between_shards_or_after_the_grace_time(
    harness: Harness, make_video: Callable, tmp_path: Path, number: int, grace: int, shards_done: int
) -> None:
    for place in range(9):
        make_video(tmp_path / "videos" / f"slow{place}.mp4", frames=6, seed=place)
    out = tmp_path / "out"
    more = ["--videos", tmp_path / "videos", "--grace-seconds", grace]
    command = [sys.executable, str(HARNESS), "", *harness.arguments(out, *more)]
    process = subprocess.Popen(command, cwd=ROOT, env=harness.env)
    # Once this file is there the second shard is being decoded: three slow videos, almost a second.
    while not (out / "shard-00000.json").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(timeout=120) == 75
    assert status(out).shards == {"done": shards_done, "todo": 3 - shards_done}
    assert not list(out.glob(".*.tmp"))
    assert harness.run(out, *more)["status"] == 0 and verify(out) == []


@pytest.mark.slow
def test_killed_at_random_moments(harness: Harness, whole: dict[str, bytes], tmp_path: Path) -> None:
    randomly, end, kills, runs = random.Random(4), time.monotonic() + CHAOS_S, 0, 0
    usual = harness.run(tmp_path / "usual")["seconds"]
    while time.monotonic() < end:
        out = tmp_path / f"out-{runs}"
        while (killed := harness.run(out, kill_after=randomly.uniform(0, usual))["status"]) == KILLED:
            kills += 1
        assert killed == 2, Path(f"{out}.log").read_text()
        assert tree(out) == whole
        runs += 1
    print(f"{kills} kills in {runs} runs")
    assert kills >= CHAOS_S / 5 and runs >= 1
