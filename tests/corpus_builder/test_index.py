import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpus_builder import index as index_module
from corpus_builder.config import CorpusError
from corpus_builder.index import (
    EXACT_UP_TO,
    MIN_RECALL,
    build_index,
    check_belongs,
    index_bytes,
    nearest_others,
    on_gpu,
    probe_queries,
    read_index,
    search,
    search_brute_force,
)

KINDS = ("flat", "ivf", "hnsw")


def unit(rows):
    rows = np.asarray(rows, dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_the_nearest_is_the_largest_cosine():
    vectors = unit([[1, 0], [1, 1], [0, 1]])
    hits = search(build_index(vectors).index, unit([[1, 0.1]]), 3)
    assert hits.ids.tolist() == [[0, 1, 2]]
    np.testing.assert_allclose(hits.scores[0], vectors @ unit([[1, 0.1]])[0], atol=1e-6)


def test_ties_go_to_the_lower_id_even_at_the_cut():
    vectors = unit([[0, 1], [1, 0], [1, 0], [1, 0]])
    hits = search(build_index(vectors).index, unit([[1, 0]]), 2)
    assert hits.ids.tolist() == [[1, 2]]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 60), st.integers(1, 5), st.integers(1, 70), st.integers(0, 10**6))
def test_search_equals_brute_force(entities, queries, k, seed):
    rng = np.random.default_rng(seed)
    # few directions, so that equal scores are common
    vectors = unit(rng.integers(0, 2, (entities, 6)) + 0.5)
    asked = unit(rng.normal(size=(queries, 6)))
    found, expected = search(build_index(vectors).index, asked, k), search_brute_force(vectors, asked, k)
    assert found.ids.shape == (queries, min(k, entities))
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-6)
    np.testing.assert_allclose(
        (asked @ vectors.T)[np.arange(queries)[:, None], found.ids], expected.scores, atol=1e-6
    )


def test_round_trip(tmp_path):
    vectors = unit(np.random.default_rng(0).normal(size=(20, 8)))
    (tmp_path / "x.faiss").write_bytes(index_bytes(build_index(vectors).index))
    index = read_index(tmp_path / "x.faiss")
    assert index.ntotal == 20 and search(index, vectors, 1).ids[:, 0].tolist() == list(range(20))


def test_what_is_no_index_or_not_unit_is_refused(tmp_path):
    (tmp_path / "x.faiss").write_bytes(b"nothing of the kind")
    with pytest.raises(CorpusError, match="no FAISS index"):
        read_index(tmp_path / "x.faiss")
    with pytest.raises(CorpusError, match="2 vectors are not of unit length"):
        build_index(np.array([[1, 0], [2, 0], [np.nan, 0]], dtype=np.float32))


@pytest.mark.parametrize("kind", KINDS)
def test_known_answers_of_every_kind(kind):
    """Three vectors by hand: the cosine of (1, 0) with itself is 1, with (1, 1) 0.7071, with (-1, 0) -1."""
    built = build_index(unit([[1, 0], [1, 1], [-1, 0]]), kind)
    hits = search(built.index, unit([[1, 0], [-1, 0.1]]), 1)
    assert built.kind == kind and hits.ids.tolist() == [[0], [2]]
    assert hits.scores[0, 0] == pytest.approx(1) and hits.scores[1, 0] == pytest.approx(0.99504, abs=1e-5)


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_an_approximate_index_reports_the_recall_it_has(kind):
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(40, 16))
    vectors = unit(np.repeat(centres, 50, axis=0) + 0.3 * rng.normal(size=(2000, 16)))
    built = build_index(vectors, kind)
    queries = probe_queries(vectors)
    exact = search_brute_force(vectors, queries, 1)
    found = search(built.index, queries, 1)
    assert built.recall_at_1 == pytest.approx(
        np.mean(found.scores[:, 0] >= exact.scores[:, 0] - 1e-5), abs=0.002
    )
    assert built.recall_at_1 >= MIN_RECALL
    again = build_index(vectors, kind)
    assert index_bytes(again.index) == index_bytes(built.index)


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_the_effort_that_the_recall_asked_for_survives_the_file(kind, tmp_path):
    vectors = unit(np.random.default_rng(2).normal(size=(1500, 24)))
    built = build_index(vectors, kind)
    (tmp_path / "x.faiss").write_bytes(index_bytes(built.index))
    read, queries = read_index(tmp_path / "x.faiss"), probe_queries(vectors)
    assert search(read, queries, 1).ids.tolist() == search(built.index, queries, 1).ids.tolist()


def test_an_index_below_the_bar_is_refused(monkeypatch):
    vectors = unit(np.random.default_rng(3).normal(size=(300, 8)))
    monkeypatch.setattr(index_module, "MIN_RECALL", 1.1)
    with pytest.raises(CorpusError, match="--index hnsw finds the nearest entity for .*use --index flat"):
        build_index(vectors, "hnsw")


def test_auto_is_exact_at_the_size_of_a_corpus():
    vectors = unit(np.random.default_rng(4).normal(size=(50, 8)))
    assert EXACT_UP_TO > 100_000 and build_index(vectors).facts == {"kind": "flat", "recall_at_1": 1.0}
    with pytest.raises(CorpusError, match="--index is 'hsnw'.*did you mean 'hnsw'"):
        build_index(vectors, "hsnw")


def test_an_index_of_another_table_is_refused():
    rng = np.random.default_rng(5)
    mine, other = unit(rng.normal(size=(30, 8))), unit(rng.normal(size=(30, 8)))
    for kind in KINDS:
        check_belongs(build_index(mine, kind).index, mine, "'c'")
        with pytest.raises(CorpusError, match="'c': the index belongs to another table .row 0 differs"):
            check_belongs(build_index(other, kind).index, mine, "'c'")
    with pytest.raises(CorpusError, match="holds 30 vectors of 8, expected 29 of 8"):
        check_belongs(build_index(mine).index, mine[:29], "'c'")


def test_without_a_gpu_the_index_stays_where_it_is():
    import faiss

    if hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus():
        pytest.skip("a GPU is here")
    index = build_index(unit([[1, 0], [0, 1]])).index
    assert on_gpu(index) is index


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_on_a_gpu_an_index_finds_the_same(kind):
    import faiss

    if not hasattr(faiss, "StandardGpuResources") or not faiss.get_num_gpus():
        pytest.skip("needs faiss-gpu and a GPU")
    vectors = unit(np.random.default_rng(0).normal(size=(3000, 32)))
    index = build_index(vectors, kind).index
    found = search(on_gpu(index), vectors[:200], 3)
    np.testing.assert_array_equal(found.ids[:, 0], np.arange(200))
    np.testing.assert_array_equal(found.ids, search(index, vectors[:200], 3).ids)


@pytest.mark.shared
def test_real_clip_embeddings_find_themselves(shared):
    import pyarrow.parquet as pq

    table = pq.read_table(shared / "data/clip_text/vit_b16_openai_entities.parquet")
    column = table["embedding"].combine_chunks()
    vectors = unit(column.flatten().to_numpy().reshape(len(table), 512).astype(np.float32))
    found = search(build_index(vectors).index, vectors, 5)
    expected = search_brute_force(vectors, vectors, 5)
    np.testing.assert_allclose(found.scores[:, 0], 1, atol=1e-5)
    assert (found.ids == expected.ids).mean() > 0.999


@pytest.mark.parametrize("k", [1, 5, 200])
def test_nearest_others_are_those_of_brute_force_without_the_row_itself(k):
    vectors = unit(np.random.default_rng(0).normal(size=(60, 8)))
    vectors[7] = vectors[3]
    rows = np.array([3, 7, 0, 59])
    hits = nearest_others(build_index(vectors, "flat").index, vectors, rows, k)
    for row, ids, scores in zip(rows, hits.ids, hits.scores, strict=True):
        cosines = vectors.astype(np.float64) @ vectors[row]
        expected = [i for i in np.lexsort((np.arange(60), -np.round(cosines, 6))) if i != row][:k]
        assert ids.tolist() == expected
        np.testing.assert_allclose(scores, cosines[ids], atol=1e-6)


def test_a_row_among_many_equals_is_not_its_own_neighbour():
    vectors = np.repeat(unit(np.random.default_rng(0).normal(size=(1, 4))), 30, axis=0)
    hits = nearest_others(build_index(vectors, "flat").index, vectors, np.array([29, 2]), 3)
    assert hits.ids.tolist() == [[0, 1, 2], [0, 1, 3]]
