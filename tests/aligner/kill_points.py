"""A process that is killed at a named point of its work: the production code knows nothing of it.

``python kill_points.py`` imports the aligner once and forks a process for every line of JSON that it reads:
``{"args": [...], "point": NAME or null, "kill_after": SECONDS or null, "log": FILE}``; it answers with the exit
status, negative for a signal. ``python kill_points.py NAME ARGS...`` is one such process from the start.
"""

import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

# name: what is called, whether it is killed before or after the call, the file concerned, which such call (from 1).
POINTS = {
    "plan before temp write": ("write_table", "before", "videos.parquet", 1),
    "plan after temp write": ("write_table", "after", "videos.parquet", 1),
    "plan after fsync": ("fsync", "after", "videos.parquet", 1),
    "plan before rename": ("replace", "before", "videos.parquet", 1),
    "plan after rename": ("replace", "after", "videos.parquet", 1),
    "entities after temp write": ("write_bytes", "after", "entities.parquet", 1),
    "entities before rename": ("replace", "before", "entities.parquet", 1),
    "entities after rename": ("replace", "after", "entities.parquet", 1),
    "manifest before temp write": ("write_text", "before", "manifest.json", 1),
    "manifest after temp write": ("write_text", "after", "manifest.json", 1),
    "manifest after fsync": ("fsync", "after", "manifest.json", 1),
    "manifest before rename": ("replace", "before", "manifest.json", 1),
    "manifest after rename": ("replace", "after", "manifest.json", 1),
    "attempt before rename": ("replace", "before", "timings-00000.json", 1),
    "attempt after rename": ("replace", "after", "timings-00000.json", 1),
    "rows before temp write": ("write_rows", "before", "shard-00000.parquet", 1),
    "rows in the middle": ("write_rows", "after", "shard-00000.parquet", 1),
    "rows before close": ("close", "before", "shard-00000.parquet", 1),
    "rows after close": ("close", "after", "shard-00000.parquet", 1),
    "rows after fsync": ("fsync", "after", "shard-00000.parquet", 1),
    "rows after re-open": ("open", "after", "shard-00000.parquet", 1),
    "rows before rename": ("replace", "before", "shard-00000.parquet", 1),
    "rows after rename": ("replace", "after", "shard-00000.parquet", 1),
    "failures before temp write": ("write_table", "before", "failures-00000.parquet", 1),
    "failures after temp write": ("write_table", "after", "failures-00000.parquet", 1),
    "failures before rename": ("replace", "before", "failures-00000.parquet", 1),
    "failures after rename": ("replace", "after", "failures-00000.parquet", 1),
    "timings before rename": ("replace", "before", "timings-00000.json", 2),
    "timings after rename": ("replace", "after", "timings-00000.json", 2),
    "marker before temp write": ("write_text", "before", "shard-00000.json", 1),
    "marker after temp write": ("write_text", "after", "shard-00000.json", 1),
    "marker after fsync": ("fsync", "after", "shard-00000.json", 1),
    "marker before rename": ("replace", "before", "shard-00000.json", 1),
    "marker after rename": ("replace", "after", "shard-00000.json", 1),
    "second shard: rows after rename": ("replace", "after", "shard-00001.parquet", 1),
    "second shard: marker before rename": ("replace", "before", "shard-00001.json", 1),
    "second shard: marker after rename": ("replace", "after", "shard-00001.json", 1),
    # Reached only where a video brings its decoder down, or with --force.
    "poison after temp write": ("write_text", "after", "poison-00000.json", 1),
    "poison before rename": ("replace", "before", "poison-00000.json", 1),
    "poison after rename": ("replace", "after", "poison-00000.json", 1),
    "force: first file deleted": ("unlink", "after", "failures-00000.parquet", 1),
    "force: before the manifest is deleted": ("unlink", "before", "manifest.json", 1),
    "force: after the manifest is deleted": ("unlink", "after", "manifest.json", 1),
    "force: plan after rename": ("replace", "after", "videos.parquet", 1),
}
TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{8}\.tmp")

# A decoder that does what the name of the video says.
CRASHING = """
import ctypes, os, sys, time
sys.path.append(sys.argv.pop(1))
from aligner import children, decode
whole = decode.sample_views
def sample_views(path, *how, **more):
    tried = path.with_suffix(".tried")
    if "once" in path.name and not tried.exists():
        tried.touch()
        os.kill(os.getpid(), 9)
    if "segfault" in path.name:
        ctypes.string_at(0)
    if "abort" in path.name:
        os.abort()
    if "killed" in path.name:
        os.kill(os.getpid(), 9)
    if "hang" in path.name or "slow" in path.name:
        time.sleep(3600 if "hang" in path.name else 0.3)
    return whole(path, *how, **more)
decode.sample_views = sample_views
children.serve()
"""


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def target_name(where: object) -> str:
    """The file that a path, or an open file, is or is to become."""
    name = os.path.basename(os.readlink(f"/proc/self/fd/{where}") if isinstance(where, int) else str(where))
    found = TEMPORARY.fullmatch(name)
    return found[1] if found else name


def arm(point: str) -> None:
    """Make this process die at the point."""
    import pyarrow.parquet as pq

    call, when, file, nth = POINTS[point]
    place, name, argument = {
        "replace": (os, "replace", 1),
        "fsync": (os, "fsync", 0),
        "write_table": (pq, "write_table", 1),
        "write_rows": (pq.ParquetWriter, "write_table", 0),
        "close": (pq.ParquetWriter, "close", 0),
        "open": (pq.ParquetFile, "__init__", 1),
        "write_text": (Path, "write_text", 0),
        "write_bytes": (Path, "write_bytes", 0),
        "unlink": (Path, "unlink", 0),
    }[call]
    setattr(place, name, deadly(getattr(place, name), when, file, nth, argument))


def deadly(function: Callable, when: str, file: str, nth: int, argument: int) -> Callable:
    left = nth

    def call(*args: object, **options: object) -> object:
        nonlocal left
        concerned = args[argument]
        hit = target_name(getattr(concerned, "where", concerned)) == file
        left -= hit
        if hit and left == 0 and when == "before":
            die()
        result = function(*args, **options)
        if hit and left == 0 and when == "after":
            die()
        return result

    return call


def work(args: list[str], point: str | None) -> None:
    """``aligner ARGS...`` in this process, which ends here."""
    from aligner import children
    from aligner.cli import app

    children.START = CRASHING
    if point:
        arm(point)
    try:
        app(args)
    except SystemExit as end:
        sys.stdout.flush()
        os._exit(end.code if isinstance(end.code, int) else 1)


def serve() -> None:
    """Fork a process per request."""
    import aligner.run  # noqa: F401 - imported once, for all processes that are forked below
    import aligner.verify  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            silent = os.open(request.get("log", os.devnull), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(silent, 1), os.dup2(silent, 2), os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            work(request["args"], request.get("point"))
        killer = threading.Timer(request.get("kill_after") or 1e6, os.kill, (child, signal.SIGKILL))
        start = time.monotonic()
        killer.start()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        killer.cancel()
        print(json.dumps({"status": status, "seconds": time.monotonic() - start}), flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        work(sys.argv[2:], sys.argv[1])
    else:
        serve()
