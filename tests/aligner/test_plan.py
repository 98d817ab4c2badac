"""Planning is a function of the inputs: folders, manifests, labels, shards, refusals."""

import json
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aligner.config import AlignerError
from aligner.plan import Plan, VideoItem, make_plan, read_manifest


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x" * len(name))
    return root


def rows(plan: Plan) -> list[tuple]:
    return [(item.video_id, item.label, item.split) for item in plan.items]


def test_folder_gives_labels_and_splits(tmp_path: Path) -> None:
    names = (
        "b/2.MP4",
        "b/1.mp4",
        "a/x/3.avi",
        "top.mkv",
        "notes.txt",
        "b/.hidden.mp4",
        ".trash/4.mp4",
        "README",
    )
    plan = make_plan(touch(tmp_path, *names), 64)
    assert rows(plan) == [
        ("a/x/3.avi", "a", None),
        ("b/1.mp4", "b", None),
        ("b/2.MP4", "b", None),
        ("top.mkv", None, None),
    ]
    assert plan.ignored == {"(none)": 1, ".mp4": 2, ".txt": 1}
    assert plan.items[0].bytes == len("a/x/3.avi")


def test_folder_of_splits(tmp_path: Path) -> None:
    plan = make_plan(touch(tmp_path, "train/run/1.mp4", "val/jump/2.mp4", "test/3.mp4"), 64)
    assert rows(plan) == [
        ("test/3.mp4", None, "test"),
        ("train/run/1.mp4", "run", "train"),
        ("val/jump/2.mp4", "jump", "val"),
    ]


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_manifests_of_every_kind_say_the_same(tmp_path: Path, kind: str) -> None:
    touch(tmp_path, "b.mp4", "sub/a.mp4")
    content = {
        "path": ["sub/a.mp4", "b.mp4", "gone.mp4"],
        "label": ["001", None, "x"],
        "split": ["train", "", None],
    }
    frame, path = pd.DataFrame(content), tmp_path / f"list.{kind}"
    {
        "csv": lambda: frame.to_csv(path, index=False),
        "parquet": lambda: frame.to_parquet(path),
        "jsonl": lambda: path.write_text(frame.to_json(orient="records", lines=True)),
    }[kind]()
    plan = make_plan(path, 64)
    assert rows(plan) == [("b.mp4", None, None), ("gone.mp4", "x", None), ("sub/a.mp4", "001", "train")]
    assert plan.counts()["missing"] == 1


def test_txt_manifest_and_root(tmp_path: Path) -> None:
    videos = touch(tmp_path / "videos", "a/1.mp4", "b/2.mp4")
    (tmp_path / "lists").mkdir()
    manifest = tmp_path / "lists" / "all.txt"
    manifest.write_text(f"a/1.mp4\n\n{videos / 'b' / '2.mp4'}\n./a/../a/3.mp4\n")
    plan = make_plan(manifest, 64, videos)
    assert [item.video_id for item in plan.items] == ["a/1.mp4", "a/3.mp4", "b/2.mp4"]
    with pytest.raises(AlignerError, match="outside the videos' root .* --videos-root"):
        make_plan(manifest, 64)


def test_folder_with_a_root_above_keeps_labels(tmp_path: Path) -> None:
    plan = make_plan(touch(tmp_path / "set", "run/1.mp4"), 64, tmp_path)
    assert rows(plan) == [("set/run/1.mp4", "run", None)]
    assert plan.path(plan.items[0]).is_file()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.csv", "path,lable\na.mp4,x\n", "unknown column 'lable' .did you mean 'label'"),
        ("m.csv", "label\nx\n", "no column 'path'"),
        ("m.csv", "path,label\n,x\n", "row 1 has no path"),
        ("m.csv", "path\na.mp4\n./a.mp4\n", "1 videos more than once, the first is a.mp4"),
        ("m.csv", "", "cannot be read"),
        ("m.csv", "path\n", "no videos in"),
        ("m.yaml", "a: 1", "expected one of .csv, .parquet, .jsonl, .txt"),
        ("m.jsonl", "{broken", "cannot be read"),
        ("m.parquet", "not parquet", "cannot be read"),
    ],
)
def test_bad_manifests(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(AlignerError, match=message):
        make_plan(tmp_path / name, 64)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(AlignerError, match="does not exist"):
        make_plan(tmp_path / "gone", 64)
    with pytest.raises(AlignerError, match="no videos in .* extensions looked for: .*.mp4"):
        make_plan(touch(tmp_path, "a.txt"), 64)


@given(count=st.integers(1, 200), per_shard=st.integers(1, 70))
def test_every_video_is_in_exactly_one_contiguous_shard(count: int, per_shard: int) -> None:
    items = tuple(VideoItem(f"{i:04d}.mp4", None, None, 0, i // per_shard) for i in range(count))
    plan = Plan(Path("."), items)
    together = [item for shard in range(plan.num_shards) for item in plan.shard(shard)]
    assert together == list(items)
    assert all(len(plan.shard(shard)) == per_shard for shard in range(plan.num_shards - 1))


def test_order_of_the_manifest_does_not_matter(tmp_path: Path) -> None:
    names = [f"{i}.mp4" for i in range(9)]
    for name, order in [("a.txt", names), ("b.txt", names[::-1])]:
        (tmp_path / name).write_text("\n".join(order))
    assert make_plan(tmp_path / "a.txt", 4).items == make_plan(tmp_path / "b.txt", 4).items


@pytest.mark.shared
def test_shared_manifest(shared: Path) -> None:
    found = dict((path, label) for path, label, _ in read_manifest(shared / "videos" / "manifest.csv"))
    assert found["arm_wrestling.mp4"] == "arm wrestling" and found["city_bikes.mp4"] is None
    assert len(make_plan(shared / "videos", 64).items) == 6
    assert json.dumps(make_plan(shared / "videos" / "manifest.csv", 64).counts()["ignored"]) == "{}"
