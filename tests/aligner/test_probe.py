"""check-videos: what it says of a file is so, damage is placed, and a hang or crash costs one file."""

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from aligner import probe
from aligner.cli import app
from aligner.plan import make_plan
from aligner.probe import Probe, check_videos, probe_file


def facts(path: Path, deep: bool = True) -> Probe:
    return Probe(path.name, None, None, path.stat().st_size, **probe_file({"path": str(path)}, deep))


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize(
    ("name", "codec", "gop"), [("a.mp4", "libx264", 12), ("a.mkv", "libx264", 250), ("a.avi", "mpeg4", 7)]
)
def test_a_good_file_is_described(
    make_video: Callable, tmp_path: Path, name: str, codec: str, gop: int, deep: bool
) -> None:
    # FFmpeg writes sound into AVI in a way that makes gaps between the frames.
    sound = 0.0 if name == "a.avi" else 1.0
    found = facts(make_video(tmp_path / name, 50, codec, gop, b_frames=0, audio_s=sound), deep)
    assert found.ok and found.error is None and found.broken_at_s is None
    assert (found.codec, found.width, found.height) == (codec.replace("libx", "h"), 160, 64)
    assert (found.pixels, found.rotation, found.audio) == ("yuv420p", 0, bool(sound))
    assert (found.frames, found.gop, found.variable_rate, found.ordered) == (50, min(gop, 50), False, True)
    assert found.seconds == pytest.approx(2.0, abs=0.01) and found.fps == pytest.approx(25, rel=1e-3)
    assert name.removeprefix("a.") in found.container or found.container.startswith("matroska")


def test_a_variable_rate_is_noticed(make_video: Callable, tmp_path: Path) -> None:
    even = make_video(tmp_path / "even.mkv", 30, pts=[33 * n + n // 3 for n in range(30)])
    uneven = make_video(tmp_path / "uneven.mkv", 30, pts=[40 * n + 40 * (n > 15) for n in range(30)])
    assert facts(even).variable_rate is False and facts(uneven).variable_rate is True


@pytest.mark.shared
def test_a_rotated_clip(shared: Path) -> None:
    found = facts(shared / "videos" / "rotated_90.mov")
    assert (found.ok, found.rotation, found.width, found.height, found.frames) == (True, -90, 568, 320, 3)


def test_damage_is_placed_by_a_deep_probe_only(make_video: Callable, tmp_path: Path) -> None:
    import av

    path = make_video(tmp_path / "clip.mp4", 100, gop=10, b_frames=0)
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][60]
        position, size = packet.pos, packet.size
    data = bytearray(path.read_bytes())
    data[position : position + size] = bytes([255]) * size
    path.write_bytes(data)
    assert facts(path, deep=False).ok
    found = facts(path)
    assert (found.ok, found.stage, found.error) == (False, "decode", "broken")
    assert found.broken_at_s == pytest.approx(60 / 25, abs=0.1)
    assert found.codec == "h264" and found.frames == 100


@pytest.fixture
def mixed(make_video: Callable, make_audio: Callable, tmp_path: Path) -> Path:
    root = tmp_path / "videos"
    for name in ("run/good.mp4", "run/zwei\nzeilen.mp4", "jump/größe 日本.mp4"):
        make_video(root / name, 9)
    make_audio(root / "audio.mp4")
    (root / "empty.mp4").touch()
    (root / "text.mp4").write_text("no video\n" * 50)
    return root


def test_a_hang_and_a_crash_cost_their_files_only(
    mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "trap.py").write_text(
        "import os, signal\nfrom aligner import probe\n"
        "def probe_file(video, deep):\n"
        "    path = video['path']\n"
        "    if path.endswith('empty.mp4'):\n        signal.pause()\n"
        "    if path.endswith('text.mp4'):\n        os.abort()\n"
        "    return probe.probe_file(video, deep)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(probe, "PROBE", "trap:probe_file")
    found = {p.path: p for p in check_videos(make_plan(mixed, 1), deep=True, workers=2, limit_s=10.0)}
    assert (found["empty.mp4"].stage, found["empty.mp4"].error) == ("decode", "timeout")
    assert (found["text.mp4"].error, "SIGABRT" in found["text.mp4"].message) == ("crash", True)
    assert sorted(name for name, p in found.items() if p.ok) == [
        "jump/größe 日本.mp4",
        "run/good.mp4",
        "run/zwei\nzeilen.mp4",
    ]


@pytest.mark.parametrize("kind", ["csv", "parquet", "json"])
def test_command_report_and_exit_code(mixed: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / f"report.{kind}"
    done = CliRunner().invoke(app, ["check-videos", str(mixed), "--out", str(out), "--quiet"])
    assert done.exit_code == 2, done.output
    assert done.stdout.startswith("6 videos: 3 good") and "3 bad" in done.stdout
    assert "bad: audio.mp4: open (no_video): no video stream; streams found: audio" in done.stdout
    readers = {
        "csv": lambda: list(csv.DictReader(out.open(newline="", encoding="utf-8"))),
        "parquet": lambda: pq.read_table(out).to_pylist(),
        "json": lambda: json.loads(out.read_text()),
    }
    rows = {row["path"]: row for row in readers[kind]()}
    assert {name: row["error"] for name, row in rows.items() if row["error"]} == {
        "audio.mp4": "no_video",
        "empty.mp4": "empty",
        "text.mp4": "unreadable",
    }
    assert rows["run/zwei\nzeilen.mp4"]["label"] == "run"
    if kind != "json":
        plan = make_plan(out, 2, mixed)
        assert {item.video_id: item.seconds for item in plan.items}["run/good.mp4"] == pytest.approx(0.36)


def test_command_says_0_when_all_is_well_and_1_when_it_cannot_begin(clips: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["check-videos", str(clips), "--quiet", "--json"])
    assert done.exit_code == 0 and all(row["ok"] for row in json.loads(done.stdout))
    for arguments in ([str(tmp_path / "gone")], [str(clips), "--out", str(tmp_path / "r.xls")]):
        refused = CliRunner().invoke(app, ["check-videos", *arguments])
        assert refused.exit_code == 1 and refused.stderr.startswith("error: ")
