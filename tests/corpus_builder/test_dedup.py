import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus_builder.dedup import BLOCK, near_duplicates


def unit(rows):
    rows = np.asarray(rows, dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def on_circle(degrees):
    angles = np.deg2rad(np.asarray(degrees, dtype=np.float64))
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def test_a_chain_of_neighbours_does_not_reach_beyond_the_threshold():
    """10 degrees apart each: the second is near the first, the third is not, and survives."""
    pairs = near_duplicates(on_circle([0, 10, 20, 30]), float(np.cos(np.deg2rad(11))))
    assert [pair[:2] for pair in pairs] == [(0, 1), (2, 3)]
    assert pairs[0][2] == pytest.approx(np.cos(np.deg2rad(10)), abs=1e-6)


def test_a_row_goes_to_the_nearest_survivor_and_ties_to_the_lower():
    assert [p[:2] for p in near_duplicates(on_circle([0, 30, 20]), 0.9)] == [(1, 2)]
    assert [p[:2] for p in near_duplicates(unit([[1, 0], [0, 1], [1, 0], [1, 0]]), 0.99)] == [(0, 2), (0, 3)]


def reference(vectors, above):
    survivors, merged = [], {}
    for row in range(len(vectors)):
        near = [s for s in survivors if vectors[s] @ vectors[row] >= above]
        if near:
            merged[row] = max(near, key=lambda s: (vectors[s] @ vectors[row], -s))
        else:
            survivors.append(row)
    return survivors, merged


@given(st.lists(st.integers(0, 359), min_size=1, max_size=30), st.sampled_from([0.503, 0.903, 0.9953]))
def test_equals_the_slow_definition(degrees, above):
    vectors = on_circle(degrees)
    survivors, merged = reference(vectors, above)
    found = {merged_row: survivor for survivor, merged_row, _ in near_duplicates(vectors, above)}
    assert found.keys() == merged.keys()
    for row, survivor in found.items():
        assert vectors[survivor] @ vectors[row] == pytest.approx(
            vectors[merged[row]] @ vectors[row], abs=1e-6
        )
    assert survivors == [row for row in range(len(vectors)) if row not in found]


def test_blocks_do_not_matter():
    rows = unit(np.random.default_rng(0).normal(size=(BLOCK + 50, 8)))
    copies = np.concatenate([rows, rows[[0, BLOCK - 1, BLOCK, BLOCK + 49]]])
    pairs = [pair for pair in near_duplicates(copies, 0.9999)]
    assert [p[:2] for p in pairs] == [
        (0, BLOCK + 50),
        (BLOCK - 1, BLOCK + 51),
        (BLOCK, BLOCK + 52),
        (BLOCK + 49, BLOCK + 53),
    ]
