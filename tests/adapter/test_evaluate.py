import json

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from adapter.artifact import PREDICTIONS_SCHEMA
from adapter.config import AdapterError, make_settings
from adapter.dataset import select
from adapter.evaluate import (
    Scores,
    bootstrap_interval,
    confusion_pairs,
    evaluate,
    harmonic_mean,
    mean_class_accuracy,
    open_all,
    predict,
    predictions_table,
    ranks,
    score,
    summarise,
    topk_accuracy,
)
from adapter.labels import open_labels
from adapter.train import train

LOGITS = np.array([[3, 1, 2, 0], [0, 3, 2, 1], [1, 2, 3, 0], [3, 2, 1, 0], [2, 2, 2, 2]], np.float32)
TRUTH = np.array([0, 2, 1, 3, 1])


def test_metrics_by_hand():
    assert ranks(LOGITS, TRUTH).tolist() == [0, 1, 1, 3, 1]
    assert topk_accuracy(LOGITS, TRUTH, 1) == 0.2
    assert topk_accuracy(LOGITS, TRUTH, 2) == 0.8
    assert topk_accuracy(LOGITS, TRUTH, 4) == 1.0
    assert mean_class_accuracy(LOGITS, TRUTH) == 0.25
    assert confusion_pairs(LOGITS, TRUTH, "abcd")[0] == {"label": "b", "predicted": "a", "n": 1}
    assert harmonic_mean(0.5, 0.25) == pytest.approx(1 / 3)
    assert harmonic_mean(0.0, 0.0) == 0


@given(
    hnp.arrays(np.float32, (7, 5), elements=st.integers(0, 3).map(float)),
    hnp.arrays(np.int64, 7, elements=st.integers(0, 4)),
)
def test_ranks_agree_with_a_stable_sort(logits, truth):
    order = np.argsort(-logits, axis=1, kind="stable")
    assert ranks(logits, truth).tolist() == [list(row).index(t) for row, t in zip(order, truth, strict=True)]


def test_bootstrap_interval_is_the_binomials():
    low, high = bootstrap_interval(np.arange(400) % 4 == 0, draws=20_000)
    spread = 1.96 * (0.25 * 0.75 / 400) ** 0.5
    assert abs(low - (0.25 - spread)) < 0.005 and abs(high - (0.25 + spread)) < 0.005
    assert bootstrap_interval(np.ones(5, bool)) == [1.0, 1.0]


def test_seen_and_unseen_by_hand():
    logits = np.array([[5, 0, 4, 0], [0, 5, 0, 0], [0, 4, 3, 0], [0, 0, 0, 5]], np.float32)
    scores = Scores(tuple("wxyz"), np.array([0, 1, 2, 3]), logits)
    seen = np.array([True, True, False, False])
    result = summarise(scores, "abcd", seen, np.ones(4, bool))
    assert result["seen"]["top1"] == 1.0 and result["unseen"]["top1"] == 0.5
    # Among the unseen labels alone the third video is right.
    assert result["unseen"]["top1_among_own"] == 1.0
    assert result["harmonic_mean"] == pytest.approx(2 / 3)
    assert result["per_class"][2] == {"label": "c", "seen": False, "n": 1, "top1": 0.0}


def test_predictions_by_hand():
    scores = Scores(
        ("v", "w"), np.array([1, -1]), np.log(np.array([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1]], np.float32))
    )
    table = predictions_table(scores, "abc", k=2)
    assert table.schema == PREDICTIONS_SCHEMA
    first, second = table.to_pylist()
    assert first["topk_label"] == ["b", "c"] and first["correct"] is True
    np.testing.assert_allclose(first["topk_prob"], [0.5, 0.3], rtol=1e-5)
    assert second["label"] is None and second["correct"] is None and second["predicted"] == "a"


def test_every_video_is_scored_once_whatever_the_order(trained, learnable, label_set):
    opened = open_all(trained, learnable, label_set, "cpu")
    samples = select(opened.alignments, opened.alignments.plan, opened.labels).samples
    whole = score(opened, samples)
    assert whole.video_ids == tuple(sample.video_id for sample in samples)
    assert len(set(whole.video_ids)) == 72
    back = score(opened, samples[::-1])
    np.testing.assert_array_equal(back.logits[::-1], whole.logits)
    np.testing.assert_array_equal(back.truth[::-1], whole.truth)
    # Alone a video is multiplied in other shapes: other last bits, no more.
    alone = np.concatenate([score(opened, [sample]).logits for sample in samples[:5]])
    np.testing.assert_allclose(alone, whole.logits[:5], atol=1e-3)


def test_blending_goes_from_the_run_to_zero_shot(tmp_path, trained, learnable, label_set):
    train(learnable, label_set, tmp_path / "zero", make_settings({"model": "mean_pool", "device": "cpu"}))
    run, zero = (open_all(path, learnable, label_set, "cpu") for path in (trained, tmp_path / "zero"))
    samples = select(run.alignments, run.alignments.plan, run.labels).samples
    best = lambda opened, blend: score(opened, samples, blend=blend).logits.argmax(1)  # noqa: E731
    np.testing.assert_array_equal(best(run, 1.0), best(zero, 0.0))
    assert (best(run, 0.0) != best(zero, 0.0)).any()
    with pytest.raises(AdapterError, match="--blend is 1.5"):
        score(run, samples, blend=1.5)


def test_evaluation_is_stored_and_counts_everything(tmp_path, toy, trained, label_set):
    videos = [video for video in toy.world.learnable() if video.split == "test"]
    videos[0].failed, videos[1].label, videos[2].label = True, None, "unheard of"
    alignments = toy.write_alignments(tmp_path / "a", videos)
    result = evaluate(trained, alignments, label_set, name="counted", device="cpu")
    assert result["counts"] == {
        "planned": 18, "ok": 15, "failed": 1, "unlabelled": 1, "unknown_label": 1,
        "not_a_candidate": 0, "scored": 15,
    }  # fmt: skip
    assert result["n"] == 15 and result["n_trained_on"] == 0
    assert result["top1_failures_wrong"] == pytest.approx(result["top1"] * 15 / 16)
    assert json.loads((trained / "eval-counted.json").read_text()) == result
    table = pq.read_table(trained / "predictions-counted.parquet")
    assert sorted(table["video_id"].to_pylist()) == sorted(v.video_id for v in videos[3:])
    assert np.mean(table["correct"].to_pylist()) == pytest.approx(result["top1"])


def test_without_split_names_every_video_is_scored_and_the_trained_on_counted(tmp_path, toy, label_set):
    videos = [toy.replace(video, split=None) for video in toy.world.learnable(4)]
    alignments = toy.write_alignments(tmp_path / "a", videos)
    settings = make_settings({"model": "mean_pool", "device": "cpu", "val_fraction": 0.25})
    train(alignments, label_set, tmp_path / "r", settings)
    result = evaluate(tmp_path / "r", alignments, label_set, device="cpu")
    assert (result["split"], result["name"], result["n"], result["n_trained_on"]) == ("all", "all", 24, 24)
    # Where some video names a split, a missing test split stays an error: no silent change of what is scored.
    videos[0].split = "train"
    named = toy.write_alignments(tmp_path / "b", videos)
    with pytest.raises(AdapterError, match=r"--split test: .* has no such split \(it has train\)"):
        evaluate(tmp_path / "r", named, label_set, device="cpu")


def test_generalised_zero_shot_and_candidates(tmp_path, toy, trained):
    videos = [v for v in toy.world.learnable() if v.split == "test"]
    for video in videos:
        video.label = "unseen thing" if video.label == "YoYo" else video.label
    alignments = toy.write_alignments(tmp_path / "a", videos)
    labels = toy.write_labels(tmp_path / "l", ["apply eye makeup", *toy.classes[1:], "unseen thing"])
    whole = evaluate(trained, alignments, labels, name="gzs", device="cpu")
    # The first label is spelled in another way than in training; it is the same class.
    assert whole["seen"]["n"] == 15 and whole["seen"]["classes"] == 6 and whole["unseen"]["n"] == 3
    assert whole["harmonic_mean"] == harmonic_mean(whole["seen"]["top1"], whole["unseen"]["top1"])
    unseen = evaluate(trained, alignments, labels, name="u", candidates="unseen", device="cpu")
    assert (unseen["n"], unseen["classes"], unseen["top1"]) == (3, 1, 1.0)
    assert unseen["counts"]["not_a_candidate"] == 15
    table = pq.read_table(trained / "predictions-u.parquet").to_pylist()
    assert table[0]["topk_prob"][0] == 1.0
    with pytest.raises(AdapterError, match="--candidates is 'some'; it must be one of all, seen, unseen"):
        evaluate(trained, alignments, labels, candidates="some", device="cpu")


def test_labels_in_another_order_and_without_a_class(tmp_path, toy, trained, learnable, label_set):
    """Classes are matched by name: their order is nothing, and videos of a class that is gone are counted."""
    embeddings = open_labels(label_set).embeddings
    result = {"as it was": evaluate(trained, learnable, label_set, name="order", device="cpu")}
    for name, kept in (("turned", [3, 0, 5, 1, 4, 2]), ("without", [3, 0, 5, 1, 4])):
        names = [toy.classes[c] for c in kept]
        labels = toy.write_labels(tmp_path / name, names, embeddings=embeddings[kept])
        result[name] = evaluate(trained, learnable, labels, name="order", device="cpu")
    per_class = [
        sorted(result[name]["per_class"], key=lambda row: row["label"]) for name in ("as it was", "turned")
    ]
    assert per_class[0] == per_class[1] and len(per_class[0]) == 6
    assert result["turned"]["top1"] == result["as it was"]["top1"] > 0.8
    counts = result["without"]["counts"]
    assert (counts["unknown_label"], counts["scored"]) == (3, 15)
    assert result["without"]["unknown_labels"] == [toy.classes[2]]


def test_another_corpus_of_the_same_model_is_told(tmp_path, toy, trained, learnable, label_set):
    videos = [video for video in toy.world.learnable() if video.split == "test"]
    other = toy.write_alignments(tmp_path / "a", videos)
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["corpus"]["fingerprint"] = "d" * 64
    (other / "manifest.json").write_text(json.dumps(manifest))
    found = [evaluate(trained, path, label_set, name="c", device="cpu") for path in (learnable, other)]
    assert [result["same_corpus"] for result in found] == [True, False]


def test_predict_needs_no_labels_and_writes_three_formats(tmp_path, toy, trained, label_set):
    videos = toy.world.learnable(4)
    for video in videos:
        video.label = video.split = None
    videos[5].failed = True
    alignments = toy.write_alignments(tmp_path / "a", videos)
    files = [tmp_path / "out" / f"p{suffix}" for suffix in (".parquet", ".csv", ".json")]
    for file in files:
        counts = predict(trained, alignments, label_set, file, topk=2, device="cpu")
    assert counts == {"planned": 24, "predicted": 23, "failed": 1}
    rows = pq.read_table(files[0]).to_pylist()
    assert rows == json.loads(files[2].read_text())
    frame = pd.read_csv(files[1])
    assert frame["predicted"].tolist() == [row["predicted"] for row in rows]
    assert frame["topk_label"][0] == "|".join(rows[0]["topk_label"])
    assert np.mean([row["predicted"] == row["video_id"].split("/")[0] for row in rows]) > 0.8
    with pytest.raises(AdapterError, match="must end in .parquet, .csv or .json"):
        predict(trained, alignments, label_set, tmp_path / "p.txt", device="cpu")


def test_mismatches_are_refused(tmp_path, toy, trained, learnable, label_set):
    other = {**toy.model, "weights_sha256": "b" * 64}
    foreign_labels = toy.write_labels(tmp_path / "l", toy.classes, model=other)
    with pytest.raises(AdapterError, match="label set l was made with another model than run run"):
        evaluate(trained, learnable, foreign_labels)
    foreign = toy.write_alignments(tmp_path / "a", toy.world.learnable(2), model=other)
    with pytest.raises(AdapterError, match="alignments a were made with another model than run run"):
        evaluate(trained, foreign, label_set)
    manifest = json.loads((learnable / "manifest.json").read_text())
    shorter = toy.write_alignments(tmp_path / "b", toy.world.learnable(2))
    (shorter / "manifest.json").write_text(
        json.dumps({**json.loads((shorter / "manifest.json").read_text()), "frames": manifest["frames"] + 2})
    )
    command = "`aligner run --videos DIR --corpus DIR --model toy --pretrained none --frames 6 --out DIR`"
    with pytest.raises(AdapterError, match=f"have frames 8, run run expects 6; run {command}"):
        evaluate(trained, shorter, label_set)
    with pytest.raises(AdapterError, match="--name is 'a/b'"):
        evaluate(trained, learnable, label_set, name="a/b", device="cpu")
