import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from aligner.corpus import load_corpus
from corpus_builder import artifact
from corpus_builder.cli import app
from corpus_builder.embed import load_text_encoder

WORDS = "horse\nHorses\nhot dog\nwug\nwugs\nguitar\ta thing with six strings\nbat.n.05\n\nbat.n.77\n"


def run(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


def rows(folder):
    return {row["key"]: row for row in artifact.open_corpus(folder).table.to_pylist()}


@pytest.fixture(scope="module")
def listed(shared, tiny_clip, tmp_path_factory):
    folder = tmp_path_factory.mktemp("list")
    (folder / "words.txt").write_text(WORDS)
    done = run(
        "import", folder / "words.txt", "--model", tiny_clip, "--nltk-data", shared / "nltk_data",
        "--device", "cpu", "--out", folder / "corpus",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    return folder / "corpus", done


@pytest.mark.shared
def test_a_list_becomes_a_corpus_with_variants_merged_and_rows_counted(listed, tiny_clip):
    folder, done = listed
    found = rows(folder)
    assert set(found) == {"horse.n.01", "hotdog.n.02", "wug", "guitar.n.01", "bat.n.05"}
    assert found["horse.n.01"]["count"] == 2 and found["horse.n.01"]["kind"] == "animal"
    assert found["guitar.n.01"]["text"] == "guitar: a thing with six strings"
    assert found["bat.n.05"]["text"] == f"bat: {found['bat.n.05']['gloss']}"
    assert all(row["sources"] == ["list"] and row["labels"] == [] for row in found.values())
    merged = pq.read_table(folder / artifact.MERGED).to_pylist()
    assert [(row["key"], row["reason"]) for row in merged] == [("wugs", "variant")]
    counts = artifact.open_corpus(folder).manifest["counts"]
    assert counts["dropped"] == {"blank": 1, "no such noun synset in WordNet": 1}
    assert counts["candidates"] == 9 == counts["kept"] + 2
    assert "9 rows, 7 kept" in done.stderr and "2 kept without a sense" in done.stderr
    table = artifact.open_corpus(folder).table
    expected = load_text_encoder(tiny_clip, device="cpu").encode(table["text"].to_pylist())
    np.testing.assert_allclose(load_corpus(folder).embeddings, expected, atol=1e-6)


def test_words_as_they_are_need_no_wordnet(tiny_clip, tmp_path):
    (tmp_path / "w.txt").write_text(WORDS)
    done = run(
        "import", tmp_path / "w.txt", "--model", tiny_clip, "--no-senses", "--nltk-data", tmp_path, "--device", "cpu",
        "--out", tmp_path / "c",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    found = rows(tmp_path / "c")
    assert set(found) == {"horse", "hot dog", "wug", "guitar", "bat.n.05", "bat.n.77"}
    assert {row["kind"] for row in found.values()} == {"phrase"}
    assert "wordnet" not in artifact.open_corpus(tmp_path / "c").manifest["inputs"]


@pytest.mark.shared
def test_random_nouns_are_as_many_as_and_none_of_the_corpus(listed, shared, tiny_clip, tmp_path):
    given = ["random", "--model", tiny_clip, "--nltk-data", shared / "nltk_data", "--device", "cpu", "--out"]
    for name in ("a", "b"):
        assert run(*given, tmp_path / name, "--not-in", listed[0], "--seed", 3).exit_code == 0
    assert rows(tmp_path / "a") == rows(tmp_path / "b")
    found = rows(tmp_path / "a")
    assert len(found) == 5 and not found.keys() & rows(listed[0]).keys()
    assert {row["source"] for row in found.values()} == {"random"}
    assert all(row["text"] == f"{row['name']}: {row['gloss']}" for row in found.values())
    manifest = artifact.open_corpus(tmp_path / "a").manifest
    assert manifest["inputs"]["not_in0"]["sha256"] == artifact.open_corpus(listed[0]).fingerprint
    assert len(load_corpus(tmp_path / "a").names) == 5
    assert run(*given, tmp_path / "c", "--size", 12).exit_code == 0 and len(rows(tmp_path / "c")) == 12
    assert json.loads(run("stats", tmp_path / "c", "--json").stdout)["by_source"] == {"random": 12}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["random"], "say how many random nouns: give --size N, or --not-in CORPUS"),
        (["random", "--size", "0"], "--size is 0, expected at least 1"),
        (["random", "--size", "5", "--not-in", "nothing"], "found no manifest.json in 'nothing'"),
        (["import", "blank.txt", "--no-senses"], "blank.txt gives no entity: 2 rows, 0 kept"),
        (["import", "w.txt", "--no-senses", "--size", "3"], "--size is 3, but there are 2 entities"),
        (["import", "nothing.txt", "--no-senses"], "nothing.txt: no such file"),
    ],
)
def test_errors_are_one_line(arguments, message, tiny_clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "blank.txt").write_text(" \n--\n")
    (tmp_path / "w.txt").write_text("horse\ncow\n")
    done = run(*arguments, "--model", tiny_clip, "--out", "x", "--device", "cpu", "--quiet")
    assert done.exit_code == 1 and message in done.stderr and len(done.stderr.strip().splitlines()) == 1
