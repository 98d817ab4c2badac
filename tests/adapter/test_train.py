import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from adapter.alignments import open_alignments
from adapter.artifact import open_run
from adapter.checkpoint import load_model
from adapter.config import AdapterError, TrainConfig, TrainingStopped, make_settings
from adapter.evaluate import evaluate
from adapter.labels import open_labels
from adapter.model import ModelConfig, Shape, build_model
from adapter.train import (
    Training,
    build_optimizer,
    choose_device,
    learning_rate,
    prepare,
    seeded,
    train,
)

QUICK = {"blocks": 1, "batch_size": 16, "lr": 2e-3, "device": "cpu"}


def run(alignments, labels, out, **values):
    return train(alignments, labels, out, make_settings({**QUICK, **values}))


@pytest.mark.parametrize("name", ["frame_dropout", "region_dropout", "frame_jitter", "mixup"])
def test_every_augmentation_reaches_the_weights(tmp_path, learnable, label_set, name):
    run(learnable, label_set, tmp_path / "plain", epochs=1)
    run(learnable, label_set, tmp_path / "changed", epochs=1, **{name: 0.5})
    weights = [(tmp_path / run / "last.safetensors").read_bytes() for run in ("plain", "changed")]
    assert weights[0] != weights[1]
    if name != "mixup":
        with pytest.raises(AdapterError, match=f"{name} is 1.5; it must be between 0 and 1"):
            make_settings({name: 1.5})


@pytest.mark.parametrize(
    "values", [{}, {"noise": "always", "learn_scale": True}, {"queries": "tracks"}], ids=str
)
def test_one_seed_gives_one_run_bit_for_bit(tmp_path, learnable, label_set, values):
    reports = [run(learnable, label_set, tmp_path / name, epochs=2, seed=3, **values) for name in "ab"]
    for file in ("model.safetensors", "last.safetensors", "config.json", "videos.parquet"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert (
        open_run(tmp_path / "a").manifest["fingerprint"] == open_run(tmp_path / "b").manifest["fingerprint"]
    )
    histories = [[{k: v for k, v in line.items() if k != "seconds"} for line in r.history] for r in reports]
    assert histories[0] == histories[1]
    run(learnable, label_set, tmp_path / "c", epochs=2, seed=4, **values)
    assert (tmp_path / "a/model.safetensors").read_bytes() != (tmp_path / "c/model.safetensors").read_bytes()


def test_training_leaves_the_callers_generator_alone(tmp_path, learnable, label_set):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    run(learnable, label_set, tmp_path / "r", epochs=1)
    assert torch.equal(torch.rand(3), expected)


def test_training_beats_chance_by_far(learnable, label_set, trained):
    # Six classes: chance is 17 %; the zero-shot baseline knows nothing, by construction of the labels.
    assert evaluate(trained, learnable, label_set, device="cpu")["top1"] >= 0.9


@pytest.mark.parametrize(
    "form",
    [{"queries": "aligned", "context": "regions"}, {"queries": "tracks", "context": "cls"}],
    ids=str,
)
def test_temporal_order_is_learnable_and_reversed_videos_change_class(tmp_path, toy, form):
    alignments = toy.write_alignments(tmp_path / "a", toy.world.directions(160))
    labels = toy.write_labels(tmp_path / "l", ["left", "right"])
    run(alignments, labels, tmp_path / "r", epochs=10, val_split="none", **form)
    forward, backward = (
        evaluate(tmp_path / "r", alignments, labels, name=str(flag), reverse_time=flag, device="cpu")["top1"]
        for flag in (False, True)
    )
    assert forward >= 0.9 and backward <= 0.1


def test_the_best_validation_epoch_is_published(trained, learnable, label_set):
    run = open_run(trained)
    history = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    key = lambda line: (line["val_top1"], -line["val_loss"])  # noqa: E731
    assert max(history, key=key)["epoch"] == run.manifest["best_epoch"]
    got = evaluate(trained, learnable, label_set, split="val", name="val-again", device="cpu")
    assert got["top1"] == run.manifest["best_val_top1"]
    assert got["n_trained_on"] == got["n"] == 18


def test_the_test_split_is_never_read(tmp_path, toy, label_set):
    videos = toy.world.learnable()
    whole = toy.write_alignments(tmp_path / "whole", videos)
    opened = open_alignments(whole)
    data = prepare(opened, open_labels(label_set), TrainConfig())
    used = {sample.video_id for part in (data.train, data.val) for sample in part.samples}
    assert used == {video.video_id for video in videos if video.split != "test"}


def test_classes_are_those_with_training_videos_and_everything_is_counted(tmp_path, toy):
    videos = [v for v in toy.world.learnable(8) if not (v.label == "YoYo" and v.split == "train")]
    videos[0].failed, videos[1].label = True, "unheard of"
    alignments = toy.write_alignments(tmp_path / "a", videos)
    labels = toy.write_labels(tmp_path / "l", ["never filmed", *toy.classes])
    report = run(alignments, labels, tmp_path / "r", epochs=0)
    assert open_run(tmp_path / "r").train_labels == list(toy.classes[:5])
    train_counts, val_counts = report.counts["train"], report.counts["val"]
    assert train_counts == {
        "planned": 20, "ok": 18, "failed": 1, "unlabelled": 0, "unknown_label": 1,
        "beyond_shots": 0, "used": 18,
    }  # fmt: skip
    assert val_counts["class_not_in_training"] == 2 and val_counts["used"] == 10
    assert report.counts["labels_without_training_videos"] == 2
    assert report.counts["unknown_labels"] == ["unheard of"]


def test_few_shot_uses_k_videos_a_class_for_training_and_no_more_for_validation(
    tmp_path, learnable, label_set
):
    report = run(learnable, label_set, tmp_path / "r", epochs=0, shots=2)
    assert report.counts["train"]["used"] == 12 and report.counts["val"]["used"] == 12
    assert report.counts["train"]["beyond_shots"] == 24


@pytest.mark.parametrize(
    "form",
    [{"whiten_labels": True, "queries": "tracks"}, {"model": "adapt_then_align"}, {"residual": "cls"}],
    ids=str,
)
def test_a_run_is_loaded_with_the_same_outputs(tmp_path, learnable, label_set, form):
    run(learnable, label_set, tmp_path / "r", epochs=1, val_split="none", val_fraction=0.0, **form)
    run_ = open_run(tmp_path / "r")
    one, two = (load_model(run_, torch.device("cpu")) for _ in range(2))
    assert all(
        torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    )
    if form.get("whiten_labels"):
        embeddings = torch.from_numpy(open_labels(label_set).embeddings)
        torch.testing.assert_close(one.whitening.mean, embeddings.mean(0))
        assert not torch.equal(one.whitening.matrix, torch.eye(32))


def test_mean_pool_is_published_without_training(tmp_path, learnable, label_set):
    report = run(learnable, label_set, tmp_path / "r", model="mean_pool")
    assert report.parameters == 0 and report.history == [] and report.best_epoch == 0
    assert 0 <= evaluate(tmp_path / "r", learnable, label_set, device="cpu")["top1"] <= 0.5


def test_learning_rate_warms_up_then_falls_to_its_share():
    config = TrainConfig(epochs=10, warmup=2.0, min_lr=0.01)
    factor = learning_rate(config, steps_per_epoch=5)
    rates = [factor(step) for step in range(51)]
    assert rates[:11] == sorted(rates[:11]) and math.isclose(rates[10], 1.0)
    assert rates[10:] == sorted(rates[10:], reverse=True) and math.isclose(rates[50], 0.01)
    assert math.isclose(rates[30], (1 + 0.01) / 2)


def test_vectors_and_scalars_are_not_decayed():
    model = build_model(ModelConfig(blocks=1, learn_scale=True), Shape(16, 4))
    groups = build_optimizer(model, TrainConfig(weight_decay=0.5)).param_groups
    assert {p.ndim for p in groups[0]["params"]} >= {2} and min(p.ndim for p in groups[0]["params"]) == 2
    assert max(p.ndim for p in groups[1]["params"]) == 1
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0]
    assert sum(len(group["params"]) for group in groups) == sum(p.requires_grad for p in model.parameters())


def test_devices_and_threads():
    with pytest.raises(AdapterError, match="--device qpu is unknown"):
        choose_device("qpu")
    before = torch.get_num_threads()
    with seeded(0, threads=1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_a_diverging_loss_is_an_error_not_a_run(tmp_path, learnable, label_set):
    with pytest.raises(AdapterError, match="the loss became .* try a lower --lr"):
        run(learnable, label_set, tmp_path / "r", epochs=3, lr=1e30, warmup=0.0, grad_clip=0.0)
    assert not (tmp_path / "r").exists()


def test_a_model_that_cannot_be_built_touches_no_folder(tmp_path, learnable, label_set):
    with pytest.raises(AdapterError, match="heads must divide the width"):
        run(learnable, label_set, tmp_path / "r", width=33)
    assert not (tmp_path / "r").exists()
    run(learnable, label_set, tmp_path / "r", epochs=0)
    with pytest.raises(AdapterError, match="heads must divide the width"):
        train(learnable, label_set, tmp_path / "r", make_settings({**QUICK, "width": 33}), force=True)
    assert open_run(tmp_path / "r").config["width"] == 0


def test_a_class_with_one_video_trains_and_weighs_as_much_as_the_others(tmp_path, toy):
    videos = [v for v in toy.world.learnable(8) if v.split == "train"]
    lonely = [v for v in videos if v.label != "YoYo"] + [v for v in videos if v.label == "YoYo"][:1]
    alignments = toy.write_alignments(tmp_path / "a", [toy.replace(v, split=None) for v in lonely])
    labels = toy.write_labels(tmp_path / "l", toy.classes)
    report = run(alignments, labels, tmp_path / "r", epochs=1, class_weights="balanced", val_fraction=0.5)
    assert open_run(tmp_path / "r").train_labels == list(toy.classes)
    assert report.counts["train"]["used"] == 11 and report.counts["val"]["used"] == 10


def test_numbers_that_are_not_finite_are_told_apart_from_a_high_rate(tmp_path, toy, label_set):
    alignments = toy.write_alignments(tmp_path / "a", toy.world.learnable(4))
    shard = alignments / "shard-00001.parquet"
    with pq.ParquetFile(shard) as file:
        groups = [file.read_row_group(i) for i in range(file.num_row_groups)]
    nan = np.full(toy.dim, np.nan, "<f2").tobytes()
    for i, table in enumerate(groups):
        column = table.schema.get_field_index("embedding")
        spoiled = pa.array([nan] * len(table), table["embedding"].type)
        groups[i] = table.set_column(column, "embedding", spoiled)
    with pq.ParquetWriter(shard, groups[0].schema) as writer:
        for table in groups:
            writer.write_table(table)
    with pytest.raises(AdapterError, match="shard 1 of .* has embeddings that are not finite"):
        run(alignments, label_set, tmp_path / "r", epochs=1)
    assert not (tmp_path / "r").exists()


def test_averages_are_validated_beside_the_weights_and_the_better_is_published(
    tmp_path, learnable, label_set
):
    form = {"residual": "cls", "epochs": 4, "ema": 0.9, "batch_size": 8}
    report = run(learnable, label_set, tmp_path / "whole", **form)
    scored = [
        (line[f"{kind}val_top1"], -line[f"{kind}val_loss"])
        for line in report.history
        for kind in ("", "ema_")
    ]
    manifest = open_run(tmp_path / "whole").manifest
    best = scored.index(max(scored))
    assert manifest["best_epoch"] == best // 2 + 1 and manifest["best_of"] == ("weights", "ema")[best % 2]
    assert manifest["best_val_top1"] == scored[best][0]
    # Half way back to the start, which is zero-shot CLIP; no share of what was learned is zero-shot CLIP itself.
    tops = {}
    for alpha in (0.5, 0.0):
        out = tmp_path / str(alpha)
        tops[alpha] = run(learnable, label_set, out, wise_alpha=alpha, **form).best_val_top1
        assert open_run(out).manifest["val_top1_before_averaging"] == scored[best][0]
        again = evaluate(out, learnable, label_set, split="val", device="cpu")
        assert again["top1"] == tops[alpha]
    zero_shot = run(learnable, label_set, tmp_path / "zero", model="mean_pool")
    assert tops[0.0] == zero_shot.best_val_top1


def test_loss_scaling_changes_no_bit_and_goes_on_after_a_stop(tmp_path, learnable, label_set, monkeypatch):
    """Scales are powers of two, so float32 gradients come back as they were; the state keeps the scale."""
    settings = make_settings({**QUICK, "batch_size": 8, "epochs": 3, "save_every": 1, "grad_clip": 0.1})
    train(learnable, label_set, tmp_path / "plain", settings)
    scalers = []

    def scaler(device, kind):
        scalers.append(torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=4))
        return scalers[-1]

    monkeypatch.setattr("adapter.train.loss_scaler", scaler)
    original = Training.train_step

    def stopped(self, batches, videos, asked):
        return original(self, batches, videos, lambda: self.position.total_steps == 8)

    monkeypatch.setattr(Training, "train_step", stopped)
    with pytest.raises(TrainingStopped):
        train(learnable, label_set, tmp_path / "scaled", settings)
    monkeypatch.setattr(Training, "train_step", original)
    train(learnable, label_set, tmp_path / "scaled", settings)
    assert [scaler.get_scale() for scaler in scalers] == [2.0**12, 2.0**13]
    weights = [(tmp_path / name / "last.safetensors").read_bytes() for name in ("plain", "scaled")]
    assert weights[0] == weights[1]


def test_an_overflow_leaves_the_step_out_and_halves_the_scale(tmp_path, learnable, label_set, monkeypatch):
    """At a scale that float32 cannot hold every gradient is infinite, and no weight moves."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    monkeypatch.setattr("adapter.train.loss_scaler", lambda device, kind: scaler)
    for name, lr in (("still", 0.0), ("skipped", 2e-3)):
        run(learnable, label_set, tmp_path / name, epochs=1, batch_size=36, lr=lr)
    assert scaler.get_scale() == 2.0**125
    weights = [(tmp_path / name / "last.safetensors").read_bytes() for name in ("still", "skipped")]
    assert weights[0] == weights[1]


def test_float16_needs_cuda(tmp_path, learnable, label_set):
    with pytest.raises(
        AdapterError, match="--precision fp16 needs a CUDA device and this training has cpu; use"
    ):
        train(learnable, label_set, tmp_path / "run", make_settings({**QUICK, "precision": "fp16"}))
    assert not (tmp_path / "run").exists()
