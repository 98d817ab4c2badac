"""Alignments by a SLURM job array, from the same command as everything else.

The first call plans the folder, submits the array and ends; while tasks are queued or at work a call only says so;
when every shard is there, the call goes on with the stages behind.
"""

import subprocess
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from aligner.config import AlignConfig, ChangedSettings
from pipelines.config import SlurmSection
from pipelines.errors import PipelineError, Unfinished
from pipelines.ledger import write_text

# Settings of a run that a task of the array is not told: the script gives it its shards, and the rest is planned.
NOT_TOLD = {"out", "force", "num_shards", "shard_index", "shards", "launcher", "ray_address", "ray_cpus"}
NEXT = "the same command goes on when they are done"


def fill_by_array(settings: AlignConfig, asked: SlurmSection, folder: Path, name: str) -> None:
    """Return when every shard is there; else submit what is left, unless that is at work already.

    Raises:
        Unfinished: tasks were submitted, or are still queued or at work.
        PipelineError: no SLURM here, or it refused.
    """
    from aligner import slurm
    from aligner.run import prepare

    script, jobs = folder / f"{name}.sbatch", folder / f"{name}.jobs.txt"
    if waiting := _waiting(jobs):
        raise Unfinished(f"{name}: {waiting} tasks of the job array are queued or at work; {NEXT}")
    try:
        prepare(settings, only_plan=True)
    except ChangedSettings:
        prepare(replace(settings, force=True), only_plan=True)
    told = slurm.Script(str(settings.out), asked.shards_per_task, asked.max_array_size)
    blocks = slurm.blocks_to_do(told)
    if not blocks:
        jobs.unlink(missing_ok=True)
        return
    resources = slurm.Resources(
        asked.time, asked.partition, asked.gpus, asked.cpus_per_task, asked.mem, tuple(asked.options)
    )
    slurm.write_script(script, options(settings), told, resources)
    said: list[str] = []
    submitted: list[str] = []

    def send(command: Sequence[str]) -> str:
        submitted.append(slurm.sbatch(command).partition(";")[0])
        write_text(jobs, "\n".join(submitted) + "\n")
        return submitted[-1]

    slurm.submit(script, told, blocks, asked.concurrent, send, said.append)
    raise Unfinished(f"{name}: {len(blocks)} tasks submitted ({'; '.join(said)}; script {script}); {NEXT}")


def _waiting(jobs: Path) -> int:
    """How many tasks of the jobs that were submitted are queued or at work."""
    if not jobs.is_file():
        return 0
    ids = jobs.read_text(encoding="utf-8").split()
    command = ["squeue", "--noheader", "--array", "--format=%A", f"--jobs={','.join(ids)}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        raise PipelineError("no squeue on this machine; run this where jobs are submitted") from None
    # Jobs that ended long ago are unknown to SLURM, which then refuses: they wait for nothing.
    return len(done.stdout.split()) if done.returncode == 0 else 0


def options(settings: AlignConfig) -> list[str]:
    """The command line of ``aligner run`` that says what the settings say, but for what a script gives its tasks."""
    words: list[str] = []
    for field in fields(AlignConfig):
        value, flag = getattr(settings, field.name), field.name.replace("_", "-")
        if field.name in NOT_TOLD or value == field.default:
            continue
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", str(value)]
    return words
