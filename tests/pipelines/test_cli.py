"""The ``alt`` command: exit codes and words."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.config import PipelineConfig

RUNNER = CliRunner()


def test_run_reports_scores_and_failed_videos(miniature: PipelineConfig) -> None:
    config = miniature.alignments.videos.parent / "alt.yaml"
    result = RUNNER.invoke(app, ["run", str(config), "--json", "--quiet"])
    assert result.exit_code == 2, result.output
    report = json.loads(result.stdout)
    assert report["failed_videos"] == 1 and set(report["steps"].values()) == {"up to date"}
    assert report["scores"]["alt"]["test"]["n"] == 3


def test_a_bad_config_is_a_message(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("modle: 1\n")
    result = RUNNER.invoke(app, ["run", str(tmp_path / "x.yaml")])
    assert result.exit_code == 1
    assert "did you mean 'model'?" in result.stderr and "Traceback" not in result.output


def test_a_stage_s_error_is_a_message_too(miniature: PipelineConfig, tmp_path: Path) -> None:
    root = miniature.alignments.videos.parent
    text = (root / "alt.yaml").read_text().replace('"labels.txt", "taggers"', '"gone.txt", "taggers"')
    (root / "bad.yaml").write_text(text.replace('"out": "out"', f'"out": "{tmp_path}/o"'))
    result = RUNNER.invoke(app, ["run", str(root / "bad.yaml"), "--quiet"])
    assert result.exit_code == 1 and "gone.txt" in result.stderr


def test_a_split_that_no_video_has_is_known_before_any_training(miniature: PipelineConfig) -> None:
    root = miniature.alignments.videos.parent
    values = json.loads((root / "alt.yaml").read_text())
    values["evaluations"][0]["split"] = "tset"
    (root / "split.yaml").write_text(json.dumps(values))
    result = RUNNER.invoke(app, ["run", str(root / "split.yaml"), "--dry-run"])
    assert result.exit_code == 1
    assert "evaluations.test.split: no video has split 'tset' (there are: test, train, val)" in result.stderr


def test_doctor_knows_this_environment() -> None:
    result = RUNNER.invoke(app, ["doctor", "--json"])
    findings = {item["name"]: item for item in json.loads(result.stdout)}
    for name in ("torch", "open_clip_torch", "av", "faiss", "demo model"):
        assert findings[name]["status"] == "ok", findings[name]
    assert result.exit_code == 0
    assert all(item["remedy"] for item in findings.values() if item["status"] != "ok")


def test_doctor_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any NLTK data the doctor says which command fetches it."""
    import nltk

    monkeypatch.setattr(nltk.data, "path", [])
    result = RUNNER.invoke(app, ["doctor"])
    assert "python -m nltk.downloader wordnet" in result.stdout


def test_unknown_demo_size() -> None:
    result = RUNNER.invoke(app, ["demo", "--size", "smal"])
    assert result.exit_code == 1 and "did you mean 'small'?" in result.stderr
