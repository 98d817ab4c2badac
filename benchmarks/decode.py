"""Sparse decoding against the alternatives: ``python -m benchmarks.decode`` (needs opencv-python-headless).

Eight frames, the middle of equal segments, of a clip with short and of one with long groups of pictures. Every frame
carries its number in blocks, and every contender must return the same eight numbers. All take turns (A B C A B ...)
on one thread; medians are compared.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OPENCV_FFMPEG_CAPTURE_OPTIONS", "threads;1")

import av
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter

from aligner.decode import picture_stream, read_timeline, sample_frames
from aligner.views import Sampling

FRAMES, WIDTH, HEIGHT, BITS = 300, 340, 256, 9
BLOCK = 32


def picture(number: int, texture: np.ndarray) -> np.ndarray:
    """A textured scene that moves, with the number in blocks along the top."""
    scene = np.roll(texture, (number, 2 * number), (0, 1)).copy()
    for bit in range(BITS):
        scene[:BLOCK, bit * BLOCK : (bit + 1) * BLOCK] = 255 * (number >> bit & 1)
    return scene


def number_in(rgb: np.ndarray) -> int:
    middles = rgb[BLOCK // 2, BLOCK // 2 : BITS * BLOCK : BLOCK].mean(-1)
    return sum(int(value > 128) << bit for bit, value in enumerate(middles))


def write_clip(path: Path, gop: int) -> Path:
    small = np.random.default_rng(0).integers(0, 256, (HEIGHT // 8, -(-WIDTH // 8), 3), np.uint8)
    texture = cv2.resize(small, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.gop_size = gop
        for number in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(picture(number, texture), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def ours(path: Path, targets: list[int]) -> list[np.ndarray]:
    return [frame.rgb for frame in sample_frames(path, len(targets))]


def pyav_sequential(path: Path, targets: list[int]) -> list[np.ndarray]:
    wanted, found, reformatter = {*targets}, [], VideoReformatter()
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        for number, frame in enumerate(container.decode(video=0)):
            if number in wanted:
                found.append(reformatter.reformat(frame, format="rgb24").to_ndarray())
            if number == targets[-1]:
                return found
    return found


def pyav_seek(path: Path, targets: list[int]) -> list[np.ndarray]:
    found, reformatter = [], VideoReformatter()
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        step = round(1 / stream.average_rate / stream.time_base)
        for target in targets:
            container.seek(target * step, stream=stream)
            frame = next(frame for frame in container.decode(stream) if frame.pts >= target * step)
            found.append(reformatter.reformat(frame, format="rgb24").to_ndarray())
    return found


def opencv_sequential(path: Path, targets: list[int]) -> list[np.ndarray]:
    capture, found = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG), []
    for number in range(targets[-1] + 1):
        capture.grab()
        if number in targets:
            found.append(cv2.cvtColor(capture.retrieve()[1], cv2.COLOR_BGR2RGB))
    capture.release()
    return found


def opencv_seek(path: Path, targets: list[int]) -> list[np.ndarray]:
    capture, found = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG), []
    for target in targets:
        capture.set(cv2.CAP_PROP_POS_FRAMES, target)
        found.append(cv2.cvtColor(capture.read()[1], cv2.COLOR_BGR2RGB))
    capture.release()
    return found


CONTENDERS: dict[str, Callable[[Path, list[int]], list[np.ndarray]]] = {
    "ours": ours,
    "PyAV, decode all": pyav_sequential,
    "PyAV, seek per frame": pyav_seek,
    "OpenCV, decode all": opencv_sequential,
    "OpenCV, seek per frame": opencv_seek,
}


def measure(path: Path, count: int, rounds: int) -> dict[str, float]:
    """Median milliseconds of every contender; all must give the same frames."""
    with av.open(str(path)) as container:
        timeline = read_timeline(container)
        assert len(timeline.times) == FRAMES and picture_stream(container) is not None
    moments = Sampling(count).moments("", FRAMES)[0]
    targets = [timeline.place(time) for time in timeline.shown(moments)]
    times: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for turn in range(rounds + 1):
        for name, read in CONTENDERS.items():
            start = time.perf_counter()
            frames = read(path, targets)
            if turn:
                times[name].append(1000 * (time.perf_counter() - start))
            assert [number_in(frame) for frame in frames] == targets, name
    return {name: statistics.median(taken) for name, taken in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--frames", type=int, nargs="+", default=[8, 32])
    given = parser.parse_args()
    cv2.setNumThreads(1)
    print("| clip | frames |", " | ".join(f"{name}, ms" for name in CONTENDERS), "| ours / fastest other |")
    print("|---|---|" + "---|" * (len(CONTENDERS) + 1))
    with tempfile.TemporaryDirectory() as folder:
        for gop in (12, 250):
            path = write_clip(Path(folder) / f"{gop}.mp4", gop)
            for count in given.frames:
                medians = measure(path, count, given.rounds)
                ratio = medians["ours"] / min(value for name, value in medians.items() if name != "ours")
                shown = " | ".join(f"{value:.1f}" for value in medians.values())
                print(f"| keyframe every {gop} | {count} | {shown} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
