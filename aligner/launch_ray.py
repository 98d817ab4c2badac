"""Workers as actors of a Ray cluster, one for each GPU, or for every few processor cores.

Ray places the actors and tells when one is lost. No task of Ray's own is waited for, so actors may take every core of
the cluster. Only settings go in and counts come out: an actor loads its own model, and finds plan and manifest in the
folder, which every node must see under the same path.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from typing import Any

from aligner.config import AlignConfig, AlignerError
from aligner.launch import Message, processes_of
from aligner.worker import Worker


class Actor(Worker):
    """A worker on some node."""

    def __init__(self, task: Message, folder: str) -> None:
        super().__init__(task)
        self.folder = folder

    def begin(self) -> Iterator[Message]:
        """Load what the shards need; relative paths mean what they mean to the driver."""
        with contextlib.suppress(OSError):  # a node that lacks the folder is told of a file it needs
            os.chdir(self.folder)
        yield from super().begin()

    def ask_to_stop(self, grace_s: float) -> None:
        """Finish the shard at hand within a time; called while another thread fills it."""
        self.stop.ask(grace_s)


class RayPool:
    """See launch.Pool; connects to the cluster of the settings, or starts a Ray of this machine."""

    def __init__(self, settings: AlignConfig) -> None:
        if settings.device not in ("auto", "cpu", "cuda"):
            raise AlignerError(
                f"--device {settings.device} names a GPU of one machine; on Ray give auto, cuda or cpu"
            )
        self.ray = _ray()
        self.actors: dict[int, Any] = {}
        self.calls: dict[Any, int] = {}
        self.own = not self.ray.is_initialized()
        if self.own:
            self._connect(settings.ray_address)
        try:
            self.size, self.gpu, self.wanted = self._room(settings)
        except AlignerError:
            self.close()
            raise

    def _room(self, settings: AlignConfig) -> tuple[int, bool, dict[str, int]]:
        """How many actors there are to be, whether they have a GPU each, and what each asks Ray for."""
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        gpu = settings.device != "cpu" and any(node.get("GPU", 0) >= 1 for node in nodes)
        if settings.device == "cuda" and not gpu:
            raise AlignerError("no node of the Ray cluster has a GPU; give --device cpu")
        wanted = {"num_cpus": settings.ray_cpus, "num_gpus": int(gpu)}
        fitting = sum(_fitting(node, wanted) for node in nodes)
        if not fitting:
            raise AlignerError(
                f"no node of the Ray cluster has {settings.ray_cpus} processor cores{' and a GPU' if gpu else ''}; "
                "give a smaller --ray-cpus"
            )
        return processes_of(settings, fitting), gpu, wanted

    def _connect(self, address: str | None) -> None:
        try:
            self.ray.init(
                address,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise AlignerError(f"no Ray cluster at {address or 'RAY_ADDRESS'}: {error}") from error

    def start(self, worker: int, task: Message) -> None:
        """Ask Ray for an actor; it waits for room on a node."""
        kind = self.ray.remote(**self.wanted, max_restarts=0, max_task_retries=0, max_concurrency=2)(Actor)
        self.actors[worker] = kind.remote(task, os.getcwd())
        self._call(worker, self.actors[worker].begin)

    def _call(self, worker: int, method: Any, *arguments: Any) -> None:
        self.calls[method.options(num_returns="streaming").remote(*arguments)] = worker

    def send(self, worker: int, shards: list[int]) -> None:
        """Give shards to an idle worker."""
        self._call(worker, self.actors[worker].fill, shards)

    def stop(self, grace_s: float) -> None:
        """Let all workers finish the shard at hand within a time."""
        for actor in self.actors.values():
            actor.ask_to_stop.remote(grace_s)

    def messages(self, timeout_s: float) -> list[tuple[int, Message]]:
        """What was said; waits for the first word."""
        if not self.calls:
            time.sleep(timeout_s)
            return []
        ready, _ = self.ray.wait(list(self.calls), timeout=timeout_s)
        return [heard for call in ready for heard in self._heard(call)]

    def _heard(self, call: Any) -> Iterator[tuple[int, Message]]:
        worker = self.calls[call]
        try:
            yield worker, self.ray.get(next(call))
        except StopIteration:
            del self.calls[call]
        except self.ray.exceptions.RayError as error:
            del self.calls[call]
            # What is merely out of reach must not go on beside its successor.
            self.ray.kill(self.actors.pop(worker))
            yield worker, {"lost": type(error).__name__}

    def close(self) -> None:
        """End all actors, and a Ray that was started for them."""
        for actor in self.actors.values():
            self.ray.kill(actor)
        if self.own:
            self.ray.shutdown()


def _fitting(node: dict[str, float], wanted: dict[str, int]) -> int:
    """How many actors a node has room for."""
    names = {"num_cpus": "CPU", "num_gpus": "GPU"}
    return min(int(node.get(names[name], 0) // count) for name, count in wanted.items() if count)


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise AlignerError("--launcher ray needs Ray: pip install 'alt-toolkit[ray]'") from None
    return ray
