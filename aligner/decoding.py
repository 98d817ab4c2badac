"""Decoding in child processes, one video each at a time: whatever a file does to FFmpeg costs that video only."""

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from aligner import decode
from aligner.children import Child, Children, Lost, WithBytes
from aligner.pixels import Cutter
from aligner.sources import Source, as_json, from_json
from aligner.views import Sampling

READ = "aligner.decoding:read_clip"
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


class Decoders(Children):
    """A few children that decode ahead of whoever takes the clips."""

    def __init__(self, count: int, cutter: Cutter, seconds: float) -> None:
        super().__init__(count, READ)
        self.cutter = asdict(cutter)
        self.seconds = seconds

    def __enter__(self) -> "Decoders":
        return self

    def ahead(
        self,
        videos: Iterable[tuple[Key, Path | Source | NoClip]],
        sampling: Sampling,
        depth: int,
        id_of: Callable[[Key], str] = str,
    ) -> Iterator[tuple[Key, "Future[Clip | NoClip]"]]:
        """Videos in order, at most ``depth`` of them decoded or being decoded ahead.

        A video that is already known to give nothing comes as a ``NoClip`` and is passed on. ``id_of`` tells the
        video's id, which random draws depend on. A future raises AlignerError if no child can be started: the
        installation is at fault, not the video.
        """
        how = {"sampling": asdict(sampling), "cutter": self.cutter}
        told = ((key, (video, how | {"video_id": id_of(key)})) for key, video in videos)
        return self.each(self._read, told, depth)

    def _read(self, child: Child, asked: tuple[Path | Source | NoClip, dict[str, Any]]) -> Clip | NoClip:
        video, how = asked
        if isinstance(video, NoClip):
            return video
        try:
            answer = child.call({"video": as_json(video), **how}, self.seconds)
        except Lost as lost:
            if lost.kind == "timeout":
                return NoClip("decode", TIMEOUT, f"not decoded within {self.seconds:g} s (--video-seconds)")
            return NoClip("decode", CRASHED, str(lost))
        if not isinstance(answer, WithBytes):
            return NoClip(**answer)
        head = answer.value
        crops = np.frombuffer(answer.data, np.uint8).reshape(head["shape"])
        return Clip(crops, np.array(head["times_s"], np.float64), head["seconds"], head["views"])


# In the child.


def read_clip(
    video: dict[str, Any], video_id: str, sampling: dict[str, Any], cutter: dict[str, Any]
) -> dict[str, Any] | WithBytes:
    """The frames of a video in all its views, or the fields of a ``NoClip``; the arguments are as JSON says them."""
    start = time.perf_counter()
    cut = Cutter(**cutter | {"size": tuple(cutter["size"])})
    try:
        clips = decode.sample_views(from_json(video), Sampling(**sampling), video_id, prepare=cut.cuts)
        # Views in their order: all crops of a clip, then the next clip.
        frames = [
            (frame.time_s, frame.rgb[crop]) for clip in clips for crop in range(cut.crops) for frame in clip
        ]
        crops = cut.stack([rgb for _, rgb in frames])
    except decode.DecodeError as error:
        return {"stage": error.stage, "error": error.reason, "message": str(error)}
    except Exception as error:  # whatever a damaged file provokes must cost one video, not the run
        told = (type(error).__doc__ or "").strip().splitlines() or [""]
        return {"stage": "decode", "error": type(error).__name__, "message": told[0]}
    seconds = round(time.perf_counter() - start, 4)
    head = {"shape": crops.shape, "times_s": [time_s for time_s, _ in frames], "seconds": seconds}
    head["views"] = len(clips) * cut.crops
    return WithBytes(head, crops.tobytes())
