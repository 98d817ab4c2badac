"""The examples run as they are told to, on tiny data."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

import corpus_builder as cb
from corpus_builder.options import plain_errors

ROOT = Path(__file__).resolve().parents[2]


def command(name):
    """The command of an example, to be run in this process."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    app = typer.Typer()
    app.command()(plain_errors(module.main))
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("name", ["tag_photos", "captions_by_entity"])
def test_examples_are_scripts(name):
    script = [sys.executable, ROOT / "examples" / f"{name}.py", "--help"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(script, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "Usage" in done.stdout, done.stderr


@pytest.fixture(scope="module")
def corpus(embedded_corpus, tiny_clip, tmp_path_factory):
    keys = ["dog.n.01", "horse.n.01", "car.n.01", "hand.n.01"]
    names = [key.split(".")[0] for key in keys]
    columns = {"key": keys, "sense": keys, "kind": ["animal", "animal", "object", "body part"]}
    return embedded_corpus(tmp_path_factory.mktemp("x") / "corpus", names, tiny_clip, **columns)


def test_tag_photos(corpus, tmp_path):
    photos = tmp_path / "photos"
    (photos / "deeper").mkdir(parents=True)
    noise = np.random.default_rng(0)
    for name in ("a.png", "deeper/b.JPG"):
        Image.fromarray(noise.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(photos / name)
    (photos / "notes.txt").write_text("no photo")
    done = command("tag_photos")(corpus, photos, "--k", 2, "--device", "cpu")
    assert done.exit_code == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [Path(row["path"]).name for row in told] == [
        "a.png",
        "b.JPG",
    ] and "2 of 2 photos tagged" in done.stderr
    opened = cb.open(corpus, device="cpu")
    for row in told:
        assert [tag["name"] for tag in row["tags"]] == [
            hit.name for hit in opened.search_image(row["path"], 2)
        ]
    (photos / "bad.png").write_text("no picture")
    done = command("tag_photos")(corpus, photos, "--kind", "animal", "--device", "cpu")
    assert done.exit_code == 2 and "2 of 3 photos tagged" in done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert {tag["name"] for row in told for tag in row["tags"]} == {"dog", "horse"}
    assert [row["error"] is None for row in told] == [True, False, True]


CAPTIONS = "A Dog runs\na man in a car\n\na beagle sleeps\neating a hot dog\na red bicycle\n"


@pytest.mark.shared
@pytest.mark.parametrize(
    ("entity", "lines"),
    [
        ("dog", [1, 3]),
        ("animal.n.01", [1, 3]),
        ("vehicle", [2, 5]),  # in no corpus: WordNet's first sense
        ("horse", []),
    ],
)
def test_captions_by_entity(corpus, shared, tmp_path, entity, lines):
    (tmp_path / "c.txt").write_text(CAPTIONS)
    done = command("captions_by_entity")(
        corpus, tmp_path / "c.txt", entity, "--taggers", "wordnet",
        "--nltk-data", shared / "nltk_data",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    told = [line.split("\t") for line in done.stdout.splitlines()]
    assert [int(line) for line, _, _ in told] == lines and f"{len(lines)} captions speak of" in done.stderr
    captions = [text for text in CAPTIONS.splitlines() if text]
    assert [text for _, _, text in told] == [captions[line - 1] for line in lines]


@pytest.mark.shared
def test_captions_by_entity_in_order_of_cosine(corpus, shared, tmp_path):
    (tmp_path / "c.txt").write_text(CAPTIONS)
    arguments = [tmp_path / "c.txt", "animal.n.01", "--rank", "--taggers", "wordnet", "--device", "cpu"]
    done = command("captions_by_entity")(corpus, *arguments, "--nltk-data", shared / "nltk_data")
    assert done.exit_code == 0, done.stderr
    told = [line.split("\t")[2] for line in done.stdout.splitlines()]
    opened = cb.open(corpus, device="cpu")
    cosines = (opened.encoder.encode(told) @ opened.embeddings[:2].T).max(axis=1)
    assert len(told) == 2 and cosines[0] >= cosines[1]


@pytest.mark.shared
def test_an_unknown_entity_is_one_line(corpus, shared, tmp_path):
    (tmp_path / "c.txt").write_text(CAPTIONS)
    done = command("captions_by_entity")(
        corpus, tmp_path / "c.txt", "qwertz", "--nltk-data", shared / "nltk_data"
    )
    assert (
        done.exit_code == 1 and done.stderr.strip() == "error: neither the corpus nor WordNet knows 'qwertz'"
    )
