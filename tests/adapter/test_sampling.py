"""Every video exactly once, in one order, whatever the number of ranks, workers and stops."""

import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from adapter.alignments import open_alignments
from adapter.augment import Augmentation
from adapter.dataset import Sample, VideoDataset, pack
from adapter.sampling import EpochOrder, prefetched, windowed_order

sizes = st.integers(1, 60)
few = st.integers(1, 9)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.integers(1, 4), st.integers(0, 5))
def test_windowed_order_opens_each_group_once(groups, window, seed):
    order = windowed_order([(0, g) for g in groups], np.random.default_rng(seed), window)
    assert sorted(order) == list(range(len(groups)))
    met = [groups[i] for i in order]
    for group in set(groups):
        first, last = met.index(group), len(met) - 1 - met[::-1].index(group)
        assert len(set(met[first : last + 1])) <= window


@given(sizes, few, few, st.integers(0, 70))
def test_every_video_once_for_any_ranks_batch_and_start(videos, batch_size, world, start):
    """The ranks' shares of a step, one after the other, are the global batch: the next videos of the one order."""
    order = np.random.default_rng(0).permutation(videos).tolist()
    epoch = EpochOrder(order, batch_size)
    ranks = [list(epoch.shares(rank, world, start)) for rank in range(world)]
    assert {len(shares) for shares in ranks} == {epoch.steps(start)}
    seen = []
    for step in zip(*ranks, strict=True):
        batch = [i for share in step for i in share.samples]
        assert {(share.start, share.total) for share in step} == {(start + len(seen), len(batch))}
        assert max(len(share.samples) for share in step) - min(len(share.samples) for share in step) <= 1
        seen += batch
        assert {share.end for share in step} == {start + len(seen)}
    assert seen == order[start:]


@given(sizes, few, st.lists(st.tuples(few, st.integers(1, 4)), min_size=1, max_size=5))
def test_stopped_and_gone_on_with_other_ranks_is_the_same_order(videos, batch_size, stops):
    """After any number of steps with any number of ranks, the count of videos alone says how to go on."""
    epoch = EpochOrder(list(range(videos))[::-1], batch_size)
    seen, count = [], 0
    for world, steps in [*stops, (1, videos)]:
        ranks = [list(epoch.shares(rank, world, count))[:steps] for rank in range(world)]
        for step in zip(*ranks, strict=True):
            seen += [i for share in step for i in share.samples]
            count = step[0].end
    assert seen == list(epoch.order)


def dataset_of(opened, gb=1.0):
    return VideoDataset(opened, [Sample(video.video_id, i) for i, video in enumerate(opened.plan)], gb)


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 3), st.booleans())
def test_what_ranks_load_is_what_one_loads(learnable, batch_size, world, parts, cached):
    opened = open_alignments(learnable)
    dataset = dataset_of(opened, float(cached))
    epoch = EpochOrder(dataset.epoch_order(0, 1), batch_size)
    whole = torch.cat([batch.embeddings for _, (batch,) in dataset.load(epoch.shares())])
    ranks = [list(dataset.load(epoch.shares(rank, world), parts)) for rank in range(world)]
    steps = [batch for step in zip(*ranks, strict=True) for _, batches in step for batch in batches]
    assert torch.equal(torch.cat([batch.embeddings for batch in steps]), whole)
    assert torch.cat([batch.label for batch in steps]).tolist() == list(epoch.order)
    for share, batches in (loaded for rank in ranks for loaded in rank):
        assert len(batches) <= parts and sum(len(batch.label) for batch in batches) == len(share.samples)


def test_the_order_depends_on_memory_only_through_the_window(learnable):
    opened = open_alignments(learnable)
    group = opened.bytes_per_video() * 5
    streamed = [dataset_of(opened, gb) for gb in (0.0, 1e-9 * group)]
    assert [dataset.window for dataset in streamed] == [8, 8]
    assert streamed[0].epoch_order(0, 1) == streamed[1].epoch_order(0, 1)
    assert dataset_of(opened, 12e-9 * group).window == 12 and dataset_of(opened).window == 0


def test_workers_of_a_loader_keep_the_order_and_drop_nothing(learnable):
    """Map-style: torch's own loader shares the batches out, and every worker opens the files itself."""
    opened = open_alignments(learnable)
    dataset = dataset_of(opened, 0.0)
    dataset.augment(Augmentation(region_dropout=0.5), 0, 1)
    order = EpochOrder(dataset.epoch_order(0, 1), 10)
    here = [batch for _, (batch,) in dataset.load(order.shares())]
    chosen = [list(share.samples) for share in order.shares()]
    loader = DataLoader(
        dataset, batch_sampler=chosen, collate_fn=pack, num_workers=2, multiprocessing_context="spawn"
    )
    for mine, theirs in zip(here, loader, strict=True):
        assert torch.equal(mine.label, theirs.label) and torch.equal(mine.mask, theirs.mask)
        assert torch.equal(mine.embeddings, theirs.embeddings)


def test_prefetched_items_are_the_same_and_read_ahead():
    made = []
    items = prefetched((made.append(i) or i for i in range(20)), ahead=3)
    assert next(items) == 0
    deadline = time.monotonic() + 5
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert 4 <= len(made) <= 5
    assert list(items) == list(range(1, 20))


def test_an_error_comes_where_its_item_would_and_the_thread_ends():
    before = threading.active_count()

    def items():
        yield 1
        raise ValueError("broken")

    got = prefetched(items())
    assert next(got) == 1
    with pytest.raises(ValueError, match="broken"):
        next(got)
    left = prefetched(iter(range(100)))
    next(left)
    left.close()
    assert threading.active_count() == before
