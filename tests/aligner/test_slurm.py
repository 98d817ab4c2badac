"""Job arrays: the script and the arithmetic, and a real SLURM of one node where one can be started."""

import hashlib
import importlib.util
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aligner import artifact, run, slurm
from aligner.config import AlignerError, parse_shards


def load(name: str) -> ModuleType:
    """A file beside this one, as a module."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


cluster = load("slurm_cluster")


@given(st.sets(st.integers(0, 5000)), st.integers(1, 1200))
def test_windows_hold_every_block_once_and_no_index_beyond_the_limit(blocks: set[int], limit: int) -> None:
    found = []
    for window in slurm.windows(sorted(blocks), limit):
        indices = [index for part in parse_shards(window.array) for index in part]
        assert max(indices) < limit
        found += [window.offset + index for index in indices]
    assert found == sorted(blocks)


def test_runs_of_indices_are_written_as_slurm_writes_them() -> None:
    assert slurm.array_expression([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"


def test_a_script_tells_what_it_is_and_what_was_asked_for(tmp_path: Path) -> None:
    told = slurm.Script("/data/out folder", 4, 1001)
    resources = slurm.Resources("04:00:00", "gpu", "a100:1", 8, "32G", ("--account=vision",))
    slurm.write_script(tmp_path / "job.sbatch", ["--videos", "my clips"], told, resources)
    assert slurm.read_script(tmp_path / "job.sbatch") == told
    text = (tmp_path / "job.sbatch").read_text()
    for line in ("--time=04:00:00", "--partition=gpu", "--gpus=a100:1", "--cpus-per-task=8", "--mem=32G"):
        assert f"#SBATCH {line}\n" in text
    assert "#SBATCH --account=vision\n" in text and "'my clips'" in text and "'/data/out folder'" in text
    assert subprocess.run(["bash", "-n", str(tmp_path / "job.sbatch")]).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (["--force"], (), "--force cannot stand behind"),
        (["--shards=3"], (), "--shards cannot stand behind"),
        ([], ("account=vision",), "--option 'account=vision' is no option of sbatch"),
        ([], ("--a=b\nrm -rf x",), "is no option of sbatch"),
    ],
)
def test_what_a_script_may_not_hold(
    tmp_path: Path, arguments: list[str], options: tuple, message: str
) -> None:
    with pytest.raises(AlignerError, match=message):
        slurm.write_script(
            tmp_path / "j", arguments, slurm.Script("out", 1), slurm.Resources(options=options)
        )
    assert not (tmp_path / "j").exists()


def test_a_script_that_is_not_ours_is_told(tmp_path: Path) -> None:
    (tmp_path / "j").write_text("#!/bin/bash\n# aligner-slurm: {}\n")
    for path in (tmp_path / "j", tmp_path / "none"):
        with pytest.raises(AlignerError, match="aligner slurm submit"):
            slurm.read_script(path)


def test_only_what_is_not_done_is_submitted_again(settings: Callable) -> None:
    config = settings(videos_per_shard=1)
    job = run.prepare(config)
    for shard in (0, 1, 4):
        run.run_shard(job, shard)
    assert slurm.blocks_to_do(slurm.Script(str(config.out), 1)) == [2, 3, 5, 6]
    assert slurm.blocks_to_do(slurm.Script(str(config.out), 2)) == [1, 2, 3]
    run.run(settings(videos_per_shard=1, shards="2-3,6,99"))
    assert slurm.blocks_to_do(slurm.Script(str(config.out), 1)) == [5]
    said: list[str] = []
    slurm.submit(Path("j"), slurm.Script(str(config.out), 1), [5], 2, None, said.append)
    assert said == ["sbatch --parsable --array=5%2 --export=ALL,ALIGNER_OFFSET=0 j"]


@pytest.mark.parametrize("given", ["", "3-1", "a", "1,,2", "-1"])
def test_shards_that_are_no_numbers_are_refused(settings: Callable, given: str) -> None:
    with pytest.raises(AlignerError, match="expected numbers and ranges such as 3,7-9"):
        settings(shards=given)


# On a real scheduler.


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a running one-node SLURM."""
    if reason := cluster.why_not():
        pytest.skip(reason)
    with cluster.slurm(tmp_path_factory.mktemp("slurm") / "cluster") as env:
        yield env | {
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }


def hashes(out: Path) -> dict[str, str]:
    """Every file but the timings, and the manifest without the time of making."""
    files = {path.name: path.read_bytes() for path in out.iterdir() if not path.name.startswith("timings-")}
    manifest = re.sub(rb'"created": "[^"]*"', b"", files.pop(artifact.MANIFEST))
    return {name: hashlib.sha256(data).hexdigest() for name, data in (files | {"manifest": manifest}).items()}


def options(config: object) -> list[str]:
    """The command line of some settings, but for --out."""
    names = ("videos", "corpus", "model", "frames", "merge", "top_k", "videos_per_shard")
    return [word for name in names for word in (f"--{name.replace('_', '-')}", str(getattr(config, name)))]


def call(env: dict[str, str], *words: object) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "aligner", *map(str, words)], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_three_array_tasks_make_the_files_that_one_process_makes(
    settings: Callable, scheduler: dict[str, str], tmp_path: Path
) -> None:
    run.run(settings())
    config, script = settings(out=tmp_path / "array"), tmp_path / "job.sbatch"
    call(scheduler, "plan", *options(config), "--out", config.out)
    told = call(scheduler, "slurm", "submit", "--script", script, "--out", config.out, "--", *options(config))
    assert "--array=0-2" in told
    assert cluster.wait_for(scheduler, 240), list(tmp_path.glob("*.log"))
    assert hashes(config.out) == hashes(tmp_path / "out"), [p.read_text() for p in tmp_path.glob("*.log")]
    assert "nothing to do" in call(scheduler, "slurm", "resubmit", script)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_task_that_is_told_to_stop_queues_itself_again(
    settings: Callable, scheduler: dict[str, str], tmp_path: Path
) -> None:
    run.run(settings(videos_per_shard=1))
    config, script = settings(out=tmp_path / "array", videos_per_shard=1), tmp_path / "job.sbatch"
    call(scheduler, "plan", *options(config), "--out", config.out)
    words = ["slurm", "submit", "--script", script, "--out", config.out, "--shards-per-task", 7]
    told = call(scheduler, *words, "--", *options(config), "--grace-seconds", 0)
    job = re.search(r"job (\d+)", told)
    assert job is not None
    deadline = time.monotonic() + 120
    while not list(config.out.glob("shard-*.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    subprocess.run(["scancel", "--signal=USR1", "--batch", job[1]], env=scheduler, check=True)
    assert cluster.wait_for(scheduler, 240)
    log = "".join(path.read_text() for path in tmp_path.glob("*.log"))
    assert hashes(config.out) == hashes(tmp_path / "out"), log
    assert "again to go on" in log or "nothing to do" not in log
