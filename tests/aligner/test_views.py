"""Views: which frames and which crops, decoded once, kept as rows, the same whenever they are made."""

from bisect import bisect_right
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import open_clip
import pyarrow.compute as pc
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

from aligner import artifact, decode, engine, run
from aligner.config import AlignConfig, AlignerError
from aligner.decode import Timeline, sample_frames, sample_views
from aligner.pixels import Cutter
from aligner.sources import Source
from aligner.verify import region_lines, verify
from aligner.views import Sampling, view_table

FRAMES = st.integers(1, 40)
LENGTH = st.integers(1, 300)
# Places of one draw, in parts of 2**32 of a segment.
GOLDEN = [3478986437, 5459853314, 10661554386, 16304484105]


def dense(frames: int, stride: int, clips: int = 1) -> Sampling:
    return Sampling(frames, "dense", stride=stride, clips=clips)


# Moments.


@given(frames=FRAMES, clips=st.integers(1, 12), length=LENGTH)
def test_clips_of_uniform_share_each_segment(frames: int, clips: int, length: int) -> None:
    """All clips together are the uniform sample of as many segments as they have frames."""
    found = Sampling(frames, clips=clips).moments("any", length)
    together = [moment for segment in zip(*found, strict=True) for moment in segment]
    assert together == [Fraction(2 * i + 1, 2 * frames * clips) for i in range(frames * clips)]


@given(frames=FRAMES, draws=st.integers(1, 5), seed=st.integers(0, 9), video=st.text(max_size=9))
def test_a_draw_has_a_frame_in_every_segment(frames: int, draws: int, seed: int, video: str) -> None:
    sampling = Sampling(frames, "tsn", draws=draws, seed=seed)
    found = sampling.moments(video, 7)
    assert len(found) == draws
    for moments in found:
        assert [int(moment * frames) for moment in moments] == list(range(frames))
    # A draw is a matter of video, draw and seed: not of the file's length, nor of how many draws there are.
    assert sampling.moments(video, 300) == found
    assert Sampling(frames, "tsn", draws=draws + 1, seed=seed).moments(video, 7)[:draws] == found
    others = [Sampling(frames, "tsn", draws=draws, seed=seed + 1).moments(video, 7), found]
    others.append(sampling.moments(f"{video}x", 7))
    flat = [tuple(moments) for each in others for moments in each]
    assert len(set(flat)) == len(flat)


def test_draws_fall_everywhere_in_a_segment() -> None:
    found = Sampling(8, "tsn", draws=250).moments("clip.mp4", 100)
    places = np.sort([float(m * 8) % 1 for moments in found for m in moments])
    # Kolmogorov-Smirnov: the bound fails once in a thousand, and the seed is fixed.
    assert np.abs(places - (np.arange(2000) + 0.5) / 2000).max() < 1.95 / np.sqrt(2000)


def test_draws_are_the_same_on_every_machine() -> None:
    """A folder may be continued with another Python: these numbers are for ever."""
    (first,) = Sampling(4, "tsn", seed=7).moments("jump/clip ü.mp4", 50)
    assert [int(moment * (4 << 32)) for moment in first] == GOLDEN


@given(frames=FRAMES, stride=st.integers(1, 20), clips=st.integers(1, 6), length=LENGTH)
def test_windows_are_dense_and_cover_the_video(frames: int, stride: int, clips: int, length: int) -> None:
    timeline = Timeline([40 * i for i in range(length)], [0], 40 * length, True)
    windows = [
        [time // 40 for time in timeline.shown(moments)]
        for moments in dense(frames, stride, clips).moments("any", length)
    ]
    span = (frames - 1) * stride + 1
    for window in windows:
        assert window == [min(window[0] + i * stride, length - 1) for i in range(frames)]
    starts = [window[0] for window in windows]
    if length <= span:
        assert starts == [0] * clips
    elif clips == 1:
        assert abs((length - span - starts[0]) - starts[0]) <= 1
    else:
        assert (starts[0], windows[-1][-1]) == (0, length - 1)
        assert np.ptp(np.diff(starts)) <= 1


@given(length=LENGTH, stride=st.integers(1, 9), rate=st.sampled_from([23.976, 25.0, 29.97, 59.94]))
def test_rounded_timestamps_move_no_window(length: int, stride: int, rate: float) -> None:
    """Matroska rounds times to milliseconds; the frames are those of exact times."""
    times = [round(1000 * i / rate) for i in range(length + 1)]
    timeline = Timeline(times[:-1], [0], times[-1], True)
    (moments,) = dense(8, stride).moments("any", length)
    wanted = [int(moment * length) for moment in moments]
    assert [times.index(time) for time in timeline.shown(moments)] == wanted


# Frames.


@pytest.fixture(scope="module")
def film(make_video: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 numbered frames, 25 a second."""
    return make_video(tmp_path_factory.mktemp("film") / "film.mp4", 80, gop=12)


def numbers(number_in: Callable, views: list[list[decode.Frame]]) -> list[list[int]]:
    return [[number_in(frame.rgb) for frame in view] for view in views]


def test_views_hold_the_frames_that_they_say(film: Path, number_in: Callable) -> None:
    views = sample_views(film, dense(5, 6, clips=3))
    assert numbers(number_in, views) == [
        [0, 6, 12, 18, 24],
        [27, 33, 39, 45, 51],
        [55, 61, 67, 73, 79],
    ]
    for view in views:
        np.testing.assert_allclose([f.time_s for f in view], [number_in(f.rgb) / 25 for f in view], atol=2e-3)
    uniform = numbers(number_in, sample_views(film, Sampling(4, clips=2)))
    assert uniform == [[5, 25, 45, 65], [15, 35, 55, 75]]
    assert numbers(number_in, [sample_frames(film, 4)]) == [[10, 30, 50, 70]]


def test_draws_of_a_video_differ_and_repeat(film: Path, number_in: Callable) -> None:
    sampling = Sampling(8, "tsn", draws=4)
    first, again, other = (
        numbers(number_in, sample_views(film, sampling, name)) for name in ("a.mp4", "a.mp4", "b.mp4")
    )
    assert first == again != other
    assert len({tuple(view) for view in first}) == 4
    assert all([number // 10 for number in view] == list(range(8)) for view in first + other)


def test_a_frame_that_views_share_is_decoded_once(film: Path) -> None:
    shapes = []

    def keep(rgb: np.ndarray) -> np.ndarray:
        shapes.append(rgb.shape)
        return rgb[::32, ::32]

    views = sample_views(film, dense(8, 2, clips=20), prepare=keep)
    times = {frame.time_s for view in views for frame in view}
    assert shapes == [(64, 160, 3)] * len(times) and len(times) < 8 * 20
    assert {frame.rgb.shape for view in views for frame in view} == {(2, 5, 3)}


@pytest.mark.parametrize("sampling", [Sampling(6, "tsn", draws=2), dense(6, 4, clips=2)])
@pytest.mark.parametrize("length", [1, 2, 60])
def test_variable_frame_rates_and_short_videos(
    make_video: Callable, number_in: Callable, tmp_path: Path, sampling: Sampling, length: int
) -> None:
    times = np.cumsum(np.random.default_rng(length).integers(5, 400, length)).tolist()
    path = make_video(tmp_path / "vfr.mp4", length, pts=times)
    with decode.open_video(path) as container:
        timeline = decode.read_timeline(container)
    start, span = timeline.times[0], timeline.end - timeline.times[0]
    wanted = [
        [bisect_right(timeline.times, start + moment * span) - 1 for moment in moments]
        for moments in sampling.moments("v", length)
    ]
    views = sample_views(path, sampling, "v")
    assert numbers(number_in, views) == wanted
    real = [[(times[number] - times[0]) / 1000 for number in view] for view in wanted]
    first = views[0][0].time_s - real[0][0]
    np.testing.assert_allclose([[f.time_s - first for f in view] for view in views], real, atol=1e-3)


def test_pictures_are_sampled_as_frames_are(film: Path, number_in: Callable, tmp_path: Path) -> None:
    for number, frame in enumerate(sample_frames(film, 20)):
        Image.fromarray(frame.rgb).save(tmp_path / f"{number:05d}.png")
    source = Source(str(tmp_path), frame_rate=5.0)
    views = sample_views(source, dense(3, 4, clips=2))
    assert numbers(number_in, views) == [[2, 18, 34], [46, 62, 78]]
    assert [[frame.time_s for frame in view] for view in views] == [[0.0, 0.8, 1.6], [2.2, 3.0, 3.8]]


# Crops.


@given(height=st.integers(8, 90), width=st.integers(8, 90), seed=st.integers(0, 99))
def test_crops_are_those_of_torchvision(height: int, width: int, seed: int) -> None:
    rgb = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    resized = tv.resize(Image.fromarray(rgb), 24, InterpolationMode.BICUBIC)
    down, across = resized.height - 24, resized.width - 24
    corners = [(0, 0), (down, across)]
    wanted = [tv.center_crop(resized, [24, 24]), *(tv.crop(resized, *corner, 24, 24) for corner in corners)]
    found = Cutter((24, 24), crops=3).cuts(rgb)
    np.testing.assert_array_equal(found, np.stack(wanted))
    np.testing.assert_array_equal(found[0], Cutter((24, 24))(rgb))


@given(height=st.integers(8, 90), width=st.integers(8, 90))
def test_the_view_table_leads_from_the_crop_to_the_frame(height: int, width: int) -> None:
    """A frame whose colours tell the place: what the table's rule says lies within a pixel of what is seen."""
    ramp = np.zeros((height, width, 3), np.uint8)
    ramp[..., 0] = (np.arange(width) + 0.5) / width * 255
    ramp[..., 1] = ((np.arange(height) + 0.5) / height * 255)[:, None]
    size, long = 24, max(height, width) * 24 // min(height, width)
    for row, cut in zip(view_table(Sampling(1), 3), Cutter((24, 24), crops=3).cuts(ramp), strict=True):
        middle = cut[8:16, 8:16].astype(float).mean((0, 1)) / 255
        seen_long, seen_short = (middle[0], middle[1]) if width >= height else (middle[1], middle[0])
        said = (row["before"] * (long - size) + 0.5 * size) / long
        assert abs(seen_long - said) < 1 / min(height, width, 24) and abs(seen_short - 0.5) < 1 / 8


def test_the_table_of_views_names_each() -> None:
    assert view_table(Sampling(8, clips=2), 1) == [
        {"clip": 0, "crop": "middle", "before": 0.5},
        {"clip": 1, "crop": "middle", "before": 0.5},
    ]
    drawn = view_table(Sampling(8, "tsn", draws=2), 3)
    assert [(row["draw"], row["crop"]) for row in drawn] == [
        (draw, crop) for draw in (0, 1) for crop in ("middle", "start", "end")
    ]


# Runs.


@pytest.fixture(scope="module")
def two(make_video: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("two")
    for place in range(2):
        make_video(root / f"{place}.mp4", frames=30 + place, seed=place)
    return root


@pytest.fixture
def viewed(settings: Callable, two: Path) -> Callable[..., AlignConfig]:
    def make(**changes: object) -> AlignConfig:
        return settings(**{"videos": two, "videos_per_shard": 1} | changes)

    return make


def test_clips_and_crops_are_rows(viewed: Callable) -> None:
    config = viewed(clips=2, crops=3)
    assert run.run(config).ok == 2 and verify(config.out) == []
    job = run.prepare(config)
    assert job.manifest["counts"]["views"] == artifact.view_count(job.manifest) == 6
    rows = artifact.read_video(config.out, "1.mp4")
    tokens = job.manifest["regions"] + 1
    order = [rows[name].to_numpy() for name in ("view", "frame_index", "region_index")]
    np.testing.assert_array_equal(order, np.indices((6, 3, tokens)).reshape(3, -1))

    clips = sample_views(config.videos / "1.mp4", Sampling(3, clips=2))
    encode, cutter = engine.FrameEncoder(job), Cutter(tuple(job.manifest["config"]["image_size"]), crops=3)
    vectors = artifact.vectors(rows).reshape(6, 3, tokens, -1)
    times = rows["time_s"].to_numpy().reshape(6, 3, tokens)
    for view, row in enumerate(job.manifest["views"]):
        clip, crop = clips[row["clip"]], ("middle", "start", "end").index(row["crop"])
        wanted = encode([cutter.cuts(frame.rgb)[crop] for frame in clip], engine.Timings())
        np.testing.assert_array_equal(vectors[view], wanted.embedding)
        assert (times[view] == np.array([frame.time_s for frame in clip])[:, None]).all()
    lines = region_lines(config.out, "1.mp4", 1, largest=1)
    assert [(line.view, line.frame) for line in lines[::2]] == [(v, f) for v in range(6) for f in range(3)]


def test_the_first_view_is_what_a_single_view_is(viewed: Callable, tmp_path: Path) -> None:
    one, three = viewed(out=tmp_path / "one"), viewed(out=tmp_path / "three", crops=3)
    for config in (one, three):
        run.run(config)
    single, several = (artifact.read_video(config.out, "0.mp4") for config in (one, three))
    assert len(several) == 3 * len(single)
    assert artifact.first_view(several).equals(single)
    assert artifact.first_view(single).equals(single)


def test_views_come_out_with_the_same_bytes_after_an_interruption(viewed: Callable, tmp_path: Path) -> None:
    options = {"sampling": "tsn", "draws": 3, "crops": 3, "seed": 5}
    config = viewed(**options)
    run.run(config)
    names = ["shard-00000.parquet", "shard-00001.parquet"]
    whole = [(config.out / name).read_bytes() for name in names]
    (config.out / artifact.marker_name(1)).unlink()
    (config.out / names[1]).write_bytes(b"cut")
    assert run.run(viewed(**options, decode_workers=1)).done_shards == 1
    assert [(config.out / name).read_bytes() for name in names] == whole
    draws = pc.unique(artifact.read_video(config.out, "0.mp4")["time_s"])
    run.run(viewed(**options | {"seed": 6}, out=tmp_path / "other"))
    assert not pc.unique(artifact.read_video(tmp_path / "other", "0.mp4")["time_s"]).equals(draws)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sampling": "random"}, "--sampling must be one of uniform, tsn, dense, got 'random'"),
        ({"sampling": "dense"}, "--stride is for --sampling dense, which needs it; got .* no --stride"),
        ({"stride": 4}, "--stride is for --sampling dense, .* got --sampling uniform and --stride 4"),
        ({"draws": 2}, "--draws is for --sampling tsn, got --sampling uniform; use --clips"),
        ({"sampling": "tsn", "clips": 2}, "--clips is not for --sampling tsn"),
        ({"crops": 2}, "--crops must be one of 1, 3, got 2"),
        ({"colours": "grey"}, "--colours must be one of model, clip, imagenet, got 'grey'"),
        ({"clips": 0}, "--clips must be at least 1, got 0"),
    ],
)
def test_settings_that_make_no_views_are_refused(settings: Callable, given: dict, message: str) -> None:
    with pytest.raises(AlignerError, match=message):
        settings(**given)


def test_three_crops_need_something_that_overhangs(
    settings: Callable, timm_clip: str, make_corpus: Callable, tmp_path: Path
) -> None:
    from aligner.encoder import load_clip

    corpus = make_corpus(tmp_path / "corpus", load_clip(timm_clip)[1])
    with pytest.raises(AlignerError, match="--crops 3: the model takes whole frames .resize_mode squash"):
        run.prepare(settings(model=timm_clip, corpus=corpus, crops=3))


def test_colours_are_told_by_name_and_number_and_count(viewed: Callable, tmp_path: Path) -> None:
    jobs = {name: run.prepare(viewed(colours=name, out=tmp_path / name)) for name in ("clip", "imagenet")}
    for name, mean in (
        ("clip", open_clip.constants.OPENAI_DATASET_MEAN),
        ("imagenet", open_clip.constants.IMAGENET_MEAN),
    ):
        recorded = jobs[name].manifest["config"]
        assert recorded["colours"] == name and recorded["mean"] == list(mean)
        assert torch.allclose(engine.FrameEncoder(jobs[name]).mean, torch.tensor(mean))
    assert jobs["clip"].fingerprint(0) != jobs["imagenet"].fingerprint(0)
    assert run.prepare(viewed()).manifest["config"]["mean"] == list(open_clip.constants.OPENAI_DATASET_MEAN)
