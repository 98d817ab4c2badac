import json

import pytest
from typer.testing import CliRunner

from corpus_builder import artifact, build
from corpus_builder.cli import app
from corpus_builder.config import CorpusConfig
from corpus_builder.coverage import cover
from corpus_builder.unmined import import_words

pytestmark = pytest.mark.shared


def run(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture(scope="module")
def place(shared, tiny_clip, tmp_path_factory):
    folder = tmp_path_factory.mktemp("coverage")
    (folder / "own.txt").write_text("playing guitar\nfeeding horse\nzumba\n")
    (folder / "other.txt").write_text("grooming horse\nplaying cello\nZumba\n")
    inputs = build.Inputs(labels=folder / "own.txt", nltk_data=shared / "nltk_data")
    config = CorpusConfig(taggers="wordnet", body_parts=False)
    build.build_corpus(inputs, config, tiny_clip, None, folder / "corpus", device="cpu")
    build.build_labels(folder / "other.txt", tiny_clip, None, folder / "labels", device="cpu")
    return folder


def covered(place, shared, labels, *more):
    given = [
        "--labels",
        place / labels,
        "--taggers",
        "wordnet",
        "--nltk-data",
        shared / "nltk_data",
        "--quiet",
    ]
    return run("coverage", place / "corpus", *given, *more)


def test_a_corpus_covers_the_labels_it_was_made_from(place, shared):
    told = json.loads(covered(place, shared, "own.txt", "--json").stdout)
    assert told["coverage"] == told["mentions_held_share"] == 1 and told["uncovered"] == []
    assert told["labels"] == told["labels_covered"] == 3
    assert told["entities_per_label"] == told["listed_per_label"] == told["mentions"] / 3
    assert [row["entities"] for row in told["per_label"]] == [["guitar"], ["horse"], ["zumba"]]


def test_of_other_labels_those_without_an_entity_are_named(place, shared):
    told = json.loads(covered(place, shared, "other.txt", "--json").stdout)
    assert told["labels_covered"] == 2 and told["uncovered"] == ["playing cello"]
    assert (told["mentions"], told["mentions_held"]) == (3, 2)
    assert told["coverage"] == told["mentions_held_share"] == round(2 / 3, 4)
    assert told["listed_per_label"] == 0 and told["per_label"][1]["missing"] == ["cello.n.01"]
    text = covered(place, shared, "other.txt").stdout
    assert "without an entity    playing cello" in text and "labels covered       2" in text


def test_the_nearest_entity_is_that_of_the_whole_product(place, shared):
    done = covered(place, shared, "other.txt", "--json", "--embeddings", place / "labels")
    told = json.loads(done.stdout)
    corpus, labels = artifact.open_corpus(place / "corpus"), artifact.open_labels(place / "labels")
    cosines = labels.embeddings @ corpus.embeddings.T
    for row, near in zip(told["per_label"], cosines, strict=True):
        assert row["nearest"]["name"] == corpus.table["name"][int(near.argmax())].as_py()
        assert row["nearest"]["cosine"] == pytest.approx(near.max(), abs=1e-6)
    assert told["nearest_cosine"] == pytest.approx(cosines.max(axis=1).mean(), abs=1e-5)
    again = json.loads(covered(place, shared, "other.txt", "--json", "--embed", "--device", "cpu").stdout)
    assert again["nearest_cosine"] == pytest.approx(told["nearest_cosine"], abs=1e-5)


def test_embeddings_of_another_model_or_without_the_label_are_refused(place, shared, other_clip, tmp_path):
    build.build_labels(place / "other.txt", other_clip, None, tmp_path / "l", device="cpu")
    done = covered(place, shared, "other.txt", "--embeddings", tmp_path / "l")
    assert done.exit_code == 1 and "or other weights; run `corpus-builder labels" in done.stderr
    done = covered(place, shared, "own.txt", "--embeddings", place / "labels")
    assert done.exit_code == 1 and "has no label 'playing guitar'" in done.stderr


def test_a_key_that_was_merged_counts_as_its_entity(tiny_clip, tmp_path):
    (tmp_path / "w.txt").write_text("wug\nwugs\nzumba\n")
    import_words(
        tmp_path / "w.txt", CorpusConfig(), tiny_clip, None, tmp_path / "c", senses=False, device="cpu"
    )
    corpus = artifact.open_corpus(tmp_path / "c")
    assert corpus.table["key"].to_pylist() == ["wug", "zumba"]
    mentions = {"a": frozenset({"wug", "wugs"}), "b": frozenset({"wag"})}
    told = cover(corpus, ["a", "b"], mentions)
    assert told.held == {"a": ("wug",), "b": ()} and told.missing == {"a": (), "b": ("wag",)}
    assert told.uncovered == ("b",) and told.figures["mentions_held_share"] == 0.5
