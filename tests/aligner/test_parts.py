"""Parts of videos, as ``clip.mp4#t=10,20`` names them: the frames of the whole between two moments, and no others."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from aligner import decode
from aligner.config import AlignerError
from aligner.decode import (
    DecodeError,
    open_video,
    picture_stream,
    read_part,
    read_timeline,
    sample_frames,
    span_s,
)
from aligner.plan import make_plan
from aligner.sources import Source, as_json, from_json, part_name, split_part

FRAMES, FPS, COUNT = 120, 25, 4
PARTS = [(0.0, 1.0), (1.2, 2.4), (2.04, 2.2), (4.0, 60.0)]


def expected(part: tuple[float, float]) -> list[int]:
    """Frames on display in the middle of equal segments of a part of a video of ``FRAMES`` frames at ``FPS``."""
    start, end = part[0], min(part[1], FRAMES / FPS)
    return [int((start + (i + 0.5) * (end - start) / COUNT) * FPS + 1e-9) for i in range(COUNT)]


@pytest.mark.parametrize(
    ("name", "codec", "gop", "b_frames"),
    [
        ("h264.mp4", "libx264", 12, None),
        ("long-gop.mp4", "libx264", 250, None),
        ("h264.mkv", "libx264", 12, 2),
        ("mpeg4-b.avi", "mpeg4", 12, 2),
        ("mpeg1.mpg", "mpeg1video", 12, 2),
    ],
)
def test_frames_of_a_part_are_exact(
    make_video: Callable,
    number_in: Callable,
    tmp_path: Path,
    name: str,
    codec: str,
    gop: int,
    b_frames: int | None,
) -> None:
    path = make_video(tmp_path / name, FRAMES, codec, gop, b_frames=b_frames)
    start, end = span_s(path)
    assert end - start == pytest.approx(FRAMES / FPS, abs=0.15)
    with open_video(path) as container:
        # Some formats say that they begin a frame or two before their first picture.
        start = float(read_timeline(container).start * picture_stream(container).time_base)
    for part in PARTS:
        moved = (part[0] + start, part[1] + start)
        frames = sample_frames(Source(str(path), part=moved), COUNT)
        assert [number_in(frame.rgb) for frame in frames] == expected(part), part
        assert all(frame.time_s < moved[1] for frame in frames)


def test_only_the_packets_around_a_part_are_read(make_video: Callable, tmp_path: Path) -> None:
    path = make_video(tmp_path / "long.mp4", 600, "libx264", 12)
    with open_video(path) as container:
        around = read_part(container, (12.0, 13.0))
    with open_video(path) as container:
        whole = read_timeline(container)
    assert around.partial and not whole.partial
    assert set(around.times) < set(whole.times) and len(around.times) < 60
    assert around.length == FPS


def test_a_decoder_that_gives_other_frames_than_the_packets_told_is_asked_for_all(
    make_video: Callable, number_in: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_video(tmp_path / "a.mp4", FRAMES, "libx264", 12)
    told = decode._packets_around

    def shifted(*arguments: object) -> decode.Timeline:
        timeline = told(*arguments)  # type: ignore[arg-type]
        object.__setattr__(timeline, "times", [time + 1 for time in timeline.times])
        return timeline

    monkeypatch.setattr(decode, "_packets_around", shifted)
    frames = sample_frames(Source(str(path), part=PARTS[1]), COUNT)
    assert [number_in(frame.rgb) for frame in frames] == expected(PARTS[1])


def test_a_part_behind_the_end_says_where_that_is(make_video: Callable, tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", FRAMES, "libx264", 12)
    with pytest.raises(DecodeError, match=r"from 20 to 30 s: the last one ends at 4.80 s"):
        sample_frames(Source(str(path), part=(20.0, 30.0)), COUNT)


def test_pictures_of_a_folder_have_parts_too(tmp_path: Path) -> None:
    from PIL import Image

    for number in range(20):
        Image.fromarray(np.full((16, 16, 3), number * 10, np.uint8)).save(tmp_path / f"{number:04d}.png")
    frames = sample_frames(Source(str(tmp_path), frame_rate=10.0, part=(0.5, 1.0)), 5)
    assert [round(frame.rgb.mean() / 10) for frame in frames] == [5, 6, 7, 8, 9]
    with pytest.raises(DecodeError, match="they end at 2.00 s"):
        sample_frames(Source(str(tmp_path), frame_rate=10.0, part=(5.0, 6.0)), 5)


def test_a_manifest_names_parts_and_files_that_only_look_like_them(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"12345")
    (tmp_path / "odd#t=1,2").write_bytes(b"123")
    names = ["clip.mp4#t=0,10", "clip.mp4#t=10,20.5", "odd#t=1,2", "gone.mp4#t=0,10"]
    (tmp_path / "videos.csv").write_text("path,seconds\n" + "".join(f'"{name}",10\n' for name in names))
    plan = make_plan(tmp_path / "videos.csv", 64)
    found = {item.video_id: (plan.path(item), item.bytes) for item in plan.items}
    assert found["clip.mp4#t=10,20.5"] == (Source(str(tmp_path / "clip.mp4"), part=(10.0, 20.5)), 5)
    assert found["odd#t=1,2"] == (tmp_path / "odd#t=1,2", 3)
    assert found["gone.mp4#t=0,10"][1] == 0 and plan.missing == 1


def test_names_of_parts_round_trip() -> None:
    assert part_name("a.mp4", 0.0, 12.5) == "a.mp4#t=0,12.5"
    assert split_part(part_name("a.mp4", 123456.789, 123457.1)) == ("a.mp4", (123456.789, 123457.1))
    assert split_part("a.mp4#t=now") == ("a.mp4#t=now", None)
    with pytest.raises(AlignerError, match="must end after it begins"):
        split_part("a.mp4#t=5,5")
    source = Source("a.mp4", part=(1.0, 2.5))
    assert from_json(as_json(source)) == source


def test_memory_does_not_grow_with_the_length_of_the_video(make_video: Callable, tmp_path: Path) -> None:
    peaks = []
    for frames in (100, 1000):
        path = make_video(tmp_path / f"{frames}.mp4", frames, "libx264", 12)
        source = Source(str(path), part=(2.0, 3.0))
        tracemalloc.start()
        sample_frames(source, COUNT)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]
