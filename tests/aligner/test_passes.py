"""Passes across videos: a frame's result hangs neither on its neighbours nor on its place, and every frame comes back.

The first half is the proof on which the engine rests: equal bits for a frame in passes of equal shape.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from aligner import artifact, engine, run
from aligner.config import AlignerError
from aligner.decoding import Clip
from aligner.encoder import ClipRegionEncoder, EncodedFrames, load_clip
from aligner.engine import Batcher, FrameEncoder, FrameRows, Timings, normalise
from aligner.pixels import Cutter
from aligner.plan import VideoItem
from aligner.verify import verify

COLUMNS = (
    "embedding",
    "topk_entity",
    "topk_score",
    "patch_map",
    "patches",
    "centroid_xy",
    "box_xyxy",
    "norm",
)


def same_frame(first: FrameRows, here: int, second: FrameRows, there: int) -> bool:
    """Whether two frames have the same bits in every column."""
    pairs = ((getattr(first, name)[here], getattr(second, name)[there]) for name in COLUMNS)
    return all(a.tobytes() == b.tobytes() for a, b in pairs)


def refuse_dependence(rows: Callable[[np.ndarray], FrameRows], size: int, side: int, seed: int = 0) -> None:
    """Encode a frame among other neighbours and at other places of a pass; every bit must stay."""
    random = np.random.default_rng(seed)
    crops, others = random.integers(0, 256, (2, size, side, side, 3), np.uint8)
    before = rows(crops)
    for place in sorted({0, 1 % size, size // 2, size - 1}):
        for neighbours in (others, np.zeros_like(others)):
            mixed = neighbours.copy()
            mixed[place] = crops[place]
            assert same_frame(rows(mixed), place, before, place), (
                f"neighbours matter to frame {place} of {size}"
            )
        moved = others.copy()
        moved[place] = crops[0]
        assert same_frame(rows(moved), place, before, 0), f"place {place} of {size} matters"


def rows_of(job: engine.Job, size: int) -> Callable[[np.ndarray], FrameRows]:
    job.manifest["config"]["frames_per_pass"] = size
    encode = FrameEncoder(job)
    return lambda crops: encode(list(crops), Timings())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_frames_of_a_pass_do_not_touch_each_other(settings: Callable, precision: str) -> None:
    """Odd and even shapes of pass, with merging, matching and geometry."""
    job = run.prepare(settings(precision=precision))
    for size in (*range(1, 14), 16, 23, 32, 40, 57, 64):
        refuse_dependence(rows_of(job, size), size, 32, seed=size)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "size", "threads"),
    [
        ("fp32", 5, 1),
        *(
            pytest.param(*asked, marks=pytest.mark.exhaustive)
            for asked in (("fp32", 8, 2), ("bf16", 5, 1), ("bf16", 8, 2))
        ),
    ],
)
def test_frames_of_a_pass_do_not_touch_each_other_in_a_real_tower(
    precision: str, size: int, threads: int
) -> None:
    """ViT-B/32: the matrix products of a size that real runs have."""
    clip, _ = load_clip("ViT-B-32", "none")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        tower = ClipRegionEncoder(clip, 4, precision=precision)
        refuse_dependence(lambda crops: tower_rows(tower, crops), size, 224)
    finally:
        torch.set_num_threads(before)


def tower_rows(tower: ClipRegionEncoder, crops: np.ndarray) -> FrameRows:
    pixels = normalise(torch.from_numpy(crops), torch.full((3,), 0.5), torch.full((3,), 0.3))
    found = tower(pixels)
    embeddings, sizes, source = found.embeddings.numpy(), found.sizes.numpy(), found.source.numpy()
    return FrameRows(sizes, sizes, sizes, source, source, sizes, embeddings, sizes, sizes)


# The other half of open_clip's transform, and the whole of it.


@given(
    height=st.integers(8, 90),
    width=st.integers(8, 90),
    size=st.sampled_from([(32, 32), (24, 40), (33, 20)]),
    resize_mode=st.sampled_from(["shortest", "longest", "squash"]),
    interpolation=st.sampled_from(["bicubic", "bilinear"]),
    fill=st.sampled_from([0, 128]),
    seed=st.integers(0, 10),
)
def test_pictures_are_prepared_as_open_clip_does(
    height: int, width: int, size: tuple, resize_mode: str, interpolation: str, fill: int, seed: int
) -> None:
    """Bit for bit, for every way of resizing."""
    rgb = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    mean, std = (0.48, 0.45, 0.4), (0.26, 0.27, 0.28)
    options = {"interpolation": interpolation, "resize_mode": resize_mode, "fill_color": fill}
    transform = open_clip.image_transform(size, is_train=False, mean=mean, std=std, **options)
    crop = Cutter(size, resize_mode, interpolation, fill)(rgb)
    assert crop.shape == (*size, 3) and crop.dtype == np.uint8
    ours = normalise(torch.from_numpy(crop.copy())[None], torch.tensor(mean), torch.tensor(std))[0]
    assert torch.equal(ours, transform(Image.fromarray(rgb)))


# Batching.


def item(name: str) -> VideoItem:
    return VideoItem(name, None, None, 1, 0)


def numbered(crops: list[np.ndarray]) -> FrameRows:
    """A stand-in for an encoder whose every column tells which frame it was given."""
    numbers = np.array([crop[0, 0, 0] for crop in crops], np.float32)
    one, two, four = (
        numbers[:, None],
        numbers[:, None, None].repeat(2, 2),
        numbers[:, None, None].repeat(4, 2),
    )
    return FrameRows(one, two, four, two, two, two, two, one, np.ones(len(crops), bool))


@given(counts=st.lists(st.integers(0, 7), max_size=12), size=st.integers(1, 9), ahead=st.integers(0, 2))
def test_every_frame_comes_back_to_its_video_in_order(counts: list[int], size: int, ahead: int) -> None:
    """0 stands for a video that failed."""
    sizes: list[int] = []

    running: list[int] = []

    def start(crops: list[np.ndarray]) -> Callable[[], FrameRows]:
        sizes.append(len(crops))
        running.append(len(crops))
        assert len(running) <= 1 + ahead

        def rows() -> FrameRows:
            running.pop()
            return numbered(crops)

        return rows

    batcher, first, found, wanted = Batcher(start, size, ahead=ahead), 0, [], []
    for place, count in enumerate(counts):
        numbers = np.arange(first, first + count)
        first += count
        crops = numbers[:, None, None, None].repeat(3, 3).astype(np.uint8)
        failure = artifact.Failure(str(place), "open", "empty", "nothing")
        clip = Clip(crops, numbers / 2, 0.0) if count else failure
        found += batcher.add(item(str(place)), clip)
        wanted.append((str(place), numbers.tolist() if count else failure))
    found += batcher.flush()
    got = [(v.video_id, r if isinstance(r, artifact.Failure) else r.norm.tolist()) for v, r in found]
    assert got == wanted
    # Passes are full but for the last one.
    total = sum(counts)
    assert sizes == [size] * (total // size) + ([total % size] if total % size else [])


# Out of memory.


class Small:
    """An encoder with room for so many frames, which says so as a GPU does."""

    def __init__(self, encoder: ClipRegionEncoder, room: int) -> None:
        self.encoder, self.room, self.seen = encoder, room, []

    def __getattr__(self, name: str) -> object:
        return getattr(self.encoder, name)

    def __call__(self, pixels: torch.Tensor) -> EncodedFrames:
        self.seen.append(len(pixels))
        if len(pixels) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.encoder(pixels)


def test_a_gpu_that_is_too_small_gets_half_a_pass(settings: Callable, tmp_path: Path) -> None:
    run.run(settings(out=tmp_path / "roomy", batch_frames=8))
    job = run.prepare(settings(batch_frames=8))
    small = Small(job.encoder, 3)
    marker = run.run_shard(replace(job, encoder=small), 0)
    assert small.seen == [8, 4, 2, 2, 2, 2, 2, 2, 2, 2]
    assert (marker["frames_at_once"], marker["counts"]["ok"]) == (2, 3)
    assert artifact.read_marker(tmp_path / "roomy", 0)["frames_at_once"] == 8
    for shard in (1, 2):
        run.run_shard(job, shard)
    assert verify(settings().out) == []
    video = "jump/1.mp4"
    ours, theirs = (artifact.read_video(out, video) for out in (settings().out, tmp_path / "roomy"))
    # Another shape of pass: equal but for the last bits.
    np.testing.assert_allclose(artifact.vectors(ours), artifact.vectors(theirs), atol=1e-3)


def test_no_room_for_a_frame_is_an_error(settings: Callable) -> None:
    job = run.prepare(settings())
    with pytest.raises(AlignerError, match="no memory for a single frame"):
        run.run_shard(replace(job, encoder=Small(job.encoder, 0)), 0)
    assert not list(settings().out.glob("shard-*")) and not list(settings().out.glob(".*.tmp"))
