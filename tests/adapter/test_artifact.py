import json
import shutil

import pytest

from adapter.artifact import (
    PREDICTIONS_SCHEMA,
    fingerprint,
    open_run,
    read_manifest,
    read_table,
    removed_on_failure,
    start_run,
    with_model,
    write_atomic,
    write_json,
    write_table,
)
from adapter.config import AdapterError, make_settings


def test_a_failed_write_leaves_the_old_file_and_no_leftovers(tmp_path):
    target = tmp_path / "a.json"
    write_json(target, {"b": 1, "a": 2})
    assert target.read_text() == '{\n  "a": 2,\n  "b": 1\n}\n'

    def fail(path):
        path.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomic(target, fail)
    assert json.loads(target.read_text()) == {"a": 2, "b": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("what", ["alignments", "labels", "diary", "hub model", "broken", "run and more"])
def test_what_is_no_run_is_never_deleted(tmp_path, learnable, label_set, what, force):
    folder = tmp_path / "kept"
    if what in ("alignments", "labels"):
        shutil.copytree(learnable if what == "alignments" else label_set, folder)
    else:
        folder.mkdir()
        config = make_settings().flat() if what == "run and more" else {"architecture": "ViT-B-16"}
        write_json(folder / "config.json", config)
        other = {"diary": "diary.txt", "broken": "manifest.json", "run and more": "thesis.tex"}
        (folder / other.get(what, "model.safetensors")).write_text("{")
    before = contents(folder)
    with pytest.raises(AdapterError, match=r"holds .* and is no run; --force replaces runs only"):
        start_run(folder, force)
    assert contents(folder) == before


@pytest.mark.parametrize("finished", [False, True])
def test_force_replaces_a_run_whether_finished_or_not(tmp_path, trained, finished):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    if finished:
        # Others may keep their reports beside a finished run.
        (run / "explanations-test.json").write_text("[]")
    else:
        (run / "manifest.json").unlink()
        (run / ".last.safetensors.123.tmp").write_text("half")
    with pytest.raises(AdapterError, match="is not empty; choose another folder or pass --force"):
        start_run(run, force=False)
    start_run(run, force=True)
    assert not list(run.iterdir())


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_file_in_the_way_is_a_message(tmp_path, place):
    (tmp_path / "file").write_text("dear")
    with pytest.raises(AdapterError, match="--out.*file.* (a run needs a folder|choose another)"):
        start_run(tmp_path / place, force=True)
    assert (tmp_path / "file").read_text() == "dear"


def test_an_error_takes_the_folder_with_it_an_interruption_does_not(tmp_path):
    for error, stays in ((OSError, False), (KeyboardInterrupt, True)):
        start_run(tmp_path / "r", force=False)
        with pytest.raises(error), removed_on_failure(tmp_path / "r"):
            (tmp_path / "r" / "metrics.jsonl").touch()
            raise error
        assert (tmp_path / "r").exists() == stays


def test_tables_are_read_or_explained(tmp_path):
    file = tmp_path / "p.parquet"
    row = [["v"], ["a"], ["b"], [False], [["b", "a"]], [[0.75, 0.25]]]
    write_table(file, PREDICTIONS_SCHEMA.empty_table().from_arrays(row, schema=PREDICTIONS_SCHEMA))
    assert read_table(file, ["predicted", "video_id"], "").to_pylist() == [
        {"predicted": "b", "video_id": "v"}
    ]
    with pytest.raises(AdapterError, match=r"p.parquet lacks columns nose, found video_id.*; sneeze"):
        read_table(file, ["label", "nose"], "sneeze")
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(AdapterError, match=r"p.parquet cannot be read \(.*\); sneeze"):
        read_table(file, ["label"], "sneeze")
    with pytest.raises(AdapterError, match="lacks q.parquet; sneeze"):
        read_table(tmp_path / "q.parquet", ["label"], "sneeze")


@pytest.mark.parametrize(
    ("model", "command"),
    [
        (
            {"name": "ViT-B-16", "pretrained": "openai"},
            "`run --model ViT-B-16 --pretrained openai --out DIR`",
        ),
        ({"name": "hf-hub:a/b", "pretrained": None}, "`run --model hf-hub:a/b --out DIR`"),
        (
            {"name": "local-dir:clip", "pretrained": None},
            "`run --model local-dir:PATH --out DIR`, where PATH is the folder of local-dir:clip",
        ),
    ],
)
def test_suggested_commands_load_the_model(model, command):
    assert with_model("run MODEL --out DIR", model) == command


def test_manifest_of_a_run(trained):
    run = open_run(trained)
    manifest = run.manifest
    assert manifest["counts"]["train"]["used"] == 36
    assert manifest["fingerprint"] == fingerprint(manifest)
    assert manifest["files"]["videos.parquet"]["rows"] == 54 == len(run.trained_on())
    assert set(manifest["files"]) == {
        "config.json",
        "model.safetensors",
        "last.safetensors",
        "metrics.jsonl",
        "videos.parquet",
    }


def test_fingerprint_ignores_date_and_wall_time(trained):
    manifest = open_run(trained).manifest
    files = {**manifest["files"], "metrics.jsonl": {"sha256": "other"}}
    assert fingerprint({**manifest, "created": "now", "files": files}) == manifest["fingerprint"]
    assert fingerprint({**manifest, "inputs": {}}) != manifest["fingerprint"]


def test_runs_that_are_none(tmp_path):
    with pytest.raises(AdapterError, match="needs the run artifact, found no manifest.json .*`adapter train"):
        open_run(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(AdapterError, match="is not a manifest"):
        read_manifest(tmp_path, "run", "adapter train")


@pytest.mark.parametrize(
    ("change", "lacks"),
    [
        ({"model": "ViT"}, "model"),
        ({"labels": None}, "labels"),
        ({"dim": "32"}, "dim"),
        ({"schema_version": "1"}, "schema_version"),
    ],
)
def test_a_manifest_says_what_it_lacks(tmp_path, trained, change, lacks):
    run = shutil.copytree(trained, tmp_path / "run")
    manifest = json.loads((run / "manifest.json").read_text())
    write_json(run / "manifest.json", {**manifest, **change})
    with pytest.raises(AdapterError, match=f"manifest.json lacks {lacks}, .*`adapter train"):
        open_run(run)
