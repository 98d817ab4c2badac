import csv
import json
import re

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from corpus_builder import artifact
from corpus_builder.card import CARD, DATA
from corpus_builder.cli import app
from corpus_builder.config import CorpusError
from corpus_builder.export import export

NASTY = [
    "=1+1",
    "+49 30",
    "-ly",
    "@home",
    "null",
    "nan",
    'a "quoted", one',
    "zwei\nzeilen",
    "übung 🎸",
    "a|b`c`",
]


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def corpus(plain_corpus, tmp_path_factory):
    """Names that formats trip over, with lists of none, one and two; half of them have a sense."""
    vectors = np.random.default_rng(0).normal(size=(len(NASTY), 24)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    numbers = range(len(NASTY))
    folder = tmp_path_factory.mktemp("export") / "corpus"
    columns = {
        "labels": [NASTY[: n % 3] for n in numbers],
        "contexts": [[f"a text with {NASTY[n]}"] for n in numbers],
        "gloss": [None if n % 2 else f"gloss, {n}" for n in numbers],
        "kind": ["object" if n % 2 else "phrase" for n in numbers],
        "count": [n * 10**9 for n in numbers],
    }
    return artifact.open_corpus(plain_corpus(folder, NASTY, vectors, **columns))


def rows(corpus, embeddings=True):
    return (corpus.table if embeddings else corpus.table.drop_columns(["embedding"])).to_pylist()


@pytest.mark.parametrize("embeddings", [False, True])
def test_json_lines_come_back_equal(corpus, tmp_path, embeddings):
    export(corpus.folder, tmp_path / "e.jsonl", embeddings=embeddings)
    told = [json.loads(line) for line in (tmp_path / "e.jsonl").read_text("utf-8").split("\n")[:-1]]
    if embeddings:
        vectors = np.array([row.pop("embedding") for row in told], dtype=np.float32)
        assert np.array_equal(vectors, corpus.embeddings)
    assert told == rows(corpus, embeddings=False)


@pytest.mark.parametrize("embeddings", [False, True])
def test_csv_comes_back_equal(corpus, tmp_path, embeddings):
    export(corpus.folder, tmp_path / "e.csv", embeddings=embeddings)
    with (tmp_path / "e.csv").open(newline="", encoding="utf-8") as stream:
        told = list(csv.DictReader(stream))
    for row, expected in zip(told, rows(corpus), strict=True):
        if embeddings:
            vector = np.array(json.loads(row.pop("embedding")), dtype=np.float32)
            assert vector.tolist() == expected["embedding"]
        del expected["embedding"]
        for name, value in expected.items():
            if isinstance(value, list):
                assert json.loads(row[name]) == value
            else:
                assert row[name] == ("" if value is None else str(value))
    frame = pd.read_csv(tmp_path / "e.csv", keep_default_na=False)
    assert frame["name"].tolist() == NASTY and frame["count"].tolist() == corpus.table["count"].to_pylist()


def test_cells_that_look_like_formulas_stay_data_and_are_counted(corpus, tmp_path):
    done = run("export", corpus.folder, "--out", tmp_path / "e.csv")
    assert done.exit_code == 0 and "10 entities as csv" in done.stdout
    # four such names, each also key and text
    assert "12 cells begin with = + - or @" in done.stderr and "import the columns as text" in done.stderr
    assert pd.read_csv(tmp_path / "e.csv")["name"][0] == "=1+1"
    assert run("export", corpus.folder, "--out", tmp_path / "e.jsonl").stderr == ""


def test_the_dataset_folder_is_the_table(corpus, tmp_path):
    done = run("export", corpus.folder, "--format", "hf", "--out", tmp_path / "d")
    assert done.exit_code == 0, done.output
    table = pq.read_table(tmp_path / "d" / DATA)
    assert table.to_pylist() == rows(corpus)
    assert (
        str(table.schema.field("embedding").type).startswith("list<")
        and table.schema.names == corpus.table.schema.names
    )
    for field in table.schema:
        assert field.metadata[b"unit"] == corpus.table.schema.field(field.name).metadata[b"unit"]
    frame = pd.read_parquet(tmp_path / "d" / DATA)
    assert np.array_equal(np.stack(frame["embedding"]), corpus.embeddings) and frame["name"].tolist() == NASTY


def test_hugging_face_datasets_loads_the_folder(corpus, tmp_path):
    datasets = pytest.importorskip("datasets")
    export(corpus.folder, tmp_path / "d", form="hf")
    loaded = datasets.load_dataset(str(tmp_path / "d"), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.to_list() == rows(corpus)
    assert np.array_equal(loaded.with_format("numpy")["embedding"][:], corpus.embeddings)


def front_matter(card):
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)[1])


def test_the_card_is_filled(corpus, tmp_path):
    export(corpus.folder, tmp_path / "d", form="hf")
    card = (tmp_path / "d" / CARD).read_text("utf-8")
    matter = front_matter(card)
    assert (
        matter["size_categories"] == ["n<1K"]
        and matter["language"] == ["en"]
        and matter["license"] == "other"
    )
    assert matter["configs"][0]["data_files"] == [{"split": "train", "path": DATA}]
    for needed in (corpus.fingerprint, corpus.manifest["model"]["weights_sha256"], "ViT-B-16", "openai"):
        assert needed in card
    for title in (
        "How it was made",
        "Model",
        "What is in it",
        "Columns",
        "Known limits",
        "How to load it",
        "Rights",
    ):
        assert f"## {title}\n" in card
    assert "Align before Adapt" in card and "Miller, George A." in card
    assert "| kind | object | 5 |" in card and "| source | label | 10 |" in card
    for field in corpus.table.schema:
        assert re.search(
            rf"^\| {field.name} \| .* \| {re.escape(field.metadata[b'unit'].decode())} \|", card, re.M
        )
    assert not re.search("more information needed|todo|random weights", card, re.I)


def test_the_card_names_inputs_losses_and_random_weights(plain_corpus, tmp_path):
    from corpus_builder.card import data_card

    model = {
        "name": "x",
        "pretrained": "none",
        "weights_sha256": "1" * 64,
        "embed_dim": 4,
        "random_weights": True,
    }
    opened = artifact.open_corpus(plain_corpus(tmp_path / "c", ["a"], np.eye(4, dtype=np.float32)[:1], model))
    opened.manifest["inputs"] = {"labels": {"file": "my|labels<b>.csv", "sha256": "2" * 64}}
    opened.manifest["counts"] = {"dropped": {"too rare": 3, "stop word": 4}, "texts_truncated": 0}
    card = data_card(opened)
    assert r"| labels | my\|labels\<b\>.csv | " + "2" * 64 in card
    assert "- 7 phrases of the input were dropped" in card and "longer than the model reads" not in card
    assert "RANDOM WEIGHTS" in card and "mean nothing" in card


@pytest.mark.parametrize(
    ("size", "category"),
    [(1, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (10_000, "10K<n<100K"), (2_000_000, "1M<n<10M")],
)
def test_size_categories_are_the_hub_s(size, category):
    from corpus_builder.card import _front_matter

    assert front_matter(_front_matter(size, "data/*.parquet"))["size_categories"] == [category]


def test_the_same_corpus_gives_the_same_bytes_wherever_it_lies(corpus, plain_corpus, tmp_path):
    columns = {
        name: corpus.table[name].to_pylist() for name in ("labels", "contexts", "gloss", "kind", "count")
    }
    model = corpus.manifest["model"]
    copy = plain_corpus(
        tmp_path / "elsewhere", NASTY, corpus.embeddings, model, {"model": "local-dir:/x"}, **columns
    )
    for name, form in (("a.csv", None), ("a.jsonl", None), ("d", "hf")):
        export(corpus.folder, tmp_path / "1" / name, form=form, embeddings=True)
        export(copy, tmp_path / "2" / name, form=form, embeddings=True)
    first = {
        p.relative_to(tmp_path / "1"): p.read_bytes() for p in (tmp_path / "1").rglob("*") if p.is_file()
    }
    second = {
        p.relative_to(tmp_path / "2"): p.read_bytes() for p in (tmp_path / "2").rglob("*") if p.is_file()
    }
    assert first == second and len(first) == 4


def test_an_export_replaces_its_own_files_and_no_others(corpus, tmp_path):
    out = tmp_path / "d"
    for _ in range(2):
        export(corpus.folder, out, form="hf")
    assert sorted(p.name for p in out.rglob("*") if p.is_file()) == [CARD, DATA.split("/")[1]]
    (out / "notes.txt").touch()
    with pytest.raises(CorpusError, match="holds other things .notes.txt"):
        export(corpus.folder, out, form="hf")
    export(corpus.folder, out, form="hf", force=True)
    assert (out / "notes.txt").exists()
    with pytest.raises(CorpusError, match="holds other things"):
        export(corpus.folder, corpus.folder, form="hf")


def test_a_dataset_without_its_card_is_what_a_killed_export_leaves(corpus, tmp_path, monkeypatch):
    """The card goes first and comes last, so an old card never stands beside a new table."""
    export(corpus.folder, tmp_path / "d", form="hf")
    (tmp_path / "d" / DATA).unlink()
    (tmp_path / "d" / DATA).mkdir()  # nothing can be renamed onto it
    with pytest.raises(OSError):
        export(corpus.folder, tmp_path / "d", form="hf")
    assert not (tmp_path / "d" / CARD).exists() and not list((tmp_path / "d").rglob(".tmp-*"))


@pytest.mark.parametrize(
    ("out", "form", "message"),
    [
        ("e.xlsx", None, "ends with neither .csv nor .jsonl; give --format"),
        ("folder", None, "give --format csv, jsonl or hf"),
        ("folder", "csv", "is a folder, expected a file such as"),
        ("file.txt", "hf", "is a file, expected a folder"),
        ("file.txt/e.csv", None, "lies below"),
        ("e.csv", "cvs", "--format is 'cvs', expected one of csv, jsonl, hf .did you mean 'csv'"),
    ],
)
def test_places_that_cannot_be_written_to_are_told(corpus, tmp_path, out, form, message):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file.txt").touch()
    with pytest.raises(CorpusError, match=message):
        export(corpus.folder, tmp_path / out, form=form)


def test_without_a_corpus_nothing_is_written(tmp_path):
    done = run("export", tmp_path, "--out", tmp_path / "e.csv")
    assert (
        done.exit_code == 1
        and "produced by `corpus-builder build" in done.stderr
        and not (tmp_path / "e.csv").exists()
    )


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=20))
def test_numbers_written_short_are_the_same_float32(numbers):
    vector = np.array(numbers, dtype=np.float32)
    short = [float(number) for number in vector.astype(str)]
    assert np.array_equal(np.array(json.loads(json.dumps(short)), dtype=np.float32), vector)


@pytest.mark.shared
def test_real_vectors_come_back_from_every_format(real_vectors, plain_corpus, tmp_path):
    names, vectors = real_vectors
    folder = plain_corpus(tmp_path / "c", names, vectors)
    export(folder, tmp_path / "e.jsonl", embeddings=True)
    frame = pd.read_json(tmp_path / "e.jsonl", lines=True)
    assert np.array_equal(np.array(frame["embedding"].tolist(), dtype=np.float32), vectors)
    export(folder, tmp_path / "d", form="hf")
    frame = pd.read_parquet(tmp_path / "d" / DATA)
    assert frame["name"].tolist() == names and np.array_equal(np.stack(frame["embedding"]), vectors)
