"""A worker of a launcher: fills the shards that it is given, and says what became of each."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aligner.config import AlignConfig, AlignerError
from aligner.engine import Job, Stop, Stopped, fill
from aligner.launch import Message
from aligner.progress import Progress
from aligner.run import counts_of, join
from aligner.sources import is_url


class Worker:
    """Works in a folder that another process has prepared; ``task`` is what launch.task_of says."""

    def __init__(self, task: Message) -> None:
        self.task = task
        self.stop = Stop()
        self.job: Job | None = None

    def begin(self) -> Iterator[Message]:
        """Load what the shards need."""
        settings, root = self.task["settings"], self.task["root"]
        paths: dict[str, Any] = {name: Path(settings[name]) for name in ("corpus", "out")}
        try:
            self.job = join(
                AlignConfig(**settings | paths),
                root if is_url(root) else Path(root),
                self.task["urls"],
                self.task["fingerprint"],
            )
            yield {"idle": True}
        except (AlignerError, OSError) as error:
            yield {"error": str(error)}

    def fill(self, shards: list[int]) -> Iterator[Message]:
        """Fill shards, one after the other."""
        assert self.job is not None
        out = self.job.config.out
        try:
            for shard, marker in fill(self.job, shards, Progress(), self.stop):
                yield {"done": shard, "counts": counts_of(out, shard, marker)}
            yield {"idle": True}
        except Stopped:
            yield {"stopped": True}
        except (AlignerError, OSError) as error:
            yield {"error": str(error)}
