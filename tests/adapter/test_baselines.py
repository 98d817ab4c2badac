import numpy as np
import pytest

from adapter.artifact import open_run
from adapter.baselines import NEIGHBOURS, UNKNOWN, Videos, fit_head, knn_heads, tip_heads
from adapter.config import AdapterError, make_settings
from adapter.evaluate import evaluate, open_all
from adapter.probe import PENALTIES
from adapter.train import train


def clouds(seed, n, classes=4, dim=8, width=0.4):
    """Unit points around class centres; texts that say nothing."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, dim))
    truth = np.arange(n) % classes
    z = centres[truth] + width * rng.normal(size=(n, dim))
    return Videos(z / np.linalg.norm(z, axis=1, keepdims=True), np.zeros((n, classes)), truth)


def angles(*degrees):
    return np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], axis=1)


def test_neighbours_vote_by_their_cosine():
    train = Videos(angles(0, 10, 90), np.zeros((3, 3)), np.array([2, 0, 0]))
    by_k = {head.choice["k"]: head.score(angles(0), np.zeros((1, 3)))[0] for head in knn_heads(train, 3)}
    # There are three videos: no head asks more, and class 1 gets no vote.
    assert sorted(by_k) == [1, 3]
    assert by_k[1].argmax() == 2 and np.exp(by_k[1][2]) == pytest.approx(1, abs=1e-5)
    weights = np.exp((np.cos(np.radians([0, 10, 90])) - 1) / 0.07)
    share = np.array([weights[1] + weights[2], 0, weights[0]]) / weights.sum()
    np.testing.assert_allclose(np.exp(by_k[3]), share + 1e-6, atol=1e-9)


def test_tip_adapter_is_its_formula():
    train = Videos(angles(0, 60), np.zeros((2, 3)), np.array([1, 2]))
    text = np.array([[3.0, 2.0, 1.0]])
    for head in tip_heads(train, 3):
        alpha, beta = head.choice["alpha"], head.choice["beta"]
        cached = alpha * np.array([0, np.exp(0), np.exp(-beta * (1 - 0.5))])
        np.testing.assert_allclose(head.score(angles(0), text)[0], text[0] + cached, atol=1e-9)


@pytest.mark.parametrize("name", ["probe", "knn", "tip"])
def test_a_head_learns_clouds(name):
    train, val, test = clouds(0, 40), clouds(1, 20), clouds(2, 100)
    head = fit_head(name, train, val, 4)
    assert (head.score(test.z, test.text).argmax(1) == test.truth).mean() > 0.95


def test_validation_decides_the_number_of_neighbours():
    """One stray video of class 1 sits where validation videos of class 0 do: the nearest alone is wrong."""
    train = Videos(angles(0, 1, 2, 3, 4, 1.5), np.zeros((6, 2)), np.array([0, 0, 0, 0, 0, 1]))
    val = Videos(angles(1.5, 1.5), np.zeros((2, 2)), np.array([0, 0]))
    flipped = Videos(val.z, val.text, np.array([1, 1]))
    assert fit_head("knn", train, val, 2).choice["k"] > 1
    assert fit_head("knn", train, flipped, 2).choice["k"] == 1


def test_without_validation_the_first_choice_stands():
    train = clouds(0, 40)
    nothing = Videos(np.zeros((0, 8)), np.zeros((0, 4)), np.zeros(0, np.int64))
    assert fit_head("knn", train, nothing, 4).choice == {"k": NEIGHBOURS[0]}
    assert fit_head("tip", train, nothing, 4).choice == {"alpha": 1.0, "beta": 5.5}
    assert fit_head("probe", train, nothing, 4).choice == {"penalty": PENALTIES[len(PENALTIES) // 2]}


def test_a_probe_never_chooses_a_class_without_videos():
    train = clouds(0, 40, classes=3)
    head = fit_head("probe", train, Videos(train.z, np.zeros((40, 5)), train.truth), 5)
    logits = head.score(train.z, np.zeros((40, 5)))
    assert (logits[:, 3:] == UNKNOWN).all() and (logits.argmax(1) == train.truth).all()


@pytest.fixture(scope="module")
def pooled(tmp_path_factory, learnable, label_set):
    out = tmp_path_factory.mktemp("pooled") / "run"
    train(learnable, label_set, out, make_settings({"model": "mean_pool", "device": "cpu"}))
    return out


@pytest.mark.parametrize("head", ["probe", "knn", "tip"])
def test_heads_of_a_run_find_what_texts_do_not_say(pooled, learnable, label_set, head):
    """The toy labels' embeddings are random, the classes show in the videos."""
    text = evaluate(pooled, learnable, label_set, device="cpu")
    found = evaluate(pooled, learnable, label_set, head=head, device="cpu")
    assert found["n"] == text["n"] == 18 and found["n_trained_on"] == 0
    assert found["name"] == f"test-{head}" and found["head_choice"] and text["head_choice"] == {}
    assert found["top1"] >= 0.9 > text["top1"]
    assert (pooled / f"predictions-test-{head}.parquet").is_file()


def test_a_head_needs_its_videos_and_their_classes(tmp_path, toy, pooled, learnable, label_set):
    unseen = toy.write_labels(tmp_path / "unseen", ["something", "else"])
    opened = open_all(pooled, learnable, label_set, "cpu")
    assert not set(open_run(pooled).videos("train")) & set(open_run(pooled).videos("val"))
    assert open_run(pooled).trained_on() <= set(opened.alignments.index)
    tests = [v for v in toy.world.learnable() if v.split == "test"]
    for video in tests:
        video.label = "something"
    other = toy.write_alignments(tmp_path / "other", tests)
    with pytest.raises(AdapterError, match="none of those has a label among the candidates"):
        evaluate(pooled, other, unseen, head="knn", device="cpu")
    again = toy.write_alignments(tmp_path / "again", [v for v in toy.world.learnable() if v.split == "test"])
    with pytest.raises(AdapterError, match=r"lack 36 of the videos that run run was trained on"):
        evaluate(pooled, again, label_set, head="knn", device="cpu")
    with pytest.raises(AdapterError, match=r"did you mean 'knn'"):
        evaluate(pooled, learnable, label_set, head="kn", device="cpu")
    with pytest.raises(AdapterError, match="text where --blend"):
        evaluate(pooled, learnable, label_set, head="knn", blend=0.5, device="cpu")
