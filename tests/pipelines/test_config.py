"""The YAML of ``alt run``: every mistake is one clear line, and all lines come together."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.config import check_config, load_config
from pipelines.errors import PipelineError
from pipelines.template import read_recipe, write_template


def raw() -> dict[str, Any]:
    return {
        "out": "out",
        "model": "ViT-B-16",
        "pretrained": "none",
        "corpus": {"labels": "labels.txt"},
        "labels": {"train": {"file": "labels.txt"}},
        "alignments": {"videos": "videos"},
        "adapters": {"alt": {"labels": "train", "epochs": 2}},
        "evaluations": [{"name": "test", "labels": "train"}],
        "report": {"adapter": "alt", "evaluation": "test"},
    }


def problems(changed: dict[str, Any], inputs: bool = False) -> str:
    with pytest.raises(PipelineError) as caught:
        check_config(changed, Path("."), "x.yaml", inputs)
    assert "None" not in str(caught.value)
    return str(caught.value)


def test_a_good_config_resolves_paths_against_its_folder(tmp_path: Path) -> None:
    config = check_config(raw(), tmp_path, inputs=False)
    assert config.out == tmp_path.resolve() / "out"
    assert config.labels["train"].file == tmp_path.resolve() / "labels.txt"
    assert config.corpus.labels == tmp_path.resolve() / "labels.txt"
    assert config.adapters["alt"].options() == {"epochs": 2}


@pytest.mark.parametrize(
    ("where", "key", "hint"),
    [
        ((), "modle", "modle: unknown key (did you mean 'model'?)"),
        (("corpus",), "lables", "corpus.lables: unknown key (did you mean 'labels'?)"),
        (("alignments",), "frame", "alignments.frame: unknown key (did you mean 'frames'?)"),
        (("labels", "train"), "fil", "labels.train.fil: unknown key (did you mean 'file'?)"),
        (("report",), "video", "report.video: unknown key (did you mean 'videos'?)"),
    ],
)
def test_a_typo_gets_a_suggestion(where: tuple[str, ...], key: str, hint: str) -> None:
    changed = raw()
    section = changed
    for name in where:
        section = section[name]
    section[key] = "x"
    assert hint in problems(changed)


def test_the_adapters_own_options_are_checked_too() -> None:
    changed = raw()
    changed["adapters"]["alt"]["epocks"] = 3
    assert "adapters.alt: unknown option 'epocks' (did you mean 'epochs'?)" in problems(changed)


def test_a_store_without_regions_is_refused_before_anything_runs() -> None:
    changed = raw()
    changed["alignments"]["store"] = "topk"
    text = problems(changed)
    assert (
        "adapters.alt: context=regions reads the embeddings of regions" in text and "use context=cls" in text
    )
    changed["adapters"]["alt"] = {"labels": "train", "queries": "tracks", "context": "cls"}
    assert check_config(changed, Path("."), inputs=False).alignments.store == "topk"
    changed["alignments"]["store"] = "fp8"
    assert "alignments.store: Input should be 'fp16', 'int8' or 'topk', got 'fp8'" in problems(changed)


def test_all_problems_are_reported_together() -> None:
    changed = raw()
    changed["modle"] = "x"
    changed["alignments"] = {"frames": "many"}
    changed["adapters"]["alt"]["epocks"] = 3
    text = problems(changed)
    assert "4 problem(s)" in text and "did you mean 'epochs'?" in text
    assert "alignments.videos: missing" in text and "alignments.frames" in text and "'many'" in text


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"adapters": {"alt": {"labels": "trian"}}},
            "adapters.alt.labels: there is no 'trian' (did you mean 'train'?)",
        ),
        (
            {"evaluations": [{"name": "test", "labels": "new"}]},
            "evaluations.test.labels: there is no 'new'; there are train",
        ),
        ({"report": {"adapter": "alt", "evaluation": "tset"}}, "did you mean 'test'?"),
        ({"adapters": {"../x": {"labels": "train"}}, "report": None}, "'../x' cannot name a folder"),
    ],
)
def test_names_must_refer_to_something(change: dict[str, Any], expected: str) -> None:
    assert expected in problems(raw() | change)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a: [1", "not valid YAML"), ("- 1", "a mapping with the keys"), ("", "a mapping with")],
)
def test_broken_files(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(PipelineError, match=expected):
        load_config(file)


def test_a_missing_file_names_the_command_that_writes_one(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="alt init"):
        load_config(tmp_path / "none.yaml")


def test_the_template_is_a_valid_config(tmp_path: Path) -> None:
    write_template(tmp_path / "alt.yaml")
    with pytest.raises(PipelineError, match="labels.csv"):
        load_config(tmp_path / "alt.yaml")  # names files that the user has to bring
    (tmp_path / "labels.csv").write_text("name\nrunning\n")
    (tmp_path / "videos.csv").write_text("path,label\na.mp4,running\n")
    config = load_config(tmp_path / "alt.yaml")
    assert (config.model, config.pretrained) == ("ViT-B-16", "openai")
    assert yaml.safe_load(read_recipe("own-data"))["alignments"]["merge"] == 8
    with pytest.raises(PipelineError, match="--force"):
        write_template(tmp_path / "alt.yaml")


def test_a_dumped_config_reads_back_the_same(tmp_path: Path) -> None:
    config = check_config(raw(), tmp_path, inputs=False)
    again = check_config(config.model_dump(mode="json", exclude_none=True), Path("/elsewhere"), inputs=False)
    assert again == config


def test_missing_inputs_are_found_before_anything_runs() -> None:
    text = problems(raw() | {"corpus": {"captions": "c.txt", "taggers": "nltkk"}}, inputs=True)
    assert "corpus.captions: there is no" in text and "labels.train.file: there is no" in text
    assert "alignments.videos: there is no" in text and "did you mean 'nltk'?" in text


def test_every_setting_of_the_corpus_reaches_its_stage(tmp_path: Path) -> None:
    (tmp_path / "cues.json").write_text("{}")
    told = {
        "labels": "labels.txt",
        "related": 3,
        "size": 9,
        "merge_above": 0.9,
        "max_words": 2,
        "processes": 2,
    }
    told |= {"sources": ["related", "label"], "expansions": ["cues.json"], "deny": "deny.txt"}
    section = check_config(raw() | {"corpus": told}, tmp_path, inputs=False).corpus
    settings = section.settings()
    assert (settings.related, settings.size, settings.merge_above, settings.max_words) == (3, 9, 0.9, 2)
    assert settings.sources == ("label", "related")
    root = tmp_path.resolve()
    assert section.files() == {
        "labels": root / "labels.txt",
        "deny": root / "deny.txt",
        "expansions.0": root / "cues.json",
    }
    assert "corpus.deny: there is no" in problems(raw() | {"corpus": told}, inputs=True)
    wrong = raw() | {"corpus": {"labels": "labels.txt", "sources": ["lable"]}}
    assert "corpus: sources is 'lable'" in problems(wrong, inputs=True)


def test_views_that_the_aligner_refuses_are_found_before_anything_runs() -> None:
    for told, expected in (
        ({"sampling": "dense"}, "alignments: stride is for sampling dense, which needs it"),
        ({"crops": 2}, "alignments: crops must be one of 1, 3"),
        ({"sampling": "tsn", "clips": 2}, "alignments: clips is not for sampling tsn"),
    ):
        changed = raw() | {"alignments": {"videos": "videos", **told}}
        with pytest.raises(PipelineError) as caught:
            check_config(changed, Path("."), "x.yaml")
        assert expected in str(caught.value)


def test_a_corpus_needs_something_to_mine() -> None:
    assert "nothing to mine" in problems(raw() | {"corpus": {}}, inputs=True)


@pytest.mark.parametrize("section", ["corpus", "labels", "alignments", "out", "model"])
def test_a_missing_section_says_what_it_is_for(section: str) -> None:
    changed = raw()
    del changed[section]
    assert f"{section}: missing; " in problems(changed)


def test_the_report_needs_an_adapter_that_its_evaluation_scores() -> None:
    changed = raw()
    changed["adapters"]["other"] = {"labels": "train"}
    changed["evaluations"][0]["adapters"] = ["other"]
    assert "report.adapter (in its evaluation): there is no 'alt'" in problems(changed)
