"""Hundreds of damaged and odd files: each gives its frames or a reason, and takes nothing else with it.

The files are made here, from clips that are encoded here and, where ../shared is present, from real ones:
cut at every tenth, with flipped bits, with another name, and with everything odd that a collection holds.
"""

import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from aligner import artifact, run
from aligner.children import Lost, each_in_children
from aligner.decode import sample_frames
from aligner.plan import make_plan
from aligner.verify import verify

LIMIT_S = 20.0
FRAMES = 4
BASES = [  # name, codec, gop, b-frames
    ("h264.mp4", "libx264", 12, 2),
    ("long.mp4", "libx264", 250, 2),
    ("h264.mkv", "libx264", 12, 2),
    ("h264.ts", "libx264", 12, 2),
    ("h264.flv", "libx264", 12, 0),
    ("mpeg4.avi", "mpeg4", 12, 0),
    ("mpeg4.mov", "mpeg4", 12, 2),
    ("mpeg1.mpg", "mpeg1video", 12, 2),
    ("hevc.mp4", "libx265", 12, 2),
    ("ffv1.avi", "ffv1", 1, 0),
    ("vp9.webm", "libvpx-vp9", 12, 0),
]
CHILD = """
from pathlib import Path
from aligner.decode import DecodeError, sample_frames

def sample(path, count):
    try:
        frames = sample_frames(Path(path), count)
    except DecodeError as error:
        return {"stage": error.stage, "error": error.reason, "message": str(error)}
    return {"indices": [f.index for f in frames], "shapes": [f.rgb.shape for f in frames],
            "times": [f.time_s for f in frames], "sum": sum(int(f.rgb.sum()) for f in frames)}
"""


def cut(data: bytes) -> Iterator[tuple[str, bytes]]:
    for tenth in range(1, 10):
        yield f"cut{tenth}", data[: len(data) * tenth // 10]


def flipped(data: bytes, seed: int) -> Iterator[tuple[str, bytes]]:
    """Bits flipped anywhere, in the first kilobyte, in the last; and a block of zeros or of noise."""
    randomly = random.Random(seed)
    for name, count, start, end in [
        *((f"flip{n}-{again}", n, 0, len(data)) for n in (1, 8, 64) for again in range(3)),
        *((f"head{again}", 4, 0, 1024) for again in range(3)),
        *((f"tail{again}", 4, max(0, len(data) - 1024), len(data)) for again in range(3)),
    ]:
        damaged = bytearray(data)
        for _ in range(count):
            damaged[min(randomly.randrange(start, end), len(data) - 1)] ^= 1 << randomly.randrange(8)
        yield name, bytes(damaged)
    for name, fill in (("zeros", bytes(2048)), ("noise", randomly.randbytes(2048))):
        place = randomly.randrange(len(data))
        yield name, data[:place] + fill + data[place + 2048 :]


def damage_all(root: Path, name: str, data: bytes, seed: int) -> None:
    stem, suffix = name.split(".")
    folder = root / stem
    folder.mkdir(parents=True, exist_ok=True)
    for kind, damaged in [*cut(data), *flipped(data, seed)]:
        (folder / f"{suffix}-{kind}.{suffix}").write_bytes(damaged)
    for wrong in ("mp4", "avi", "mpg"):
        (folder / f"{suffix}-named.{wrong}").write_bytes(data)


def encode(
    path: Path, codec: str, size: tuple[int, int], pixels: str, pts: list[int], **options: str
) -> Path:
    """A clip of any size and pixel format, its frames at the given times in 1/1000 s."""
    width, height = size
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        stream.codec_context.time_base = Fraction(1, 1000)
        for number, time in enumerate(pts):
            picture = np.full((height, width, 3), (9 * number) % 256, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pixels)
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def remux(source: Path, path: Path, skip: int, times: Callable[[int], tuple[int, int]]) -> Path:
    """The packets of a clip behind the first ``skip`` ones, the n-th with other times (pts, dts) in frames."""
    with av.open(str(source)) as read, av.open(str(path), "w") as write:
        stream = write.add_stream_from_template(read.streams.video[0])
        packets = [packet for packet in read.demux(video=0) if packet.size][skip:]
        step = packets[1].dts - packets[0].dts
        for number, packet in enumerate(packets):
            packet.pts, packet.dts = (step * time for time in times(number))
            packet.stream = stream
            write.mux(packet)
    return path


def odd_files(root: Path, make_video: Callable, make_audio: Callable) -> None:
    """What is odd but whole, and what is no video at all."""
    root.mkdir(parents=True)
    every_40_ms = [40 * n for n in range(20)]
    for size in ((33, 17), (17, 33), (1, 1), (2, 2), (3, 201)):
        encode(root / f"size-{size[0]}x{size[1]}.mkv", "ffv1", size, "yuv444p", every_40_ms)
    for pixels in ("yuv420p10le", "yuv422p10le", "yuv444p10le", "gray"):
        encode(root / f"{pixels}.mkv", "libx264", (64, 48), pixels, every_40_ms)
    encode(root / "hevc10.mp4", "libx265", (64, 48), "yuv420p10le", every_40_ms)
    encode(root / "one.mp4", "libx264", (64, 48), "yuv420p", [0])
    encode(root / "two-hours-apart.mkv", "libx264", (64, 48), "yuv420p", [0, 7_200_000])
    encode(root / "late.mkv", "libx264", (64, 48), "yuv420p", [3_600_000 + 40 * n for n in range(20)])
    encode(root / "variable.mkv", "libx264", (64, 48), "yuv420p", [n * n for n in range(1, 40)])
    encode(root / "variable.mp4", "libx264", (64, 48), "yuv420p", [n * n for n in range(1, 40)])
    encode(
        root / "open-gop.mp4",
        "libx264",
        (64, 48),
        "yuv420p",
        every_40_ms,
        **{"x264-params": "open-gop=1:keyint=6"},
    )
    make_video(root / "huge-gop.mp4", 300, gop=10_000, b_frames=0)
    make_video(root / "zwei\nzeilen.mp4", 9)
    make_video(root / "größe 日本 'quoted' \"twice\" %s {x} -;&|.mp4", 9)
    make_video(root / "--option.mp4", 9)
    plain = make_video(root / "plain.mp4", 30, gop=6, b_frames=0)
    remux(plain, root / "shuffled.mkv", 0, lambda n: (50 + 7 * n % 30, n))
    remux(plain, root / "no-first-keyframe.ts", 3, lambda n: (n, n))
    remux(plain, root / "jump-in-time.ts", 0, lambda n: (n + 90_000 * (n > 15),) * 2)
    twice = remux(plain, root / "twice.ts", 0, lambda n: (n, n))
    twice.write_bytes(2 * twice.read_bytes())
    with av.open(str(root / "no-frames.avi"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        container.start_encoding()
    make_audio(root / "audio.mp4")
    Image.new("RGB", (8, 8)).save(root / "picture.png")
    (root / "picture.png").rename(root / "picture.mp4")
    (root / "empty.mp4").touch()
    (root / "byte.mp4").write_bytes(b"\0")
    (root / "zeros.mp4").write_bytes(bytes(5000))
    (root / "noise.mp4").write_bytes(random.Random(0).randbytes(5000))
    (root / "page.mp4").write_text("<!DOCTYPE html><html><title>404</title></html>")
    (root / "text.avi").write_text("this is not a video\n" * 100)
    (root / "video-path.mp4").write_text(str(plain))
    (root / "playlist.mp4").write_text(
        f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{plain}\n#EXT-X-ENDLIST\n"
    )
    (root / "concat.mp4").write_text(f"ffconcat version 1.0\nfile 'plain.mp4'\nfile '{plain}'\n")
    (root / "folder.mp4").mkdir()
    (root / "dangling.mp4").symlink_to(root / "nowhere.mp4")


@pytest.fixture(scope="module")
def zoo(make_video: Callable, make_audio: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("zoo")
    whole = root.parent / f"{root.name}-whole"
    for seed, (name, codec, gop, b_frames) in enumerate(BASES):
        path = make_video(whole / name, 40, codec, gop, b_frames=b_frames)
        damage_all(root, name, path.read_bytes(), seed)
        make_video(root / "good" / name, 40, codec, gop, b_frames=b_frames)
    odd_files(root / "odd", make_video, make_audio)
    return root


def sampled(root: Path, paths: list[Path], monkeypatch: pytest.MonkeyPatch, home: Path) -> dict[str, dict]:
    """What a child says of each file; a crash or a hang of the child fails the test."""
    (home / "sampler.py").write_text(CHILD)
    monkeypatch.setenv("PYTHONPATH", str(home), prepend=os.pathsep)
    calls = [{"path": str(path), "count": FRAMES} for path in paths]
    answers = list(each_in_children("sampler:sample", calls, 2, LIMIT_S))
    lost = {str(path): str(a) for path, a in zip(paths, answers, strict=True) if isinstance(a, Lost)}
    assert not lost
    return {str(path.relative_to(root)): a for path, a in zip(paths, answers, strict=True)}


def check_answer(root: Path, name: str, answer: dict) -> None:
    """Frames in order and of one size, or a reason in words without a path."""
    if "error" in answer:
        assert answer["stage"] in ("open", "decode") and answer["error"].isidentifier(), name
        assert answer["message"] and str(root.parent) not in answer["message"], (name, answer)
        return
    assert answer["indices"] == list(range(FRAMES)), name
    assert answer["times"] == sorted(answer["times"]) and np.isfinite(answer["times"]).all(), name
    assert all(len(shape) == 3 and shape[2] == 3 for shape in answer["shapes"]), name


@pytest.mark.slow
def test_every_file_gives_frames_or_a_reason(
    zoo: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    paths = sorted(path for path in zoo.rglob("*") if path.is_file() or path.is_symlink())
    assert len(paths) >= 300
    found = sampled(zoo, paths, monkeypatch, tmp_path)
    for name, answer in found.items():
        check_answer(zoo, name, answer)
    assert not [name for name in found if name.startswith("good/") and "error" in found[name]]
    no_video = "audio byte concat dangling empty no-frames noise page playlist text video-path zeros".split()
    for name in no_video:
        assert "error" in next(a for path, a in found.items() if path.startswith(f"odd/{name}.")), name
    odd = {name.removeprefix("odd/"): a for name, a in found.items() if name.startswith("odd/")}
    whole = [
        name
        for name in odd
        if Path(name).stem
        not in (*no_video, "picture", "shuffled", "twice", "no-first-keyframe", "jump-in-time")
    ]
    assert len(whole) > 20 and not [name for name in whole if "error" in odd[name]]
    # Half a file never passes for a whole one where the format states a length (FLV, MPEG-PS and -TS need not).
    stating = [
        name.split(".") for name, *_ in BASES if name.endswith((".mp4", ".mov", ".mkv", ".webm", ".avi"))
    ]
    assert len(stating) == 8
    assert all("error" in found[f"{stem}/{kind}-cut5.{kind}"] for stem, kind in stating)


@pytest.mark.slow
@pytest.mark.shared
def test_real_clips_damaged(shared: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clips = sorted(path for path in (shared / "videos").iterdir() if path.suffix in (".mp4", ".avi", ".mov"))
    for seed, clip in enumerate(clips):
        damage_all(tmp_path / "real", clip.name, clip.read_bytes(), seed)
    root = tmp_path / "real"
    paths = sorted(root.rglob("*.*"))
    assert len(paths) > 150
    found = sampled(root, paths, monkeypatch, tmp_path)
    for name, answer in found.items():
        check_answer(root, name, answer)
    kinds = Counter("error" in answer for answer in found.values())
    assert kinds[True] > 30 and kinds[False] > 30


@pytest.mark.slow
def test_a_run_counts_every_damaged_file_and_spares_its_neighbours(
    zoo: Path, settings: Callable, tmp_path: Path
) -> None:
    plan = make_plan(zoo, 16)
    crowd = run.run(settings(videos=zoo, videos_per_shard=16, out=tmp_path / "crowd"))
    assert crowd.planned == len(plan.items) == crowd.ok + crowd.failed and crowd.failed > 80
    assert crowd.exit_code == 2 and verify(tmp_path / "crowd") == []
    for shard in range(plan.num_shards):
        for row in artifact.read_failures(tmp_path / "crowd", shard):
            assert row["stage"] in ("open", "decode") and row["error"] and row["message"], row
    run.run(settings(videos=zoo / "good", videos_root=zoo, out=tmp_path / "alone"))
    for name, *_ in BASES:
        alone = artifact.read_video(tmp_path / "alone", f"good/{name}")
        assert artifact.read_video(tmp_path / "crowd", f"good/{name}").equals(alone), name


def test_a_file_that_names_other_files_opens_none(make_video: Callable, tmp_path: Path) -> None:
    """A playlist in the guise of a video would let a data set read any file of this machine."""
    from aligner.decode import DecodeError

    plain = make_video(tmp_path / "plain.mp4", 9)
    for content in (
        f"#EXTM3U\n#EXTINF:9,\n{plain}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile 'plain.mp4'\n",
    ):
        (tmp_path / "other.mp4").write_text(content)
        with pytest.raises(DecodeError, match="not a readable media file"):
            sample_frames(tmp_path / "other.mp4", 2)
