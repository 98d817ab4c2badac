"""Settings of the aligner, its error class and its exit codes (standard library only)."""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

EXIT_DONE = 0
EXIT_NOT_DONE = 1
EXIT_DONE_WITH_FAILURES = 2
# Stopped by a signal: run the same command again, as a scheduler does with a job that is requeued (EX_TEMPFAIL).
EXIT_REQUEUE = 75

# Frames in a forward pass on a GPU, unless --batch-frames says otherwise.
GPU_PASS = 256

PRECISIONS = ("fp32", "bf16")
# What replaces the last block's attention for the regions, see encoder.mix.
DENSE = ("none", "value", "self")
# How embeddings are kept, see artifact.py.
STORES = ("fp16",)
AUTO = "auto"
SAMPLING = "middle-of-segments"


class AlignerError(ValueError):
    """A problem the user can mend; the message says what was got, what was expected and what to do."""


class ChangedSettings(AlignerError):
    """An alignments folder was begun with other settings; ``force=True`` would start it over."""


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` for the closest choice, or an empty string when nothing is close."""
    close = difflib.get_close_matches(word, list(choices), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


@dataclass(frozen=True)
class AlignConfig:
    """Everything one ``aligner run`` needs to know.

    The first block decides the bytes of the shards and is part of the run's fingerprint; the second block
    only decides where and how fast the work is done, and never changes a byte.
    """

    # Folder of videos and tars (searched recursively), a tar or a pattern of tars, an address (`s3://...`), or a
    # manifest (.csv, .parquet, .jsonl, .txt) naming them.
    videos: Path | str
    # Corpus folder written by `corpus-builder build`, made with the same model.
    corpus: Path
    # open_clip model: a built-in name, `hf-hub:org/repo` or `local-dir:PATH`.
    model: str
    # Weights of a built-in model: an open_clip tag, a file, or `none` for random weights.
    pretrained: str | None = None
    # Frames sampled from each video (T), the middle of T equal segments.
    frames: int = 8
    # Token pairs merged in every encoder block (ToMe's r); 0 keeps every patch as a region; `auto` scales r with
    # the number of patches (see merging.automatic_merge).
    merge: int | str = 8
    # Entities stored per region.
    top_k: int = 16
    # Add log(size) to the attention logits of merged tokens; on for a frozen backbone (method.md 1.2).
    proportional_attention: bool = True
    # Attention of the regions in the last block: `none` (as the model has it), `value` (MaskCLIP) or `self` (SCLIP).
    dense: str = "none"
    # Arithmetic of the encoder; embeddings are stored as fp16 either way.
    precision: str = "fp32"
    # Videos per shard, the unit of resuming and of parallel work.
    videos_per_shard: int = 64
    # Frames a second of a folder of pictures, which is a video too.
    frame_rate: float = 30.0
    # Frames in one forward pass, across videos; by default one video's on a CPU and 256 on a GPU. It may change
    # the last bits, so the folder records it when it is begun, and keeps it whatever is asked for later.
    batch_frames: int | None = None

    # Folder that `video_id` is relative to; by default the videos folder, or the folder of the manifest.
    videos_root: Path | str | None = None
    # Alignments folder to write.
    out: Path = Path("alignments")
    # `cpu`, `cuda`, `cuda:1` or `auto` (a GPU when there is one).
    device: str = "auto"
    # Processes that decode videos ahead of the encoder.
    decode_workers: int = 2
    # Let a manifest name videos outside `videos_root` (absolute paths, `..`).
    allow_outside_root: bool = False
    # Go on though videos of the plan were removed or changed; their shards are made again.
    allow_changed_videos: bool = False
    # Seconds after which a video that is still being decoded is given up, and put on the poison list.
    video_seconds: float = 120.0
    # Try again the videos that are on the poison list: those that brought a decoder down or took too long.
    retry_poisoned: bool = False
    # Seconds that SIGTERM or SIGUSR1 leaves to the shard at hand before it is given up.
    grace_seconds: float = 20.0
    # Throw away an existing alignments folder made with other settings.
    force: bool = False
    # This process takes the shards whose number modulo `num_shards` is `shard_index`.
    num_shards: int = 1
    shard_index: int = 0
    # Or it takes just these, such as `3,7-9`; numbers beyond the last shard are nobody's.
    shards: str | None = None

    @property
    def shares_work(self) -> bool:
        """Whether other processes may be at work in the same folder."""
        return self.num_shards > 1 or self.shards is not None

    def __post_init__(self) -> None:
        if isinstance(self.merge, str) and self.merge != AUTO:
            raise AlignerError(f"--merge must be a whole number or {AUTO}, got {self.merge!r}")
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value != AUTO and value < least:
                raise AlignerError(f"{_option(name)} must be at least {least}, got {value}")
        if not self.video_seconds > 0:
            raise AlignerError(f"--video-seconds must be above 0, got {self.video_seconds}")
        if self.precision not in PRECISIONS:
            raise AlignerError(f"--precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if self.dense not in DENSE:
            raise AlignerError(f"--dense must be one of {', '.join(DENSE)}, got {self.dense!r}")
        if not 0 < self.frame_rate < float("inf"):
            raise AlignerError(f"--frame-rate must be above 0, got {self.frame_rate}")
        if self.shards is not None:
            parse_shards(self.shards)
        if self.shard_index >= self.num_shards:
            raise AlignerError(
                f"--shard-index must be below --num-shards {self.num_shards}, got {self.shard_index}"
            )


_LEAST = {
    "frames": 1,
    "merge": 0,
    "top_k": 1,
    "videos_per_shard": 1,
    "batch_frames": 1,
    "decode_workers": 1,
    "grace_seconds": 0,
    "num_shards": 1,
    "shard_index": 0,
}


def parse_merge(given: int | str) -> int | str:
    """``--merge`` as given on a command line: a number if it is one; AlignConfig judges the rest."""
    try:
        return int(given)
    except ValueError:
        return given


def _option(field: str) -> str:
    return "--" + field.replace("_", "-")


def parse_shards(given: str) -> tuple[range, ...]:
    """``3,7-9`` -> the ranges (3,) and (7, 8, 9).

    Raises:
        AlignerError: anything else.
    """
    parts = [re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip()) for part in given.split(",")]
    found = [range(int(part[1]), int(part[2] or part[1]) + 1) for part in parts if part]
    if len(found) < len(parts) or not all(found):
        raise AlignerError(f"--shards is {given!r}, expected numbers and ranges such as 3,7-9")
    return tuple(found)


def array_share(num_shards: int | None, shard_index: int | None, env: dict[str, str]) -> tuple[int, int]:
    """(count, index) of this process among those that share the work.

    The flags win; without them a SLURM job array is read from ``env`` (``SLURM_ARRAY_TASK_*``); without
    that the process takes everything, (1, 0).

    Raises:
        AlignerError: one flag without the other, or an array whose ids are no numbers or not evenly spaced.
    """
    if (num_shards is None) != (shard_index is None):
        missing = "--num-shards" if num_shards is None else "--shard-index"
        raise AlignerError(f"--num-shards and --shard-index go together; {missing} is missing")
    if num_shards is not None and shard_index is not None:
        return num_shards, shard_index
    if "SLURM_ARRAY_TASK_ID" not in env:
        return 1, 0
    return _slurm_share(env)


def _slurm_share(env: dict[str, str]) -> tuple[int, int]:
    task = _slurm_number(env, "ID", 0)
    count = _slurm_number(env, "COUNT", 0)
    first = _slurm_number(env, "MIN", 0)
    last = _slurm_number(env, "MAX", first + count - 1)
    step = _slurm_number(env, "STEP", 1)
    # A resubmitted array such as 3,7 does not say which share each task had in the first place.
    if count < 1 or step < 1 or (last - first) // step + 1 != count:
        raise AlignerError(
            f"SLURM task {task} of an array with {count} unevenly spaced tasks: "
            "give --num-shards and --shard-index instead"
        )
    return count, (task - first) // step


def _slurm_number(env: dict[str, str], name: str, default: int) -> int:
    variable = f"SLURM_ARRAY_TASK_{name}"
    try:
        return int(env.get(variable, default))
    except ValueError:
        raise AlignerError(
            f"{variable} must be a whole number, got {env[variable]!r}: "
            "give --num-shards and --shard-index instead"
        ) from None
