"""How fast cached alignments are read for training: ``python -m benchmarks.reading --out out/reading``."""

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa

from aligner import artifact as shards

FRAMES, TOKENS, DIM, TOP_K, ENTITIES = 8, 101, 512, 16, 2000  # ViT-B/16 with r = 8


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
    shards.write_table(out / shards.ENTITIES, pa.table({
        "entity_id": pa.array(range(ENTITIES), pa.int32()),
        "name": [f"entity {i}" for i in range(ENTITIES)],
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(entities.ravel()), DIM),
    }))
    model = {"name": "ViT-B-16", "pretrained": None, "weights_sha256": "0" * 64, "random_weights": True}
    content = {
        "config": {"top_k": TOP_K, "frames": FRAMES, "image_size": [224, 224], "store": "fp16"},
        "inputs": {}, "model": {**model, "embed_dim": DIM}, "counts": {},
        "patches": 196, "regions": TOKENS - 1, "dim": DIM, "top_k": TOP_K, "frames": FRAMES,
        "num_shards": num_shards, "videos": videos, "corpus": {"entities": ENTITIES, "fingerprint": "0" * 64},
        "views": [{"clip": 0}],
    }
    manifest = shards.make_manifest(out, rows=videos, entities=ENTITIES, content=content)
    for shard in range(num_shards):
        _write_shard(out, shard, [v for v, s in zip(ids, shard_of, strict=True) if s == shard], manifest, random)
    shards.write_json(out / shards.MANIFEST, manifest)
    return out


def _write_shard(out, shard, ids, manifest, random):
    file = out / shards.shard_name(shard)
    with shards.ShardWriter(file, shards.schema_of(manifest)) as writer:
        for name in ids:
            writer.add(name, _rows(random))
    shards.write_table(out / shards.failures_name(shard), shards.failures_table([]))
    shards.write_json(out / shards.marker_name(shard), {
        "fingerprint": manifest["shard_fingerprints"][shard], "sha256": shards.file_sha256(file),
        "videos": writer.index,
    })


def _unit(random: np.random.Generator, *shape: int) -> np.ndarray:
    values = random.standard_normal((*shape, DIM), np.float32)
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def _rows(random: np.random.Generator) -> shards.VideoRows:
    frame, region = (axis.ravel() for axis in np.indices((FRAMES, TOKENS)))
    n = len(frame)
    score = -np.sort(-random.random((n, TOP_K), np.float32))
    return shards.VideoRows(
        view=np.zeros(n, np.int16), frame_index=frame.astype(np.int32), time_s=frame * 0.5,
        region_index=region.astype(np.int16), patches=np.where(region == 0, 0, 2).astype(np.int16),
        centroid_xy=random.random((n, 2), np.float32), box_xyxy=random.random((n, 4), np.float32),
        patch_map=random.integers(0, 255, (n, 25), np.uint8),
        topk_entity=random.integers(0, ENTITIES, (n, TOP_K), np.int32), topk_score=score,
        embedding=_unit(random, n).astype(np.float16), norm=np.ones(n, np.float32),
    )
