"""The report against the artifacts it shows: what goes in comes out, nothing is loaded, nothing escapes."""

import hashlib
import html.parser
import itertools
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aligner import artifact
from pipelines import crops, gather, mistakes, report
from pipelines.gather import Entity, ReportError, Table
from pipelines.toyworld.render import render, sample_clip
from pipelines.toyworld.vocabulary import ACTIONS, ENTITIES, OBJECTS
from pipelines.windows import Action

GRID, FRAMES, REGIONS, TOP_K, DIM = (8, 8), 4, 12, 6, 8
PATCHES = GRID[0] * GRID[1]
PIXELS = 96
EVIL = '</script><script>alert("x")</script><img src=x onerror=alert(1)>'


# A small world made with the aligner's own writer: drawn clips, regions from the entity of every pixel.


def write_video(path: Path, frames: list[np.ndarray], fps: int = 4) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "12"})
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
        for rgb in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(stream.encode())


def merged(entity: np.ndarray, regions: int, grid: tuple[int, int], random: np.random.Generator) -> tuple:
    """Region 1..R of each patch and the entity of each region, by merging patches of one entity at random."""
    rows, columns = grid
    cell = entity.shape[0] // rows
    blocks = entity[: rows * cell, : columns * cell].reshape(rows, cell, columns, cell).transpose(0, 2, 1, 3)
    patch_entity = np.array(
        [np.bincount(block.ravel()).argmax() for block in blocks.reshape(rows * columns, -1)]
    )
    region = np.arange(rows * columns)
    while len(np.unique(region)) > regions:
        one = random.choice(np.unique(region))
        mates = [r for r in np.unique(region) if r != one and patch_entity[r] == patch_entity[one]]
        # A lone patch joins whatever else there is only when nothing pure is left to merge.
        if not mates and len(np.unique(region)) <= len(np.unique(patch_entity)):
            mates = [r for r in np.unique(region) if r != one]
        if mates:
            near = min(
                mates, key=lambda r: abs(r // columns - one // columns) + abs(r % columns - one % columns)
            )
            region[region == max(one, near)] = min(one, near)
    owners, compact = np.unique(region, return_inverse=True)
    return compact + 1, patch_entity[owners]


def video_rows(
    maps: list[tuple], random: np.random.Generator, grid: tuple, top_k: int, fps: int
) -> artifact.VideoRows:
    frames, regions = len(maps), len(maps[0][1])
    shape, patches = (frames, regions + 1), grid[0] * grid[1]
    member = np.zeros((*shape, patches), bool)
    entity = np.zeros((*shape, top_k), np.int32)
    score = np.sort(random.uniform(0.12, 0.24, (*shape, top_k)).astype(np.float32), -1)[..., ::-1].copy()
    for f, (region, owners) in enumerate(maps):
        member[f, region, np.arange(patches)] = True
        for r, best in enumerate([np.bincount(owners[region - 1]).argmax(), *owners]):
            others = random.permutation([e for e in range(len(ENTITIES)) if e != best])[: top_k - 1]
            entity[f, r] = [best, *others]
    score[..., 0] += random.uniform(0.03, 0.12, shape)
    count = frames * (regions + 1)
    xy = np.stack(np.meshgrid(np.arange(grid[1]), np.arange(grid[0]), indexing="xy"), -1).reshape(-1, 2) + 0.5
    size = np.maximum(member.sum(-1, keepdims=True), 1)
    centre = np.where(member.any(-1, keepdims=True), member @ xy / size / grid[::-1], 0.5)
    return artifact.VideoRows(
        view=np.zeros(count, np.int16),
        frame_index=np.repeat(np.arange(frames, dtype=np.int32), regions + 1),
        time_s=np.repeat((np.arange(frames) + 0.0) / fps, regions + 1),
        region_index=np.tile(np.arange(regions + 1, dtype=np.int16), frames),
        patches=member.sum(-1).astype(np.int16).ravel(),
        centroid_xy=centre.reshape(count, 2).astype(np.float32),
        box_xyxy=np.tile(np.array([0, 0, 1, 1], np.float32), (count, 1)),
        patch_map=np.packbits(member, axis=-1).reshape(count, -1),
        topk_entity=entity.reshape(count, top_k),
        topk_score=score.reshape(count, top_k),
        embedding=np.full((count, DIM), DIM**-0.5, np.float16),
        norm=np.ones(count, np.float32),
    )


def write_entities(path: Path) -> None:
    rows = [
        {
            "entity_id": i,
            "name": name,
            "source": "label" if name in OBJECTS else "expansion" if i < 40 else "body_part",
            "sense": f"{name}.n.01" if i % 3 else None,
            "gloss": f"what a person would call a {name} when seeing one" if i % 3 else None,
            "labels": [a.label for a in ACTIONS if a.object == name],
        }
        for i, name in enumerate(ENTITIES)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)


def build_world(
    folder: Path,
    videos: int,
    *,
    grid: tuple[int, int] = GRID,
    frames: int = FRAMES,
    regions: int = REGIONS,
    pixels: int = PIXELS,
    seed: int = 0,
) -> dict[str, Path]:
    """Videos, an alignments folder in two shards, predictions and explanations of a drawn world."""
    random = np.random.default_rng(seed)
    out, root = folder / "alignments", folder / "videos"
    out.mkdir(parents=True)
    write_entities(out / "entities.parquet")
    names = [f"{ACTIONS[i % len(ACTIONS)].label.replace(' ', '_')}/clip_{i:03d}.mp4" for i in range(videos)]
    order = sorted(range(videos), key=names.__getitem__)
    rows, explanations, predictions = {}, [], []
    for i in order:
        action = ACTIONS[i % len(ACTIONS)]
        clip = sample_clip(action, random)
        drawn = [render(clip, t, pixels) for t in np.linspace(0, 1, frames)]
        write_video(root / names[i], [frame.rgb for frame in drawn])
        rows[names[i]] = video_rows(
            [merged(f.entity, regions, grid, random) for f in drawn], random, grid, TOP_K, 4
        )
        predictions.append(_prediction(names[i], action.label, wrong=i % 4 == 3, random=random))
        explanations.append(_explanation(names[i], rows[names[i]], random))
    manifest = _write_alignments(
        out, rows, {names[i]: ACTIONS[i % len(ACTIONS)].label for i in order}, grid, regions, pixels
    )
    assert manifest["videos"] == videos
    pq.write_table(pa.Table.from_pylist(predictions), folder / "predictions.parquet")
    (folder / "explanations.json").write_text(json.dumps(explanations))
    return {
        "alignments": out,
        "predictions": folder / "predictions.parquet",
        "videos_root": root,
        "explanations": folder / "explanations.json",
    }


def _prediction(video_id: str, label: str, wrong: bool, random: np.random.Generator) -> dict:
    others = [a.label for a in ACTIONS if a.label != label]
    random.shuffle(others)
    top = [others[0], label, *others[1:4]] if wrong else [label, *others[:4]]
    probs = np.sort(random.dirichlet([6, 2, 1, 1, 1, 3]))[::-1][:5]
    return {
        "video_id": video_id,
        "label": label,
        "predicted": top[0],
        "correct": not wrong,
        "topk_label": top,
        "topk_prob": probs.astype(np.float32).tolist(),
    }


def _explanation(video_id: str, rows: artifact.VideoRows, random: np.random.Generator) -> dict:
    places: dict[int, list] = {}
    for frame, region, top in zip(rows.frame_index, rows.region_index, rows.topk_entity, strict=True):
        if region > 0:
            places.setdefault(int(top[0]), []).append([int(frame), int(region)])
    entities = [
        {
            "entity_id": e,
            "name": ENTITIES[e],
            "effect": (effect := float(random.normal(1.4 if e < len(OBJECTS) else 0.1, 0.6))),
            "effects": [effect, float(random.normal(0, 0.5))],
            "without": {"label": "nothing", "probability": 0.5, "kept": 0.25},
            "frames": sorted({f for f, _ in pairs}),
            "regions": pairs,
        }
        for e, pairs in places.items()
    ]
    return {
        "video_id": video_id,
        "predicted": "",
        "entities": entities,
        "entities_left_out": 0,
        "labels": ["one", "other"],
        "label_frame_effects": random.normal(0, 1, (2, FRAMES)).tolist(),
        "frames_without": [{"label": "nothing", "probability": 0.6, "kept": 0.2}] * FRAMES,
        "attention": None,
    }


def _write_alignments(out: Path, rows: dict, labels: dict, grid: tuple, regions: int, pixels: int) -> dict:
    half = len(rows) // 2
    shard_of = {name: int(i >= half) for i, name in enumerate(rows)}
    plan = [
        {"video_id": n, "label": labels[n], "split": "test", "bytes": 1, "shard": shard_of[n]} for n in rows
    ]
    artifact.write_table(out / "videos.parquet", pa.Table.from_pylist(plan, schema=artifact.VIDEOS_SCHEMA))
    frames = int(next(iter(rows.values())).frame_index.max()) + 1
    content = {
        "config": {
            "frames": frames,
            "top_k": TOP_K,
            "image_size": [pixels, pixels],
            "resize_mode": "shortest",
        },
        "inputs": {},
        "model": {
            "name": "local-dir:drawn",
            "pretrained": None,
            "weights_sha256": "0" * 64,
            "embed_dim": DIM,
            "random_weights": True,
        },
        "counts": {},
        "grid": list(grid),
        "patches": grid[0] * grid[1],
        "regions": regions,
        "dim": DIM,
        "frames": frames,
        "top_k": TOP_K,
        "num_shards": 2,
        "videos": len(rows),
        "corpus": {"fingerprint": "f" * 64, "entities": len(ENTITIES), "model": {}},
    }
    manifest = artifact.make_manifest(out, rows=len(rows), entities=len(ENTITIES), content=content)
    artifact.write_json(out / "manifest.json", manifest)
    for shard in (0, 1):
        with artifact.ShardWriter(out / artifact.shard_name(shard), artifact.schema_of(manifest)) as writer:
            for name in (name for name in rows if shard_of[name] == shard):
                writer.add(name, rows[name])
        artifact.write_json(out / artifact.marker_name(shard), {"shard": shard, "videos": writer.index})
    return manifest


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return build_world(tmp_path_factory.mktemp("world"), 6)


@pytest.fixture(scope="module")
def cards(world: dict[str, Path]) -> list[gather.VideoCard]:
    return gather.collect(**world)


@pytest.fixture(scope="module")
def entities(world: dict[str, Path]) -> list[Entity]:
    return gather.load_entities(world["alignments"])


def write(out: Path, cards, entities, **options) -> Path:
    given = {"title": "A title", "tables": [], "facts": {"command": "alt demo --out demo"}, **options}
    return report.write_report(out, cards=cards, entities=entities, **given)


class Page(html.parser.HTMLParser):
    """Tags, text outside of scripts, and scripts, as a browser's parser would cut them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text, self.scripts, self._stack = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._stack = [tag] if tag in ("script", "style") else []
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._stack = []

    def handle_data(self, data):
        if self._stack == ["script"]:
            self.scripts[-1] += data
        elif not self._stack:
            self.text.append(data)


def parse(path: Path) -> tuple[Page, dict]:
    page = Page(path.read_text("utf-8"))
    return page, json.loads(page.scripts[0])


# What is shown is what was computed.


def test_patches_of_every_card_are_those_of_the_artifact(world, cards):
    for card in cards:
        table = artifact.read_video(world["alignments"], card.video_id)
        seen = np.zeros((FRAMES, PATCHES), int)
        for row in table.to_pylist():
            bits = np.unpackbits(np.frombuffer(row["patch_map"], np.uint8), count=PATCHES)
            if row["region_index"]:
                np.testing.assert_array_equal(
                    card.patch_region[row["frame_index"]] == row["region_index"], bits
                )
                seen[row["frame_index"]] += bits
            assert card.topk_entity[row["frame_index"], row["region_index"]].tolist() == row["topk_entity"]
            np.testing.assert_array_equal(
                card.topk_score[row["frame_index"], row["region_index"]], row["topk_score"]
            )
        assert (seen == 1).all()
        assert sum(card.entity_patches().values()) == FRAMES * PATCHES


def test_predictions_explanations_and_times_come_from_their_files(world, cards):
    truth = {row["video_id"]: row for row in pq.read_table(world["predictions"]).to_pylist()}
    explained = {video["video_id"]: video for video in json.loads(world["explanations"].read_text())}
    assert {card.video_id for card in cards} == set(truth)
    for card in cards:
        row = truth[card.video_id]
        assert (card.label, card.predicted, card.correct) == (row["label"], row["predicted"], row["correct"])
        assert list(card.topk) == list(zip(row["topk_label"], row["topk_prob"], strict=True))
        assert card.split == "test"
        assert card.times_s == tuple(i / 4 for i in range(FRAMES))
        effects = {e["entity_id"]: e["effect"] for e in explained[card.video_id]["entities"]}
        assert {carrier.entity_id: carrier.effect for carrier in card.reasons.carriers} == effects
        assert [carrier.effect for carrier in card.reasons.carriers] == sorted(effects.values(), reverse=True)


def test_label_outside_of_the_label_set_comes_from_the_plan(tmp_path, world):
    row = pq.read_table(world["predictions"]).to_pylist()[0]
    unknown = pa.Table.from_pylist(
        [{**row, "label": None, "correct": None}], pq.read_schema(world["predictions"])
    )
    pq.write_table(unknown, tmp_path / "predictions.parquet")
    (card,) = gather.collect(**{**world, "predictions": tmp_path / "predictions.parquet"})
    assert (card.label, card.correct) == (row["label"], None)


def test_pictures_are_the_sampled_frames(world, cards):
    with av.open(str(world["videos_root"] / cards[0].video_id)) as container:
        originals = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    for shown, original in zip(cards[0].frames, originals, strict=True):
        assert shown.shape == (gather.DISPLAY, gather.DISPLAY, 3)
        small = crops.crop(shown, original.shape[:2])
        assert np.abs(small.astype(int) - original).mean() < 6


@pytest.mark.parametrize("shape", [(60, 100), (100, 60), (64, 64), (300, 411)])
def test_crop_is_what_open_clip_shows_the_model(shape):
    from open_clip.transform import image_transform
    from PIL import Image

    random = np.random.default_rng(1)
    coarse = random.integers(0, 255, (5, 7, 3), dtype=np.uint8)
    rgb = np.asarray(Image.fromarray(coarse).resize(shape[::-1], Image.Resampling.BICUBIC))
    transform = image_transform(64, is_train=False, mean=(0, 0, 0), std=(1, 1, 1))
    model_sees = transform(Image.fromarray(rgb)).permute(1, 2, 0).numpy() * 255
    assert np.abs(crops.crop(rgb, (64, 64)) - model_sees).mean() < 1.0


def test_other_resize_modes_keep_the_size():
    white = np.full((40, 80, 3), 255, np.uint8)
    letterboxed = crops.crop(white, (64, 64), "longest")
    assert letterboxed.shape == (64, 64, 3)
    assert (letterboxed[:16] == 0).all() and (letterboxed[16:48] == 255).all()
    assert (crops.crop(white, (64, 64), "squash") == 255).all()


def test_data_round_trip(tmp_path, cards, entities):
    _, data = parse(write(tmp_path / "report.html", cards, entities))
    assert data == json.loads(json.dumps(report.payload(cards, entities)))
    for card, shown in zip(cards, data["cards"], strict=True):
        assert (shown["id"], shown["label"], shown["predicted"]) == (
            card.video_id,
            card.label,
            card.predicted,
        )
        assert [frame["map"] for frame in shown["frames"]] == card.patch_region.tolist()
        for i, frame in enumerate(shown["frames"]):
            ids, scores = zip(*frame["top"], strict=True)
            np.testing.assert_array_equal(ids, card.topk_entity[i, :, : report.ALTERNATIVES])
            np.testing.assert_allclose(scores, card.topk_score[i, :, : report.ALTERNATIVES], atol=6e-4)
            assert frame["src"].startswith("data:image/webp;base64,")
        assert [c["entity"] for c in shown["carriers"]] == [c.entity_id for c in card.reasons.carriers]
    for key, shown in data["entities"].items():
        entity = entities[int(key)]
        assert (shown["name"], shown["sense"], shown["source"]) == (entity.name, entity.sense, entity.source)


def test_same_input_same_bytes(tmp_path, world, cards, entities):
    first = write(tmp_path / "a.html", cards, entities).read_bytes()
    again = write(tmp_path / "b.html", gather.collect(**world), entities).read_bytes()
    assert hashlib.sha256(first).digest() == hashlib.sha256(again).digest()


# Self-contained, escaped, within its budget.


def test_nothing_is_loaded_from_outside(tmp_path, cards, entities):
    page, _ = parse(write(tmp_path / "report.html", cards, entities))
    text = (tmp_path / "report.html").read_text("utf-8")
    addresses = [
        v for _, attributes in page.tags for k, v in attributes.items() if k in ("src", "href", "action")
    ]
    assert {address for address in addresses if not address.startswith("#")} == {"data:,"}
    assert not re.search(r"https?://", text)
    assert not re.search(r"@import|\bfetch\(|XMLHttpRequest|WebSocket|sendBeacon|\bimport\(", text)
    assert set(re.findall(r"url\(([^)]{4})", text)) <= {"#${t"}
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy and "img-src data:;" in policy


def test_everything_from_data_is_escaped(tmp_path, cards, entities):
    evil_card = replace(cards[0], label=EVIL, predicted=EVIL, video_id=EVIL, topk=((EVIL, 0.5),), note=EVIL)
    evil_entities = [replace(entity, name=EVIL, gloss=EVIL, labels=(EVIL,)) for entity in entities]
    path = write(
        tmp_path / "report.html",
        [evil_card],
        evil_entities,
        title=EVIL,
        notices=[EVIL],
        facts={EVIL: EVIL},
        tables=[Table(EVIL, [EVIL, "x"], [[EVIL, 1.0]], note=EVIL)],
    )
    plain, _ = parse(
        write(
            tmp_path / "plain.html", cards[:1], entities, notices=["!"], tables=[Table("t", ["a"], [["b"]])]
        )
    )
    page, data = parse(path)
    assert data["cards"][0]["label"] == EVIL
    assert len(page.scripts) == len(plain.scripts) == 2
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert "<script>alert" not in path.read_text("utf-8")
    assert "".join(page.text).count(EVIL) >= 7


def test_script_uses_no_way_to_make_markup_from_text():
    script = (report.HERE / "report.js").read_text("utf-8")
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", script
    )


def test_budget_is_kept_and_told(tmp_path, cards, entities):
    whole = write(tmp_path / "whole.html", cards, entities)
    size = whole.stat().st_size
    squeezed = write(tmp_path / "squeezed.html", cards, entities, max_bytes=size - 1)
    fewer = write(tmp_path / "fewer.html", cards, entities, max_bytes=size // 2)
    assert squeezed.stat().st_size < size and fewer.stat().st_size <= size // 2
    assert len(parse(squeezed)[1]["cards"]) == len(cards)
    shown = len(parse(fewer)[1]["cards"])
    assert 0 < shown < len(cards)
    assert "compressed harder" in squeezed.read_text("utf-8")
    assert f"{shown} of {len(cards)} videos are shown" in fewer.read_text("utf-8")
    assert "compressed harder" not in whole.read_text("utf-8")


def test_hopeless_budget_is_refused_and_leaves_nothing(tmp_path, cards, entities):
    with pytest.raises(ReportError, match="larger budget"):
        write(tmp_path / "report.html", cards, entities, max_bytes=100)
    assert list(tmp_path.iterdir()) == []


def test_report_without_any_video(tmp_path):
    _, data = parse(write(tmp_path / "new" / "report.html", [], [], facts={}))
    assert data["cards"] == [] and data["entities"] == {}


# Choosing videos.


def predictions_of(classes: dict[str, tuple[int, int]]) -> list[dict]:
    return [
        {"video_id": f"{label}/{correct}{i}", "label": label, "predicted": label, "correct": correct}
        for label, counts in classes.items()
        for correct, count in zip((True, False), counts, strict=True)
        for i in range(count)
    ]


def test_choice_mixes_classes_right_and_wrong():
    rows = predictions_of({"a": (20, 2), "b": (5, 20), "c": (30, 0), "d": (1, 0)})
    chosen = gather.choose(rows, 12)
    assert len(chosen) == 12
    assert {row["label"] for row in chosen[:4]} == set("abcd")
    wrong = [row for row in chosen if not row["correct"]]
    assert 3 <= len(wrong) <= 9 and {row["label"] for row in wrong} == {"a", "b"}


def test_choice_does_not_depend_on_the_order_of_the_file():
    rows = predictions_of({"a": (9, 3), "b": (8, 8)})
    assert gather.choose(rows, 7) == gather.choose(rows[::-1], 7)
    assert gather.choose(rows, 100) == rows


def test_named_videos_come_in_the_given_order(world):
    ids = pq.read_table(world["predictions"])["video_id"].to_pylist()
    chosen = gather.collect(**world, video_ids=[ids[4], ids[1]])
    assert [card.video_id for card in chosen] == [ids[4], ids[1]]


def test_choose_videos_names_what_collect_shows(world):
    shown = [card.video_id for card in gather.collect(**world, limit=3)]
    assert gather.choose_videos(world["predictions"], 3) == shown


# Inputs that do not fit.


def test_a_video_that_is_gone_keeps_its_card(tmp_path, world, entities):
    cards = gather.collect(**{**world, "videos_root": tmp_path}, limit=1)
    assert cards[0].frames == () and "does not exist" in cards[0].note
    _, data = parse(write(tmp_path / "report.html", cards, entities))
    assert data["cards"][0]["frames"][0]["src"] is None


def test_predictions_of_another_run_are_refused(tmp_path, world):
    rows = pq.read_table(world["predictions"]).to_pylist()
    rows[0]["video_id"] = "elsewhere.mp4"
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "other.parquet")
    with pytest.raises(ReportError, match=r"no regions of 'elsewhere.mp4'.*aligner status"):
        gather.collect(**{**world, "predictions": tmp_path / "other.parquet"})


def test_unknown_video_is_named(tmp_path, world):
    with pytest.raises(ReportError, match=r"no prediction for 'clip_0.mp4'.*did you mean 'clip_00"):
        rows = [
            {**row, "video_id": Path(row["video_id"]).name}
            for row in pq.read_table(world["predictions"]).to_pylist()
        ]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "short.parquet")
        gather.read_predictions(tmp_path / "short.parquet", ["clip_0.mp4"])


def test_wrong_files_are_explained(tmp_path, world):
    (tmp_path / "text.parquet").write_text("no table")
    with pytest.raises(ReportError, match="adapter predict"):
        gather.collect(**{**world, "predictions": tmp_path / "text.parquet"})
    pq.write_table(pa.table({"video_id": ["a"]}), tmp_path / "short.parquet")
    with pytest.raises(ReportError, match="lacks label, predicted"):
        gather.collect(**{**world, "predictions": tmp_path / "short.parquet"})
    (tmp_path / "explanations.json").write_text('{"a": 1}')
    with pytest.raises(ReportError, match="not a list of explanations"):
        gather.collect(**{**world, "explanations": tmp_path / "explanations.json"})


def test_overlapping_patches_are_noticed(tmp_path, world):
    folder = shutil.copytree(world["alignments"], tmp_path / "alignments")
    shard = folder / artifact.shard_name(0)
    table = pq.read_table(shard)
    maps = table["patch_map"].to_pylist()
    maps[2] = b"\xff" * len(maps[2])
    place = table.schema.get_field_index("patch_map")
    pq.write_table(
        table.set_column(place, table.schema.field(place), pa.array(maps, table.schema.field(place).type)),
        shard,
    )
    with pytest.raises(ReportError, match="aligner verify"):
        gather.collect(**{**world, "alignments": folder})


# Colours, tables, facts.


def _oklab(colours: np.ndarray) -> np.ndarray:
    to_cone = [[0.41222, 0.53633, 0.05145], [0.2119, 0.6807, 0.1074], [0.0883, 0.28172, 0.62998]]
    to_lab = [[0.21045, 0.79362, -0.00407], [1.978, -2.42859, 0.45059], [0.0259, 0.78277, -0.80868]]
    return np.cbrt(np.clip(colours, 0, 1) @ np.array(to_cone).T) @ np.array(to_lab).T


def test_palette_stays_apart_without_red_or_green_cones():
    # Linear-light dichromacy matrices of Machado et al. 2009, severity 1.
    protan = [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ]
    deutan = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]
    srgb = np.array([[int(tone[i : i + 2], 16) for i in (1, 3, 5)] for tone in report.PALETTE]) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    for sight in (np.eye(3), protan, deutan):
        lab = _oklab(linear @ np.array(sight).T)
        assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(lab, 2)) > 0.085


def test_slots_are_distinct_while_they_last_and_follow_the_hash():
    entities = [Entity(f"thing {i}", "label", None, None, ()) for i in range(30)]
    slots = report.entity_slots({i: float(i) for i in range(24)}, entities)
    assert sorted(slots.values()) == list(range(24))
    heaviest = report.entity_slots({23: 1.0}, entities)[23]
    assert slots[23] == heaviest == report.entity_slots({23: 5.0, 7: 1.0}, entities)[23]


def test_an_entity_keeps_one_colour_through_the_report(tmp_path, cards, entities):
    _, data = parse(write(tmp_path / "report.html", cards, entities))
    slots = [entity["slot"] for entity in data["entities"].values()]
    assert len(set(slots)) == len(slots)


def test_tables_show_numbers_and_gaps(tmp_path):
    table = Table(
        "Method by setting", ["method", "top-1", "p"], [["ours", 65.72, 0.5], ["theirs", None, 0.25]], "n = 3"
    )
    page, _ = parse(write(tmp_path / "report.html", [], [], tables=[table]))
    text = [piece.strip() for piece in page.text if piece.strip()]
    start = text.index("Method by setting")
    assert text[start + 1 : start + 11] == "method top-1 p ours 65.7 0.500 theirs – 0.250".split() + ["n = 3"]


def test_summary_counts_every_labelled_video(world):
    rows = pq.read_table(world["predictions"]).to_pylist()
    by_class = gather.class_table(rows)
    assert sum(int(row[2]) for row in by_class.rows) == len(rows)
    assert sum(int(row[1]) for row in by_class.rows) == sum(row["correct"] for row in rows)
    assert [row[3] for row in by_class.rows] == sorted(row[3] for row in by_class.rows)


# What goes wrong.


def rows_of(*triples: tuple[str, str, int]) -> list[dict]:
    return [
        {
            "video_id": f"{label}/{predicted}/{i}.mp4",
            "label": label,
            "predicted": predicted,
            "correct": label == predicted,
            "topk_label": [predicted, label],
            "topk_prob": [0.5 + i / 100, 0.25],
        }
        for label, predicted, count in triples
        for i in range(count)
    ]


def test_the_confusion_matrix_counts_every_video_once():
    rows = rows_of(("a", "a", 4), ("a", "b", 2), ("b", "b", 1), ("c", "a", 3))
    found = mistakes.confusions(rows)
    assert found.classes == ["a", "b", "c"]
    assert {(found.classes[r], found.classes[c]): n for r, c, n in found.counts} == {
        ("a", "a"): 4,
        ("a", "b"): 2,
        ("b", "b"): 1,
        ("c", "a"): 3,
    }
    assert (found.left_out, found.videos_left_out) == (0, 0)
    assert mistakes.confusions([{**row, "label": None} for row in rows]) is None


def test_a_large_confusion_matrix_keeps_what_is_confused_and_says_what_it_leaves_out():
    rows = rows_of(("a", "a", 9), ("b", "b", 9), ("c", "d", 3), ("d", "c", 1), ("b", "c", 1))
    found = mistakes.confusions(rows, most=2)
    assert found.classes == ["c", "d"]
    assert sum(n for _, _, n in found.counts) + found.videos_left_out == len(rows)
    assert found.left_out == 2


def test_the_gallery_shows_the_surest_of_the_most_confused(world):
    rows = pq.read_table(world["predictions"]).to_pylist()
    for row in rows:
        row.update(label="one", predicted="other", correct=False)
    found = gather.find_mistakes(world["alignments"], _written(rows, world), world["videos_root"])
    (pair,) = found.pairs
    assert (pair.label, pair.predicted, pair.count) == ("one", "other", len(rows))
    assert [shot.probability for shot in pair.shown] == sorted(
        (row["topk_prob"][0] for row in rows), reverse=True
    )[: mistakes.PER_PAIR]
    for shot in pair.shown:
        assert shot.frame.shape == (mistakes.THUMB, mistakes.THUMB, 3) and shot.frame.std() > 5


def _written(rows: list[dict], world: dict[str, Path]) -> Path:
    path = world["predictions"].with_name("changed.parquet")
    pq.write_table(pa.Table.from_pylist(rows, pq.read_schema(world["predictions"])), path)
    return path


# In a browser.


@pytest.fixture(scope="module")
def page_file(tmp_path_factory, world, cards, entities) -> Path:
    evil = replace(cards[0], label=EVIL, video_id=EVIL)
    found = gather.find_mistakes(world["alignments"], world["predictions"], world["videos_root"])
    actions = [
        Action("long.mp4", 0.0, 60.0, cards[0].predicted, 0.9, 6),
        Action("long.mp4", 60.0, 90.0, EVIL, 0.8, 3),
    ]
    out = tmp_path_factory.mktemp("page") / "report.html"
    table = Table("Results", ["model", "top-1"], [["alt", 88.9]])
    return write(
        out,
        [*cards, evil],
        entities,
        notices=["look"],
        mistakes=found,
        actions=actions,
        tables=[table],
        config="a: 1",
    )


def visible(page) -> list[str]:
    return page.locator(".card:visible").evaluate_all("cards => cards.map(card => card.dataset.video)")


def test_browser_draws_the_cards(open_page, page_file, cards):
    page = open_page(page_file, viewport={"width": 1200, "height": 1000})
    ids = [card.video_id for card in cards] + [EVIL]
    assert visible(page) == ids
    for at in range(len(ids)):
        page.locator(f"#video-{at}").scroll_into_view_if_needed()
    page.locator("#video-1 .pic img").first.wait_for()
    assert page.locator(".pic img").count() == FRAMES * len(ids)
    shown = sum(
        len(set(card.topk_entity[i, :, 0][card.patch_region[i]]))
        for card in [*cards, cards[0]]
        for i in range(FRAMES)
    )
    assert page.locator(".fill").count() == shown
    assert page.locator("[onerror]").count() == 0


def test_hover_says_what_a_region_is(open_page, page_file, cards, entities):
    page = open_page(page_file, viewport={"width": 1200, "height": 1000})
    picture = page.locator("#video-0 .pic").nth(1)
    picture.scroll_into_view_if_needed()
    box = picture.bounding_box()
    at = (box["x"] + 0.3 * box["width"], box["y"] + 0.6 * box["height"])
    page.mouse.move(*at)
    said = page.locator("#tip").inner_text()
    row, column = int(0.6 * GRID[0]), int(0.3 * GRID[1])
    region = cards[0].patch_region[1, row * GRID[1] + column]
    top, scores = cards[0].topk_entity[1, region], cards[0].topk_score[1, region]
    for entity, score in zip(top[: report.ALTERNATIVES], scores, strict=False):
        assert entities[entity].name in said and f"{score:.2f}" in said
    if entities[top[0]].gloss:
        assert entities[top[0]].gloss in said
    assert report.ORIGINS[entities[top[0]].source] in said
    assert f"region {region}: {(cards[0].patch_region[1] == region).sum()} of {PATCHES} patches" in said
    best = np.take_along_axis(cards[0].topk_entity[:, :, 0], cards[0].patch_region, 1)
    assert page.locator("#video-0 .fill.same").count() == sum(top[0] in frame for frame in best)
    page.mouse.move(0, 0)
    assert page.locator("#tip").is_hidden()
    page.mouse.click(*at)
    assert page.locator("#tip.pinned").is_visible()
    page.keyboard.press("Escape")
    assert page.locator("#tip").is_hidden() and page.locator(".focus").count() == 0


def test_filters_and_keys(open_page, page_file, cards):
    page = open_page(page_file, viewport={"width": 1200, "height": 1000})
    ids = [card.video_id for card in cards]
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.id") == "video-1"
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("document.activeElement.id") == "video-0"
    page.keyboard.press("o")
    assert page.locator("#cards").get_attribute("class") == "no-overlay"
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "text"
    page.keyboard.type("no such thing")
    assert visible(page) == [] and page.locator("#nothing").is_visible()
    page.locator("#reset").click()
    assert visible(page) == [*ids, EVIL]
    page.locator("#verdict").select_option("wrong")
    assert visible(page) == [card.video_id for card in cards if not card.correct]
    page.locator("#verdict").select_option("")
    page.locator("#class").select_option(cards[2].label)
    assert visible(page) == [card.video_id for card in cards if card.label == cards[2].label]
    page.locator("#class").select_option("")
    rare = min(
        set.union(*(set(card.entity_patches()) for card in cards)),
        key=lambda e: sum(e in c.entity_patches() for c in cards),
    )
    page.locator("#entity").select_option(str(rare))
    having = [card.video_id for card in cards if rare in card.entity_patches()]
    assert [video for video in visible(page) if video != EVIL] == having


def test_each_of_the_best_labels_says_what_carried_it_and_what_changes_without(open_page, page_file, cards):
    labels = (cards[0].predicted, cards[0].topk[1][0])
    reasons = replace(cards[0].reasons, labels=labels)
    card = replace(cards[0], reasons=reasons)
    entities = [Entity(name, "label", None, None, ()) for name in ENTITIES]
    path = write(page_file.with_name("reasons.html"), [card], entities)
    page = open_page(path, viewport={"width": 1200, "height": 1000})
    first = reasons.carriers[0]
    row = page.locator("#video-0 .carrier:not(.heads)").first
    assert ENTITIES[first.entity_id] in row.inner_text()
    assert f"{first.effect:+.2f}" in row.inner_text().replace("−", "-")
    assert "→ nothing 50%" in row.inner_text()
    page.locator("#video-0 .probs button.label").nth(1).click()
    assert labels[1] in page.locator("#video-0 .reasons h4").first.inner_text()
    shown = [float(text.replace("−", "-")) for text in page.locator(".carriers .value").all_inner_texts()]
    six = sorted(reasons.carriers, key=lambda carrier: -abs(carrier.effects[1]))[: len(shown)]
    assert shown == sorted((round(carrier.effects[1], 2) for carrier in six), reverse=True)
    moments = page.locator("#video-0 .moment")
    assert moments.count() == FRAMES
    moments.nth(2).hover()
    told = page.locator("#tip").inner_text().replace("−", "-")
    assert "frame 3 of" in told and f"{reasons.frame_effects[1][2]:+.2f}" in told and "nothing 60%" in told
    assert page.locator("#video-0 .frame.lit").count() == 1


def test_mistakes_lead_to_their_videos(open_page, page_file, cards):
    page = open_page(page_file, viewport={"width": 1200, "height": 1000})
    wrong = [card for card in cards if not card.correct]
    assert page.locator("#matrix .cell .miss").count() == len({(c.label, c.predicted) for c in wrong})
    cell = page.locator("#matrix .cell:has(.miss)").first
    cell.hover()
    assert "taken for" in page.locator("#tip").inner_text()
    cell.click()
    chosen = visible(page)
    assert chosen and set(chosen) <= {card.video_id for card in wrong}
    assert page.locator("#taken").is_visible()
    page.locator("button.shot").first.click()
    assert page.evaluate("document.activeElement.dataset.video") in {card.video_id for card in wrong}
    assert page.locator("#taken").is_hidden()
    assert page.locator(".by-class tbody tr").count() == len({card.label for card in cards})


def test_a_stretch_of_the_timeline_chooses_its_windows(open_page, page_file, cards):
    page = open_page(page_file, viewport={"width": 1200, "height": 1000})
    bars = page.locator(".stretch")
    assert bars.count() == 2
    widths = [bars.nth(at).bounding_box()["width"] for at in range(2)]
    assert widths[0] / widths[1] == pytest.approx(2, rel=0.02)
    bars.nth(0).hover()
    assert "0:00 – 1:00 · 90% · 6 windows" in page.locator("#tip").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_readable_on_a_phone(open_page, page_file, scheme):
    page = open_page(page_file, viewport={"width": 390, "height": 844}, has_touch=True, color_scheme=scheme)
    page.locator("#video-0").scroll_into_view_if_needed()
    page.locator("#video-0 .pic").first.tap()
    tip = page.locator("#tip.pinned").bounding_box()
    assert tip["x"] == 0 and tip["width"] == 390 and tip["y"] + tip["height"] == pytest.approx(844, abs=1)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    colours = page.evaluate(
        "(() => { const s = getComputedStyle(document.body); return [s.color, s.backgroundColor] })()"
    )
    ink, paper = (np.array([int(v) for v in re.findall(r"\d+", c)[:3]]) / 255 for c in colours)
    assert (paper.mean() < 0.2) == (scheme == "dark") and abs(ink - paper).mean() > 0.7
