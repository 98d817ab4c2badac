"""SLURM job arrays: an editable batch script, and the array of what is still to do.

Task i of an array fills the i-th block of shards (``shards_per_task`` each), so that a task means the same shards
whenever it is submitted, and going on is to submit the blocks that are not done. Arrays are cut into windows, since
a cluster allows no index above its MaxArraySize; ``ALIGNER_OFFSET`` tells a task where its window begins.
"""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from aligner import artifact
from aligner.config import EXIT_DONE_WITH_FAILURES, EXIT_REQUEUE, AlignerError

MARK = "# aligner-slurm:"
MAX_ARRAY_SIZE = 1001
"""SLURM's own default of MaxArraySize: one above the largest index of an array."""


@dataclass(frozen=True)
class Resources:
    """What a task asks of the cluster; None leaves it to the cluster's defaults. Spelled as for ``sbatch``."""

    time: str | None = None
    partition: str | None = None
    gpus: str | None = None
    cpus_per_task: int | None = None
    mem: str | None = None
    options: tuple[str, ...] = ()
    """Further ``#SBATCH`` options, such as ``--account=vision``."""

    def lines(self) -> list[str]:
        """As ``#SBATCH`` lines."""
        named = {
            name: value for name, value in asdict(self).items() if value is not None and name != "options"
        }
        found = [f"--{name.replace('_', '-')}={value}" for name, value in named.items()]
        for option in self.options:
            if not re.fullmatch(r"--?[a-zA-Z][^\n]*", option):
                raise AlignerError(
                    f"--option {option!r} is no option of sbatch; expected one such as --account=vision"
                )
        return [f"#SBATCH {option}" for option in [*found, *self.options]]


@dataclass(frozen=True)
class Script:
    """What ``resubmit`` has to know of a batch script; it stands in the script itself."""

    out: str
    shards_per_task: int
    max_array_size: int = MAX_ARRAY_SIZE

    @property
    def folder(self) -> Path:
        """The alignments folder."""
        return Path(self.out)


@dataclass(frozen=True)
class Window:
    """One submission: array indices from 0, which mean the blocks from ``offset`` on."""

    offset: int
    array: str

    def command(self, script: Path, concurrent: int | None = None) -> list[str]:
        """The ``sbatch`` command; at most ``concurrent`` tasks run at a time."""
        limit = f"%{concurrent}" if concurrent else ""
        export = f"--export=ALL,ALIGNER_OFFSET={self.offset}"
        return ["sbatch", "--parsable", f"--array={self.array}{limit}", export, str(script)]


def write_script(path: Path, arguments: Sequence[str], told: Script, resources: Resources) -> None:
    """Write the batch script of ``aligner run ARGUMENTS``, for people to read and to change.

    A task that is told to stop (USR1 two minutes before its time is up, or TERM) leaves what it has begun in good order
    and asks to be queued again.

    Raises:
        AlignerError: an argument that the script sets itself, or an option that is none of sbatch's.
    """
    _check_arguments(arguments)
    run = shlex.join([sys.executable, "-m", "aligner", "run", *arguments, "--out", told.out])
    last = told.shards_per_task - 1
    lines = [
        "#!/bin/bash",
        "#SBATCH --job-name=aligner",
        f"#SBATCH --output={path.with_suffix('')}-%A_%a.log",
        "#SBATCH --open-mode=append",
        "#SBATCH --signal=B:USR1@120",
        "#SBATCH --requeue",
        *resources.lines(),
        f"{MARK} {json.dumps(asdict(told), sort_keys=True)}",
        "",
        f"first=$(((SLURM_ARRAY_TASK_ID + ${{ALIGNER_OFFSET:-0}}) * {told.shards_per_task}))",
        f'{run} --shards "$first-$((first + {last}))" &',
        "child=$!",
        "trap 'kill -TERM \"$child\"' USR1 TERM",
        'wait "$child"',
        "code=$?",
        "# a trapped signal ends `wait` before the child does",
        'while kill -0 "$child" 2>/dev/null; do wait "$child"; code=$?; done',
        f'if [ "$code" -eq {EXIT_REQUEUE} ]; then',
        '    scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"',
        "fi",
        f"# {EXIT_DONE_WITH_FAILURES}: done, with failed videos, which `aligner status` lists",
        f'if [ "$code" -eq {EXIT_DONE_WITH_FAILURES} ]; then code=0; fi',
        'exit "$code"',
    ]
    artifact.write_bytes(path, ("\n".join(lines) + "\n").encode())


def read_script(path: Path) -> Script:
    """What the script says of itself.

    Raises:
        AlignerError: no such file, or not a script of ours.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise AlignerError(
            f"{path} cannot be read ({error}); `aligner slurm submit` writes such a script"
        ) from None
    told = next((line.removeprefix(MARK) for line in lines if line.startswith(MARK)), "")
    try:
        return Script(**json.loads(told))
    except (ValueError, TypeError):
        raise AlignerError(
            f"{path} has no whole line '{MARK} ...' that tells its folder; write it again with `aligner slurm submit`"
        ) from None


def _check_arguments(arguments: Sequence[str]) -> None:
    own = {"--out", "--shards", "--num-shards", "--shard-index", "--force"}
    if given := sorted(own & {argument.partition("=")[0] for argument in arguments}):
        raise AlignerError(
            f"{given[0]} cannot stand behind `--`: the script itself gives every task its shards"
        )


def blocks_to_do(told: Script) -> list[int]:
    """Blocks with a shard that is not done, in order."""
    manifest = artifact.read_manifest(told.folder)
    todo = {
        shard // told.shards_per_task
        for shard in range(manifest["num_shards"])
        if not artifact.is_done(told.folder, shard, manifest)
    }
    return sorted(todo)


def windows(blocks: Sequence[int], max_array_size: int) -> list[Window]:
    """Submissions that cover the blocks, none with an index of ``max_array_size`` or more."""
    by_offset: dict[int, list[int]] = {}
    for block in blocks:
        offset = block - block % max_array_size
        by_offset.setdefault(offset, []).append(block - offset)
    return [Window(offset, array_expression(indices)) for offset, indices in by_offset.items()]


def array_expression(indices: Sequence[int]) -> str:
    """Sorted indices as SLURM writes them: ``0,1,2,5`` -> ``0-2,5``."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def sbatch(command: Sequence[str]) -> str:
    """Submit; returns the id of the job.

    Raises:
        AlignerError: no ``sbatch`` here, or it refused, with its words.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        raise AlignerError(
            "no sbatch on this machine; run this where jobs are submitted, or give --dry-run"
        ) from None
    if done.returncode:
        raise AlignerError(f"sbatch refused: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.strip()


def submit(
    script: Path,
    told: Script,
    blocks: Sequence[int],
    concurrent: int | None,
    send: Callable[[Sequence[str]], str] | None,
    say: Callable[[str], object],
) -> None:
    """Submit the blocks, window by window, by ``send``; without it the commands are told, and nothing is done."""
    if not blocks:
        say("nothing to do: every shard is done")
    for window in windows(blocks, told.max_array_size):
        command = window.command(script, concurrent)
        say(f"job {send(command)}: --array={window.array}" if send else shlex.join(command))
