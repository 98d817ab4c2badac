"""The commands as users and scripts call them: exit codes, messages, bad input, quick help."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import av
import pytest
from typer.testing import CliRunner, Result

from aligner import artifact
from aligner.cli import app

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """``aligner ARGS...`` in this process."""
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID", raising=False)
    return lambda *args: CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture
def options(clips: Path, tiny_corpus: Path, tiny_clip: str, tmp_path: Path) -> list[object]:
    given = ["--videos", clips, "--corpus", tiny_corpus, "--model", tiny_clip, "--out", tmp_path / "out"]
    return [*given, *"--frames 2 --merge 2 --top-k 4 --device cpu --quiet".split()]


def test_help_is_quick_and_light() -> None:
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom aligner.cli import app\n"
        "own = 'run plan check-videos status verify inspect repair retry compact export stats'.split()\n"
        "for command in ['', *own]:\n"
        "    result = CliRunner().invoke(app, [*command.split(), '--help'])\n"
        "    assert result.exit_code == 0 and 'Usage' in result.output, result.output\n"
        "heavy = {'torch', 'av', 'pandas', 'pyarrow', 'numpy', 'open_clip', 'faiss'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_bad_input_matrix_through_a_real_process(
    options: list, make_video: Callable, make_audio: Callable, aligner: Callable, tmp_path: Path
) -> None:
    root = tmp_path / "videos"
    make_video(root / "good.mp4", 9)
    make_audio(root / "audio.mp4")
    (root / "empty.mp4").touch()
    (root / "text.mp4").write_text("not a video\n" * 50)
    whole = make_video(root / "whole.avi", 80).read_bytes()
    (root / "truncated.avi").write_bytes(whole[: len(whole) // 2])
    (root / "whole.avi").unlink()
    with av.open(str(root / "zero.avi"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        container.start_encoding()
    names = ["good.mp4", "audio.mp4", "empty.mp4", "text.mp4", "truncated.avi", "zero.avi", "missing.mp4"]
    manifest = root / "list.txt"
    manifest.write_text("\n".join(names))
    options[1] = manifest
    result = aligner("run", *options, "--json")
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    report = json.loads(result.stdout)
    assert (report["planned"], report["ok"], report["failed"]) == (7, 1, 6)
    assert report["failures_by_stage"] == {"open": 6}
    rows = artifact.read_failures(tmp_path / "out", 0)
    assert {row["video_id"]: row["error"] for row in rows} == {
        "audio.mp4": "no_video",
        "empty.mp4": "empty",
        "missing.mp4": "missing",
        "text.mp4": "unreadable",
        "truncated.avi": "truncated",
        "zero.avi": "no_frames",
    }
    assert not any(str(tmp_path) in row["message"] for row in rows)


def test_run_status_verify_inspect(call: Callable, options: list, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert call("verify", out).exit_code == 1
    planned = call("plan", *[option for option in options if option not in ("--quiet", "--device", "cpu")])
    assert planned.exit_code == 0 and "7 videos" in planned.stdout, planned.output
    assert "shards: 1 todo" in call("status", out).stdout
    unfinished = call("verify", out)
    assert unfinished.exit_code == 1 and "not done" in unfinished.stderr
    first = call("run", *options)
    assert first.exit_code == 0 and "7 videos, 7 ok, 0 failed" in first.stdout, first.output
    assert "nothing to do" in call("run", *options).stdout
    assert call("verify", out).stdout == "ok\n"
    assert json.loads(call("verify", out, "--json").stdout) == {"problems": []}
    assert json.loads(call("status", out, "--json").stdout)["shards"] == {"done": 1}
    assert "entities: top 4 of 40" in call("inspect", out).stdout
    shown = call("inspect", out, "run/0.mp4", "--regions", 2)
    assert shown.stdout.count("whole frame") == 2 and shown.stdout.count("patches)") == 4
    assert len(json.loads(call("inspect", out, "run/0.mp4", "--regions", 1, "--json").stdout)) == 4


def test_dry_run_loads_and_writes_nothing(call: Callable, clips: Path, tmp_path: Path) -> None:
    (clips / "notes.md").touch()
    result = call("plan", "--videos", clips, "--videos-per-shard", 3, "--dry-run", "--json")
    (clips / "notes.md").unlink()
    counts = json.loads(result.stdout)
    assert (counts["videos"], counts["shards"], counts["ignored"]) == (7, 3, {".md": 1})
    assert call("plan", "--videos", clips).exit_code == 1


def refused(result: Result, *words: str) -> None:
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("error: ") and "Traceback" not in result.output
    for word in words:
        assert word in result.stderr


def test_a_corpus_of_another_model(call: Callable, options: list, other_clip: str) -> None:
    options[5] = other_clip
    refused(call("run", *options), "made with another model", "corpus-builder build --labels FILE --model")


def test_changed_settings(call: Callable, options: list) -> None:
    assert call("run", *options).exit_code == 0
    refused(call("run", *options, "--frames", 3), "config.frames: got 3, expected 2", "--force")
    assert call("run", *options, "--frames", 3, "--force").exit_code == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--merge", -1], "--merge must be at least 0, got -1"),
        (["--frames", 0], "--frames must be at least 1"),
        (["--top-k", 99], "--top-k 99 needs at least 99 entities, the corpus has 40"),
        (["--precision", "fp8"], "--precision must be one of fp32, bf16"),
        (["--merge", "most"], "--merge must be a whole number or auto, got 'most'"),
        (["--merge", "-1"], "--merge must be at least 0, got -1"),
        (["--dense", "query"], "--dense must be one of none, value, self, got 'query'"),
        (["--device", "gpu"], "--device must be auto, cpu, cuda or cuda:N, got 'gpu'"),
        (["--num-shards", 2], "--num-shards and --shard-index go together; --shard-index is missing"),
        (["--num-shards", 2, "--shard-index", 2], "--shard-index must be below --num-shards 2, got 2"),
        (["--pretrained", "openai"], "--pretrained must be omitted"),
        (["--videos", "nowhere"], "--videos nowhere does not exist"),
        (["--corpus", "nowhere"], "--corpus nowhere needs manifest.json"),
    ],
)
def test_bad_options_are_one_clear_error(call: Callable, options: list, change: list, message: str) -> None:
    refused(call("run", *options, *change), message)


def test_an_out_that_cannot_be_written(call: Callable, options: list, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    refused(call("run", *options), "out")


def test_wrong_usage_is_not_mistaken_for_failed_videos(call: Callable) -> None:
    for args in (["run"], ["run", "--bogus"], ["runn"], []):
        result = call(*args)
        assert result.exit_code == 1 and "Traceback" not in result.output


def test_an_array_task_that_is_no_number(
    call: Callable, options: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "seven")
    refused(call("run", *options), "SLURM_ARRAY_TASK_ID must be a whole number, got 'seven'")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("manifest.json", b"{half"),
        ("manifest.json", b"[]"),
        ("manifest.json", b"\xff\xfe"),
        ("manifest.json", b'{"artifact": "alignments", "schema_version": 1}'),
        ("videos.parquet", b"PAR1 cut"),
        ("entities.parquet", None),
    ],
)
def test_a_damaged_folder_is_a_message_for_every_command(
    call: Callable, options: list, tmp_path: Path, file: str, content: bytes | None
) -> None:
    out = tmp_path / "out"
    call("run", *options)
    (out / file).unlink() if content is None else (out / file).write_bytes(content)
    refused(call("run", *options), file)
    refused(call("inspect", out, "run/0.mp4"), file)
    if file == "manifest.json":
        for command in ("status", "verify", "inspect"):
            refused(call(command, out), file, "produced by `aligner run")
    else:
        found = call("verify", out)
        assert found.exit_code == 1 and file in found.stderr and "Traceback" not in found.output
        assert call("status", out).exit_code == 0


@pytest.mark.parametrize(
    "content",
    [
        "{half",
        '{"videos": {"a": 1}}',
        *(pytest.param(text, marks=pytest.mark.exhaustive) for text in ("[]", "null", '{"videos": {}}')),
    ],
)
def test_a_damaged_marker_is_work_to_do(call: Callable, options: list, tmp_path: Path, content: str) -> None:
    out = tmp_path / "out"
    call("run", *options)
    (out / artifact.marker_name(0)).write_text(content)
    assert "shards: 1 todo" in call("status", out).stdout
    found = call("verify", out)
    assert found.exit_code == 1 and "shard 0: its marker is damaged; run `aligner run` again" in found.stderr
    refused(
        call("inspect", out, "run/0.mp4"), "run/0.mp4", "verify" if content == '{"videos": {}}' else "again"
    )
    assert call("run", *options).exit_code == 0 and call("verify", out).stdout == "ok\n"


def test_damaged_failures_are_a_message(call: Callable, options: list, clips: Path, tmp_path: Path) -> None:
    out, broken = tmp_path / "out", tmp_path / "broken"
    shutil.copytree(clips, broken)
    (broken / "text.mp4").write_text("no video")
    assert call("run", *options, "--videos", broken).exit_code == 2
    (out / artifact.failures_name(0)).write_bytes(b"PAR1")
    refused(call("status", out), "failures-00000.parquet cannot be read", "aligner verify")
    assert call("verify", out).exit_code == 1


def test_a_wrong_root_warns_loudly(call: Callable, options: list, clips: Path, tmp_path: Path) -> None:
    listed = tmp_path / "list.csv"
    listed.write_text("path,duration\nrun/0.mp4,1\njump/1.mp4,2\n")
    options[1] = listed
    dry = call("plan", "--videos", listed, "--dry-run", "--json")
    assert json.loads(dry.stdout)["ignored_columns"] == ["duration"]
    result = call("run", *options, "--json")
    assert result.exit_code == 2
    for stderr in (dry.stderr, result.stderr):
        assert "warning: ALL 2 VIDEOS ARE MISSING" in stderr and "probably a wrong --videos-root" in stderr
        assert "warning: ignored columns of the manifest: 'duration'" in stderr
    report = json.loads(result.stdout)
    assert report["ignored_columns"] == ["duration"] and report["failed"] == 2
    assert any("ALL 2 VIDEOS" in text for text in report["warnings"])
    right = call("plan", "--videos", listed, "--videos-root", clips, "--dry-run")
    assert "MISSING" not in right.stderr and "ignored columns: duration" in right.stdout


def test_run_and_plan_agree_on_every_setting(call: Callable, options: list, tmp_path: Path) -> None:
    given = [*options[:8], "--frames", 3, "--merge", 1, "--top-k", 2, "--precision", "bf16"]
    given += ["--videos-per-shard", 2, "--batch-frames", 2, "--no-proportional-attention", "--dense", "value"]
    given += ["--preprocess", "device"]
    assert call("plan", *given).exit_code == 0
    written = artifact.read_manifest(tmp_path / "out")["config"]
    assert (written["frames"], written["merge"], written["top_k"], written["precision"]) == (3, 1, 2, "bf16")
    assert (written["videos_per_shard"], written["frames_per_pass"]) == (2, 2)
    assert written["proportional_attention"] is False and written["dense"] == "value"
    assert (written["preprocess"], written["compile"]) == ("device", False)
    given[given.index("--batch-frames") + 1] = 9
    assert call("run", *given, "--device", "cpu", "--quiet").exit_code == 0
    assert artifact.read_manifest(tmp_path / "out")["config"] == written


def test_a_mistyped_path_is_told_before_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"")
    for videos, wanted in (
        ("gone", "--videos gone does not exist"),
        (".", "--corpus none needs manifest.json"),
    ):
        options = ["--videos", videos, "--corpus", "none", "--model", "ViT-B-16", "--out", "out"]
        code = (
            f"import sys\nfrom aligner.cli import app\ntry:\n    app(['run', *{options!r}])\n"
            "except SystemExit as end:\n    assert end.code == 1\nassert 'torch' not in sys.modules"
        )
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0 and wanted in done.stderr, done.stderr
