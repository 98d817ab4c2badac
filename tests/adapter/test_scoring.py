"""Miniature end to end: lists, alignments, a trained run, and the table of a protocol."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from adapter.artifact import describe_file
from adapter.cli import app
from adapter.config import AdapterError, make_settings
from adapter.scoring import run_and_keep
from adapter.train import train

SETTINGS = {"blocks": 1, "epochs": 6, "lr": 2e-3, "batch_size": 8, "device": "cpu", "val_fraction": 0.25}


@pytest.fixture(scope="module")
def world(tmp_path_factory, toy, mini):
    """Alignments of split 1 of HMDB51 in miniature (a missing and a failed test video), labels, and a run."""
    folder = tmp_path_factory.mktemp("protocol")
    names = mini.classes["hmdb51"]
    videos = []
    for c, name in enumerate(names):
        for i in range(12):
            split = "test" if i < mini.tested else "train"
            videos.append(toy.world.video(f"{name}/{mini.video(name, i)}", name, split, c, 100 * c + i))
    videos = [video for video in videos if "v00_pushup" not in video.video_id]
    next(video for video in videos if "v01_kick_u" in video.video_id).failed = True
    alignments = toy.write_alignments(folder / "alignments", videos)
    labels = toy.write_labels(folder / "labels", [*names, "Archery"])
    train(alignments, labels, folder / "run", make_settings(SETTINGS))
    return folder


def arguments(world, mini):
    folders = ["--alignments", world / "alignments", "--labels", world / "labels", "--lists", mini.root]
    return [str(word) for word in folders]


def command(*words):
    done = CliRunner().invoke(app, ["protocol", *map(str, words)])
    return done.exit_code, done.output


def test_a_run_by_a_protocol(world, mini, tmp_path):
    code, text = command(
        "run", "hmdb51-few-shot-8", world / "run", *arguments(world, mini), "--device", "cpu"
    )
    assert code == 0, text
    result = json.loads((world / "run" / "protocol-hmdb51-few-shot-8.json").read_text())
    (part,) = result["parts"]
    assert (part["listed"], part["n"], part["classes"]) == (12, 10, 6)
    assert part["missing"] == ["v00_pushup_u_nm.avi"] and part["failed"] == {
        "v01_kick_u_nm.avi": "decode: truncated"
    }
    # The model learned, and it trained on the list's 8 videos of each class and 12 more.
    assert part["top1"] > 0.6 and part["training"] == {"listed": 48, "run": 60, "both": 48}
    assert result["runs"][0]["views"] == {"frames": 6} and result["runs"][0]["train_seed"] == 0
    assert "1 missing: v00_pushup_u_nm.avi" in text and result["lists"][0]["sha256"][:16] in text
    # The scores that it kept are a source that gives the same figures.
    scores = world / "run" / "scores-hmdb51-few-shot-8.parquet"
    out = tmp_path / "out" / "again.json"
    code, text = command("run", "hmdb51-few-shot-8", scores, "--lists", mini.root, "--out", out, "--json")
    again = json.loads(text)
    assert code == 0 and again == json.loads(out.read_text())
    assert again["table"] == result["table"] and again["parts"][0]["confusions"] == part["confusions"]


def test_a_second_run_gives_the_same_bytes(world, mini):
    names = ("protocol-hmdb51-few-shot-2.json", "scores-hmdb51-few-shot-2.parquet")
    hashes = []
    for _ in range(2):
        run_and_keep(
            "hmdb51-few-shot-2",
            [world / "run"],
            mini.root,
            world / "alignments",
            world / "labels",
            device="cpu",
        )
        hashes.append([describe_file(world / "run" / name) for name in names])
    assert hashes[0] == hashes[1]


DRIVER = Path(__file__).parent / "drive_trainings.py"


def damage_last_group(alignments):
    """Let the last row group hold a number that is none; the others are as they were."""
    (file,) = alignments.glob("shard-*.parquet")
    old = pq.ParquetFile(file)
    groups = [old.read_row_group(i) for i in range(old.num_row_groups)]
    place = groups[-1].column_names.index("norm")
    groups[-1] = groups[-1].set_column(
        place, "norm", pa.array([float("nan")] * len(groups[-1]), pa.float32())
    )
    with pq.ParquetWriter(file, old.schema_arrow, write_page_checksum=True) as writer:
        for group in groups:
            writer.write_table(group)


@pytest.fixture(scope="module")
def shared_out(tmp_path_factory, world, mini, toy):
    """Copies of the run by name, scored by several processes; their exit codes; what was said."""
    root, data = tmp_path_factory.mktemp("ranks"), tmp_path_factory.mktemp("data")
    names = mini.classes["hmdb51"]
    few = [toy.world.video(f"{names[0]}/{mini.video(names[0], i)}", names[0], "test", 0, i) for i in (0, 1)]
    toy.write_alignments(data / "few", few, num_shards=1)
    damage_last_group(toy.write_alignments(data / "damaged", few, num_shards=1, per_group=1))
    common = {
        "labels": str(world / "labels"),
        "lists": str(mini.root),
        "alignments": str(world / "alignments"),
    }
    common["protocol"] = "hmdb51-few-shot-2"
    jobs = {f"{ranks} ranks": {**common, "ranks": ranks, "pass": 3} for ranks in (1, 2, 3)}
    jobs["two ranks, probed"] = {**common, "ranks": 2, "pass": 3, "head": "probe"}
    jobs["alone, probed"] = {**common, "pass": 3, "head": "probe"}
    jobs["crowd"] = {**common, "ranks": 3, "pass": 1, "alignments": str(data / "few")}
    jobs["two alone"] = {**common, "pass": 1, "alignments": str(data / "few")}
    jobs["damaged"] = {**common, "ranks": 2, "pass": 1, "alignments": str(data / "damaged")}
    for name, job in jobs.items():
        job["out"] = str(shutil.copytree(world / "run", root / name))
    done = subprocess.run(
        [sys.executable, DRIVER],
        input=json.dumps(list(jobs.values())),
        capture_output=True,
        text=True,
        timeout=120,
        start_new_session=True,
    )
    assert done.returncode == 0, done.stderr
    return root, dict(zip(jobs, json.loads(done.stdout), strict=True)), done.stderr


WRITTEN = (
    "eval-shared.json",
    "predictions-shared.parquet",
    "new/predictions.parquet",
    "protocol-hmdb51-few-shot-2.json",
    "scores-hmdb51-few-shot-2.parquet",
    "table.json",
)


def content(run, name):
    """What a file says, less the name of its folder."""
    return (run / name).read_bytes().replace(f'"{run.name}"'.encode(), b'"run"')


@pytest.mark.parametrize(
    ("name", "alone"),
    [
        ("2 ranks", "1 ranks"),
        ("3 ranks", "1 ranks"),
        ("two ranks, probed", "alone, probed"),
        ("crowd", "two alone"),
    ],
)
def test_the_number_of_ranks_changes_no_bit_of_what_is_written(shared_out, name, alone):
    root, codes, said = shared_out
    assert {*codes[name], *codes[alone]} == {0}, said
    for file in WRITTEN:
        assert content(root / name, file) == content(root / alone, file), file
    assert {path.name for path in (root / name).iterdir()} == {path.name for path in (root / alone).iterdir()}


def test_every_video_counts_once_whatever_the_number_of_ranks(shared_out, world):
    root, _, _ = shared_out
    for name, n, planned in (("3 ranks", 10, 70), ("crowd", 2, 2)):
        result = json.loads((root / name / "eval-shared.json").read_text())
        assert (result["n"], sum(row["n"] for row in result["per_class"])) == (n, n)
        videos = pq.read_table(root / name / "new" / "predictions.parquet")["video_id"].to_pylist()
        assert len(videos) == len(set(videos)) == planned


def test_damage_that_one_rank_meets_ends_all_with_a_message(shared_out):
    root, codes, said = shared_out
    assert codes["damaged"] == [1, 1] and not (root / "damaged" / "eval-shared.json").exists()
    assert "Traceback" not in said
    assert "another of the 2 processes ended before its part was done" in said and "not finite" in said


def test_a_linear_probe_of_z(tmp_path, toy, mini, world):
    names = mini.classes["hmdb51"]
    videos = [
        toy.world.video(mini.video(name, i), None, None, c, 900 + 50 * c + i)
        for c, name in enumerate(names)
        for i in range(9)
    ]
    alignments = toy.write_alignments(tmp_path / "a", videos)
    run = tmp_path / "run"
    train(world / "alignments", world / "labels", run, make_settings({"model": "mean_pool", "device": "cpu"}))
    result = run_and_keep("hmdb51-linear-probe", [run], mini.root, alignments, world / "labels", device="cpu")
    assert [part["n"] for part in result["parts"]] == [12, 12, 12]
    assert result["table"]["top1"]["mean"] > 0.7
    probe = result["runs"][0]["probe"]
    assert probe["videos"] == 42 and probe["listed"] == 108 and probe["penalty"] > 0
    unlisted = [video for video in videos if "sword_exercise" not in video.video_id]
    alignments = toy.write_alignments(tmp_path / "b", unlisted)
    with pytest.raises(
        AdapterError, match="part split 1: .* holds no training videos of sword exercise; align"
    ):
        run_and_keep("hmdb51-linear-probe", [run], mini.root, alignments, world / "labels", device="cpu")


def test_a_run_that_trained_on_a_test_video_is_refused(tmp_path, toy, mini, world):
    names = mini.classes["hmdb51"]
    videos = [toy.world.video(mini.video(n, i), n, None, c, c) for c, n in enumerate(names) for i in (0, 5)]
    alignments = toy.write_alignments(tmp_path / "a", videos)
    train(
        alignments, world / "labels", tmp_path / "run", make_settings({"model": "mean_pool", "device": "cpu"})
    )
    folders = [
        "--alignments",
        alignments,
        "--labels",
        world / "labels",
        "--lists",
        mini.root,
        "--device",
        "cpu",
    ]
    code, text = command("run", "hmdb51-few-shot-2", tmp_path / "run", *folders)
    assert code == 1 and "6 of its 12 videos trained run or chose its epoch" in text
    assert not (tmp_path / "run" / "protocol-hmdb51-few-shot-2.json").exists()


def test_the_epoch_and_the_weights_do_not_depend_on_the_test_split(tmp_path, toy, label_set):
    """Test labels that are wrong, and test videos that show something else, give the same run bit by bit."""
    hashes, epochs = [], []
    for name, shift in (("right", 0), ("wrong", 1)):
        videos = toy.world.learnable(8)
        for video in videos:
            if video.split == "test" and shift:
                video.label = toy.classes[(toy.classes.index(video.label) + shift) % len(toy.classes)]
                video.seed += 7777
        alignments = toy.write_alignments(tmp_path / f"alignments {name}", videos)
        report = train(alignments, label_set, tmp_path / name, make_settings({**SETTINGS, "epochs": 3}))
        hashes.append(describe_file(tmp_path / name / "model.safetensors")["sha256"])
        epochs.append((report.best_epoch, report.best_val_top1))
    assert hashes[0] == hashes[1] and epochs[0] == epochs[1]


def test_what_lacks_is_said(world, mini, toy, tmp_path):
    code, text = command("run", "hmdb51-ep3", world / "run", "--lists", mini.root)
    assert code == 1 and "give --alignments and --labels to score it with" in text
    few = toy.write_labels(tmp_path / "few", mini.classes["hmdb51"][:5])
    folders = ["--alignments", world / "alignments", "--labels", few, "--lists", mini.root]
    code, text = command("run", "hmdb51-few-shot-2", world / "run", *folders)
    assert code == 1 and "has no scores for 1 of 6 candidates, such as 'sword'" in text
    code, text = command("run", "hmdb51-ep3", tmp_path / "none.parquet", "--lists", mini.root)
    assert code == 1 and "there is no file" in text
    code, text = command("run", "hmdb51-ep3", tmp_path, "--lists", mini.root, "--out", "x.txt")
    assert code == 1 and "it must end in .json" in text
    code, text = command("run", "k400-supervised", world / "run", *arguments(world, mini))
    assert code == 1 and "holds none of the videos of k400_base_test, k400_novel_test, such as v00_" in text


def test_protocols_are_listed_and_shown(mini):
    code, text = command("list")
    assert code == 0 and "hmdb51-ep3" in text and "k600-open-vclip" in text
    code, text = command("show", "hmdb51-base-to-novel", "--lists", mini.root)
    assert code == 0 and "runs, in this order: trained on s1" in text
    assert "novel s3: hmdb51_novel_test, trained on hmdb51_base_train3: 6 videos, 3 classes" in text
    code, text = command("show", "ucf101-ep1-numpy", "--json")
    assert json.loads(text)["parts"][3]["draw"] == {"scheme": "numpy", "index": 3}


def test_models_are_compared_from_files(world, mini):
    scores = world / "run" / "scores-hmdb51-few-shot-2.parquet"
    words = ["--first", scores, "--second", scores, "--lists", mini.root]
    code, text = command("compare", "hmdb51-few-shot-2", *words)
    assert (
        code == 0
        and "first - second +0.00 points [0.0, 0.0]" in text
        and "McNemar p = 1 (0 against 0" in text
    )


def test_manifests_of_protocols(tmp_path, mini):
    out, folder = tmp_path / "m.csv", tmp_path / "videos"
    for i in range(4):
        for name in ("sword", "kick"):
            (folder / name).mkdir(parents=True, exist_ok=True)
            (folder / name / mini.video(name, i).replace(".avi", ".mp4")).touch()
    code, text = command(
        "manifest", "hmdb51-base-to-novel", "--lists", mini.root, "--out", out, "--videos", folder, "--run", 2
    )
    assert code == 0 and "5 videos (4 test, 1 train)" in text and "not there: " in text
    rows = list(csv.DictReader(out.open()))
    # Run s2 trains on videos 3 to 18 of the base classes; kick is novel, so it is tested alone.
    assert [(row["path"], row["label"], row["split"]) for row in rows] == [
        ("sword/v03_sword_u_nm.mp4", "sword", "train"),
        ("sword/v00_sword_u_nm.mp4", "sword", "test"),
        ("sword/v01_sword_u_nm.mp4", "sword", "test"),
        ("kick/v00_kick_u_nm.mp4", "kick", "test"),
        ("kick/v01_kick_u_nm.mp4", "kick", "test"),
    ]
    code, text = command("manifest", "hmdb51-linear-probe", "--lists", mini.root, "--out", out)
    rows = list(csv.DictReader(out.open()))
    assert len(rows) == 120 and {row["split"] for row in rows} == {""} and "120 videos" in text
    (folder / "sword" / "v00_kick_u_nm.avi").touch()
    words = ["--lists", mini.root, "--out", out]
    for more, match in (
        (["--videos", folder], "have one listed name"),
        (["--videos", mini.root], "holds none of the 24 listed videos"),
        (["--run", 2], "--run is 2; hmdb51-few-shot-2 has runs 1 to 1"),
    ):
        code, text = command("manifest", "hmdb51-few-shot-2", *words, *more)
        assert code == 1 and match in text
