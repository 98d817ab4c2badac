import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from corpus_builder import artifact, build, reuse
from corpus_builder.config import CorpusConfig, CorpusError
from corpus_builder.embed import load_text_encoder
from corpus_builder.index import build_index, check_belongs, index_bytes, read_index, search
from corpus_builder.reuse import Selection
from corpus_builder.tables import with_embeddings

pytestmark = pytest.mark.shared


def make(folder, labels, shared, model, body_parts=False):
    folder.mkdir()
    (folder / "labels.txt").write_text("\n".join(labels) + "\n")
    inputs = build.Inputs(labels=folder / "labels.txt", nltk_data=shared / "nltk_data")
    config = CorpusConfig(taggers="wordnet", body_parts=body_parts)
    build.build_corpus(inputs, config, model, None, folder / "corpus", device="cpu")
    return folder / "corpus"


@pytest.fixture(scope="module")
def first(shared, tiny_clip, tmp_path_factory):
    labels = ["playing guitar", "feeding horse", "cutting nails", "zumba"]
    return make(tmp_path_factory.mktemp("a") / "x", labels, shared, tiny_clip)


@pytest.fixture(scope="module")
def second(shared, tiny_clip, tmp_path_factory):
    labels = ["grooming horse", "hammering nail", "zumba"]
    return make(tmp_path_factory.mktemp("b") / "x", labels, shared, tiny_clip, body_parts=True)


def rows(folder):
    return {row["key"]: row for row in artifact.open_corpus(folder).table.to_pylist()}


def whole(folder):
    """Every promise of a corpus: it opens, its hashes hold, its index is its table's, its ids count up."""
    corpus = artifact.open_corpus(folder)
    assert all(artifact.verify_files(corpus).values())
    check_belongs(read_index(folder / artifact.INDEX), corpus.embeddings, "x")
    ids = corpus.table["entity_id"].to_pylist()
    assert ids == list(range(len(ids)))
    for name in (artifact.SENSES, artifact.MERGED):
        assert set(pq.read_table(folder / name)["entity_id"].to_pylist()) <= set(ids)
    return corpus


def test_merging_unites_keys_adds_counts_and_keeps_every_embedding(first, second, tmp_path):
    manifest = reuse.merge([first, second], tmp_path / "c")
    whole(tmp_path / "c")
    one, two, both = rows(first), rows(second), rows(tmp_path / "c")
    assert both.keys() == one.keys() | two.keys()
    assert both["horse.n.01"]["count"] == 2
    assert both["horse.n.01"]["labels"] == ["feeding horse", "grooming horse"]
    assert {"nail.n.01", "nail.n.02"} <= both.keys()
    for key, row in both.items():
        assert row["embedding"] == (one.get(key) or two[key])["embedding"]
    fingerprints = [artifact.open_corpus(folder).fingerprint for folder in (first, second)]
    assert [manifest["inputs"][f"corpus{i}"]["sha256"] for i in range(2)] == fingerprints


def test_merging_a_corpus_with_itself_doubles_the_counts_and_nothing_else(first, tmp_path):
    reuse.merge([first, first], tmp_path / "c")
    one, both = rows(first), rows(tmp_path / "c")
    assert {key: 2 * row["count"] for key, row in one.items()} == {k: row["count"] for k, row in both.items()}
    assert reuse.diff(first, tmp_path / "c").changed == {key: ("count",) for key in one}


def test_corpora_of_two_models_are_not_merged(first, shared, other_clip, tmp_path):
    other = make(tmp_path / "o", ["playing guitar"], shared, other_clip)
    with pytest.raises(CorpusError, match="only corpora of one model can be merged.*re-embed"):
        reuse.merge([first, other], tmp_path / "c")


def test_re_embedding_keeps_entities_and_makes_corpora_mergeable(first, other_clip, shared, tmp_path):
    reuse.re_embed(first, tmp_path / "r", other_clip, None, device="cpu")
    corpus = whole(tmp_path / "r")
    told = reuse.diff(first, tmp_path / "r")
    assert not told.only_first and not told.only_second and not told.changed
    expected = load_text_encoder(other_clip, device="cpu").encode(corpus.table["text"].to_pylist())
    np.testing.assert_allclose(corpus.embeddings, expected, atol=1e-6)
    other = make(tmp_path / "o", ["playing piano"], shared, other_clip)
    reuse.merge([tmp_path / "r", other], tmp_path / "c")
    assert "piano.n.01" in rows(tmp_path / "c")


def test_subsets_by_label_kind_count_and_number(first, second, tmp_path):
    reuse.merge([first, second], tmp_path / "all")
    (tmp_path / "some.txt").write_text("feeding horse\nzumba\n")
    reuse.subset(tmp_path / "all", tmp_path / "l", Selection(labels=tmp_path / "some.txt"))
    assert set(rows(tmp_path / "l")) == {"horse.n.01", "zumba"}
    reuse.subset(tmp_path / "all", tmp_path / "k", Selection(kinds=("animal",)))
    assert set(rows(tmp_path / "k")) == {"horse.n.01"}
    reuse.subset(tmp_path / "all", tmp_path / "n", Selection(min_count=2))
    assert all(row["count"] >= 2 for row in rows(tmp_path / "n").values())
    reuse.subset(tmp_path / "all", tmp_path / "t", Selection(top=2))
    assert set(rows(tmp_path / "t")) == {"horse.n.01", "zumba"}
    for name in "lknt":
        whole(tmp_path / name)
    with pytest.raises(CorpusError, match="no entity of .* is left"):
        reuse.subset(tmp_path / "all", tmp_path / "e", Selection(kinds=("food",)))
    with pytest.raises(CorpusError, match="--kind is 'animol'.*did you mean 'animal'"):
        Selection(kinds=("animol",))


def test_senses_weighed_follow_their_entity(first, tmp_path):
    reuse.subset(first, tmp_path / "s", Selection(kinds=("animal",)))
    before = [row for row in pq.read_table(first / artifact.SENSES).to_pylist()]
    horse = rows(first)["horse.n.01"]["entity_id"]
    after = pq.read_table(tmp_path / "s" / artifact.SENSES).to_pylist()
    assert [row["sense"] for row in after] == [r["sense"] for r in before if r["entity_id"] == horse]
    assert {row["entity_id"] for row in after} == {0}


def test_deriving_twice_gives_the_same_bytes(first, second, tmp_path):
    one = reuse.merge([first, second], tmp_path / "a")
    two = reuse.merge([first, second], tmp_path / "b")
    assert one["files"] == two["files"] and one["fingerprint"] == two["fingerprint"]


def test_statistics_add_up(second):
    told, corpus = reuse.stats(second), artifact.open_corpus(second)
    size = len(corpus.table)
    assert told["entities"] == size == sum(told["by_kind"].values()) == sum(told["by_source"].values())
    assert told["by_source"]["body_part"] > 20 and told["by_kind"]["body part"] > 20
    assert told["labels"] == 3 and json.dumps(told)


def test_real_clip_embeddings_through_merge_index_and_search(shared, tmp_path):
    """548 real CLIP ViT-B/16 vectors, halved with an overlap, merged again: guitar finds guitar."""
    table = pq.read_table(shared / "data/clip_text/vit_b16_openai_entities.parquet")
    column = table["embedding"].combine_chunks()
    vectors = column.flatten().to_numpy().reshape(len(table), 512).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    names = table["entity"].to_pylist()
    distinct = {name: number for number, name in reversed(list(enumerate(names)))}
    ids = sorted(distinct.values())
    halves = {"a": ids[: len(ids) // 2 + 20], "b": ids[len(ids) // 2 :]}
    for folder, part in halves.items():
        real_corpus(tmp_path / folder, [names[i] for i in part], vectors[part])
    reuse.merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    corpus = whole(tmp_path / "c")
    merged = corpus.table["name"].to_pylist()
    assert sorted(merged) == sorted(distinct)
    index = read_index(tmp_path / "c" / artifact.INDEX)
    assert search(index, corpus.embeddings, 1).ids[:, 0].tolist() == list(range(len(merged)))
    guitar = vectors[next(i for i, name in enumerate(names) if name == "guitar")]
    assert merged[search(index, guitar[None], 1).ids[0, 0]] == "guitar"


def real_corpus(folder, names, vectors):
    rows = [
        {"entity_id": i, "key": name, "name": name, "aliases": [], "kind": "phrase", "source": "label"}
        | {"sources": ["label"], "sense": None, "gloss": None, "lexname": None, "text": name, "count": 1}
        | {"labels": [], "contexts": []}
        for i, name in enumerate(names)
    ]
    told = {
        artifact.SENSES: artifact.table_of([], artifact.SENSES_SCHEMA),
        artifact.MERGED: artifact.table_of([], artifact.MERGED_SCHEMA),
        artifact.CANDIDATES: artifact.table_of([], artifact.CANDIDATES_SCHEMA),
    }
    model = {"name": "ViT-B-16", "pretrained": "openai", "weights_sha256": "0" * 64, "embed_dim": 512}
    facts = {"config": {}, "inputs": {}, "counts": {}, "model": model | {"random_weights": False}}
    table = with_embeddings(rows, vectors, artifact.entities_schema(512))
    artifact.write_corpus(folder, table, index_bytes(build_index(vectors).index), told, facts)


def run(*arguments):
    from typer.testing import CliRunner

    from corpus_builder.cli import app

    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_commands_do_the_same(first, second, tmp_path):
    done = run("merge", first, second, "--out", tmp_path / "m")
    assert done.exit_code == 0 and "entities, fingerprint" in done.output, done.output
    told = json.loads(run("stats", tmp_path / "m", "--json").output)
    assert told == reuse.stats(tmp_path / "m")
    assert run("subset", tmp_path / "m", "--kind", "animal", "--out", tmp_path / "s").exit_code == 0
    shown = run("diff", tmp_path / "m", tmp_path / "s").output
    assert "- guitar.n.01" in shown and "0 changed, 1 alike" in shown
    refused = run("subset", tmp_path / "m", "--kind", "food", "--out", tmp_path / "f")
    assert refused.exit_code == 1 and "error: no entity of" in refused.output
    assert "Traceback" not in refused.output and not (tmp_path / "f").exists()
