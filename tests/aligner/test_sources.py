"""Tars, folders of pictures and stores give the frames that the plain files give, and nothing leaks."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aligner import artifact, run, sources
from aligner.config import AlignerError, ChangedSettings
from aligner.decode import DecodeError, sample_frames
from aligner.plan import make_plan
from aligner.probe import check_videos
from aligner.sources import Source, Window, is_frame_folder, pictures_of, shown
from aligner.verify import verify

SECRET = "hunter2"


def write_tar(path: Path, members: dict[str, bytes | tarfile.TarInfo]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def link(name: str, target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


def same_frames(a: list, b: list) -> bool:
    return all(
        one.time_s == two.time_s and np.array_equal(one.rgb, two.rgb) for one, two in zip(a, b, strict=True)
    )


@pytest.fixture
def tars(make_video: Callable, tmp_path: Path) -> Path:
    """Two tars in a folder, and the same clips as plain files beside that folder."""
    clips = [make_video(tmp_path / "plain" / f"{n}.mp4", 20 + n, seed=n).read_bytes() for n in range(4)]
    write_tar(
        tmp_path / "set" / "train" / "000.tar",
        {
            "0.mp4": clips[0],
            "0.cls": b"7\n",
            "sub/1.mp4": clips[1],
            "sub/1.json": b'{"label": "jump", "x": 1}',
        },
    )
    write_tar(
        tmp_path / "set" / "val" / "001.tar",
        {
            "2.txt": "größer".encode(),
            "2.mp4": clips[2],
            "3.v2.mp4": clips[3],
            "3.json": b"{broken",
            "../escape.mp4": clips[0],
            "/absolute.mp4": clips[0],
            "a/../b.mp4": clips[0],
            "link.mp4": link("link.mp4", "/etc/passwd"),
            "notes.md": b"x",
            ".hidden": b"x",
        },
    )
    return tmp_path / "set"


def test_a_folder_of_tars(tars: Path, tmp_path: Path) -> None:
    plan = make_plan(tars, 64)
    assert [(item.video_id, item.label, item.split) for item in plan.items] == [
        ("train/000.tar/0.mp4", "7", "train"),
        ("train/000.tar/sub/1.mp4", "jump", "train"),
        ("val/001.tar/2.mp4", "größer", "val"),
        ("val/001.tar/3.v2.mp4", None, "val"),
    ]
    assert plan.ignored == {
        "(json in a tar that cannot be read)": 1,
        "(no plain file in a tar)": 1,
        "(none)": 1,
        "(odd name in a tar)": 3,
        ".md": 1,
    }
    assert plan.missing == 0
    for number, item in enumerate(plan.items):
        plain = tmp_path / "plain" / f"{number}.mp4"
        assert item.bytes == plain.stat().st_size
        assert same_frames(sample_frames(plan.path(item), 5), sample_frames(plain, 5))


def test_a_single_tar_and_a_pattern_of_tars(tars: Path) -> None:
    assert [item.video_id for item in make_plan(tars / "train" / "000.tar", 64).items] == [
        "000.tar/0.mp4",
        "000.tar/sub/1.mp4",
    ]
    plan = make_plan(str(tars / "*" / "*.tar"), 64, tars)
    assert [item.video_id for item in plan.items] == [item.video_id for item in make_plan(tars, 64).items]


def test_a_cut_tar_keeps_what_is_whole(tars: Path) -> None:
    path = tars / "train" / "000.tar"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    (tars / "val" / "001.tar").write_bytes(b"no tar at all" * 100)
    plan = make_plan(tars, 64)
    assert (
        plan.items[0].video_id == "train/000.tar/0.mp4" and plan.ignored["(tar that cannot be read on)"] >= 1
    )
    for item in plan.items[1:]:
        with pytest.raises(DecodeError):
            sample_frames(plan.path(item), 3)


def test_a_run_over_tars_and_pictures_equals_one_over_files(
    settings: Callable, tars: Path, tmp_path: Path
) -> None:
    run.run(settings(videos=tars, out=tmp_path / "tars"))
    run.run(settings(videos=tmp_path / "plain", out=tmp_path / "files"))
    assert verify(tmp_path / "tars") == []
    columns = ["time_s", "topk_entity", "embedding", "patch_map"]
    for tarred, plain in (("train/000.tar/0.mp4", "0.mp4"), ("val/001.tar/2.mp4", "2.mp4")):
        a, b = artifact.read_video(tmp_path / "tars", tarred), artifact.read_video(tmp_path / "files", plain)
        assert a.select(columns).equals(b.select(columns))
    # A tar that is packed anew moves its members: that is another plan, and it says so.
    path = tars / "train" / "000.tar"
    with tarfile.open(path) as tar:
        members = {m.name: tar.extractfile(m).read() for m in tar}
    write_tar(path, {"new.txt": b"", **members})
    with pytest.raises(ChangedSettings, match="2 changed"):
        run.prepare(settings(videos=tars, out=tmp_path / "tars"))


def write_pictures(folder: Path, count: int, number_in: Callable | None = None) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (40, 30), (number, 0, 255)).save(folder / f"{number + 1}.png")
    return folder


def test_folders_of_pictures_are_videos_in_natural_order(settings: Callable, tmp_path: Path) -> None:
    write_pictures(tmp_path / "set" / "run" / "clip", 24)
    write_pictures(tmp_path / "set" / "jump" / "other", 2)
    (tmp_path / "set" / "jump" / "cover.jpg").write_bytes(b"no frame")
    plan = make_plan(tmp_path / "set", 64, frame_rate=12.0)
    assert [(i.video_id, i.label) for i in plan.items] == [("jump/other", "jump"), ("run/clip", "run")]
    assert plan.ignored == {".jpg": 1} and plan.missing == 0 and plan.items[0].bytes > 0
    frames = sample_frames(plan.path(plan.items[1]), 4)
    assert [frame.rgb[0, 0, 0] for frame in frames] == [3, 9, 15, 21]
    assert [frame.time_s for frame in frames] == [0.25, 0.75, 1.25, 1.75]
    assert [len(sample_frames(plan.path(plan.items[0]), 5))] == [5]
    found = list(check_videos(plan, deep=True, workers=1, limit_s=60.0))
    assert [(p.ok, p.frames, p.seconds) for p in found] == [(True, 2, 2 / 12), (True, 24, 2.0)]
    config = settings(videos=tmp_path / "set")
    assert run.run(config).ok == 2
    with pytest.raises(ChangedSettings, match="config.frame_rate: got 12.0, expected 30.0"):
        run.prepare(settings(videos=tmp_path / "set", frame_rate=12.0))


def test_a_broken_picture_fails_its_video(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "clip", 4)
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:40])
    with pytest.raises(DecodeError, match="picture 3.png cannot be read") as failure:
        sample_frames(Source(str(folder), frame_rate=30.0), 4)
    assert (failure.value.stage, failure.value.reason) == ("decode", "broken")


def test_what_counts_as_frames() -> None:
    assert pictures_of(["10.jpg", "9.jpg", "f2.png", "f10.png", ".1.jpg", "a.txt"]) == [
        "9.jpg",
        "10.jpg",
        "f2.png",
        "f10.png",
    ]
    assert is_frame_folder(["img_0001.jpg", "img_0002.jpg", "notes.txt"])
    assert not is_frame_folder(["1.jpg"]) and not is_frame_folder(["1.jpg", "cover.jpg"])


def test_a_window_is_a_file_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(range(100)))
    with io.BufferedReader(Window(open(tmp_path / "f", "rb"), 10, 20)) as window:
        assert window.read() == bytes(range(10, 30))
        assert window.seek(-5, io.SEEK_END) == 15 and window.read(50) == bytes(range(25, 30))
        assert window.seek(3) == 3 and window.read(2) == bytes([13, 14])
        assert window.seek(500) == 500 and window.read() == b""


@pytest.fixture
def store(make_video: Callable, tmp_path: Path) -> str:
    """Two clips in a store in memory."""
    fsspec = pytest.importorskip("fsspec")
    system = fsspec.filesystem("memory")
    for number, name in enumerate(("run/a.mp4", "jump/b.mp4")):
        path = make_video(tmp_path / "plain" / name, 20 + number, seed=number)
        system.pipe(f"/bucket/set/{name}", path.read_bytes())
    system.pipe("/bucket/set/notes.txt", b"x")
    return "memory://bucket/set"


def test_a_store_gives_what_files_give(store: str, tmp_path: Path) -> None:
    plan, plain = make_plan(store, 64), make_plan(tmp_path / "plain", 64)
    assert plan.items == plain.items and plan.ignored == {".txt": 1} and plan.missing == 0
    for item in plan.items:
        assert same_frames(sample_frames(plan.path(item), 4), sample_frames(plain.path(item), 4))
    assert make_plan(f"file://{tmp_path / 'plain'}", 64).items == plain.items


def test_a_manifest_over_a_store(store: str, tmp_path: Path) -> None:
    import fsspec

    # This store knows no queries: they are part of a name.
    system = fsspec.filesystem("memory")
    system.pipe(f"/bucket/set/jump/b.mp4?sig={SECRET}", system.cat("/bucket/set/jump/b.mp4"))
    manifest = tmp_path / "list.csv"
    manifest.write_text(f"path,label\nrun/a.mp4,x\n{store}/jump/b.mp4?sig={SECRET},y\ngone.mp4,z\n")
    plan = make_plan(manifest, 64, store)
    assert [item.video_id for item in plan.items] == ["gone.mp4", "jump/b.mp4", "run/a.mp4"]
    assert [item.bytes > 0 for item in plan.items][0] is False and plan.missing == 1
    with pytest.raises(DecodeError) as failure:
        sample_frames(plan.path(plan.items[0]), 2)
    assert failure.value.reason == "missing"
    for escape in ("../x.mp4", "/etc/x.mp4", "memory://other/x.mp4", f"{store}/../x.mp4"):
        manifest.write_text(f"path\n{escape}\n")
        with pytest.raises(AlignerError, match="outside the videos' root memory://bucket/set; give"):
            make_plan(manifest, 64, store)


def test_secrets_of_an_address_go_nowhere(store: str, settings: Callable, tmp_path: Path) -> None:
    manifest = tmp_path / "list.txt"
    manifest.write_text(f"{store}/run/a.mp4?X-Signature={SECRET}\nmemory://me:{SECRET}@host/gone.mp4\n")
    with pytest.raises(AlignerError) as refusal:
        make_plan(manifest, 64)
    assert SECRET not in str(refusal.value)
    out = tmp_path / "out"
    report = run.run(settings(videos=manifest, allow_outside_root=True, out=out))
    assert report.planned == 2 and SECRET not in json.dumps(report.to_dict())
    assert not [path.name for path in out.iterdir() if SECRET.encode() in path.read_bytes()]
    assert artifact.read_videos(out)["video_id"].to_pylist() == [
        "memory://bucket/set/run/a.mp4",
        "memory://host/gone.mp4",
    ]
    assert SECRET not in repr(make_plan(manifest, 64, allow_outside_root=True))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (f"s3://me:{SECRET}@bucket/x?sig={SECRET}", "s3:// needs packages .* pip install fsspec s3fs"),
        (f"gs://me:{SECRET}@bucket/x", "gs:// needs packages .* pip install fsspec gcsfs"),
        (f"nosuch://me:{SECRET}@bucket/x", "nosuch://bucket/x cannot be opened"),
    ],
)
def test_a_protocol_without_its_package(url: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fsspec")
    for package in ("s3fs", "gcsfs"):
        monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(AlignerError, match=message) as refusal:
        make_plan(url, 64)
    assert SECRET not in str(refusal.value)


def test_no_fsspec_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "fsspec.core", None)
    with pytest.raises(AlignerError, match="pip install fsspec s3fs"):
        sources.file_system("s3://bucket/x")


def test_shown() -> None:
    assert (
        shown(f"https://me:{SECRET}@host:8080/a/b.mp4?sig={SECRET}#{SECRET}") == "https://host:8080/a/b.mp4"
    )
    assert shown("/plain/path?.mp4") == "/plain/path?.mp4"
