"""What a config can be told before any work, in its own words."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import typer

from pipelines import workflow
from pipelines.checks import in_config_words
from pipelines.config import AlignmentsSection, PipelineConfig, check_config, inputs_only
from pipelines.errors import PipelineError
from pipelines.options import EXIT_INTERRUPTED, errors


def raw(**changes: Any) -> dict[str, Any]:
    return {
        "out": "out",
        "model": "ViT-B-16",
        "pretrained": "none",
        "corpus": {"labels": "labels.txt"},
        "labels": {"train": {"file": "labels.txt"}},
        "alignments": {"videos": "videos"},
        "adapters": {"a": {"labels": "train"}, "b": {"labels": "train"}},
        **changes,
    }


def problems(inputs: bool = False, base: Path = Path("."), **changes: Any) -> str:
    with pytest.raises(PipelineError) as caught:
        check_config(raw(**changes), base, "x.yaml", inputs)
    return str(caught.value)


def test_a_key_in_the_wrong_place_says_where_it_belongs() -> None:
    text = problems(corpus={"labels": "x", "nltk_data": "y"}, frames=8)
    assert "corpus.nltk_data: unknown key; nltk_data belongs at the top level of the file" in text
    assert "frames: unknown key; frames belongs under alignments" in text
    text = problems(alignments={"videos": "v", "slurm": {"tme": "1"}})
    assert "alignments.slurm.tme: unknown key (did you mean 'time'?)" in text


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("--top-k 9 needs 9 entities", "top_k 9 needs 9 entities"),
        (
            "--device cuda: no usable GPU here; use --device cpu",
            "device cuda: no usable GPU here; use device cpu",
        ),
        (
            "run `aligner run --store fp16`, not --store topk",
            "run `aligner run --store fp16`, not store topk",
        ),
        ("give --force to start over", "give --force to start over"),
        ("--no-proportional-attention is odd", "proportional_attention is odd"),
    ],
)
def test_options_become_keys_but_for_commands_and_what_is_no_key(said: str, expected: str) -> None:
    assert in_config_words(said, AlignmentsSection.model_fields) == expected


def test_test_alignments_are_as_those_trained_on_but_for_what_they_say() -> None:
    base = {
        "videos": "videos",
        "frames": 16,
        "sampling": "tsn",
        "draws": 4,
        "splits": ["train"],
        "store": "int8",
    }
    tests = {
        "views": {"sampling": "uniform", "clips": 3, "splits": ["test"]},
        "other": {"videos": "elsewhere"},
    }
    config = check_config(raw(alignments=base, test_alignments=tests), Path("/d"), inputs=False)
    views, other = config.test_alignments["views"], config.test_alignments["other"]
    assert (views.videos, views.frames, views.store) == (Path("/d/videos"), 16, "int8")
    assert (views.sampling, views.draws, views.clips, views.splits) == ("uniform", 1, 3, ["test"])
    assert (other.videos, other.splits, other.draws) == (Path("/d/elsewhere"), None, 4)
    # What is written into the run's folder is spelled out, and reads back the same.
    assert check_config(config.model_dump(mode="json", exclude_none=True), Path("/"), inputs=False) == config


def test_protocols_need_lists_and_as_many_adapters_as_they_name() -> None:
    text = problems(protocols=[{"name": "ucf101-supervised", "labels": "train", "runs": ["a", "b"]}])
    assert "protocols.ucf101-supervised.runs: ucf101-supervised needs 3 adapters, trained on split 1" in text
    assert "lists: missing; protocols need the folder of official lists" in text
    text = problems(protocols=[{"name": "mine", "protocol": "ucf101-ep4", "labels": "new", "runs": ["c"]}])
    assert "no protocol 'ucf101-ep4' (did you mean 'ucf101-ep" in text
    assert (
        "protocols.mine.labels: there is no 'new'" in text and "protocols.mine.runs: there is no 'c'" in text
    )
    text = problems(evaluations=[{"name": "t", "labels": "train", "alignments": "vew"}])
    assert "evaluations.t.alignments: there is no 'vew'; there are none" in text
    text = problems(evaluations=[{"name": "t", "labels": "train"}] * 2)
    assert "evaluations: two are named 't'" in text


def test_a_training_split_that_no_video_has_is_known_beforehand(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("running\n")
    (tmp_path / "v.csv").write_text("path,label,split\na.mp4,running,one+two\nb.mp4,running,test\n")
    adapters = {"a": {"labels": "train", "split": "two"}, "b": {"labels": "train"}}
    text = problems(True, tmp_path, alignments={"videos": "v.csv"}, adapters=adapters)
    assert "adapters.b.split: no video has split 'train' (there are: one, test, two)" in text
    assert "adapters.a" not in text


def test_the_ablation_takes_the_adapters_options() -> None:
    told = {"labels": "train", "options": {"epochs": 2}, "few_options": {"lr": 0.1}}
    config = check_config(raw(ablation=told), Path("/d"), inputs=False)
    assert config.ablation and config.ablation.options == {"epochs": 2}
    assert "ablation.labels: there is no 'x'" in problems(ablation=told | {"labels": "x"})


def test_sets_of_prompts_go_by_name(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a clip of {}.\n")
    config = check_config(raw(labels={"train": {"file": "x", "templates": "p.txt"}}), tmp_path, inputs=False)
    assert config.labels["train"].prompts() == ("a clip of {}.",)
    text = problems(True, tmp_path, labels={"train": {"file": "x", "templates": "nne"}})
    assert "labels.train: templates 'nne' is neither a file nor a named set" in text


def test_what_is_left_without_adapters_is_a_config(miniature: PipelineConfig) -> None:
    left = check_config(inputs_only(miniature), Path("/"), inputs=False)
    assert left.corpus == miniature.corpus and not (left.adapters or left.evaluations or left.report)


def test_a_stage_s_error_names_the_key(miniature: PipelineConfig, tmp_path: Path) -> None:
    shutil.copytree(miniature.out, tmp_path / "out")
    many = miniature.alignments.model_copy(update={"top_k": 5000})
    changed = miniature.model_copy(update={"out": tmp_path / "out", "alignments": many})
    with pytest.raises(PipelineError, match="^alignments: top_k 5000 needs at least 5000 entities"):
        workflow.run_pipeline(changed, lambda line: None)


def test_a_dry_run_refuses_a_tag_that_does_not_exist(miniature: PipelineConfig, tmp_path: Path) -> None:
    changed = miniature.model_copy(
        update={"out": tmp_path / "new", "model": "ViT-B-32", "pretrained": "opnai"}
    )
    with pytest.raises(PipelineError, match=r"^pretrained 'opnai' is neither .*did you mean 'openai'"):
        workflow.run_pipeline(changed, lambda line: None, dry_run=True, probe=1)
    assert not (tmp_path / "new").exists()


def test_markers_are_read_once_until_the_folder_changes(
    miniature: PipelineConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aligner import artifact

    folder, read, really = tmp_path / "a", [], artifact.output_fingerprint
    shutil.copytree(miniature.out / "alignments", folder)
    monkeypatch.setattr(artifact, "output_fingerprint", lambda path: (read.append(path), really(path))[1])
    first = workflow.aligned_fingerprint(folder)
    assert first is not None and workflow.aligned_fingerprint(folder) == first and len(read) == 1
    (folder / "shard-00001.json").unlink()
    assert workflow.aligned_fingerprint(folder) is None and len(read) == 2
    assert workflow.aligned_fingerprint(tmp_path / "none") is None


def test_ctrl_c_says_that_the_same_command_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    for goes_on, expected in ((True, "stopped; the same command goes on from here\n"), (False, "stopped\n")):
        with pytest.raises(typer.Exit) as caught, errors(goes_on):
            raise KeyboardInterrupt
        assert caught.value.exit_code == EXIT_INTERRUPTED and capsys.readouterr().err == expected
