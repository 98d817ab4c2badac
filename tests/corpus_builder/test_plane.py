import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus_builder import plane
from corpus_builder.plane import principal_plane


def distances(places):
    return np.linalg.norm(places[:, None] - places[None], axis=-1)


@given(seed=st.integers(0, 10_000), rows=st.integers(1, 60), dim=st.integers(2, 12))
def test_distances_of_a_planar_set_are_kept(seed, rows, dim):
    rng = np.random.default_rng(seed)
    axes, _ = np.linalg.qr(rng.normal(size=(dim, 2)))
    flat = rng.normal(size=(rows, 2)) * [3, 1]
    vectors = flat @ axes.T + rng.normal(size=dim)
    told = principal_plane(vectors)
    np.testing.assert_allclose(distances(told.places), distances(flat), atol=1e-6)
    assert told.share == pytest.approx(1)


def test_it_is_the_plane_of_the_singular_value_decomposition(monkeypatch):
    monkeypatch.setattr(plane, "BLOCK", 7)
    vectors = np.random.default_rng(1).normal(size=(50, 6)) * [5, 3, 2, 1, 1, 1]
    told = principal_plane(vectors)
    left, spread, right = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(np.abs(told.places), np.abs(left[:, :2] * spread[:2]), atol=1e-9)
    assert told.share == pytest.approx((spread[:2] ** 2).sum() / (spread**2).sum())
    for axis, direction in enumerate(right[:2]):
        ahead = direction * np.sign(direction[np.abs(direction).argmax()])
        np.testing.assert_allclose(told.places[:, axis], (vectors - vectors.mean(axis=0)) @ ahead, atol=1e-9)


def test_signs_do_not_follow_the_order_of_rows_and_the_mean_is_the_origin():
    vectors = np.random.default_rng(2).normal(size=(40, 5)).astype(np.float32)
    order = np.random.default_rng(3).permutation(40)
    told, shuffled = principal_plane(vectors), principal_plane(vectors[order])
    np.testing.assert_allclose(told.places[order], shuffled.places, atol=1e-5)
    np.testing.assert_allclose(told.places.mean(axis=0), 0, atol=1e-6)


@pytest.mark.parametrize("vectors", [np.ones((1, 4)), np.ones((5, 3)), np.ones((3, 1))])
def test_what_does_not_vary_lies_on_the_origin(vectors):
    told = principal_plane(vectors)
    assert told.share == 1 and not told.places.any() and told.places.shape == (len(vectors), 2)
