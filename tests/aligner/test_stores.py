"""How embeddings are kept: what int8 and top-k cost, what they keep exactly, and how large they are."""

from collections.abc import Callable
from pathlib import Path

import hypothesis.extra.numpy as hnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aligner import artifact, run
from aligner.artifact import ShardWriter, VideoRows, bytes_per_video, quantised, shard_schema
from aligner.config import STORES, AlignerError, ChangedSettings
from aligner.verify import check_video, summary, verify

VIDEO = "run/2.mp4"


@given(
    hnp.arrays(
        st.sampled_from([np.float16, np.float32]),
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=12),
        elements=st.floats(-1, 1, width=16),
    )
)
def test_no_entry_moves_by_more_than_half_a_step(vectors: np.ndarray) -> None:
    numbers, scale = quantised(vectors)
    back = numbers * scale[:, None].astype(np.float64)
    assert (np.abs(vectors - back) <= scale[:, None] / 2 * (1 + 1e-9)).all()
    # The largest entry has the largest number, with its sign; a row of zeros stays one.
    assert (np.abs(numbers.astype(int)).max(axis=1) == np.where(scale > 0, 127, 0)).all()
    assert (np.sign(numbers) * np.sign(vectors) >= 0).all()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, clips: Path, tiny_corpus: Path, tiny_clip: str) -> dict:
    """The same run with every store."""
    from aligner.config import AlignConfig

    out = {store: tmp_path_factory.mktemp("stores") / store for store in STORES}
    for store, folder in out.items():
        options = {"frames": 3, "merge": 2, "top_k": 5, "device": "cpu", "store": store, "out": folder}
        run.run(AlignConfig(videos=clips, corpus=tiny_corpus, model=tiny_clip, **options))
    return out


def test_all_but_the_embeddings_is_the_same(runs: dict) -> None:
    tables = {store: artifact.read_video(out, VIDEO) for store, out in runs.items()}
    assert tables["int8"].schema.names == [*tables["fp16"].schema.names[:-1], "scale", "norm"]
    plain = [name for name in tables["fp16"].schema.names if name != "embedding"]
    for store in ("int8", "topk"):
        assert tables[store].select(plain).equals(tables["fp16"].select(plain))
    prints = {artifact.read_manifest(out)["fingerprint"] for out in runs.values()}
    assert len(prints) == len(STORES)


def test_int8_is_within_half_a_step_and_topk_keeps_class_tokens_exactly(runs: dict) -> None:
    tables = {store: artifact.read_video(out, VIDEO) for store, out in runs.items()}
    exact = artifact.vectors(tables["fp16"]).astype(np.float64)
    half_step = tables["int8"]["scale"].to_numpy()[:, None] / 2
    assert (np.abs(artifact.vectors(tables["int8"]) - exact) <= half_step * (1 + 1e-6)).all()
    frames = tables["fp16"]["region_index"].to_numpy() == 0
    np.testing.assert_array_equal(artifact.vectors(tables["topk"]), exact[frames])
    assert tables["topk"]["embedding"].is_valid().to_pylist() == frames.tolist()


@pytest.mark.parametrize("store", STORES)
def test_every_store_verifies_and_tells_its_name(runs: dict, store: str) -> None:
    assert verify(runs[store]) == []
    assert f"stored as {store}" in "\n".join(summary(runs[store]))


@pytest.mark.parametrize(
    ("store", "column", "value", "problem"),
    [
        ("int8", "scale", 0.0, "an embedding is not of unit length"),
        ("int8", "scale", np.nan, "an embedding has NaN or infinity"),
        ("topk", "embedding", None, "an embedding is missing, or there where the store has none"),
        ("topk", "embedding", np.full(24, np.nan, "<f2"), "an embedding has NaN or infinity"),
    ],
)
def test_wrong_embeddings_are_found(runs: dict, store: str, column: str, value: object, problem: str) -> None:
    rows = artifact.read_video(runs[store], VIDEO)
    place, field = rows.schema.get_field_index(column), rows.schema.field(column)
    values = rows[column].to_pylist()
    dim = artifact.read_manifest(runs[store])["dim"]
    values[0] = np.resize(value, dim).tobytes() if isinstance(value, np.ndarray) else value
    changed = rows.set_column(place, field, pa.array(values, field.type))
    assert check_video(VIDEO, changed, artifact.read_manifest(runs[store])) == [problem]


def test_an_embedding_of_a_region_in_a_store_of_topk_is_found(runs: dict) -> None:
    rows = artifact.read_video(runs["topk"], VIDEO)
    place, field = rows.schema.get_field_index("embedding"), rows.schema.field("embedding")
    values = rows["embedding"].to_pylist()
    values[1] = values[0]
    changed = rows.set_column(place, field, pa.array(values, field.type))
    wanted = "an embedding is missing, or there where the store has none"
    assert check_video(VIDEO, changed, artifact.read_manifest(runs["topk"])) == [wanted]


def test_another_store_is_another_folder(runs: dict, settings: Callable) -> None:
    with pytest.raises(ChangedSettings, match="config.store: got 'topk', expected 'int8'"):
        run.prepare(settings(out=runs["int8"], store="topk", videos_per_shard=64))
    with pytest.raises(AlignerError, match="--store must be one of fp16, int8, topk, got 'fp8'"):
        settings(store="fp8")


# Sizes.

FRAMES, SIDE, REGIONS, DIM, TOP_K = 8, 14, 100, 512, 16


def clip_like(seed: int) -> VideoRows:
    """Rows as a ViT-B/16 with r = 8 gives them: patches by nearest centre, cosines around 0.2."""
    rng, tokens = np.random.default_rng(seed), REGIONS + 1
    grid = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)), -1).reshape(-1, 2)
    columns: dict[str, list] = {"patches": [], "centroid_xy": [], "box_xyxy": [], "patch_map": []}
    for _ in range(FRAMES):
        centres = grid[rng.choice(SIDE**2, REGIONS, replace=False)]
        owner = np.abs(grid[:, None] - centres).sum(-1).argmin(1)
        covers = [np.ones(SIDE**2, bool), *(owner == region for region in range(REGIONS))]
        for number, cover in enumerate(covers):
            low, high = grid[cover].min(0) / SIDE, (grid[cover].max(0) + 1) / SIDE
            columns["patches"].append(cover.sum() if number else 0)
            columns["centroid_xy"].append((grid[cover].mean(0) + 0.5) / SIDE)
            columns["box_xyxy"].append([*low, *high])
            columns["patch_map"].append(np.packbits(cover if number else ~cover))
    vectors = rng.standard_normal((FRAMES * tokens, DIM))
    kinds = {"patches": np.int16, "centroid_xy": np.float32, "box_xyxy": np.float32, "patch_map": np.uint8}
    scores = -np.sort(-rng.normal(0.2, 0.04, (FRAMES * tokens, TOP_K)))
    return VideoRows(
        view=np.zeros(FRAMES * tokens, np.int16),
        frame_index=np.repeat(np.arange(FRAMES, dtype=np.int32), tokens),
        time_s=np.repeat(np.arange(FRAMES) * 1.25 + 0.625, tokens),
        region_index=np.tile(np.arange(tokens, dtype=np.int16), FRAMES),
        topk_entity=rng.integers(0, 5000, (FRAMES * tokens, TOP_K)).astype(np.int32),
        topk_score=scores.astype(np.float32),
        embedding=(vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16),
        norm=rng.normal(10, 0.5, FRAMES * tokens).astype(np.float32),
        **{name: np.array(values, kinds[name]) for name, values in columns.items()},
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """A shard of 24 such videos with every store."""
    videos = [clip_like(seed) for seed in range(24)]
    written = {}
    for store in STORES:
        path = tmp_path_factory.mktemp("sizes") / f"{store}.parquet"
        with ShardWriter(path, shard_schema(DIM, SIDE**2, TOP_K, "f" * 64, store)) as writer:
            for place, rows in enumerate(videos):
                writer.add(f"v{place:02d}", rows)
        written[store] = path
    return written


@pytest.mark.parametrize("store", STORES)
def test_the_estimate_is_near_and_not_below(files: dict, store: str) -> None:
    real = files[store].stat().st_size / 24
    estimate = bytes_per_video(FRAMES, REGIONS + 1, DIM, TOP_K, store)
    assert real <= estimate <= 1.15 * real


def test_row_groups_weigh_alike_whatever_the_store(files: dict) -> None:
    groups = {}
    for store, path in files.items():
        file = pq.ParquetFile(path)
        sizes = [file.read_row_group(i).nbytes for i in range(file.metadata.num_row_groups)]
        video = max(sizes) / 24
        assert all(size < artifact.ROW_GROUP_BYTES + video for size in sizes), (store, sizes)
        groups[store] = len(sizes)
    assert groups["fp16"] > groups["topk"]
