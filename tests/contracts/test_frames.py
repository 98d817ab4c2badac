"""The frame that a search of the corpus shows at a time is the one that the aligner takes there."""

from pathlib import Path

import numpy as np
import pytest

from aligner.decode import sample_frames
from corpus_builder.pictures import read_frame

pytestmark = pytest.mark.shared


@pytest.mark.parametrize(
    "name", ["arm_wrestling.mp4", "apply_eye_makeup.avi", "city_bikes.mp4", "rotated_90.mov"]
)
def test_both_stages_see_the_same_frame(shared: Path, name: str) -> None:
    path = shared / "videos" / name
    frames = sample_frames(path, 3)
    start = first_time(path)
    for frame in frames:
        assert np.array_equal(np.asarray(read_frame(path, frame.time_s - start)), frame.rgb)


def first_time(path: Path) -> float:
    import av

    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        return float((frame.pts or 0) * frame.time_base)
