import sys
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from corpus_builder.config import CorpusError
from corpus_builder.pictures import read_frame, read_image

FPS = 10


def write_video(path, levels=range(0, 250, 8), codec="libx264", times=None, start=0, **options):
    """Grey frames, one of each level; times in milliseconds, else one every 100."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.gop_size, stream.codec_context.bit_rate = 5, 4_000_000
        if codec == "libx264":
            stream.codec_context.time_base = Fraction(1, 1000)
        for number, level in enumerate(levels):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), level, np.uint8), format="rgb24")
            frame.time_base = stream.codec_context.time_base if codec == "libx264" else Fraction(1, FPS)
            step = times[number] if times else 100 * number
            frame.pts = start + step if codec == "libx264" else number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def level_at(path, seconds):
    return float(np.asarray(read_frame(path, float(seconds))).mean())


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.avi", "clip.ts"])
def test_the_frame_on_display_is_found_at_any_time(tmp_path, name):
    """Against the definition: frame n is on display from n / fps until the next comes."""
    path = write_video(tmp_path / name, codec="mpeg4" if name.endswith("avi") else "libx264")
    for seconds in (0, 0.05, 0.1, 0.3, 0.99, 1.0, 1.55, 2.45, 3.05, 3.15):
        expected = 8 * int(seconds * FPS + 1e-6)
        assert level_at(path, seconds) == pytest.approx(expected, abs=3), seconds


def test_times_count_from_the_first_frame_and_steps_may_differ(tmp_path):
    path = write_video(tmp_path / "c.mp4", [0, 100, 200], times=[0, 700, 900], start=5000)
    assert [round(level_at(path, s), -1) for s in (0, 0.69, 0.7, 0.89, 0.95)] == [0, 0, 100, 100, 200]


def test_a_time_beyond_the_end_is_told(tmp_path):
    path = write_video(tmp_path / "c.mp4")
    assert level_at(path, 3.15) == pytest.approx(248, abs=3)
    with pytest.raises(CorpusError, match=r"c.mp4' shows its last frame until 3.\d\d s, got --at 4"):
        read_frame(path, 4.0)
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(CorpusError, match="expected seconds from the beginning of the video, 0 or more"):
            read_frame(path, wrong)


@pytest.mark.shared
def test_a_rotated_video_is_turned_upright(shared):
    assert read_frame(shared / "videos" / "rotated_90.mov", 0.0).size == (320, 568)


def test_what_is_no_video_is_told(tmp_path):
    (tmp_path / "text.mp4").write_text("not a video\n" * 500)
    (tmp_path / "empty.mp4").touch()
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 44100
        container.mux(stream.encode(silence))
        container.mux(stream.encode())
    whole = write_video(tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    for name, message in {
        "text.mp4": "no readable video, or broken: Invalid data",
        "cut.mp4": "no readable video, or broken",
        "empty.mp4": "is empty",
        "missing.mp4": "no such file",
        "sound.mp4": "holds no video stream, found audio",
        ".": "no such file",
    }.items():
        with pytest.raises(CorpusError, match=message):
            read_frame(tmp_path / name, 0.0)


def test_a_video_cut_short_gives_its_frames_and_no_others(tmp_path):
    whole = write_video(tmp_path / "whole.ts", np.tile([0, 200], 20)).read_bytes()
    path = tmp_path / "cut.ts"
    path.write_bytes(whole[: len(whole) // 2])
    assert level_at(path, 0.1) == pytest.approx(200, abs=3)
    with pytest.raises(CorpusError, match="shows its last frame until|broken"):
        read_frame(path, 3.9)


def test_without_pyav_the_command_that_installs_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(CorpusError, match=r'pip install "alt-toolkit\[video\]"'):
        read_frame(tmp_path / "c.mp4", 0.0)


def test_pictures_of_every_mode_come_as_rgb(tmp_path):
    red = Image.new("RGB", (4, 3), (255, 0, 0))
    for mode, name in (
        ("RGB", "a.png"),
        ("P", "b.gif"),
        ("RGBA", "c.webp"),
        ("CMYK", "d.jpg"),
        ("L", "e.bmp"),
    ):
        red.convert(mode).save(tmp_path / name, **({"lossless": True} if mode == "RGBA" else {}))
        read = read_image(tmp_path / name)
        assert read.mode == "RGB" and read.size == (4, 3)
        if mode in ("RGB", "P", "RGBA"):
            assert read.getpixel((0, 0)) == (255, 0, 0)


def test_a_photo_is_turned_as_its_exif_data_ask(tmp_path):
    image = Image.new("RGB", (8, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise
    image.save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").size == (4, 8)


def test_what_is_no_image_is_told(tmp_path):
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "empty.png").touch()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.png")
    data = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 255
    (tmp_path / "flipped.png").write_bytes(flipped)
    for name, message in {
        "text.png": "not an image that Pillow reads",
        "cut.png": "is broken",
        "flipped.png": "is broken",
        "empty.png": "is empty",
        "missing.png": "no such file",
    }.items():
        with pytest.raises(CorpusError, match=message):
            read_image(tmp_path / name)
