"""Videos to clips for training and for validation: decoded in the aligner's child processes, ahead of their use."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from adapter.dataset import Sample
from adapter.train import seeded
from aligner.config import TSN
from aligner.decoding import Clip, Decoders, NoClip
from aligner.pixels import Cutter
from aligner.plan import Plan
from aligner.views import Sampling
from pipelines.augment import ClipAugment, Mixing, decoded_size
from pipelines.tuner import Clips, seed_of
from pipelines.tuning_config import TuneConfig


class ClipFeed:
    """Clips of planned videos, as settings of alignments say for scoring, and augmented for training.

    A clip is a function of seed, epoch and video, and mixing one of seed, epoch and the videos of the pass; never of
    the number of decoding processes.
    """

    def __init__(
        self, plan: Plan, settings: dict[str, Any], classes: int, config: TuneConfig, device: torch.device
    ) -> None:
        """Settings are the ``config`` of the alignments' manifest."""
        self.paths = {item.video_id: plan.path(item) for item in plan.items}
        self.sampling = Sampling.of(settings)
        self.classes, self.config, self.device = classes, config, device
        look = settings["image_size"], settings["mean"], settings["std"]
        self.augment = ClipAugment(*look, config)
        self.plain = ClipAugment(*look, replace(config, augment="none", cache_tokens="none"))
        self.mixing = Mixing(classes, config)
        self.cutter = Cutter.of(settings)

    def __enter__(self) -> "ClipFeed":
        self.stack = ExitStack()
        self.scoring = self._decoders(self.cutter)
        cutter = self._training_cutter()
        self.training = self.scoring if cutter == self.cutter else self._decoders(cutter)
        return self

    def _decoders(self, cutter: Cutter) -> Decoders:
        decoders = Decoders(self.config.decode_workers, cutter, self.config.video_seconds)
        return self.stack.enter_context(decoders)

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def _training_cutter(self) -> Cutter:
        if self.config.augment == "none":
            return self.cutter
        size = decoded_size(self.cutter.size, augmented=True)
        # All of a wide picture in three squares, of which a clip is one; a model that squashes sees all in one.
        return replace(self.cutter, size=size, crops=3 if self.cutter.resize_mode == "shortest" else 1)

    def _training_sampling(self, epoch: int) -> Sampling:
        if self.config.augment == "none":
            return self.sampling
        return Sampling(self.sampling.frames, TSN, seed=seed_of(self.config.seed, epoch))

    def steps(self, samples: Sequence[Sample], epoch: int, first: int) -> Iterator[Iterator[Clips]]:
        """The steps of an epoch from the ``first`` on, each as the passes that its videos fall into.

        A pass lacks the videos that cannot be decoded; one without any is left out.
        """
        size = self.config.batch_size
        arriving = self._decoded(self.training, samples[first * size :], self._training_sampling(epoch))
        for start in range(first * size, len(samples), size):
            yield self._passes(arriving, min(size, len(samples) - start), epoch)

    def _passes(
        self, arriving: Iterator[tuple[Sample, Clip | NoClip]], videos: int, epoch: int
    ) -> Iterator[Clips]:
        for start in range(0, videos, self.config.micro_batch):
            found = list(islice(arriving, min(self.config.micro_batch, videos - start)))
            good = [(sample, clip) for sample, clip in found if isinstance(clip, Clip)]
            if good:
                yield self._mixed(good, epoch)

    def _mixed(self, found: Sequence[tuple[Sample, Clip]], epoch: int) -> Clips:
        pixels, times = self._drawn(found, epoch)
        with seeded(seed_of(self.config.seed, epoch, [sample.video_id for sample, _ in found])):
            label = torch.tensor([sample.label for sample, _ in found], device=self.device)
            mixed, target = self.mixing(pixels, label)
        return Clips(mixed, times, target)

    def _drawn(self, found: Sequence[tuple[Sample, Clip]], epoch: int) -> tuple[Tensor, Tensor]:
        """Pixels and times of one view of each video, drawn (among crops, too) and augmented as the epoch has it."""
        pixels, times = [], []
        for sample, clip in found:
            with seeded(seed_of(self.config.seed, epoch, sample.video_id)):
                view = draw_view(clip.views)
                pixels.append(self.augment(self._by_view(clip)[view]))
            times.append(clip.times_s.reshape(clip.views, -1)[view])
        return torch.stack(pixels), self._times(times)

    def drawn(self, samples: Sequence[Sample], epoch: int) -> Iterator[tuple[tuple[Sample, ...], Clips]]:
        """Some videos at a time as training sees them in an epoch, but not mixed; without those that have no frames."""
        arriving = self._decoded(self.training, samples, self._training_sampling(epoch))
        good = ((sample, clip) for sample, clip in arriving if isinstance(clip, Clip))
        while found := list(islice(good, self.config.micro_batch)):
            part = tuple(sample for sample, _ in found)
            yield part, Clips(*self._drawn(found, epoch), self._target(part))

    def scored(self, samples: Sequence[Sample]) -> Iterator[tuple[tuple[Sample, ...], list[Clips]]]:
        """Some videos at a time with all their views, as the aligner sees them; those without frames are left out."""
        arriving = self._decoded(self.scoring, samples, self.sampling)
        good = ((sample, clip) for sample, clip in arriving if isinstance(clip, Clip))
        while found := list(islice(good, self.config.micro_batch)):
            target = self._target([sample for sample, _ in found])
            views = [self._by_view(clip) for _, clip in found]
            times = [clip.times_s.reshape(clip.views, -1) for _, clip in found]
            yield (
                tuple(sample for sample, _ in found),
                [
                    Clips(
                        torch.stack([self.plain(video[view]) for video in views]),
                        self._times([video[view] for video in times]),
                        target,
                    )
                    for view in range(len(views[0]))
                ],
            )

    def _decoded(
        self, decoders: Decoders, samples: Iterable[Sample], sampling: Sampling
    ) -> Iterator[tuple[Sample, Clip | NoClip]]:
        depth = self.config.decode_workers + self.config.micro_batch
        asked = ((sample, self.paths[sample.video_id]) for sample in samples)
        for sample, future in decoders.ahead(asked, sampling, depth, lambda sample: sample.video_id):
            yield sample, future.result()

    def _target(self, samples: Sequence[Sample]) -> Tensor:
        return one_hot(samples, self.classes, self.device)

    def _by_view(self, clip: Clip) -> Tensor:
        crops = torch.from_numpy(np.array(clip.crops)).to(self.device)
        return crops.unflatten(0, (clip.views, self.sampling.frames))

    def _times(self, times: Sequence[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack(times)).float().to(self.device)


def draw_view(views: int) -> int:
    """One of the views of a video, for training without a draw of its own."""
    return int(torch.randint(views, ()))


def one_hot(
    samples: Sequence[Sample], classes: int, device: torch.device
) -> Float[Tensor, "samples classes"]:
    """All of each sample's share to its class; to the first where it has none."""
    label = torch.tensor([sample.label for sample in samples], device=device)
    return torch.nn.functional.one_hot(label.clamp_min(0), classes).float()
