"""Launchers are equal: one process, four, a Ray cluster, whatever dies on the way, make the same files, byte by byte.

Not compared are ``timings-*.json``; SOURCE_DATE_EPOCH fixes the one time in the manifest. The same for a SLURM array is
in test_slurm.py.
"""

import json
import os
import random
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aligner import launch, launch_local, run
from aligner.config import GPU_PASS, AlignConfig, AlignerError
from aligner.verify import verify
from aligner.worker import Worker

HERE = Path(__file__).resolve()
EPOCH = "1767225600"
CRASHING = runpy.run_path(str(HERE.with_name("kill_points.py")))["CRASHING"]

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc to see who is left")

# A worker that is killed whenever it begins shard 2, or only the first time that one does; its decoders are slow.
DEADLY = """
import os, sys
sys.path.append(sys.argv.pop(1))
from aligner import artifact, launch_local
begin = artifact.begin_attempt
def begin_attempt(out, shard):
    attempt = begin(out, shard)
    if shard == 2 and attempt <= {deaths}:
        os.kill(os.getpid(), 9)
    return attempt
artifact.begin_attempt = begin_attempt
launch_local.serve()
"""
SLOW = f"""
import sys
sys.path.append(sys.argv.pop(1))
from aligner import decoding, launch_local
decoding.START = {CRASHING!r}
launch_local.serve()
"""
SLOW_COMMAND = f"""
from aligner import launch_local
from aligner.cli import app
launch_local.START = {SLOW!r}
app()
"""


@pytest.fixture(scope="module")
def inputs(
    make_video: Callable, tiny_corpus: Path, tiny_clip: str, tmp_path_factory: pytest.TempPathFactory
) -> dict:
    """Five shards of one video each, the first of them broken."""
    root = tmp_path_factory.mktemp("launchers") / "videos"
    for place in range(4):
        make_video(root / f"slow{place}.mp4", frames=12, seed=place)
    (root / "broken.mp4").write_text("no video")
    options = {"videos": root, "corpus": tiny_corpus, "model": tiny_clip, "device": "cpu"}
    return options | {"frames": 3, "merge": 2, "top_k": 5, "videos_per_shard": 1, "decode_workers": 1}


@pytest.fixture(autouse=True)
def fixed_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", EPOCH)


@pytest.fixture
def config(inputs: dict, tmp_path: Path) -> AlignConfig:
    return AlignConfig(**inputs, out=tmp_path / "out")


@pytest.fixture(scope="module")
def whole(inputs: dict, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files that one process makes."""
    out = tmp_path_factory.mktemp("whole") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOURCE_DATE_EPOCH", EPOCH)
        report = run.run(AlignConfig(**inputs, out=out, processes=1))
    assert (report.ok, report.failed, report.done_shards) == (4, 1, 5)
    return tree(out)


def tree(out: Path) -> dict[str, bytes]:
    """Every file but the timings."""
    return {path.name: path.read_bytes() for path in out.iterdir() if not path.name.startswith("timings-")}


def attempts(out: Path) -> list[int]:
    """How often each shard was begun."""
    return [json.loads(path.read_text())["attempt"] for path in sorted(out.glob("timings-*.json"))]


def descendants(pid: int) -> list[int]:
    """All processes below a process."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has just ended
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    found = children.get(pid, [])
    return [*found, *(below for child in found for below in descendants(child))]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def is_actor(pid: int) -> bool:
    """Whether Ray runs an actor of ours in a process."""
    try:
        return b"ray::Actor" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def wait_until(met: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end
        time.sleep(0.01)


# Who gets which shards.


@given(
    st.integers(1, 60),
    st.integers(1, 6),
    st.sets(st.integers(0, 59), max_size=5),
    st.randoms(),
    st.integers(0, 1),
    st.booleans(),
)
def test_a_shard_is_done_or_given_up_after_three_deaths_of_its_own(
    shards: int, workers: int, deadly: set[int], dice: random.Random, accidents: int, late: bool
) -> None:
    """Where ``late``, a worker tells of a shard only when the next one is finished too, as engine.fill does."""
    schedule, begun, done = launch.Schedule(deque(range(shards))), Counter[int](), Counter[int]()
    hands: dict[int, list[int]] = {}
    untold: dict[int, list[int]] = {}
    while not schedule.idle or hands:
        worker = dice.randrange(workers)
        if worker not in hands:
            if not schedule.idle:
                hands[worker], untold[worker] = schedule.take(worker, workers), []
        elif not hands[worker]:
            del hands[worker]
            schedule.back(worker)
        else:
            shard = hands[worker].pop(0)
            begun[shard] += 1
            accident = accidents > 0 and dice.random() < 0.1
            accidents -= accident
            if shard in deadly or accident:
                schedule.lost(worker, "SIGKILL")
                del hands[worker]
                continue
            untold[worker].append(shard)
            while len(untold[worker]) > (late and len(hands[worker]) > 0):
                schedule.done(worker, untold[worker][0])
                done[untold[worker].pop(0)] += 1
    deadly = {shard for shard in deadly if shard < shards}
    assert done == Counter({*range(shards)} - deadly)
    assert schedule.given_up.keys() == deadly
    assert all(begun[shard] == launch.TRIES or late for shard in deadly)
    assert all("died 3 times, the last time by SIGKILL" in how for how in schedule.given_up.values())


@given(st.integers(1, 10_000), st.integers(1, 64))
def test_workers_get_many_shards_at_first_and_single_ones_in_the_end(shards: int, workers: int) -> None:
    schedule, sizes = launch.Schedule(deque(range(shards))), []
    while not schedule.idle:
        sizes.append(len(schedule.take(0, workers)))
    assert sum(sizes) == shards and sizes == sorted(sizes, reverse=True)
    assert sizes[0] == max(1, shards // (4 * workers)) and sizes[-1] == 1


class Scripted:
    """A pool whose workers say what a test wants them to say."""

    size, gpu = 2, False

    def __init__(self, *said: launch.Message) -> None:
        self.said, self.given, self.stops = deque(said), [], []

    def start(self, worker: int, task: launch.Message) -> None:
        pass

    def send(self, worker: int, shards: list[int]) -> None:
        self.given.append((worker, shards))

    def stop(self, grace_s: float) -> None:
        self.stops.append(grace_s)

    def messages(self, timeout_s: float) -> list[tuple[int, launch.Message]]:
        return [(0, self.said.popleft())] if self.said else []

    def close(self) -> None:
        pass


def test_a_problem_that_the_user_can_mend_ends_the_run() -> None:
    pool = Scripted({"idle": True}, {"error": "no space left on device"})
    with pytest.raises(AlignerError, match="no space left"):
        launch.Launch(pool, {}, [3, 4], launch.Stop()).run(lambda *_: None, lambda _: None)
    assert pool.given == [(0, [3])]


def test_a_standstill_is_told_and_ends_when_a_stop_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "SILENCE_S", 0.0)
    stop, told = launch.Stop(), []
    with pytest.raises(launch.Stopped):
        launch.Launch(Scripted(), {}, [3], stop).run(
            lambda *_: None, lambda text: (told.append(text), stop.ask())
        )
    assert told == ["no process could be started for 0 s: is there no room for one?"]


def test_who_does_not_answer_a_stop_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "PATIENCE_S", 0.2)
    pool, stop = Scripted({"idle": True}), launch.Stop()
    work = launch.Launch(pool, {}, [3], stop)
    monkeypatch.setattr(pool, "send", lambda worker, shards: stop.ask(0.3))
    start = time.monotonic()
    with pytest.raises(launch.Stopped):
        work.run(lambda *_: None, lambda _: None)
    assert 0.5 <= time.monotonic() - start < 5 and len(pool.stops) == 1 and pool.stops[0] <= 0.3


# What a worker is given.


def test_a_worker_gets_its_gpu_and_its_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = launch_local.LocalPool(3, True, ["2", "5"])
    assert [pool.environment(worker)["CUDA_VISIBLE_DEVICES"] for worker in range(3)] == ["2", "5", "2"]
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert pool.environment(0)["OMP_NUM_THREADS"] == "7"
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert pool.environment(0)["OMP_NUM_THREADS"] == str(max(1, launch_local.cores() // 3))


def test_a_folder_for_gpu_workers_is_begun_with_full_passes(config: AlignConfig) -> None:
    pool = launch_local.LocalPool(2, True)
    job = run.prepare(launch.planning(replace(config, device="auto"), pool))
    assert job.frames_per_pass == GPU_PASS and job.matcher.entities.device.type == "cpu"
    assert launch.planning(replace(config, batch_frames=9), pool).batch_frames == 9
    assert launch.planning(config, launch_local.LocalPool(2)).batch_frames is None


def test_a_worker_joins_only_the_folder_that_was_prepared(config: AlignConfig, inputs: dict) -> None:
    job = run.prepare(config)
    task = json.loads(json.dumps(launch.task_of(job, config)))
    worker = Worker(task)
    assert [*worker.begin()] == [{"idle": True}]
    assert worker.job is not None and worker.job.plan.items == job.plan.items
    assert [worker.job.plan.path(item) for item in job.plan.items] == [*map(job.plan.path, job.plan.items)]
    elsewhere = task | {"settings": task["settings"] | {"out": str(config.out / "none")}}
    assert "must see this folder" in next(Worker(elsewhere).begin())["error"]
    assert "another run changed it" in next(Worker(task | {"fingerprint": "0"}).begin())["error"]
    other = task | {"settings": task["settings"] | {"frames": 4}}
    assert "config.frames: got 4, expected 3" in next(Worker(other).begin())["error"]


# Processes of this machine.


@pytest.mark.slow
def test_four_processes_make_the_files_that_one_makes(config: AlignConfig, whole: dict[str, bytes]) -> None:
    videos = Counter[bool]()

    class Display(run.Progress):
        def advance(self, ok: bool) -> None:
            videos[ok] += 1

    report = run.run(replace(config, processes=4), lambda total: Display())
    assert tree(config.out) == whole and verify(config.out) == []
    assert report.exit_code == 2 and report.failures_by_stage == {"open": 1} and report.lost_processes == 0
    assert videos == {True: 4, False: 1}
    assert run.run(replace(config, processes=4)).done_shards == 0


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_worker_that_is_killed_once_costs_nothing(
    config: AlignConfig, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch_local, "START", DEADLY.format(deaths=1))
    report = run.run(replace(config, processes=2))
    assert (report.exit_code, report.lost_processes, report.given_up) == (2, 1, {})
    assert tree(config.out) == whole and attempts(config.out) == [1, 1, 2, 1, 1]


@pytest.mark.slow
def test_a_shard_that_kills_every_worker_is_named_and_the_others_are_done(
    config: AlignConfig,
    whole: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(launch_local, "START", DEADLY.format(deaths=99))
    assert run.run_and_report(replace(config, processes=2), quiet=True, as_json=False) == 1
    assert capsys.readouterr().out == (
        "given up: shard 2: the process at it died 3 times, the last time by SIGKILL; "
        "4 of 5 shards done; run again to go on\n"
    )
    assert attempts(config.out) == [1, 1, 3, 1, 1]
    assert run.run(replace(config, processes=1)).done_shards == 1
    assert tree(config.out) == whole


@pytest.mark.slow
def test_workers_that_cannot_start_end_the_run(config: AlignConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch_local, "START", "raise SystemExit(3)")
    with pytest.raises(
        AlignerError, match="3 processes in a row died while they started, the last by exit code 3"
    ):
        run.run(replace(config, processes=2))


@linux
@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGKILL, -9), pytest.param(signal.SIGTERM, 75, marks=pytest.mark.exhaustive)],
)
def test_nobody_outlives_the_parent(
    config: AlignConfig, whole: dict[str, bytes], number: int, code: int
) -> None:
    names = ("videos", "corpus", "model", "device", "frames", "merge", "top_k", "videos_per_shard", "out")
    words = [word for name in names for word in (f"--{name.replace('_', '-')}", str(getattr(config, name)))]
    command = [sys.executable, "-c", SLOW_COMMAND, "run", *words, "--quiet"]
    command += ["--processes", "2", "--decode-workers", "1", "--grace-seconds", "0"]
    root = str(HERE.parents[2])
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": root}, cwd=root)
    wait_until(lambda: process.poll() is not None or [*config.out.glob("shard-*.json")])
    family = descendants(process.pid)
    assert len(family) >= 2
    process.send_signal(number)
    assert process.wait(60) == code
    wait_until(lambda: not any(map(alive, family)), 20)
    left = run.run(replace(config, processes=1))
    assert left.skipped_shards >= 1 and left.done_shards >= 1
    assert tree(config.out) == whole


# A Ray cluster.


@pytest.fixture(scope="module")
def cluster() -> Iterator:
    """A cluster on this machine: a head that computes nothing, and a node of one core, which claims to have a GPU."""
    pytest.importorskip("ray", reason="needs Ray (pip install 'alt-toolkit[ray]')")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(HERE.parents[2]))
        patch.setenv("SOURCE_DATE_EPOCH", EPOCH)
        started = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        started.add_node(num_cpus=1, num_gpus=1)
        yield started
        started.shutdown()


@pytest.fixture
def on_ray(config: AlignConfig, cluster: object) -> AlignConfig:
    return replace(config, launcher="ray", ray_address=cluster.address, ray_cpus=1)


@pytest.mark.slow
def test_ray_makes_the_files_that_one_process_makes(on_ray: AlignConfig, whole: dict[str, bytes]) -> None:
    report = run.run(on_ray)
    assert tree(on_ray.out) == whole and verify(on_ray.out) == []
    assert report.exit_code == 2 and report.lost_processes == 0
    assert run.run(on_ray).done_shards == 0


@pytest.mark.slow
def test_a_cluster_without_room_is_refused(on_ray: AlignConfig) -> None:
    with pytest.raises(AlignerError, match="no node of the Ray cluster has 2 processor cores"):
        run.run(replace(on_ray, ray_cpus=2))


@pytest.mark.slow
def test_actors_ask_for_the_gpus_of_a_cluster_unless_told_not_to(on_ray: AlignConfig) -> None:
    with launch.pool_of(replace(on_ray, device="auto")) as pool:
        assert pool.gpu and pool.size == 1 and pool.wanted == {"num_cpus": 1, "num_gpus": 1}
        assert launch.planning(on_ray, pool).batch_frames == GPU_PASS
    with launch.pool_of(replace(on_ray, processes=3)) as pool:
        assert not pool.gpu and pool.size == 3
    with pytest.raises(AlignerError, match="has 2 processor cores and a GPU; give a smaller --ray-cpus"):
        run.run(replace(on_ray, device="cuda", ray_cpus=2))
    with pytest.raises(AlignerError, match="--device cuda:1 names a GPU of one machine"):
        run.run(replace(on_ray, device="cuda:1"))


@linux
@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_node_that_is_lost_in_the_middle_costs_nothing(
    on_ray: AlignConfig, whole: dict[str, bytes], cluster: object
) -> None:
    cluster.add_node(num_cpus=1)
    lost: set[str] = set()

    def begun() -> set[str]:
        """Shards that are at hand."""
        done = {path.name for path in on_ray.out.glob("shard-*.json")}
        found = {path.name.replace("timings", "shard") for path in on_ray.out.glob("timings-*.json")}
        return found - done

    def processes_of(node: object) -> list[int]:
        return descendants(node.all_processes["raylet"][0].process.pid)

    def sabotage() -> None:
        """Stop the node's processes while they have a shard at hand; then the node is gone."""
        nodes = cluster.worker_nodes
        wait_until(lambda: any(map(is_actor, [pid for node in nodes for pid in processes_of(node)])))
        (node,) = (node for node in nodes if any(map(is_actor, processes_of(node))))
        while not lost:
            wait_until(begun)
            family = processes_of(node)
            for pid in family:
                os.kill(pid, signal.SIGSTOP)
            lost.update(begun())
            for pid in family if not lost else ():
                os.kill(pid, signal.SIGCONT)
        try:
            cluster.remove_node(node, allow_graceful=False)
        finally:
            for pid in filter(alive, family):
                os.kill(pid, signal.SIGKILL)

    saboteur = threading.Thread(target=sabotage)
    saboteur.start()
    report = run.run(replace(on_ray, processes=1))
    saboteur.join()
    assert report.exit_code == 2 and report.lost_processes == 1 and len(lost) == 1
    assert tree(on_ray.out) == whole
    assert sorted(attempts(on_ray.out)) == [1, 1, 1, 1, 2]
