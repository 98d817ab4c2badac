"""Augmentations by what they mean: nothing at zero, masks respected, contents moved and never invented."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from adapter.alignments import open_alignments
from adapter.augment import Augmentation, mix_shares, mixup, partners, swapped
from adapter.config import make_settings
from adapter.dataset import Sample, VideoDataset, collate
from adapter.model import Shape, build_model
from adapter.sampling import EpochOrder

FIELDS = ("embeddings", "norms", "topk_entity", "topk_score", "geometry", "mask", "times")


@pytest.fixture(scope="module")
def video(learnable):
    opened = open_alignments(learnable)
    return next(opened.read([opened.plan[0].video_id]))


def same(a, b):
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in FIELDS)


def test_nothing_changes_at_zero(video):
    assert Augmentation().video(video, "0 1 a") is video


@pytest.mark.parametrize("option", ["frame_dropout", "region_dropout", "frame_jitter"])
def test_draws_are_of_seed_epoch_and_video_alone(video, option):
    how = Augmentation(**{option: 0.5})
    first = how.video(video, "0 1 a")
    assert same(first, how.video(video, "0 1 a")) and not same(first, video)
    assert any(not same(first, how.video(video, f"0 {epoch} a")) for epoch in range(2, 6))


def test_one_option_leaves_the_draws_of_another(video):
    alone = Augmentation(region_dropout=0.3).video(video, "k").mask
    both = Augmentation(region_dropout=0.3, frame_dropout=0.4).video(video, "k").mask
    assert (both <= alone).all()


def test_dropped_regions_are_masked_and_cls_stays(video):
    share = np.mean([
        Augmentation(region_dropout=0.3).video(video, str(key)).mask[:, 1:].mean() for key in range(200)
    ])  # fmt: skip
    assert abs(share - 0.7) < 0.02
    left = Augmentation(region_dropout=1.0).video(video, "k")
    assert left.mask[:, 0].all() and not left.mask[:, 1:].any()
    assert not left.embeddings[:, 1:].any() and not left.topk_score[:, 1:].any()
    np.testing.assert_array_equal(left.embeddings[:, 0], video.embeddings[:, 0])


def test_dropped_frames_are_whole_and_one_stays(video):
    for key in range(20):
        left = Augmentation(frame_dropout=1.0).video(video, str(key))
        assert left.mask.any(1).sum() == 1
        assert np.array_equal(left.mask.any(1), left.mask.all(1))
        np.testing.assert_array_equal(left.times, video.times)


@pytest.mark.parametrize(("queries", "context"), [("aligned", "pooled"), ("tracks", "regions")])
def test_a_model_sees_nothing_of_what_was_dropped(learnable, video, queries, context):
    """Other contents where the mask is False give the same scores."""
    opened = open_alignments(learnable)
    torch.manual_seed(0)
    config = make_settings({"queries": queries, "context": context, "blocks": 1}).model
    model = build_model(config, Shape(opened.dim, opened.frames)).eval()
    how = Augmentation(frame_dropout=0.4, region_dropout=0.4)
    batch = collate([(how.video(video, "k"), 0)])
    noisy = batch.map(torch.clone)
    gone = ~batch.mask
    assert gone[:, :, 0].any() and gone.any(2).all()
    noisy.embeddings[gone] = torch.randn(int(gone.sum()), opened.dim)
    noisy.topk_entity[gone] = 3
    tables = torch.from_numpy(opened.entities.embeddings), torch.eye(4, opened.dim)
    with torch.no_grad():
        torch.testing.assert_close(model(noisy, *tables).logits, model(batch, *tables).logits)


@given(st.lists(st.booleans(), min_size=1, max_size=16), st.integers(0, 1))
def test_jitter_is_a_permutation_of_neighbours(chosen, first):
    order = swapped(np.array(chosen), first)
    assert sorted(order) == list(range(len(chosen)))
    assert np.abs(order - np.arange(len(chosen))).max() <= 1
    assert np.array_equal(order[order], np.arange(len(chosen)))


def test_jitter_moves_contents_and_not_the_clock(video):
    moved = Augmentation(frame_jitter=1.0).video(video, "k")
    order = [int(np.flatnonzero((video.embeddings == frame).all((1, 2)))[0]) for frame in moved.embeddings]
    assert order != list(range(len(order))) and sorted(order) == list(range(len(order)))
    np.testing.assert_array_equal(moved.topk_entity, video.topk_entity[order])
    np.testing.assert_array_equal(moved.geometry, video.geometry[order])
    np.testing.assert_array_equal(moved.times, video.times)


@given(st.integers(1, 9), st.integers(2, 5), st.integers(0, 3), st.floats(0.1, 4.0))
def test_mixed_logits_are_those_of_the_mixed_embedding(videos, classes, seed, alpha):
    torch.manual_seed(seed)
    z, labels = (F.normalize(torch.randn(n, 6), dim=1) for n in (videos, classes))
    label = torch.randint(classes, (videos,))
    share = mix_shares(alpha, [f"{seed} {i}" for i in range(videos)])
    logits, target = mixup(30 * z @ labels.T, z, label, share)
    other = partners(videos)
    mixed = F.normalize(share[:, None] * z + (1 - share[:, None]) * z[other], dim=1)
    torch.testing.assert_close(logits, 30 * mixed @ labels.T, atol=2e-4, rtol=2e-4)
    torch.testing.assert_close(target.sum(1), torch.ones(videos))
    assert (target.gather(1, label[:, None]) >= 0.5).all()
    assert torch.equal(other[other], torch.arange(videos))


def test_mixup_at_zero_is_the_identity():
    z, label = F.normalize(torch.randn(5, 6), dim=1), torch.arange(5) % 3
    logits, target = mixup(z @ torch.eye(6)[:, :3], z, label, mix_shares(0.0, list("abcde")))
    torch.testing.assert_close(logits, z[:, :3])
    assert torch.equal(target, F.one_hot(label, 3).float())


def test_shares_are_of_the_video_alone_and_never_the_smaller():
    keys = [f"0 1 {i}" for i in range(300)]
    shares = mix_shares(0.4, keys)
    assert torch.equal(shares[5:9], mix_shares(0.4, keys[5:9]))
    assert (shares >= 0.5).all() and (shares <= 1).all() and shares.std() > 0.05


def test_a_dataset_augments_what_is_asked_for_and_not_what_is_scored(learnable):
    opened = open_alignments(learnable)
    dataset = VideoDataset(opened, [Sample(video.video_id, 0) for video in opened.plan])
    dataset.augment(Augmentation(region_dropout=1.0), 0, 1)
    (batch,) = dataset.batches(range(4), 4)
    assert batch.mask[:, :, 0].all() and not batch.mask[:, :, 1:].any()
    scored = next(next(dataset.view_batches(range(4), 4)))
    assert scored.mask.all()


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_with_even_shares_mix_the_same_videos(learnable, world):
    """Neighbours of the global batch are mixed, so shares of an even size leave every pair together."""
    opened = open_alignments(learnable)
    dataset = VideoDataset(opened, [Sample(video.video_id, i) for i, video in enumerate(opened.plan)])
    dataset.augment(Augmentation(mixup=0.8), 0, 1)
    epoch = EpochOrder(dataset.epoch_order(0, 1), 12)

    def mixed(batch):
        pairs = zip(batch.label.tolist(), batch.label[partners(len(batch.label))].tolist(), strict=True)
        return {pair: share for pair, share in zip(pairs, batch.share.tolist(), strict=True)}

    alone = [mixed(batch) for _, (batch,) in dataset.load(epoch.shares())]
    ranks = [[mixed(batch) for _, (batch,) in dataset.load(epoch.shares(r, world))] for r in range(world)]
    assert [{k: v for part in step for k, v in part.items()} for step in zip(*ranks, strict=True)] == alone
    assert len(alone) == 6 and all(len(step) == 12 for step in alone)
