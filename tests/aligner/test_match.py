"""Top-k equals brute force, ties included, whatever the chunk."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aligner.config import AlignerError
from aligner.match import Matcher, top_entities


def unit(rows: int, dim: int, seed: int) -> torch.Tensor:
    vectors = torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed))
    return vectors / vectors.norm(dim=1, keepdim=True)


def brute_force(regions: np.ndarray, entities: np.ndarray, k: int) -> tuple[list, list]:
    ids, scores = [], []
    for region in regions:
        row = [float(region @ entity) for entity in entities]
        best = sorted(range(len(row)), key=lambda i: (-row[i], i))[:k]
        ids.append(best)
        scores.append([row[i] for i in best])
    return ids, scores


@given(
    regions=st.integers(1, 6),
    entities=st.integers(1, 40),
    chunk=st.integers(1, 50),
    seed=st.integers(0, 2**31),
    data=st.data(),
)
@settings(max_examples=80, deadline=None)
def test_equals_brute_force_with_ties(
    regions: int, entities: int, chunk: int, seed: int, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, entities))
    # Small whole numbers: products are exact, and ties are everywhere.
    rng = np.random.default_rng(seed)
    a = rng.integers(-2, 3, (regions, 3)).astype(np.float32)
    b = rng.integers(-2, 3, (entities, 3)).astype(np.float32)
    found = top_entities(torch.from_numpy(a), torch.from_numpy(b), k, chunk)
    ids, scores = brute_force(a, b, k)
    assert found.entities.tolist() == ids
    assert found.scores.tolist() == scores


def test_equals_a_full_sort_on_real_valued_vectors() -> None:
    regions, entities = unit(50, 16, 0), unit(1000, 16, 1)
    found = top_entities(regions, entities, 16)
    wanted = (regions @ entities.T).sort(dim=1, descending=True, stable=True)
    assert torch.equal(found.entities, wanted.indices[:, :16])
    assert torch.equal(found.scores, wanted.values[:, :16])


def test_three_vectors_by_hand() -> None:
    entities = torch.tensor([[0.0, 1.0], [1.0, 0.0], [-1.0, 0.0]])
    found = Matcher(entities, 3)(torch.tensor([[0.6, 0.8]]))
    assert found.entities.tolist() == [[0, 1, 2]]
    assert found.scores[0].tolist() == pytest.approx([0.8, 0.6, -0.6])


@given(
    entities=st.integers(1, 700),
    chunk=st.sampled_from([32, 100, 256, 1000]),
    k=st.integers(1, 12),
    alike=st.integers(1, 60),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_equals_a_stable_sort_with_ties_across_blocks_and_chunks(
    entities: int, chunk: int, k: int, alike: int, seed: int
) -> None:
    """Few different vectors, so that equal scores lie in many blocks of 32, on both sides of the k-th place."""
    rng = np.random.default_rng(seed)
    a = torch.from_numpy(rng.integers(-2, 3, (5, 3)).astype(np.float32))
    different = torch.from_numpy(rng.integers(-2, 3, (alike, 3)).astype(np.float32))
    b = different[torch.from_numpy(rng.integers(0, alike, entities))]
    k = min(k, entities)
    found = top_entities(a, b, k, chunk)
    wanted = (a @ b.T).sort(dim=1, descending=True, stable=True)
    assert torch.equal(found.entities, wanted.indices[:, :k])
    assert torch.equal(found.scores, wanted.values[:, :k])


def test_equal_scores_come_by_id_whatever_their_sign() -> None:
    """Zero and minus zero are equal, and so are negative scores; every block and chunk holds some of them."""
    entities = torch.zeros(200, 1)
    entities[::2] = -0.0
    negative = -torch.ones(200, 1)
    for vectors, score in ((entities, 0.0), (negative, -0.5)):
        for chunk in (64, 1000):
            found = top_entities(torch.tensor([[0.5]]), vectors, 5, chunk)
            assert found.entities.tolist() == [[0, 1, 2, 3, 4]]
            assert found.scores.tolist() == [[score] * 5]


def test_agrees_with_faiss() -> None:
    faiss = pytest.importorskip("faiss")
    regions, entities = unit(40, 16, 2), unit(1500, 16, 3)
    entities[100] = entities[7]
    index = faiss.IndexFlatIP(16)
    index.add(entities.numpy())
    scores, ids = index.search(regions.numpy(), 8)
    found = Matcher(entities, 8)(regions)
    torch.testing.assert_close(found.scores, torch.from_numpy(scores))
    # FAISS promises no order of the two that are alike.
    named = [[7 if entity == 100 else entity for entity in row] for row in ids.tolist()]
    assert [[7 if entity == 100 else entity for entity in row] for row in found.entities.tolist()] == named


def test_refuses_nan_and_too_few_entities() -> None:
    entities, regions = unit(5, 4, 0), unit(3, 4, 1)
    with pytest.raises(AlignerError, match="--top-k 6 needs at least 6 entities, the corpus has 5"):
        Matcher(entities, 6)
    regions[2, 1] = float("nan")
    with pytest.raises(AlignerError, match="1 region vectors are not finite, the first is region 2"):
        Matcher(entities, 2)(regions)
    entities[0, 0] = float("inf")
    with pytest.raises(AlignerError, match="first is entity 0"):
        Matcher(entities, 2)
