"""Reading cached alignments for training: ``python -m benchmarks.reading --out out/reading``.

One thread, ViT-B/16 sizes (8 frames x 101 tokens x 512, top-16), random vectors in shards of the aligner's own writer,
everything in the page cache. Work that is compared takes turns, and ratios are those within a turn: their median and
range. Costs are processor seconds, whatever thread, for others may be at work on the machine. About six minutes and
4 GB of disk; a peer that is not installed is skipped.

- Reading: shuffled batches of 32 videos; GB are of float16 vectors, though ours also hold ids, scores and geometry.
  Every turn opens each reader anew and reads two epochs. Peers hold the same vectors alone.
- Training: an epoch over 1,000 cached clips, against the encoder alone (random weights, float32, without decoding and
  matching, so the ratio is rather too low) on a clip a turn, scaled to 1,000.
- Memory: of a fresh process that reads an epoch of few and of many shards of the same size.
"""

import argparse
import statistics
import subprocess
import sys
import tarfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from adapter.alignments import Alignments, open_alignments
from adapter.config import make_settings
from adapter.dataset import Sample, VideoDataset
from adapter.losses import classification_loss
from adapter.model import Shape, build_model
from aligner import artifact as shards

FRAMES, TOKENS, DIM, TOP_K, ENTITIES = 8, 101, 512, 16, 2000  # ViT-B/16 with r = 8
BATCH = 32
SHAPE = FRAMES, TOKENS, DIM
GB = FRAMES * TOKENS * DIM * 2 / 1e9  # of a video
# Options of a form, and batches that it is trained on: with None all, so the epoch is real; else the rest is scaled.
MODELS: dict[str, tuple[dict[str, object], int | None]] = {
    "default (regions)": ({}, 4),
    "paper": ({"variant": "paper"}, 8),
    "tracks over cls": ({"queries": "tracks", "context": "cls"}, None),
}
Epoch = Callable[[], int]


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


def dataset_of(alignments: Alignments, videos: int | None = None, cache_gb: float = 0.0) -> VideoDataset:
    """The first videos of the plan: whole shards, and a part of one."""
    plan = alignments.plan[:videos]
    return VideoDataset(
        alignments, [Sample(video.video_id, i % 10) for i, video in enumerate(plan)], cache_gb
    )


def epoch_of(dataset: VideoDataset) -> int:
    return sum(len(batch.label) for batch in dataset.batches(dataset.epoch_order(0, 1), BATCH))


def ours(folder: Path, videos: int, cache_gb: float) -> Epoch:
    dataset = dataset_of(open_alignments(folder), videos, cache_gb)

    def epoch() -> int:
        dataset.alignments._groups.clear()  # of few videos the window would keep many from one epoch to the next
        return epoch_of(dataset)

    return epoch


def stacked(arrays: Sequence[np.ndarray]) -> Epoch:
    """The ceiling of any reader that fills batches: vectors in memory, copied once."""
    order = np.random.default_rng(0).permutation(len(arrays)).tolist()
    parts = [order[i : i + BATCH] for i in range(0, len(order), BATCH)]
    return lambda: sum(len(torch.from_numpy(np.stack([arrays[i] for i in part]))) for part in parts)


def row_groups(folder: Path, videos: int) -> Epoch:
    """The embeddings alone of the same row groups as pyarrow decodes them: in order, no batches, nothing verified."""
    opened = open_alignments(folder)
    groups = sorted({opened.group_of(video.video_id) for video in opened.plan[:videos]})

    def epoch() -> int:
        rows = 0
        for shard, group in groups:
            with pq.ParquetFile(folder / shards.shard_name(shard), memory_map=True) as file:
                rows += len(file.read_row_group(group, columns=["embedding"], use_threads=False))
        return rows // (FRAMES * TOKENS)

    return epoch


def vectors(folder: str, videos: int) -> Iterator[np.ndarray]:
    alignments = open_alignments(Path(folder))
    read = alignments.read(video.video_id for video in alignments.plan[:videos])
    return (video.embeddings for video in read)


def rows_of(folder: str, videos: int) -> Iterator[dict[str, object]]:
    return ({"x": array} for array in vectors(folder, videos))


def from_arrow(table: pa.Table) -> np.ndarray:
    """The numbers of a column of nested lists, without a copy."""
    values = table["x"].combine_chunks()
    values = values.storage if isinstance(values, pa.ExtensionArray) else values
    while not pa.types.is_floating(values.type):
        values = values.flatten()
    return values.to_numpy(zero_copy_only=False).reshape(-1, *SHAPE)


def hugging_face(folder: Path, videos: int, out: Path) -> dict[str, Callable[[], Epoch]]:
    """Arrow files mapped into memory, read by shuffled index: as numpy arrays, and as Arrow's own buffers by hand."""
    import datasets

    datasets.disable_progress_bars()
    if not (out / "array").is_dir():
        made = datasets.Dataset.from_generator(
            rows_of,
            features=datasets.Features({"x": datasets.Array3D(SHAPE, "float16")}),
            gen_kwargs={"folder": str(folder), "videos": videos},
            cache_dir=str(out / "cache"),
        )
        made.save_to_disk(str(out / "array"))

    def reader(form: str, read: Callable[..., np.ndarray]) -> Epoch:
        opened = datasets.load_from_disk(str(out / "array")).with_format(form)

        def epoch() -> int:
            order = np.random.default_rng(0).permutation(len(opened)).tolist()
            batches = (opened[order[i : i + BATCH]] for i in range(0, len(order), BATCH))
            return sum(len(torch.from_numpy(read(batch))) for batch in batches)

        return epoch

    # torch warns that it may not write to Arrow's buffers
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
    return {
        "HF datasets, numpy format": lambda: reader("numpy", lambda batch: batch["x"]),
        "HF datasets, Arrow buffers": lambda: reader("arrow", from_arrow),
    }


def web_dataset(folder: Path, videos: int, out: Path) -> dict[str, Callable[[], Epoch]]:
    """A tar of .npy files, shuffled in a buffer as large as our window."""
    import webdataset

    path = out / "vectors.tar"
    if not path.is_file():
        with tarfile.open(path, "w") as tar:
            for i, array in enumerate(vectors(str(folder), videos)):
                file = BytesIO()
                np.save(file, array)
                entry = tarfile.TarInfo(f"{i:06d}.x.npy")
                entry.size = file.tell()
                file.seek(0)
                tar.addfile(entry, file)

    def from_bytes(content: bytes) -> np.ndarray:
        return np.frombuffer(content[-2 * FRAMES * TOKENS * DIM :], "<f2").reshape(SHAPE)

    def reader(by_hand: bool) -> Epoch:
        def epoch() -> int:
            read = webdataset.WebDataset(str(path), shardshuffle=False).shuffle(136)
            read = read.map_dict(**{"x.npy": from_bytes}) if by_hand else read.decode()
            return sum(len(torch.from_numpy(batch[0])) for batch in read.to_tuple("x.npy").batched(BATCH))

        return epoch

    return {
        "webdataset, npy": lambda: reader(False),
        "webdataset, npy read by hand": lambda: reader(True),
    }


def peers(folder: Path, videos: int, out: Path) -> dict[str, Callable[[], Epoch]]:
    found: dict[str, Callable[[], Epoch]] = {}
    for name, make in (("datasets", hugging_face), ("webdataset", web_dataset)):
        (out / name).mkdir(parents=True, exist_ok=True)
        try:
            found |= make(folder, videos, out / name)
        except ImportError as error:
            print(f"{name} is skipped: {error}")
    return found


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def told(values: Sequence[float], digits: int = 1) -> str:
    """Median and range."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def reading(folder: Path, videos: int, out: Path, rounds: int) -> None:
    held = [array.copy() for array in vectors(str(folder), videos)]
    part = videos * GB / 2
    own = "ours, from page cache"
    readers: dict[str, Callable[[], Epoch]] = {
        own: lambda: ours(folder, videos, part),
        "ours, nothing kept": lambda: ours(folder, videos, 0.0),
        "ours, all kept in memory": lambda: ours(folder, videos, 64.0),
        "vectors in memory, copied into batches": lambda: stacked(held),
        "pyarrow, embeddings decoded in order": lambda: row_groups(folder, videos),
        **peers(folder, videos, out),
    }
    first: dict[str, list[float]] = {name: [] for name in readers}
    later: dict[str, list[float]] = {name: [] for name in readers}
    for turn in range(rounds + 1):
        for name, make in readers.items():
            epoch = make()
            taken = seconds(epoch), seconds(epoch)
            if turn:  # the first turn brings every file into the page cache
                first[name].append(taken[0])
                later[name].append(taken[1])
    print(f"{videos} videos, {rounds} turns; ours from page cache may keep {part:.2f} GB of {2 * part:.2f}\n")
    print(
        "| reader | first epoch, GB/s | later, GB/s | ours from page cache is faster by |\n|---|---|---|---|"
    )
    for name in readers:
        speeds = (videos * GB / statistics.median(times[name]) for times in (first, later))
        ratio = told([theirs / our for our, theirs in zip(later[own], later[name], strict=True)])
        print(f"| {name} | {' | '.join(f'{speed:.2f}' for speed in speeds)} | {ratio} |", flush=True)


@dataclass
class Form:
    """A form in training: its batches, and what its steps took."""

    name: str
    folder: Path
    videos: int
    costs: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    wholes: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        options, self.batches_wanted = MODELS[self.name]
        alignments = open_alignments(self.folder)
        dataset = dataset_of(alignments, self.videos)
        self.model = build_model(make_settings(options).model, Shape(DIM, FRAMES))
        self.optimizer = torch.optim.AdamW(self.model.parameters())
        self.entities = torch.from_numpy(alignments.entities.embeddings)
        self.steps = -(-self.videos // BATCH)
        self.batches = dataset.batches(dataset.epoch_order(0, 1), BATCH)

    def train(self, steps: int) -> float:
        """Processor seconds a clip, reading included."""
        begin, clips = time.process_time(), 0
        for _ in range(steps):
            start = time.perf_counter()
            if (batch := next(self.batches, None)) is None:
                break
            self.waits.append(time.perf_counter() - start)
            batch = batch.to(torch.device("cpu"))
            logits = self.model(batch, self.entities, self.entities[:10]).logits
            self.optimizer.zero_grad()
            classification_loss(logits, batch.label).backward()
            self.optimizer.step()
            self.wholes.append(time.perf_counter() - start)
            clips += len(batch.label)
        self.costs.append(time.process_time() - begin)
        return self.costs[-1] / max(clips, 1)


def training(folder: Path, videos: int, rounds: int) -> None:
    from aligner.encoder import ClipRegionEncoder, load_clip

    encoder = ClipRegionEncoder(load_clip("ViT-B-16", "none")[0], 8)
    pixels = torch.randn(FRAMES, 3, 224, 224)
    encoder(pixels)
    forms = [Form(name, folder, videos) for name in MODELS]
    clip: list[float] = []
    ratios: dict[str, list[float]] = {form.name: [] for form in forms}
    for turn in range(rounds):
        clip.append(seconds(lambda: encoder(pixels)))
        for form in forms:
            wanted = form.batches_wanted or form.steps
            cost = form.train((turn + 1) * wanted // rounds - turn * wanted // rounds)
            ratios[form.name].append((clip[-1] + cost) / cost)
    scale = videos / 1000
    print(
        f"\nencoder: {told(clip, 2)} s a clip, {1000 * scale * statistics.median(clip):.0f} s of {videos}, scaled\n"
    )
    print("| form | epoch, s | of it measured | with the encoder before it | loader wait, % of a step |")
    print("|---|---|---|---|---|")
    for form in forms:
        part = len(form.wholes) / form.steps
        wait = 100 * sum(form.waits[1:]) / sum(form.wholes[1:])
        print(
            f"| {form.name} | {sum(form.costs) / part:.0f} | {100 * part:.0f} % | {told(ratios[form.name])} times "
            f"| {wait:.2f} |",
            flush=True,
        )


def mb_of(file: str, name: str) -> float:
    """Sum of the lines of a file of /proc/self that begin so, in MB (Linux)."""
    lines = Path(f"/proc/self/{file}").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def read_alone(folder: Path, cache_gb: float) -> None:
    """What an epoch adds to this process, MB: at most resident (files that are mapped count), and private after it."""
    alignments = open_alignments(folder)
    dataset = dataset_of(alignments, None, cache_gb)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is that of the imports
    before = mb_of("status", "VmHWM"), mb_of("smaps_rollup", "Private_")
    epoch_of(dataset)
    print(mb_of("status", "VmHWM") - before[0], mb_of("smaps_rollup", "Private_") - before[1])


def memory(out: Path, counts: Sequence[int]) -> None:
    print("\n| shards of 4 videos | MB of vectors | cache_gb | growth of the peak, MB | private growth, MB |")
    print("|---|---|---|---|---|")
    for count in counts:
        folder = write_folder(out / f"shards-{count}", 4 * count, count)
        for cache_gb in (0.0, 0.05):
            command = [sys.executable, "-m", "benchmarks.reading", "--read", str(folder), str(cache_gb)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            figures = " | ".join(f"{float(figure):.0f}" for figure in done.stdout.split()[-2:])
            print(f"| {count} | {4000 * count * GB:.0f} | {cache_gb} | {figures} |", flush=True)


def main() -> None:
    """Write what is not there, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("out/reading"))
    parser.add_argument("--videos", type=int, default=1000, help="cached clips that are trained on")
    parser.add_argument("--read-videos", type=int, default=300, help="those of them that readers read")
    parser.add_argument("--rounds", type=int, default=3, help="turns of reading; 0 leaves it out")
    parser.add_argument("--turns", type=int, default=4, help="turns of training; 0 leaves it out")
    parser.add_argument(
        "--shards", type=int, nargs="*", default=[20, 200], help="numbers of shards, for memory"
    )
    parser.add_argument("--read", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.read:
        read_alone(Path(given.read[0]), float(given.read[1]))
        return
    folder = write_folder(given.out / "alignments", given.videos, -(-given.videos // 64))
    if given.rounds:
        reading(folder, min(given.read_videos, given.videos), given.out, given.rounds)
    if given.turns:
        training(folder, given.videos, given.turns)
    if given.shards:
        memory(given.out, given.shards)


if __name__ == "__main__":
    main()
