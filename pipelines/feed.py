"""Videos to clips for training and for validation: decoded in the aligner's child processes, ahead of their use."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import torch
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
        self.plain = ClipAugment(*look, replace(config, augment="none"))
        self.mixing = Mixing(classes, config)
        self.cutter = Cutter.of(settings)

    def __enter__(self) -> "ClipFeed":
        self.stack = ExitStack()
        cutters = self._training_cutter(), self.cutter
        count, seconds = self.config.decode_workers, self.config.video_seconds
        self.training, self.scoring = (
            self.stack.enter_context(Decoders(count, cutter, seconds)) for cutter in cutters
        )
        return self

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
        pixels, times = [], []
        for sample, clip in found:
            with seeded(seed_of(self.config.seed, epoch, sample.video_id)):
                pixels.append(self.augment(self._by_view(clip)))
            times.append(clip.times_s[: self.sampling.frames])
        with seeded(seed_of(self.config.seed, epoch, [sample.video_id for sample, _ in found])):
            label = torch.tensor([sample.label for sample, _ in found], device=self.device)
            mixed, target = self.mixing(torch.stack(pixels), label)
        return Clips(mixed, self._times(times), target)

    def scored(self, samples: Sequence[Sample]) -> Iterator[tuple[tuple[Sample, ...], list[Clips]]]:
        """Some videos at a time with all their views, as the aligner sees them; those without frames are left out."""
        arriving = self._decoded(self.scoring, samples, self.sampling)
        good = ((sample, clip) for sample, clip in arriving if isinstance(clip, Clip))
        while found := list(islice(good, self.config.micro_batch)):
            label = torch.tensor([sample.label for sample, _ in found], device=self.device)
            target = torch.nn.functional.one_hot(label.clamp_min(0), self.classes).float()
            views = [self._by_view(clip) for _, clip in found]
            times = [clip.times_s.reshape(clip.views, -1) for _, clip in found]
            yield (
                tuple(sample for sample, _ in found),
                [
                    Clips(
                        torch.stack([self.plain(video[view : view + 1]) for video in views]),
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

    def _by_view(self, clip: Clip) -> Tensor:
        crops = torch.from_numpy(np.array(clip.crops)).to(self.device)
        return crops.unflatten(0, (clip.views, self.sampling.frames))

    def _times(self, times: Sequence[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack(times)).float().to(self.device)
