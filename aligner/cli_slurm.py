"""``aligner slurm``: the work as a SLURM job array. Options only; the work is in slurm.py."""

from pathlib import Path
from typing import Annotated

import typer

from aligner.options import errors

app = typer.Typer(
    no_args_is_help=True, help="Submit the work as a SLURM job array, and what is left of it again."
)

Concurrent = Annotated[int | None, typer.Option(help="Tasks that run at the same time, at most.", min=1)]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the commands, submit nothing.")]


@app.command("submit")
def submit_cli(
    script: Annotated[Path, typer.Option(help="Batch script to write, for you to read and to change.")],
    out: Annotated[Path, typer.Option(help="Alignments folder, as `aligner plan` has written it.")],
    arguments: Annotated[
        list[str],
        typer.Argument(help="Options of `aligner run` behind `--`, but for --out.", metavar="-- RUN OPTIONS"),
    ],
    shards_per_task: Annotated[int, typer.Option(help="Shards that a task of the array fills.", min=1)] = 1,
    time: Annotated[str | None, typer.Option(help="Time limit of a task, such as 04:00:00.")] = None,
    partition: Annotated[str | None, typer.Option(help="Partition of the cluster.")] = None,
    gpus: Annotated[str | None, typer.Option(help="GPUs of a task, such as 1 or a100:1.")] = None,
    cpus_per_task: Annotated[int | None, typer.Option(help="Processor cores of a task.", min=1)] = None,
    mem: Annotated[str | None, typer.Option(help="Memory of a task, such as 32G.")] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(help="Any other option of sbatch, such as --account=vision. Repeatable."),
    ] = None,
    max_array_size: Annotated[
        int, typer.Option(help="The cluster's MaxArraySize (`scontrol show config`).", min=1)
    ] = 1001,
    concurrent: Concurrent = None,
    dry_run: DryRun = False,
) -> None:
    """Write a batch script for the shards that are not done, and submit it.

    `aligner plan` comes first, with the same options. A task that is stopped in time (its limit, a pre-emption)
    leaves what it has begun in good order and queues itself again.
    """
    with errors():
        from aligner import slurm

        resources = slurm.Resources(time, partition, gpus, cpus_per_task, mem, tuple(option or ()))
        told = slurm.Script(str(out.resolve()), shards_per_task, max_array_size)
        blocks = slurm.blocks_to_do(told)
        slurm.write_script(script, arguments, told, resources)
        typer.echo(
            f"{script}: yours to read and change; `aligner slurm resubmit {script}` submits what is left"
        )
        slurm.submit(script, told, blocks, concurrent, None if dry_run else slurm.sbatch, typer.echo)


@app.command("resubmit")
def resubmit_cli(
    script: Annotated[
        Path, typer.Argument(help="Batch script of `aligner slurm submit`.", show_default=False)
    ],
    concurrent: Concurrent = None,
    dry_run: DryRun = False,
) -> None:
    """Submit a batch script again, for the shards that are not done."""
    with errors():
        from aligner import slurm

        told = slurm.read_script(script)
        blocks = slurm.blocks_to_do(told)
        slurm.submit(script, told, blocks, concurrent, None if dry_run else slurm.sbatch, typer.echo)
