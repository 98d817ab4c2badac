"""The aligner as a whole against bare loops, and its memory: ``python -m benchmarks.aligner --videos DIR``.

Speed: one ``aligner run`` (ViT-B/16 with random weights, r = 8; plan, model, decoding, matching, writing and all)
against a loop of the same merged encoder, and one of open_clip's ``encode_image``, over the same frames, decoded and
prepared beforehand. All in turns in one process, compared by medians: the ratios hold on a busy machine, the seconds
do not. Processor time (of all threads and children) is compared too, since it hardly minds a busy machine.

Matching: the search among 10,000 entities against the encoder of the same frames, in turns.

Memory: resident memory of the command's processes, for 10 and for 1,000 videos, with a tiny encoder.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

FRAMES, MERGE, TOP_K = 8, 8, 16
TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


def write_corpus(folder: Path, model: dict, entities: int) -> Path:
    """A corpus of random unit vectors that claims to be made with the model."""
    folder.mkdir(parents=True)
    vectors = np.random.default_rng(0).standard_normal((entities, model["embed_dim"])).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    names = [f"entity {place}" for place in range(entities)]
    columns = {
        "entity_id": pa.array(range(entities), pa.int32()),
        "name": names,
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), model["embed_dim"]),
    }
    pq.write_table(pa.table(columns), folder / "entities.parquet")
    manifest = {
        "artifact": "corpus",
        "schema_version": 1,
        "package": "benchmark",
        "created": "",
        "fingerprint": "0",
    }
    manifest |= {"model": model, "entities": entities, "dim": model["embed_dim"]}
    manifest |= dict.fromkeys(("config", "inputs", "counts", "files"), {})
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


# Speed.


def copies(videos: Path, folder: Path, count: int) -> Path:
    """Links to the real clips, ``count`` of them in turns."""
    clips = sorted(path for path in videos.iterdir() if path.suffix in (".mp4", ".avi", ".mov"))
    folder.mkdir()
    for place in range(count):
        clip = clips[place % len(clips)]
        (folder / f"{place:03d}{clip.suffix}").symlink_to(clip.resolve())
    return folder


def speed(videos: Path, count: int, rounds: int, entities: int, precision: str) -> list[str]:
    """Table rows of the whole run against the two loops."""
    from PIL import Image

    from aligner import artifact, decode, run
    from aligner.config import AlignConfig
    from aligner.encoder import DTYPES, ClipRegionEncoder, load_clip

    clip, info = load_clip("ViT-B-16", "none")
    tower = ClipRegionEncoder(clip, MERGE, precision=precision)
    plain = load_clip("ViT-B-16", "none")[0].to(DTYPES[precision])
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        clips = copies(videos, root / "videos", count)
        corpus = write_corpus(root / "corpus", info, entities)
        pixels = [
            torch.stack(
                [tower.preprocess(Image.fromarray(f.rgb)) for f in decode.sample_frames(path, FRAMES)]
            )
            for path in sorted(clips.iterdir())
        ]

        def whole(turn: int) -> None:
            options = {
                "frames": FRAMES,
                "merge": MERGE,
                "top_k": TOP_K,
                "precision": precision,
                "device": "cpu",
            }
            out = root / f"out-{turn}"
            start = time.perf_counter()
            report = run.run(AlignConfig(clips, corpus, "ViT-B-16", "none", out=out, **options))
            assert report.ok == count, report.sentence()
            spent = {"run": round(time.perf_counter() - start, 2), **artifact.read_timings(out, 0)}
            print(json.dumps(spent), file=sys.stderr, flush=True)

        def merged(turn: int) -> None:
            for frames in pixels:
                tower(frames)

        def encode_image(turn: int) -> None:
            with torch.inference_mode():
                for frames in pixels:
                    plain.encode_image(frames.to(DTYPES[precision]))

        times = in_turns([whole, merged, encode_image], rounds)
    rows = []
    for other in list(times)[1:]:
        pairs = list(zip(times["whole"], times[other], strict=True))
        wall, busy = (statistics.median(b[k] / a[k] for a, b in pairs) for k in (0, 1))
        a, b = (count * FRAMES / statistics.median(t[0] for t in times[name]) for name in ("whole", other))
        rows.append(
            f"| {precision} | {count} | {entities} | {other} | {a:.2f} | {b:.2f} | {wall:.2f} | {busy:.2f} |"
        )
    return rows


def matching(counts: list[int], rounds: int, precision: str) -> list[str]:
    """Table rows of the search among so many entities against the encoder of the same eight frames."""
    from aligner.encoder import ClipRegionEncoder, load_clip
    from aligner.match import Matcher

    tower = ClipRegionEncoder(load_clip("ViT-B-16", "none")[0], MERGE, precision=precision)
    pixels = torch.randn(FRAMES, 3, 224, 224)
    found = torch.nn.functional.normalize(tower(pixels).embeddings, dim=-1).flatten(0, 1)
    rows = []
    for count in counts:
        vectors = np.random.default_rng(0).standard_normal((count, tower.dim)).astype(np.float32)
        search = Matcher(torch.nn.functional.normalize(torch.from_numpy(vectors), dim=1), TOP_K)

        def encode(turn: int) -> None:
            tower(pixels)

        def match(turn: int, search: Matcher = search) -> None:
            search(found)

        times = in_turns([encode, match], rounds)
        pairs = list(zip(times["match"], times["encode"], strict=True))
        wall, busy = (100 * statistics.median(a[k] / b[k] for a, b in pairs) for k in (0, 1))
        seconds = [statistics.median(t[0] for t in times[name]) for name in ("encode", "match")]
        rows.append(
            f"| {precision} | {count} | {seconds[0]:.3f} | {seconds[1]:.3f} | {wall:.1f} | {busy:.1f} |"
        )
    return rows


def in_turns(works: list, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds by the clock and of the processor of each, round by round."""
    times: dict[str, list[tuple[float, float]]] = {work.__name__: [] for work in works}
    for turn in range(rounds):
        for work in works:
            start, busy = time.perf_counter(), sum(os.times()[:4])
            work(turn)
            spent = time.perf_counter() - start, sum(os.times()[:4]) - busy
            times[work.__name__].append(spent)
            print(
                f"{turn}: {work.__name__} {spent[0]:.2f} s, busy {spent[1]:.2f} s",
                file=sys.stderr,
                flush=True,
            )
    return times


# Memory.


def memory(counts: list[int]) -> list[str]:
    """Table rows of the largest and the last resident memory of ``aligner run``."""
    from aligner.encoder import load_clip

    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        model = tiny_model(root / "tiny")
        corpus = write_corpus(root / "corpus", load_clip(model)[1], 1000)
        clip = tiny_clip(root / "clip.mp4")
        rows = []
        for count in counts:
            videos = root / f"videos-{count}"
            videos.mkdir()
            for place in range(count):
                (videos / f"{place:05d}.mp4").symlink_to(clip)
            given = [
                "--videos",
                videos,
                "--corpus",
                corpus,
                "--model",
                model,
                "--device",
                "cpu",
            ]
            given += ["--out", root / f"out-{count}", "--merge", 2, "--quiet"]
            own, children = resident([sys.executable, "-m", "aligner", "run", *map(str, given)])
            rows.append(
                f"| {count} | {own / 1e6:.0f} | {children / 1e6:.0f} | {(own + children) / 1e6:.0f} |"
            )
    return rows


def tiny_model(folder: Path) -> str:
    """A tiny random CLIP in a new folder; returns its name for ``--model``."""
    import open_clip
    from safetensors.torch import save_file

    folder.mkdir()
    save_file(open_clip.CLIP(**TINY).state_dict(), folder / "open_clip_model.safetensors")
    config = {"model_cfg": TINY, "preprocess_cfg": {"size": 32}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return f"local-dir:{folder}"


def tiny_clip(path: Path) -> Path:
    """A second of 64 x 64 noise."""
    import av

    random = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for _ in range(25):
            picture = random.integers(0, 256, (64, 64, 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def resident(command: list[str]) -> tuple[int, int]:
    """Largest resident bytes of a command and of its children together, seen every 20 ms (Linux)."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    most = [0, 0]

    def watch() -> None:
        while process.poll() is None:
            most[0] = max(most[0], rss(process.pid))
            most[1] = max(most[1], sum(rss(child) for child in children_of(process.pid)))
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    assert process.wait() == 0
    watcher.join()
    return most[0], most[1]


def rss(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
    except (OSError, IndexError):
        return 0


def children_of(pid: int) -> list[int]:
    """Children of all threads that run a program of their own (until then their pages are the parent's)."""
    try:
        lists = [file.read_text().split() for file in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:
        return []
    return [int(child) for found in lists for child in found if program(int(child)) != program(pid)]


def program(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--videos", type=Path, help="folder of real clips; without it only memory is measured"
    )
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--entities", type=int, default=400)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--matching", type=int, nargs="*", default=[10_000], help="numbers of entities")
    parser.add_argument("--memory", type=int, nargs="*", default=[10, 1000], help="numbers of videos")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.videos:
        print(
            "| precision | videos | entities | loop of | run, frames/s | loop, frames/s | ratio | processor |"
        )
        print("|---|---|---|---|---|---|---|---|", flush=True)
        rows = speed(given.videos, given.count, given.rounds, given.entities, given.precision)
        print("\n".join(rows), flush=True)
    if given.matching:
        print("| precision | entities | encoder, s | matching, s | share, % | of processor time, % |")
        print("|---|---|---|---|---|---|", flush=True)
        print("\n".join(matching(given.matching, given.rounds, given.precision)), flush=True)
    if given.memory:
        print("| videos | aligner, MB | decoders, MB | both, MB |\n|---|---|---|---|")
        print("\n".join(memory(given.memory)), flush=True)


if __name__ == "__main__":
    main()
