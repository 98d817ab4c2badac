"""Draw the demo's data set: video files, a manifest with labels and splits, label lists and captions."""

import csv
import json
import multiprocessing
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.toyworld.captions import caption_sentences
from pipelines.toyworld.render import render, sample_clip
from pipelines.toyworld.vocabulary import ACTION_BY_LABEL, ACTIONS, Action

PIXELS = 160
FRAMES = 12
RATE = 6  # frames per second
RECORD = "world.json"  # what the videos beside it were drawn with
UNSEEN_SPRITES = 1000  # variants that pretraining never drew
SEEN_SPLITS = ("train", "val", "test")
HELD_OUT_SPLITS = ("zeroshot",)


@dataclass(frozen=True)
class Task:
    """One video to draw: where, which action, and the seed of everything random."""

    path: Path
    label: str
    seed: tuple[int, ...]


def slug(label: str) -> str:
    """``picking up a cup`` -> ``picking_up_a_cup``, safe as a folder name."""
    return label.replace(" ", "_")


def planned(folder: Path, seed: int, per_class: dict[str, int]) -> Iterator[tuple[str, Task]]:
    """All videos as (split, task). Held-out actions appear in the zero-shot splits only."""
    for split_number, split in enumerate((*SEEN_SPLITS, *HELD_OUT_SPLITS)):
        for number, action in enumerate(ACTIONS):
            if action.held_out != (split in HELD_OUT_SPLITS):
                continue
            for clip in range(per_class.get(split, 0)):
                path = folder / split / slug(action.label) / f"{clip:03d}.mp4"
                yield split, Task(path, action.label, (seed, split_number, number, clip))


def frames_of(
    action: Action, seed: tuple[int, ...], frames: int = FRAMES, pixels: int = PIXELS
) -> list[np.ndarray]:
    """The frames of one clip, each (pixels, pixels, 3) uint8."""
    clip = sample_clip(action, np.random.default_rng(seed))
    times = (np.arange(frames) + 0.5) / frames
    return [render(clip, float(time), pixels, UNSEEN_SPRITES).rgb for time in times]


def write_video(path: Path, frames: list[np.ndarray], rate: int = RATE) -> None:
    """Encode frames as H.264 in MP4; published atomically, so that a killed run leaves no half video."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.mp4")
    with av.open(str(partial), "w") as container:
        stream = container.add_stream(
            "libx264", rate=rate, options={"crf": "18", "preset": "veryfast", "threads": "1"}
        )
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24"))
            )
        container.mux(stream.encode())
    os.replace(partial, path)


def _facts(seed: int) -> dict[str, int]:
    """What the pictures depend on besides the plan."""
    return {"seed": seed, "pixels": PIXELS, "frames": FRAMES, "rate": RATE}


def clear_other_world(folder: Path, seed: int, force: bool = False) -> None:
    """Remove videos drawn with another seed or format, so that none of them passes for one of this world."""
    record = folder / RECORD
    same = record.is_file() and json.loads(record.read_text(encoding="utf-8")) == _facts(seed)
    if same and not force:
        return
    for split in (*SEEN_SPLITS, *HELD_OUT_SPLITS):
        shutil.rmtree(folder / split, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(_facts(seed)) + "\n", encoding="utf-8")


def _draw(task: Task) -> None:
    if not task.path.is_file():
        write_video(task.path, frames_of(ACTION_BY_LABEL[task.label], task.seed))


def write_videos(
    folder: Path,
    seed: int,
    per_class: dict[str, int],
    processes: int = 2,
    progress: Callable[[int, int], None] = lambda done, total: None,
    force: bool = False,
) -> int:
    """Draw every planned video that is not there yet, and the lists beside them; returns how many videos there are.

    ``folder`` receives ``manifest.csv`` (path, label, split), ``labels.txt`` (classes for training), ``unseen.txt``
    (classes held out for zero-shot), ``all.txt`` and ``captions.txt``.
    """
    clear_other_world(folder, seed, force)
    plan = list(planned(folder, seed, per_class))
    tasks = [task for _, task in plan]
    method = "fork" if sys.platform == "linux" and "torch" not in sys.modules else "spawn"
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context(method)) as pool:
        for done, _ in enumerate(pool.map(_draw, tasks, chunksize=8), start=1):
            progress(done, len(tasks))
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        writer.writerows(
            (task.path.relative_to(folder).as_posix(), task.label, split) for split, task in plan
        )
    lists = {
        "labels.txt": [action.label for action in ACTIONS if not action.held_out],
        "unseen.txt": [action.label for action in ACTIONS if action.held_out],
        "all.txt": [action.label for action in ACTIONS],
        "captions.txt": caption_sentences(),
    }
    for name, lines in lists.items():
        (folder / name).write_text("\n".join(lines) + "\n")
    return len(tasks)
