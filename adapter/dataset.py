"""From cached alignments to batches: which videos, which class, in which order.

Every planned video is accounted for: chosen, failed upstream, without a label, or with a label that the set
lacks.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor
from torch.utils.data import Dataset

from adapter.alignments import Alignments, Planned, Video
from adapter.artifact import with_model
from adapter.augment import Augmentation, mix_shares
from adapter.config import AdapterError
from adapter.labels import Labels
from adapter.sampling import EpochOrder, Share, prefetched, windowed_order

WINDOW = 8  # row groups that are shuffled together, at least, when the data do not fit in memory


@dataclass(frozen=True)
class Batch:
    """Videos stacked; tokens are cls (0) and regions, padded where ``mask`` is False.

    ``embeddings`` are of every token, or of cls alone (store topk); ``geometry`` is centroid x, y and area
    share; ``times`` seconds; ``label`` -1 where unknown. On the way to a device embeddings are float16 and
    entities int32, as cached; ``to`` widens them there. ``share`` is what each video keeps of itself when videos are
    mixed (``augment.mixup``); None where they are not.
    """

    embeddings: Float[Tensor, "videos frames held dim"]
    norms: Float[Tensor, "videos frames tokens"]
    topk_entity: Int[Tensor, "videos frames tokens topk"]
    topk_score: Float[Tensor, "videos frames tokens topk"]
    geometry: Float[Tensor, "videos frames tokens 3"]
    times: Float[Tensor, "videos frames"]
    mask: Bool[Tensor, "videos frames tokens"]
    label: Int64[Tensor, " videos"]
    share: Float[Tensor, " videos"] | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """The batch with every tensor changed alike (moved, indexed, repeated)."""
        tensors = {spec.name: getattr(self, spec.name) for spec in fields(self)}
        return Batch(**{name: change(value) for name, value in tensors.items() if value is not None})

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device, in float32 and int64."""
        moved = self.map(lambda tensor: tensor.to(device, non_blocking=True))
        return replace(moved, embeddings=moved.embeddings.float(), topk_entity=moved.topk_entity.long())

    def reversed(self) -> "Batch":
        """The videos played backwards: contents in opposite order, the clock unchanged."""
        return self.in_order(range(self.times.shape[1])[::-1])

    def in_order(self, frames: Sequence[int]) -> "Batch":
        """The frames of every video in another order, the clock unchanged."""
        kept, order = ("times", "label", "share"), torch.tensor(list(frames), device=self.times.device)
        moved = (spec.name for spec in fields(self) if spec.name not in kept)
        return replace(self, **{name: getattr(self, name).index_select(1, order) for name in moved})


@dataclass(frozen=True)
class Sample:
    """A video, its class (-1 where unknown) and which of its views is looked at."""

    video_id: str
    label: int
    view: int = 0


@dataclass(frozen=True)
class Selection:
    """The videos of one split, and those that are not among them, by reason."""

    samples: tuple[Sample, ...]
    failed: tuple[Planned, ...]
    unlabelled: tuple[str, ...]
    unknown: tuple[Planned, ...]

    def counts(self) -> dict[str, int]:
        """How many videos of the split went where; the parts sum to ``planned``."""
        parts = {
            "ok": len(self.samples),
            "failed": len(self.failed),
            "unlabelled": len(self.unlabelled),
            "unknown_label": len(self.unknown),
        }
        return {"planned": sum(parts.values()), **parts}


def pack(items: Sequence[tuple[Video, int]]) -> Batch:
    """Stack videos as they are cached; the one copy between a row group and a device."""

    def stack(name: str) -> Tensor:
        return torch.from_numpy(np.stack([getattr(video, name) for video, _ in items]))

    names = ("embeddings", "norms", "topk_entity", "topk_score", "geometry", "mask")
    label = torch.tensor([label for _, label in items], dtype=torch.int64)
    return Batch(**{name: stack(name) for name in names}, times=stack("times").float(), label=label)


def collate(items: Sequence[tuple[Video, int]]) -> Batch:
    """Stack videos for a model on the CPU, in float32 and int64."""
    return pack(items).to(torch.device("cpu"))


def all_views(samples: Sequence[Sample], views: int) -> list[Sample]:
    """Every view of every video, those of one video beside each other and in their order."""
    return [replace(sample, view=view) for sample in samples for view in range(views)]


class VideoDataset(Dataset):
    """Map-style over samples, views of videos; all that may be asked for stays in memory if it fits ``cache_gb``.

    If it does not, as many row groups as fit (at least 8) are shuffled together and kept. ``window`` is their number,
    0 for all: with seed and epoch it decides the order, so a training that goes on must have the same. What is small
    in other row groups stays in memory as far as ``cache_gb`` goes: their vectors are the system's to keep.
    """

    def __init__(self, alignments: Alignments, samples: Sequence[Sample], cache_gb: float = 4.0) -> None:
        self.alignments = alignments
        self.samples = tuple(samples)
        self.window = window_of(alignments, self.samples, cache_gb * 1e9)
        self._memory: dict[tuple[str, int], Video] = {}
        self._augmentation, self._when = Augmentation(), ""
        alignments.keep = max(alignments.keep, self.window)
        if not self.cached:
            alignments.keep_bytes = max(alignments.keep_bytes, int(cache_gb * 1e9))

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def cached(self) -> bool:
        """Whether every video stays in memory once it was read."""
        return self.window == 0

    def __getitem__(self, i: int) -> tuple[Video, int]:
        """The i-th sample's video (half-precision embeddings), augmented if it is to be, and its class."""
        video, label = self._read(self.samples[i])
        return self._augmentation.video(video, self._key(i)), label

    def _read(self, sample: Sample) -> tuple[Video, int]:
        if not self.cached:
            (video,) = self.alignments.read([sample.video_id], sample.view)
            return video, sample.label
        key = sample.video_id, sample.view
        if key not in self._memory:
            self._remember(self.alignments.group_of(sample.video_id))
        return self._memory[key], sample.label

    def _remember(self, group: tuple[int, int]) -> None:
        """Take all that may be asked for of a row group, which so is read once, whatever the order."""
        for view in range(self.alignments.views):
            for video in self.alignments.read(self._members[group], view):
                self._memory[video.video_id, view] = _own(video)

    @cached_property
    def _members(self) -> dict[tuple[int, int], list[str]]:
        members: dict[tuple[int, int], list[str]] = defaultdict(list)
        for video_id in dict.fromkeys(sample.video_id for sample in self.samples):
            members[self.alignments.group_of(video_id)].append(video_id)
        return members

    def draw_views(self, seed: int, epoch: int) -> None:
        """Look at one view of each video, drawn by (seed, epoch, video) alone: neither order nor company matter."""
        views = self.alignments.views
        if views > 1:
            self.samples = tuple(
                replace(sample, view=_drawn(f"{seed} {epoch} {sample.video_id}", views))
                for sample in self.samples
            )

    def augment(self, how: Augmentation, seed: int, epoch: int) -> None:
        """Change what is asked for from now on, each sample by (seed, epoch, video, view) alone."""
        self._augmentation, self._when = how, f"{seed} {epoch}"

    def _key(self, i: int) -> str:
        return f"{self._when} {self.samples[i].video_id} {self.samples[i].view}"

    def batches(self, order: Sequence[int], size: int) -> Iterator[Batch]:
        """Batches in the order given, read ahead of use; the last one may be smaller, none is dropped."""
        return (batch for _, (batch,) in self.load(EpochOrder(order, size).shares()))

    def load(self, shares: Iterable[Share], parts: int = 1) -> Iterator[tuple[Share, list[Batch]]]:
        """A rank's shares, read ahead of use; each in at most so many parts, and in none where it is empty."""
        return prefetched((share, self._parts(share.samples, parts)) for share in shares)

    def _parts(self, samples: Sequence[int], parts: int) -> list[Batch]:
        size = max(1, -(-len(samples) // parts))
        return [self._batch(samples[i : i + size]) for i in range(0, len(samples), size)]

    def _batch(self, samples: Sequence[int]) -> Batch:
        batch = pack([self[int(i)] for i in samples])
        if not self._augmentation.mixup:
            return batch
        share = mix_shares(self._augmentation.mixup, [self._key(int(i)) for i in samples])
        return replace(batch, share=share)

    def view_batches(self, order: Sequence[int], size: int) -> Iterator[Iterator[Batch]]:
        """For every batch of videos one batch a view, so that a batch never holds a video twice."""
        for start in range(0, len(order), size):
            samples = [self.samples[int(i)] for i in order[start : start + size]]
            yield (
                pack([self._read(replace(sample, view=view)) for sample in samples])
                for view in range(self.alignments.views)
            )

    def reading_order(self) -> list[int]:
        """All samples once, so that each row group is read once."""
        return sorted(range(len(self)), key=lambda i: self.alignments.group_of(self.samples[i].video_id))

    def epoch_order(self, seed: int, epoch: int) -> list[int]:
        """All samples once, shuffled by (seed, epoch): fully when cached, else by windows of row groups.

        Neither the number of ranks nor that of workers matters.
        """
        rng = np.random.default_rng((seed, epoch))
        if self.cached:
            return rng.permutation(len(self)).tolist()
        return windowed_order([self.alignments.group_of(s.video_id) for s in self.samples], rng, self.window)


def window_of(alignments: Alignments, samples: Sequence[Sample], room: float) -> int:
    """Row groups, at least 8, that fit into ``room`` bytes; 0 where all views of all videos do."""
    ids = {sample.video_id for sample in samples}
    size = alignments.views * alignments.bytes_per_video()
    if len(ids) * size <= room:
        return 0
    largest = max(Counter(map(alignments.group_of, alignments.index)).values())
    return max(WINDOW, int(room // (largest * size)))


def _drawn(key: str, count: int) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % count


def split_videos(alignments: Alignments, split: str, option: str = "--split") -> list[Planned]:
    """The planned videos of a split; ``all`` is every video; an empty one raises, naming those there are."""
    chosen = [video for video in alignments.plan if split == "all" or split in video.splits]
    if not chosen:
        found = sorted(split_names(alignments))
        why = f"it has {', '.join(found)}" if found else "no video names one"
        raise AdapterError(
            f"{option} {split}: {alignments.path} has no such split ({why}); '{option} all' takes every video"
        )
    return chosen


def split_names(alignments: Alignments) -> set[str]:
    """The splits that the planned videos name."""
    return {name for video in alignments.plan for name in video.splits}


def default_split(alignments: Alignments) -> str:
    """The split to score unless one is named: ``test``, or ``all`` where no video names a split."""
    return "test" if any(video.split for video in alignments.plan) else "all"


def train_and_val(
    alignments: Alignments, split: str, val_split: str, fraction: float
) -> tuple[list[Planned], list[Planned]]:
    """Videos to train on and videos to choose the epoch by.

    With split names: the two splits. Without any: all videos, of which ``fraction`` of each class are held
    out. With a training split but no validation split: held out of the training split. The test split is
    never touched.
    """
    named = split_names(alignments)
    train = split_videos(alignments, split if named else "all")
    if val_split in named and val_split != split:
        val = split_videos(alignments, val_split, "--val-split")
        if both := sorted({video.video_id for video in train} & {video.video_id for video in val}):
            raise AdapterError(
                f"{len(both)} videos are in split {split} and in {val_split}, such as {both[0]}; a video cannot both "
                "train and choose the epoch: give another --val-split, or one that no video has, to hold some out"
            )
        return train, val
    return hold_out(train, fraction)


def hold_out(videos: Sequence[Planned], fraction: float) -> tuple[list[Planned], list[Planned]]:
    """Of each label the ``round(fraction * n)`` videos lowest by hash of their id, whatever the seed."""
    by_label: dict[str | None, list[Planned]] = defaultdict(list)
    for video in videos:
        by_label[video.label].append(video)
    held: set[str] = set()
    for group in by_label.values():
        group.sort(key=lambda video: hashlib.sha256(video.video_id.encode()).digest())
        held |= {video.video_id for video in group[: round(fraction * len(group))]}
    return [v for v in videos if v.video_id not in held], [v for v in videos if v.video_id in held]


def select(alignments: Alignments, videos: Sequence[Planned], labels: Labels) -> Selection:
    """Match videos to classes and sort out, by reason, those that cannot be used."""
    samples, failed, unlabelled, unknown = [], [], [], []
    for video in videos:
        label = labels.match(video.label)
        if video.video_id in alignments.failed:
            failed.append(video)
        elif video.label is None:
            unlabelled.append(video.video_id)
        elif label < 0:
            unknown.append(video)
        else:
            samples.append(Sample(video.video_id, label))
    return Selection(tuple(samples), tuple(failed), tuple(unlabelled), tuple(unknown))


def require_samples(selection: Selection, labels: Labels, alignments: Path, what: str) -> None:
    """Raise when nothing is left to use; the message says why each video is not, and what mends that."""
    if selection.samples:
        return
    words = {"failed": "failed", "unlabelled": "without a label", "unknown_label": "with other labels"}
    counts = selection.counts()
    parts = [f"{counts[reason]} {text}" for reason, text in words.items() if counts[reason]]
    alone = "all " if len(parts) == 1 else ""
    why = alone + (", ".join(parts) or "none is left of the split")
    raise AdapterError(f"no usable video {what}: {why}; {_remedy(selection, labels, alignments)}")


def _remedy(selection: Selection, labels: Labels, alignments: Path) -> str:
    if selection.unknown:
        videos = sorted({video.label or "" for video in selection.unknown})[:5]
        run = with_model("corpus-builder labels --labels FILE MODEL --out DIR", labels.model)
        return (
            f"labels of the videos: {', '.join(videos)}; labels of the set: "
            f"{', '.join(sorted(labels.labels)[:5])}; make a set of the videos' labels with {run}"
        )
    if selection.unlabelled:
        return (
            "align videos that have labels: folders CLASS/clip.mp4, or a manifest with a column 'label', "
            "given to `aligner run --videos`"
        )
    if selection.failed:
        return f"see `aligner status {alignments}`"
    return "hold out fewer with a lower --val-fraction"


def draw_shots(samples: Sequence[Sample], shots: int, seed: int) -> list[Sample]:
    """At most ``shots`` videos of each class, drawn by ``seed``; 0 keeps all."""
    if shots == 0:
        return list(samples)
    by_class: dict[int, list[Sample]] = defaultdict(list)
    for sample in sorted(samples, key=lambda s: s.video_id):
        by_class[sample.label].append(sample)
    kept: list[Sample] = []
    for label, members in sorted(by_class.items()):
        order = np.random.default_rng((seed, label)).permutation(len(members))
        kept += [members[i] for i in sorted(order[:shots])]
    return kept


def _own(video: Video) -> Video:
    # A cached view would keep its whole row group alive.
    arrays = {s.name: getattr(video, s.name) for s in fields(video) if s.name != "video_id"}
    return Video(video.video_id, **{name: np.array(array) for name, array in arrays.items()})
