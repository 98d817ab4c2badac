"""Top-k equals brute force, ties included, whatever the chunk and the engine."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aligner import match
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


def test_faiss_finds_the_same() -> None:
    pytest.importorskip("faiss")
    regions, entities = unit(40, 16, 2), unit(500, 16, 3)
    entities[100] = entities[7]
    exact, by_faiss = Matcher(entities, 8, "torch")(regions), Matcher(entities, 8, "faiss")(regions)
    assert torch.equal(exact.entities, by_faiss.entities)
    torch.testing.assert_close(exact.scores, by_faiss.scores)


def test_faiss_is_chosen_for_a_huge_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    assert Matcher(unit(11, 4, 0), 2).index is None
    monkeypatch.setattr(match, "FAISS_ABOVE", 10)
    assert Matcher(unit(11, 4, 0), 2).index is not None


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
