"""What a run would take, before it is begun: bytes by the way of storing, and time from a measured probe.

The probe decodes videos that lie evenly in the plan, one after the other, and encodes their frames in passes as a run
would. Reading, decoding, encoding and matching are measured; starting up and writing, which goes on beside them, are
not. Random weights (``--pretrained none``) take the same time as any.
"""

import os
import time
from collections import Counter
from dataclasses import asdict, astuple, dataclass
from itertools import cycle, islice
from statistics import median
from typing import Any

import numpy as np
from torch import nn

from aligner import artifact
from aligner.config import STORES, AlignConfig, AlignerError
from aligner.corpus import Corpus
from aligner.decoding import Clip, Decoders
from aligner.encoder import check_names, load_clip
from aligner.engine import FrameEncoder, Job, Timings
from aligner.plan import make_plan
from aligner.run import fit_together, load
from aligner.views import Sampling

# Passes that are timed, after one that is not: the first one pays for allocations.
PASSES = 3


@dataclass(frozen=True)
class Spread:
    """The lowest, the middle and the highest of measured numbers."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        """Of at least one number."""
        return cls(min(values), median(values), max(values))

    def times(self, factor: float) -> "Spread":
        """All three scaled."""
        return Spread(self.low * factor, self.median * factor, self.high * factor)

    def shown(self, unit: str) -> str:
        """For people."""
        return f"{self.median:.3g} {unit} ({self.low:.3g} to {self.high:.3g})"


@dataclass(frozen=True)
class Probe:
    """Seconds that videos took: decoding of each in one process, encoding a video's frames in each timed pass."""

    decode_s: list[float]
    encode_s: list[float]
    failures: dict[str, int]


@dataclass(frozen=True)
class Estimate:
    """Time of a run; ``device_hours`` are those of one device that does it all."""

    device: str
    probed: int
    failures: dict[str, int]
    decode_s: Spread
    encode_s: Spread
    video_s: Spread
    device_hours: Spread

    def lines(self) -> list[str]:
        """For people."""
        failed = "".join(f"; {count} failed at {kind}" for kind, count in self.failures.items())
        return [
            f"probed {self.probed} videos on {self.device}{failed}; medians, and the range in brackets:",
            f"  a video: {self.video_s.shown('s')}; decoding {self.decode_s.shown('s of one process')}, "
            f"encoding {self.encode_s.shown('s')}",
            f"  in total: {self.device_hours.shown('device-hours')}, startup and waiting for the disk aside",
        ]


def rehearsed_model(settings: AlignConfig) -> tuple[nn.Module, dict[str, Any]]:
    """The model and what a manifest says of it; a built-in one has random weights, so that none are downloaded.

    Raises:
        AlignerError: an unknown model or tag, or a folder or repository without weights.
    """
    check_names(settings.model, settings.pretrained)
    built_in = not settings.model.startswith(("hf-hub:", "local-dir:"))
    return load_clip(settings.model, "none" if built_in else None)


def rehearsal(settings: AlignConfig, entities: int, clip: nn.Module, info: dict[str, Any]) -> Job:
    """The job of a run whose corpus is not there yet: as many random entities stand in, and nothing is written.

    Bytes and times are those of the run, whatever weights ``rehearsed_model`` gave.

    Raises:
        AlignerError: no videos, a tower that cannot be taken apart, or settings that do not fit it.
    """
    found = make_plan(
        settings.videos,
        settings.videos_per_shard,
        settings.videos_root,
        settings.allow_outside_root,
        settings.frame_rate,
    )
    vectors = np.random.default_rng(0).normal(size=(entities, info["embed_dim"])).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    stand_in = Corpus(settings.corpus, [""] * entities, vectors, info, "not built yet")
    return Job(settings, found, *fit_together(settings, stand_in, clip, info))


def sizes(videos: int, job: Job) -> dict[str, dict[str, int]]:
    """Bytes per 1,000 videos and in total, by the way of storing embeddings."""
    frames = job.config.frames * artifact.view_count(job.manifest)
    shape = (frames, job.manifest["regions"] + 1, job.manifest["dim"], job.config.top_k)
    each = {store: artifact.bytes_per_video(*shape, store) for store in STORES}
    return {store: {"per_1000": 1000 * size, "total": videos * size} for store, size in each.items()}


def size_lines(found: dict[str, dict[str, int]]) -> list[str]:
    """For people."""
    return [
        f"stored as {store}: about {size['per_1000'] / 1e6:,.1f} MB per 1,000 videos, "
        f"{size['total'] / 1e6:,.1f} MB in total"
        for store, size in found.items()
    ]


def probe(job: Job, count: int) -> Probe:
    """Decode and encode ``count`` videos that lie evenly in the plan.

    Raises:
        AlignerError: none of them can be decoded.
    """
    places = np.unique(np.linspace(0, len(job.plan.items) - 1, count).round().astype(int))
    failures, clips = Counter[str](), []
    with Decoders(1, job.cutter(), job.config.video_seconds) as decoders:
        videos = ((place, job.plan.path(job.plan.items[place])) for place in places.tolist())
        sampling = Sampling.of(job.manifest["config"])
        for _, future in decoders.ahead(videos, sampling, 0, lambda place: job.plan.items[place].video_id):
            clip = future.result()
            if isinstance(clip, Clip):
                clips.append(clip)
            else:
                failures[f"{clip.stage} ({clip.error})"] += 1
    if not clips:
        raise AlignerError(f"none of {len(places)} probed videos can be decoded; see `aligner check-videos`")
    encode_s = _passes(job, [clip.crops for clip in clips])
    return Probe([clip.seconds for clip in clips], encode_s, dict(failures))


def _passes(job: Job, clips: list[np.ndarray]) -> list[float]:
    """Seconds for the frames of one video in each of the timed passes."""
    encode = FrameEncoder(job)
    crops = [crop for clip in clips for crop in encode.cut(clip)]
    frames: Any = list(islice(cycle(crops), job.frames_per_pass))
    seconds = []
    for _ in range(1 + PASSES):
        start = time.perf_counter()
        encode(frames, Timings())
        seconds.append((time.perf_counter() - start) * len(clips[0]) / len(frames))
    return seconds[1:]


def estimate(probed: Probe, videos: int, workers: int, device: str) -> Estimate:
    """From seconds a video to hours of all of them.

    A GPU encodes while other processors decode, so the slower of the two decides; on a CPU both want the same
    processors, so their times add up. The range takes all videos to be as quick, or as slow, as the extremes.
    """
    decode, encode = Spread.of(probed.decode_s), Spread.of(probed.encode_s)
    ahead = decode.times(1 / min(workers, os.cpu_count() or 1))
    both = zip(astuple(ahead), astuple(encode), strict=True)
    video = Spread(*(sum(pair) if device == "cpu" else max(pair) for pair in both))
    counted = len(probed.decode_s) + sum(probed.failures.values())
    return Estimate(device, counted, probed.failures, decode, encode, video, video.times(videos / 3600))


def dry_run(settings: AlignConfig, count: int) -> tuple[dict[str, Any], list[str]]:
    """Sizes and, with a ``count`` of videos to probe, times of the run that these settings begin; nothing is written.

    Returns:
        What there is to tell, as JSON and for people.

    Raises:
        AlignerError: what is given does not fit together, or no probed video can be decoded.
    """
    job, _ = load(settings)
    videos = len(job.plan.items)
    found: dict[str, Any] = {"sizes": sizes(videos, job)}
    lines = size_lines(found["sizes"])
    if count:
        device = job.matcher.entities.device.type
        told = estimate(probe(job, count), videos, settings.decode_workers, device)
        found["estimate"] = asdict(told)
        lines += told.lines()
    return found, lines
