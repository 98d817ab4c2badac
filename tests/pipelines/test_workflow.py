"""``alt run``: what runs, what is skipped, and what a change sets off again."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from pipelines.config import PipelineConfig
from pipelines.errors import PipelineError
from pipelines.workflow import Layout, run_pipeline


def states(config: PipelineConfig, **options: bool) -> dict[str, str]:
    return run_pipeline(config, lambda line: None, **options).steps


def with_changes(config: PipelineConfig, section: str, **changes: object) -> PipelineConfig:
    changed = getattr(config, section).model_copy(update=changes)
    return config.model_copy(update={section: changed})


@pytest.fixture
def copy(miniature: PipelineConfig, tmp_path: Path) -> PipelineConfig:
    """The finished run in a folder of its own, to be changed."""
    shutil.copytree(miniature.out, tmp_path / "out")
    return miniature.model_copy(update={"out": tmp_path / "out"})


def test_nothing_runs_twice(miniature: PipelineConfig) -> None:
    assert set(states(miniature).values()) == {"up to date"}


def test_every_artifact_is_there(miniature: PipelineConfig) -> None:
    layout = Layout(miniature.out)
    for path in (layout.corpus, layout.labels("train"), layout.alignments, layout.run("alt")):
        assert (path / "manifest.json").is_file()
    assert "<title>" in layout.report.read_text()
    scores = json.loads((layout.run("alt") / "eval-test.json").read_text())
    assert scores["n"] == 3 and scores["counts"]["planned"] == 4


def test_an_adapter_option_leaves_corpus_and_alignments_alone(copy: PipelineConfig) -> None:
    adapter = copy.adapters["alt"].model_copy(update={"epochs": 2})
    found = states(copy.model_copy(update={"adapters": {"alt": adapter}}), dry_run=True)
    assert found["corpus"] == found["labels/train"] == found["alignments"] == "up to date"
    assert found["train/alt"] == found["evaluate/alt/test"] == found["report"] == "would run"


def test_another_corpus_realigns_everything_behind_it(copy: PipelineConfig) -> None:
    changed = with_changes(copy, "corpus", body_parts=False)
    found = states(with_changes(changed, "alignments", store="int8"))
    assert found["corpus"] == found["alignments"] == found["train/alt"] == "done"
    assert found["labels/train"] == "up to date"
    manifest = json.loads((copy.out / "alignments" / "manifest.json").read_text())
    corpus = json.loads((copy.out / "corpus" / "manifest.json").read_text())
    assert manifest["corpus"]["fingerprint"] == corpus["fingerprint"]
    assert manifest["config"]["store"] == "int8"


def test_views_go_from_the_config_to_the_scores_and_the_report(copy: PipelineConfig) -> None:
    told = {"sampling": "dense", "stride": 2, "clips": 2, "crops": 3, "colours": "imagenet", "frames": 2}
    found = states(with_changes(copy, "alignments", **told))
    assert found["corpus"] == "up to date" and found["report"] == "done"
    layout = Layout(copy.out)
    manifest = json.loads((layout.alignments / "manifest.json").read_text())
    assert {name: manifest["config"][name] for name in told} == told and len(manifest["views"]) == 6
    scores = json.loads((layout.run("alt") / "eval-test.json").read_text())
    assert (scores["n"], scores["views"]) == (3, 6)
    assert "first of 6 views" in layout.report.read_text()


def test_a_training_that_was_stopped_goes_on(copy: PipelineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    from adapter.config import TrainingStopped
    from adapter.train import Training

    adapter = copy.adapters["alt"].model_copy(update={"epochs": 3})
    config, steps, step = copy.model_copy(update={"adapters": {"alt": adapter}}), [], Training.train_step

    def counted(self: Training, *args: Any) -> Any:
        steps.append(self.position.epoch)
        if len(steps) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args)

    monkeypatch.setattr(Training, "train_step", counted)
    with pytest.raises(TrainingStopped):
        states(config)
    run = Layout(copy.out).run("alt")
    assert steps == [1, 2] and not (run / "manifest.json").exists()
    assert states(config)["train/alt"] == "done" and steps == [1, 2, 3]
    weights = (run / "last.safetensors").read_bytes()
    assert states(config, force=True)["train/alt"] == "done" and steps == [1, 2, 3, 1, 2, 3]
    assert (run / "last.safetensors").read_bytes() == weights


def test_a_damaged_result_is_made_again(copy: PipelineConfig) -> None:
    (copy.out / "runs" / "alt" / "eval-test.json").write_text("{}")
    found = states(copy)
    assert found["evaluate/alt/test"] == "done" and found["train/alt"] == "up to date"
    assert json.loads((copy.out / "runs" / "alt" / "eval-test.json").read_text())["n"] == 3


def test_a_lost_shard_is_filled_in_and_the_rest_stays(copy: PipelineConfig) -> None:
    folder = copy.out / "alignments"
    kept = (folder / "shard-00000.parquet").stat().st_mtime_ns
    lost = (folder / "shard-00001.parquet").read_bytes()
    for name in ("shard-00001.parquet", "shard-00001.json"):
        os.unlink(folder / name)
    found = states(copy)
    assert found["alignments"] == "done" and found["train/alt"] == "up to date"
    assert (folder / "shard-00000.parquet").stat().st_mtime_ns == kept
    assert (folder / "shard-00001.parquet").read_bytes() == lost


def test_another_video_is_aligned_and_a_forced_run_does_all(copy: PipelineConfig, tmp_path: Path) -> None:
    """What changed is begun anew without asking: the pipeline owns its folder."""
    root = copy.alignments.videos.parent
    shutil.copytree(root / "videos", tmp_path / "videos")
    text = (root / "manifest.csv").read_text()
    (tmp_path / "manifest.csv").write_text(text)
    moved = with_changes(copy, "alignments", videos=tmp_path / "manifest.csv")
    run_pipeline(moved, lambda line: None)
    shutil.copy(tmp_path / "videos" / "0-0.mp4", tmp_path / "videos" / "new.mp4")
    (tmp_path / "manifest.csv").write_text(text + "videos/new.mp4,riding a bicycle,train\n")
    found = states(moved)
    assert found["corpus"] == "up to date" and found["alignments"] == found["train/alt"] == "done"
    assert json.loads((copy.out / "alignments" / "manifest.json").read_text())["videos"] == 14
    assert set(states(moved, force=True).values()) == {"done"}
    assert set(states(moved).values()) == {"up to date"}


def test_a_broken_manifest_means_work_and_no_traceback(copy: PipelineConfig) -> None:
    (copy.out / "labels" / "train" / "manifest.json").write_text("{")
    assert states(copy)["labels/train"] == "done"


def test_a_folder_with_other_things_is_left_alone(miniature: PipelineConfig, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(PipelineError, match="thesis.txt"):
        states(miniature.model_copy(update={"out": tmp_path}))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_dry_run_writes_nothing(miniature: PipelineConfig, tmp_path: Path) -> None:
    config = miniature.model_copy(update={"out": tmp_path / "new"})
    assert set(states(config, dry_run=True).values()) == {"would run"}
    assert not config.out.exists()


def test_a_dry_run_misses_the_words_that_a_corpus_needs(miniature: PipelineConfig, tmp_path: Path) -> None:
    def asked(**corpus: object) -> PipelineConfig:
        section = miniature.corpus.model_copy(update=corpus)
        return miniature.model_copy(update={"out": tmp_path / "new", "corpus": section})

    with pytest.raises(
        PipelineError, match="^corpus: spaCy's pipeline 'none_sm' is not .* with taggers nltk$"
    ):
        states(asked(taggers="both", spacy_model="none_sm"), dry_run=True)
    without = asked().model_copy(update={"nltk_data": tmp_path})
    with pytest.raises(PipelineError, match="^corpus: NLTK's wordnet data is not in"):
        states(without, dry_run=True)
    # a corpus that is there needs no words any more
    shutil.copytree(miniature.out, tmp_path / "there")
    made = miniature.model_copy(update={"out": tmp_path / "there"})
    assert states(made, dry_run=True)["corpus"] == "up to date"
