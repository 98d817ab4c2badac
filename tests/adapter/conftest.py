"""Fabricated artifacts, written straight from the contract: an Alignments folder and a Labels folder."""

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

DIM, FRAMES, REGIONS, TOPK, ENTITIES, PATCHES = 32, 6, 4, 3, 24, 16
MODEL = {
    "name": "toy",
    "pretrained": "none",
    "weights_sha256": "a" * 64,
    "embed_dim": DIM,
    "random_weights": False,
}
CLASSES = ["ApplyEyeMakeup", "Archery", "BabyCrawling", "bench_press", "juggling balls", "YoYo"]


def unit(values):
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)


def random_unit(seed, *shape):
    return unit(np.random.default_rng(seed).normal(size=shape))


@dataclass
class ToyVideo:
    """One video to write; ``entity`` and ``centre`` per frame and region."""

    video_id: str
    label: str | None
    split: str | None
    entity: np.ndarray
    centre: np.ndarray
    failed: bool = False
    seed: int = 0
    regions: int = REGIONS


@dataclass
class World:
    entities: np.ndarray = field(default_factory=lambda: random_unit(7, ENTITIES, DIM))

    def video(self, video_id, label, split, key, seed, moving=None):
        """A video that shows entity ``key`` in every frame; ``moving`` +1 or -1 moves it across."""
        rng = np.random.default_rng((seed, 1))
        entity = rng.integers(len(CLASSES), ENTITIES, (FRAMES, REGIONS))
        centre = rng.uniform(0.1, 0.9, (FRAMES, REGIONS, 2))
        place = rng.integers(REGIONS)
        entity[:, place] = key
        if moving:
            centre[:, place, 0] = np.linspace(0.1, 0.9, FRAMES)[::moving]
        return ToyVideo(video_id, label, split, entity, centre, seed=seed)

    def learnable(self, per_class=12, seed=0):
        """Class c shows entity c; the labels' embeddings say nothing about it, so it must be learned."""
        videos = []
        for c, label in enumerate(CLASSES):
            for i in range(per_class):
                split = ("train", "train", "val", "test")[i % 4]
                name = f"{label}/{i:03d}.mp4"
                videos.append(self.video(name, label, split, c, seed * 100_000 + c * 1000 + i))
        return videos

    def directions(self, per_class=40, seed=0):
        """Two classes that differ in temporal order alone: one entity moves right or left."""
        videos = []
        for step, label in ((1, "right"), (-1, "left")):
            for i in range(per_class):
                split = ("train", "train", "train", "test")[i % 4]
                videos.append(
                    self.video(f"{label}{i:03d}", label, split, 0, seed + (step + 2) * 1000 + i, step)
                )
        return videos


def manifest(kind, model, extra):
    body = {
        "artifact": kind,
        "schema_version": 1,
        "package": "test 0",
        "created": "2024-01-01T00:00:00+00:00",
        "config": {},
        "inputs": {},
        "model": model,
        "counts": {},
        "files": {},
        **extra,
    }
    body["fingerprint"] = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return body


def write_labels(path, names, model=MODEL, seed=3, embeddings=None):
    path.mkdir(parents=True)
    vectors = random_unit(seed, len(names), DIM) if embeddings is None else embeddings
    flat = pa.array(vectors.reshape(-1).astype(np.float32))
    table = pa.table(
        {
            "class_id": pa.array(range(len(names)), pa.int32()),
            "label": pa.array(names, pa.string()),
            "name": pa.array([n.replace("_", " ") for n in names], pa.string()),
            "embedding": pa.FixedSizeListArray.from_arrays(flat, DIM),
        }
    )
    pq.write_table(table, path / "labels.parquet")
    body = manifest("labels", model, {"names": list(names)})
    (path / "manifest.json").write_text(json.dumps(body))
    return path


def rows_of(video, world):
    """Region rows of a video as a dictionary of arrays, sorted by frame and region."""
    rng = np.random.default_rng((video.seed, 2))
    n = video.regions
    shown = world.entities[video.entity[:, :n]]
    regions = unit(shown + 0.1 * rng.normal(size=shown.shape))
    tokens = np.concatenate([unit(regions.mean(1, keepdims=True)), regions], axis=1)
    cosine = tokens @ world.entities.T
    ids = np.argsort(-cosine, axis=2, kind="stable")[..., :TOPK]
    centre = np.concatenate([np.full((FRAMES, 1, 2), 0.5), video.centre[:, :n]], axis=1)
    frame, region = np.indices((FRAMES, n + 1))
    rows = {
        "frame": frame,
        "region": region,
        "patches": np.where(region == 0, 0, PATCHES // n),
        "centre": centre,
        "ids": ids,
        "scores": np.take_along_axis(cosine, ids, 2),
        "embedding": tokens,
        "norm": np.full(frame.shape, 1.5),
    }
    return {name: values.reshape(FRAMES * (n + 1), *values.shape[2:]) for name, values in rows.items()}


def seen(video, view):
    """Another view of a video: the same entities, other pixels; view 0 is the video itself."""
    return replace(video, seed=video.seed + 7_919 * view)


def viewed_table(video, world, views, store):
    """Region rows of a video; with ``views`` (of contract version 3) those of each, and a column that tells."""
    if views is None:
        return region_table(video, world, store)
    tables = [region_table(seen(video, view), world, store) for view in range(views)]
    column = np.repeat(np.arange(views), [len(table) for table in tables])
    return pa.concat_tables(tables).add_column(1, "view", pa.array(column, pa.int16()))


def vector_columns(vectors, region, store):
    half = vectors.astype("<f2")
    if store == "topk":
        cls = [v.tobytes() if r == 0 else None for v, r in zip(half, region, strict=True)]
        return {"embedding": pa.array(cls, pa.binary())}
    if store == "int8":
        scale = (np.abs(half).max(1).astype(np.float64) / 127).astype(np.float32)
        numbers = np.rint(half.astype(np.float64) / scale[:, None]).astype(np.int8)
        rows = [v.tobytes() for v in numbers]
        return {"embedding": pa.array(rows, pa.binary(DIM)), "scale": pa.array(scale)}
    return {"embedding": pa.array([v.tobytes() for v in half], pa.binary(2 * DIM))}


def region_table(video, world, store="fp16"):
    rows = rows_of(video, world)
    n = len(rows["frame"])
    f32 = lambda values: pa.array(values.astype(np.float32))  # noqa: E731
    cx, cy = rows["centre"].T
    return pa.table(
        {
            "video_id": pa.array([video.video_id] * n),
            "frame_index": pa.array(rows["frame"], pa.int32()),
            "time_s": pa.array(rows["frame"] * 0.5),
            "region_index": pa.array(rows["region"], pa.int16()),
            "patches": pa.array(rows["patches"], pa.int16()),
            "cx": f32(cx),
            "cy": f32(cy),
            **{corner: f32(cx * 0) for corner in ("x0", "y0", "x1", "y1")},
            "patch_map": pa.array([b"\0" * (PATCHES // 8)] * n, pa.binary(PATCHES // 8)),
            "topk_entity": pa.FixedSizeListArray.from_arrays(
                pa.array(rows["ids"].reshape(-1), pa.int32()), TOPK
            ),
            "topk_score": pa.FixedSizeListArray.from_arrays(f32(rows["scores"].reshape(-1)), TOPK),
            **vector_columns(rows["embedding"], rows["region"], store),
            "norm": f32(rows["norm"]),
        }
    )


def write_alignments(
    path, videos, world=None, model=MODEL, num_shards=2, per_group=5, views=None, store="fp16"
):
    world = world or World()
    path.mkdir(parents=True)
    videos = sorted(videos, key=lambda v: v.video_id)
    shard_of = {v.video_id: i * num_shards // len(videos) for i, v in enumerate(videos)}
    plan = {
        "video_id": pa.array([v.video_id for v in videos]),
        "label": pa.array([v.label for v in videos], pa.string()),
        "split": pa.array([v.split for v in videos], pa.string()),
        "bytes": pa.array([1] * len(videos), pa.int64()),
        "shard": pa.array([shard_of[v.video_id] for v in videos], pa.int32()),
    }
    pq.write_table(pa.table(plan), path / "videos.parquet")
    entities = pa.FixedSizeListArray.from_arrays(pa.array(world.entities.reshape(-1)), DIM)
    names = [f"entity {i}" for i in range(ENTITIES)]
    pq.write_table(
        pa.table({"entity_id": pa.array(range(ENTITIES), pa.int32()), "name": names, "embedding": entities}),
        path / "entities.parquet",
    )
    extra = {
        "dim": DIM,
        "frames": FRAMES,
        "regions": REGIONS,
        "patches": PATCHES,
        "grid": [4, 4],
        "top_k": TOPK,
        "num_shards": num_shards,
        "videos": len(videos),
        "config": {"frames": FRAMES, "top_k": TOPK, "store": store},
        "corpus": {"fingerprint": "c" * 64, "entities": ENTITIES, "model": model},
    }
    if views is not None:
        extra |= {"schema_version": 3, "views": [{"clip": view} for view in range(views)]}
    body = manifest("alignments", model, extra)
    (path / "manifest.json").write_text(json.dumps(body))
    for shard in range(num_shards):
        members = [v for v in videos if shard_of[v.video_id] == shard]
        write_shard(path, shard, members, world, body["fingerprint"], per_group, views, store)
    return path


def write_shard(path, shard, members, world, fingerprint, per_group, views=None, store="fp16"):
    good = [v for v in members if not v.failed]
    file, index = path / f"shard-{shard:05d}.parquet", {}
    tables = [viewed_table(v, world, views, store) for v in good]
    schema = viewed_table(World().video("x", "x", None, 0, 0), world, views, store).schema
    compression = {name: "NONE" if name == "embedding" else "ZSTD" for name in schema.names}
    options = {"use_dictionary": ["video_id"], "compression": compression, "write_page_checksum": True}
    with pq.ParquetWriter(file, schema, **options) as writer:
        for group, start in enumerate(range(0, len(good), per_group)):
            offset = 0
            for video, table in zip(
                good[start : start + per_group], tables[start : start + per_group], strict=True
            ):
                index[video.video_id] = {"row_group": group, "offset": offset, "rows": len(table)}
                offset += len(table)
            writer.write_table(pa.concat_tables(tables[start : start + per_group]).combine_chunks())
    failures = {
        "video_id": pa.array([v.video_id for v in members if v.failed], pa.string()),
        "stage": pa.array(["decode" for v in members if v.failed], pa.string()),
        "error": pa.array(["truncated" for v in members if v.failed], pa.string()),
        "message": pa.array(["" for v in members if v.failed], pa.string()),
    }
    pq.write_table(pa.table(failures), path / f"failures-{shard:05d}.parquet")
    marker = {
        "shard": shard,
        "fingerprint": fingerprint,
        "rows": sum(map(len, tables)),
        "bytes": file.stat().st_size,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "videos": index,
        "counts": {"planned": len(members), "ok": len(good), "failed": len(members) - len(good)},
    }
    (path / f"shard-{shard:05d}.json").write_text(json.dumps(marker))


@dataclass
class Toy:
    """What tests use: constants, and writers of artifacts."""

    world: World
    classes: tuple = tuple(CLASSES)
    dim: int = DIM
    frames: int = FRAMES
    regions: int = REGIONS
    topk: int = TOPK
    model: dict = field(default_factory=lambda: dict(MODEL))
    write_alignments = staticmethod(write_alignments)
    write_labels = staticmethod(write_labels)
    rows_of = staticmethod(rows_of)
    seen = staticmethod(seen)
    replace = staticmethod(replace)


@pytest.fixture(scope="session")
def toy() -> Toy:
    return Toy(World())


@pytest.fixture(scope="session")
def learnable(tmp_path_factory, toy) -> Path:
    """Alignments of the learnable toy set: 72 videos, 6 classes, three splits."""
    return toy.write_alignments(tmp_path_factory.mktemp("data") / "alignments", toy.world.learnable())


@pytest.fixture(scope="session")
def label_set(tmp_path_factory, toy) -> Path:
    return toy.write_labels(tmp_path_factory.mktemp("data") / "labels", toy.classes)


@pytest.fixture(scope="session")
def trained(tmp_path_factory, learnable, label_set) -> Path:
    """A small run on the learnable set."""
    from adapter.config import make_settings
    from adapter.train import train

    out = tmp_path_factory.mktemp("runs") / "run"
    settings = make_settings({"blocks": 1, "epochs": 12, "lr": 2e-3, "batch_size": 8, "device": "cpu"})
    train(learnable, label_set, out, settings)
    return out


# ------------------------------------------------------------------ official lists in miniature

# Class names in the order of the published files: HMDB51's is not alphabetical, though its lists are.
MINI_CLASSES = {
    "hmdb51": ["brush hair", "kick ball", "kick", "pushup", "sword exercise", "sword"],
    "ucf101": ["ApplyEyeMakeup", "Archery", "PullUps", "Shotput", "YoYo", "Biking", "Typing"],
    "ssv2": ["Pouring something", "Pushing something so that it spins", "Holding something", "Poking it"],
    "k400": ["archery", "pull ups", "shot put", "push up", "yodeling", "abseiling", "yoga", "zumba"],
}
MINI_BASE = {"hmdb51": [5, 4, 3], "ucf101": [6, 1, 3, 0], "ssv2": [3, 0], "k400": [7, 0, 5, 2]}
PER_CLASS, TESTED = 20, 2


FULL = {"hmdb51": "hmdb_51", "ucf101": "ucf_101", "ssv2": "ssv2", "k400": "kinetics_400"}
SHORT = {"hmdb51": "hmdb", "ucf101": "ucf", "ssv2": "ssv2", "k400": "k400"}


def class_file(names):
    return "id,name\n" + "".join(f"{i},{name}\n" for i, name in enumerate(names))


def list_file(names, places, alphabetical=False, frames=False):
    lines = []
    for number, name in enumerate(sorted(names) if alphabetical else names):
        for i in places:
            video = mini_video(name, i)
            lines.append(f"folder/{video[:-4]} 99 {number}" if frames else f"{video} {number}")
    return "\n".join(lines) + "\n"


def mini_files():
    """Label and list files in miniature, ``{path: text}``, laid out and numbered as the published ones."""
    files = {}
    for data, names in MINI_CLASSES.items():
        files |= mini_data(data, names)
    everything = range(PER_CLASS)
    files["lists/hmdb51/hmdb_full_for_zeroshot.txt"] = list_file(
        MINI_CLASSES["hmdb51"], everything, True, True
    )
    files["splits/few_shot/ssv2_validation.txt"] = list_file(MINI_CLASSES["ssv2"], range(TESTED))
    files["lists/k400/kinetics_video_val_se320.txt"] = list_file(MINI_CLASSES["k400"], range(TESTED + 1))
    for i in (1, 2, 3):
        own = [f"new deed {c}" for c in range(i, i + 4)]
        files[f"labels/ZS_split{i}_K600.csv"] = class_file(own)
        numbers = json.dumps({str(c): name for c, name in enumerate(own)})
        files[f"zs_label_db/k600_split{i}/k600-openset-index2cls.json"] = numbers
        files[f"splits/zero_shot/k600_ZS_split{i}_eval.txt"] = list_file(own, range(i, i + 2))
        files[f"lists/k600/test_split{i}_exist.txt"] = list_file(own, range(i, i + 3))
        rows = [f"val/{name.replace(' ', '_')}/{mini_video(name, 9)},{c}" for c, name in enumerate(own)]
        files[f"zs_label_db/k600_split{i}/test.csv"] = "\n".join(rows) + "\n"
    return files


def mini_data(data, names):
    """Files of one data set: class i's videos 2i - 2 and 2i - 1 are test split i, the others train it."""
    files = {f"labels/{FULL[data]}_labels.csv": class_file(names)}
    alphabetical, short = data == "hmdb51", SHORT[data]
    test = {i: range(TESTED * (i - 1), TESTED * i) for i in (1, 2, 3)}
    train = {i: [v for v in range(PER_CLASS) if v not in test[i]] for i in test}
    halves = {"base": [names[c] for c in MINI_BASE[data]]}
    halves["novel"] = [name for name in reversed(names) if name not in halves["base"]]
    for word, own in halves.items():
        stem = "ssv2_174" if data == "ssv2" else FULL[data]
        files[f"labels/{stem}_{word}_labels.csv"] = class_file(own)
        files[f"splits/base_to_novel/{short}_{word}_val.txt"] = list_file(own, test[1], alphabetical)
    for shots in (2, 4, 8, 16):
        path = f"splits/few_shot/{data}_train1_few_shot_{shots}.txt"
        files[path] = list_file(names, train[1][:shots], alphabetical)
    for i in test:
        path = f"splits/base_to_novel/{short}_fs_base_s{i}_train.txt"
        files[path] = list_file(halves["base"], train[1][i - 1 :][:16], alphabetical)
        if data in ("hmdb51", "ucf101"):
            files[f"splits/zero_shot/{data}_val{i}.txt"] = list_file(names, test[i], alphabetical)
            path = f"splits/ucf101_hmdb51_train/{data}_train_rgb_split_{i}.txt"
            files[path] = list_file(names, train[i], alphabetical, frames=True)
    return files


def mini_video(name, i):
    """File name of the i-th video of a class; it holds the class, as those of HMDB51 and UCF101 do."""
    return f"v{i:02d}_{name.replace(' ', '_')}_u_nm.avi"


@dataclass
class MiniLists:
    """A folder of miniature lists, and what its makers know: classes and videos by number."""

    root: Path
    classes: dict = field(default_factory=lambda: MINI_CLASSES)
    base: dict = field(default_factory=lambda: MINI_BASE)
    per_class: int = PER_CLASS
    tested: int = TESTED
    video = staticmethod(mini_video)


def write_mini_lists(root):
    for path, text in mini_files().items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return MiniLists(root)


@pytest.fixture(scope="session")
def mini(tmp_path_factory) -> MiniLists:
    return write_mini_lists(tmp_path_factory.mktemp("lists"))


@pytest.fixture
def own_mini(tmp_path) -> MiniLists:
    """Miniature lists that a test may change."""
    return write_mini_lists(tmp_path / "lists")


@pytest.fixture(scope="session")
def split_one(tmp_path_factory, toy, mini):
    """Alignments of split 1 of HMDB51 in miniature (a missing and a failed test video), labels, and a run."""
    from adapter.config import make_settings
    from adapter.train import train

    folder = tmp_path_factory.mktemp("protocol")
    names = mini.classes["hmdb51"]
    videos = []
    for c, name in enumerate(names):
        for i in range(12):
            split = "test" if i < mini.tested else "train"
            videos.append(toy.world.video(f"{name}/{mini.video(name, i)}", name, split, c, 100 * c + i))
    videos = [video for video in videos if "v00_pushup" not in video.video_id]
    next(video for video in videos if "v01_kick_u" in video.video_id).failed = True
    alignments = toy.write_alignments(folder / "alignments", videos)
    labels = toy.write_labels(folder / "labels", [*names, "Archery"])
    settings = {"blocks": 1, "epochs": 6, "lr": 2e-3, "batch_size": 8, "device": "cpu", "val_fraction": 0.25}
    train(alignments, labels, folder / "run", make_settings(settings))
    return folder
