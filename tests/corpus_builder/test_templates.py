import json
from importlib.resources import files

import pytest
from typer.testing import CliRunner

from corpus_builder.cli import app
from corpus_builder.config import DEFAULT_TEMPLATES, CorpusError, check_templates
from corpus_builder.templates import SETS, load_templates, template_sets


def test_every_set_holds_distinct_prompts_with_one_place_and_names_its_source():
    told = json.loads(files("corpus_builder").joinpath(SETS).read_text())
    for name, templates in template_sets().items():
        assert check_templates(templates) == templates and len(set(templates)) == len(templates)
        assert set(told[name]) == {"source", "templates"} and len(told[name]["source"]) > 10


def test_the_sets_are_as_large_as_published():
    sizes = {name: len(templates) for name, templates in template_sets().items()}
    assert sizes[DEFAULT_TEMPLATES] == sizes["actionclip"] == 16 and sizes["clip-kinetics"] == 28
    assert load_templates("bare") == ("{}",) and load_templates("photo") == ("a photo of a {}.",)


def test_help_names_every_set():
    shown = (
        CliRunner().invoke(app, ["labels", "--help"], env={"COLUMNS": "400", "TERMINAL_WIDTH": "400"}).output
    )
    for name in template_sets():
        assert name in shown


def test_a_file_of_templates_or_the_reason_why_not(tmp_path):
    (tmp_path / "t.txt").write_text("a drawing of {}.\n\n  {}, drawn\n")
    assert load_templates(str(tmp_path / "t.txt")) == ("a drawing of {}.", "{}, drawn")
    (tmp_path / "bad.txt").write_text("a drawing\n")
    with pytest.raises(CorpusError, match="--template 'a drawing' must hold the place"):
        load_templates(str(tmp_path / "bad.txt"))
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(CorpusError, match="the list is empty"):
        load_templates(str(tmp_path / "empty.txt"))
    (tmp_path / "latin.txt").write_bytes("café {}".encode("latin-1"))
    with pytest.raises(CorpusError, match="latin.txt is not UTF-8"):
        load_templates(str(tmp_path / "latin.txt"))
    with pytest.raises(CorpusError, match="neither a file nor a named set .did you mean 'photo'"):
        load_templates("phot")


def test_labels_with_a_named_set(tiny_clip, tmp_path):
    (tmp_path / "l.txt").write_text("archery\nriding horse\n")
    base = ["labels", "--labels", str(tmp_path / "l.txt"), "--model", tiny_clip, "--device", "cpu", "--quiet"]
    done = CliRunner().invoke(app, [*base, "--templates", "photo", "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.stderr
    config = json.loads((tmp_path / "out/manifest.json").read_text())["config"]
    assert config["templates"] == ["a photo of a {}."] and config["precision"] == "fp32"
    done = CliRunner().invoke(
        app, [*base, "--templates", "bare", "--template", "{}", "--out", str(tmp_path / "x")]
    )
    assert done.exit_code == 1 and "exclude each other" in done.stderr
