"""Sampled frames are the right ones, upright, and bad files say what is wrong with them."""

import time
from bisect import bisect_right
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aligner import decode
from aligner.decode import DecodeError, Timeline, sample_frames, upright
from aligner.views import Sampling


def expected_numbers(times: list[int], end: int, count: int) -> list[int]:
    """Numbers of the frames on display in the middle of equal segments, by exact fractions."""
    middles = [times[0] + Fraction((2 * i + 1) * (end - times[0]), 2 * count) for i in range(count)]
    return [bisect_right(times, middle) - 1 for middle in middles]


def shown(timeline: Timeline, count: int) -> list[int]:
    return timeline.shown(Sampling(count).moments("", len(timeline.times))[0])


def sampled(path: Path, timeline: Timeline, count: int) -> list[decode.Frame]:
    return decode._sample(path, timeline, [shown(timeline, count)], decode.Deadline(), lambda rgb: rgb)[0]


@pytest.mark.parametrize("count", [1, 3, 8, 40])
@pytest.mark.parametrize(
    ("name", "codec", "gop", "b_frames"),
    [
        ("h264.mp4", "libx264", 12, None),
        ("long-gop.mp4", "libx264", 250, None),
        ("every-frame-a-key.mp4", "libx264", 1, 0),
        ("mpeg4.avi", "mpeg4", 12, 0),
        ("mpeg4-b.avi", "mpeg4", 12, 2),
        ("mpeg4-b.mp4", "mpeg4", 250, 2),
        ("h264.mkv", "libx264", 12, None),
        ("h264.ts", "libx264", 12, None),
        ("mpeg1.mpg", "mpeg1video", 12, 2),
    ],
)
def test_frames_are_exact(
    make_video: Callable,
    number_in: Callable,
    tmp_path: Path,
    name: str,
    codec: str,
    gop: int,
    b_frames: int | None,
    count: int,
) -> None:
    path = make_video(tmp_path / name, 80, codec, gop, b_frames=b_frames)
    frames = sample_frames(path, count)
    assert [number_in(frame.rgb) for frame in frames] == expected_numbers(list(range(80)), 80, count)
    assert [frame.index for frame in frames] == list(range(count))
    steps = np.diff([frame.time_s for frame in frames])
    numbers = np.diff(expected_numbers(list(range(80)), 80, count))
    np.testing.assert_allclose(steps, numbers / 25, atol=2e-3)


OPEN_264 = {"x264-params": "open-gop=1:keyint=10:min-keyint=10:scenecut=0:bframes=3"}
OPEN_265 = {"x265-params": "open-gop=1:keyint=10:min-keyint=10:scenecut=0:bframes=3:log-level=none"}


@pytest.mark.parametrize("count", [1, 3, 8, 40])
@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("open.mp4", "libx264", {"options": OPEN_264}),
        ("open.mkv", "libx264", {"options": OPEN_264}),
        ("open.ts", "libx264", {"options": OPEN_264}),
        ("open-hevc.mp4", "libx265", {"options": OPEN_265}),
        ("open-hevc.mkv", "libx265", {"options": OPEN_265}),
        ("open-hevc.ts", "libx265", {"options": OPEN_265}),
        ("open-mpeg2.mpg", "mpeg2video", {"b_frames": 2}),
        ("b-pyramid.mp4", "libx264", {"b_frames": 8, "options": {"b-pyramid": "normal"}}),
        ("ten-bit.mkv", "libx264", {"pixels": "yuv420p10le"}),
        ("ten-bit-hevc.mp4", "libx265", {"pixels": "yuv420p10le", "options": OPEN_265}),
        ("odd.mkv", "libx264", {"pixels": "yuv444p", "pad": 1}),
        ("odd-420.avi", "ffv1", {"pad": 3}),
        ("vp9.webm", "libvpx-vp9", {}),
    ],
)
def test_frames_are_exact_whatever_the_coding(
    make_video: Callable,
    number_in: Callable,
    tmp_path: Path,
    name: str,
    codec: str,
    options: dict,
    count: int,
) -> None:
    path = make_video(tmp_path / name, 80, codec, **options)
    frames = sample_frames(path, count)
    pad = options.get("pad", 0)
    assert {frame.rgb.shape for frame in frames} == {(64 + pad, 160 + pad, 3)}
    numbers = [number_in(frame.rgb[:64, :160]) for frame in frames]
    assert numbers == expected_numbers(list(range(80)), 80, count)


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_a_written_rotation_is_undone(
    make_video: Callable, number_in: Callable, tmp_path: Path, rotation: int
) -> None:
    plain = make_video(tmp_path / "plain.mp4", 20, b_frames=0)
    with av.open(str(plain)) as read, av.open(str(tmp_path / "turned.mp4"), "w") as write:
        stream = write.add_stream_from_template(read.streams.video[0])
        stream.set_display_rotation(rotation)
        for packet in read.demux(video=0):
            if packet.size:
                packet.stream = stream
                write.mux(packet)
    for frame in sample_frames(tmp_path / "turned.mp4", 4):
        assert frame.rgb.shape[:2] == ((160, 64) if rotation % 180 else (64, 160))
        stored = upright(frame.rgb, -_rotation(tmp_path / "turned.mp4"))
        assert number_in(stored) == expected_numbers(list(range(20)), 20, 4)[frame.index]


def _rotation(path: Path) -> int:
    with av.open(str(path)) as container:
        return next(container.decode(video=0)).rotation


def test_times_that_run_backwards_do_not_reorder_the_pictures(
    make_video: Callable, number_in: Callable, tmp_path: Path
) -> None:
    """Where times contradict the decoder its order counts: pictures run forward, times too."""
    plain = make_video(tmp_path / "plain.mp4", 30, gop=6, b_frames=0)
    with av.open(str(plain)) as read, av.open(str(tmp_path / "shuffled.mkv"), "w") as write:
        stream = write.add_stream_from_template(read.streams.video[0])
        for number, packet in enumerate(p for p in read.demux(video=0) if p.size):
            packet.pts, packet.dts, packet.stream = 512 * (50 + 7 * number % 30), 512 * number, stream
            write.mux(packet)
    frames = sample_frames(tmp_path / "shuffled.mkv", 6)
    assert [number_in(frame.rgb) for frame in frames] == [2, 7, 12, 17, 22, 27]
    np.testing.assert_allclose(np.diff([frame.time_s for frame in frames]), 0.2, atol=2e-3)


@pytest.mark.parametrize(("limit", "stage"), [(0.0, "open"), (0.5, "decode")])
def test_a_video_may_take_only_so_long(
    make_video: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: float, stage: str
) -> None:
    path = make_video(tmp_path / "clip.mp4", 60, gop=250)
    assert len(sample_frames(path, 4, limit_s=60.0)) == 4
    original = decode._sample

    def late(*arguments: object) -> object:
        time.sleep(limit)
        return original(*arguments)

    monkeypatch.setattr(decode, "_sample", late)
    with pytest.raises(DecodeError, match=f"took longer than {limit:g} s") as failure:
        sample_frames(path, 4, limit_s=limit)
    assert (failure.value.stage, failure.value.reason) == (stage, "timeout")


@pytest.mark.parametrize("gop", [6, 250])
def test_variable_frame_rate_is_sampled_by_time(
    make_video: Callable, number_in: Callable, tmp_path: Path, gop: int
) -> None:
    steps = np.random.default_rng(gop).integers(5, 400, 60)
    times = np.cumsum(steps).tolist()
    path = make_video(tmp_path / "vfr.mp4", 60, gop=gop, pts=times)
    with av.open(str(path)) as container:
        timeline = decode.read_timeline(container)
        base = container.streams.video[0].time_base
    frames = sample_frames(path, 11)
    wanted = expected_numbers(timeline.times, timeline.end, 11)
    assert [number_in(frame.rgb) for frame in frames] == wanted
    real = [(times[number] - times[0]) / 1000 for number in wanted]
    first = float(timeline.times[0] * base)
    np.testing.assert_allclose([frame.time_s - first for frame in frames], real, atol=1e-3)


def test_seeking_changes_nothing_and_decodes_less(
    make_video: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_video(tmp_path / "clip.mp4", 200, gop=10)
    with av.open(str(path)) as container:
        timeline = decode.read_timeline(container)
    decoded = []
    original = decode._Reader._timed_frames

    def counting(self: decode._Reader) -> object:
        for pair in original(self):
            decoded.append(pair[1])
            yield pair

    monkeypatch.setattr(decode._Reader, "_timed_frames", counting)
    jumped = sampled(path, timeline, 4)
    with_jumps = len(decoded)
    straight = sampled(path, Timeline(timeline.times, [], timeline.end, True), 4)
    assert with_jumps < 60 < len(decoded) - with_jumps
    for a, b in zip(jumped, straight, strict=True):
        assert a.time_s == b.time_s and np.array_equal(a.rgb, b.rgb)


def test_a_keyframe_index_that_lies_is_survived(
    make_video: Callable, number_in: Callable, tmp_path: Path
) -> None:
    path = make_video(tmp_path / "clip.mp4", 80, gop=20)
    with av.open(str(path)) as container:
        true = decode.read_timeline(container)
    lying = Timeline(true.times, true.times, true.end, True)
    frames = sampled(path, lying, 8)
    assert [number_in(frame.rgb) for frame in frames] == expected_numbers(list(range(80)), 80, 8)


@given(
    times=st.lists(st.integers(0, 500), min_size=1, max_size=30, unique=True).map(sorted),
    tail=st.integers(1, 50),
    count=st.integers(1, 40),
)
def test_targets_are_the_frames_on_display(times: list[int], tail: int, count: int) -> None:
    timeline = Timeline(times, times[:1], times[-1] + tail, True)
    targets = shown(timeline, count)
    assert targets == [times[n] for n in expected_numbers(times, times[-1] + tail, count)]
    assert targets == sorted(targets)


def test_a_short_video_repeats_frames(make_video: Callable, number_in: Callable, tmp_path: Path) -> None:
    frames = sample_frames(make_video(tmp_path / "short.mp4", 3), 8)
    assert [number_in(frame.rgb) for frame in frames] == [0, 0, 0, 1, 1, 2, 2, 2]


def test_upright_turns_counter_clockwise() -> None:
    picture = np.arange(6, dtype=np.uint8).reshape(2, 3, 1)
    assert upright(picture, 90)[..., 0].tolist() == [[2, 5], [1, 4], [0, 3]]
    assert upright(picture, -90)[..., 0].tolist() == [[3, 0], [4, 1], [5, 2]]
    assert upright(picture, 180)[..., 0].tolist() == [[5, 4, 3], [2, 1, 0]]
    assert np.array_equal(upright(picture, 0), picture)


@pytest.mark.shared
def test_rotation_metadata_is_applied(shared: Path) -> None:
    path = shared / "videos" / "rotated_90.mov"
    with av.open(str(path)) as container:
        stored = next(container.decode(video=0))
        raw, rotation = stored.to_ndarray(format="rgb24"), stored.rotation
    assert (raw.shape, rotation) == ((320, 568, 3), -90)
    frame = sample_frames(path, 3)[0]
    assert frame.rgb.shape == (568, 320, 3)
    # Minus 90 degrees is a quarter turn clockwise: the stored left column becomes the top row, from below up.
    assert np.array_equal(frame.rgb[0], raw[::-1, 0])


@pytest.mark.shared
def test_real_clips(shared: Path) -> None:
    for name, seconds in [
        ("arm_wrestling.mp4", 10.0),
        ("apply_eye_makeup.avi", 6.56),
        ("city_bikes.mp4", 10.0),
    ]:
        frames = sample_frames(shared / "videos" / name, 8)
        np.testing.assert_allclose(np.diff([frame.time_s for frame in frames]), seconds / 8, atol=0.05)


def broken_file(kind: str, folder: Path, make_video: Callable, make_audio: Callable) -> Path:
    path = folder / "clip.mp4"
    if kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("this is not a video\n" * 100)
    elif kind == "audio":
        make_audio(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "no frames":
        path = folder / "clip.avi"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
            container.start_encoding()
    elif kind.startswith("cut"):
        path = make_video(folder / f"whole.{kind.split()[1]}", 80)
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])
    return path


@pytest.mark.parametrize(
    ("kind", "stage", "reason"),
    [
        ("missing", "open", "missing"),
        ("empty", "open", "empty"),
        ("text", "open", "unreadable"),
        ("folder", "open", "unreadable"),
        ("audio", "open", "no_video"),
        ("no frames", "open", "no_frames"),
        ("cut mp4", "open", "unreadable"),
        ("cut avi", "open", "truncated"),
        ("cut mkv", "open", "truncated"),
    ],
)
def test_bad_files(
    make_video: Callable, make_audio: Callable, tmp_path: Path, kind: str, stage: str, reason: str
) -> None:
    path = broken_file(kind, tmp_path, make_video, make_audio)
    with pytest.raises(DecodeError) as failure:
        sample_frames(path, 4)
    assert (failure.value.stage, failure.value.reason) == (stage, reason)
    assert str(tmp_path) not in str(failure.value)


@pytest.mark.shared
def test_a_real_clip_cut_short(shared: Path, tmp_path: Path) -> None:
    for name in ("arm_wrestling.mp4", "apply_eye_makeup.avi"):
        data = (shared / "videos" / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 2])
        with pytest.raises(DecodeError):
            sample_frames(tmp_path / name, 8)


def test_damage_on_the_way_to_a_sample_fails_the_video(make_video: Callable, tmp_path: Path) -> None:
    """No partial decoding: half a video must not pass for a whole one."""
    path = make_video(tmp_path / "clip.mp4", 80, gop=250, b_frames=0)
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][40]
        position, size = packet.pos, packet.size
    data = bytearray(path.read_bytes())
    data[position : position + size] = bytes([255]) * size
    path.write_bytes(data)
    with pytest.raises(DecodeError) as failure:
        sample_frames(path, 8)
    assert failure.value.stage == "decode" and failure.value.reason == "broken"


def test_frames_that_an_avi_recorder_dropped_are_no_damage(
    make_video: Callable, number_in: Callable, tmp_path: Path
) -> None:
    """Dropped frames are counted in the header and make no packet; here FFmpeg drops some before the sound."""
    path = make_video(tmp_path / "clip.avi", 50, "mpeg4", audio_s=1.0)
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        assert video.frames > 50 == sum(bool(packet.size) for packet in container.demux(video))
    numbers = [number_in(frame.rgb) for frame in sample_frames(path, 5)]
    assert numbers == sorted(numbers) and len(set(numbers)) == 5
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DecodeError):
        sample_frames(path, 5)


def test_sound_longer_than_the_picture_is_no_damage(make_video: Callable, tmp_path: Path) -> None:
    for kind in ("mp4", "mkv"):
        path = make_video(tmp_path / f"clip.{kind}", 25, audio_s=3.0)
        assert len(sample_frames(path, 4)) == 4
