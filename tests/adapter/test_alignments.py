import json
import mmap
import shutil
from dataclasses import fields

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adapter.alignments import open_alignments
from adapter.config import AdapterError, make_settings
from adapter.evaluate import evaluate
from adapter.explain import explain
from adapter.train import train


def test_rows_come_back_in_their_places(tmp_path, toy):
    videos = toy.world.learnable(per_class=3)
    videos[0].regions = toy.regions - 1
    opened = open_alignments(toy.write_alignments(tmp_path / "a", videos, per_group=2))
    assert (opened.dim, opened.frames, opened.tokens) == (toy.dim, toy.frames, toy.regions + 1)
    for made in videos:
        (read,) = opened.read([made.video_id])
        rows = toy.rows_of(made, toy.world)
        place = rows["frame"], rows["region"]
        np.testing.assert_array_equal(read.embeddings[place], rows["embedding"].astype(np.float16))
        np.testing.assert_array_equal(read.topk_entity[place], rows["ids"])
        np.testing.assert_allclose(read.geometry[place][:, :2], rows["centre"], rtol=1e-6)
        assert read.mask.sum() == len(rows["frame"])
        assert read.mask[place].all()
        np.testing.assert_array_equal(read.times, np.arange(toy.frames) * 0.5)


def test_area_share_sums_to_one_over_regions_and_cls_is_the_whole_frame(learnable):
    opened = open_alignments(learnable)
    (video,) = opened.read([opened.plan[0].video_id])
    np.testing.assert_allclose(video.geometry[:, 1:, 2].sum(1), 1)
    np.testing.assert_array_equal(video.geometry[:, 0], [[0.5, 0.5, 1.0]] * opened.frames)


def test_few_row_groups_stay_in_memory(learnable):
    opened = open_alignments(learnable)
    opened.keep = 2
    assert len(list(opened.read(opened.index))) == len(opened.plan)
    assert len(opened._groups) == 2


def test_incomplete_alignments_name_the_shards_and_the_command(tmp_path, toy):
    path = toy.write_alignments(tmp_path / "a", toy.world.learnable(4), num_shards=3)
    (path / "shard-00001.json").unlink()
    command = f"`aligner run --videos DIR --corpus DIR --model toy --pretrained none --out {path}`"
    with pytest.raises(AdapterError, match=rf"1 of 3 shards are not done \(1\); run {command} again"):
        open_alignments(path)


def test_shards_of_other_settings_are_refused(tmp_path, toy):
    path = toy.write_alignments(tmp_path / "a", toy.world.learnable(2))
    marker = json.loads((path / "shard-00000.json").read_text())
    (path / "shard-00000.json").write_text(json.dumps({**marker, "fingerprint": "old"}))
    with pytest.raises(AdapterError, match="some shards .* come from other settings"):
        open_alignments(path)


def test_a_planned_video_that_is_nowhere_is_noticed(tmp_path, toy):
    path = toy.write_alignments(tmp_path / "a", toy.world.learnable(2))
    marker = json.loads((path / "shard-00000.json").read_text())
    lost = next(iter(marker["videos"]))
    del marker["videos"][lost]
    (path / "shard-00000.json").write_text(json.dumps(marker))
    with pytest.raises(AdapterError, match="1 planned videos are neither aligned nor failed"):
        open_alignments(path)


@pytest.mark.parametrize("damage", ["flip", "truncate", "nothing", "marker", "empty"])
def test_damage_is_noticed_by_what_is_read(tmp_path, toy, damage):
    path = toy.write_alignments(tmp_path / "a", toy.world.learnable(2))
    shard, marker = path / "shard-00000.parquet", path / "shard-00000.json"
    data = bytearray(shard.read_bytes())
    if damage == "flip":
        video = open_alignments(path).plan[0].video_id
        needle = next(open_alignments(path).read([video])).embeddings[0, 0].tobytes()
        data[data.index(needle) + 3] ^= 0xFF
    left = {"truncate": len(data) // 2, "nothing": 0}.get(damage, len(data))
    shard.write_bytes(data[:left])
    if damage in ("marker", "empty"):
        content = json.loads(marker.read_text())
        for slot in content["videos"].values():
            slot.update({"offset": slot["offset"] + 1} if damage == "marker" else {"rows": 0})
        marker.write_text(json.dumps(content))
    opened = open_alignments(path)
    with pytest.raises(AdapterError, match="shard 0 of .* is damaged: .*run `aligner verify"):
        list(opened.read(opened.index))


@pytest.mark.parametrize(
    "file", ["manifest.json", "videos.parquet", "entities.parquet", "failures-00000.parquet"]
)
def test_missing_files_say_which_and_what_to_run(tmp_path, toy, file):
    path = toy.write_alignments(tmp_path / "a", toy.world.learnable(2))
    (path / file).unlink()
    with pytest.raises(AdapterError, match=f"{file}.*`aligner "):
        open_alignments(path)


@pytest.mark.parametrize(
    ("file", "next_step"),
    [
        ("manifest.json", "make it again with `aligner run"),
        ("videos.parquet", "make it again with `aligner run"),
        ("entities.parquet", "make it again with `aligner run"),
        ("failures-00001.parquet", "run `aligner verify"),
        ("shard-00001.json", "run `aligner verify"),
    ],
)
def test_truncated_files_are_named_with_what_to_do(tmp_path, toy, file, next_step):
    path = toy.write_alignments(tmp_path / "a", toy.world.learnable(2))
    data = (path / file).read_bytes()
    for left in (0, len(data) // 2, len(data) - 1):
        (path / file).write_bytes(data[:left])
        with pytest.raises(AdapterError, match=f"{file} cannot be read .*{next_step}"):
            open_alignments(path)


@pytest.mark.parametrize("entry", [None, {"row_group": 0}, {"row_group": 0, "offset": "x", "rows": 1}])
def test_a_marker_that_does_not_say_where_rows_lie(tmp_path, toy, entry):
    path = toy.write_alignments(tmp_path / "a", toy.world.learnable(2))
    marker = json.loads((path / "shard-00001.json").read_text())
    changed = {**marker, "videos": dict.fromkeys(marker["videos"], entry)}
    (path / "shard-00001.json").write_text(json.dumps(changed))
    with pytest.raises(AdapterError, match="shard 1 of .* is damaged: its marker .*`aligner verify"):
        open_alignments(path)
    (path / "shard-00001.json").write_text("[]")
    with pytest.raises(
        AdapterError, match="shard-00001.json lacks fingerprint, sha256, videos.*`aligner verify"
    ):
        open_alignments(path)


def test_another_artifact_or_a_newer_version_is_refused(tmp_path, toy, label_set):
    with pytest.raises(AdapterError, match="needs the alignments artifact, found 'labels'"):
        open_alignments(label_set)
    path = toy.write_alignments(tmp_path / "a", toy.world.learnable(2))
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "schema_version": 4}))
    with pytest.raises(AdapterError, match="has schema version 4, this adapter .* reads up to 3"):
        open_alignments(path)


@pytest.fixture(scope="module")
def stores(tmp_path_factory, toy):
    """The learnable set with every store."""
    root, videos = tmp_path_factory.mktemp("stores"), toy.world.learnable()
    videos[0].regions = toy.regions - 1
    return {
        store: toy.write_alignments(root / store, videos, store=store) for store in ("fp16", "int8", "topk")
    }


def test_every_store_reads_as_far_as_it_holds(stores):
    opened = {store: open_alignments(path) for store, path in stores.items()}
    videos = {store: list(alignments.read(alignments.index)) for store, alignments in opened.items()}
    for whole, small, cls in zip(*videos.values(), strict=True):
        exact, read = whole.embeddings.astype(np.float32), small.embeddings.astype(np.float32)
        # Half a step of int8, and the rounding of the result to fp16.
        bound = np.abs(exact).max(-1, keepdims=True) / 127 / 2 + 2.0**-11 * np.abs(exact)
        assert (np.abs(exact - read) <= bound).all()
        np.testing.assert_array_equal(cls.embeddings, whole.embeddings[:, :1])
        for other in (small, cls):
            for name in ("topk_entity", "topk_score", "geometry", "times", "norms", "mask"):
                np.testing.assert_array_equal(getattr(other, name), getattr(whole, name))
    saved = opened["fp16"].bytes_per_video() - opened["topk"].bytes_per_video()
    assert saved == whole.embeddings.nbytes - cls.embeddings.nbytes


@pytest.mark.parametrize(
    "options",
    [
        {"queries": "tracks", "context": "cls"},
        {"queries": "aligned", "context": "cls", "residual": "cls"},
        {"queries": "cls", "context": "cls"},
        {"model": "adapt_then_align"},
        {"model": "mean_pool"},
    ],
)
def test_without_region_embeddings_the_same_model_is_trained(stores, label_set, tmp_path, options):
    chosen = {"blocks": 1, "epochs": 1, "batch_size": 16, "device": "cpu", **options}
    for store in ("fp16", "topk"):
        train(stores[store], label_set, tmp_path / store, make_settings(chosen))
    weights = [(tmp_path / store / "model.safetensors").read_bytes() for store in ("fp16", "topk")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("context", ["regions", "pooled"])
def test_a_model_that_reads_regions_says_what_to_do_without_them(stores, label_set, tmp_path, context):
    settings = make_settings({"context": context, "blocks": 1, "epochs": 0, "device": "cpu"})
    why = f"context={context} reads the embeddings of regions, .*use context=cls .*`aligner run --store fp16`"
    with pytest.raises(AdapterError, match=f"^{why}"):
        train(stores["topk"], label_set, tmp_path / "run", settings)
    assert not (tmp_path / "run").exists()
    train(stores["int8"], label_set, tmp_path / "run", settings)
    with pytest.raises(AdapterError, match=f"run run: {why}"):
        evaluate(tmp_path / "run", stores["topk"], label_set)


def test_entities_are_explained_without_region_embeddings(stores, label_set, tmp_path):
    settings = make_settings(
        {"queries": "tracks", "context": "cls", "blocks": 1, "epochs": 0, "device": "cpu"}
    )
    train(stores["topk"], label_set, tmp_path / "run", settings)
    whole, cls = (
        explain(tmp_path / "run", stores[store], label_set, max_videos=2) for store in ("fp16", "topk")
    )
    assert whole == cls and len(cls) == 2


def test_a_store_that_does_not_fit_its_manifest_is_refused(stores, tmp_path):
    for told, found in (("fp16", "int8"), ("int8", "topk"), ("topk", "fp16")):
        path = tmp_path / told
        shutil.copytree(stores[found], path)
        manifest = json.loads((path / "manifest.json").read_text())
        manifest["config"]["store"] = told
        (path / "manifest.json").write_text(json.dumps(manifest))
        opened = open_alignments(path)
        with pytest.raises(AdapterError, match="shard 0 of .* is damaged: .*run `aligner verify"):
            list(opened.read(opened.index))
    manifest["config"]["store"] = "int4"
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(AdapterError, match="has store 'int4'; this adapter reads fp16, int8, topk"):
        open_alignments(path)


def spoil(path, video_id, column, value):
    """Put a number into the last row of a video, as a broken model or disk would have."""
    file = path / "shard-00000.parquet"
    with pq.ParquetFile(file) as parquet:
        groups = [parquet.read_row_group(i) for i in range(parquet.num_row_groups)]
    for i, table in enumerate(groups):
        rows = table.column_names.index(column), np.flatnonzero(np.asarray(table["video_id"]) == video_id)
        values, kind = table[column].to_pylist(), table[column].type
        held = [row for row in rows[1] if values[row] is not None]
        if held and isinstance(values[held[-1]], bytes):
            vector = np.frombuffer(values[held[-1]], "<f2").copy()
            vector[3] = value
            values[held[-1]] = vector.tobytes()
        elif held:
            values[held[-1]] = [*values[held[-1]][:-1], value] if pa.types.is_fixed_size_list(kind) else value
        groups[i] = table.set_column(rows[0], column, pa.array(values, kind))
    with pq.ParquetWriter(file, groups[0].schema) as writer:
        for table in groups:
            writer.write_table(table)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("store", "column", "told"),
    [
        ("fp16", "embedding", "embeddings"),
        ("topk", "embedding", "embeddings"),
        ("int8", "scale", "scale"),
        ("fp16", "topk_score", "topk_score"),
        ("fp16", "norm", "norm"),
        ("fp16", "cx", "geometry"),
        ("fp16", "time_s", "time_s"),
    ],
)
def test_numbers_that_are_none_name_shard_and_video(tmp_path, toy, store, column, told, value):
    videos = toy.world.learnable(2)
    path = toy.write_alignments(tmp_path / "a", videos, store=store)
    bad = sorted(video.video_id for video in videos)[1]
    spoil(path, bad, column, value)
    opened = open_alignments(path)
    with pytest.raises(
        AdapterError,
        match=f"shard 0 of .* is damaged: {bad} has {told} that are not finite; run `aligner verify",
    ):
        list(opened.read(opened.index))


def test_the_largest_numbers_are_numbers(tmp_path, toy):
    path = toy.write_alignments(tmp_path / "a", toy.world.learnable(1))
    video = open_alignments(path).plan[0].video_id
    spoil(path, video, "embedding", -65504)
    (read,) = open_alignments(path).read([video])
    assert read.embeddings.min() == -65504


def test_whole_videos_are_views_of_their_row_group_and_partial_ones_are_not(tmp_path, toy):
    videos = toy.world.learnable(1)
    videos[0].regions = toy.regions - 1
    opened = open_alignments(toy.write_alignments(tmp_path / "a", videos))
    for made in videos:
        (read,) = opened.read([made.video_id])
        vectors = opened._group(*opened.group_of(made.video_id)).vectors
        assert np.shares_memory(read.embeddings, vectors) == (made is not videos[0])
        assert read.mask.all() == (made is not videos[0])


def of_file(group):
    """Whether the vectors of a row group are looked at in its file."""
    base = group.vectors
    while isinstance(base, np.ndarray):
        base = base.base
    return isinstance(base.obj if isinstance(base, memoryview) else base, mmap.mmap)


def test_vectors_are_looked_at_in_the_file(stores):
    """Those of a store of top-k lie between other things: they are small, and copied."""
    for store, path in stores.items():
        opened = open_alignments(path)
        list(opened.read(opened.index))
        groups = list(opened._groups.values())
        assert len(groups) > 2 and {of_file(group) for group in groups} == {store != "topk"}


def rewritten(path, how):
    """The shards once more, with the same rows in row groups, written in another way."""
    for file in path.glob("shard-*.parquet"):
        with pq.ParquetFile(file) as parquet:
            groups = [parquet.read_row_group(i) for i in range(parquet.num_row_groups)]
        with pq.ParquetWriter(file, groups[0].schema, write_page_checksum=True, **how) as writer:
            for table in groups:
                writer.write_table(table)
    return path


def equal(first, second):
    names = [spec.name for spec in fields(first)]
    return all(np.array_equal(getattr(first, name), getattr(second, name)) for name in names)


@pytest.mark.parametrize(
    "how",
    [
        {"compression": "ZSTD"},
        {"use_dictionary": True, "compression": "NONE"},
        {"use_dictionary": False, "compression": "NONE", "data_page_size": 64, "write_batch_size": 8},
    ],
    ids=["compressed", "dictionary", "pages"],
)
def test_vectors_that_do_not_lie_in_one_run_are_copied(stores, tmp_path, how):
    path = rewritten(shutil.copytree(stores["fp16"], tmp_path / "a"), how)
    usual, other = open_alignments(stores["fp16"]), open_alignments(path)
    other.keep_bytes = 1 << 30
    for ids in (sorted(usual.index), sorted(usual.index)[::-1]):
        assert all(map(equal, usual.read(ids), other.read(ids)))
    assert not any(map(of_file, other._groups.values()))


@pytest.mark.parametrize(
    ("store", "kept"),
    [("fp16", 0), ("fp16", 10_000), ("fp16", 1 << 30), ("int8", 1 << 30), ("topk", 1 << 30)],
)
def test_what_is_kept_of_row_groups_changes_nothing_but_memory(stores, store, kept):
    first, opened = open_alignments(stores[store]), open_alignments(stores[store])
    opened.keep, opened.keep_bytes = 1, kept
    for ids in (sorted(opened.index), sorted(opened.index)[::-1]):
        assert all(map(equal, first.read(ids), opened.read(ids)))
    arrays = [array for rest in opened._rest.values() for array in (rest.owner, *rest.columns.values())]
    assert sum(array.nbytes for array in arrays) <= kept
    assert not any(rest.vectors.size for rest in opened._rest.values())
    all_groups = {opened.group_of(video) for video in opened.index}
    if kept == 0 or store == "topk":
        assert not opened._rest
    else:
        assert (set(opened._rest) == all_groups) == (kept > 10_000) and opened._rest


@pytest.mark.parametrize("kept", [0, 1 << 30])
def test_a_shard_put_in_the_place_of_one_that_was_read_is_verified(tmp_path, toy, kept):
    path = toy.write_alignments(tmp_path / "a", toy.world.learnable(2), num_shards=1)
    opened = open_alignments(path)
    opened.keep, opened.keep_bytes = 1, kept
    ids = sorted(opened.index)
    before = list(opened.read(ids))
    shard, content = path / "shard-00000.parquet", (path / "shard-00000.parquet").read_bytes()
    needle = before[0].embeddings[0, 0].tobytes()
    (path / "new").write_bytes(content.replace(needle, needle[:-1] + bytes([needle[-1] ^ 1])))
    (path / "new").replace(shard)
    assert equal(before[-1], next(opened.read(ids[-1:])))  # its row group is in memory still
    with pytest.raises(AdapterError, match="shard 0 of .* is damaged: .*run `aligner verify"):
        list(opened.read(ids))
    (path / "new").write_bytes(content)
    (path / "new").replace(shard)
    assert all(map(equal, before, opened.read(ids)))
