"""Decoding processes that crash, hang or are killed: one video each, told by name, and never the run."""

import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from aligner import artifact, children, decode, run
from aligner.config import AlignerError
from aligner.decoding import Clip, Decoders, NoClip
from aligner.pixels import Cutter
from aligner.verify import status, verify
from aligner.views import Sampling

CRASHING = runpy.run_path(str(Path(__file__).with_name("kill_points.py")))["CRASHING"]
CUTTER = Cutter((32, 32))


@pytest.fixture
def crashing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoders do what the names of the videos say."""
    monkeypatch.setattr(children, "START", CRASHING)


def decoded(
    videos: list[Path | NoClip], count: int = 2, seconds: float = 60.0, workers: int = 2
) -> list[Clip | NoClip]:
    with Decoders(workers, CUTTER, seconds) as decoders:
        return [future.result() for _, future in decoders.ahead(enumerate(videos), Sampling(count), 3)]


def test_clips_are_those_of_the_decoder_in_order(make_video: Callable, tmp_path: Path) -> None:
    videos = [make_video(tmp_path / f"{place} ü.mp4", frames=9 + place, seed=place) for place in range(6)]
    clips = decoded(videos, 3)
    for video, clip in zip(videos, clips, strict=True):
        frames = decode.sample_frames(video, 3)
        np.testing.assert_array_equal(clip.crops, [CUTTER(frame.rgb) for frame in frames])
        assert clip.times_s.tolist() == [frame.time_s for frame in frames] and clip.seconds > 0


def test_bad_files_are_failures_with_stage_class_and_message(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    known = NoClip("decode", "timeout", "known from before")
    text, missing, passed_on = decoded([tmp_path / "text.mp4", tmp_path / "gone.mp4", known])
    assert (text.stage, text.error) == ("open", "unreadable") and "not a readable media file" in text.message
    assert (missing.stage, missing.error) == ("open", "missing")
    assert passed_on is known


@pytest.mark.parametrize(
    ("name", "how"), [("segfault", "SIGSEGV"), ("abort", "SIGABRT"), ("killed", "SIGKILL"), ("hang", None)]
)
def test_a_decoder_that_dies_costs_one_video(
    crashing: None, make_video: Callable, tmp_path: Path, name: str, how: str | None
) -> None:
    names = ["a.mp4", f"{name}.mp4", "b.mp4", "c.mp4"]
    videos = [make_video(tmp_path / name, frames=6) for name in names]
    found = decoded(videos, seconds=2.0 if name == "hang" else 60.0)
    assert [isinstance(clip, Clip) for clip in found] == [True, False, True, True]
    bad = found[1]
    if how:
        assert (bad.stage, bad.error) == ("decode", "crashed") and how in bad.message
    else:
        assert (bad.stage, bad.error) == ("decode", "timeout") and "within 2 s" in bad.message


def test_a_decoder_killed_once_costs_nothing(crashing: None, make_video: Callable, tmp_path: Path) -> None:
    """The kernel may have killed it for what another process ate."""
    assert isinstance(decoded([make_video(tmp_path / "once.mp4", frames=6)])[0], Clip)
    assert (tmp_path / "once.tried").exists()


def test_decoders_killed_from_outside_at_any_moment(
    crashing: None, make_video: Callable, tmp_path: Path
) -> None:
    """SIGSEGV and SIGKILL every now and then: no hang, every video accounted for, neighbours right."""
    videos = [make_video(tmp_path / f"slow{place}.mp4", frames=6, seed=place) for place in range(10)]
    done = threading.Event()
    with Decoders(2, CUTTER, 60.0) as decoders:

        def kill() -> None:
            for turn in range(8):
                if done.wait(0.7):
                    return
                process = decoders.all[turn % 2].process
                if process is not None:
                    process.send_signal((signal.SIGKILL, signal.SIGSEGV)[turn % 2])

        killer = threading.Thread(target=kill)
        killer.start()
        found = [future.result() for _, future in decoders.ahead(enumerate(videos), Sampling(2), 3)]
        done.set()
        killer.join()
    assert len(found) == 10
    for video, clip in zip(videos, found, strict=True):
        if isinstance(clip, NoClip):
            assert clip.error == "crashed"
        else:
            np.testing.assert_array_equal(clip.crops, [CUTTER(f.rgb) for f in decode.sample_frames(video, 2)])


def test_signals_to_the_whole_job_do_not_end_decoders(
    crashing: None, make_video: Callable, tmp_path: Path
) -> None:
    with Decoders(1, CUTTER, 60.0) as decoders:
        ((_, future),) = decoders.ahead([(0, make_video(tmp_path / "slow.mp4", frames=6))], Sampling(2), 0)
        while decoders.all[0].process is None or not future.running():
            time.sleep(0.01)
        time.sleep(1.0)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            decoders.all[0].process.send_signal(number)
        assert isinstance(future.result(), Clip)
        pid = decoders.all[0].process.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_closing_does_not_wait_for_a_hanging_video(
    crashing: None, make_video: Callable, tmp_path: Path
) -> None:
    start = time.monotonic()
    with Decoders(1, CUTTER, 3600.0) as decoders:
        next(decoders.ahead([(0, make_video(tmp_path / "hang.mp4", frames=6))] * 2, Sampling(2), 0))
        while decoders.all[0].process is None:
            time.sleep(0.01)
        time.sleep(0.5)
    assert time.monotonic() - start < 60 and decoders.all[0].process is None


def test_an_installation_that_cannot_start_is_no_fault_of_the_videos(
    monkeypatch: pytest.MonkeyPatch, make_video: Callable, tmp_path: Path
) -> None:
    monkeypatch.setattr(children, "START", "raise SystemExit(3)")
    with pytest.raises(AlignerError, match="no child process can be started .*exit code 3"):
        decoded([make_video(tmp_path / "a.mp4", frames=6)])


def test_children_that_are_killed_while_they_start_are_started_again(
    monkeypatch: pytest.MonkeyPatch, make_video: Callable, tmp_path: Path
) -> None:
    tries = tmp_path / "tries"
    killed = (
        "import os; from pathlib import Path; t = Path({!r}); n = t.exists() and len(t.read_text()) or 0\n"
    )
    killed += "t.write_text('x' * (n + 1))\nif n < {}: os.kill(os.getpid(), 9)\n"
    video = make_video(tmp_path / "a.mp4", frames=6)
    monkeypatch.setattr(children, "START", killed.format(str(tries), 3) + children.START)
    assert isinstance(decoded([video])[0], Clip) and len(tries.read_text()) == 4
    monkeypatch.setattr(children, "START", "import os; os.kill(os.getpid(), 9)")
    with pytest.raises(AlignerError, match="6 child processes were killed while they started, .*SIGKILL"):
        decoded([video])


def test_children_load_nothing_heavy() -> None:
    heavy = "{'torch', 'open_clip', 'pandas', 'pyarrow'}"
    code = f"import sys, aligner.decoding; sys.exit(bool({heavy} & set(sys.modules)))"
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0


# The poison list.


@pytest.fixture
def poisonous(make_video: Callable, tmp_path: Path) -> Path:
    """Two good videos around one that brings its decoder down."""
    for name in ("a", "once-segfault", "z"):
        make_video(tmp_path / "videos" / f"{name}.mp4", frames=6)
    return tmp_path / "videos"


def test_a_poisoned_video_is_not_tried_again_unless_asked(
    crashing: None, poisonous: Path, settings: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(videos=poisonous)
    report = run.run(config)
    assert (report.ok, report.failed, report.failures_by_stage) == (2, 1, {"decode": 1})
    row = artifact.read_failures(config.out, 0)[0]
    assert (row["video_id"], row["error"]) == ("once-segfault.mp4", "crashed") and "SIGSEGV" in row["message"]
    poison = artifact.read_poison(config.out, 0)
    assert poison == {"once-segfault.mp4": {key: row[key] for key in ("stage", "error", "message")}}
    assert status(config.out).failures == {"decode (crashed)": 1} and verify(config.out) == []

    # An interrupted shard: made again without a decoder that could die; with one that would not, too.
    before = (config.out / artifact.shard_name(0)).read_bytes()
    (config.out / artifact.marker_name(0)).unlink()
    monkeypatch.undo()
    assert run.run(config).failed == 1
    assert artifact.read_failures(config.out, 0) == [row]
    assert (config.out / artifact.shard_name(0)).read_bytes() == before
    assert run.run(config).skipped_shards == 1

    # Asked to, it is tried, and now decodes; its neighbours' rows do not change.
    neighbour = artifact.read_video(config.out, "z.mp4")
    report = run.run(settings(videos=poisonous, retry_poisoned=True))
    assert (report.ok, report.failed, report.done_shards) == (3, 0, 1)
    assert artifact.read_poison(config.out, 0) == {} and verify(config.out) == []
    assert artifact.read_video(config.out, "z.mp4").equals(neighbour)


@pytest.mark.parametrize("content", ["{half", "[]", '{"videos": {"a": {"stage": 1}}}'])
def test_a_damaged_poison_list_is_an_error_that_says_what_to_do(settings: Callable, content: str) -> None:
    config = settings()
    run.prepare(config)
    (config.out / artifact.poison_name(1)).write_text(content)
    with pytest.raises(AlignerError, match="poison-00001.json .*--retry-poisoned makes it anew"):
        run.run(config)
    assert run.run(settings(retry_poisoned=True)).ok == 7


def test_a_video_that_takes_too_long_is_given_up(
    crashing: None, make_video: Callable, settings: Callable
) -> None:
    root = settings().out.parent / "videos"
    for name in ("a", "hang", "z"):
        make_video(root / f"{name}.mp4", frames=6)
    report = run.run(settings(videos=root, video_seconds=2.0))
    assert (report.ok, report.failed) == (2, 1)
    assert artifact.read_failures(settings().out, 0)[0]["error"] == "timeout"
    with pytest.raises(AlignerError, match="--video-seconds must be above 0, got 0.0"):
        settings(video_seconds=0.0)
