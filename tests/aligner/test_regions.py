"""Geometry of regions against a loop over patches."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aligner.regions import pack_patches, region_geometry, unpack_patches


def test_known_regions_of_a_two_by_four_grid() -> None:
    source = torch.tensor([[1, 1, 2, 3, 1, 2, 2, 3]])
    shape = region_geometry(source, 3, (2, 4))
    assert shape.patches.tolist() == [[0, 3, 3, 2]]
    assert shape.box_xyxy[0].tolist() == [[0, 0, 1, 1], [0, 0, 0.5, 1], [0.25, 0, 0.75, 1], [0.75, 0, 1, 1]]
    assert shape.centroid_xy[0, 0].tolist() == [0.5, 0.5]
    assert shape.centroid_xy[0, 3].tolist() == [0.875, 0.5]
    assert shape.patch_map[0].flatten().tolist() == [0, 0b11001000, 0b00100110, 0b00010001]


@given(rows=st.integers(1, 6), columns=st.integers(1, 6), seed=st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_equals_a_loop(rows: int, columns: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    patches = rows * columns
    count = int(rng.integers(1, patches + 1))
    # Every region owns at least one patch.
    frames = [
        rng.permutation(np.r_[1 : count + 1, rng.integers(1, count + 1, patches - count)]) for _ in range(3)
    ]
    shape = region_geometry(torch.from_numpy(np.stack(frames)), count, (rows, columns))
    assert (shape.patches.sum(1) == patches).all()
    for f, frame in enumerate(frames):
        for region in range(1, count + 1):
            cells = [divmod(p, columns) for p in range(patches) if frame[p] == region]
            ys, xs = np.array(cells).T
            box = [xs.min() / columns, ys.min() / rows, (xs.max() + 1) / columns, (ys.max() + 1) / rows]
            centre = [(xs + 0.5).mean() / columns, (ys + 0.5).mean() / rows]
            np.testing.assert_allclose(shape.box_xyxy[f, region], box, atol=1e-6)
            np.testing.assert_allclose(shape.centroid_xy[f, region], centre, atol=1e-6)
            wanted = np.packbits(frame == region)
            assert shape.patch_map[f, region].tolist() == wanted.tolist()


@pytest.mark.parametrize("patches", [1, 7, 8, 9, 196, 256])
def test_packing_round_trip(patches: int) -> None:
    member = torch.rand(2, 3, patches) > 0.5
    packed = pack_patches(member)
    assert packed.numpy().tolist() == np.packbits(member.numpy(), axis=-1).tolist()
    assert torch.equal(unpack_patches(packed, patches), member)
