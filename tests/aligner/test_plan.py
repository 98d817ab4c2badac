"""Planning is a function of the inputs: folders, manifests, labels, shards, refusals."""

import json
import os
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aligner.config import AlignerError, ChangedSettings
from aligner.plan import Plan, VideoItem, balanced, grow, in_shards, make_plan, read_manifest


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


@pytest.mark.parametrize(
    ("folder", "split"),
    [
        ("Train", "train"),
        ("TRAINING", "train"),
        ("val", "val"),
        ("valid", "val"),
        ("Validation", "val"),
        ("test", "test"),
        ("testing", "test"),
    ],
)
def test_names_of_splits(tmp_path: Path, folder: str, split: str) -> None:
    plan = make_plan(touch(tmp_path, f"{folder}/run/1.mp4", "notes/about.txt"), 64)
    assert rows(plan) == [(f"{folder}/run/1.mp4", "run", split)]


def test_a_class_named_like_a_split_is_a_class(tmp_path: Path) -> None:
    plan = make_plan(touch(tmp_path, "test/1.mp4", "taste/2.mp4", "top.mp4"), 64)
    assert rows(plan) == [
        ("taste/2.mp4", "taste", None),
        ("test/1.mp4", "test", None),
        ("top.mp4", None, None),
    ]


def test_linked_folders_are_followed_but_never_in_circles(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere", "1.mp4", "deep/2.mp4")
    root = touch(tmp_path / "set", "run/3.mp4")
    (root / "jump").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (root / "hop").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "elsewhere" / "self").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (root / "run" / "up").symlink_to(root, target_is_directory=True)
    (root / "run" / "above").symlink_to(tmp_path, target_is_directory=True)
    plan = make_plan(root, 64)
    beside = [f"run/above/elsewhere/{name}" for name in ("1.mp4", "deep/2.mp4")]
    assert [item.video_id for item in plan.items] == [
        *("hop/1.mp4", "hop/deep/2.mp4", "jump/1.mp4", "jump/deep/2.mp4"),
        *("run/3.mp4", *beside),
    ]
    assert all(plan.path(item).is_file() for item in plan.items)
    assert plan.ignored == {"(link to a folder above)": 5}


@pytest.mark.parametrize("root", [None, ".", "vids", "absolute"])
@pytest.mark.parametrize("videos", ["vids", "vids/list.csv", "./vids/../vids"])
def test_relative_paths_find_their_videos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, videos: str, root: str | None
) -> None:
    touch(tmp_path / "vids", "run/1.mp4", "jump/2.mp4")
    place = {"absolute": tmp_path, None: None}.get(root, root and Path(root))
    before = "vids/" if root in (".", "absolute") else ""
    (tmp_path / "vids" / "list.csv").write_text(f"path\n{before}run/1.mp4\n{before}jump/2.mp4\n")
    monkeypatch.chdir(tmp_path)
    plan = make_plan(Path(videos), 64, place)
    assert [item.video_id for item in plan.items] == [f"{before}jump/2.mp4", f"{before}run/1.mp4"]
    assert plan.counts()["missing"] == 0 and all(item.bytes for item in plan.items)


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_manifests_of_every_kind_say_the_same(tmp_path: Path, kind: str) -> None:
    touch(tmp_path, "b.mp4", "sub/a.mp4")
    content = {
        "path": ["sub/a.mp4", "b.mp4", "gone.mp4"],
        "label": ["001", None, "x"],
        "split": ["train", "", None],
        "seconds": [1.5, None, None],
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
    assert [item.seconds for item in plan.items] == [None, None, 1.5]


def test_txt_manifest_and_root(tmp_path: Path) -> None:
    videos = touch(tmp_path / "videos", "a/1.mp4", "b/2.mp4")
    (tmp_path / "lists").mkdir()
    manifest = tmp_path / "lists" / "all.txt"
    manifest.write_text(f"a/1.mp4\n\n{videos / 'b' / '2.mp4'}\n./a/../a/3.mp4\n")
    plan = make_plan(manifest, 64, videos)
    assert [item.video_id for item in plan.items] == ["a/1.mp4", "a/3.mp4", "b/2.mp4"]
    with pytest.raises(AlignerError, match="outside the videos' root .* --videos-root"):
        make_plan(manifest, 64)


@pytest.mark.parametrize("escape", ["absolute", "../secret.mp4", "sub/../../secret.mp4"])
def test_a_manifest_cannot_leave_its_root_unless_allowed(tmp_path: Path, escape: str) -> None:
    touch(tmp_path, "secret.mp4", "root/sub/a.mp4")
    manifest = tmp_path / "root" / "list.txt"
    manifest.write_text(str(tmp_path / "secret.mp4") if escape == "absolute" else escape)
    with pytest.raises(AlignerError, match="lies outside the videos' root .* --allow-outside-root"):
        make_plan(manifest, 64)
    plan = make_plan(manifest, 64, allow_outside_root=True)
    assert [item.video_id for item in plan.items] == ["../secret.mp4"] and plan.missing == 0


def test_a_link_within_the_root_is_followed(tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/a.mp4", "root/b.mp4")
    (tmp_path / "root" / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "root" / "list.txt").write_text("link/a.mp4\n")
    assert make_plan(tmp_path / "root" / "list.txt", 64).missing == 0


def test_names_that_no_text_can_hold_are_counted(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "with space.mp4", "zwei\nzeilen.mp4", "größe-日本.mp4")
    (tmp_path / os.fsdecode(b"bad-\xff.mp4")).write_bytes(b"x")
    plan = make_plan(tmp_path, 64)
    assert len(plan.items) == 4 and plan.ignored == {"(name is not UTF-8)": 1}


def test_folder_with_a_root_above_keeps_labels(tmp_path: Path) -> None:
    plan = make_plan(touch(tmp_path / "set", "run/1.mp4"), 64, tmp_path)
    assert rows(plan) == [("set/run/1.mp4", "run", None)]
    assert plan.path(plan.items[0]).is_file()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.csv", "label\nx\n", "no column 'path'"),
        ("m.csv", "Path,label\na.mp4,x\n", "no column 'path' but 'Path', rename it to 'path'"),
        ("m.csv", "video,label\na.mp4,x\n", "no column 'path' but 'video', rename it to 'path'"),
        ("m.csv", "label,file\nx,a.mp4\n", "no column 'path' but 'file', rename it to 'path'"),
        ("m.csv", "filename\na.mp4\n", "no column 'path' but 'filename', rename it to 'path'"),
        ("m.csv", "video_path\na.mp4\n", "no column 'path' but 'video_path', rename it to 'path'"),
        ("m.jsonl", '{"path": ["a.mp4", "b.mp4"]}', "row 1 has a list where one text was expected"),
        ("m.csv", "path,label\n,x\n", "row 1 has no path"),
        ("m.csv", "path\na\0b.mp4\n", "row 1 has no path, or one that no file can have"),
        ("m.csv", "path,seconds\na.mp4,long\n", "row 1 has seconds 'long', expected a duration"),
        ("m.csv", "path,seconds\na.mp4,-1\n", "row 1 has seconds '-1', expected a duration"),
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


def test_other_columns_are_ignored_and_reported(tmp_path: Path) -> None:
    (touch(tmp_path, "a.mp4") / "m.csv").write_text("duration,path,lable,split\n3,a.mp4,x,val\n")
    plan = make_plan(tmp_path / "m.csv", 64)
    assert rows(plan) == [("a.mp4", None, "val")]
    assert plan.counts()["ignored_columns"] == ["duration", "lable"]
    assert plan.warnings() == ["ignored columns of the manifest: 'duration', 'lable' (did you mean 'label'?)"]


def test_all_missing_is_suspicious_one_missing_is_not(tmp_path: Path) -> None:
    (tmp_path / "m.txt").write_text("set/a.mp4\nset/b.mp4\n")
    wrong = make_plan(tmp_path / "m.txt", 64)
    assert wrong.counts()["missing"] == 2
    assert [text for text in wrong.warnings() if "ALL 2 VIDEOS ARE MISSING" in text and "set/a.mp4" in text]
    touch(tmp_path, "set/a.mp4")
    assert make_plan(tmp_path / "m.txt", 64).warnings() == []


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(AlignerError, match="does not exist"):
        make_plan(tmp_path / "gone", 64)
    with pytest.raises(AlignerError, match="no videos in .* extensions looked for: .*.mp4"):
        make_plan(touch(tmp_path, "a.txt"), 64)


def video(place: int, size: int, seconds: float | None = None, shard: int = 0) -> VideoItem:
    return VideoItem(f"{place:04d}.mp4", None, None, size, shard, seconds)


def planned(items: list[VideoItem], per_shard: int) -> Plan:
    return Plan(Path("."), *in_shards(items, per_shard))


SIZES = st.lists(st.integers(0, 10**9), min_size=1, max_size=200)


@given(sizes=SIZES, per_shard=st.integers(1, 70))
def test_every_video_is_in_exactly_one_shard_and_shards_are_balanced(
    sizes: list[int], per_shard: int
) -> None:
    items = [video(place, size) for place, size in enumerate(sizes)]
    plan = planned(items, per_shard)
    shards = [plan.shard(shard) for shard in range(plan.num_shards)]
    assert sorted(item.video_id for shard in shards for item in shard) == [item.video_id for item in items]
    assert all(item.shard == number for number, shard in enumerate(shards) for item in shard)
    assert [item.video_id for item in plan.items] == [item.video_id for item in items]
    numbers, loads = [len(s) for s in shards], [sum(item.bytes for item in s) for s in shards]
    assert plan.num_shards == -(-len(sizes) // per_shard)
    assert max(numbers) <= per_shard and max(numbers) - min(numbers) <= 1
    assert max(loads) - min(loads) <= max(sizes)
    assert all(
        [item.video_id for item in shard] == sorted(item.video_id for item in shard) for shard in shards
    )


@given(
    videos=st.lists(st.tuples(st.floats(0.1, 1e4), st.integers(1, 10**6)), min_size=1, max_size=80),
    per_shard=st.integers(1, 30),
)
def test_durations_win_over_bytes(videos: list[tuple[float, int]], per_shard: int) -> None:
    items = [video(place, size, seconds) for place, (seconds, size) in enumerate(videos)]
    plan = planned(items, per_shard)
    loads = [sum(item.seconds for item in plan.shard(shard)) for shard in range(plan.num_shards)]
    assert max(loads) - min(loads) <= max(seconds for seconds, _ in videos) * (1 + 1e-9)


def test_bytes_stand_in_for_unknown_durations_at_the_average_rate() -> None:
    """1000 bytes a second: the file of 9000 bytes weighs as much as 9 s, not as 9000."""
    plan = planned([video(0, 9000), video(1, 10_000, 10.0), video(2, 1000, 1.0), video(3, 0)], 2)
    assert [item.shard for item in plan.items] == [1, 0, 1, 0]


@given(old=SIZES, new=SIZES, per_shard=st.integers(1, 70))
def test_a_plan_grows_without_touching_what_it_had(old: list[int], new: list[int], per_shard: int) -> None:
    items = [video(place, size) for place, size in enumerate(old)]
    # Every other new video sorts before the old ones.
    more = [video(n, size)._replace(video_id=f"{'az'[n % 2]}/{n}.mp4") for n, size in enumerate(new)]
    before = planned(items, per_shard)
    found = planned(sorted([*items, *more], key=lambda item: item.video_id), per_shard)
    after = grow(found, before, per_shard)
    assert [after.shard(shard) for shard in range(before.num_shards)] == [
        before.shard(shard) for shard in range(before.num_shards)
    ]
    assert {item.video_id for item in after.items} == {item.video_id for item in found.items}
    assert list(after.items) == sorted(after.items, key=lambda item: item.video_id)
    added = [after.shard(shard) for shard in range(before.num_shards, after.num_shards)]
    assert sum(map(len, added)) == len(new) == after.grown and max(map(len, added)) <= per_shard
    assert grow(found, after, per_shard).items == after.items


def test_removed_and_changed_videos_are_refused_by_name_or_allowed() -> None:
    before = planned([video(place, 5) for place in range(4)], 1)
    found = planned([video(0, 5), video(2, 6), video(3, 5, 9.0), video(4, 5)], 1)
    with pytest.raises(ChangedSettings, match=r"removed: 0001.mp4\n.*size.*: 0002.mp4\n.*--allow-changed"):
        grow(found, before, 1)
    after = grow(found, before, 1, allow_changed=True)
    shards = {item.video_id: item.shard for item in after.items}
    had = {item.video_id: item.shard for item in before.items}
    assert shards == {**{name: had[name] for name in shards if name in had}, "0004.mp4": 4}
    assert after.shard(had["0001.mp4"]) == [] and after.num_shards == 5


@pytest.mark.slow
def test_a_million_videos_are_planned_quickly() -> None:
    start = time.perf_counter()
    shards = balanced([float(place * 7919 % 10_007) for place in range(1_000_000)], 15_625)
    assert time.perf_counter() - start < 30
    assert max(Counter(shards).values()) == 64


def test_order_of_the_manifest_does_not_matter(tmp_path: Path) -> None:
    names = [f"{i}.mp4" for i in range(9)]
    for name, order in [("a.txt", names), ("b.txt", names[::-1])]:
        (tmp_path / name).write_text("\n".join(order))
    assert make_plan(tmp_path / "a.txt", 4).items == make_plan(tmp_path / "b.txt", 4).items


@pytest.mark.shared
def test_shared_manifest(shared: Path) -> None:
    found = {row.path: row.label for row in read_manifest(shared / "videos" / "manifest.csv")[0]}
    assert found["arm_wrestling.mp4"] == "arm wrestling" and found["city_bikes.mp4"] is None
    assert len(make_plan(shared / "videos", 64).items) == 6
    assert json.dumps(make_plan(shared / "videos" / "manifest.csv", 64).counts()["ignored"]) == "{}"
