import builtins
import json

import pytest

from adapter import tracking
from adapter.config import AdapterError, make_settings
from adapter.tracking import TRACKERS, Tracker
from adapter.train import train

QUICK = {"blocks": 1, "batch_size": 16, "epochs": 2, "device": "cpu"}


def numbers(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "epoch"} for line in lines]


def test_a_tracker_gets_every_line_of_the_metrics_once(tmp_path, learnable, label_set, monkeypatch):
    # The two-method protocol that TensorBoard and wandb are put behind.
    told = []

    class Recorder:
        def __init__(self, out, config, first_epoch):
            told.append((out, config["epochs"], first_epoch))

        def log(self, line):
            told.append(line)

        def close(self):
            told.append("closed")

    assert isinstance(Recorder(tmp_path, {"epochs": 0}, 1), Tracker)
    told.clear()
    monkeypatch.setitem(TRACKERS, "none", Recorder)
    report = train(learnable, label_set, tmp_path / "r", make_settings(QUICK))
    assert told == [(tmp_path / "r", 2, 1), *report.history, "closed"]


def test_tensorboard_holds_the_numbers_of_the_metrics(tmp_path, learnable, label_set):
    pytest.importorskip("tensorboard", reason="needs `pip install tensorboard`")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(learnable, label_set, tmp_path / "r", make_settings({**QUICK, "tracker": "tensorboard"}))
    events = EventAccumulator(str(tmp_path / "r"))
    events.Reload()
    expected = numbers(tmp_path / "r")
    assert set(events.Tags()["scalars"]) == set(expected[0])
    for name in expected[0]:
        found = {event.step: event.value for event in events.Scalars(name)}
        assert found == {i + 1: pytest.approx(line[name], rel=1e-6) for i, line in enumerate(expected)}
    # An event file does not make the folder foreign: --force may replace the run.
    train(learnable, label_set, tmp_path / "r", make_settings({**QUICK, "epochs": 0}), force=True)


def test_wandb_offline_takes_the_lines(tmp_path, learnable, label_set, monkeypatch):
    pytest.importorskip("wandb", reason="needs `pip install wandb`")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    train(learnable, label_set, tmp_path / "r", make_settings({**QUICK, "tracker": "wandb"}))
    (stored,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    assert b"val_top1" in stored.read_bytes()


@pytest.mark.parametrize(("kind", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_an_absent_package_is_named_with_the_line_that_installs_it(tmp_path, monkeypatch, kind, module):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == module:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(AdapterError, match=f"--tracker {kind} needs .*`pip install {kind}`"):
        tracking.TRACKERS[kind](tmp_path, {}, 1)
