"""Tokens before the first block that learns, kept on disk: an epoch decodes nothing and runs the tuned blocks only.

A folder holds ``manifest.json`` (what the tokens depend on, written first) and shards, each with the tokens of some
videos in one safetensors file that is renamed into place: a writing that was killed goes on with the shards that are
not there. Beside ``x`` a shard has what token merging needs to go on: sizes, sources and places of the tokens.
"""

import itertools
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from adapter.artifact import write_atomic, write_json
from adapter.dataset import Sample
from adapter.state import differing
from adapter.train import seeded
from aligner.encoder import Tokens
from pipelines.errors import PipelineError
from pipelines.feed import ClipFeed, draw_view, one_hot
from pipelines.ledger import sha256_of
from pipelines.progress import bar
from pipelines.tuner import Clips, Tuner, seed_of
from pipelines.tuning_config import TuneConfig

MANIFEST, NOTE = "manifest.json", "clips"
FORMAT = 1
VIDEOS = 64
"""Videos of a shard."""
FLOATS = {"fp16": torch.float16, "fp32": torch.float32}
COUNTS = ("sizes", "source", "place")
"""Small whole numbers, kept as int16."""


@dataclass(frozen=True)
class Shard:
    """The clips of some videos: all views of the alignments, or one ``draw`` of training's augmented ones."""

    file: str
    samples: tuple[Sample, ...]
    draw: int = 0


class TokenCache:
    """The stored tokens of a tuning, or the room for them."""

    def __init__(
        self, folder: Path, tuner: Tuner, config: TuneConfig, frames: int, identity: Mapping[str, Any]
    ) -> None:
        """``identity`` is what the tokens depend on beside the tuning's options; ``frames`` are those of a clip."""
        self.folder, self.tuner, self.config, self.frames = folder, tuner, config, frames
        # What the blocks make of nothing tells the form of what they make of a picture.
        blank = torch.zeros(1, 1, 3, *tuner.encoder.input_size, device=tuner.device)
        self.form = tuner.tokens(blank)
        self.identity = dict(identity) | {
            "format": FORMAT,
            "block": tuner.encoder.frozen_blocks,
            "store": config.cache_tokens,
            "frames": frames,
            "precision": tuner.precision,
            "proportional_attention": config.proportional_attention,
        }
        if config.augment != "none":
            drawn = ("augment", "cache_draws", "seed", "flip", "colour", "grey")
            self.identity |= {name: getattr(config, name) for name in drawn}
        self.shards: list[Shard] = []
        self.rows: dict[tuple[str, int, int], tuple[str, int]] = {}
        self._opened = lru_cache(maxsize=64)(self._open)

    def plan(self, train: Sequence[Sample], val: Sequence[Sample]) -> None:
        """Which videos are to be in it; raises PipelineError for a folder that holds other tokens."""
        seen = [*train, *val] if self.config.augment == "none" else [*val]
        self.shards = list(_shards("views", seen))
        for draw in range(1, self.config.cache_draws + 1) if self.config.augment != "none" else ():
            self.shards += _shards(f"draw{draw}", train, draw)
        videos = {shard.file: [sample.video_id for sample in shard.samples] for shard in self.shards}
        self.identity["videos"] = sha256_of(videos)
        manifest = self.folder / MANIFEST
        if manifest.is_file():
            there = json.loads(manifest.read_text("utf-8"))
            if different := differing(there, self.identity):
                raise PipelineError(
                    f"{self.folder} holds tokens of another tuning: {'; '.join(different)}; give another "
                    "--cache-folder, or delete this one"
                )

    def bytes(self, views: int) -> int:
        """What all planned clips take on the disk, but for a shard's head; a video has so many ``views``."""
        clips = sum(len(shard.samples) * (1 if shard.draw else views) for shard in self.shards)
        one = self.form.x.numel() * FLOATS[self.config.cache_tokens].itemsize
        one += sum(getattr(self.form, name).numel() * torch.int16.itemsize for name in COUNTS)
        return clips * self.frames * one

    def missing(self) -> list[Shard]:
        """Shards that are still to be written."""
        return [shard for shard in self.shards if not (self.folder / shard.file).is_file()]

    def make_room(self, views: int) -> str:
        """Begin the folder, unless its tokens would not fit; returns a line on what they are and take.

        Raises:
            PipelineError: more than ``cache_gb``, or than the disk has free.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        size, missing = self.bytes(views), self.missing()
        told = (
            f"tokens before block {self.tuner.encoder.frozen_blocks + 1}: {len(self.shards)} shards, {_gb(size)} in "
            f"{self.folder}, {len(missing)} of them to be made"
        )
        if size > self.config.cache_gb * 1e9:
            raise PipelineError(
                f"{told}; that is more than --cache-gb {self.config.cache_gb:g}. Raise it, or store less: "
                "--cache-tokens fp16, fewer --cache-draws, fewer --shots, a larger --merge of the alignments"
            )
        free = shutil.disk_usage(self.folder).free
        needed = size * len(missing) // max(1, len(self.shards))
        if needed > free:
            raise PipelineError(
                f"{told}; the disk has {_gb(free)} free. Give a --cache-folder on another one"
            )
        write_json(self.folder / MANIFEST, self.identity)
        return told

    def write(self, feed: ClipFeed, stopped: Callable[[], bool]) -> None:
        """Make the shards that are missing; ``stopped`` ends it, and the shard at hand is lost."""
        if not (missing := self.missing()):
            return
        total, done = sum(len(shard.samples) for shard in missing), 0
        with feed, bar("tokens of videos") as advance:
            for shard in missing:
                passes = []
                for samples, views in _clips(feed, shard):
                    passes.append((samples, [self._pack(clips) for clips in views]))
                    done += len(samples)
                    advance(done, total)
                    if stopped():
                        return
                self._commit(shard, passes)

    def _pack(self, clips: Clips) -> dict[str, Tensor]:
        assert isinstance(clips.frames, Tensor)
        tokens = self.tuner.tokens(clips.frames)
        x = tokens.x.to(FLOATS[self.config.cache_tokens])
        if not x.isfinite().all():
            raise PipelineError("some tokens are too large for fp16; give --cache-tokens fp32")
        held = {"x": x} | {name: getattr(tokens, name).to(torch.int16) for name in COUNTS}
        held = {name: value.unflatten(0, (-1, self.frames)).cpu() for name, value in held.items()}
        return held | {"times": clips.times.cpu()}

    def _commit(
        self, shard: Shard, passes: Sequence[tuple[Sequence[Sample], list[dict[str, Tensor]]]]
    ) -> None:
        parts = [part for _, views in passes for part in views]
        rows = [
            (s.video_id, view) for samples, views in passes for view in range(len(views)) for s in samples
        ]
        # Not one video of a shard may be decodable; the shard then says that none is.
        held = {name: torch.cat([part[name] for part in parts]) for name in (*parts[0],)} if parts else {}
        note = {NOTE: json.dumps(rows)}
        try:
            write_atomic(self.folder / shard.file, lambda path: save_file(held, path, note))
        except (SafetensorError, OSError) as error:
            raise PipelineError(
                f"cannot write {self.folder / shard.file} ({error}); is the disk full?"
            ) from error

    def index(self) -> None:
        """Read what every shard holds; raises PipelineError for one that is damaged."""
        for shard in self.shards:
            for row, (video_id, view) in enumerate(json.loads(self._opened(shard.file).metadata()[NOTE])):
                self.rows[video_id, shard.draw, view] = shard.file, row

    def views(self, video_id: str) -> int:
        """How many views of a video there are, 0 if it could not be decoded."""
        return next(view for view in itertools.count() if (video_id, 0, view) not in self.rows)

    def read(self, wanted: Sequence[tuple[str, int, int]]) -> tuple[Tokens, Tensor]:
        """Tokens of the frames of some clips (video, draw, view), in this order, and the clips' times."""
        parts = [self._row(*self.rows[key]) for key in wanted]
        held = {name: torch.cat([part[name] for part in parts]).to(self.tuner.device) for name in parts[0]}
        x, sizes, source, place = (
            held[name].flatten(0, 1).to(getattr(self.form, name).dtype) for name in ("x", *COUNTS)
        )
        return Tokens(x, sizes, source, place, self.form.rope, self.form.merged), held["times"]

    def _row(self, file: str, row: int) -> dict[str, Tensor]:
        opened = self._opened(file)
        return {name: opened.get_slice(name)[row : row + 1] for name in ("x", *COUNTS, "times")}

    def _open(self, file: str) -> Any:
        try:
            return safe_open(self.folder / file, "pt")
        except (SafetensorError, OSError) as error:
            raise PipelineError(
                f"{self.folder / file} cannot be read ({error}); delete it, and the same command makes it again"
            ) from error


class TokenFeed:
    """The steps and scores of a ClipFeed, read from stored tokens."""

    def __init__(self, cache: TokenCache, classes: int) -> None:
        self.cache, self.config, self.classes = cache, cache.config, classes
        cache.index()

    def __enter__(self) -> "TokenFeed":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def steps(self, samples: Sequence[Sample], epoch: int, first: int) -> Iterator[Iterator[Clips]]:
        """See ``ClipFeed.steps``: the same videos in the same passes."""
        size = self.config.batch_size
        for start in range(first * size, len(samples), size):
            yield self._passes(samples[start : start + size], epoch)

    def _passes(self, samples: Sequence[Sample], epoch: int) -> Iterator[Clips]:
        for start in range(0, len(samples), self.config.micro_batch):
            part = samples[start : start + self.config.micro_batch]
            found = [(sample, key) for sample in part if (key := self._drawn(sample.video_id, epoch))]
            if found:
                yield self._clips([sample for sample, _ in found], [key for _, key in found])

    def _drawn(self, video_id: str, epoch: int) -> tuple[str, int, int] | None:
        """Which of its clips a video shows in an epoch: draws take turns, views are drawn as ClipFeed draws them."""
        if self.config.augment != "none":
            key = video_id, (epoch - 1) % self.config.cache_draws + 1, 0
            return key if key in self.cache.rows else None
        if not (views := self.cache.views(video_id)):
            return None
        with seeded(seed_of(self.config.seed, epoch, video_id)):
            return video_id, 0, draw_view(views)

    def scored(self, samples: Sequence[Sample]) -> Iterator[tuple[tuple[Sample, ...], list[Clips]]]:
        """See ``ClipFeed.scored``."""
        good = [sample for sample in samples if self.cache.views(sample.video_id)]
        for start in range(0, len(good), self.config.micro_batch):
            part = good[start : start + self.config.micro_batch]
            views = range(self.cache.views(part[0].video_id))
            yield tuple(part), [self._clips(part, [(s.video_id, 0, view) for s in part]) for view in views]

    def _clips(self, samples: Sequence[Sample], keys: Sequence[tuple[str, int, int]]) -> Clips:
        tokens, times = self.cache.read(keys)
        return Clips(tokens, times, one_hot(samples, self.classes, self.cache.tuner.device))


def _shards(name: str, samples: Sequence[Sample], draw: int = 0) -> Iterator[Shard]:
    order = sorted({sample.video_id: sample for sample in samples}.values(), key=lambda s: s.video_id)
    for number, start in enumerate(range(0, len(order), VIDEOS)):
        yield Shard(f"{name}-{number:05d}.safetensors", tuple(order[start : start + VIDEOS]), draw)


def _clips(feed: ClipFeed, shard: Shard) -> Iterator[tuple[tuple[Sample, ...], list[Clips]]]:
    if not shard.draw:
        yield from feed.scored(shard.samples)
        return
    for samples, clips in feed.drawn(shard.samples, shard.draw):
        yield samples, [clips]


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
