"""Reading cached alignments for training: ``python -m benchmarks.reading --out out/reading``.

One thread, ViT-B/16 sizes (8 frames x 101 tokens x 512, top-16), random vectors in shards of the aligner's own writer.
Shuffled batches of 32 from page cache, one epoch a round, in turns with Hugging Face datasets and webdataset on the
same vectors (theirs hold these alone, ours also ids, scores and geometry); a peer that is not installed is skipped. GB
are of float16 vectors, seconds of reading those of the processor, whatever thread: others may be at work on the
machine. Ratios hold, seconds do not.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from adapter.alignments import Alignments, open_alignments
from adapter.config import make_settings
from adapter.dataset import Sample, VideoDataset
from adapter.losses import classification_loss
from adapter.model import Shape, build_model
from aligner import artifact as shards

FRAMES, TOKENS, DIM, TOP_K, ENTITIES = 8, 101, 512, 16, 2000  # ViT-B/16 with r = 8
BATCH = 32
MODELS = {"regions": {}, "tracks over cls": {"queries": "tracks", "context": "cls"}}


def write_folder(out: Path, videos: int, num_shards: int) -> Path:
    """Alignments of random unit vectors, by the aligner's own writer; kept if they are there."""
    if (out / shards.MANIFEST).is_file():
        return out
    out.mkdir(parents=True, exist_ok=True)
    ids = [f"class{i % 10}/{i:06d}.mp4" for i in range(videos)]
    shard_of = sorted(i * num_shards // videos for i in range(videos))
    ids.sort()
    plan = {
        "video_id": ids,
        "label": [name.split("/")[0] for name in ids],
        "split": ["train"] * videos,
        "bytes": [1] * videos,
        "seconds": [1.0] * videos,
        "offset": [None] * videos,
        "shard": shard_of,
    }
    random = np.random.default_rng(0)
    shards.write_table(out / shards.VIDEOS, pa.table(plan, schema=shards.VIDEOS_SCHEMA))
    entities = _unit(random, ENTITIES)
    shards.write_table(
        out / shards.ENTITIES,
        pa.table(
            {
                "entity_id": pa.array(range(ENTITIES), pa.int32()),
                "name": [f"entity {i}" for i in range(ENTITIES)],
                "embedding": pa.FixedSizeListArray.from_arrays(pa.array(entities.ravel()), DIM),
            }
        ),
    )
    model = {"name": "ViT-B-16", "pretrained": None, "weights_sha256": "0" * 64, "random_weights": True}
    content = {
        "config": {"top_k": TOP_K, "frames": FRAMES, "image_size": [224, 224], "store": "fp16"},
        "inputs": {},
        "model": {**model, "embed_dim": DIM},
        "counts": {},
        "patches": 196,
        "regions": TOKENS - 1,
        "dim": DIM,
        "top_k": TOP_K,
        "frames": FRAMES,
        "num_shards": num_shards,
        "videos": videos,
        "corpus": {"entities": ENTITIES, "fingerprint": "0" * 64},
        "views": [{"clip": 0}],
    }
    manifest = shards.make_manifest(out, rows=videos, entities=ENTITIES, content=content)
    for shard in range(num_shards):
        _write_shard(
            out, shard, [v for v, s in zip(ids, shard_of, strict=True) if s == shard], manifest, random
        )
    shards.write_json(out / shards.MANIFEST, manifest)
    return out


def _write_shard(out, shard, ids, manifest, random):
    file = out / shards.shard_name(shard)
    with shards.ShardWriter(file, shards.schema_of(manifest)) as writer:
        for name in ids:
            writer.add(name, _rows(random))
    shards.write_table(out / shards.failures_name(shard), shards.failures_table([]))
    shards.write_json(
        out / shards.marker_name(shard),
        {
            "fingerprint": manifest["shard_fingerprints"][shard],
            "sha256": shards.file_sha256(file),
            "videos": writer.index,
        },
    )


def _unit(random: np.random.Generator, *shape: int) -> np.ndarray:
    values = random.standard_normal((*shape, DIM), np.float32)
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def _rows(random: np.random.Generator) -> shards.VideoRows:
    frame, region = (axis.ravel() for axis in np.indices((FRAMES, TOKENS)))
    n = len(frame)
    score = -np.sort(-random.random((n, TOP_K), np.float32))
    return shards.VideoRows(
        view=np.zeros(n, np.int16),
        frame_index=frame.astype(np.int32),
        time_s=frame * 0.5,
        region_index=region.astype(np.int16),
        patches=np.where(region == 0, 0, 2).astype(np.int16),
        centroid_xy=random.random((n, 2), np.float32),
        box_xyxy=random.random((n, 4), np.float32),
        patch_map=random.integers(0, 255, (n, 25), np.uint8),
        topk_entity=random.integers(0, ENTITIES, (n, TOP_K), np.int32),
        topk_score=score,
        embedding=_unit(random, n).astype(np.float16),
        norm=np.ones(n, np.float32),
    )


def dataset_of(alignments: Alignments, cache_gb: float = 0.0) -> VideoDataset:
    return VideoDataset(alignments, [Sample(video.video_id, 0) for video in alignments.plan], cache_gb)


def ours(alignments: Alignments) -> int:
    """An epoch of shuffled batches that nothing keeps in memory from before; returns videos."""
    alignments._groups.clear()
    return epoch_of(dataset_of(alignments))


def epoch_of(dataset: VideoDataset) -> int:
    return sum(len(batch.label) for batch in dataset.batches(dataset.epoch_order(0, 1), BATCH))


def vectors(alignments: Alignments) -> Iterator[np.ndarray]:
    return (video.embeddings for video in alignments.read(sorted(alignments.index)))


def rows_of(folder: str, as_bytes: bool) -> Iterator[dict[str, object]]:
    for array in vectors(open_alignments(Path(folder))):
        yield {"x": array.tobytes() if as_bytes else array}


def hugging_face(alignments: Alignments, out: Path) -> dict[str, Callable[[], int]]:
    """Arrow files mapped into memory: an array a video in torch's format, and bytes to be read by hand."""
    import datasets

    shape = FRAMES, TOKENS, DIM
    forms = {
        "array": (datasets.Array3D(shape, "float16"), lambda rows: rows["x"]),
        "bytes": (
            datasets.Value("binary"),
            lambda rows: torch.from_numpy(
                np.stack([np.frombuffer(x, "<f2").reshape(shape) for x in rows["x"]])
            ),
        ),
    }

    def reader(name: str) -> Callable[[], int]:
        feature, read = forms[name]
        if not (out / name).is_dir():
            made = datasets.Dataset.from_generator(
                rows_of,
                features=datasets.Features({"x": feature}),
                gen_kwargs={"folder": str(alignments.path), "as_bytes": name == "bytes"},
                cache_dir=str(out / "cache"),
            )
            made.save_to_disk(str(out / name))
        opened = datasets.load_from_disk(str(out / name))
        opened = opened.with_format("torch") if name == "array" else opened

        def epoch() -> int:
            order = np.random.default_rng(0).permutation(len(opened)).tolist()
            return sum(len(read(opened[order[i : i + BATCH]])) for i in range(0, len(order), BATCH))

        return epoch

    return {f"HF datasets, {name}": reader(name) for name in forms}


def web_dataset(alignments: Alignments, out: Path) -> dict[str, Callable[[], int]]:
    """Tars of .npy files, shuffled in a buffer as large as our window."""
    import webdataset

    path = out / "vectors.tar"
    if not path.is_file():
        with tarfile.open(path, "w") as tar:
            for i, array in enumerate(vectors(alignments)):
                file = BytesIO()
                np.save(file, array)
                entry = tarfile.TarInfo(f"{i:06d}.x.npy")
                entry.size = file.tell()
                file.seek(0)
                tar.addfile(entry, file)

    def epoch() -> int:
        read = webdataset.WebDataset(str(path), shardshuffle=False).shuffle(136).decode().to_tuple("x.npy")
        return sum(len(torch.from_numpy(batch[0])) for batch in read.batched(BATCH))

    return {"webdataset, npy": epoch}


def peers(alignments: Alignments, out: Path) -> dict[str, Callable[[], int]]:
    found: dict[str, Callable[[], int]] = {}
    for name, make in (("datasets", hugging_face), ("webdataset", web_dataset)):
        try:
            found |= make(alignments, out / name)
        except ImportError as error:
            print(f"{name} is skipped: {error}")
    return found


def reading(folder: Path, out: Path, rounds: int) -> None:
    alignments = open_alignments(folder)
    for name in ("datasets", "webdataset"):
        (out / name).mkdir(parents=True, exist_ok=True)
    kept = dataset_of(alignments, 64.0)
    works = {
        "ours": lambda: ours(alignments),
        "ours, in memory after the first epoch": lambda: epoch_of(kept),
        **peers(alignments, out),
    }
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds + 1):
        for name, work in works.items():
            start = time.process_time()
            videos = work()
            if turn:  # the first one warms caches and verifies checksums
                times[name].append(time.process_time() - start)
    size = videos * FRAMES * TOKENS * DIM * 2 / 1e9
    print("| reader | GB/s | ours is faster by |\n|---|---|---|")
    for name, taken in times.items():
        ratio = statistics.median(b / a for a, b in zip(times["ours"], taken, strict=True))
        print(f"| {name} | {size / statistics.median(taken):.2f} | {ratio:.1f} |", flush=True)


def step(folder: Path, name: str, steps: int) -> float:
    """How much of a training step waits for the loader; returns seconds a video."""
    alignments = open_alignments(folder)
    dataset = dataset_of(alignments)
    model = build_model(make_settings(MODELS[name]).model, Shape(DIM, FRAMES))
    optimizer = torch.optim.AdamW(model.parameters())
    entities = torch.from_numpy(alignments.entities.embeddings)
    waits, wholes = [], []
    batches = dataset.batches(dataset.epoch_order(0, 1), BATCH)
    for _ in range(steps + 1):
        start = time.perf_counter()
        batch = next(batches)
        waits.append(time.perf_counter() - start)
        batch = batch.to(torch.device("cpu"))
        loss = classification_loss(model(batch, entities, entities[:10]).logits, batch.label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        wholes.append(time.perf_counter() - start)
    wait, whole = statistics.median(waits[1:]), statistics.median(wholes[1:])
    print(
        f"{name}: loader wait {100 * wait / whole:.2f} % of a step of {whole:.2f} s, {BATCH} videos",
        flush=True,
    )
    return whole / BATCH


def backbone(clips: int) -> float:
    """Seconds a clip that ViT-B/16 (r = 8, random weights, float32) takes; measured on a few clips."""
    from aligner.encoder import ClipRegionEncoder, load_clip

    encoder = ClipRegionEncoder(load_clip("ViT-B-16", "none")[0], 8)
    pixels, taken = torch.randn(FRAMES, 3, 224, 224), []
    for _ in range(clips + 1):
        start = time.perf_counter()
        encoder(pixels)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])


def memory(out: Path, num_shards: int) -> float:
    """Largest memory, in MB, of a process that reads an epoch of so many equal shards."""
    folder = write_folder(out / f"shards-{num_shards}", 4 * num_shards, num_shards)
    command = [sys.executable, "-m", "benchmarks.reading", "--read", str(folder)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def main() -> None:
    """Write what is not there, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/reading"))
    parser.add_argument("--videos", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5, help="epochs of reading; 0 leaves it out")
    parser.add_argument(
        "--steps", type=int, default=4, help="training steps; 0 leaves training and backbone out"
    )
    parser.add_argument(
        "--shards", type=int, nargs="*", default=[10, 200], help="shards of 4 videos, for memory"
    )
    parser.add_argument("--read", type=Path, help="read one folder, print the largest memory in MB")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.read:
        ours(open_alignments(given.read))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    folder = write_folder(given.out / "alignments", given.videos, 3)
    if given.rounds:
        reading(folder, given.out, given.rounds)
    if given.steps:
        clip = backbone(2)
        for name in MODELS:
            cached = step(folder, name, given.steps)
            print(
                f"{name}: 1,000 clips, scaled: cached {1000 * cached:.0f} s, with the backbone before it "
                f"{1000 * (clip + cached):.0f} s: {(clip + cached) / cached:.1f} times",
                flush=True,
            )
    for count in given.shards:
        print(f"{count} shards of 4 videos: {memory(given.out, count):.0f} MB at most")


if __name__ == "__main__":
    main()
