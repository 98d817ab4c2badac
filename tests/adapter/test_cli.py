import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from adapter import __version__
from adapter.cli import app

ROOT = Path(__file__).resolve().parents[2]
QUICK = ["--epochs", "1", "--blocks", "1", "--device", "cpu"]


def call(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def data(learnable, label_set):
    return "--alignments", learnable, "--labels", label_set


@pytest.mark.parametrize(
    "command", [[], ["train"], ["eval"], ["predict"], ["explain"], ["describe"], ["ablate"]]
)
def test_help_is_quick_and_never_imports_torch(command):
    code = (
        f"import sys; sys.argv = ['adapter', *{command!r}, '--help']\n"
        "from adapter.cli import app\n"
        "try: app()\nexcept SystemExit as e: assert e.code == 0\n"
        "bad = [m for m in ('torch', 'pandas', 'pyarrow', 'numpy') if m in sys.modules]\n"
        "assert not bad, bad"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_train_eval_predict_explain_in_a_row(tmp_path, data):
    run = tmp_path / "run"
    done = call("train", *data, "--out", run, *QUICK, "--queries", "tracks", "--set", "tracks=4")
    assert done.exit_code == 0, done.output
    assert "M parameters" in done.stdout and "trained on 36 of 36 videos, 6 classes" in done.stdout
    # Progress is no result: a script reads stdout.
    assert done.stderr.startswith("epoch   1  loss ") and "epoch   1" not in done.stdout
    assert json.loads((run / "config.json").read_text())["tracks"] == 4
    done = call("eval", run, *data, "--device", "cpu")
    assert done.exit_code == 0 and "(n = 18, 6 classes)" in done.output
    assert (run / "eval-test.json").is_file() and (run / "predictions-test.parquet").is_file()
    done = call("eval", run, *data, "--split", "all", "--json", "--reverse-time", "--name", "back")
    assert json.loads(done.output)["n"] == 72
    assert "54 of these videos trained the model" in call("eval", run, *data, "--split", "all").output
    done = call("predict", run, *data, "--out", tmp_path / "p.csv")
    assert done.exit_code == 0 and "72 of 72 videos predicted, 0 failed" in done.output
    told = json.loads(call("predict", run, *data, "--out", tmp_path / "p.csv", "--json").stdout)
    assert (told["planned"], told["predicted"], told["failed"]) == (72, 72, 0)
    done = call("explain", run, *data, "--out", tmp_path / "e.json", "--max-videos", "2", "--attention")
    assert done.exit_code == 0 and len(json.loads((tmp_path / "e.json").read_text())) == 2
    assert "; frames " in done.output and "2 videos explained" in done.output
    options = "--split", "test", "--max-videos", "3", "--deletion"
    done = call("explain", run, *data, "--out", tmp_path / "d.json", *options)
    assert done.exit_code == 0 and "3 videos; probability of the predicted class" in done.output
    rows = json.loads((tmp_path / "d.json").read_text())["rows"]
    assert {row["parts"] for row in rows} == {"entities", "regions", "frames"}


def test_only_the_first_of_several_processes_speaks(tmp_path, trained, data, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    run = shutil.copytree(trained, tmp_path / "run")
    for command in (["eval", run], ["predict", run, "--out", tmp_path / "p.csv"]):
        done = call(*command, *data, "--device", "cpu")
        assert (done.exit_code, done.output) == (0, "")


def test_a_run_can_be_repeated_from_its_config(tmp_path, data):
    assert call("train", *data, "--out", tmp_path / "a", *QUICK, "--lr", "0.002", "--quiet").exit_code == 0
    again = call("train", *data, "--out", tmp_path / "b", "--config", tmp_path / "a/config.json", "--json")
    assert json.loads(again.output)["best_epoch"] in (0, 1)
    assert (tmp_path / "a/last.safetensors").read_bytes() == (tmp_path / "b/last.safetensors").read_bytes()


def assert_friendly(done, *words):
    assert done.exit_code == 1
    assert done.stderr.startswith("error: ") and "Traceback" not in done.output
    for word in words:
        assert word in done.stderr


def test_option_typos(tmp_path, data):
    out = "--out", tmp_path / "r"
    assert_friendly(call("train", *data, *out, "--set", "bloks=2"), "unknown option 'bloks'", "'blocks'")
    assert_friendly(call("train", *data, *out, "--queries", "trakcs"), "did you mean 'tracks'?")
    (tmp_path / "c.toml").write_text("epochz = 3")
    assert_friendly(call("train", *data, *out, "--config", tmp_path / "c.toml"), "did you mean 'epochs'?")
    assert not (tmp_path / "r").exists()


def test_bad_inputs(tmp_path, toy, learnable, label_set):
    def refused(alignments, labels, *words):
        out = tmp_path / "r"
        assert_friendly(
            call("train", "--alignments", alignments, "--labels", labels, "--out", out, *QUICK), *words
        )

    empty = toy.write_labels(tmp_path / "empty", [])
    refused(learnable, empty, "is empty")
    strange = toy.write_labels(tmp_path / "strange", ["cooking", "sleeping"])
    refused(learnable, strange, "no usable video", "Archery", "cooking", "corpus-builder labels")
    other = toy.write_labels(tmp_path / "other", toy.classes, model={**toy.model, "weights_sha256": "b" * 64})
    refused(learnable, other, "another model", "weights bbbbbbbbbbbb", "corpus-builder labels")
    partial = toy.write_alignments(tmp_path / "partial", toy.world.learnable(2))
    (partial / "shard-00001.json").unlink()
    refused(partial, label_set, "1 of 2 shards are not done", "aligner run")
    refused(tmp_path / "nowhere", label_set, "found no manifest.json", "aligner run")
    unlabelled = toy.world.learnable(2)
    for video in unlabelled:
        video.label = None
        video.split = None
    # Of twelve videos without a split, one is held out for validation.
    path = toy.write_alignments(tmp_path / "unlabelled", unlabelled)
    refused(path, label_set, "no usable video", "all 11 without a label", "aligner run --videos")
    broken = [toy.replace(video, failed=True, split=None) for video in toy.world.learnable(2)]
    path = toy.write_alignments(tmp_path / "broken", broken)
    refused(path, label_set, "all 12 failed", f"see `aligner status {path}`")
    assert not (tmp_path / "r").exists()


def test_an_existing_run_needs_force(tmp_path, data):
    arguments = "train", *data, "--out", tmp_path / "r", *QUICK, "--quiet"
    assert call(*arguments).exit_code == 0
    assert_friendly(call(*arguments), "is not empty", "--force")
    assert call(*arguments, "--force").exit_code == 0


def test_force_spares_alignments(tmp_path, learnable, data):
    alignments = shutil.copytree(learnable, tmp_path / "a")
    assert_friendly(
        call("train", *data, "--out", alignments, *QUICK, "--force"), "is no run", "another folder"
    )
    assert {file.name for file in alignments.iterdir()} == {file.name for file in learnable.iterdir()}


def test_eval_works_as_is_without_split_names(tmp_path, toy, label_set):
    videos = [toy.replace(video, split=None) for video in toy.world.learnable(4)]
    data = "--alignments", toy.write_alignments(tmp_path / "a", videos), "--labels", label_set
    assert call("train", *data, "--out", tmp_path / "r", *QUICK, "--quiet").exit_code == 0
    done = call("eval", tmp_path / "r", *data)
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("all: top-1 ") and "(n = 24, 6 classes)" in done.stdout
    assert "24 of these videos trained the model or chose its epoch" in done.stdout


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("config.json", ["config.json cannot be read", "adapter train"]),
        ("manifest.json", ["manifest.json cannot be read", "adapter train"]),
        ("videos.parquet", ["videos.parquet cannot be read", "adapter train"]),
        ("model.safetensors", ["does not hold the weights", "adapter train"]),
    ],
)
def test_a_damaged_run_is_a_message(tmp_path, trained, data, file, words):
    run = shutil.copytree(trained, tmp_path / "run")
    content = (run / file).read_bytes()
    (run / file).write_bytes(content[: len(content) // 2])
    assert_friendly(call("eval", run, *data, "--device", "cpu"), *words)


def test_places_that_cannot_be_written(tmp_path, trained, data):
    (tmp_path / "file").write_text("dear")
    (tmp_path / "folder.csv").mkdir()
    for out in (tmp_path / "file", tmp_path / "file/below"):
        assert_friendly(call("train", *data, "--out", out, *QUICK), str(out))
    assert_friendly(
        call("predict", trained, *data, "--out", tmp_path / "file/p.csv"), "--out", "choose another"
    )
    assert_friendly(
        call("explain", trained, *data, "--out", tmp_path / "file/e.json", "--max-videos", 1), "--out"
    )
    assert_friendly(call("predict", trained, *data, "--out", tmp_path / "folder.csv"), "folder.csv")
    assert (tmp_path / "file").read_text() == "dear"
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["file", "folder.csv"]


def test_version():
    assert call("--version").stdout == f"adapter {__version__}\n"


def test_random_weights_are_said_aloud(tmp_path, toy):
    model = {**toy.model, "random_weights": True}
    alignments = toy.write_alignments(tmp_path / "a", toy.world.learnable(4), model=model)
    labels = toy.write_labels(tmp_path / "l", toy.classes, model=model)
    done = call("train", "--alignments", alignments, "--labels", labels, "--out", tmp_path / "r", *QUICK)
    assert "random weights; these figures mean nothing" in done.output
