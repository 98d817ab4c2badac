"""Calls in child processes with a time limit: a crash or a hang costs one call, never the caller.

A child answers calls one after another, as lines of JSON on its standard streams; nothing is pickled. It is
started when it is first needed, and again after it was lost.
"""

import contextlib
import importlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

_SERVE = "from aligner.children import serve; serve()"


class Lost(Exception):
    """The child died amid a call; ``kind`` is ``timeout`` or ``crash``."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Child:
    """One child process that runs ``function``, given as ``module:name``, on keyword arguments."""

    def __init__(self, function: str) -> None:
        self.function = function
        self._process: subprocess.Popen[str] | None = None

    def call(self, arguments: dict[str, Any], limit_s: float) -> Any:
        """What the function returns, if JSON can say it.

        Raises:
            Lost: the child crashed, or took longer than ``limit_s`` seconds and was killed.
        """
        process = self._process = self._process or _start()
        late = threading.Event()

        def kill() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(limit_s, kill)
        timer.start()
        try:
            answer = _ask(process, {"function": self.function, "limit_s": limit_s, "arguments": arguments})
        finally:
            timer.cancel()
        if answer.endswith("\n"):
            return json.loads(answer)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)  # its answers ended, so it is about to end by itself, with its own code
        self.close()
        if late.is_set() or process.returncode == -getattr(signal, "SIGALRM", 0):
            raise Lost("timeout", f"took longer than {limit_s:g} s and was stopped")
        raise Lost("crash", f"the process that read it died ({_cause(process.returncode)})")

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def _start() -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-c", _SERVE],
        env=environment,
        stdin=pipe,
        stdout=pipe,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
    )


def _ask(process: subprocess.Popen[str], question: dict[str, Any]) -> str:
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(json.dumps(question) + "\n")
        process.stdin.flush()
        return process.stdout.readline()
    except OSError:  # the child was gone before it could read the question
        return ""


def _cause(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    return signal.Signals(-code).name if -code in {*signal.Signals} else f"signal {-code}"


def serve() -> None:
    """The child: answer calls until the parent is gone."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    # Whatever a library prints must not get between the answers.
    os.dup2(2, 1)
    for line in sys.stdin:
        question = json.loads(line)
        module, name = question["function"].split(":")
        # Should the parent die first, a hang must not outlive it: the alarm's default is to kill.
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, question["limit_s"] + 1)
        answer = getattr(importlib.import_module(module), name)(**question["arguments"])
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def each_in_children(
    function: str, calls: Iterable[dict[str, Any]], workers: int, limit_s: float
) -> Iterator[Any]:
    """The answers to all calls in their order, by ``workers`` children; a lost call gives its ``Lost``."""
    idle: queue.SimpleQueue[Child] = queue.SimpleQueue()
    children = [Child(function) for _ in range(workers)]
    for child in children:
        idle.put(child)

    def one(arguments: dict[str, Any]) -> Any:
        child = idle.get()
        try:
            return child.call(arguments, limit_s)
        except Lost as lost:
            return lost
        finally:
            idle.put(child)

    try:
        with ThreadPoolExecutor(workers) as pool:
            yield from pool.map(one, calls)
    finally:
        for child in children:
            child.close()
