"""Where the lines of a training go beside ``metrics.jsonl``: TensorBoard, Weights & Biases, or nowhere.

Both packages are optional and imported when asked for.
"""

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from adapter.config import AdapterError


@runtime_checkable
class Tracker(Protocol):
    """What a tracker must be able to do."""

    def log(self, line: Mapping[str, Any]) -> None:
        """Take one epoch's numbers, as in ``metrics.jsonl``."""

    def close(self) -> None:
        """Write out what is held back."""


class NoTracker:
    """``metrics.jsonl`` alone."""

    def log(self, line: Mapping[str, Any]) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class TensorBoard:
    """Event files in the run's folder; ``tensorboard --logdir RUN`` shows them."""

    def __init__(self, out: Path, config: Mapping[str, Any], first_epoch: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise _absent("tensorboard") from None
        # A run that was killed repeats epochs: those logged before are purged.
        self.writer = SummaryWriter(str(out), purge_step=first_epoch)

    def log(self, line: Mapping[str, Any]) -> None:
        """One scalar a number."""
        for name, value in _numbers(line).items():
            self.writer.add_scalar(name, value, line["epoch"])

    def close(self) -> None:
        """Flush and close the event file."""
        self.writer.close()


class Wandb:
    """A Weights & Biases run, offline unless ``WANDB_MODE`` says otherwise; one id for each run folder."""

    def __init__(self, out: Path, config: Mapping[str, Any], first_epoch: int) -> None:
        try:
            import wandb
        except ImportError:
            raise _absent("wandb") from None
        # wandb's own environment variable; its types know four words, and it says itself what it makes of others.
        mode: Any = os.environ.get("WANDB_MODE", "offline")
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "alt-adapter"),
            name=out.name,
            id=hashlib.sha256(str(out.resolve()).encode()).hexdigest()[:16],
            resume="allow",
            mode=mode,
            config=dict(config),
        )

    def log(self, line: Mapping[str, Any]) -> None:
        """One row, at the epoch as its step."""
        self.run.log(_numbers(line), step=line["epoch"])

    def close(self) -> None:
        """Finish the run."""
        self.run.finish()


TRACKERS: dict[str, Callable[[Path, Mapping[str, Any], int], Tracker]] = {
    "none": lambda out, config, first_epoch: NoTracker(),
    "tensorboard": TensorBoard,
    "wandb": Wandb,
}


def _numbers(line: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in line.items() if isinstance(value, int | float) and name != "epoch"}


def _absent(package: str) -> AdapterError:
    return AdapterError(f"--tracker {package} needs a package that is not here; run `pip install {package}`")
