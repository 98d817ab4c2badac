import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from corpus_builder import api, artifact, build, reuse
from corpus_builder.config import CorpusConfig, CorpusError
from corpus_builder.dedup import near_duplicates
from corpus_builder.embed import load_text_encoder
from corpus_builder.index import build_index, check_belongs, read_index, search, search_brute_force
from corpus_builder.reuse import Selection

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
    assert not told.only_first and not told.only_second and not told.changed and not told.one_model
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


def test_subsets_by_source_and_by_a_list_tell_what_is_not_there(first, second, tmp_path):
    reuse.merge([first, second], tmp_path / "all")
    everything = rows(tmp_path / "all")
    reuse.subset(tmp_path / "all", tmp_path / "b", Selection(sources=("body_part",)))
    assert set(rows(tmp_path / "b")) == {
        key for key, row in everything.items() if "body_part" in row["sources"]
    }
    (tmp_path / "list.txt").write_text("# by key, by name, by nothing\nhorse.n.01\nGuitar\nunicorn\n")
    manifest = reuse.subset(tmp_path / "all", tmp_path / "l", Selection(entities=tmp_path / "list.txt"))
    assert set(rows(tmp_path / "l")) == {"horse.n.01", "guitar.n.01"}
    assert manifest["counts"]["not_found"] == ["unicorn"]
    assert manifest["inputs"]["entities"] == artifact.file_input(tmp_path / "list.txt")
    whole(tmp_path / "b"), whole(tmp_path / "l")
    told = run("subset", tmp_path / "all", "--entities", tmp_path / "list.txt", "--out", tmp_path / "l2")
    assert "1 asked for are not in" in told.stderr and "'unicorn'" in told.stderr
    with pytest.raises(CorpusError, match="--source is 'labels'.*did you mean 'label'"):
        Selection(sources=("labels",))
    with pytest.raises(CorpusError, match="--lexname is 'noun.animals'.*did you mean 'noun.animal'"):
        reuse.subset(tmp_path / "all", tmp_path / "x", Selection(lexnames=("noun.animals",)))


def test_three_corpora_merge_as_two_and_one(first, second, plain_corpus, tmp_path):
    one = artifact.open_corpus(first)
    third = plain_corpus(tmp_path / "x", ["horse.n.01"], one.embeddings[:1], one.manifest["model"])
    manifest = reuse.merge([first, second, third], tmp_path / "all")
    reuse.merge([first, second], tmp_path / "two")
    reuse.merge([tmp_path / "two", third], tmp_path / "nested")
    assert rows(tmp_path / "all") == rows(tmp_path / "nested")
    whole(tmp_path / "all")
    # horse and zumba are in the first two, horse in the third, there under the bare text "horse.n.01"
    assert manifest["counts"]["united"] == 3 and manifest["counts"]["texts_differed"] == 1
    with pytest.raises(CorpusError, match="two corpora or more, got 1"):
        reuse.merge([first], tmp_path / "y")


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
    assert told["by_lexname"]["none"] == size - told["with_sense"]


@pytest.fixture(scope="module")
def real(real_vectors, plain_corpus, tmp_path_factory):
    """The real vectors, halved with an overlap of 40, as two corpora and as their union."""
    names, vectors = real_vectors
    folder = tmp_path_factory.mktemp("real")
    plain_corpus(folder / "a", names[:314], vectors[:314])
    plain_corpus(folder / "b", names[274:], vectors[274:])
    reuse.merge([folder / "a", folder / "b"], folder / "both")
    return folder / "both"


def test_real_vectors_survive_a_merge_under_their_names(real, real_vectors):
    corpus = whole(real)
    names, vectors = real_vectors
    assert sorted(corpus.table["name"].to_pylist()) == sorted(names)
    place = {name: number for number, name in enumerate(names)}
    order = [place[name] for name in corpus.table["name"].to_pylist()]
    assert np.array_equal(corpus.embeddings, vectors[order])
    counts = dict(zip(corpus.table["name"].to_pylist(), corpus.table["count"].to_pylist(), strict=True))
    assert sorted(name for name, count in counts.items() if count == 2) == sorted(names[274:314])


def test_on_real_vectors_exact_search_is_exact_and_makes_sense(real, real_vectors):
    corpus = api.open(real)
    names, vectors = real_vectors
    hits = corpus.nearest(vectors, 5)
    assert [found[0].name for found in hits] == names  # recall@1 is 1
    assert all(found[0].cosine == pytest.approx(1, abs=1e-5) for found in hits)
    exact = search_brute_force(corpus.embeddings, vectors, 5)
    assert [[hit.entity_id for hit in found] for found in hits] == exact.ids.tolist()
    near = dict(zip(names, ([hit.name for hit in found] for found in hits), strict=True))
    assert near["guitar"][0] == "guitar" and {"fretboard", "guitar pick"} <= set(near["guitar"])
    assert near["horse"][:3] == ["horse", "horserace", "hoof"]


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_on_real_vectors_an_approximate_index_keeps_its_promise(real_vectors, kind):
    _, vectors = real_vectors
    built = build_index(vectors, kind)
    found = search(built.index, vectors, 1).ids[:, 0]
    assert built.recall_at_1 >= 0.99 and np.mean(found == np.arange(len(vectors))) >= 0.99


def test_on_real_vectors_near_duplicates_of_horse_are_found(real_vectors):
    names, vectors = real_vectors
    above = 0.9
    pairs = near_duplicates(vectors, above)
    named = {names[merged]: (names[survivor], cosine) for survivor, merged, cosine in pairs}
    assert named["horse"] == ("horserace", pytest.approx(0.9117, abs=1e-4))
    gone = [merged for _, merged, _ in pairs]
    kept = np.delete(vectors, gone, axis=0)
    assert (kept @ kept.T - np.eye(len(kept))).max() < above
    assert all(vectors[s] @ vectors[m] >= above - 1e-6 for s, m, _ in pairs) and not {
        s for s, _, _ in pairs
    } & {*gone}


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
    assert "- guitar.n.01" in shown and "0 changed, 1 alike; made with one model" in shown
    refused = run("subset", tmp_path / "m", "--kind", "food", "--out", tmp_path / "f")
    assert refused.exit_code == 1 and "error: no entity of" in refused.output
    assert "Traceback" not in refused.output and not (tmp_path / "f").exists()
