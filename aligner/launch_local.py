"""Workers as processes of this machine, one for each GPU, or as many as were asked for.

A worker is a fresh interpreter that runs ``serve`` below: orders are lines of JSON on its standard input, what it
says are lines of JSON on its standard output. It ends when its standard input does, so it outlives no parent.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from aligner.children import answers_alone
from aligner.config import AlignConfig
from aligner.launch import Message, processes_of

# The child finds this package where the parent did, after everything that it finds by itself.
START = "import sys; sys.path.append(sys.argv.pop(1)); from aligner.launch_local import serve; serve()"
PACKAGES = str(Path(__file__).resolve().parents[1])
# Seconds that a worker has to end by itself.
END_S = 5.0


def local_pool(settings: AlignConfig) -> "LocalPool | None":
    """The pool that the settings ask for; None for a single process."""
    from aligner.run import pick_device

    gpu = pick_device(settings.device).type == "cuda"
    gpus = visible_gpus() if gpu and settings.device in ("auto", "cuda") else []
    size = processes_of(settings, max(1, len(gpus)))
    return LocalPool(size, gpu, gpus) if size > 1 else None


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    count, named = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else [str(number) for number in range(count)]


class LocalPool:
    """See launch.Pool; worker i computes on GPU i of ``gpus``, counted round, or on any if there are none."""

    def __init__(self, size: int, gpu: bool = False, gpus: list[str] | None = None) -> None:
        self.size, self.gpu, self.gpus = size, gpu, gpus or []
        self.running: dict[int, subprocess.Popen[bytes]] = {}
        self.said: queue.SimpleQueue[tuple[int, Message]] = queue.SimpleQueue()

    def start(self, worker: int, task: Message) -> None:
        """Start a process."""
        process = subprocess.Popen(
            [sys.executable, "-c", START, PACKAGES],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=self.environment(worker),
        )
        self.running[worker] = process
        threading.Thread(target=self._listen, args=(worker, process), daemon=True).start()
        self._tell(worker, task)

    def environment(self, worker: int) -> dict[str, str]:
        """Of a worker: its GPU, and its share of the processor cores unless the user has set threads."""
        env = dict(os.environ)
        env.setdefault("OMP_NUM_THREADS", str(max(1, cores() // self.size)))
        if self.gpus:
            env["CUDA_VISIBLE_DEVICES"] = self.gpus[worker % len(self.gpus)]
        return env

    def _listen(self, worker: int, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if line.endswith(b"\n"):  # else it died in the middle of a word
                self.said.put((worker, json.loads(line)))
        code = process.wait()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        self.said.put((worker, {"lost": how}))

    def _tell(self, worker: int, order: Message) -> None:
        stdin = self.running[worker].stdin
        assert stdin is not None
        with contextlib.suppress(OSError):  # it is dead, as will be heard
            stdin.write(json.dumps(order).encode() + b"\n")
            stdin.flush()

    def send(self, worker: int, shards: list[int]) -> None:
        """Give shards to an idle worker."""
        self._tell(worker, {"shards": shards})

    def stop(self, grace_s: float) -> None:
        """Let all workers finish the shard at hand within a time."""
        for worker in self.running:
            self._tell(worker, {"stop": grace_s})

    def messages(self, timeout_s: float) -> list[tuple[int, Message]]:
        """What was said; waits for the first word."""
        try:
            heard = [self.said.get(timeout=timeout_s)]
        except queue.Empty:
            return []
        while not self.said.empty():
            heard.append(self.said.get())
        return heard

    def close(self) -> None:
        """End all processes."""
        for process in self.running.values():
            assert process.stdin is not None
            with contextlib.suppress(OSError):  # what was not yet sent to a dead process
                process.stdin.close()
        end = time.monotonic() + END_S
        for process in self.running.values():
            try:
                process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# In the child.


def serve() -> None:
    """Carry out orders until the parent closes the pipe, or is gone."""
    words = answers_alone()
    from aligner.worker import Worker

    worker = Worker(json.loads(sys.stdin.readline()))
    orders: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(worker, orders), daemon=True).start()
    said = worker.begin()
    while True:
        for message in said:
            words.write(json.dumps(message).encode() + b"\n")
            words.flush()
        said = worker.fill(orders.get())


def _listen(worker: Any, orders: "queue.SimpleQueue[list[int]]") -> None:
    with contextlib.suppress(ValueError):  # half a line: the parent died
        for line in sys.stdin:
            order = json.loads(line)
            if "stop" in order:
                worker.stop.ask(order["stop"])
            else:
                orders.put(order["shards"])
    os._exit(0)
