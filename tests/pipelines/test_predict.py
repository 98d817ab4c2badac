"""``alt predict``: own files in, a row for each out, whatever the file holds."""

import csv
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.config import PipelineConfig
from pipelines.errors import PipelineError
from pipelines.predict import Prediction, as_table, as_timeline, find_source, predict_videos
from pipelines.toyworld import TINYCLIP
from pipelines.toyworld.captions import unknown_words
from pipelines.toyworld.videos import frames_of, write_video
from pipelines.toyworld.vocabulary import ACTION_BY_LABEL, ACTIONS
from pipelines.windows import Action, Windows, clock, timeline
from pipelines.zero_shot import ZeroShot

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


# Without a run.


SCENES = (("riding a bicycle", 2), ("playing a guitar", 3), ("flying a kite", 1))
CLIP_FRAMES, FPS = 12, 6  # of one drawn clip, two seconds


@pytest.fixture(scope="module")
def long_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn clips one behind the other: twelve seconds of three actions."""
    pictures = [
        picture
        for label, count in SCENES
        for seed in range(count)
        for picture in frames_of(ACTION_BY_LABEL[label], (7, seed), frames=CLIP_FRAMES, pixels=96)
    ]
    path = tmp_path_factory.mktemp("long") / "long.mp4"
    write_video(path, pictures, rate=FPS)
    return path


def test_a_long_video_becomes_a_timeline_without_any_training(long_video: Path, tmp_path: Path) -> None:
    said: list[str] = []
    model = ZeroShot(f"local-dir:{TINYCLIP}", entities="none", device="cpu")
    labels = [label for label, _ in SCENES]
    found = predict_videos(
        [long_video], labels, out=tmp_path / "out", say=said.append, zero_shot=model, windows=Windows(2.0)
    )
    assert [(item.start_s, item.end_s) for item in found] == [(2.0 * i, 2.0 * i + 2) for i in range(6)]
    truth = [label for label, count in SCENES for _ in range(count)]
    assert sum(item.labels[0] == label for item, label in zip(found, truth, strict=True)) >= 5
    actions = timeline(found)
    assert (actions[0].start_s, actions[-1].end_s) == (0.0, 12.0)
    stored = json.loads((tmp_path / "out" / "timeline.json").read_text())
    assert [Action(**item) for item in stored] == actions
    rows = list(csv.DictReader((tmp_path / "out" / "timeline.csv").open()))
    assert [row["label"] for row in rows] == [action.label for action in actions]
    page = (tmp_path / "out" / "report.html").read_text()
    assert '"timeline":[{"actions":[[0.0,' in page and "play no part in it" in page
    assert "the labels themselves" in "\n".join(said)
    assert actions[0].label in as_timeline(actions) and "0:00 - 0:02" in as_table(found)


def test_things_mined_from_the_labels_are_what_regions_are_aligned_with(
    miniature: PipelineConfig, tmp_path: Path
) -> None:
    import pyarrow.parquet as pq

    root = miniature.alignments.videos.parent
    model = ZeroShot(miniature.model, device="cpu", nltk_data=miniature.nltk_data, frames=2)
    labels = ["riding a bicycle", "playing a drum"]
    listed = tmp_path / "list.txt"
    listed.write_text(f"{root / 'videos' / '0-3.mp4'}\n")
    found = predict_videos([listed], labels, out=tmp_path / "out", zero_shot=model)
    assert [Path(item.video).name for item in found] == ["0-3.mp4"] and set(found[0].labels) == set(labels)
    names = pq.read_table(tmp_path / "out" / "alignments" / "entities.parquet")["name"].to_pylist()
    assert {"bicycle", "drum"} <= set(names)


def test_a_run_or_a_model_and_labels_are_asked_for(miniature: PipelineConfig, tmp_path: Path) -> None:
    video = miniature.alignments.videos.parent / "videos" / "0-3.mp4"
    for run, model in ((None, None), (miniature.out, ZeroShot(miniature.model))):
        with pytest.raises(PipelineError, match="either --run FOLDER.*or --model"):
            predict_videos([video], ["a", "b"], run, zero_shot=model)
    with pytest.raises(PipelineError, match="no labels given"):
        predict_videos([video], [" "], miniature.out)
    with pytest.raises(PipelineError, match="--entities is 'nouns'"):
        ZeroShot("ViT-B-16", entities="nouns")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--label", "a", "--labels", "a.txt"], "give the labels once"),
        (["--labels", "riding"], "--label 'riding'"),
        ([], "no labels given"),
        (["--label", "a,b", "--stride", "2"], "give --window SECONDS"),
        (["--label", "a,b", "--pretrained", "openai"], "--pretrained openai is for --model"),
        (["--label", "a,b", "--run", "x", "--window", "2", "--stride", "3"], "at most the window"),
    ],
)
def test_options_that_make_no_sense_are_explained(options: list[str], message: str) -> None:
    result = RUNNER.invoke(app, ["predict", "clip.mp4", *options])
    assert result.exit_code == 1 and message in result.output


def test_typed_labels_with_commas_are_several(miniature: PipelineConfig) -> None:
    video = str(miniature.alignments.videos.parent / "videos" / "0-3.mp4")
    options = ["--label", "juggling balls, riding a horse", "--run", str(miniature.out), "--json"]
    result = RUNNER.invoke(app, ["predict", video, *options, "--quiet"])
    assert result.exit_code == 0, result.output
    assert set(json.loads(result.stdout)[0]["labels"]) == {"juggling balls", "riding a horse"}


def test_words_that_the_tiny_clip_never_read_are_known() -> None:
    assert not any(unknown_words(action.label) for action in ACTIONS)
    assert unknown_words("Juggling a ball") == ["juggling"]


# Windows.


@given(st.floats(0, 100), st.floats(0.5, 100), st.floats(1, 60), st.one_of(st.none(), st.floats(0.25, 1.0)))
def test_windows_cover_a_video_and_are_equally_long(
    start: float, length: float, seconds: float, share: float | None
) -> None:
    end = start + length
    found = Windows(seconds, share and seconds * share).cut(start, end)
    assert found[0][0] == pytest.approx(start, abs=2e-3) and found[-1][1] == pytest.approx(end, abs=2e-3)
    for (before, until), (after, _) in zip(found, found[1:], strict=False):
        assert before < after <= until + 2e-3
    lengths = [b - a for a, b in found]
    assert lengths == pytest.approx([min(seconds, length)] * len(lengths), abs=2e-3)


def test_neighbours_that_agree_are_one_action() -> None:
    def said(start: float, label: str | None, probability: float) -> Prediction:
        error = None if label else "decode: broken"
        return Prediction(
            "a.mp4", [label] if label else [], [probability] if label else [], error, start, start + 4
        )

    found = [
        said(0.0, "x", 0.5),
        said(2.0, "x", 0.7),
        said(4.0, "y", 0.9),
        said(6.0, None, 0.0),
        said(8.0, "y", 0.4),
    ]
    assert timeline(found) == [
        Action("a.mp4", 0.0, 5.0, "x", pytest.approx(0.6), 2),
        Action("a.mp4", 5.0, 7.0, "y", 0.9, 1),
        Action("a.mp4", 9.0, 12.0, "y", 0.4, 1),
    ]


def test_clocks() -> None:
    assert [clock(t) for t in (0.0, 61.0, 3599.96, 3725.5)] == ["0:00", "1:01", "1:00:00", "1:02:05.5"]
