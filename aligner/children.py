"""Calls in child processes with a time limit: a crash or a hang costs one call, never the caller.

A child is a fresh interpreter: no fork after torch, no import of the caller's main module, and no pickle. It answers
calls one after another. A call is a line of JSON on its standard input; an answer is a line of JSON on its standard
output and, where a function gives ``WithBytes``, the bytes behind it. A child is started when it is first needed, says
when it is ready, so that a slow start is no fault of the first call, and is started again after it was lost.
"""

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import LifoQueue
from typing import Any, BinaryIO, TypeVar

from aligner.config import AlignerError

# The child finds this package where the parent did, after everything that it finds by itself.
START = "import sys; sys.path.append(sys.argv.pop(1)); from aligner.children import serve; serve()"
PACKAGES = str(Path(__file__).resolve().parents[1])
# A child that dies is replaced and the call made once more: the kernel may have killed it for what another process ate.
TRIES = 2
STARTS = 6
# Seconds that a child whose answers ended is given to end by itself, with its own exit code.
LAST_WORDS_S = 5.0
# Seconds after which a child caught in a call ends by itself, should the parent be dead and unable to do it.
ORPHAN_S = 60

Key = TypeVar("Key")
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class WithBytes:
    """An answer of which JSON can say only a part."""

    value: Any
    data: bytes


class Lost(Exception):
    """A call was given up: ``kind`` is ``timeout``, or ``crash`` when it brought TRIES children down in turn."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Child:
    """One child process that runs ``function``, given as ``module:name``, on keyword arguments."""

    def __init__(self, function: str) -> None:
        self.function = function
        self.process: subprocess.Popen[bytes] | None = None
        self.closed = False

    def call(self, arguments: dict[str, Any], limit_s: float) -> Any:
        """What the function returns: what JSON can say, or ``WithBytes``.

        Raises:
            Lost: it took longer than ``limit_s`` seconds, or every child that was given the call died.
            AlignerError: no child can be started: the installation is at fault, not the call.
        """
        call = {"function": self.function, "limit_s": limit_s, "arguments": arguments}
        line, how = json.dumps(call).encode() + b"\n", ""
        for _ in range(TRIES):
            process, late = self._running(), threading.Event()
            watchdog = threading.Timer(limit_s, _end, (process, late))
            watchdog.start()
            try:
                return _ask(process, line)
            except (OSError, EOFError):
                how = self.bury()
            finally:
                watchdog.cancel()
            if late.is_set():
                raise Lost("timeout", f"took longer than {limit_s:g} s and was stopped")
        raise Lost("crash", f"the process that read it died {TRIES} times, the last time by {how}")

    def _running(self) -> subprocess.Popen[bytes]:
        """The child, started if need be; a signal while it starts is not its own doing, and it starts again."""
        how = ""
        if self.process is not None and self.process.poll() is not None:
            self.bury()  # it died between two calls, by the doing of neither
        for _ in range(STARTS if self.process is None else 0):
            if self.closed:
                raise AlignerError("the child processes are closed")
            command = [sys.executable, "-c", START, PACKAGES, self.function]
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            assert self.process.stdout is not None
            if self.process.stdout.readline():
                break
            how = self.bury()
            if how.startswith("exit code"):
                raise AlignerError(
                    f"no child process can be started (it ended by {how}; its words are above)"
                )
        if self.process is None:
            raise AlignerError(f"{STARTS} child processes were killed while they started, the last by {how}")
        return self.process

    def bury(self) -> str:
        """How the child ended, such as SIGSEGV; one that has not ended is killed."""
        assert self.process is not None
        process, self.process = self.process, None
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=LAST_WORDS_S)
        process.kill()
        code = process.wait()
        for pipe in filter(None, (process.stdin, process.stdout)):
            with contextlib.suppress(OSError):  # what was not yet sent to a dead process
                pipe.close()
        if code >= 0:
            return f"exit code {code}"
        return signal.Signals(-code).name if -code in {*signal.Signals} else f"signal {-code}"

    def close(self) -> None:
        """End the child, even in the middle of a call; whoever made that call buries it."""
        self.closed = True
        if (process := self.process) is not None:
            process.kill()


def _end(process: subprocess.Popen[bytes], late: threading.Event) -> None:
    late.set()
    process.kill()


def _ask(process: subprocess.Popen[bytes], line: bytes) -> Any:
    """The answer; OSError or EOFError if the child is dead, or dies before all of it is there."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(line)
    process.stdin.flush()
    head = process.stdout.readline()
    if not head.endswith(b"\n"):
        raise EOFError
    answer = json.loads(head)
    if answer["bytes"] is None:
        return answer["value"]
    data = process.stdout.read(answer["bytes"])
    if len(data) < answer["bytes"]:
        raise EOFError
    return WithBytes(answer["value"], data)


class Children:
    """A few children at work ahead of whoever takes the results, in the order in which they were asked for."""

    def __init__(self, count: int, function: str) -> None:
        self.all = [Child(function) for _ in range(count)]
        # The last one used comes first, so that few calls start few children.
        self.idle: LifoQueue[Child] = LifoQueue()
        for child in self.all:
            self.idle.put(child)
        self.pool = ThreadPoolExecutor(count, thread_name_prefix="child")

    def __enter__(self) -> "Children":
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)
        for child in self.all:
            child.close()
        self.pool.shutdown()
        for child in self.all:
            if child.process is not None:
                child.bury()

    def each(
        self, work: Callable[[Child, Item], Result], items: Iterable[tuple[Key, Item]], depth: int
    ) -> Iterator[tuple[Key, "Future[Result]"]]:
        """What ``work`` makes of every item with a child, at most ``depth`` of them ahead."""
        waiting: deque[tuple[Key, Future[Result]]] = deque()
        for key, item in items:
            waiting.append((key, self.pool.submit(self._with_child, work, item)))
            if len(waiting) > depth:
                yield waiting.popleft()
        yield from waiting

    def _with_child(self, work: Callable[[Child, Item], Result], item: Item) -> Result:
        child = self.idle.get()
        try:
            return work(child, item)
        finally:
            self.idle.put(child)


def each_in_children(
    function: str, calls: Iterable[dict[str, Any]], workers: int, limit_s: float
) -> Iterator[Any]:
    """The answers to all calls in their order, by ``workers`` children; a lost call gives its ``Lost``."""

    def one(child: Child, arguments: dict[str, Any]) -> Any:
        try:
            return child.call(arguments, limit_s)
        except Lost as lost:
            return lost

    with Children(workers, function) as children:
        for _, future in children.each(one, enumerate(calls), 2 * workers):
            yield future.result()


# In the child.


def answers_alone() -> BinaryIO:
    """The pipe to the parent, for a child that leaves signals to it and prints nothing between its answers."""
    # A scheduler signals every process of a job: the parent alone decides what to do about it.
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not get between the answers
    return answers


def serve() -> None:
    """Answer calls until the parent closes the pipe."""
    answers = answers_alone()
    _stand_back()
    importlib.import_module(sys.argv[1].partition(":")[0])
    with contextlib.suppress(BrokenPipeError):  # the parent is gone
        answers.write(b"ready\n")
        answers.flush()
        for line in sys.stdin.buffer:
            answer = _answer(json.loads(line))
            head, data = {"value": answer, "bytes": None}, b""
            if isinstance(answer, WithBytes):
                head, data = {"value": answer.value, "bytes": len(answer.data)}, answer.data
            answers.write(json.dumps(head).encode() + b"\n")
            answers.write(data)
            answers.flush()
    os._exit(0)


def _answer(call: dict[str, Any]) -> Any:
    module, name = call["function"].split(":")
    if hasattr(signal, "alarm"):
        signal.alarm(int(call["limit_s"]) + ORPHAN_S)
    answer = getattr(importlib.import_module(module), name)(**call["arguments"])
    if hasattr(signal, "alarm"):
        signal.alarm(0)
    return answer


def _stand_back() -> None:
    """Let the parent have the processor first, and the kernel kill this process first when memory is short."""
    if hasattr(os, "nice"):
        os.nice(5)
    # No Linux, or not allowed here: the order of killing is the kernel's then.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
