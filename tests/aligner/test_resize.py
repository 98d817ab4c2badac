"""Cutting on the device against Pillow's."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from aligner import decode
from aligner.pixels import Cutter
from aligner.resize import cut


@given(
    height=st.integers(8, 150),
    width=st.integers(8, 150),
    size=st.sampled_from([(32, 32), (24, 40), (33, 20)]),
    mode=st.sampled_from(["shortest", "longest", "squash"]),
    method=st.sampled_from(["bicubic", "bilinear"]),
    fill=st.sampled_from([0, 128]),
    seed=st.integers(0, 1000),
)
def test_equals_pillow_but_for_its_whole_numbers(
    height: int, width: int, size: tuple, mode: str, method: str, fill: int, seed: int
) -> None:
    """Noise of full contrast, the hardest there is; Pillow resizes the rows, then the columns, as all versions can."""
    rng = np.random.default_rng(seed)
    rgb = rng.choice(np.array([0, 255], np.uint8), (height, width, 3))
    cutter = Cutter(size, mode, method, fill)
    high, wide = cutter.resized(height, width)
    rows = Image.fromarray(rgb).resize((wide, height), cutter.filter())
    wanted = cutter(np.asarray(rows.resize((wide, high), cutter.filter())))
    got = cut(torch.from_numpy(rgb)[None], cutter)[0].numpy()
    assert got.shape == wanted.shape
    difference = np.abs(got.astype(int) - wanted)
    assert difference.max() <= 2
    assert (difference > 0).mean() < 0.15


def test_frames_of_real_videos_differ_by_two_at_most(shared) -> None:  # noqa: ANN001
    for name in ("arm_wrestling.mp4", "rotated_90.mov"):
        pictures = np.stack([frame.rgb for frame in decode.sample_frames(shared / "videos" / name, 2)])
        cutter = Cutter((224, 224))
        wanted = np.stack([cutter(picture) for picture in pictures])
        difference = np.abs(cut(torch.from_numpy(pictures), cutter).numpy().astype(int) - wanted)
        assert difference.max() <= 2
        assert (difference > 0).mean() < 0.01
