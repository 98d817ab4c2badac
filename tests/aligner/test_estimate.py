"""Estimates: the arithmetic from given times, sizes against a real shard, and a probe that really runs."""

import json
import os
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aligner import artifact, run
from aligner.cli import app
from aligner.config import STORES, AlignerError
from aligner.estimate import PASSES, Probe, Spread, estimate, probe, sizes

MEASURED = Probe([0.2, 0.6, 0.4], [0.3, 0.1, 0.2, 0.25], {"open (missing)": 2})


def near(*numbers: float) -> object:
    return pytest.approx(numbers)


def test_on_a_gpu_the_slower_of_decoding_and_encoding_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    found = estimate(MEASURED, 7200, 1, "cuda")
    assert found.decode_s == Spread(0.2, 0.4, 0.6) and astuple(found.encode_s) == near(0.1, 0.225, 0.3)
    assert found.video_s == Spread(0.2, 0.4, 0.6)
    assert astuple(found.device_hours) == near(0.4, 0.8, 1.2)
    assert (found.probed, found.failures) == (5, {"open (missing)": 2})
    assert astuple(estimate(MEASURED, 7200, 4, "cuda").video_s) == near(0.1, 0.225, 0.3)


def test_on_a_cpu_they_add_up_and_workers_beyond_the_processors_do_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    found = estimate(MEASURED, 3600, 16, "cpu")
    assert astuple(found.video_s) == near(0.2, 0.425, 0.6)
    assert found.device_hours.median == pytest.approx(0.425)
    told = "\n".join(found.lines())
    assert "probed 5 videos on cpu; 2 failed at open (missing)" in told
    assert "in total: 0.425 device-hours (0.2 to 0.6)" in told


def test_sizes_are_those_of_a_shard(settings: Callable) -> None:
    """Rather too many than too few; the footer and the little things are what a tiny model has most of."""
    config = settings(videos_per_shard=100, frames=24)
    job, _ = run.load(config)
    found = sizes(2500, job)
    assert [*found] == [*STORES]
    each = artifact.bytes_per_video(24, 13, 32, 5, "fp16")
    assert found["fp16"] == {"per_1000": 1000 * each, "total": 2500 * each}
    run.run(config)
    real = (config.out / artifact.shard_name(0)).stat().st_size / 7
    assert 0.8 * real < each < 1.5 * real


def test_a_probe_decodes_and_encodes_videos_from_all_over_the_plan(settings: Callable, clips: Path) -> None:
    (clips / "jump" / "zz.mp4").write_text("text")
    try:
        job, _ = run.load(settings(batch_frames=4))
        assert len(job.plan.items) == 8 and not settings().out.exists()
        found = probe(job, 4)
    finally:
        (clips / "jump" / "zz.mp4").unlink()
    assert len(found.decode_s) + sum(found.failures.values()) == 4
    assert len(found.encode_s) == PASSES and min(found.decode_s + found.encode_s) > 0
    many = probe(run.load(settings())[0], 100)
    assert (len(many.decode_s), many.failures) == (7, {})


def test_nothing_decodes(settings: Callable, tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_text("text")
    with pytest.raises(
        AlignerError, match="none of 1 probed videos can be decoded; see `aligner check-videos`"
    ):
        probe(run.load(settings(videos=tmp_path / "videos"))[0], 3)


def test_the_command(clips: Path, tiny_corpus: Path, tiny_clip: str, tmp_path: Path) -> None:
    given = ["plan", "--videos", clips, "--dry-run", "--device", "cpu", "--frames", 2]
    model = ["--corpus", tiny_corpus, "--model", tiny_clip, "--merge", 2, "--top-k", 4]

    def call(*args: object) -> tuple[int, str]:
        result = CliRunner().invoke(app, [str(arg) for arg in args])
        return result.exit_code, result.output

    code, shown = call(*given, *model, "--probe", 2)
    assert code == 0 and "stored as fp16: about" in shown and "device-hours (" in shown, shown
    told = json.loads(call(*given, *model, "--probe", 2, "--json")[1])
    assert told["videos"] == 7 and told["estimate"]["probed"] == 2
    assert told["sizes"]["fp16"]["total"] == 7 * artifact.bytes_per_video(2, 13, 32, 4, "fp16")
    assert "estimate" not in json.loads(call(*given, *model, "--json")[1])
    code, shown = call(*given, "--probe", 2)
    assert code == 1 and "--probe needs --model and --corpus" in shown
    assert [*tmp_path.iterdir()] == []
