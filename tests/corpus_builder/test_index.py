import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpus_builder.config import CorpusError
from corpus_builder.index import build_index, index_bytes, read_index, search, search_brute_force


def unit(rows):
    rows = np.asarray(rows, dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_the_nearest_is_the_largest_cosine():
    vectors = unit([[1, 0], [1, 1], [0, 1]])
    hits = search(build_index(vectors), unit([[1, 0.1]]), 3)
    assert hits.ids.tolist() == [[0, 1, 2]]
    np.testing.assert_allclose(hits.scores[0], vectors @ unit([[1, 0.1]])[0], atol=1e-6)


def test_ties_go_to_the_lower_id_even_at_the_cut():
    vectors = unit([[0, 1], [1, 0], [1, 0], [1, 0]])
    hits = search(build_index(vectors), unit([[1, 0]]), 2)
    assert hits.ids.tolist() == [[1, 2]]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 60), st.integers(1, 5), st.integers(1, 70), st.integers(0, 10**6))
def test_search_equals_brute_force(entities, queries, k, seed):
    rng = np.random.default_rng(seed)
    # few directions, so that equal scores are common
    vectors = unit(rng.integers(0, 2, (entities, 6)) + 0.5)
    asked = unit(rng.normal(size=(queries, 6)))
    found, expected = search(build_index(vectors), asked, k), search_brute_force(vectors, asked, k)
    assert found.ids.shape == (queries, min(k, entities))
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-6)
    np.testing.assert_allclose(
        (asked @ vectors.T)[np.arange(queries)[:, None], found.ids], expected.scores, atol=1e-6
    )


def test_round_trip(tmp_path):
    vectors = unit(np.random.default_rng(0).normal(size=(20, 8)))
    (tmp_path / "x.faiss").write_bytes(index_bytes(build_index(vectors)))
    index = read_index(tmp_path / "x.faiss")
    assert index.ntotal == 20 and search(index, vectors, 1).ids[:, 0].tolist() == list(range(20))


def test_what_is_no_index_or_not_unit_is_refused(tmp_path):
    (tmp_path / "x.faiss").write_bytes(b"nothing of the kind")
    with pytest.raises(CorpusError, match="no FAISS index"):
        read_index(tmp_path / "x.faiss")
    with pytest.raises(CorpusError, match="2 vectors are not of unit length"):
        build_index(np.array([[1, 0], [2, 0], [np.nan, 0]], dtype=np.float32))


@pytest.mark.shared
def test_real_clip_embeddings_find_themselves(shared):
    import pyarrow.parquet as pq

    table = pq.read_table(shared / "data/clip_text/vit_b16_openai_entities.parquet")
    column = table["embedding"].combine_chunks()
    vectors = unit(column.flatten().to_numpy().reshape(len(table), 512).astype(np.float32))
    found = search(build_index(vectors), vectors, 5)
    expected = search_brute_force(vectors, vectors, 5)
    np.testing.assert_allclose(found.scores[:, 0], 1, atol=1e-5)
    assert (found.ids == expected.ids).mean() > 0.999
