from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adapter.alignments import open_alignments
from adapter.config import AdapterError
from adapter.dataset import (
    Sample,
    VideoDataset,
    all_views,
    default_split,
    draw_shots,
    hold_out,
    require_samples,
    select,
    split_videos,
    train_and_val,
)
from adapter.labels import open_labels


def samples_of(opened):
    return [Sample(video.video_id, i) for i, video in enumerate(opened.plan)]


def test_batches_hold_every_video_once_with_its_own_content(learnable):
    opened = open_alignments(learnable)
    dataset = VideoDataset(opened, samples_of(opened))
    batches = list(dataset.batches(range(len(dataset)), 10))
    assert [len(b.label) for b in batches] == [10] * 7 + [2]
    assert torch.cat([b.label for b in batches]).tolist() == list(range(72))
    (video,) = opened.read([opened.plan[11].video_id])
    np.testing.assert_array_equal(batches[1].embeddings[1].numpy(), video.embeddings)
    wide = batches[1].to(torch.device("cpu"))
    assert (batches[1].embeddings.dtype, wide.embeddings.dtype) == (torch.float16, torch.float32)
    assert (batches[1].topk_entity.dtype, wide.topk_entity.dtype) == (torch.int32, torch.int64)
    assert torch.equal(wide.embeddings, batches[1].embeddings.float())


def test_memory_does_not_change_content(learnable):
    opened = open_alignments(learnable)
    kept, streamed = (VideoDataset(opened, samples_of(opened), gb) for gb in (1.0, 0.0))
    assert kept.cached and not streamed.cached
    for i in (3, 70, 3):
        np.testing.assert_array_equal(kept[i][0].embeddings, streamed[i][0].embeddings)


def test_what_may_stay_in_memory_of_row_groups_is_what_the_cache_may_have(learnable):
    opened = open_alignments(learnable)
    assert VideoDataset(opened, samples_of(opened), 1.0).cached and opened.keep_bytes == 0
    half = opened.bytes_per_video() * len(opened.plan) / 2e9
    assert not VideoDataset(opened, samples_of(opened), half).cached
    assert opened.keep_bytes == int(half * 1e9)


@pytest.mark.parametrize("views", [None, 2])
def test_what_fits_in_memory_is_read_once_whatever_the_order(tmp_path, toy, views):
    path = toy.write_alignments(tmp_path / "a", toy.world.learnable(4), views=views)
    opened = open_alignments(path)
    samples = all_views(samples_of(opened)[::2], opened.views)
    dataset, streamed = VideoDataset(opened, samples), VideoDataset(open_alignments(path), samples, 0.0)
    expected = [streamed[i] for i in range(len(samples))]
    for group in {opened.group_of(sample.video_id) for sample in samples}:
        dataset[next(i for i, sample in enumerate(samples) if opened.group_of(sample.video_id) == group)]
    for file in path.glob("shard-*.parquet"):
        file.unlink()
    for i in np.random.default_rng(0).permutation(len(samples)).tolist():
        video, label = dataset[i]
        assert label == expected[i][1]
        np.testing.assert_array_equal(video.embeddings, expected[i][0].embeddings)
    assert len(dataset._memory) == len(samples)


@pytest.mark.parametrize("gb", [0.0, 1.0])
def test_epoch_order_is_a_seeded_permutation(learnable, gb):
    opened = open_alignments(learnable)
    dataset = VideoDataset(opened, samples_of(opened), gb)
    orders = [dataset.epoch_order(seed, epoch) for seed, epoch in ((0, 1), (0, 1), (0, 2), (1, 1))]
    assert all(sorted(order) == list(range(72)) for order in orders)
    assert orders[0] == orders[1]
    assert orders[0] != orders[2] and orders[0] != orders[3]


def test_reversing_twice_is_the_identity_and_once_flips_content_not_time(learnable):
    opened = open_alignments(learnable)
    batch = next(VideoDataset(opened, samples_of(opened)).batches([0, 1], 2))
    back = batch.reversed()
    assert torch.equal(back.embeddings, batch.embeddings.flip(1))
    assert torch.equal(back.times, batch.times)
    assert torch.equal(back.reversed().geometry, batch.geometry)


def test_every_planned_video_is_accounted_for(tmp_path, toy):
    videos = toy.world.learnable(4)
    videos[0].failed = True
    videos[1].label = None
    videos[2].label = "no such label"
    opened = open_alignments(toy.write_alignments(tmp_path / "a", videos))
    labels = open_labels(toy.write_labels(tmp_path / "l", toy.classes))
    chosen = select(opened, opened.plan, labels)
    assert chosen.counts() == {"planned": 24, "ok": 21, "failed": 1, "unlabelled": 1, "unknown_label": 1}


@pytest.mark.parametrize(
    ("failed", "unlabelled", "unknown", "message"),
    [
        (12, 0, 0, "no usable video to score: all 12 failed; see `aligner status {path}`"),
        (2, 10, 0, "2 failed, 10 without a label; align videos that have labels: .*`aligner run --videos`"),
        (
            2, 1, 9,
            "2 failed, 1 without a label, 9 with other labels; labels of the videos: flying; labels of the "
            "set: ApplyEyeMakeup, .*`corpus-builder labels --labels FILE --model toy --pretrained none --out DIR`",
        ),
        (0, 0, 0, "none is left of the split; hold out fewer with a lower --val-fraction"),
    ],
)  # fmt: skip
def test_when_nothing_is_left_the_reason_decides_the_advice(
    tmp_path, toy, label_set, failed, unlabelled, unknown, message
):
    videos = toy.world.learnable(2)
    for i, video in enumerate(videos):
        video.failed = i < failed
        video.label = None if failed <= i < failed + unlabelled else "flying"
    opened = open_alignments(toy.write_alignments(tmp_path / "a", videos))
    labels = open_labels(label_set)
    chosen = select(opened, opened.plan[: failed + unlabelled + unknown], labels)
    with pytest.raises(AdapterError, match=message.format(path=opened.path)) as caught:
        require_samples(chosen, labels, opened.path, "to score")
    assert "{" not in str(caught.value)


def test_splits(learnable):
    opened = open_alignments(learnable)
    train, val = train_and_val(opened, "train", "val", 0.1)
    assert {v.split for v in train} == {"train"} and {v.split for v in val} == {"val"}
    assert default_split(opened) == "test"
    with pytest.raises(AdapterError, match=r"--split tets: .* has no such split \(it has test, train, val\)"):
        split_videos(opened, "tets")
    train, val = train_and_val(opened, "train", "missing", 0.5)
    assert {v.split for v in train + val} == {"train"} and len(train) == len(val) == 18


def test_hold_out_is_stratified_and_independent_of_order(tmp_path, toy):
    videos = toy.world.learnable(10)
    for video in videos:
        video.split = None
    opened = open_alignments(toy.write_alignments(tmp_path / "a", videos))
    train, val = train_and_val(opened, "train", "val", 0.2)
    assert Counter(v.label for v in val) == dict.fromkeys(toy.classes, 2)
    assert len(train) + len(val) == 60
    again = hold_out(opened.plan[::-1], 0.2)[1]
    assert {v.video_id for v in again} == {v.video_id for v in val}
    assert default_split(opened) == "all"
    with pytest.raises(AdapterError, match="no video names one"):
        split_videos(opened, "test")


@given(st.lists(st.integers(0, 4), max_size=40), st.integers(1, 5), st.integers(0, 3))
def test_shots_draw_at_most_k_of_each_class(labels, shots, seed):
    samples = [Sample(f"v{i}", label) for i, label in enumerate(labels)]
    drawn = draw_shots(samples, shots, seed)
    have, kept = Counter(labels), Counter(sample.label for sample in drawn)
    assert kept == {label: min(n, shots) for label, n in have.items()}
    assert drawn == draw_shots(samples[::-1], shots, seed)
    assert set(drawn) <= set(samples)
