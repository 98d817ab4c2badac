"""Augmentation: alike for all frames of a clip, the same for the same seed, and targets that say what was mixed."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapter.lists import open_classes
from adapter.train import seeded
from pipelines.augment import ClipAugment, Mixing, decoded_size, refuse_mirrored_classes
from pipelines.errors import PipelineError
from pipelines.tuning_config import TuneConfig

PLAIN = [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]


def augmented(seed: int, frames: torch.Tensor, **options: object) -> torch.Tensor:
    with seeded(seed):
        return ClipAugment((14, 14), *PLAIN, TuneConfig(**options))(frames)


@given(st.integers(0, 10_000))
@settings(max_examples=30)
def test_all_frames_of_a_clip_are_augmented_alike(seed: int) -> None:
    picture = torch.randint(0, 256, (1, 16, 16, 3), dtype=torch.uint8, generator=torch.manual_seed(seed))
    found = augmented(seed, picture.expand(5, -1, -1, -1))
    assert found.shape == (5, 3, 14, 14)
    assert torch.equal(found, found[:1].expand_as(found))
    assert torch.equal(found, augmented(seed, picture.expand(5, -1, -1, -1)))


def test_only_flips_mirror() -> None:
    ramp = torch.linspace(0, 255, 16).byte().view(1, 1, 16, 1).expand(2, 16, 16, 3)

    def rising(seed: int, flip: bool) -> bool:
        found = augmented(seed, ramp, flip=flip)
        return bool(found[..., -1].mean() > found[..., 0].mean())

    assert all(rising(seed, flip=False) for seed in range(40))
    mirrored = sum(not rising(seed, flip=True) for seed in range(40))
    assert 8 <= mirrored <= 32


def test_classes_that_are_mirror_images_of_each_other_are_not_mirrored(shared: Path) -> None:
    """SSv2 has three such pairs; its other names with left or right in them, and other data sets, have none."""
    lists = {data: open_classes(shared / "data", data).names for data in ("ssv2", "k400", "ucf101", "hmdb51")}
    with pytest.raises(
        PipelineError, match="'Pulling something from left to right' in .* right to left', .* use --no-flip"
    ):
        refuse_mirrored_classes(lists["ssv2"], TuneConfig())
    for options in ({"flip": False}, {"augment": "none"}):
        refuse_mirrored_classes(lists["ssv2"], TuneConfig(**options))
    for data in ("k400", "ucf101", "hmdb51"):
        refuse_mirrored_classes(lists[data], TuneConfig())
    pairs = [name for name in lists["ssv2"] if "to left" in name or "camera left" in name]
    assert len(pairs) == 3
    refuse_mirrored_classes([name for name in lists["ssv2"] if name not in pairs], TuneConfig())


def test_grey_and_colours_can_be_turned_off() -> None:
    red = torch.tensor([200, 30, 30], dtype=torch.uint8).expand(1, 16, 16, 3)
    kept = augmented(0, red, colour=0.0, grey=0.0)
    assert torch.allclose(kept[:, 0], torch.tensor(200 / 255), atol=2 / 255)
    grey = augmented(0, red, colour=0.0, grey=1.0)
    assert torch.allclose(grey[:, 0], grey[:, 2], atol=1e-6)


def test_without_augmentation_pictures_are_the_aligners() -> None:
    from aligner.engine import normalise

    crops = torch.randint(0, 256, (4, 14, 14, 3), dtype=torch.uint8)
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]
    found = ClipAugment((14, 14), mean, std, TuneConfig(augment="none"))(crops)
    assert torch.equal(found, normalise(crops, torch.tensor(mean), torch.tensor(std)))


@pytest.mark.parametrize("options", [{"switch": 0.0}, {"switch": 1.0}, {"cutmix": 0.0}, {"mixup": 0.0}])
def test_targets_are_the_shares_of_what_was_mixed(options: dict) -> None:
    label = torch.tensor([0, 1, 2, 3])
    value = torch.tensor([1.0, 2.0, 4.0, 8.0])
    clips = value.view(4, 1, 1, 1, 1).expand(4, 3, 3, 32, 32)
    changed = 0
    for seed in range(10):
        with seeded(seed):
            mixed, target = Mixing(4, TuneConfig(**options))(clips, label)
        assert torch.allclose(target.sum(1), torch.ones(4))
        assert torch.allclose(mixed.mean((1, 2, 3, 4)), target @ value, atol=1e-4)
        assert torch.equal(mixed, mixed[:, :1].expand_as(mixed))
        changed += not torch.equal(mixed, clips)
    assert changed >= 5


def test_no_mixing_leaves_clips_and_labels() -> None:
    clips, label = torch.randn(2, 2, 3, 8, 8), torch.tensor([1, 0])
    for options in ({"augment": "none"}, {"mixup": 0.0, "cutmix": 0.0}):
        mixed, target = Mixing(2, TuneConfig(**options))(clips, label)
        assert mixed is clips and torch.equal(target, torch.tensor([[0.0, 1.0], [1.0, 0.0]]))


def test_crops_are_taken_of_larger_pictures() -> None:
    assert decoded_size((224, 224), augmented=True) == (256, 256)
    assert decoded_size((224, 224), augmented=False) == (224, 224)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"precision": "int4"}, "--precision is 'int4'"),
        ({"micro_batch": 0}, "--micro-batch is 0"),
        ({"switch": 2.0}, "--switch is 2.0"),
        ({"mixup": -1.0}, "--mixup is -1.0"),
        ({"prompts": 2, "last_blocks": 1}, "give one of them"),
    ],
)
def test_impossible_options_are_refused(options: dict, told: str) -> None:
    with pytest.raises(PipelineError, match=told):
        TuneConfig(**options)
