"""The order of an epoch, and which part of it a rank reads: the same videos for any number of ranks.

The order is a function of (seed, epoch). Global batches are consecutive pieces of it, and a rank takes its slice
of each, so nothing is padded, repeated or dropped, and where training stands is one number: the videos seen.
"""

import queue
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")


@dataclass(frozen=True)
class Share:
    """What one rank reads of one global batch.

    ``start`` counts the epoch's videos before the batch, ``total`` those in it: the loss of a rank's share counts by
    ``len(samples) / total``. ``samples`` may be empty: an epoch's last batch may have fewer videos than ranks.
    """

    samples: Sequence[int]
    start: int
    total: int

    @property
    def end(self) -> int:
        """Videos of the epoch that are done with this batch: where to go on from after it."""
        return self.start + self.total


@dataclass(frozen=True)
class EpochOrder:
    """All samples of an epoch in the order that every rank knows; ``batch_size`` is that of all ranks together."""

    order: Sequence[int]
    batch_size: int

    def shares(self, rank: int = 0, world: int = 1, start: int = 0) -> Iterator[Share]:
        """The rank's share of every global batch from ``start`` videos on; every rank gets as many shares."""
        for first in range(start, len(self.order), self.batch_size):
            batch = self.order[first : first + self.batch_size]
            low, high = (len(batch) * r // world for r in (rank, rank + 1))
            yield Share(batch[low:high], first, len(batch))

    def steps(self, start: int = 0) -> int:
        """Global batches from ``start`` videos on."""
        return -(-max(0, len(self.order) - start) // self.batch_size)


def windowed_order(groups: Sequence[tuple[int, int]], rng: np.random.Generator, window: int) -> list[int]:
    """Shuffle the groups, then members within each ``window`` groups: few reads, near-random order."""
    members: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, group in enumerate(groups):
        members[group].append(i)
    keys = [sorted(members)[i] for i in rng.permutation(len(members))]
    order: list[int] = []
    for start in range(0, len(keys), window):
        pool = [i for key in keys[start : start + window] for i in members[key]]
        order += [pool[i] for i in rng.permutation(len(pool))]
    return order


def prefetched(items: Iterable[Item], ahead: int = 2) -> Iterator[Item]:
    """The same items, made in a thread up to ``ahead`` before they are asked for.

    Reading and stacking release Python's lock, so a thread hides them behind the training step, without the
    start and the copies of processes. An error is raised where its item would have come; a reader that stops
    early ends the thread.
    """
    line: queue.Queue[tuple[bool, Item | BaseException | None]] = queue.Queue(ahead)
    stopped = threading.Event()

    def put(done: bool, item: Item | BaseException | None) -> None:
        while not stopped.is_set():
            try:
                return line.put((done, item), timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put(False, item)
                if stopped.is_set():
                    return
            put(True, None)
        except BaseException as error:  # noqa: BLE001 - it is the reader's to handle
            put(True, error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while not (got := line.get())[0]:
            yield got[1]  # type: ignore[misc]
        if got[1] is not None:
            raise got[1]  # type: ignore[misc]
    finally:
        stopped.set()
        thread.join()
