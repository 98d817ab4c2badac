"""``alt predict``: own files in, a row for each out, whatever the file holds."""

import csv
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.config import PipelineConfig
from pipelines.errors import PipelineError
from pipelines.predict import find_source, predict_videos

RUNNER = CliRunner()


def test_every_file_gets_a_row(miniature: PipelineConfig, tmp_path: Path) -> None:
    root = miniature.alignments.videos.parent
    files = [root / "videos" / "0-3.mp4", root / "videos" / "broken.mp4", tmp_path / "missing.mp4"]
    found = predict_videos(files, root / "new.txt", miniature.out, tmp_path / "predicted")
    assert [item.video for item in found] == [str(file) for file in files]
    good, broken, missing = found
    assert set(good.labels) == {"juggling balls", "riding a horse"} and good.error is None
    assert sum(good.probabilities) == pytest.approx(1, abs=1e-5)
    assert broken.error and missing.error and not broken.labels
    assert "<title>" in (tmp_path / "predicted" / "report.html").read_text()
    assert len(json.loads((tmp_path / "predicted" / "predictions.json").read_text())) == 3
    rows = list(csv.DictReader((tmp_path / "predicted" / "predictions.csv").open()))
    assert sum(row["video"] == str(files[0]) for row in rows) == 2
    assert any(row["error"] for row in rows)


def test_predicting_again_into_the_same_folder_with_another_video(
    miniature: PipelineConfig, tmp_path: Path
) -> None:
    root = miniature.alignments.videos.parent
    files = [root / "videos" / f"{number}-3.mp4" for number in range(2)]
    first = predict_videos(files[:1], root / "new.txt", miniature.out, tmp_path)
    both = predict_videos(files, root / "new.txt", miniature.out, tmp_path)
    assert [len(first), len(both)] == [1, 2]
    assert both[0].labels == first[0].labels
    assert both[0].probabilities == pytest.approx(first[0].probabilities, abs=1e-6)


def test_predictions_go_into_no_folder_with_other_things(miniature: PipelineConfig, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    root = miniature.alignments.videos.parent
    with pytest.raises(PipelineError, match="thesis.txt"):
        predict_videos([root / "videos" / "0-3.mp4"], root / "new.txt", miniature.out, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_the_command_says_done_with_failures(miniature: PipelineConfig) -> None:
    root = miniature.alignments.videos.parent
    broken = str(root / "videos" / "broken.mp4")
    arguments = ["predict", broken, "--labels", str(root / "new.txt"), "--run", str(miniature.out), "--json"]
    result = RUNNER.invoke(app, arguments)
    assert result.exit_code == 2, result.output
    assert json.loads(result.stdout)[0]["error"]


def test_a_run_is_found_from_its_folder_or_the_whole(miniature: PipelineConfig) -> None:
    assert find_source(miniature.out).adapter == "alt"
    assert find_source(miniature.out / "runs" / "alt").layout.root == miniature.out
    with pytest.raises(PipelineError, match="not a trained adapter; there are alt"):
        find_source(miniature.out / "runs" / "other")


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, miniature: PipelineConfig) -> None:
    with pytest.raises(PipelineError, match="alt run"):
        find_source(tmp_path / "nothing")


def test_an_empty_folder_of_videos_is_an_error(tmp_path: Path, miniature: PipelineConfig) -> None:
    labels = miniature.alignments.videos.parent / "new.txt"
    with pytest.raises(PipelineError, match="holds no video"):
        predict_videos([tmp_path], labels, miniature.out)
