"""Decoding in child processes, one video each at a time: whatever a file does to FFmpeg costs that video only.

A child is a fresh interpreter that runs ``main`` below: no fork after torch, no import of the caller's main
module, and no pickle. A request is a line of JSON on its standard input; a reply is a line of JSON on its
standard output, followed by the bytes of the frames.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import LifoQueue
from typing import Any, BinaryIO, TypeVar

import numpy as np

from aligner import decode
from aligner.config import AlignerError
from aligner.pixels import Cutter
from aligner.sources import Source, as_json, from_json
from aligner.views import Sampling

# The child finds this package where the parent did, after everything that it finds by itself.
START = "import sys; sys.path.append(sys.argv.pop(1)); from aligner.decoding import main; main()"
PACKAGES = str(Path(__file__).resolve().parents[1])
# A decoder that dies is given the video once more: the kernel may have killed it for what another process ate.
TRIES = 2
STARTS = 6
# Error classes of the videos that are put on the poison list.
CRASHED, TIMEOUT = "crashed", "timeout"

Key = TypeVar("Key")


@dataclass(frozen=True)
class Clip:
    """Frames of a video, view by view, cut to the model's size, with their timestamps.

    ``seconds`` is what it took, ``views`` into how many views of equally many frames they fall.
    """

    crops: np.ndarray  # [frames, height, width, 3] uint8
    times_s: np.ndarray  # [frames] float64
    seconds: float
    views: int = 1


@dataclass(frozen=True)
class NoClip:
    """Why a video gave no frames: the stage, the error class and the message of its failure row."""

    stage: str
    error: str
    message: str


class Died(Exception):
    """A decoding process ended in the middle of a video."""


class Decoder:
    """A supervised child; it is started when first needed, and again after it died."""

    def __init__(self, cutter: Cutter, seconds: float) -> None:
        self.options = json.dumps(asdict(cutter))
        self.seconds = seconds
        self.process: subprocess.Popen[bytes] | None = None
        self.closed = False

    def read(self, path: Path | Source, sampling: Sampling, video_id: str) -> Clip | NoClip:
        """The frames of a video in all its views, or why there are none.

        Raises:
            AlignerError: no child can be started: the installation is at fault, not the video.
        """
        how = ""
        request = {"video": as_json(path), "video_id": video_id, "sampling": asdict(sampling)}
        for _ in range(TRIES):
            process, start = self._running(), time.monotonic()
            try:
                return self._ask(process, request)
            except Died as death:
                how = str(death)
            if time.monotonic() - start >= self.seconds:
                return NoClip("decode", TIMEOUT, f"not decoded within {self.seconds:g} s (--video-seconds)")
        return NoClip("decode", CRASHED, f"the decoding process died {TRIES} times, the last time by {how}")

    def _ask(self, process: subprocess.Popen[bytes], request: dict[str, Any]) -> Clip | NoClip:
        assert process.stdin is not None and process.stdout is not None
        watchdog = threading.Timer(self.seconds, process.kill)
        watchdog.start()
        try:
            process.stdin.write(json.dumps(request | {"seconds": self.seconds}).encode() + b"\n")
            process.stdin.flush()
            head = json.loads(process.stdout.readline() or b"null")
            if head is None:
                raise Died(self._bury())
            if "error" in head:
                return NoClip(**head)
            data = process.stdout.read(int(np.prod(head["shape"])))
            if len(data) < np.prod(head["shape"]):
                raise Died(self._bury())
        except (OSError, json.JSONDecodeError) as error:
            raise Died(self._bury()) from error
        finally:
            watchdog.cancel()
        crops = np.frombuffer(data, np.uint8).reshape(head["shape"])
        return Clip(crops, np.array(head["times_s"], np.float64), head["seconds"], head["views"])

    def _running(self) -> subprocess.Popen[bytes]:
        """The child, started if need be; a signal while it starts is not its own doing, and it starts again."""
        for _ in range(STARTS if self.process is None else 0):
            if self.closed:
                raise AlignerError("the decoding processes are closed")
            command = [sys.executable, "-c", START, PACKAGES, self.options]
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            if self.process.stdout is not None and self.process.stdout.readline():
                break
            how = self._bury()
            if how.startswith("exit code"):
                raise AlignerError(f"no decoding process can be started (it ended by {how})")
        if self.process is None:
            raise AlignerError(
                f"{STARTS} decoding processes were killed while they started, the last by {how}"
            )
        return self.process

    def _bury(self) -> str:
        """How the child ended, such as SIGSEGV."""
        assert self.process is not None
        process, self.process = self.process, None
        process.kill()
        code = process.wait()
        for pipe in filter(None, (process.stdin, process.stdout)):
            with contextlib.suppress(OSError):  # what was not yet sent to a dead process
                pipe.close()
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"

    def close(self) -> None:
        """End the child, even in the middle of a video."""
        self.closed = True
        if (process := self.process) is not None:
            process.kill()


class Decoders:
    """A few children at work ahead of whoever takes the videos, in the order in which they were asked for."""

    def __init__(self, count: int, cutter: Cutter, seconds: float) -> None:
        self.all = [Decoder(cutter, seconds) for _ in range(count)]
        # The last one used comes first, so that few videos start few children.
        self.idle: LifoQueue[Decoder] = LifoQueue()
        for decoder in self.all:
            self.idle.put(decoder)
        self.pool = ThreadPoolExecutor(count, thread_name_prefix="decode")

    def __enter__(self) -> "Decoders":
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)
        for decoder in self.all:
            decoder.close()
        self.pool.shutdown()
        for decoder in self.all:
            if decoder.process is not None:
                decoder._bury()

    def ahead(
        self,
        videos: Iterable[tuple[Key, Path | Source | NoClip]],
        sampling: Sampling,
        depth: int,
        id_of: Callable[[Key], str] = str,
    ) -> Iterator[tuple[Key, "Future[Clip | NoClip]"]]:
        """Videos in order, at most ``depth`` of them decoded or being decoded ahead.

        A video that is already known to give nothing comes as a ``NoClip`` and is passed on. ``id_of`` tells the
        video's id, which random draws depend on.
        """
        waiting: deque[tuple[Key, Future[Clip | NoClip]]] = deque()
        for key, path in videos:
            waiting.append((key, self.pool.submit(self._read, path, sampling, id_of(key))))
            if len(waiting) > depth:
                yield waiting.popleft()
        yield from waiting

    def _read(self, path: Path | Source | NoClip, sampling: Sampling, video_id: str) -> Clip | NoClip:
        if isinstance(path, NoClip):
            return path
        decoder = self.idle.get()
        try:
            return decoder.read(path, sampling, video_id)
        finally:
            self.idle.put(decoder)


# In the child.


def main() -> None:
    """Answer requests until the parent closes the pipe."""
    # A scheduler signals every process of a job: the parent alone decides what to do about it.
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not get between the replies
    _stand_back()
    options = json.loads(sys.argv[1])
    cutter = Cutter(**options | {"size": tuple(options["size"])})
    _reply(replies, {"ready": True})
    with contextlib.suppress(BrokenPipeError):  # the parent is gone
        for line in sys.stdin.buffer:
            _serve(json.loads(line), cutter, replies)
    os._exit(0)


def _serve(request: dict[str, Any], cutter: Cutter, replies: BinaryIO) -> None:
    # Should the parent die, nobody else ends a child that is caught in a file.
    if hasattr(signal, "alarm"):
        signal.alarm(int(request["seconds"]) + 60)
    _reply(replies, *_answer(request, cutter))


def _stand_back() -> None:
    """Let the encoder have the processor first, and the kernel kill this process first when memory is short."""
    if hasattr(os, "nice"):
        os.nice(5)
    with contextlib.suppress(
        OSError
    ):  # no Linux, or not allowed here: the order of killing is the kernel's then
        Path("/proc/self/oom_score_adj").write_text("1000")


def _answer(request: dict[str, Any], cutter: Cutter) -> tuple[dict[str, Any], bytes]:
    start = time.perf_counter()
    try:
        path, sampling = from_json(request["video"]), Sampling(**request["sampling"])
        clips = decode.sample_views(path, sampling, request["video_id"], prepare=cutter.cuts)
        # Views in their order: all crops of a clip, then the next clip.
        frames = [
            (frame.time_s, frame.rgb[crop])
            for clip in clips
            for crop in range(cutter.crops)
            for frame in clip
        ]
        crops = cutter.stack([rgb for _, rgb in frames])
    except decode.DecodeError as error:
        return {"stage": error.stage, "error": error.reason, "message": str(error)}, b""
    except Exception as error:  # whatever a damaged file provokes must cost one video, not the run
        told = (type(error).__doc__ or "").strip().splitlines() or [""]
        return {"stage": "decode", "error": type(error).__name__, "message": told[0]}, b""
    seconds = round(time.perf_counter() - start, 4)
    head = {"shape": crops.shape, "times_s": [time_s for time_s, _ in frames], "seconds": seconds}
    head["views"] = len(clips) * cutter.crops
    return head, crops.tobytes()


def _reply(replies: BinaryIO, head: dict[str, Any], data: bytes = b"") -> None:
    replies.write(json.dumps(head).encode() + b"\n")
    replies.write(data)
    replies.flush()
