from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from adapter.alignments import open_alignments
from adapter.config import make_settings
from adapter.dataset import Sample, VideoDataset, select, split_videos
from adapter.evaluate import evaluate, open_all, score, topk_accuracy
from adapter.sensitivity import aligned_to, drawn_orders, entities_of, measure_sensitivity
from adapter.train import train


@pytest.fixture(scope="module")
def told(tmp_path_factory, toy):
    """The set of directions in alignments that tell kinds: entity 0, which moves, is a thing; the others are scenes."""
    path = toy.write_alignments(tmp_path_factory.mktemp("told") / "a", toy.world.directions(80))
    table = pq.read_table(path / "entities.parquet")
    kinds = ["animal"] + ["scene"] * (len(table) - 3) + ["person", "other"]
    pq.write_table(table.append_column("kind", [kinds]), path / "entities.parquet")
    return path


@pytest.fixture(scope="module")
def mover(tmp_path_factory, toy, told):
    """A run that knows left from right by the track of entity 0, and the label set."""
    folder = tmp_path_factory.mktemp("mover")
    labels = toy.write_labels(folder / "labels", ["left", "right"])
    form = {"queries": "tracks", "context": "cls", "blocks": 1, "tracks": 12}
    settings = {"epochs": 12, "lr": 2e-3, "val_split": "none", "device": "cpu", "batch_size": 16}
    train(told, labels, folder / "run", make_settings({**form, **settings}))
    return folder / "run", labels


def test_what_a_model_of_order_hangs_on(mover, told):
    run, labels = mover
    result = evaluate(run, told, labels, device="cpu", sensitivity=True)
    found = result["sensitivity"]
    assert found["as_is"] == result["top1"] >= 0.9
    assert found["reversed"]["top1"] <= 0.1 and found["reversed"]["mcnemar_p"] < 0.01
    assert found["reversed"]["top1"] < found["shuffled"]["top1"] < found["as_is"]
    opened = open_all(run, told, labels, "cpu")
    samples = select(opened.alignments, split_videos(opened.alignments, "test"), opened.labels).samples
    scenes = aligned_to(np.arange(1, 22), opened.alignments.entities.embeddings)
    by_hand = score(opened, samples, change=scenes)
    assert found["scenes"]["top1"] == topk_accuracy(by_hand.logits, by_hand.truth, 1)
    assert found["scenes"]["entities"] == 21
    assert found["scenes"]["change"] == pytest.approx(found["scenes"]["top1"] - found["as_is"])
    assert found["objects"] == {
        **found["objects"],
        "entities": 1,
        "kinds": ["object", "animal", "food", "plant"],
    }
    plain = evaluate(run, told, labels, device="cpu")
    assert "sensitivity" not in plain and plain["calibration"] == result["calibration"]
    assert plain["cost"]["parameters"]["total"] > 0 and plain["cost"]["views"] == 1
    backward = evaluate(run, told, labels, device="cpu", reverse_time=True)
    assert backward["top1"] == found["reversed"]["top1"]


def test_drawn_orders_are_permutations_and_never_the_order_itself():
    for frames in (1, 2, 3, 8):
        orders = drawn_orders(frames)
        assert all(sorted(order) == list(range(frames)) for order in orders)
        assert frames == 1 or list(range(frames)) not in orders
        assert orders == drawn_orders(frames)


def test_frames_in_another_order_keep_the_clock(learnable):
    alignments = open_alignments(learnable)
    dataset = VideoDataset(alignments, [Sample(alignments.plan[0].video_id, 0)])
    (batch,) = dataset.batches([0], 1)
    order = [3, 0, 5, 1, 2, 4]
    moved = batch.in_order(order)
    assert torch.equal(moved.topk_entity, batch.topk_entity[:, order])
    assert torch.equal(moved.times, batch.times) and torch.equal(moved.label, batch.label)
    back = moved.in_order(np.argsort(order).tolist())
    assert torch.equal(back.embeddings, batch.embeddings) and torch.equal(back.mask, batch.mask)
    assert torch.equal(batch.reversed().geometry, batch.geometry.flip(1))


def test_aligning_to_some_entities_is_the_nearest_of_them(learnable):
    alignments = open_alignments(learnable)
    dataset = VideoDataset(alignments, [Sample(v.video_id, 0) for v in alignments.plan[:3]])
    (batch,) = dataset.batches([0, 1, 2], 3)
    batch = batch.to(torch.device("cpu"))
    ids = np.array([2, 5, 11, 17])
    table = alignments.entities.embeddings
    again = aligned_to(ids, table)(batch)
    cosine = batch.embeddings.numpy() @ table[ids].T
    assert torch.equal(again.topk_entity[..., 0], torch.from_numpy(ids[cosine.argmax(-1)]))
    np.testing.assert_allclose(again.topk_score[..., 0], cosine.max(-1), atol=1e-6)
    # All entities are no restriction: the cached alignment comes back.
    everything = aligned_to(np.arange(len(table)), table)(batch)
    same = (everything.topk_entity[..., 0] == batch.topk_entity[..., 0])[batch.mask]
    assert same.float().mean() > 0.99


def test_what_cannot_be_measured_is_said(told, learnable):
    with_kinds, without = open_alignments(told), open_alignments(learnable)
    tracks, learned = (make_settings({"queries": q}).model for q in ("tracks", "learned"))
    assert entities_of(with_kinds, tracks, ("scene",))[1] == ""
    assert "reads no entities" in entities_of(with_kinds, learned, ("scene",))[1]
    assert "does not tell the kinds" in entities_of(without, tracks, ("scene",))[1]
    assert "no entity of kind food or plant" in entities_of(with_kinds, tracks, ("food", "plant"))[1]
    thin = replace(with_kinds, manifest={**with_kinds.manifest, "config": {"store": "topk", "top_k": 3}})
    assert "keep no embeddings of regions" in entities_of(thin, tracks, ("scene",))[1]
    labels = make_settings({"entities": "labels", "align": "cls", "context": "cls"}).model
    assert not labels.reads_entities and tracks.reads_entities and not learned.reads_entities
    found = measure_sensitivity(without, tracks, lambda change: np.array([True, False]))
    assert isinstance(found["scenes"], str) and found["reversed"]["change"] == 0
