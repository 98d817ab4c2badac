"""Pictures as X-CLIP augments them: one draw of crop, mirror and colours for all frames of a clip, then mixing.

The probabilities are X-CLIP's (method.md 1.5); the strengths of the colours, which it does not name there, are ours.
Everything is drawn from torch's generator seeded by the caller, so that a clip looks the same after a restart.
"""

import re
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as pictures

from aligner.engine import normalise
from pipelines.errors import PipelineError
from pipelines.tuning_config import TuneConfig

# Side of a crop as a share of the picture; height and width are drawn apart, no more than one step from each other.
SCALES = (1.0, 0.875, 0.75, 0.66)
# Side of the decoded picture over that of the model's input, of which crops are taken (256 over 224).
MARGIN = 8 / 7
BRIGHTNESS, CONTRAST, SATURATION, HUE = 0.4, 0.4, 0.2, 0.1


def decoded_size(size: Sequence[int], augmented: bool) -> tuple[int, int]:
    """Height and width to decode to for an input of ``size``: larger where crops are to be taken."""
    height, width = size
    return (round(height * MARGIN), round(width * MARGIN)) if augmented else (height, width)


def refuse_mirrored_classes(labels: Sequence[str], config: TuneConfig) -> None:
    """Refuse to mirror clips where the mirror image of a class is another class (three pairs of SSv2).

    Raises:
        PipelineError: names such a pair.
    """
    if not config.flip or config.augment == "none":
        return
    other = {"left": "right", "right": "left"}
    names = {label.lower(): label for label in labels}
    for name, label in names.items():
        mirrored = re.sub(r"\b(left|right)\b", lambda found: other[found[0]], name)
        if mirrored != name and mirrored in names:
            raise PipelineError(
                f"a clip of '{label}' in the mirror is one of '{names[mirrored]}', another class; use --no-flip"
            )


class ClipAugment:
    """Bytes of a clip to the encoder's floats; without augmentation just what the aligner does."""

    def __init__(
        self, size: Sequence[int], mean: Sequence[float], std: Sequence[float], config: TuneConfig
    ) -> None:
        self.size = list(size)
        self.augmented = config.augment == "xclip"
        jitter = v2.ColorJitter(BRIGHTNESS, CONTRAST, SATURATION, HUE)
        self.draws = v2.Compose(
            [
                MultiScaleCrop(self.size),
                v2.RandomHorizontalFlip(0.5 if config.flip else 0.0),
                v2.RandomApply([jitter], config.colour),
                v2.RandomGrayscale(config.grey),
            ]
        )
        self.mean, self.std = torch.tensor(mean), torch.tensor(std)

    def __call__(
        self, frames: UInt8[Tensor, "frames height width 3"]
    ) -> Float[Tensor, "frames 3 rows columns"]:
        """The clip as the encoder takes it."""
        if self.augmented:
            frames = self.draws(frames.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return normalise(frames, self.mean.to(frames.device), self.std.to(frames.device))


class MultiScaleCrop(v2.Transform):
    """A crop whose height and width are one of SCALES, anywhere in the picture, resized to ``size``."""

    def __init__(self, size: Sequence[int]) -> None:
        super().__init__()
        self.size = list(size)

    def forward(
        self, frames: UInt8[Tensor, "frames 3 height width"]
    ) -> UInt8[Tensor, "frames 3 rows columns"]:
        """All frames cut alike."""
        first = int(torch.randint(len(SCALES), ()))
        near = range(max(0, first - 1), min(len(SCALES), first + 2))
        second = near[int(torch.randint(len(near), ()))]
        height, width = (
            round(side * SCALES[i]) for side, i in zip(frames.shape[-2:], (first, second), strict=True)
        )
        top = int(torch.randint(frames.shape[-2] - height + 1, ()))
        left = int(torch.randint(frames.shape[-1] - width + 1, ()))
        return pictures.resized_crop(frames, top, left, height, width, self.size, antialias=True)


class Mixing:
    """Mixup or cutmix of the clips of one pass, which of them drawn anew each time; targets become shares."""

    def __init__(self, classes: int, config: TuneConfig) -> None:
        self.classes = classes
        found = [(config.mixup, v2.MixUp, 1 - config.switch), (config.cutmix, v2.CutMix, config.switch)]
        kinds = [
            (kind(alpha=alpha, num_classes=classes), weight) for alpha, kind, weight in found if alpha > 0
        ]
        on = config.augment == "xclip" and sum(weight for _, weight in kinds) > 0
        self.draw = (
            v2.RandomChoice([kind for kind, _ in kinds], [weight for _, weight in kinds]) if on else None
        )

    def __call__(
        self, clips: Float[Tensor, "clips frames 3 height width"], label: Int64[Tensor, " clips"]
    ) -> tuple[Float[Tensor, "clips frames 3 height width"], Float[Tensor, "clips classes"]]:
        """The clips, mixed unless that is off, and the share of each class in them."""
        if self.draw is None:
            return clips, torch.nn.functional.one_hot(label, self.classes).float()
        mixed, target = self.draw(tv_tensors.Video(clips), label)
        return mixed.as_subclass(Tensor), target.float()
