"""A training that was killed or stopped goes on, and ends as if nothing had happened."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapter.artifact import is_unfinished, open_run, saved_states
from adapter.checkpoint import save_weights
from adapter.config import AdapterError, TrainingStopped, make_settings
from adapter.state import NOTE, differing, read_note
from adapter.train import train

DRIVER = Path(__file__).parent / "drive_trainings.py"
# 36 videos in batches of 8: five steps an epoch, the last of four videos; noise, dropout and an average besides.
SETTINGS = {"blocks": 1, "epochs": 3, "batch_size": 8, "save_every": 2, "ema": 0.9, "device": "cpu"}
SETTINGS |= {"mixup": 0.4, "frame_dropout": 0.1, "region_dropout": 0.1, "frame_jitter": 0.1}
SAME = ("model.safetensors", "last.safetensors", "config.json", "videos.parquet")
FAULTS = [
    ("kill at step", 1),
    ("kill at step", 4),
    ("kill at step", 12),
    ("kill at step", 15),
    ("kill in file", 3),
    ("kill in file", 6),
    ("kill before validation", 3),
    ("kill after line", 1),
    ("kill before manifest", 1),
    ("stop at step", 7),
    ("stop by USR1 at step", 15),
]


def drive(jobs):
    """Exit codes of each job's processes, and what they said to the user."""
    done = subprocess.run(
        [sys.executable, DRIVER],
        input=json.dumps(jobs),
        capture_output=True,
        text=True,
        timeout=120,
        start_new_session=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def lines(run):
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in found]


def steady(run):
    """A manifest without what differs between any two runs: the date, and wall times in the metrics."""
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["files"].pop("metrics.jsonl")
    return {name: value for name, value in manifest.items() if name != "created"}


@pytest.fixture(scope="module")
def killed(tmp_path_factory, learnable, label_set):
    """A folder of runs: ``whole``, and one a fault, each started twice; exit codes; what was said."""
    root = tmp_path_factory.mktemp("killed")
    common = {"alignments": str(learnable), "labels": str(label_set), "settings": SETTINGS}
    jobs = [{**common, "out": str(root / "whole")}]
    for i, fault in enumerate(FAULTS):
        jobs += [{**common, "out": str(root / str(i)), "fault": fault}, {**common, "out": str(root / str(i))}]
    chaos = [{**common, "out": str(root / "chaos"), "fault": ("kill at step", n)} for n in (4, 3, 5, 3, 4)]
    stop = {**common, "out": str(root / "stopped"), "fault": ("stop at step", 7)}
    codes, said = drive([*jobs, stop, *chaos, {**common, "out": str(root / "chaos")}])
    return root, codes, said


def assert_same(run, whole):
    for name in SAME:
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name
    assert lines(run) == lines(whole) and len(lines(run)) == 3
    assert steady(run) == steady(whole)
    assert {path.name for path in run.iterdir()} == {path.name for path in whole.iterdir()}


@pytest.mark.parametrize("i", range(len(FAULTS)), ids=[f"{kind} {number}" for kind, number in FAULTS])
def test_a_stopped_training_ends_as_if_never_stopped(killed, i):
    root, codes, _ = killed
    assert codes[1 + 2 * i] == [75 if FAULTS[i][0].startswith("stop") else -9]
    assert codes[2 + 2 * i] == [0]
    assert_same(root / str(i), root / "whole")


def test_a_training_that_is_killed_again_and_again_ends_the_same(killed):
    # Lives of 3, 2, 4, 2 and 3 steps with a state every second step: it can only end by going on from states.
    root, codes, _ = killed
    assert codes[-6:] == [[-9]] * 5 + [[0]]
    assert_same(root / "chaos", root / "whole")


@pytest.fixture(scope="module")
def stopped(killed):
    """An unfinished training, stopped by a signal at its seventh step."""
    return killed[0] / "stopped"


@pytest.fixture
def unfinished(stopped, tmp_path):
    return shutil.copytree(stopped, tmp_path / "run")


def test_an_unfinished_folder_is_known_as_such_and_is_no_run(stopped, killed):
    out, said = stopped, killed[2]
    assert "stopped by a signal in epoch 2" in said and "the same command goes on" in said
    assert is_unfinished(out)
    assert [path.name for path in saved_states(out)] == [
        "state-00000006.safetensors",
        "state-00000007.safetensors",
    ]
    with pytest.raises(AdapterError, match=r"found no manifest.json"):
        open_run(out)


def test_only_equal_config_and_inputs_go_on(unfinished, toy, tmp_path, learnable, label_set):
    other = toy.write_labels(tmp_path / "labels", [*toy.classes, "never filmed"])
    changed = make_settings({**SETTINGS, "lr": 0.5, "seed": 9})
    with pytest.raises(
        AdapterError, match=r"other inputs.labels \(.*\); lr \(0.001 there, 0.5 now\); seed \(0 .*--force"
    ):
        train(learnable, other, unfinished, changed)
    corpus = json.loads(shutil.copytree(learnable, tmp_path / "a").joinpath("manifest.json").read_text())
    corpus["corpus"]["fingerprint"] = "d" * 64
    (tmp_path / "a" / "manifest.json").write_text(json.dumps(corpus))
    with pytest.raises(
        AdapterError, match=r"unfinished training with other inputs.corpus \(c+\.\.\. there, d+"
    ):
        train(tmp_path / "a", label_set, unfinished, make_settings(SETTINGS))
    with pytest.raises(AdapterError, match="--resume auto goes on with it, --force starts over"):
        train(learnable, label_set, unfinished, make_settings(SETTINGS), resume="never")
    with pytest.raises(AdapterError, match="--resume is 'yes'; it must be one of auto, never, restart"):
        train(learnable, label_set, unfinished, make_settings(SETTINGS), resume="yes")
    assert is_unfinished(unfinished) and len(saved_states(unfinished)) == 2


@pytest.mark.parametrize("how", [{"force": True}, {"resume": "restart"}], ids=str)
def test_force_and_restart_replace_what_cannot_go_on(unfinished, learnable, label_set, how):
    settings = make_settings({**SETTINGS, "epochs": 1})
    assert [line["epoch"] for line in train(learnable, label_set, unfinished, settings, **how).history] == [1]
    assert open_run(unfinished).config["epochs"] == 1


def test_bookkeeping_may_change_when_a_training_goes_on(unfinished, killed, learnable, label_set):
    settings = make_settings({**SETTINGS, "save_every": 0, "keep_states": 1, "threads": 1})
    train(learnable, label_set, unfinished, settings)
    weights = (unfinished / "model.safetensors").read_bytes()
    assert weights == (killed[0] / "whole" / "model.safetensors").read_bytes()


def test_another_order_of_videos_does_not_go_on(unfinished, killed, learnable, label_set):
    """--cache-gb decides how many row groups are shuffled together: all here, and with less room eight."""
    with pytest.raises(AdapterError, match=r"training with other window \(--cache-gb\) \(0 there, 8 now\)"):
        train(learnable, label_set, unfinished, make_settings({**SETTINGS, "cache_gb": 0}))
    # More room changes no order, so it may be given.
    train(learnable, label_set, unfinished, make_settings({**SETTINGS, "cache_gb": 9}))
    weights = (unfinished / "model.safetensors").read_bytes()
    assert weights == (killed[0] / "whole" / "model.safetensors").read_bytes()


def test_a_damaged_state_is_a_message_and_the_one_before_it_serves(unfinished, killed, learnable, label_set):
    newest = saved_states(unfinished)[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    with pytest.raises(AdapterError, match=f"{newest.name} is no state .* delete it to go on"):
        train(learnable, label_set, unfinished, make_settings(SETTINGS))
    newest.unlink()
    train(learnable, label_set, unfinished, make_settings(SETTINGS))
    assert_same(unfinished, killed[0] / "whole")


def test_a_state_of_another_shape_is_a_message(unfinished, learnable, label_set):
    newest = saved_states(unfinished)[-1]
    tensors, note = load_file(newest), read_note(newest)
    name = next(name for name in tensors if name.startswith("model.") and tensors[name].ndim == 2)
    save_weights(newest, {**tensors, name: torch.zeros(2, 3)}, {NOTE: json.dumps(note)})
    with pytest.raises(AdapterError, match=f"{newest.name} does not fit this model"):
        train(learnable, label_set, unfinished, make_settings(SETTINGS))
    save_file({"x": torch.zeros(1)}, newest)
    with pytest.raises(AdapterError, match="is no state of a training"):
        train(learnable, label_set, unfinished, make_settings(SETTINGS))


def test_differences_are_named_with_both_values():
    assert differing({"a": 1, "b": 2}, {"a": 1, "b": 3, "c": 4}) == [
        "b (2 there, 3 now)",
        "c (None there, 4 now)",
    ]
    assert issubclass(TrainingStopped, AdapterError) and TrainingStopped.exit_code == 75
