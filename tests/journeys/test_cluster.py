"""A data engineer with a SLURM cluster: one YAML, one command, an array of tasks, and proof that all is there."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.slow
def test_the_same_command_until_it_is_done(
    own: Path,
    command: Command,
    small: Callable[[Path, dict[str, Any]], None],
    cluster: ModuleType,
    tmp_path: Path,
) -> None:
    if reason := cluster.why_not():
        pytest.skip(reason)
    (own / "slurm.yaml").write_text(command("alt", "recipes", "slurm", cwd=own).stdout)
    small(
        own / "slurm.yaml",
        {
            "corpus": {"labels": "labels.txt"},
            "labels": {"train": {"file": "labels.txt"}},
            "alignments": {
                "videos": "clips",
                "videos_per_shard": 5,
                "slurm": {"time": "00:10:00", "cpus_per_task": 1},
            },
        },
    )
    with cluster.slurm(tmp_path / "cluster") as env:
        told = {name: env[name] for name in ("SLURM_CONF",)} | {"OMP_NUM_THREADS": "1"}
        first = command("alt", "run", "slurm.yaml", cwd=own, code=75, env=told)
        assert "2 tasks submitted" in first.stderr and "the same command goes on" in first.stderr
        assert cluster.wait_for(env, 240), subprocess.run(["squeue"], env=env, capture_output=True).stdout
        second = command("alt", "run", "slurm.yaml", "--json", cwd=own, code=2, env=told)
    report = json.loads(second.stdout)
    assert report["steps"]["corpus"] == "up to date" and report["steps"]["train/alt"] == "done"
    assert report["failed_videos"] == 1 and report["scores"]["alt"]["test"]["n"] == 2
    assert command("aligner", "verify", "runs/slurm/alignments", cwd=own).stdout.strip() == "ok"
    by_hand = (own / "runs/first/alignments").glob("shard-*.parquet")
    assert len(list(by_hand)) == 1 and len(list((own / "runs/slurm/alignments").glob("shard-*.parquet"))) == 2
