"""What a million videos cost before and between the encoding: ``python -m benchmarks.million --folder NEW``.

Real: a tree of files, its manifest, ``aligner plan``, the commit of every shard, ``aligner status``, and
``aligner run`` from its start until it begins the first shard that is not done. Each command is a process of its own,
of which time and largest resident memory are taken. Stubbed: what lies in the files (nothing: they are sparse) and
what the encoder says of them (the same few random rows for each, and a failure for every two hundredth). A folder in
memory (``/dev/shm/NEW``) needs 3 GB.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FILES_IN_FOLDER = 1000
FAIL_EVERY = 200
FRAMES, MERGE, TOP_K = 1, 6, 2


def write_tree(root: Path, count: int) -> Path:
    """Sparse files of 1 to 100 kB, a thousand in each class."""
    for place in range(count):
        if place % FILES_IN_FOLDER == 0:
            folder = root / f"class {place // FILES_IN_FOLDER:04d}"
            folder.mkdir(parents=True)
        file = os.open(f"{folder}/{place:07d}.mp4", os.O_CREAT | os.O_WRONLY)
        os.truncate(file, 1000 + place * 7919 % 99991)
        os.close(file)
    return root


def write_manifest(path: Path, count: int) -> Path:
    """The tree as a manifest, with labels, splits and durations."""
    places = range(count)
    columns = {
        "path": [f"class {place // FILES_IN_FOLDER:04d}/{place:07d}.mp4" for place in places],
        "label": [f"class {place // FILES_IN_FOLDER:04d}" for place in places],
        "split": ["val" if place % 10 == 0 else "train" for place in places],
        "seconds": 5 + np.arange(count) * 7919 % 997 / 100,
    }
    pq.write_table(pa.table(columns), path)
    return path


def write_model(folder: Path) -> None:
    """A tiny CLIP and a corpus for it."""
    from aligner.encoder import load_clip
    from benchmarks.aligner import tiny_model, write_corpus

    write_corpus(folder / "corpus", load_clip(tiny_model(folder / "model"))[1], 100)


def options(root: Path, out: Path, per_shard: int) -> list[str]:
    """Options of ``aligner plan`` and ``aligner run``."""
    given = {"--videos": root / "videos.parquet", "--videos-root": root / "videos", "--out": out}
    given |= {"--corpus": root / "corpus", "--model": f"local-dir:{root / 'model'}"}
    given |= {"--frames": FRAMES, "--merge": MERGE, "--top-k": TOP_K, "--videos-per-shard": per_shard}
    return [str(part) for pair in given.items() for part in pair]


def job_of(out: Path) -> Any:
    """The job of a planned folder, but for model and corpus."""
    from aligner import artifact, engine
    from aligner.config import AlignConfig
    from aligner.plan import Plan, items_of

    manifest = artifact.read_manifest(out)
    videos = Plan(Path(), items_of(artifact.read_videos(out)), manifest["num_shards"])
    config = AlignConfig(videos=out, corpus=out, model="", out=out)
    return engine.Job(config, videos, None, None, manifest)  # type: ignore[arg-type]


def commit_shards(job: Any, shards: range) -> None:
    """Commit shards as the engine does, with the same random rows for every video."""
    from aligner import artifact, engine

    rows, videos = some_rows(job.manifest), job.plan
    for shard in shards:
        feed = engine.Feed(len(videos.shard(shard)) + 1)
        for item in videos.shard(shard):
            bad = int(Path(item.video_id).stem) % FAIL_EVERY == 0
            failure = artifact.Failure(item.video_id, "decode", "broken", "a frame is damaged")
            feed.put((item, failure if bad else rows))
        feed.end(FRAMES)
        engine.commit(job, shard, feed, engine.Timings(seconds=1.0))


def some_rows(manifest: dict) -> Any:
    """Rows of a video that fit the manifest."""
    from aligner.artifact import VideoRows

    random = np.random.default_rng(0)
    tokens, patches, dim = manifest["regions"] + 1, manifest["patches"], manifest["dim"]
    sizes = np.full(tokens, patches // (tokens - 1), np.int16)
    sizes[0], sizes[1] = 0, patches - sizes[2:].sum()
    vectors = random.standard_normal((tokens, dim)).astype(np.float32)
    return VideoRows(
        view=np.zeros(tokens, np.int16),
        frame_index=np.zeros(tokens, np.int32),
        time_s=np.zeros(tokens),
        region_index=np.arange(tokens, dtype=np.int16),
        patches=sizes,
        centroid_xy=random.random((tokens, 2), np.float32),
        box_xyxy=random.random((tokens, 4), np.float32),
        patch_map=np.zeros((tokens, -(-patches // 8)), np.uint8),
        topk_entity=np.tile(np.arange(TOP_K, dtype=np.int32), (tokens, 1)),
        topk_score=np.zeros((tokens, TOP_K), np.float32),
        embedding=(vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16),
        norm=np.ones(tokens, np.float32),
    )


def commit_in_children(out: Path, shards: range, processes: int) -> None:
    """``commit_shards`` in processes of their own: none that starts the measured commands may be large."""
    parts = [
        range(shards.start + place * shards.step, shards.stop, shards.step * processes)
        for place in range(processes)
    ]
    told = [f"{part.start},{part.stop},{part.step}" for part in parts]
    command = [sys.executable, "-m", "benchmarks.million", "--folder", str(out), "--commit"]
    started = [subprocess.Popen([*command, part]) for part in told]
    assert not any([process.wait() for process in started])


def measure(name: str, arguments: list[str], enough: Callable[[], bool] = lambda: False) -> None:
    """Print seconds and memory of ``aligner ARGUMENTS``, which is killed when it has done enough."""
    start, silent = time.perf_counter(), subprocess.DEVNULL
    process = subprocess.Popen([sys.executable, "-m", "aligner", *arguments], stdout=silent, stderr=silent)
    while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
        if enough():
            process.kill()
            ended = os.wait4(process.pid, 0)
            break
        time.sleep(0.01)
    seconds, used = time.perf_counter() - start, ended[2]
    assert os.waitstatus_to_exitcode(ended[1]) in (0, 2, -signal.SIGKILL), f"{name} failed"
    row = f"{seconds:.1f} | {used.ru_utime + used.ru_stime:.1f} | {used.ru_maxrss / 1000:.0f}"
    print(f"| {name} | {row} |", flush=True)


def simulate(root: Path, per_shard: int, processes: int) -> None:
    """Print the rows of one shard size."""
    out = root / f"out-{per_shard}"
    given = options(root, out, per_shard)
    measure("`plan` of the manifest", ["plan", *given])
    shards = json.loads((out / "manifest.json").read_text())["num_shards"]
    print(f"| {shards} shards | | | |", flush=True)
    # The last shard stays undone, for a run that has to find it.
    parts = {
        "none": range(0),
        "every second": range(0, shards - 1, 2),
        "all but one": range(1, shards - 1, 2),
    }
    for (part, todo), first in zip(parts.items(), (0, 1, shards - 1), strict=True):
        commit_in_children(out, todo, processes)
        measure(f"`status`, {part} done", ["status", str(out)])
        attempt = out / f"timings-{first:05d}.json"
        measure(f"`run` to the first shard, {part} done", ["run", "--quiet", *given], attempt.exists)
        attempt.unlink()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="a new folder, in memory (tmpfs)")
    parser.add_argument("--videos", type=int, default=1_000_000)
    parser.add_argument("--videos-per-shard", type=int, nargs="*", default=[64, 16])
    parser.add_argument("--processes", type=int, default=2, help="that write the shards")
    parser.add_argument("--write-model", action="store_true", help="only that (for its own use)")
    parser.add_argument("--commit", help="only commit these shards (for its own use)")
    given = parser.parse_args()
    root = given.folder
    if given.commit:
        return commit_shards(job_of(root), range(*map(int, given.commit.split(","))))
    if given.write_model:
        return write_model(root)
    root.mkdir(parents=True)
    try:
        write_tree(root / "videos", given.videos)
        write_manifest(root / "videos.parquet", given.videos)
        command = [sys.executable, "-m", "benchmarks.million", "--folder", str(root), "--write-model"]
        subprocess.run(command, check=True)
        print(
            "| `aligner` | seconds | of the processor | largest resident memory, MB |\n|---|---|---|---|",
            flush=True,
        )
        measure("`plan --dry-run` of the folder", ["plan", "--dry-run", "--videos", str(root / "videos")])
        for per_shard in given.videos_per_shard:
            simulate(root, per_shard, given.processes)
            shutil.rmtree(root / f"out-{per_shard}")
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
