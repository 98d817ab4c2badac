import json

import pytest

from adapter.artifact import fingerprint, open_run, read_manifest, start_run, write_atomic, write_json
from adapter.config import AdapterError


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


def test_force_replaces_runs_only(tmp_path):
    (tmp_path / "diary.txt").write_text("dear")
    with pytest.raises(AdapterError, match="is not empty; choose another folder or pass --force"):
        start_run(tmp_path, force=False)
    with pytest.raises(AdapterError, match="holds files that are no run"):
        start_run(tmp_path, force=True)
    assert (tmp_path / "diary.txt").exists()
    write_json(tmp_path / "config.json", {})
    start_run(tmp_path, force=True)
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(AdapterError, match="is a file"):
        start_run(tmp_path / "file", force=True)


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
