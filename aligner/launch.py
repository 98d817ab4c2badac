"""Several processes at work in one alignments folder: who gets which shards, and what happens when one of them dies.

The same for every launcher: processes of this machine (launch_local.py) and actors of a Ray cluster (launch_ray.py)
are pools of workers, which say in small messages what became of the shards that they were given (worker.py). A shard's
bytes do not depend on who writes it, or how often it was begun.
"""

import json
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

from aligner.config import AUTO, GPU_PASS, AlignConfig, AlignerError
from aligner.engine import POLL_S, Job, Stop, Stopped

# How often a shard is begun before it is given up, and how many workers in a row may die while they start.
TRIES = 3
# A worker is given this part of its fair share of what is left: few shards near the end, so that all end together.
PART = 4
# Seconds beyond the grace time in which workers may still tell that they have stopped.
PATIENCE_S = 10.0
# Seconds without a word from anybody after which the user is told that no worker can be had.
SILENCE_S = 60.0

Message = dict[str, Any]
"""What a worker says: ``{"idle": True}``, ``{"done": shard, "counts": ...}``, ``{"stopped": True}`` or
``{"error": text}``; and what a pool says of one that is gone: ``{"lost": how}``."""


@runtime_checkable
class Pool(Protocol):
    """``size`` places for workers, numbered from 0; ``gpu`` says whether they compute on GPUs."""

    size: int
    gpu: bool

    def start(self, worker: int, task: Message) -> None:
        """Start a worker, which will say that it is idle."""

    def send(self, worker: int, shards: list[int]) -> None:
        """Give shards to an idle worker."""

    def stop(self, grace_s: float) -> None:
        """Let all workers finish the shard at hand within a time, and begin no other."""

    def messages(self, timeout_s: float) -> list[tuple[int, Message]]:
        """What workers have said; waits for the first word at most this long."""

    def close(self) -> None:
        """End all workers, whatever they are doing."""


@contextmanager
def pool_of(settings: AlignConfig) -> Iterator[Pool | None]:
    """The pool that the settings ask for, closed at the end; None where this process does the work itself."""
    pool: Pool | None
    if settings.launcher == "ray":
        from aligner.launch_ray import RayPool

        pool = RayPool(settings)
    else:
        from aligner.launch_local import local_pool

        pool = local_pool(settings)
    try:
        yield pool
    finally:
        if pool is not None:
            pool.close()


def planning(settings: AlignConfig, pool: Pool) -> AlignConfig:
    """The settings with which the parent prepares the folder: on the CPU, but with the workers' size of passes."""
    usual = GPU_PASS if pool.gpu else None
    return replace(settings, device="cpu", batch_frames=settings.batch_frames or usual)


def task_of(job: Job, settings: AlignConfig) -> Message:
    """What a worker has to know, as JSON can say it; addresses in it may hold secrets."""
    told = replace(settings, force=False, retry_poisoned=False)
    return {
        "settings": json.loads(json.dumps(asdict(told), default=str)),
        "root": str(job.plan.root),
        "urls": job.plan.urls,
        "fingerprint": job.manifest["fingerprint"],
    }


@dataclass
class Schedule:
    """Which shards wait, who has which, and which were given up.

    A worker fills its shards in order, so its death is put down to the first that it has not reported; that may be the
    shard before the culprit, which it was still writing. Such a shard comes last and alone: then a second death is its
    own doing, and never that of a neighbour.
    """

    waiting: deque[int]
    suspects: deque[int] = field(default_factory=deque)
    held: dict[int, deque[int]] = field(default_factory=dict)
    deaths: Counter[int] = field(default_factory=Counter)
    given_up: dict[int, str] = field(default_factory=dict)

    @property
    def idle(self) -> bool:
        """Whether no shard waits for a worker."""
        return not self.waiting and not self.suspects

    def take(self, worker: int, workers: int) -> list[int]:
        """The next shards for one of ``workers`` workers; some shard must be waiting."""
        count = max(1, len(self.waiting) // (PART * workers))
        if self.waiting:
            taken = [self.waiting.popleft() for _ in range(count)]
        else:
            taken = [self.suspects.popleft()]
        self.held[worker] = deque(taken)
        return taken

    def done(self, worker: int, shard: int) -> None:
        """A shard is finished."""
        self.held[worker].remove(shard)

    def back(self, worker: int) -> None:
        """A worker has nothing at hand any more; what it did not finish waits again."""
        self.waiting.extendleft(reversed(self.held.pop(worker, ())))

    def lost(self, worker: int, how: str) -> None:
        """A worker died."""
        if held := self.held.get(worker):
            shard = held.popleft()
            self.deaths[shard] += 1
            if self.deaths[shard] < TRIES:
                self.suspects.append(shard)
            else:
                self.given_up[shard] = f"the process at it died {TRIES} times, the last time by {how}"
        self.back(worker)


class Launch:
    """Fills shards by the workers of a pool."""

    def __init__(self, pool: Pool, task: Message, shards: list[int], stop: Stop) -> None:
        self.pool, self.task, self.stop = pool, task, stop
        self.schedule = Schedule(deque(shards))
        self.workers = min(pool.size, len(shards))
        self.starting: set[int] = set()
        self.idle: set[int] = set()
        self.lost = self.false_starts = 0
        self.told = stop.deadline
        self.heard = time.monotonic()

    def run(self, done: Callable[[int, dict[str, Any]], object], warn: Callable[[str], object]) -> None:
        """Go on until every shard is finished, which ``done`` is told, or given up; ``warn`` is told of a standstill.

        Raises:
            Stopped: a stop was asked for; finished shards are kept.
            AlignerError: what a worker could not cope with, or no worker can be started.
        """
        while not self.schedule.idle or any(self.schedule.held.values()):
            if self.stop.asked and self._have_stopped():
                raise Stopped
            if not self.stop.asked:
                self._give()
            for worker, message in self.pool.messages(POLL_S):
                self._hear(worker, message, done)
            if not self.schedule.held and time.monotonic() > self.heard + SILENCE_S:
                warn(f"no process could be started for {SILENCE_S:.0f} s: is there no room for one?")
                self.heard = time.monotonic()

    def _have_stopped(self) -> bool:
        """Pass the wish to stop on, and whether it is fulfilled; who does not answer is not waited for."""
        if self.stop.deadline < self.told:
            self.told = self.stop.deadline
            self.pool.stop(max(0.0, self.told - time.monotonic()))
        return not any(self.schedule.held.values()) or time.monotonic() > self.told + PATIENCE_S

    def _give(self) -> None:
        """Shards to idle workers; where these are not enough, workers that are not there are started."""
        while self.idle and not self.schedule.idle:
            worker = self.idle.pop()
            self.pool.send(worker, self.schedule.take(worker, self.workers))
        absent = {*range(self.workers)} - self.starting - self.idle - self.schedule.held.keys()
        for worker in absent if not self.schedule.idle else ():
            self.starting.add(worker)
            self.pool.start(worker, self.task)

    def _hear(self, worker: int, message: Message, done: Callable[[int, dict[str, Any]], object]) -> None:
        self.heard = time.monotonic()
        match message:
            case {"done": shard, "counts": counts}:
                self.schedule.done(worker, shard)
                done(shard, counts)
            case {"idle": _}:
                self.schedule.back(worker)
                self.starting.discard(worker)
                self.idle.add(worker)
                self.false_starts = 0
            case {"stopped": _}:
                self.schedule.back(worker)
            case {"error": text}:
                raise AlignerError(text)
            case {"lost": how}:
                self._bury(worker, how)

    def _bury(self, worker: int, how: str) -> None:
        self.lost += 1
        self.idle.discard(worker)
        self.schedule.lost(worker, how)
        if worker in self.starting:
            self.starting.discard(worker)
            self.false_starts += 1
        if self.false_starts >= TRIES:
            raise AlignerError(f"{TRIES} processes in a row died while they started, the last by {how}")


def processes_of(settings: AlignConfig, fitting: int) -> int:
    """The number of workers: as many as fit, unless the settings say how many."""
    return fitting if settings.processes == AUTO else int(settings.processes)
