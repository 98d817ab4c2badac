"""Videos in several views: one is drawn to train on, all are averaged to evaluate, and a video counts once."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from adapter.alignments import open_alignments
from adapter.config import AdapterError, make_settings
from adapter.dataset import Sample, VideoDataset
from adapter.evaluate import evaluate, open_all, predict, score
from adapter.explain import explain
from adapter.losses import average_views
from adapter.train import train

VIEWS = 3


@pytest.fixture(scope="module")
def videos(toy):
    return toy.world.learnable(8)


@pytest.fixture(scope="module")
def several(tmp_path_factory, toy, videos) -> Path:
    """48 videos in three views."""
    return toy.write_alignments(tmp_path_factory.mktemp("views") / "several", videos, views=VIEWS)


@pytest.fixture(scope="module")
def alone(tmp_path_factory, toy, videos) -> list[Path]:
    """Each of the three views as if it were the only one, in folders of the first version."""
    root = tmp_path_factory.mktemp("alone")
    return [
        toy.write_alignments(root / str(view), [toy.seen(video, view) for video in videos])
        for view in range(VIEWS)
    ]


def settings(**options):
    return make_settings({"blocks": 1, "epochs": 2, "batch_size": 8, "device": "cpu", **options})


@pytest.fixture(scope="module")
def run(tmp_path_factory, several, label_set) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    train(several, label_set, out, settings())
    return out


def softmax(logits):
    weights = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True)


def test_a_view_is_what_it_would_be_alone(several, alone, videos):
    opened = open_alignments(several)
    assert opened.views == VIEWS
    for view, folder in enumerate(alone):
        single = open_alignments(folder)
        assert single.views == 1
        for name in (videos[0].video_id, videos[-1].video_id):
            (a,), (b,) = opened.read([name], view), single.read([name])
            for field in ("embeddings", "topk_entity", "geometry", "times", "mask"):
                np.testing.assert_array_equal(getattr(a, field), getattr(b, field))


def test_a_view_that_is_missing_is_damage(tmp_path, toy, videos):
    folder = toy.write_alignments(tmp_path / "two", videos[:4], views=2)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["views"].append({"clip": 2})
    (folder / "manifest.json").write_text(json.dumps(manifest))
    opened = open_alignments(folder)
    with pytest.raises(AdapterError, match="lacks a frame's cls row .*aligner verify"):
        list(opened.read([videos[0].video_id], 2))


@given(
    hnp.arrays(np.float32, (4, 3, 5), elements=st.integers(-30, 30).map(float)),
    st.integers(1, 4),
)
def test_the_average_is_that_of_the_probabilities(logits, views):
    found = average_views(torch.from_numpy(logits[:views])).numpy()
    wanted = np.mean([softmax(view) for view in logits[:views]], axis=0)
    np.testing.assert_allclose(softmax(found), wanted, atol=1e-5)
    assert views > 1 or np.array_equal(found, logits[0])


def test_the_average_by_hand():
    """One view is sure of the first class, two lean to the second: 0.9 + 0.4 + 0.4 beats 0.1 + 0.6 + 0.6."""
    probabilities = torch.tensor([[[0.9, 0.1]], [[0.4, 0.6]], [[0.4, 0.6]]])
    found = average_views(probabilities.log())
    torch.testing.assert_close(found.exp(), torch.tensor([[1.7 / 3, 1.3 / 3]]))


def test_scores_are_the_mean_over_views_of_what_each_says(run, several, alone, label_set):
    whole = open_all(run, several, label_set, "cpu")
    samples = [Sample(video.video_id, 0) for video in whole.alignments.plan]
    part = np.array([True, True, False, True, False, True])
    for candidates in (None, part):
        found = score(whole, samples, candidates=candidates)
        each = []
        for folder in alone:
            logits = score(open_all(run, folder, label_set, "cpu"), samples).logits
            each.append(softmax(logits if candidates is None else np.where(part, logits, -np.inf)))
        np.testing.assert_allclose(softmax(found.logits), np.mean(each, axis=0), atol=1e-5)
        again = score(whole, samples[::-1], candidates=candidates)
        np.testing.assert_array_equal(again.logits[::-1], found.logits)
    assert np.abs(each[0] - each[1]).max() > 0.01


def test_every_video_counts_once(run, several, label_set, tmp_path, videos):
    result = evaluate(run, several, label_set, "test")
    tests = [video.video_id for video in videos if video.split == "test"]
    assert (result["n"], result["views"], result["counts"]["scored"]) == (len(tests), VIEWS, len(tests))
    assert predict(run, several, label_set, tmp_path / "p.parquet", device="cpu")["predicted"] == len(videos)
    rows = pq.read_table(tmp_path / "p.parquet").to_pylist()
    assert sorted(row["video_id"] for row in rows) == sorted(video.video_id for video in videos)


def test_several_views_give_the_same_files_whatever_the_generators_say(run, several, label_set):
    """No view is drawn when a video is scored: no random number reaches a figure or a prediction."""
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - whoever might use it
        evaluate(run, several, label_set, "test", name="again", device="cpu")
        found.append(
            [(run / f"{file}").read_bytes() for file in ("eval-again.json", "predictions-again.parquet")]
        )
    assert found[0] == found[1]


def test_the_first_view_is_explained(run, several, alone, label_set, videos):
    ids = [videos[0].video_id]
    whole, first = (explain(run, folder, label_set, ids, device="cpu") for folder in (several, alone[0]))
    assert whole == first


def test_one_view_an_epoch_is_drawn_by_seed_epoch_and_video(several):
    opened = open_alignments(several)
    samples = [Sample(video.video_id, 0) for video in opened.plan]

    def drawn(seed, epoch, chosen=samples):
        dataset = VideoDataset(opened, chosen)
        dataset.draw_views(seed, epoch)
        return {sample.video_id: sample.view for sample in dataset.samples}

    epochs = [drawn(0, epoch) for epoch in range(30)]
    assert epochs[3] == drawn(0, 3) != drawn(1, 3)
    few = samples[7:20:3][::-1]
    assert drawn(0, 3, few) == {sample.video_id: epochs[3][sample.video_id] for sample in few}
    for video in epochs[0]:
        assert {epoch[video] for epoch in epochs} == set(range(VIEWS))
    counts = np.bincount([view for epoch in epochs for view in epoch.values()])
    assert np.abs(counts / counts.sum() - 1 / VIEWS).max() < 0.05


def test_what_is_drawn_is_what_is_read(several):
    opened = open_alignments(several)
    dataset = VideoDataset(opened, [Sample(video.video_id, 0) for video in opened.plan[:6]])
    for epoch in range(3):
        dataset.draw_views(0, epoch)
        for place, sample in enumerate(dataset.samples):
            (wanted,) = opened.read([sample.video_id], sample.view)
            np.testing.assert_array_equal(dataset[place][0].embeddings, wanted.embeddings)


def test_all_views_may_be_trained_on(several, label_set, tmp_path, run):
    report = train(several, label_set, tmp_path / "all", settings(views="all", epochs=1))
    rows = pq.read_table(tmp_path / "all" / "videos.parquet").to_pylist()
    assert rows == pq.read_table(run / "videos.parquet").to_pylist()
    trained = [row for row in rows if row["role"] == "train"]
    assert report.counts["train"]["used"] == len(trained) == len({row["video_id"] for row in trained})
    weights = (tmp_path / "all" / "last.safetensors").read_bytes()
    assert weights != (run / "last.safetensors").read_bytes()


def test_a_single_view_changes_nothing(toy, videos, alone, label_set, tmp_path):
    """A folder that tells its only view is read as one of the first version, to the last bit."""
    told = toy.write_alignments(tmp_path / "told", videos, views=1)
    assert open_alignments(told).views == 1
    runs = []
    for name, folder, views in (("a", told, "one"), ("b", told, "all"), ("c", alone[0], "one")):
        train(folder, label_set, tmp_path / name, settings(views=views))
        result = evaluate(tmp_path / name, folder, label_set, "test", device="cpu")
        weights = (tmp_path / name / "last.safetensors").read_bytes()
        runs.append((weights, result["per_class"], result["top5"]))
    assert runs[0] == runs[1] == runs[2]
