"""Runs: right rows, the same bytes whatever the workers, resumed after SIGKILL, refused when changed."""

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import open_clip
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from aligner import artifact, decode, run
from aligner.config import AlignerError, ChangedSettings
from aligner.corpus import load_corpus
from aligner.encoder import EncodedFrames, load_clip
from aligner.engine import Stop
from aligner.progress import Progress
from aligner.verify import status, verify

ROOT = Path(__file__).resolve().parents[2]


def shard_bytes(out: Path) -> dict[str, str]:
    """Hash of every shard and failures file."""
    files = sorted([*out.glob("shard-*.parquet"), *out.glob("failures-*.parquet")])
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_a_run_makes_what_it_says(settings: Callable) -> None:
    config = settings()
    report = run.run(config)
    assert (report.planned, report.ok, report.failed, report.exit_code) == (7, 7, 0, 0)
    assert verify(config.out) == []
    manifest = artifact.read_manifest(config.out)
    assert (manifest["grid"], manifest["patches"], manifest["regions"]) == ([4, 4], 16, 12)
    assert (manifest["dim"], manifest["num_shards"], manifest["videos"]) == (32, 3, 7)
    assert (config.out / "entities.parquet").read_bytes() == (config.corpus / "entities.parquet").read_bytes()
    table = pq.read_table([config.out / artifact.shard_name(shard) for shard in range(3)])
    assert len(table) == 7 * 3 * 13
    videos = artifact.read_videos(config.out)
    assert sorted(table["video_id"].unique().to_pylist()) == videos["video_id"].to_pylist()
    assert Counter(videos["shard"].to_pylist()) == {0: 3, 1: 2, 2: 2}
    assert artifact.read_videos(config.out)["label"].to_pylist() == ["jump"] * 3 + ["run"] * 4


def test_rows_equal_a_plain_computation(settings: Callable, tiny_clip: str) -> None:
    """Without merging: open_clip's own transform and image tower, and NumPy for the rest."""
    config = settings(merge=0)
    run.run(config)
    model, _ = load_clip(tiny_clip)
    transform = open_clip.image_transform(32, is_train=False)
    frames = decode.sample_frames(config.videos / "run" / "2.mp4", 3)
    with torch.no_grad():
        cls = model.encode_image(torch.stack([transform(Image.fromarray(f.rgb)) for f in frames])).numpy()
    rows = artifact.read_video(config.out, "run/2.mp4")
    first = rows["region_index"].to_numpy() == 0
    unit = cls / np.linalg.norm(cls, axis=1, keepdims=True)
    np.testing.assert_allclose(artifact.vectors(rows)[first], unit, atol=5e-4)
    np.testing.assert_allclose(rows["norm"].to_numpy()[first], np.linalg.norm(cls, axis=1), rtol=1e-4)
    np.testing.assert_allclose(rows["time_s"].to_numpy()[first], [f.time_s for f in frames])
    entities = pq.read_table(config.corpus / "entities.parquet")["embedding"].to_pylist()
    cosines = unit @ np.array(entities).T
    np.testing.assert_array_equal(artifact.lists(rows["topk_entity"])[first], np.argsort(-cosines)[:, :5])
    np.testing.assert_allclose(
        artifact.lists(rows["topk_score"])[first], -np.sort(-cosines)[:, :5], atol=1e-5
    )
    # Every patch is its own region: the maps of a frame are the unit patches in order.
    maps = np.array([list(value) for value in rows["patch_map"].to_pylist()], np.uint8).reshape(3, 17, 2)
    np.testing.assert_array_equal(np.unpackbits(maps[0, 1:], axis=1)[:, :16], np.eye(16))


@pytest.mark.parametrize(
    "size",
    [1, 4, pytest.param(None, marks=pytest.mark.exhaustive), pytest.param(100, marks=pytest.mark.exhaustive)],
)
def test_workers_and_batches_do_not_change_a_byte(settings: Callable, tmp_path: Path, size: int) -> None:
    """Frames per pass are settled when a folder is begun; nothing that may change afterwards changes a byte."""
    variants = {"plain": {}, "workers": {"decode_workers": 4}, "batch": {"batch_frames": 5}}
    for name, change in variants.items():
        run.prepare(settings(out=tmp_path / name, batch_frames=size))
        assert run.run(settings(out=tmp_path / name, **{"batch_frames": size} | change)).ok == 7
        assert artifact.read_manifest(tmp_path / name)["config"]["frames_per_pass"] == (size or 3)
        assert verify(tmp_path / name) == []
    hashes = [shard_bytes(tmp_path / name) for name in variants]
    assert len(hashes[0]) == 6 and all(found == hashes[0] for found in hashes)


def test_processes_that_share_the_work_give_the_same_shards(settings: Callable, tmp_path: Path) -> None:
    run.run(settings(out=tmp_path / "alone"))
    for index in (1, 0):
        report = run.run(settings(out=tmp_path / "shared", num_shards=2, shard_index=index))
        assert report.shards == 2 - index
    assert shard_bytes(tmp_path / "shared") == shard_bytes(tmp_path / "alone")
    assert status(tmp_path / "shared").complete


def test_a_finished_run_has_nothing_to_do(settings: Callable) -> None:
    run.run(settings())
    stamps = {file.name: file.stat().st_mtime_ns for file in settings().out.iterdir()}
    report = run.run(settings())
    assert (report.skipped_shards, report.done_shards, report.ok) == (3, 0, 7)
    assert "nothing to do" in report.sentence()
    assert stamps == {file.name: file.stat().st_mtime_ns for file in settings().out.iterdir()}


def test_a_lost_or_cut_shard_is_made_again(settings: Callable) -> None:
    config = settings()
    run.run(config)
    before = shard_bytes(config.out)
    (config.out / artifact.shard_name(0)).write_bytes(b"short")
    (config.out / artifact.marker_name(1)).unlink()
    (config.out / artifact.marker_name(2)).write_text('{"shard":')
    assert status(config.out).shards == {"stale": 1, "todo": 2}
    assert run.run(config).done_shards == 3
    assert shard_bytes(config.out) == before


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"frames": 4}, "config.frames: got 4, expected 3"),
        ({"merge": 1}, "config.merge: got 1, expected 2"),
        ({"top_k": 4}, "config.top_k: got 4, expected 5"),
        ({"precision": "bf16"}, "config.precision: got 'bf16', expected 'fp32'"),
        ({"proportional_attention": False}, "config.proportional_attention: got False, expected True"),
        ({"dense": "value"}, "config.dense: got 'value', expected 'none'"),
        ({"sampling": "tsn"}, "config.sampling: got 'tsn', expected 'uniform'"),
        ({"clips": 2}, "config.clips: got 2, expected 1"),
        ({"crops": 3}, "config.crops: got 3, expected 1"),
        ({"seed": 1}, "config.seed: got 1, expected 0"),
        ({"colours": "imagenet"}, "config.colours: got 'imagenet', expected 'model'"),
        ({"compile": True}, "config.compile: got True, expected False"),
        ({"merge": "auto"}, "config.merge: got 1, expected 2"),
        ({"videos_per_shard": 4}, "config.videos_per_shard: got 4, expected 3"),
    ],
)
def test_changed_settings_are_refused(settings: Callable, change: dict, line: str) -> None:
    run.prepare(settings())
    with pytest.raises(ChangedSettings, match="begun with other settings") as refusal:
        run.prepare(settings(**change))
    assert line in str(refusal.value) and "--force" in str(refusal.value)


@pytest.mark.parametrize(
    ("place", "name", "value", "line"),
    [
        (decode, "DECODER", "pyav 99", "config.decoder: got 'pyav 99', expected 'pyav"),
        (artifact, "PACKAGE", "aligner 99", "package: got 'aligner 99', expected 'aligner"),
        (artifact, "SCHEMA_VERSION", artifact.SCHEMA_VERSION + 1, "schema_version: got "),
    ],
)
def test_another_version_of_the_tools_is_refused(
    settings: Callable, monkeypatch: pytest.MonkeyPatch, place: object, name: str, value: object, line: str
) -> None:
    run.prepare(settings())
    monkeypatch.setattr(place, name, value)
    with pytest.raises(ChangedSettings) as refusal:
        run.prepare(settings())
    assert line in str(refusal.value)


def test_another_model_or_other_weights_are_refused(
    settings: Callable, other_clip: str, make_corpus: Callable, tmp_path: Path
) -> None:
    run.prepare(settings())
    corpus = make_corpus(tmp_path / "corpus", load_clip(other_clip)[1])
    with pytest.raises(ChangedSettings) as refusal:
        run.prepare(settings(model=other_clip, corpus=corpus))
    assert "model.name: got 'local-dir:otherrandom', expected 'local-dir:tinyrandom'" in str(refusal.value)
    assert "model.weights_sha256: got " in str(refusal.value)


def test_paths_workers_and_batches_may_change_on_resume(
    settings: Callable, clips: Path, tiny_clip: str, tmp_path: Path
) -> None:
    before = settings(out=tmp_path / "before")
    run.run(before)
    whole = shard_bytes(before.out)
    (before.out / artifact.marker_name(1)).unlink()
    moved = {"videos": clips, "corpus": before.corpus, "model": Path(tiny_clip.partition(":")[2])}
    moved = {
        name: shutil.copytree(path, tmp_path / "moved" / name / path.name) for name, path in moved.items()
    }
    moved["model"] = f"local-dir:{moved['model']}"
    after = tmp_path / "after"
    before.out.rename(after)
    report = run.run(settings(**moved, out=after, decode_workers=3, batch_frames=50, video_seconds=9.0))
    assert (report.skipped_shards, report.done_shards) == (2, 1)
    assert shard_bytes(after) == whole


def test_another_corpus_or_plan_is_refused_and_force_starts_over(
    settings: Callable, make_corpus: Callable, make_video: Callable, tiny_info: dict, tmp_path: Path
) -> None:
    videos = tmp_path / "videos"
    make_video(videos / "a.mp4", 5)
    run.run(settings(videos=videos))
    other = make_corpus(tmp_path / "other", tiny_info, seed=1)
    with pytest.raises(ChangedSettings, match="corpus.fingerprint: got "):
        run.prepare(settings(videos=videos, corpus=other))
    make_video(videos / "b.mp4", 5)
    make_video(videos / "a.mp4", 9)
    with pytest.raises(ChangedSettings, match="0 videos of the plan were removed and 1 changed:\n.* a.mp4"):
        run.prepare(settings(videos=videos))
    report = run.run(settings(videos=videos, corpus=other, frames=2, force=True))
    assert report.ok == 2 and verify(settings().out) == []
    with pytest.raises(AlignerError, match="aligner plan --force"):
        run.prepare(settings(force=True, num_shards=2))


def test_more_videos_make_more_shards_and_leave_the_old_ones(
    settings: Callable, make_video: Callable, tmp_path: Path
) -> None:
    videos = tmp_path / "videos"
    for place in range(5):
        make_video(videos / f"m{place}.mp4", 6 + place, seed=place)
    config = settings(videos=videos)
    assert run.run(config).done_shards == 2
    before = shard_bytes(config.out)
    stamps = {name: (config.out / name).stat().st_mtime_ns for name in before}
    fingerprint = artifact.read_manifest(config.out)["fingerprint"]
    for name in ("a", "z"):
        make_video(videos / f"{name}.mp4", 7)
    with pytest.raises(AlignerError, match="has to grow by 2 videos, .* run `aligner plan`"):
        run.prepare(settings(videos=videos, num_shards=2))
    report = run.run(config)
    assert (report.skipped_shards, report.done_shards, report.ok, report.exit_code) == (2, 1, 7, 0)
    assert [text for text in report.warnings if text.startswith("2 new videos joined the plan")]
    assert {name: (config.out / name).stat().st_mtime_ns for name in before} == stamps
    assert before.items() < shard_bytes(config.out).items()
    manifest = artifact.read_manifest(config.out)
    assert (manifest["videos"], manifest["num_shards"]) == (7, 3) and manifest["fingerprint"] != fingerprint
    assert verify(config.out) == [] and status(config.out).complete
    assert len(artifact.read_video(config.out, "a.mp4")) == 3 * 13
    again = run.run(settings(videos=videos, num_shards=2, shard_index=1))
    assert again.done_shards == 0 and not again.warnings


def test_allowed_changes_cost_their_shards_only(
    settings: Callable, make_video: Callable, tmp_path: Path
) -> None:
    videos = tmp_path / "videos"
    for place in range(4):
        make_video(videos / "run" / f"{place}.mp4", 6 + place, seed=place)
    config = settings(videos=videos, videos_per_shard=1)
    run.run(config)
    shard_of = {row["video_id"]: row["shard"] for row in artifact.read_videos(config.out).to_pylist()}
    (videos / "run" / "0.mp4").unlink()
    make_video(videos / "run" / "1.mp4", 20)
    changed = replace(config, allow_changed_videos=True)
    report = run.run(changed)
    assert (report.done_shards, report.skipped_shards, report.ok) == (2, 2, 3)
    assert verify(config.out) == []
    assert artifact.read_marker(config.out, shard_of["run/0.mp4"])["counts"]["planned"] == 0
    assert len(artifact.read_video(config.out, "run/1.mp4")) == 3 * 13
    # Another label is another plan, but not another row.
    (videos / "list.csv").write_text("path,label\n" + "".join(f"run/{n}.mp4,walk\n" for n in (1, 2, 3)))
    labelled = run.run(replace(changed, videos=videos / "list.csv"))
    assert labelled.done_shards == 0 and verify(config.out) == []
    assert artifact.read_videos(config.out)["label"].to_pylist() == ["walk"] * 3


@pytest.mark.parametrize("allowed", [False, True])
def test_a_kill_between_plan_and_manifest_is_survived(
    settings: Callable, make_video: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: bool
) -> None:
    videos = tmp_path / "videos"
    for place in range(4):
        make_video(videos / f"{place}.mp4", 6 + place, seed=place)
    config = settings(videos=videos, allow_changed_videos=allowed)
    run.run(config)
    make_video(videos / "new.mp4", 9)
    if allowed:
        make_video(videos / "0.mp4", 20)
    with monkeypatch.context() as patch:
        patch.setattr(artifact, "make_manifest", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run.prepare(config)
    assert verify(config.out) == [
        "videos.parquet is not the file that the manifest describes (sha256 differs)"
    ]
    assert run.run(config).ok == 5 and verify(config.out) == []
    assert artifact.read_manifest(config.out)["num_shards"] == 3


def test_a_plan_of_somebody_else_is_refused(settings: Callable) -> None:
    config = settings()
    run.run(config)
    table = artifact.read_videos(config.out)
    artifact.write_table(
        config.out / artifact.VIDEOS, table.set_column(3, "bytes", pc.add(table["bytes"], 1))
    )
    with pytest.raises(AlignerError, match="is damaged: videos.parquet is not the file .* --force"):
        run.prepare(config)


def tree(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("kind", ["corpus", "data set", "damaged", "notes"])
def test_foreign_folders_are_left_alone(settings: Callable, tmp_path: Path, kind: str, force: bool) -> None:
    config = settings(out=tmp_path / "foreign", force=force)
    config.out.mkdir()
    if kind == "corpus":
        for file in config.corpus.iterdir():
            (config.out / file.name).write_bytes(file.read_bytes())
    elif kind == "data set":
        for shard in range(5):
            (config.out / artifact.shard_name(shard)).write_bytes(b"rows of somebody")
    else:
        (config.out / ("manifest.json" if kind == "damaged" else "notes.txt")).write_text("{half")
    before = tree(config.out)
    with pytest.raises(AlignerError, match="left alone, even with --force: give another --out") as refusal:
        run.run(config)
    assert not isinstance(refusal.value, ChangedSettings)
    assert tree(config.out) == before


@pytest.mark.parametrize("force", [False, True])
def test_what_an_interrupted_start_left_is_no_obstacle(settings: Callable, force: bool) -> None:
    config = settings(force=force)
    config.out.mkdir()
    for name in ("videos.parquet", "entities.parquet", ".manifest.json.0a1b2c3d.tmp"):
        (config.out / name).write_bytes(b"half")
    assert run.run(config).ok == 7
    assert verify(config.out) == [] and not list(config.out.glob(".*.tmp"))


def test_temporary_files_of_a_start_are_removed_unless_others_may_write_them(settings: Callable) -> None:
    run.prepare(settings())
    leftover = settings().out / ".entities.parquet.0a1b2c3d.tmp"
    leftover.write_bytes(b"half")
    run.prepare(settings(num_shards=2, shard_index=1))
    assert leftover.exists()
    run.prepare(settings())
    assert not leftover.exists()


def test_starting_over_keeps_what_is_not_ours(settings: Callable) -> None:
    config = settings()
    run.run(config)
    for name in ("notes.txt", "shard-of-glass.parquet", ".hidden.tmp"):
        (config.out / name).write_text("mine")
    artifact.start_over(config.out)
    left = {"notes.txt", "shard-of-glass.parquet", ".hidden.tmp", "videos.parquet", "entities.parquet"}
    assert {file.name for file in config.out.iterdir()} == left


@pytest.mark.parametrize("root", [None, "."])
@pytest.mark.parametrize("videos", ["vids", "vids/list.csv"])
def test_a_relative_videos_option_reaches_every_video(
    settings: Callable,
    make_video: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    videos: str,
    root: str,
) -> None:
    below = "vids/" if root else ""
    make_video(tmp_path / "vids" / "run" / "1.mp4", 5)
    make_video(tmp_path / "vids" / "jump" / "2.mp4", 5)
    (tmp_path / "vids" / "list.csv").write_text(f"path\n{below}run/1.mp4\n{below}jump/2.mp4\n")
    monkeypatch.chdir(tmp_path)
    report = run.run(settings(videos=Path(videos), videos_root=root and Path(root), out=Path("out")))
    assert (report.planned, report.ok, report.failed) == (2, 2, 0)
    ids = artifact.read_videos(Path("out"))["video_id"].to_pylist()
    assert ids == [f"{below}jump/2.mp4", f"{below}run/1.mp4"]


def test_another_models_weights_are_refused(settings: Callable, other_clip: str) -> None:
    with pytest.raises(AlignerError, match="made with another model: needs local-dir:otherrandom"):
        run.prepare(settings(model=other_clip))


class Poisoned:
    """An encoder that gives NaN for all frames that look like one of a video's."""

    def __init__(self, encoder: object, pixels: torch.Tensor) -> None:
        self.encoder, self.pixels = encoder, pixels

    def __getattr__(self, name: str) -> object:
        return getattr(self.encoder, name)

    def __call__(self, pixels: torch.Tensor) -> EncodedFrames:
        found = self.encoder(pixels)
        same = (pixels[:, None] == self.pixels).flatten(2).all(-1).any(-1)
        return replace(found, embeddings=torch.where(same[:, None, None], torch.nan, found.embeddings))


@pytest.mark.parametrize("batch_frames", [None, 7])
def test_a_video_the_encoder_cannot_digest_is_a_failure_row(settings: Callable, batch_frames: int) -> None:
    config = settings(batch_frames=batch_frames)
    job = run.prepare(config)
    shard = {item.video_id: item.shard for item in job.plan.items}["run/0.mp4"]
    neighbours = [item.video_id for item in job.plan.shard(shard) if item.video_id != "run/0.mp4"]
    planned = len(neighbours) + 1
    assert neighbours and run.run_shard(job, shard)["counts"]["ok"] == planned
    before = {name: artifact.read_video(config.out, name) for name in neighbours}
    frames = decode.sample_frames(config.videos / "run" / "0.mp4", 3)
    pixels = torch.stack([job.encoder.preprocess(Image.fromarray(frame.rgb)) for frame in frames])
    marker = run.run_shard(replace(job, encoder=Poisoned(job.encoder, pixels)), shard)
    assert marker["counts"] == {"planned": planned, "ok": planned - 1, "failed": 1}
    row = artifact.read_failures(config.out, shard)[0]
    assert (row["video_id"], row["stage"], row["error"]) == ("run/0.mp4", "encode", "not_finite")
    assert "3 of 3 frames" in row["message"]
    # Its neighbours in the pass are none the worse for it.
    assert all(artifact.read_video(config.out, name).equals(table) for name, table in before.items())


def test_too_much_merging_warns(settings: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    job = run.prepare(settings(merge=6))
    assert run.warnings_of(job) == []
    monkeypatch.setattr(run, "FEW_REGIONS", 6)
    assert run.warnings_of(job) == [
        "--merge 6 leaves 5 regions of 16 patches; use a smaller --merge for this model, or --merge auto"
    ]


def test_automatic_merging_is_recorded_as_the_number_it_came_to(settings: Callable) -> None:
    job = run.prepare(settings(merge="auto"))
    assert job.manifest["config"]["merge"] == 1
    assert run.prepare(settings(merge=1)).manifest == job.manifest


def test_a_timm_model_runs_from_end_to_end(
    settings: Callable, timm_clip: str, make_corpus: Callable, tmp_path: Path
) -> None:
    """SigLIP's kind: no class token, attention pooling, its own colours and resizing."""
    info = load_clip(timm_clip)[1]
    config = settings(
        model=timm_clip, corpus=make_corpus(tmp_path / "corpus", info), merge="auto", dense="self"
    )
    report = run.run(config)
    assert report.complete and report.ok == 7
    manifest = artifact.read_manifest(config.out)
    assert manifest["grid"] == [10, 10] and manifest["regions"] == 100 - 9 * 4
    assert manifest["config"]["mean"] == [0.5, 0.5, 0.5] and manifest["config"]["resize_mode"] == "squash"
    assert verify(config.out) == []


def test_a_stop_leaves_nothing_half_done(settings: Callable) -> None:
    config = settings()
    job, stop = run.prepare(config), Stop()

    class StopAtTheSecond(Progress):
        done = 0

        def advance(self, ok: bool) -> None:
            self.done += 1
            if self.done == 2:
                stop.ask()

    with pytest.raises(run.Stopped):
        run.run_shard(job, 0, StopAtTheSecond(), stop)
    assert sorted(file.name for file in config.out.iterdir()) == [
        "entities.parquet",
        "manifest.json",
        "timings-00000.json",
        "videos.parquet",
    ]
    assert artifact.read_timings(config.out, 0) == {"attempt": 1}


@pytest.fixture(scope="module")
def many(make_video: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough videos that a kill at a random moment hits every part of the work."""
    root = tmp_path_factory.mktemp("many")
    for place in range(50):
        make_video(root / f"{place:02d}.mp4", frames=30, seed=place)
    (root / "broken.mp4").write_text("no video")
    return root


def markers(out: Path) -> int:
    return len(list(out.glob("shard-*.json")))


def wait_for(condition: Callable[[], bool], process: object) -> None:
    end = time.monotonic() + 60
    while not condition() and process.poll() is None:
        assert time.monotonic() < end, "the process did nothing for a minute"
        time.sleep(0.002)


# Importing torch takes seconds, so one parent imports it and forks the processes that are to be killed.
CHAOS = """
import json, os, random, signal, sys, time
from pathlib import Path
from aligner.config import AlignConfig
from aligner.run import run
given, kills = json.loads(sys.argv[1]), int(sys.argv[2])
paths = {name: Path(given.pop(name)) for name in ("videos", "corpus", "out")}
config, randomly = AlignConfig(**given, **paths), random.Random(0)
for _ in range(kills):
    child = os.fork()
    if child == 0:
        os._exit(run(config).exit_code)
    before = len(list(config.out.glob("shard-*.json")))
    time.sleep(randomly.uniform(0, 0.1))
    while randomly.random() < 0.95 and len(list(config.out.glob("shard-*.json"))) < before + 2:
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    if os.waitpid(child, 0)[1] != signal.SIGKILL:
        break
    print(len(list(config.out.glob("shard-*.json"))), flush=True)
"""


@pytest.mark.exhaustive
def test_killed_at_random_moments_and_run_again_gives_the_same_bytes(
    settings: Callable, many: Path, tmp_path: Path
) -> None:
    whole = settings(videos=many, videos_per_shard=2, out=tmp_path / "whole")
    report = run.run(whole)
    assert (report.ok, report.failed, report.shards, report.exit_code) == (50, 1, 26, 2)
    killed = replace(whole, out=tmp_path / "killed")
    given = {name: str(getattr(killed, name)) for name in ("videos", "corpus", "out", "model", "device")}
    given |= {name: getattr(killed, name) for name in ("frames", "merge", "top_k", "videos_per_shard")}
    chaos = [sys.executable, "-c", CHAOS, json.dumps(given), "10"]
    done = subprocess.run(chaos, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    finished = [int(line) for line in done.stdout.splitlines()]
    # A crowded machine may let the work finish in spite of the kills, but not before some of them.
    assert len(finished) >= 4 and finished[3] < 26, done.stdout
    (killed.out / f".{artifact.shard_name(25)}.1.tmp").write_bytes(b"what a kill amid a write leaves")
    (killed.out / artifact.marker_name(25)).unlink(missing_ok=True)
    assert run.run(killed).exit_code == 2
    assert shard_bytes(killed.out) == shard_bytes(whole.out)
    assert verify(killed.out) == [] and not list(killed.out.glob(".*.tmp"))


@pytest.mark.exhaustive
def test_sigterm_stops_the_command_cleanly(
    settings: Callable, many: Path, start: Callable, tmp_path: Path
) -> None:
    config, out = settings(), tmp_path / "stopped"
    given = ["--videos", many, "--corpus", config.corpus, "--model", config.model, "--out", out]
    process = start("run", *given, *"--quiet --frames 3 --merge 2 --top-k 5 --videos-per-shard 2".split())
    wait_for(lambda: markers(out) > 0, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 75
    found = status(out)
    assert found.shards["done"] >= 1 and set(found.shards) == {"done", "todo"}
    assert not list(out.glob(".*.tmp"))


def test_merging_down_to_one_region_is_refused(settings: Callable, tiny_info: dict) -> None:
    """The one region would be the frame itself."""
    vision = {"image_size": 32, "layers": 5, "width": 32, "head_width": 16, "patch_size": 8}
    text = {"context_length": 8, "vocab_size": 10, "width": 32, "heads": 2, "layers": 1}
    deep = open_clip.CLIP(embed_dim=32, vision_cfg=vision, text_cfg=text)
    open_clip.model.set_model_preprocess_cfg(deep, asdict(open_clip.transform.PreprocessCfg(size=32)))
    entities = load_corpus(settings().corpus)
    for merge, regions in ((3, 2), (1, 11)):
        tower, _, _ = run.fit_together(settings(merge=merge), entities, deep, tiny_info)
        assert tower.regions == regions
    with pytest.raises(AlignerError, match="--merge 16 leaves one region of 16 patches.*--merge auto"):
        run.fit_together(settings(merge=16), entities, deep, tiny_info)
